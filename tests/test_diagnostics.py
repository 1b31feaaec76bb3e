"""Diagnostics against numbers worked out by hand and against brute force."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itpo_lib import diagnostic_plots as figures
from itpo_lib.batch_metrics import speech_metrics
from itpo_lib.config import ITPOConfig
from itpo_lib.credit import CREDITS
from itpo_lib.diagnostics import (
    Agreement,
    agreement,
    calibration,
    collapse_steps,
    convergence,
    first_fall,
    gradient_table,
    kendall_tau,
    kendall_within,
    length_effect,
    linear_fit,
    ranks,
    spearman,
)
from itpo_lib.dialogue import Dialogue
from itpo_lib.enumerable import N_ACTIONS, World, bias, expected_gradient, named_credit
from itpo_lib.errors import ItpoError
from itpo_lib.plots import save_figure

few = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9)


# Rankings


@given(few)
def test_kendall_tau_equals_counting_pairs(pairs):
    concordant = discordant = untied_x = untied_y = 0
    for (x1, y1), (x2, y2) in itertools.combinations(pairs, 2):
        product = (x1 - x2) * (y1 - y2)
        concordant, discordant = concordant + (product > 0), discordant + (product < 0)
        untied_x, untied_y = untied_x + (x1 != x2), untied_y + (y1 != y2)
    found = kendall_tau(*zip(*pairs, strict=True))
    if untied_x * untied_y == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx((concordant - discordant) / math.sqrt(untied_x * untied_y))


def test_kendall_tau_by_hand():
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)  # 5 pairs agree, 1 does not
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0
    perfect = kendall_tau([1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 0, 0, 1, 1, 1, 1])
    assert perfect == pytest.approx(16 / math.sqrt(28 * 16))  # the most that a binary outcome allows: 0.756


def test_kendall_within_counts_only_groups_whose_outcome_varies():
    scores = [1, 2, 3, 9, 8, 7, 5, 5, 5, 1, 2, 3]
    outcomes = [0, 0.5, 1, 0, 0.5, 1, 0, 0.5, 1, 1, 1, 1]
    groups = ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["d"] * 3
    tau, counted = kendall_within(scores, outcomes, groups)
    assert (tau, counted) == (pytest.approx((1 - 1 + 0) / 3), 3)  # c's equal scores know nothing; d asks nothing
    assert kendall_within([1, 2], [1, 1], [0, 0])[1] == 0 and math.isnan(kendall_within([1, 2], [1, 1], [0, 0])[0])


def test_levels_between_groups_do_not_count():
    """Scores that only know the prompt rank all dialogues well, and none within its group."""
    scores, outcomes, groups = [5, 5, 5, 1, 1, 1], [1, 1, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]
    assert kendall_tau(scores, outcomes) > 0.3 and kendall_within(scores, outcomes, groups) == (0.0, 2)


def test_ranks_share_ties():
    assert ranks([30, 10, 20, 10]).tolist() == [4, 1.5, 3, 1.5]


@given(few)
def test_ranks_equal_counting(pairs):
    values = [x for x, _ in pairs]
    expected = [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]
    assert ranks(values).tolist() == expected


def test_spearman_by_hand():
    """Without ties ρ = 1 - 6 Σd² / (n³ - n)."""
    assert spearman([10, 20, 30, 40], [2, 1, 4, 3]) == pytest.approx(1 - 6 * 4 / 60)
    assert spearman([1, 2, 3], [1, 10, 1000]) == pytest.approx(1.0)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1, 2, 3], [1, 1, 1]))


def test_convergence_compares_each_step_with_the_last():
    history = [[4, 3, 2, 1], [1, 2, 4, 3], [10, 20, 30, 40]]
    assert convergence(history).tolist() == pytest.approx([-1.0, 0.8, 1.0])


# Scale


def test_linear_fit_by_hand():
    fit = linear_fit([0, 1, 2, 3], [1, 3, 2, 6])
    assert (fit.slope, fit.intercept) == (pytest.approx(1.4), pytest.approx(0.9))
    assert fit.r_squared == pytest.approx(1.4**2 * 5 / 14)  # explained over all: Σ(slope·dx)² / Σdy²


@given(few)
def test_linear_fit_equals_least_squares(pairs):
    x, y = (np.array(part, dtype=float) for part in zip(*pairs, strict=True))
    fit = linear_fit(x, y)
    if np.ptp(x) == 0:
        assert math.isnan(fit.slope) and math.isnan(fit.r_squared)
        return
    assert (fit.slope, fit.intercept) == pytest.approx(np.polyfit(x, y, 1), abs=1e-9)
    assert math.isnan(fit.r_squared) if np.ptp(y) == 0 else 0 <= fit.r_squared <= 1 + 1e-9


def test_shared_out_outcomes_lie_on_the_diagonal():
    outcomes = np.array([0.0, 1.0, 0.4])
    fit = linear_fit(outcomes, (np.array([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]]) * outcomes[:, None]).sum(1))
    assert (fit.slope, fit.intercept, fit.r_squared) == (pytest.approx(1), pytest.approx(0), pytest.approx(1))


def test_calibration_by_hand():
    """Four bins; forecasts 0.2, 0.2, 0.2, 0.9 and one of exactly 1."""
    logit = lambda p: math.log(p / (1 - p))  # noqa: E731
    found = calibration([logit(0.2)] * 3 + [logit(0.9), 1000.0], [0, 1, 0.5, 1, 0.5], bins=4)
    assert found.predicted.tolist() == pytest.approx([0.2, 0.95]) and found.count.tolist() == [3, 2]
    assert found.observed.tolist() == pytest.approx([0.5, 0.75])
    assert found.error == pytest.approx(0.6 * 0.3 + 0.4 * 0.2)
    with pytest.raises(ItpoError, match="no dialogues"):
        calibration([], [])


def test_true_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, 20_000)
    outcomes = rng.random(20_000) < 1 / (1 + np.exp(-scores))
    assert calibration(scores, outcomes).error < 0.015 < 0.1 < calibration(3 * scores, outcomes).error


# Agreement with the truth


def test_agreement_by_hand():
    truth = [[0.5, 0.0, 0.45, -0.3], [0.0, 0.2, 9.0, 9.0], [0.3, 0.31, 0.3, 0.3], [1.0, 9.0, 9.0, 9.0]]
    mask = [[True] * 4, [True, True, False, False], [True] * 4, [True, False, False, False]]
    estimate = [[0.1, 0.2, 0.9, 0.0], [0.7, 0.2, 0.0, 0.0], [0.0] * 4, [0.0] * 4]
    found = agreement(estimate, truth, mask, tolerance=0.07)
    # 1: turns 1 and 3 tie for best, turn 3 is named; turn 4 is worst and named. 2: both wrong. 3: all tie; 4: one turn.
    assert found == Agreement(0.5, 0.5, (2 / 4 + 1 / 2) / 2, (1 / 4 + 1 / 2) / 2, dialogues=2)
    sharp = agreement(estimate, truth, mask, tolerance=0.0)
    assert sharp.best == pytest.approx((0 + 0 + 1 / 4) / 3) and sharp.dialogues == 3


def test_a_tied_estimate_is_a_blind_pick():
    truth = np.random.default_rng(0).normal(size=(50, 4))
    found = agreement(np.zeros((50, 4)), truth, np.ones((50, 4), dtype=bool), tolerance=0.1)
    assert (found.best, found.worst) == (found.best_by_chance, found.worst_by_chance)


def test_chance_is_what_random_estimates_get():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 6, 4000)
    mask, truth = np.arange(5) < lengths[:, None], rng.normal(size=(4000, 5)).round(1)
    found = agreement(rng.normal(size=(4000, 5)), truth, mask, tolerance=0.3)
    assert found.best == pytest.approx(found.best_by_chance, abs=0.03)
    assert found.worst == pytest.approx(found.worst_by_chance, abs=0.03)
    itself = agreement(truth, truth, mask, tolerance=0.3)
    assert (itself.best, itself.worst) == (1.0, 1.0)


def test_agreement_of_nothing_is_nan():
    found = agreement([[1.0, 2.0]], [[0.5, 0.5]], [[True, True]], tolerance=0.1)
    assert found.dialogues == 0 and math.isnan(found.best) and math.isnan(found.worst_by_chance)
    with pytest.raises(ItpoError, match="tolerance must be >= 0"):
        agreement([[1.0]], [[1.0]], [[True]], tolerance=-1)


# Length and collapse


def test_length_effect_by_hand():
    found = length_effect([1, 3, 3, 3, 2], [0.0, 1.0, 2.0, 3.0, 1.0])
    assert found.turns.tolist() == [1, 2, 3] and found.count.tolist() == [1, 1, 3]
    assert found.mean.tolist() == [0.0, 1.0, 2.0] and found.fit.slope == pytest.approx(1.0)
    assert found.error[2] == pytest.approx(1 / math.sqrt(3)) and np.isnan(found.error[:2]).all()


def dialogue(*turns: str) -> Dialogue:
    messages = [{"role": "user", "content": "hello"}]
    for text in turns:
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "yes"}]
    return Dialogue([], messages[:-1])


def test_distinct_questions_leave_out_the_answer():
    played = [dialogue("how ?", "what ?", "it is 4"), dialogue("how ?", "how ?", "it is 5"), dialogue("it is 6")]
    assert speech_metrics(played)["distinct_questions"] == pytest.approx(2 / 4)
    assert "distinct_questions" not in speech_metrics([dialogue("it is 6")])


def test_first_fall_by_hand():
    values = [1.0, 1.0, 0.4, 0.4, 0.4, 0.4]
    assert first_fall(values, share=0.5, window=2) == 3  # trailing means 1, 0.7, 0.4: the last of them at place 3
    assert first_fall(values, share=0.3, window=2) is None
    assert first_fall([1.0, 0.0], window=2) is None  # nothing after the first window
    assert first_fall([1.0, 0.0, 0.6, 0.2], window=2) is None  # half of the first window's mean, not of its first value
    assert first_fall([1.0, 1.0, 0.0, 1.0, 1.0], share=0.4, window=2) is None  # one bad batch is no collapse


def test_collapse_steps_reads_metrics_with_gaps():
    metrics = [{"step": 2 * i + 1, "outcome_std": 0.5 if i < 6 else 0.0, "entropy": 1.0} for i in range(12)]
    metrics.insert(3, {"step": 6, "entropy": None})
    falls = collapse_steps(metrics, window=2)
    assert falls == {"outcome_std": 15, "entropy": None, "distinct_questions": None}


# Gradients


def test_gradient_table_is_the_exact_expectation():
    world, generator = World(), torch.Generator().manual_seed(1)
    logits, ratios = (torch.randn(6, N_ACTIONS, *last, generator=generator, dtype=torch.float64) for last in ((), (4,)))
    dialogues = world.dialogues()
    rows = {(row.credit, row.baseline): row for row in gradient_table(dialogues, logits, ratios)}
    exact = dialogues.gradient(logits, dialogues.outcomes)
    found = expected_gradient(dialogues, logits, named_credit(dialogues, "norm_itpo", ratios), 2, "outcome")
    row = rows["norm_itpo", "outcome"]
    assert (row.bias, row.cosine) == pytest.approx(bias(found, exact))
    for unbiased in (
        ("trajectory", None),
        ("trajectory", "turn"),
        ("trajectory", "outcome"),
        ("oracle", None),
        ("oracle", "turn"),
    ):
        assert rows[unbiased].bias == pytest.approx(0, abs=1e-9) and rows[unbiased].length_pull == 0
    assert rows["trajectory", "official"].length_pull == pytest.approx(-1)  # a price on every turn
    assert rows["oracle", None].noise < rows["trajectory", "turn"].noise < rows["trajectory", None].noise
    assert rows["oracle", "credit_weighted"].cosine < rows["oracle", "signed"].cosine < 1, "truth, shared out"
    absent = {("itpo", "outcome"), ("oracle", "outcome"), ("trajectory", "signed")}
    assert not absent & rows.keys() and ("norm_itpo", "signed") in rows


def test_the_documents_numbers_come_from_its_own_snippet():
    text = (Path(__file__).parents[1] / "docs" / "credit.md").read_text()
    found: dict = {}
    exec(text.split("```python\n")[2].split("```")[0], found)
    rows = {
        f"| {r.credit} | {r.baseline} | {r.bias:.2f} | {r.cosine:.2f} | {r.noise:.2f} | {r.length_pull:+.2f} |"
        for r in found["rows"]
    }
    stated = [
        line for line in text.splitlines() if line.startswith("| ") and line.count(".") == 4 and line.count("|") == 7
    ]
    assert len(stated) == 14 and set(stated) <= rows


def test_the_document_names_every_credit_and_its_baseline(tmp_path):
    """The table's baselines are what `auto` chooses."""
    text = (Path(__file__).parents[1] / "docs" / "credit.md").read_text()
    table = [line.split("|") for line in text.splitlines() if line.startswith("| `") and line.count("|") == 8]
    for estimator, column in (("rloo", 6), ("grpo", 6), ("ppo", 7)):
        stated = {cells[1].strip(" `"): cells[column].strip(" `") for cells in table}
        common = {"output_dir": str(tmp_path), "use_cpu": True, "estimator": estimator}
        assert stated == {name: ITPOConfig(credit=name, **common).rule.baseline for name in CREDITS}


def test_lists_of_different_length_are_refused():
    with pytest.raises(ItpoError, match=r"two lists of one length, got shapes \(2,\) and \(3,\)"):
        kendall_tau([1, 2], [1, 2, 3])


# Figures


def test_every_figure_is_drawn(tmp_path):
    steps, agreed = [0, 10, 20], [Agreement(0.5, 0.6, 0.3, 0.4, 9)] * 3
    effect = length_effect([1, 2, 2, 3], [0.1, 0.2, 0.3, 0.4])
    metrics = [{"step": i, "outcome_std": 1.0 / (1 + i), "entropy": 1.0} for i in range(20)]
    logits = torch.zeros(6, N_ACTIONS, dtype=torch.float64)
    drawn = {
        "truth": figures.true_credit_figure([0.2, 0.5, 1.0], [0.1, 0.1, 0.0], {"true": [0.3, 0.5], "even": [0.5, 0.5]}),
        "lines": figures.over_training({"τ": {"a": [1, 2, 3]}, "R²": {"b": [1, 2, 3]}}, steps),
        "agreement": figures.agreement_figure({"itpo": agreed, "judge": agreed}, steps),
        "calibration": figures.calibration_figure(calibration([-1.0, 1.0], [0, 1])),
        "length": figures.length_figure({"turn": effect}, "advantage"),
        "gradient": figures.gradient_figure(gradient_table(World().dialogues(), logits, credits=["trajectory"])),
        "collapse": figures.collapse_figure(metrics),
    }
    looks = {tuple(line.get_color() for line in axis.lines[:1]) for axis in drawn["lines"].axes}
    assert len(looks) == 2  # a label keeps its colour over all panels, and no two labels share one
    assert drawn["collapse"].axes[0].texts[0].get_text().strip() == "fell at 6"
    for name, figure in drawn.items():
        save_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
