"""Medical recommendation at text scale. Teaching material, NOT medical advice.

Patients come from a knowledge base that was written for the course: `data/conditions.json`, 24 simplified conditions in
6 families. The opening fits three or four of them; the sign that decides, how bad it is, and an allergy must be asked
for. "Diagnosis: gout. Recommendation: an ice pack" ends the dialogue; it scores 0 to 10 points, divided by 10.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..dialogue import Message
from .base import Goal, User
from .disclosure import DisclosingUser, DisclosureTask, choice, split_indices
from .english import asked_fact, stems
from .slots import Noise

DIAGNOSIS_POINTS = {"right": 5, "family": 2, "wrong": 0}
RECOMMENDATION_POINTS = {
    "right": 5,
    "cautious": 3,  # avoids an allergen that this patient could take
    "excessive": 2,  # the treatment of a severe case for a mild one
    "family": 1,  # treats another condition of the family, at the right severity
    "wrong": 0,  # anything else, nothing, or several treatments
    "too weak": 0,  # dangerous: the treatment of a mild case for a severe one
    "allergen": 0,  # dangerous: the patient is allergic to it
}
N_VALIDATION, SEVERITIES, OPTIONS = 50, ("mild", "severe"), ("first", "alternative")
LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"hidden": ("symptom", "severity"), "max_turns": 6, "noise": Noise(vague=0.05, chatter=0.1)},
    "normal": {"hidden": ("symptom", "severity", "allergy"), "max_turns": 6, "noise": Noise(vague=0.1, chatter=0.2)},
    "stress": {"hidden": ("symptom", "severity", "allergy"), "max_turns": 8, "noise": Noise(vague=0.3, chatter=0.4)},
}
ANSWER = "Diagnosis: {}. Recommendation: {}."
ANSWERS = ("{answer}", "Thank you. {answer}", "I think I know enough now. {answer}")
MARK = r"[\s*_\"'`#]{0,4}(?:\([^()\n]{0,30}\))?[\s*_\"'`#]{0,4}?(?:\b(?:is|are|would be)\b|[:=–—]|-\s|\n)"
STATED = re.compile(
    rf"\b(?:(?P<diagnosis>diagnos[ie]s{MARK}|i diagnose\b)|(?P<recommendation>(?:recommendations?|treatment(?: plan)?"
    rf"|recommended treatment|therapy|advice){MARK}|i (?:would )?(?:recommend|suggest|advise|prescribe)\b))",
    re.I,
)
CLAUSE_END = re.compile(r"[.,;:()!?\n]|\b(?:but|because|since|as you)\b")
REJECTED = re.compile(r"\b(?:is|are|was) not\b|n't\b|\bcannot\b|\bunsafe\b|\bunsuitable\b")  # the clause does not count
DISMISSED = re.compile(  # what follows does not count
    r"\b(?:no|not|never|avoid\w*|stop (?:taking|using)|without|instead of|rather than|unlike|except"
    r"|rul(?:e|es|ed|ing) out|allerg(?:y|ies|ic) to|(?:your|the) [\w ]{1,30}allerg)"
)
HEDGED = re.compile(r"\W*[^.\n]*\b(?:or|either|versus|vs)\b", re.I)


class PatientUser(DisclosingUser):
    """A patient: tells symptoms, never a diagnosis; denies what is not there; notices repeats."""

    leads = ("{fact}", "Well: {fact}", "Let me think. {fact}", "Now that you ask: {fact}")
    repeats = ("You asked that already. {fact}", "You know that already. {fact}")
    vague = ("Hard to say.", "I am not sure, it varies.", "I would have to think about that.")
    absent = ("I do not see what that has to do with it.", "Does that matter? I only want to get well.")
    finished = ("That is all I can tell you.", "There is nothing more to tell.")
    puzzled = ("And what should I do now?", "Is there anything you want to ask me?")
    chatter = ("My aunt worries too much.", "The waiting room is full.", "I hope it is nothing.")
    denials = ("No, nothing like that.", "No, I have not noticed that.")
    denials_again = ("You asked that already. No.", "Still no, you asked me before.")

    def __init__(self, goal: Goal, noise: Noise, seed: int):
        facts, topics = goal.data["facts"], goal.data["topics"]
        super().__init__(facts, noise, seed, topics)
        self.told = {fact for fact in facts.values() if fact in goal.opening}
        self.topic_stems = stems(" ".join(words for name, words in topics.items() if name != "symptom"))
        self.not_there, self.denied = symptoms_without(goal.data["condition"]), set[str]()

    def is_final(self, text: str) -> bool:
        return all(stated(text).values())

    def heard(self, text: str) -> str:
        """A topic hides the question's other words: "how bad is your cough" is not about the cough."""
        question = super().heard(text)
        return " ".join(word for word in question.split() if stems(word) & self.topic_stems) or question

    def _answer(self, question: str) -> str:
        asked, others = stems(question), self.not_there
        rival = max(others, key=lambda symptom: len(asked & others[symptom]))
        told, topics = self.told | {rival}, self.topics | {rival: " ".join(others[rival])}
        if asked_fact(question, (*self.facts, rival), told, topics=topics) != rival:
            return super()._answer(question)
        said = choice(self.rng, self.denials_again if rival in self.denied else self.denials)
        self.denied.add(rival)
        return said


class TextMedicalRecommendation(DisclosureTask):
    """The doctor in English, NOT medical advice. "easy" shows the allergy; "stress" has a vaguer user, more turns."""

    name, outcome_name = "medical_recommendation", "rubric"
    system_prompt = (
        "You are a doctor in a training exercise. The patient's first words fit several conditions, so ask first, one "
        "short question at a time: other symptoms, how bad it is, allergies. Then end with one condition and one "
        "treatment that suits its severity and the allergy: Diagnosis: <condition>. Recommendation: <treatment>."
    )
    levels, max_turn_tokens, tokens_per_turn = LEVELS, 64, 110
    wander = ("Is it raining?", "It is warm in here.", "Nice to meet you.", "Do you live near the sea?")

    def size(self, split: str) -> int:
        return len(split_indices(split, len(cases()), N_VALIDATION))

    def goal(self, index: int, split: str = "train") -> Goal:
        indices, base = split_indices(split, len(cases()), N_VALIDATION), knowledge()
        source = indices[index % len(indices)]
        rng, (condition, complaint, severity, kind) = np.random.default_rng([42, source]), cases()[source]
        entry = base["conditions"][condition]
        needed = {s: contains(remedy_in(entry[s]["first"])) for s in SEVERITIES}
        others = sorted(base["allergens"].keys() - needed.values())
        allergen = {"none": None, "other": choice(rng, others)}.get(kind, needed[severity])
        aside = base["asides"][choice(rng, sorted(base["asides"]))]
        complaints = sorted(entry["complaints"], key=complaint.__ne__)  # the one that brings them here comes first
        facts = {  # in the order in which "anything else?" brings them up
            "complaint": choice(rng, base["complaints"][complaints[0]]),
            "symptom": choice(rng, entry["signs"]),
            **{name: choice(rng, base["complaints"][name]) for name in complaints[1:]},
            "duration": f"I have had it for {choice(rng, entry['lasts'])}.",
            "medicines": choice(rng, base["medicines"]),
            "aside": choice(rng, aside["says"]),
            "severity": choice(rng, entry[severity]["signs"]),
            "allergy": choice(rng, base["allergy_says"][kind]).format(allergen, base["allergens"].get(allergen)),
        }
        hidden = () if self.revealed else self.level["hidden"]
        shown = [facts[name] for name in ("complaint", "symptom", "severity", "allergy") if name not in hidden]
        case = {"condition": condition, "complaint": complaint, "severity": severity, "allergen": allergen}
        topics = {**base["topics"], "aside": aside["topic"], "symptom": f"{base['topics']['symptom']} {entry['ask']}"}
        return Goal(
            index=index,
            split=split,
            opening=" ".join([choice(rng, base["openings"]).format(age=rng.integers(18, 80)), *shown]),
            hidden={name: facts[name] for name in hidden},
            answer=ANSWER.format(condition, treatment(condition, severity, allergen)),
            data={**case, "facts": facts, "topics": topics},
        )

    def user(self, goal: Goal, seed: int) -> User:
        return PatientUser(goal, self.noise, seed)

    def outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        """The points for diagnosis and recommendation in the last turn, divided by 10."""
        last = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        diagnosis, recommendation = grades(goal.data, last)
        return (DIAGNOSIS_POINTS[diagnosis] + RECOMMENDATION_POINTS[recommendation]) / 10

    def final_turn(self, goal: Goal, rng: np.random.Generator) -> str:
        return choice(rng, ANSWERS).format(answer=goal.answer)

    def guess(self, goal: Goal, messages: Sequence[Message], rng: np.random.Generator) -> str:
        """Right where a fact is known, else any condition that fits the opening, either severity, either option."""
        unknown, data = goal.hidden.keys() - self.told(goal, messages).keys(), goal.data
        condition = choice(rng, candidates(data["complaint"])) if "symptom" in unknown else data["condition"]
        severity = choice(rng, SEVERITIES) if "severity" in unknown else data["severity"]
        either = knowledge()["conditions"][condition][severity][choice(rng, OPTIONS)]
        phrase = either if "allergy" in unknown else treatment(condition, severity, data["allergen"])
        return choice(rng, ANSWERS).format(answer=ANSWER.format(condition, phrase))

    def concede(self, goal: Goal, messages: Sequence[Message]) -> str:
        return self.guess(goal, messages, np.random.default_rng(goal.index))

    def next_question(self, goal: Goal, messages: Sequence[Message], rng: np.random.Generator) -> str:
        """Openly for the symptom, then for severity, then for allergies."""
        told = self.told(goal, messages)
        return choice(rng, knowledge()["questions"][next(name for name in goal.hidden if name not in told)])

    def question(self, goal: Goal, wanted: Iterable[str], rng: np.random.Generator) -> str:
        name = choice(rng, list(wanted))
        asks = [knowledge()["conditions"][condition]["ask"] for condition in candidates(goal.data["complaint"])]
        return choice(rng, knowledge()["questions"][name] + (asks if name == "symptom" else []))


def stated(text: str) -> dict[str, str]:
    """What a turn states as diagnosis and as recommendation, all passages of a kind together; "" for nothing."""
    said, marks = {"diagnosis": "", "recommendation": ""}, list(STATED.finditer(text))
    for mark, end in zip(marks, [*(m.start() for m in marks), len(text)][1:], strict=True):
        passage = text[mark.end() : end]
        said[str(mark.lastgroup)] += f"{passage}\n" if re.search(r"\w", passage) else ""
    return said


@lru_cache(maxsize=1024)
def named(passage: str, kind: str) -> frozenset[str]:
    """The "conditions" or "remedies" that a passage names; dismissed ones ("not a cold") do not count."""
    names, plain = vocabulary(kind), re.sub(r"[-‐-―_* \t]+", " ", passage.lower().replace("’", "'"))
    clauses = [DISMISSED.split(clause)[0] for clause in CLAUSE_END.split(plain) if not REJECTED.search(clause)]
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return frozenset(names[found] for found in re.findall(rf"\b({longest_first})s?\b", "\n".join(clauses)))


def grades(case: Mapping[str, Any], text: str) -> tuple[str, str]:
    """The rubric's words for a turn: a key of DIAGNOSIS_POINTS, a key of RECOMMENDATION_POINTS. Several name none."""
    said = stated(text)
    diagnoses, remedies = named(said["diagnosis"], "conditions"), named(said["recommendation"], "remedies")
    diagnosis = "".join(diagnoses) if len(diagnoses) == 1 and not HEDGED.match(said["diagnosis"]) else ""
    grade = "family" if diagnosis in family(case["condition"]) else "wrong"
    remedy = "".join(remedies) if len(remedies) == 1 else ""
    return "right" if diagnosis == case["condition"] else grade, recommendation_grade(case, remedy)


def recommendation_grade(case: Mapping[str, Any], remedy: str) -> str:
    """A key of RECOMMENDATION_POINTS for one remedy ("" for none). Dangers are looked for first."""
    condition, severity, allergen = case["condition"], case["severity"], case["allergen"]
    if allergen and contains(remedy) == allergen:
        return "allergen"
    if remedy in remedies(condition, severity):
        return "right" if remedy == remedy_in(treatment(condition, severity, allergen)) else "cautious"
    if severity == "mild" and remedy in remedies(condition, "severe"):
        return "excessive"
    if severity == "severe" and remedy in remedies(condition, "mild"):
        return "too weak"
    return "family" if any(remedy in remedies(c, severity) for c in family(condition)) else "wrong"


def treatment(condition: str, severity: str, allergen: str | None) -> str:
    """The right recommendation: the first option, or the alternative for who is allergic to it."""
    options = knowledge()["conditions"][condition][severity]
    return options["alternative" if allergen and contains(remedy_in(options["first"])) == allergen else "first"]


def remedies(condition: str, severity: str) -> set[str]:
    """Both remedies for a condition at a severity."""
    return {remedy_in(knowledge()["conditions"][condition][severity][option]) for option in OPTIONS}


def contains(remedy: str) -> str | None:
    """The allergen in a remedy."""
    return knowledge()["remedies"].get(remedy, {}).get("contains")


def remedy_in(phrase: str) -> str:
    """The one remedy that a recommendation of the knowledge base names."""
    (remedy,) = named(phrase, "remedies")
    return remedy


def family(condition: str) -> list[str]:
    """All conditions of its family, itself included."""
    conditions = knowledge()["conditions"]
    return [name for name, entry in conditions.items() if entry["family"] == conditions[condition]["family"]]


def candidates(complaint: str) -> list[str]:
    """The conditions that an opening with this complaint fits."""
    return [name for name, entry in knowledge()["conditions"].items() if complaint in entry["complaints"]]


@lru_cache(maxsize=32)
def symptoms_without(condition: str) -> dict[str, frozenset[str]]:
    """What a patient with `condition` denies, with its word stems: red flags, fever, what only others have."""
    conditions, complaints = knowledge()["conditions"], knowledge()["complaints"]
    asks = [entry["ask"] for name, entry in conditions.items() if name != condition]
    says = [" ".join(texts) for name, texts in complaints.items() if name not in conditions[condition]["complaints"]]
    symptoms = [*asks, *says, *(flag for entry in conditions.values() for flag in entry["red_flags"]), "fever"]
    return {symptom: stems(symptom) - stems(knowledge()["topics"]["symptom"]) for symptom in symptoms}


@lru_cache(maxsize=1)
def cases() -> tuple[tuple[str, str, str, str], ...]:
    """All patients: (condition, complaint, severity, how they tell the allergy)."""
    pairs = [(name, c) for name, entry in knowledge()["conditions"].items() for c in entry["complaints"]]
    return tuple((*p, severity, kind) for p in pairs for severity in SEVERITIES for kind in knowledge()["allergy_says"])


@lru_cache(maxsize=2)
def vocabulary(kind: str) -> dict[str, str]:
    """Every name of a kind and what it stands for; what is beyond the knowledge base stands for itself."""
    known = {name: key for key, entry in knowledge()[kind].items() for name in (key.lower(), *entry["synonyms"])}
    return {name: name for name in knowledge()["others"][kind]} | known


@lru_cache(maxsize=1)
def knowledge() -> dict[str, Any]:
    """The knowledge base: teaching material, not medical advice."""
    return json.loads((Path(__file__).parent / "data" / "conditions.json").read_text(encoding="utf-8"))
