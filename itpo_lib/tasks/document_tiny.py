"""Document writing at tiny scale: an announcement whose outline must be asked for.

The opening shows topic and length and hides tone and audience (at "stress" it hides all four).
"here is the draft : dear parents the picnic kindly needs food tonight many thanks regards" ends the
dialogue. Every slot decides one to three words, copied or looked up. The outcome is the smoothed
word-level BLEU of the draft. BLEU pays for parts: a blind guess, right once in 64 times, scores 0.23
on average, a quarter of the ceiling (at "stress" 0.11), and one hidden slot of two about 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..dialogue import Message
from .base import Goal
from .bleu import word_bleu
from .slot_task import SlotTask, goal_picker, words_after
from .slots import Noise, Slot

TONES = {  # greeting, adverb, closing word
    "formal": ("dear", "kindly", "regards"),
    "friendly": ("hello", "really", "cheers"),
    "urgent": ("attention", "urgently", "hurry"),
    "funny": ("hey", "oddly", "haha"),
    "warm": ("dearest", "truly", "hugs"),
    "strict": ("listen", "strictly", "signed"),
    "cool": ("yo", "totally", "peace"),
    "shy": ("sorry", "perhaps", "bye"),
}
AUDIENCES = {  # the time that suits them
    "parents": "tonight",
    "pupils": "today",
    "teachers": "tomorrow",
    "visitors": "sunday",
    "players": "friday",
    "neighbours": "monday",
    "drivers": "early",
    "cooks": "soon",
}
TOPICS = {  # what it needs
    "picnic": "food",
    "concert": "tickets",
    "meeting": "notes",
    "race": "shoes",
    "party": "music",
    "trip": "maps",
}
LENGTHS = {"short": "thanks", "medium": "many thanks", "long": "very many thanks"}
TEMPLATE = "{greeting} {audience} the {topic} {adverb} needs {item} {time} {thanks} {closing}"

SLOTS = (
    Slot(
        "topic",
        frozenset({"topic", "subject"}),
        ("it is about the {value} .", "the {value} is my topic .", "i want to announce the {value} ."),
        tuple(TOPICS),
    ),
    Slot("paper", frozenset({"paper", "colour"}), ("on {value} paper i think .",), ("red", "green", "blue")),
    Slot("font", frozenset({"font", "letters"}), ("the {value} one .",), ("round", "narrow", "plain")),
    Slot(
        "tone",
        frozenset({"tone", "sound", "style"}),
        ("make it sound {value} please .", "i would like it {value} .", "a {value} tone is best ."),
        tuple(TONES),
    ),
    Slot(
        "audience",
        frozenset({"audience", "readers", "read"}),
        ("it is for the {value} .", "the {value} will get it .", "my readers are the {value} ."),
        tuple(AUDIENCES),
    ),
    Slot(
        "length",
        frozenset({"length", "long"}),
        ("it should be {value} .", "a {value} one please .", "{value} is fine with me ."),
        tuple(LENGTHS),
    ),
)
QUESTIONS = {
    "topic": ("what is the topic of it ?", "please tell me the subject of it .", "which topic do you have in mind ?"),
    "tone": ("which tone would you like to have ?", "how should the text sound ?", "please tell me the style of it ."),
    "audience": (
        "who is going to read it ?",
        "please tell me the audience of it .",
        "which readers do you have in mind ?",
    ),
    "length": ("how long should the text be ?", "please tell me the length of it .", "which length would you like ?"),
    "paper": ("which paper should i use for it ?", "which colour would you like to have ?"),
    "font": ("which font should i use for it ?", "do you like round or plain letters ?"),
    "smalltalk": ("hello , nice to meet you .", "i like to help you today .", "what a fine day it is ."),
}
ANSWERS = ("here is the draft : {document}", "this is my draft : {document}", "draft : {document}")
OPENINGS = ("please write a text for me .", "i need help with a text .", "can you write something for me ?")
LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"hidden": ("tone", "audience"), "max_turns": 6, "noise": Noise(vague=0.05, chatter=0.1)},
    "normal": {"hidden": ("tone", "audience"), "max_turns": 6, "noise": Noise(vague=0.2, wrong=0.01, chatter=0.2)},
    "stress": {
        "hidden": ("topic", "tone", "audience", "length"),
        "max_turns": 8,
        "noise": Noise(vague=0.25, wrong=0.01, chatter=0.4),
    },
}


class TinyDocumentWriting(SlotTask):
    """The tiny writing assistant. Success is the right document: one wrong word leaves BLEU below 0.95."""

    name = "document_writing"
    outcome_name = "BLEU"
    success_threshold = 0.95
    levels, slots, questions, done_word = LEVELS, SLOTS, QUESTIONS, "draft"
    max_turn_tokens, max_tokens = 20, 320

    def goal(self, index: int, split: str = "train") -> Goal:
        pick = goal_picker(index, split)
        values = {slot.name: pick(slot.choices) for slot in self.slots}
        visible = ("topic", "length") if not self.revealed else ("topic", "length", "tone", "audience")
        shown = [name for name in visible if self.revealed or name not in self.hidden_slots]
        return Goal(
            index=index,
            split=split,
            opening=self.stating(pick(OPENINGS), shown, values, pick),
            hidden={name: values[name] for name in self.hidden_slots},
            answer=document(values),
            data={"values": values},
        )

    def outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        """Word-level BLEU, from 0 to 1, of what follows "draft" in the last turn; a colon does not count."""
        draft = " ".join(word for word in words_after(messages, "draft") if word != ":")
        return word_bleu(draft, goal.answer, tokenize="none")

    def answer_text(self, goal: Goal, told: dict[str, str], rng: np.random.Generator) -> str:
        values = self.known_or_guessed(goal, told, rng)
        return str(rng.choice(ANSWERS)).format(document=document(values))

    def texts(self) -> list[str]:
        lookups = [*AUDIENCES.values(), *TOPICS.values(), *LENGTHS.values(), *(w for ws in TONES.values() for w in ws)]
        return [*lookups, TEMPLATE, *ANSWERS, *OPENINGS]


def document(values: Mapping[str, str]) -> str:
    """The document that an outline asks for: 10 to 12 words."""
    greeting, adverb, closing = TONES[values["tone"]]
    return TEMPLATE.format(
        greeting=greeting,
        audience=values["audience"],
        topic=values["topic"],
        adverb=adverb,
        item=TOPICS[values["topic"]],
        time=AUDIENCES[values["audience"]],
        thanks=LENGTHS[values["length"]],
        closing=closing,
    )
