"""The three tiny worlds: fair users, reachable ceilings, no lucky guesses, and warm starts that leave room."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itpo_lib.errors import ItpoError
from itpo_lib.tasks import ceiling, get_task, play_scripted
from itpo_lib.tasks.math_tiny import QUESTIONS, SLOTS
from itpo_lib.tasks.slots import Noise, NoviceHabits, SlotNovice, asked_slot, told_values

CEILINGS = {  # the range of the expert's mean outcome over 300 goals
    ("math_tutoring", "easy"): (0.99, 1.0),
    ("math_tutoring", "normal"): (0.97, 1.0),
    ("math_tutoring", "stress"): (0.92, 0.99),
    ("document_writing", "easy"): (0.99, 1.0),
    ("document_writing", "normal"): (0.98, 1.0),
    ("document_writing", "stress"): (0.94, 0.995),
    ("medical_recommendation", "easy"): (0.99, 1.0),
    ("medical_recommendation", "normal"): (0.98, 1.0),
    ("medical_recommendation", "stress"): (0.97, 1.0),
}
every_world = pytest.mark.parametrize(("name", "difficulty"), CEILINGS)
each_task = pytest.mark.parametrize("name", sorted({name for name, _ in CEILINGS}))


def said(text: str) -> list[dict[str, str]]:
    """A dialogue that ends with this assistant turn."""
    return [{"role": "assistant", "content": text}]


def question(task, goal, slot: str) -> str:
    """The first wording of the question for a slot."""
    return task.phrases(goal)[slot][0]


def values_told(task, text: str) -> dict[str, str]:
    """What one user utterance tells, irrelevant slots included."""
    return told_values([{"role": "user", "content": text}], task.slots)


@each_task
def test_wrong_value_is_corrected_when_asked_again(name):
    task = get_task(name, noise=Noise(wrong=1.0))
    for i in range(30):
        goal = task.goal(i)
        user = task.user(goal, seed=i)
        for slot, truth in goal.hidden.items():
            first, second, third = (values_told(task, user.reply(question(task, goal, slot)).text) for _ in range(3))
            assert first[slot] != truth
            assert second == third == {slot: truth}


@every_world
def test_one_disclosure_per_turn(name, difficulty):
    task = get_task(name, difficulty=difficulty, noise=Noise())
    everything = " ".join(sorted(word for slot in task.slots for word in slot.keywords))
    for i in range(30):
        goal = task.goal(i)
        user = task.user(goal, seed=i)
        assert len(values_told(task, user.reply(everything).text)) == 1
        for slot, truth in goal.hidden.items():
            assert values_told(task, user.reply(question(task, goal, slot)).text) == {slot: truth}


@each_task
def test_vague_user_tells_nothing_and_chatter_adds_nothing(name):
    vague, chatty = get_task(name, noise=Noise(vague=1.0)), get_task(name, noise=Noise(chatter=1.0))
    goal = vague.goal(0)
    for slot, truth in goal.hidden.items():
        assert values_told(vague, vague.user(goal, seed=1).reply(question(vague, goal, slot)).text) == {}
        assert values_told(chatty, chatty.user(goal, seed=1).reply(question(chatty, goal, slot)).text) == {slot: truth}


@pytest.mark.parametrize("knob", ["vague", "wrong", "chatter"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_noise_knobs_are_probabilities(knob, value):
    with pytest.raises(ItpoError, match=f"noise.{knob} is a probability"):
        Noise(**{knob: value})


@every_world
def test_every_question_asks_for_its_own_slot(name, difficulty):
    task = get_task(name, difficulty=difficulty)
    for topic, questions in task.phrases(task.goal(0)).items():
        for text in questions:
            slot = asked_slot(text, task.slots)
            assert (slot.name if slot else "smalltalk") == topic, text
            assert task.done_word not in text.split()


@every_world
def test_opening_hides_what_is_hidden(name, difficulty):
    task, revealed = get_task(name, difficulty=difficulty), get_task(name, difficulty=difficulty, revealed=True)
    for i in range(50):
        assert task.told(task.opening_messages(task.goal(i))) == {}
        assert revealed.told(revealed.opening_messages(revealed.goal(i))) == task.goal(i).hidden


@every_world
def test_every_text_is_in_the_vocabulary(name, difficulty):
    task = get_task(name, difficulty=difficulty)
    revealed = get_task(name, difficulty=difficulty, revealed=True)
    known = set(task.vocabulary())
    assert 100 <= len(known) <= 250
    for i in range(200):
        goal = task.goal(i)
        texts = [task.opening_messages(revealed.goal(i))[-1]["content"], goal.opening, goal.answer]
        user = task.user(goal, seed=i)
        texts += [user.reply(q).text for questions in task.phrases(goal).values() for q in [*questions, *questions]]
        for assistant in (task.novice(goal, i), task.expert(goal, i)):
            texts += [m["content"] for m in play_scripted(task, goal, assistant, user_seed=i)[0]]
        assert {word for text in texts for word in text.split()} <= known


@every_world
def test_turns_fit_the_token_budget(name, difficulty):
    task = get_task(name, difficulty=difficulty)
    for i in range(100):
        goal = task.goal(i)
        for assistant in (task.novice(goal, i), task.expert(goal, i)):
            messages, _ = play_scripted(task, goal, assistant, user_seed=i)
            turns = [m["content"] for m in messages if m["role"] == "assistant"]
            assert max(len(text.split()) + 1 for text in turns) <= task.limits.max_turn_tokens
            whole = sum(len(m["content"].split()) + 3 for m in messages)
            assert whole + task.limits.max_turn_tokens < task.limits.max_tokens


@each_task
def test_unknown_difficulty_lists_the_known_ones(name):
    with pytest.raises(ItpoError, match=r"hopeless.*easy.*normal.*stress"):
        get_task(name, difficulty="hopeless")


@each_task
def test_unknown_option_is_an_error_with_the_task_s_name(name):
    with pytest.raises(ItpoError, match=f"{name}.*colour"):
        get_task(name, colour="red")


@every_world
def test_expert_ceiling(name, difficulty):
    low, high = CEILINGS[name, difficulty]
    assert low <= ceiling(get_task(name, difficulty=difficulty), n=300) <= high


@every_world
def test_blind_guess_is_rarely_right_and_pays_little(name, difficulty):
    task = get_task(name, difficulty=difficulty)
    for i in range(20):
        goal = task.goal(i)
        possible = [len(task.plausible(goal, slot)) for slot in task.hidden_slots]
        assert math.prod(possible) >= 8
        assert all(goal.hidden[slot] in task.plausible(goal, slot) for slot in task.hidden_slots)
    goals = [task.goal(i, "validation") for i in range(500)]
    guesses = [said(task.answer_text(goal, {}, np.random.default_rng(goal.index))) for goal in goals]
    assert np.mean([task.outcome(goal, guess) for goal, guess in zip(goals, guesses, strict=True)]) <= 0.4


@every_world
def test_revealed_novice_is_right_at_once(name, difficulty):
    task = get_task(name, difficulty=difficulty, revealed=True)
    for i in range(100):
        messages, outcome = play_scripted(task, task.goal(i), task.novice(task.goal(i), i), user_seed=i)
        assert outcome == pytest.approx(1.0)
        assert len(messages) == 2


@every_world
@given(data=st.data())
def test_outcome_of_any_words_is_in_the_unit_interval(name, difficulty, data):
    task = get_task(name, difficulty=difficulty)
    word = st.sampled_from([*task.vocabulary(), task.done_word]) | st.text(max_size=5)
    words = data.draw(st.lists(word, max_size=25))
    for text in (" ".join(words), " ".join([task.done_word, *words])):
        assert 0.0 <= task.checked_outcome(task.goal(0), said(text)) <= 1.0


@each_task
def test_no_answer_no_outcome(name):
    task = get_task(name)
    goal = task.goal(0)
    for messages in ([*task.opening_messages(goal)], said(""), said(task.done_word), said("hello")):
        assert task.outcome(goal, messages) == 0.0


@pytest.mark.slow
@each_task
def test_shipped_warm_start_is_competent_but_guesses_early(name):
    from itpo_lib.models import load_policy, tiny_tokenizer
    from itpo_lib.rollout import Episode, play

    model, chat = load_policy("tiny", name)
    task, revealed = get_task(name), get_task(name, revealed=True)
    assert chat.tokenizer.get_vocab() == tiny_tokenizer(task.vocabulary()).get_vocab()

    def success(world) -> float:
        dialogues = play(model, chat, world, [Episode(world.goal(i, "validation"), i) for i in range(256)])
        return float(np.mean([d.outcome >= task.success_threshold for d in dialogues]))

    assert 0.1 <= success(task) <= 0.4 * ceiling(task, n=256) + 0.03  # one standard error at 256 dialogues
    assert success(revealed) >= 0.95 - 0.02  # the same


def test_a_novice_without_bad_habits_asks_for_what_is_missing_and_then_answers():
    slots, habits = [SLOTS["action"], SLOTS["amount"]], NoviceHabits(0.0, 0.0, 0.0)
    for seed in range(10):
        messages, asked = [{"role": "user", "content": "help ."}], []
        answer = lambda told, rng: f"{told['action']} {told['amount']}"  # noqa: E731
        novice = SlotNovice(slots, QUESTIONS, answer, np.random.default_rng(seed), habits, revealed=False)
        for _ in slots:
            said = novice.act(messages)
            (name,) = (name for name, texts in QUESTIONS.items() if said in texts)
            asked.append(name)
            reply = {"action": "some are added .", "amount": "it is 5 of them ."}[name]
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": reply}]
        assert set(asked) == {"action", "amount"}
        assert novice.act(messages) == "added 5"


@pytest.mark.parametrize("difficulty, shown", [("easy", {"action"}), ("normal", set()), ("stress", set())])
def test_the_opening_tells_what_is_not_hidden_and_no_more(difficulty, shown):
    slots = [SLOTS["action"], SLOTS["amount"]]
    for revealed, names in ((False, shown), (True, {"action", "amount"})):
        task = get_task("math_tutoring", difficulty=difficulty, revealed=revealed)
        for goal in map(task.goal, range(20)):
            truth = {name: goal.data["values"][name] for name in names}
            assert told_values(task.opening_messages(goal), slots) == truth
