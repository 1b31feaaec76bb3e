"""What the tiny worlds share: a table of slots, some hidden, and a user, an expert and a novice who speak of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..dialogue import Message
from .base import Goal, Limits, ScriptedAssistant, Task, User
from .slots import Noise, NoviceHabits, Slot, SlotExpert, SlotNovice, SlotUser, difficulty_level, told_values

Pick = Callable[[Sequence], Any]


class SlotTask(Task):
    """A tiny world. A subclass fills the tables below and writes `goal`, `outcome`, `answer_text` and `texts`.

    `revealed=True` makes openings that hide nothing (to measure competence); `noise` replaces the
    noise of the difficulty level. `slots` are in the order in which the user listens for them. Each
    level has the keys hidden, max_turns and noise. `done_word` in a turn ends the dialogue.
    """

    scale = "tiny"
    levels: ClassVar[Mapping[str, dict[str, Any]]]
    slots: ClassVar[tuple[Slot, ...]]
    questions: ClassVar[Mapping[str, tuple[str, ...]]]
    done_word: ClassVar[str]
    max_turn_tokens: ClassVar[int]
    max_tokens: ClassVar[int]
    note_repeats: ClassVar[bool] = False
    habits: ClassVar[NoviceHabits] = NoviceHabits()

    def __init__(self, difficulty: str = "normal", revealed: bool = False, noise: Noise | None = None):
        level = difficulty_level(self.levels, difficulty, self.name)
        self.difficulty, self.revealed = difficulty, revealed
        self.hidden_slots: tuple[str, ...] = level["hidden"]
        self.noise: Noise = noise or level["noise"]
        self.limits = Limits(level["max_turns"], self.max_turn_tokens, self.max_tokens)
        self.by_name = {slot.name: slot for slot in self.slots}

    @abstractmethod
    def answer_text(self, goal: Goal, told: dict[str, str], rng: np.random.Generator) -> str:
        """An answer from what was told; whatever was not told is guessed."""

    @abstractmethod
    def texts(self) -> list[str]:
        """What this world can say beyond slots, questions and the user's phrases."""

    def user(self, goal: Goal, seed: int) -> User:
        return SlotUser(self.slots, goal.data["values"], self.noise, seed, self.done_word, self.note_repeats)

    def novice(self, goal: Goal, seed: int) -> ScriptedAssistant:
        rng, answer = np.random.default_rng([8, seed]), lambda told, rng: self.answer_text(goal, told, rng)
        return SlotNovice(self._hidden(), self.phrases(goal), answer, rng, self.habits, self.revealed)

    def expert(self, goal: Goal, seed: int) -> ScriptedAssistant:
        rng, answer = np.random.default_rng([7, seed]), lambda told, rng: self.answer_text(goal, told, rng)
        verify = self.noise.wrong > 0
        return SlotExpert(self._hidden(), self.phrases(goal), answer, self.limits.max_turns, rng, verify)

    def phrases(self, goal: Goal) -> Mapping[str, tuple[str, ...]]:
        """The wordings of each question for this goal's opening."""
        return self.questions

    def plausible(self, goal: Goal, name: str) -> Sequence[str]:
        """The values of a slot that the opening leaves possible."""
        return self.by_name[name].choices

    def known_or_guessed(self, goal: Goal, told: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
        """A value for every slot: visible facts are read off the opening, untold ones are guessed."""
        values = dict(goal.data["values"])
        for name in self.hidden_slots:
            if not self.revealed:
                values[name] = told.get(name) or str(rng.choice(self.plausible(goal, name)))
        return values

    def stating(self, opening: str, names: Sequence[str], values: Mapping[str, str], pick: Pick) -> str:
        """The opening with the named slots told right away."""
        return " ".join([opening, *(pick(self.by_name[name].replies).format(value=values[name]) for name in names)])

    def told(self, messages: Sequence[Message]) -> dict[str, str]:
        """What the user's words have revealed so far."""
        return told_values(messages, self._hidden())

    def vocabulary(self) -> list[str]:
        """Every word that this world, at any difficulty, can say."""
        texts = [*self.texts(), *(q for qs in self.questions.values() for q in qs)]
        texts += [t for s in self.slots for t in (*s.replies, *s.choices, *s.keywords)]
        texts += [*SlotUser.vague_replies, *SlotUser.chatter, *SlotUser.puzzled]
        texts += [SlotUser.repeat_remark] * self.note_repeats
        return sorted({word for text in texts for word in text.split() if not word.startswith("{")})

    def _hidden(self) -> list[Slot]:
        return [self.by_name[name] for name in self.hidden_slots]


def goal_picker(index: int, split: str) -> Pick:
    """A function that picks one of several options, with the randomness of one goal."""
    rng = np.random.default_rng([0 if split == "train" else 1, index])
    return lambda options: options[int(rng.integers(len(options)))]


def words_after(messages: Sequence[Message], keyword: str) -> list[str]:
    """The words that follow `keyword` in the assistant's last turn; none where it was not said."""
    words = messages[-1]["content"].split() if messages[-1]["role"] == "assistant" else []
    return words[words.index(keyword) + 1 :] if keyword in words else []
