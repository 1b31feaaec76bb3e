"""Medical recommendation at tiny scale: teaching material with invented diseases and herbs, NOT medical advice.

The self-report fits four of eight diseases. Another symptom, when asked for, tells which; severity
decides the dose and allergy the form ("stress" hides the allergy too, else the opening shows it).
"diagnosis snorpox treatment moonroot daily tea" ends the dialogue. The outcome is 0 to 10 points,
divided by 10: 5 for the disease (2 for its family), 5 for the treatment (2 for the right herb, given
wrongly). Every fact decides its own words, so a small policy looks up one fact at a time. A blind
guess is all right once in 16 times (64 at "stress") and scores 0.21 on average, a fifth of the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..dialogue import Message
from .base import Goal
from .slot_task import SlotTask, goal_picker, words_after
from .slots import Noise, Slot


class Disease(NamedTuple):
    """An invented disease: what tells it apart, its family and the herb against it."""

    symptom: str
    family: str
    herb: str


DISEASES = {
    "snorpox": Disease("hiccups", "pox", "moonroot"),
    "blinpox": Disease("yawning", "pox", "bluemoss"),
    "zelitis": Disease("sneezing", "itis", "cometleaf"),
    "morvitis": Disease("itching", "itis", "dragonmint"),
    "quagosis": Disease("dizziness", "osis", "glassfern"),
    "lumosis": Disease("shivering", "osis", "trollcap"),
    "tarnalgia": Disease("spots", "algia", "gnomewort"),
    "wexalgia": Disease("thirst", "algia", "sunthistle"),
}
DISEASE_OF = {disease.symptom: name for name, disease in DISEASES.items()}
HERBS = tuple(disease.herb for disease in DISEASES.values())
COMPLAINTS = {  # the symptoms that go with a complaint: two of one family, two of other families
    "cough": ("hiccups", "yawning", "sneezing", "shivering"),
    "fever": ("sneezing", "itching", "dizziness", "thirst"),
    "headache": ("dizziness", "shivering", "spots", "yawning"),
    "cramp": ("spots", "thirst", "hiccups", "itching"),
}
DOSES = {"mild": "weekly", "moderate": "daily", "bad": "nightly", "awful": "hourly"}  # by severity
FORMS = {"nuts": "tea", "milk": "pills", "fish": "drops", "pollen": "cream"}  # by allergy

SLOTS = (
    Slot("age", frozenset({"old", "age"}), ("{value} years old .",), ("thirty", "forty", "fifty")),
    Slot("job", frozenset({"job", "work"}), ("i am a {value} .",), ("baker", "painter", "singer")),
    Slot(
        "symptom",
        frozenset({"symptom", "symptoms", "else"}),
        ("i also have {value} .", "i notice {value} too .", "and then there is {value} ."),
        tuple(DISEASE_OF),
    ),
    Slot(
        "severity",
        frozenset({"severe", "strong", "severity"}),
        ("it feels {value} .", "i would call it {value} .", "it is rather {value} ."),
        tuple(DOSES),
    ),
    Slot(
        "allergy",
        frozenset({"allergy", "allergic"}),
        ("i am allergic to {value} .", "i get ill from {value} .", "i cannot have {value} at all ."),
        tuple(FORMS),
    ),
)
QUESTIONS = {
    "symptom": (
        "which other symptom do you have ?",
        "do you notice anything else at all ?",
        "please tell me about other symptoms .",
    ),
    "severity": ("how severe is it today ?", "is it strong or not ?", "please tell me the severity of it ."),
    "allergy": ("are you allergic to anything ?", "do you have an allergy ?", "please tell me about any allergy ."),
    "age": ("how old are you please ?", "please tell me your age ."),
    "job": ("what is your job ?", "where do you work now ?"),
    "smalltalk": ("hello , nice to meet you .", "please take a seat here .", "what a fine day it is ."),
}
ANSWERS = (
    "diagnosis {disease} treatment {herb} {dose} {form} .",
    "my diagnosis {disease} treatment {herb} {dose} {form} .",
    "so the diagnosis {disease} treatment {herb} {dose} {form} .",
)
OPENINGS = (
    "hello doctor , i have a {complaint} .",
    "doctor , since monday i have a {complaint} .",
    "please help me , this {complaint} does not stop .",
)
LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"hidden": ("symptom", "severity"), "max_turns": 6, "noise": Noise(vague=0.05, chatter=0.1)},
    "normal": {"hidden": ("symptom", "severity"), "max_turns": 6, "noise": Noise(vague=0.2, wrong=0.01, chatter=0.2)},
    "stress": {
        "hidden": ("symptom", "severity", "allergy"),
        "max_turns": 8,
        "noise": Noise(vague=0.25, wrong=0.01, chatter=0.4),
    },
}


class TinyMedicalRecommendation(SlotTask):
    """The tiny doctor, whose patient notes repeated questions. Success is all of the ten points."""

    name = "medical_recommendation"
    outcome_name = "rubric"
    levels, slots, questions, done_word, note_repeats = LEVELS, SLOTS, QUESTIONS, "diagnosis", True
    max_turn_tokens, max_tokens = 14, 320

    def goal(self, index: int, split: str = "train") -> Goal:
        pick = goal_picker(index, split)
        complaint = pick(tuple(COMPLAINTS))
        values = {slot.name: pick(slot.choices) for slot in self.slots if slot.name != "symptom"}
        values["symptom"] = pick(COMPLAINTS[complaint])
        shown = [n for n in ("symptom", "severity", "allergy") if self.revealed or n not in self.hidden_slots]
        return Goal(
            index=index,
            split=split,
            opening=self.stating(pick(OPENINGS).format(complaint=complaint), shown, values, pick),
            hidden={name: values[name] for name in self.hidden_slots},
            answer=ANSWERS[0].format(**parts(values)),
            data={"complaint": complaint, "values": values},
        )

    def plausible(self, goal: Goal, name: str) -> Sequence[str]:
        """The values that the opening leaves possible: for the symptom, those that go with the complaint."""
        return COMPLAINTS[goal.data["complaint"]] if name == "symptom" else super().plausible(goal, name)

    def outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        """The points for diagnosis and treatment, divided by 10. Who names two diseases has named none."""
        said, truth = words_after(messages, "diagnosis"), parts(goal.data["values"])
        diseases, herbs = [w for w in said if w in DISEASES], [w for w in said if w in HERBS]
        given = [w for w in said if w in DOSES.values() or w in FORMS.values()]
        points = 0
        if len(diseases) == 1 and DISEASES[diseases[0]].family == DISEASES[truth["disease"]].family:
            points += 5 if diseases == [truth["disease"]] else 2
        if herbs == [truth["herb"]]:
            points += 5 if sorted(given) == sorted([truth["dose"], truth["form"]]) else 2
        return points / 10

    def answer_text(self, goal: Goal, told: dict[str, str], rng: np.random.Generator) -> str:
        values = self.known_or_guessed(goal, told, rng)
        return str(rng.choice(ANSWERS)).format(**parts(values))

    def texts(self) -> list[str]:
        return [*DISEASES, *HERBS, *COMPLAINTS, *DOSES.values(), *FORMS.values(), *ANSWERS, *OPENINGS]


def parts(values: dict[str, str]) -> dict[str, str]:
    """Disease, herb, dose and form for a patient's facts; one fact decides each."""
    disease = DISEASE_OF[values["symptom"]]
    return {
        "disease": disease,
        "herb": DISEASES[disease].herb,
        "dose": DOSES[values["severity"]],
        "form": FORMS[values["allergy"]],
    }
