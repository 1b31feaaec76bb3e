"""True credit by playing on, against exact values where every dialogue can be listed."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from oracle import ReprefillGenerator

from itpo_lib.enumerable import N_ACTIONS, World, expected_gradient, gradient_variance, named_credit
from itpo_lib.errors import DialogueFailed, ItpoError
from itpo_lib.generation import CachedGenerator, SampledTurn
from itpo_lib.models import load_policy
from itpo_lib.rollout import Episode, continue_from, open_dialogues, play
from itpo_lib.tasks import Goal, Limits, Reply, Task, User, get_task, play_scripted
from itpo_lib.tasks.math_tiny import TinyMathTutoring
from itpo_lib.tasks.slots import Noise
from itpo_lib.true_credit import boundaries, noise_seed, standard_error, true_values

WORLD = World(max_turns=3)
ALL = WORLD.dialogues()
WORDS = ("how", "what", "answer")  # ask well, ask badly, answer


class WorldUser(User):
    """The user of `World`: may tell the fact when asked."""

    def __init__(self, seed: int):
        self.rng, self.known = np.random.default_rng(seed), False

    def reply(self, text: str) -> Reply:
        if text == "answer":
            return Reply("", done=True)
        tells = WORLD.tells_good if text == "how" else WORLD.tells_bad
        self.known = self.known or bool(self.rng.random() < tells)
        return Reply("it is 5" if self.known else "hmm")


class WorldTask(Task):
    """`World` as a task in words, so that the rollout engine can play it."""

    name, scale, limits = "world", "test", Limits(max_turns=3, max_turn_tokens=2, max_tokens=64)

    def goal(self, index: int, split: str = "train") -> Goal:
        return Goal(index, split, "help me please .", {"fact": "5"}, "5")

    def user(self, goal: Goal, seed: int) -> User:
        return WorldUser(seed)

    def outcome(self, goal: Goal, messages) -> float:
        if messages[-1]["content"] != "answer":
            return 0.0
        return 1.0 if self.disclosed(goal, messages) else WORLD.guess


def random_logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(WORLD.n_states, N_ACTIONS, generator=generator, dtype=torch.float64)


def state_of(context: list[int], chat) -> int:
    return WORLD.state(context.count(chat.end_of_turn_id) // 2, chat.plain_ids("5")[0] in context)


def table_policy(logits: torch.Tensor, chat):
    """A generator that plays π(a|s) from the table: one word, then the end of the turn."""

    class Table:
        def __init__(self, model, stop_ids, temperature):
            self.contexts: dict[int, list[int]] = {}

        def generate(self, rows, new_ids, uniforms):
            turns = []
            for row, ids, u in zip(rows, new_ids, uniforms[:, 0].tolist(), strict=True):
                context = self.contexts.setdefault(row, [])
                context += ids
                cdf = logits[state_of(context, chat)].softmax(-1).cumsum(-1)
                word = WORDS[int((cdf < u).sum())]
                turns.append(SampledTurn([chat.plain_ids(word)[0], chat.end_of_turn_id], [0.0, 0.0], True))
                context += turns[-1].ids
            return turns

    return Table


def number_of(dialogue) -> int:
    """Which of the listed dialogues this is."""
    words = [m["content"] for m in dialogue.messages[1:]]
    actions, replies = [WORDS.index(w) for w in words[::2]], words[1::2]
    states = [WORLD.state(k, "it is 5" in replies[:k]) for k in range(len(actions))]
    n = len(actions)
    same = (ALL.n_turns == n) & (ALL.actions[:, :n] == torch.tensor(actions)).all(1)
    return int((same & (ALL.states[:, :n] == torch.tensor(states)).all(1)).nonzero().item())


@pytest.fixture(scope="module", params=[1, 2])
def measured(request, frozen_model, chat):
    """Dialogues of a random tabular policy, their measured truth, and the exact values (B, K+1)."""
    task, logits = WorldTask(), random_logits(request.param)
    policy = table_policy(logits, chat)
    dialogues = play(frozen_model, chat, task, [Episode(task.goal(i), seed=i) for i in range(24)], generator=policy)
    truth = true_values(frozen_model, chat, task, dialogues, m=200, generator=policy)
    return dialogues, truth, ALL.true_values(logits)[[number_of(d) for d in dialogues]]


# Monte Carlo against enumeration


def test_values_agree_with_enumeration(measured):
    """All prefixes, within 3 standard errors; 1/M stands in for the error where all samples agree."""
    dialogues, truth, exact = measured
    assert {d.n_turns for d in dialogues} == {1, 2, 3}
    errors = (truth.values - exact) / truth.value_errors.clamp(min=1 / 200)
    assert errors.abs().max() < 3
    assert 0.7 < errors[:, :-1][truth.mask].square().mean().sqrt() < 1.4  # standard errors mean what they say


def test_credit_agrees_with_enumeration(measured):
    _, truth, exact = measured
    errors = (truth.credit - exact.diff(dim=1) * truth.mask) / truth.credit_errors.clamp(min=1 / 200)
    assert errors.abs().max() < 3
    assert 0.7 < errors[truth.mask].square().mean().sqrt() < 1.4


def test_credit_telescopes_to_the_outcome(measured):
    dialogues, truth, _ = measured
    outcomes = torch.tensor([d.outcome for d in dialogues], dtype=torch.float64)
    assert torch.allclose(truth.credit.sum(1), outcomes - truth.values[:, 0], atol=1e-12)
    ends = truth.mask.sum(1, keepdim=True)
    assert torch.equal(truth.values.gather(1, ends)[:, 0], outcomes)
    assert not truth.value_errors.gather(1, ends).any()
    assert not truth.credit[~truth.mask].any() and not truth.credit_errors[~truth.mask].any()


def test_exact_values_are_conditional_means():
    """V_k of the listed dialogues equals the mean outcome of all dialogues with the same first k turns and replies."""
    logits = random_logits(3)
    values, probabilities = ALL.true_values(logits), ALL.probabilities(logits)
    for n in range(0, 41, 4):
        for k in range(int(ALL.n_turns[n])):
            same = (ALL.states[:, : k + 1] == ALL.states[n, : k + 1]).all(1) & (
                ALL.actions[:, :k] == ALL.actions[n, :k]
            ).all(1)
            same &= ALL.n_turns > k
            expected = (probabilities * ALL.outcomes)[same].sum() / probabilities[same].sum()
            assert values[n, k].item() == pytest.approx(expected.item(), abs=1e-12)
        assert values[n, int(ALL.n_turns[n])] == ALL.outcomes[n]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_true_credit_is_the_exact_gradient_with_less_noise(seed):
    """E[Σ_k A*_k ∇log π_k] = ∇E[R], with and without a baseline, and far less noisy than the outcome."""
    logits = random_logits(seed)
    exact, oracle = ALL.gradient(logits, ALL.outcomes), named_credit(ALL, "oracle", logits=logits)
    for baseline in (None, "turn"):
        found = expected_gradient(ALL, logits, oracle, 2, baseline, gamma=0.0)
        assert torch.allclose(found, exact, atol=1e-10)
    noise = gradient_variance(ALL, logits, oracle, 2, "turn", gamma=0.0)
    assert noise < 0.7 * gradient_variance(ALL, logits, named_credit(ALL, "trajectory"), 2, "turn")


def test_gradient_variance_equals_brute_force():
    """By a loop over all pairs; and for independent dialogues the variance falls with the size of the group."""
    logits, credit = random_logits(2), named_credit(ALL, "trajectory")
    probabilities, scores = ALL.probabilities(logits), ALL.scores(logits)
    mean, square = torch.zeros_like(logits), 0.0
    for i in range(41):
        for j in range(41):
            edge = (ALL.outcomes[i] - ALL.outcomes[j]) / 2  # leave-one-out of a pair, turn by turn from here on
            estimate = edge * (scores[i].sum(0) - scores[j].sum(0))
            mean += probabilities[i] * probabilities[j] * estimate
            square += float(probabilities[i] * probabilities[j] * estimate.square().sum())
    expected = square - float(mean.square().sum())
    assert gradient_variance(ALL, logits, credit, 2, "outcome") == pytest.approx(expected, rel=1e-9)
    alone = gradient_variance(ALL, logits, credit, 1, None)
    assert gradient_variance(ALL, logits, credit, 4, None) == pytest.approx(alone / 4)


def test_no_two_continuations_share_their_noise():
    """Nor does one share it with a played dialogue, whose seeds are far smaller."""
    goals = [Goal(i, "train", "", {}, "") for i in (0, 1, 70_000)]
    seeds = [noise_seed(s, goal, m) for s in (0, 1) for goal in goals for m in (0, 1, 65_535)]
    assert len(set(seeds)) == 18 and min(seeds) >= 2**64


# Playing on


@pytest.fixture(scope="module")
def tutor():
    """The shipped tiny math tutor, whose outcomes vary."""
    model, chat = load_policy("tiny")
    return model.requires_grad_(False), chat


@pytest.fixture(scope="module")
def played(tutor, task):
    """Two dialogues for each of three goals."""
    return play(*tutor, task, [Episode(task.goal(i // 2), seed=i) for i in range(6)])


def test_continuing_an_opening_is_playing(tutor, task, played):
    episodes = [Episode(task.goal(i // 2), seed=i) for i in range(6)]
    dialogues, users = open_dialogues(tutor[1], task, episodes)
    assert continue_from(*tutor, task, episodes, dialogues, users) == played


def test_samples_do_not_depend_on_generator_batch_or_company(tutor, task, played):
    """The cache against the slow oracle; all boundaries at once, few at a time, and each dialogue alone."""
    assert len({d.n_turns for d in played}) > 2 and {d.outcome for d in played} == {0.0, 1.0}
    truth = true_values(*tutor, task, played, m=4)
    for options in ({"generator": ReprefillGenerator}, {"batch_size": 4}, {"batch_size": 1}):
        assert torch.equal(true_values(*tutor, task, played, m=4, **options).samples, truth.samples)
    for row, dialogue in enumerate(played):
        assert torch.equal(true_values(*tutor, task, [dialogue], m=4).samples[0], truth.samples[row])
    assert not torch.equal(true_values(*tutor, task, played, m=4, seed=1).samples, truth.samples)


class Counting(CachedGenerator):
    """Counts the dialogues that are opened."""

    opened = 0

    def generate(self, rows, new_ids, uniforms):
        type(self).opened += 0 if self.rows else len(rows)
        return super().generate(rows, new_ids, uniforms)


def test_equal_boundaries_are_played_once(tutor, task, played):
    """Six dialogues about three goals have three openings, though their users' seeds differ."""
    Counting.opened = 0
    truth = true_values(*tutor, task, played, m=3, generator=Counting)
    later = {(d.goal_index, *d.completion_ids[: d.turn_ids.index(k + 1)]) for d in played for k in range(1, d.n_turns)}
    assert Counting.opened == 3 * (3 + len(later))
    assert torch.equal(truth.samples[0::2, 0], truth.samples[1::2, 0])


def test_common_random_numbers_take_noise_out_of_differences(tutor, task):
    dialogues = play(*tutor, task, [Episode(task.goal(i), seed=i) for i in range(10)])
    truth = true_values(*tutor, task, dialogues, m=24)
    inner = truth.mask & truth.mask.roll(-1, 1)  # not the last turn: R is known there
    paired = truth.credit_errors[inner].square().mean()
    squares = truth.value_errors.square()
    assert squares[:, :-1][inner].mean() + squares[:, 1:][inner].mean() > 1.25 * paired


def test_the_recorded_dialogues_stay_as_they_are(tutor, task, played):
    before = copy.deepcopy(played)
    true_values(*tutor, task, played, m=2)
    assert played == before


def test_a_user_who_answers_otherwise_is_an_error(tutor, task, played):
    other = get_task("math_tutoring", noise=Noise(vague=1.0))
    with pytest.raises(ItpoError, match=r"answers turn 1 with .* is recorded: was the task made with the same options"):
        true_values(*tutor, other, played, m=2)


def test_bad_calls_are_refused(tutor, task, played):
    with pytest.raises(ItpoError, match="m must be >= 2"):
        true_values(*tutor, task, played, m=1)

    class Locked(WorldUser):
        def __getstate__(self):
            raise TypeError("cannot pickle a connection")

        def clone(self):
            return self

    class LockedTask(WorldTask):
        def user(self, goal, seed):
            return Locked(seed)

    (dialogue,) = play(*tutor, LockedTask(), [Episode(LockedTask().goal(0), 0)])
    with pytest.raises(ItpoError, match=r"Locked .* scripted user"):
        true_values(*tutor, LockedTask(), [dialogue], m=2)


def test_a_user_needs_a_generator_to_reseed():
    class Still(User):
        def reply(self, text):
            return Reply("yes")

    with pytest.raises(ItpoError, match=r"Still keeps no generator in self\.rng"):
        Still().reseed([1])


# Failures


class FlakyJudge(TinyMathTutoring):
    """A judge that fails on some of the dialogues."""

    fails = staticmethod(lambda messages: False)

    def outcome(self, goal, messages):
        if self.fails(messages):
            raise DialogueFailed("no verdict")
        return super().outcome(goal, messages)


def test_a_failed_dialogue_has_no_credit_and_harms_no_other(tutor, task, played):
    failed = dataclasses.replace(played[2], outcome=None, failure="no verdict")
    truth, without = (
        true_values(*tutor, task, [*played[:2], failed, *played[3:]], m=3),
        true_values(*tutor, task, played, m=3),
    )
    assert not truth.mask[2].any() and not truth.samples[2].any() and not truth.credit[2].any()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(truth.samples[others], without.samples[others])


def test_failed_continuations_are_left_out_of_the_mean(tutor, task, played):
    flaky = FlakyJudge()
    flaky.fails = lambda messages: len(messages) == 4
    whole, part = (true_values(*tutor, t, played, m=16) for t in (task, flaky))
    missing = part.samples.isnan()
    assert missing.any() and torch.equal(part.samples[~missing], whole.samples[~missing])
    b, k = missing.any(-1).nonzero()[0].tolist()
    kept = part.samples[b, k][~missing[b, k]]
    assert part.values[b, k].item() == pytest.approx(kept.mean().item())
    assert part.value_errors[b, k].item() == pytest.approx(kept.std().item() / len(kept) ** 0.5)
    assert part.values.isfinite().all() and part.credit_errors.isfinite().all()
    flaky.fails = lambda messages: True
    with pytest.raises(ItpoError, match="all 2 continuations"):
        true_values(*tutor, flaky, played, m=2)


def test_standard_error_by_hand():
    nan = float("nan")
    samples = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, nan, 0.0, nan], [1.0, 1.0, 1.0, 1.0], [1.0, nan, nan, nan]])
    assert standard_error(samples).tolist() == pytest.approx([(1 / 3) ** 0.5 / 2, 0.5, 0.0, 0.0])


# Boundaries, informative turns and the scripted judge


def conversation(*said: str) -> list:
    """Messages that alternate, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


GOAL = Goal(0, "train", "ben has 9 pens .", {"action": "added", "amount": "9"}, "18 pens")
TALK = conversation(
    "ben has 9 pens . then something happens . how many now ?",
    "hello ben , nice to meet you .", "what do you mean ?",
    "please tell me what happens then ?", "well , some are added . what a day .",
    "does ben gain or lose some pens ?", "some are added .",
    "and what is the amount then ?", "the amount is 4 .",
    "please tell me the amount in the story .", "i count 9 here .",
    "the answer is 9 plus 9 pens .",
)  # fmt: skip


def test_informative_turns_by_hand(task):
    """Small talk, a fact, the same fact, a wrong value, its correction, the answer; the 9 of the opening is no fact."""
    assert task.informative_turns(GOAL, TALK) == [False, True, False, False, True, False]
    assert task.turn_weights(GOAL, TALK) == [0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert task.disclosed(GOAL, TALK[:1]) == set() and task.disclosed(GOAL, TALK) == {"action", "amount"}
    assert task.turn_weights(GOAL, TALK[:2]) == [1.0]


@pytest.mark.parametrize("name", ["math_tutoring", "document_writing", "medical_recommendation"])
@pytest.mark.parametrize("difficulty", ["easy", "normal", "stress"])
def test_disclosed_reads_what_the_slot_users_tell(name, difficulty):
    """Against the templates of the users' replies, over scripted dialogues."""
    world = get_task(name, difficulty=difficulty)
    for i in range(60):
        goal = world.goal(i)
        messages, _ = play_scripted(world, goal, world.novice(goal, i), i)
        told = {slot for slot, value in world.told(messages).items() if value == goal.hidden[slot]}
        assert world.disclosed(goal, messages) == told


def test_only_scripted_worlds_have_a_scripted_judge():
    with pytest.raises(ItpoError, match=r"'world' \(test\) has no scripted judge"):
        WorldTask().turn_weights(GOAL, TALK)


def test_pivotal_is_the_first_informative_turn(tutor, task):
    dialogues = play(*tutor, task, [Episode(task.goal(i), seed=i) for i in range(24)])
    truth = true_values(*tutor, task, dialogues, m=2)
    assert (truth.informative.sum(1) == 2).any() and (truth.informative.sum(1) == 0).any()
    for row, dialogue in enumerate(dialogues):
        expected = task.informative_turns(task.goal(row), dialogue.messages)
        assert (
            truth.informative[row, : len(expected)].tolist() == expected
            and not truth.informative[row, len(expected) :].any()
        )
        first = [expected.index(True)] if any(expected) else []
        assert truth.pivotal[row].nonzero()[:, 0].tolist() == first


def test_boundaries_hold_what_was_said_and_known(tutor, task, played):
    dialogue = max(played, key=lambda d: d.n_turns)
    found = boundaries(task, dialogue)
    assert [b.dialogue.n_turns for b in found] == list(range(dialogue.n_turns))
    for k, boundary in enumerate(found):
        prefix = boundary.dialogue
        assert prefix.completion_ids == dialogue.completion_ids[: len(prefix.completion_ids)]
        assert dialogue.turn_ids[len(prefix.completion_ids)] == k + 1 and max(prefix.turn_ids, default=0) == k
        assert prefix.messages == dialogue.messages[: 1 + 2 * k] and prefix.outcome is None
        heard = task.told(prefix.messages)
        assert {slot: value for slot, value in boundary.user.told.items() if slot in heard} == heard
