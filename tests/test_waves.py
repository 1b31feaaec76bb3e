"""Waves: what is said does not depend on them, and users think while other dialogues are generated."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import ReprefillGenerator
from test_rollout import FixedTask, FixedUser, Script, goals, turn

from itpo_lib.config import ITPOConfig
from itpo_lib.errors import ItpoError
from itpo_lib.generation import CachedGenerator
from itpo_lib.rollout import Episode, play, split_rows

POOL = ThreadPoolExecutor(16)


class SlowUser(FixedUser):
    """A `FixedUser` who answers in a thread, in an order that nobody controls, with a word of chance."""

    def __init__(self, goal, seed):
        super().__init__(goal)
        self.rng = np.random.default_rng(seed)

    def reply(self, text):
        reply = super().reply(text)
        return replace(reply, text=f"{reply.text} {self.rng.integers(1, 10)} .")

    def start_reply(self, text):
        pause = threading.Event()

        def answer():
            pause.wait(self.goal.data["pause"])
            return self.reply(text)

        return POOL.submit(answer).result


class SlowTask(FixedTask):
    def user(self, goal, seed):
        return SlowUser(goal, seed)


PEOPLE = st.lists(
    st.fixed_dictionaries(
        {
            "patience": st.integers(1, 5),
            "says": st.sampled_from(["it is 5", "it is 5 of them . " * 2, "so"]),
            "fails": st.sampled_from([None, None, 1, 2]),
            "pause": st.sampled_from([0.0, 0.001, 0.01]),
        }
    ),
    min_size=1,
    max_size=7,
)
ONE_FAILS = [{"patience": 3, "says": "it is 5", "fails": 2 if i == 1 else None, "pause": 0.005 * i} for i in range(5)]


def assert_same_dialogues(found, expected):
    """All but the log-probs is equal; these differ by the rounding of another batch size."""
    for one, other in zip(found, expected, strict=True):
        assert replace(one, logprobs=[]) == replace(other, logprobs=[])
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)


@given(people=PEOPLE, waves=st.integers(1, 9), scripted=st.booleans(), cached=st.booleans())
@example(people=ONE_FAILS, waves=1, scripted=False, cached=True)
@example(people=ONE_FAILS, waves=2, scripted=False, cached=True)
@example(people=ONE_FAILS, waves=3, scripted=True, cached=True)
@example(people=ONE_FAILS, waves=9, scripted=False, cached=False)
def test_waves_do_not_change_what_is_said(frozen_model, chat, people, waves, scripted, cached):
    task = (FixedTask if scripted else SlowTask)(*people)
    generator = CachedGenerator if cached else ReprefillGenerator
    expected = play(frozen_model, chat, task, task.episodes())
    found = play(frozen_model, chat, task, task.episodes(), generator=generator, waves=waves)
    assert_same_dialogues(found, expected)
    assert [d.goal_index for d in found] == list(range(len(people)))
    assert all((d.outcome is None) == (d.ended == "failed") for d in found)
    if people == ONE_FAILS:
        assert [d.ended == "failed" for d in found] == [False, True, False, False, False]


@pytest.mark.parametrize("waves", [1, 2, 3, 20])
def test_the_scripted_users_of_a_world_answer_alike(frozen_model, chat, task, waves):
    """Real users with noise of their own; one wave is bit for bit the default."""
    expected = play(frozen_model, chat, task, goals(task, 8))
    found = play(frozen_model, chat, task, goals(task, 8), waves=waves)
    assert_same_dialogues(found, expected)
    if waves == 1:
        assert found == expected


@given(n=st.integers(1, 40), waves=st.integers(1, 45))
def test_rows_are_split_evenly_and_in_order(n, waves):
    parts = split_rows(n, waves)
    assert [row for part in parts for row in part] == list(range(n))
    sizes = [len(part) for part in parts]
    assert len(parts) == min(n, waves) and max(sizes) - min(sizes) <= 1


def test_every_wave_has_a_generator_of_its_own(frozen_model, chat):
    """One after the other, as long as they last; a wave that is over no longer takes its turn."""
    end = [turn([chat.end_of_turn_id])] * 4
    calls: list[list[int]] = []

    class Recorded(Script):
        def generate(self, rows, new_ids, uniforms):
            calls.append(list(rows))
            return super().generate(rows, new_ids, uniforms)

    made = []

    def generator(model, stop_ids, temperature):
        made.append(Recorded(end, end, end, end))
        return made[-1]

    task = FixedTask({"patience": 3}, {"patience": 1}, {"patience": 1}, {"patience": 2})
    play(frozen_model, chat, task, task.episodes(), generator=generator, waves=3)
    assert calls == [[0, 1], [2], [3], [0], [3], [0]]
    assert [script.calls for script in made] == [[[0, 1], [0], [0]], [[2]], [[3], [3]]]


class Conversation:
    """Two dialogues of three turns whose users listen to each other's assistant before they answer.

    The first user answers turn k only after the second assistant's turn k, which in turn waits for
    the second user, who answers turn k only after the first assistant's turn k + 1.
    """

    TURNS = 3

    def __init__(self, patience: float):
        self.patience, self.spoken, self.changed = patience, [0, 0], threading.Condition()

    def heard(self, row: int) -> None:
        with self.changed:
            self.spoken[row] += 1
            self.changed.notify_all()

    def wait(self, row: int, k: int) -> None:
        needed = min(k + row, self.TURNS)
        with self.changed:
            in_time = self.changed.wait_for(lambda: self.spoken[1 - row] >= needed, timeout=self.patience)
        assert in_time, f"no overlap: user {row} waited in vain for turn {needed} of the other dialogue"


def play_conversation(model, chat, conversation, waves):
    class Listener(FixedUser):
        def start_reply(self, text):
            def answer():
                conversation.wait(self.goal.index, len(self.heard) + 1)
                return self.reply(text)

            return POOL.submit(answer).result

    class ListenerTask(FixedTask):
        def user(self, goal, seed):
            return Listener(goal)

    class Announced(CachedGenerator):
        def generate(self, rows, new_ids, uniforms):
            turns = super().generate(rows, new_ids, uniforms)
            for row in rows:
                conversation.heard(row)
            return turns

    task = ListenerTask(*[{"patience": conversation.TURNS}] * 2)
    return play(model, chat, task, task.episodes(), generator=Announced, waves=waves)


def test_users_think_while_another_wave_is_generated(frozen_model, chat):
    """A user's answer waits for the generation of the other wave: without overlap there would be no end."""
    dialogues = play_conversation(frozen_model, chat, Conversation(patience=60.0), waves=2)
    assert [d.n_turns for d in dialogues] == [3, 3] and [d.ended for d in dialogues] == ["user", "user"]


def test_without_waves_such_users_wait_in_vain(frozen_model, chat):
    """The test above can fail."""
    with pytest.raises(ItpoError, match="AssertionError: no overlap: user 1 waited in vain for turn 2"):
        play_conversation(frozen_model, chat, Conversation(patience=0.2), waves=1)


def test_a_bug_in_a_user_of_one_wave_is_not_swallowed(frozen_model, chat):
    class Broken(FixedTask):
        def user(self, goal, seed):
            user = FixedUser(goal)
            user.reply = (lambda text: 1 / 0) if goal.index == 1 else user.reply
            return user

    task = Broken({}, {})
    with pytest.raises(ItpoError, match="goal 1 of 'train', user seed 1: ZeroDivisionError"):
        play(frozen_model, chat, task, task.episodes(), waves=2)


@pytest.mark.parametrize("waves", [0, -1, 1.5, "2"])
def test_bad_numbers_of_waves_are_refused(tmp_path, waves):
    with pytest.raises(ItpoError, match=f"rollout_waves must be (int|>= 1), got {waves!r}"):
        ITPOConfig(output_dir=str(tmp_path), rollout_waves=waves)


def test_a_rollout_without_waves_is_refused(frozen_model, chat, task):
    with pytest.raises(ItpoError, match="waves must be >= 1, got 0"):
        play(frozen_model, chat, task, [Episode(task.goal(0), 0)], waves=0)
