"""What the tiny document and medical worlds pay for an answer, by hand; and the patient who notes repeats."""

from __future__ import annotations

import math

import pytest

from itpo_lib.tasks import get_task
from itpo_lib.tasks.bleu import word_bleu
from itpo_lib.tasks.document_tiny import AUDIENCES, LENGTHS, LEVELS, SLOTS, TONES, TOPICS, document
from itpo_lib.tasks.medical_tiny import ANSWERS, COMPLAINTS, DISEASE_OF, DISEASES, parts
from itpo_lib.tasks.slots import Noise


def test_bleu_by_hand():
    truth = "dear parents the picnic kindly needs food tonight thanks regards"
    assert word_bleu(truth, truth, "none") == 1.0
    wrong_first = " ".join(["hello", *truth.split()[1:]])
    assert word_bleu(wrong_first, truth, "none") == pytest.approx((9 / 10 * 8 / 9 * 7 / 8 * 6 / 7) ** 0.25)
    one_of_four = "dear pupils food today"  # brevity 10/4; 2 words match, no longer n-gram does
    expected = math.exp(1 - 10 / 4) * (2 / 4 * 1 / (2 * 3) * 1 / (4 * 2) * 1 / (8 * 1)) ** 0.25
    assert word_bleu(one_of_four, truth, "none") == pytest.approx(expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_only_the_right_document_is_a_success(length):
    task = get_task("document_writing")
    truth = document({"topic": "picnic", "tone": "warm", "audience": "cooks", "length": length})
    words = truth.split()
    assert 6 <= len(words) <= 15
    assert len(set(words)) == len(words)  # no word twice, so the n-grams fix the order
    edits = [[*words[:i], *new, *words[j:]] for i in range(len(words) + 1) for j in (i, i + 1) for new in ([], ["x"])]
    assert all(word_bleu(" ".join(edit), truth, "none") < task.success_threshold for edit in edits if edit != words)


def test_each_outline_slot_decides_one_to_three_words():
    values = {"topic": "picnic", "tone": "warm", "audience": "cooks", "length": "short"}
    before = set(document(values).split())
    for slot in (slot for slot in SLOTS if slot.name in LEVELS["stress"]["hidden"]):
        for choice in set(slot.choices) - {values[slot.name], "medium", "long"}:
            assert 1 <= len(before - set(document({**values, slot.name: choice}).split())) <= 3
    assert len({word for words in TONES.values() for word in words}) == 3 * len(TONES)
    assert len(set(AUDIENCES.values())) == len(AUDIENCES) and len(set(TOPICS.values())) == len(TOPICS)


def test_each_complaint_fits_four_diseases_two_of_one_family():
    for symptoms in COMPLAINTS.values():
        families = [DISEASES[DISEASE_OF[symptom]].family for symptom in symptoms]
        assert (len(set(symptoms)), len(set(families))) == (4, 3)
    assert all(sum(symptom in ss for ss in COMPLAINTS.values()) == 2 for symptom in DISEASE_OF)


@pytest.mark.parametrize(
    ("change", "points"),
    [
        ({}, 10),
        ({"dose": "hourly"}, 7),
        ({"form": "tea pills"}, 7),
        ({"disease": "blinpox"}, 7),
        ({"disease": "blinpox", "herb": "bluemoss"}, 2),
        ({"disease": "zelitis"}, 5),
        ({"disease": "snorpox zelitis"}, 5),
        ({"herb": "moonroot bluemoss"}, 5),
        ({"disease": "zelitis", "herb": "bluemoss"}, 0),
    ],
)
def test_medical_points(change, points):
    task = get_task("medical_recommendation")
    values = {"symptom": "hiccups", "severity": "mild", "allergy": "nuts"}
    goal = next(g for g in map(task.goal, range(2000)) if values.items() <= g.data["values"].items())
    text = ANSWERS[1].format(**{**parts(values), **change})
    assert task.outcome(goal, [{"role": "assistant", "content": text}]) == points / 10


def test_patient_notes_repeats():
    task = get_task("medical_recommendation", noise=Noise())
    goal = task.goal(0)
    user = task.user(goal, seed=0)
    first, second = (user.reply("how severe is it today ?").text for _ in range(2))
    assert "asked that already" not in first
    assert second.startswith("you asked that already .")


def test_a_hidden_unit_has_to_be_named():
    for difficulty, wanted in (("stress", [1.0, 0.0, 0.0, 0.0]), ("normal", [1.0, 1.0, 1.0, 1.0])):
        task = get_task("math_tutoring", difficulty=difficulty)
        goal = task.goal(0)
        number, unit = goal.answer.split()
        other = "pens" if unit != "pens" else "coins"
        said = [f"the answer is {number} {end}" for end in (unit, other, "", f"{unit} {other}")]
        assert [task.outcome(goal, [{"role": "assistant", "content": text}]) for text in said] == wanted


def test_a_draft_that_breaks_off_pays_its_brevity():
    task = get_task("document_writing")
    goal = task.goal(0)
    truth = goal.answer.split()
    said = [{"role": "assistant", "content": "draft : " + " ".join(truth[:5])}]
    assert task.outcome(goal, said) == pytest.approx(math.exp(1 - len(truth) / 5))
