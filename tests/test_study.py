"""The study: what rows say, which runs are still missing, and that tables and figures follow from the rows."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from itpo_lib import study
from itpo_lib.config import ITPOConfig
from itpo_lib.errors import ItpoError
from itpo_lib.evaluate import bootstrap_mean
from itpo_lib.learning import Experience, LearningRule, token_advantages, turn_credit
from itpo_lib.study import Cell, area, grid, paired, read_rows, run_study, score, steps_to, wins

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


def row(credit: str, seed: int, after: float, outcomes=(0.2, 0.4, 0.8, 0.8), ceiling=0.8) -> dict:
    cell = {"task": "math_tutoring", "credit": credit, "estimator": "rloo", "seed": seed, "difficulty": "normal"}
    measured = {
        "after": after,
        "before": 0.2,
        "ceiling": ceiling,
        "success_before": 0.2,
        "success": after,
        "turns": 3.0,
    }
    curve = {"step": [1, 3, 5, 7], "outcome": list(outcomes)}
    return {**cell, "options": {}, "probes": [], **measured, "cpu_seconds": 60.0, "curve": curve, "truth": []}


def test_measures_by_hand():
    one = row("itpo", 0, 0.6)
    assert score(one) == pytest.approx(0.75)
    assert area(one) == pytest.approx(0.55 / 0.8)
    assert steps_to(one, share=0.8) == 7  # trailing means of three: .467 at step 5, .667 at step 7; 0.64 is wanted
    assert steps_to(one, share=0.5) == 5
    assert steps_to(one, share=0.9) == float("inf")


def test_paired_test_counts_sign_flips():
    ours = [row("itpo", s, a) for s, a in enumerate((0.5, 0.6, 0.7))]
    theirs = [row("trajectory", s, a) for s, a in enumerate((0.4, 0.4, 0.4))]
    gap, p = paired(ours, theirs)
    assert gap.mean == pytest.approx(0.2 / 0.8)
    assert (gap.low, gap.high) == pytest.approx((0.1 / 0.8, 0.3 / 0.8))  # the range of the seeds
    assert p == pytest.approx(2 / 8)  # only all plus and all minus are as far from 0
    assert paired(theirs, ours)[0].mean == pytest.approx(-0.2 / 0.8)
    assert paired(ours[:2], theirs[1:])[0].mean == pytest.approx(0.2 / 0.8)  # seed 1 alone
    with pytest.raises(ItpoError, match="no common seeds"):
        paired(ours[:1], theirs[1:])


@pytest.mark.parametrize("n, coverage", [(3, 0.74), (5, 0.83)])
def test_why_a_few_seeds_get_no_bootstrap_interval(n, coverage):
    """What docs/study.md says: how often a 95% interval of n normal numbers holds their mean."""
    draws = np.random.default_rng(0).normal(size=(1000, n))
    found = [bootstrap_mean(row, resamples=500) for row in draws]
    assert np.mean([e.low <= 0 <= e.high for e in found]) == pytest.approx(coverage, abs=0.03)


def test_wins_count_ties_half():
    groups = {
        "a": [row("a", s, v) for s, v in enumerate((0.5, 0.5))],
        "b": [row("b", s, v) for s, v in enumerate((0.4, 0.5))],
    }
    assert wins(groups) == {("a", "b"): 0.75, ("b", "a"): 0.25}


def test_grid_has_seeds_outermost():
    cells = grid(["t"], ["x", "y"], ["rloo"], [0, 1], difficulty="stress")
    assert [(c.seed, c.credit) for c in cells] == [(0, "x"), (0, "y"), (1, "x"), (1, "y")]
    assert {c.difficulty for c in cells} == {"stress"}


@pytest.fixture
def played(monkeypatch):
    """Cells that were really run, with a stand-in for training."""
    cells: list[Cell] = []
    monkeypatch.setattr(
        study, "run_in_process", lambda cell: cells.append(cell) or {**row(cell.credit, cell.seed, 0.5)}
    )
    return cells


def test_finished_runs_are_skipped_and_a_cut_off_row_is_made_again(tmp_path, played):
    out = tmp_path / "deep" / "rows.jsonl"
    cells = grid(["math_tutoring"], ["itpo", "trajectory"], ["rloo"], range(2))
    assert len(list(run_study(cells[:2], out))) == 2
    out.write_text(out.read_text()[:-20])  # killed while it wrote the second row
    rows = list(run_study(cells, out, jobs=2))
    assert len(rows) == 4 and len(played) == 5
    assert {(r["credit"], r["seed"]) for r in read_rows(out)} == {(c.credit, c.seed) for c in cells}
    assert len(list(run_study(cells, out))) == 4 and len(played) == 5


def test_other_settings_are_another_run(tmp_path, played):
    out = tmp_path / "rows.jsonl"
    cell = Cell("math_tutoring", "itpo")
    for other in (
        cell,
        Cell("math_tutoring", "itpo", options={"beta": 0.1}),
        Cell("math_tutoring", "itpo", difficulty="stress"),
    ):
        list(run_study([other], out))
    assert len(played) == 3
    list(run_study([Cell("math_tutoring", "itpo", probes=(3,))], out))  # a look inside does not change a run
    assert len(played) == 3


def test_a_failing_run_says_which():
    with pytest.raises(ItpoError, match=r"the run .*no_such_task.* failed"):
        study.run_in_process(Cell("no_such_task", "itpo"))


def test_a_failing_run_keeps_the_others(tmp_path, monkeypatch):
    def broken_at_seed_0(cell: Cell) -> dict:
        if cell.seed == 0:
            raise ItpoError("seed 0 failed")
        return row(cell.credit, cell.seed, 0.5)

    monkeypatch.setattr(study, "run_in_process", broken_at_seed_0)
    out = tmp_path / "rows.jsonl"
    with pytest.raises(ItpoError, match="seed 0 failed"):
        list(run_study(grid(["math_tutoring"], ["itpo"], ["rloo"], range(3)), out))
    assert {r["seed"] for r in read_rows(out)} == {1, 2}


@pytest.mark.parametrize(
    ("credit", "wanted"),
    [
        ("trajectory", [0.0, 0.0]),
        ("prime", [0.1 + 0.2, 0.4]),
        ("itpo", [0.1 + 0.2, 0.4]),
        ("judge", [0.25, 0.75]),
        ("oracle", [0.6 - 0.5, 1.0 - 0.6]),
    ],
)
def test_turn_credit_by_hand(credit, wanted):
    turn_ids = torch.tensor([[1, 1, 0, 2, 0]])
    exp = Experience(
        outcomes=torch.tensor([1.0]),
        valid=torch.tensor([True]),
        turn_ids=turn_ids,
        token_rewards=torch.tensor([[0.1, 0.2, 9.0, 0.4, 9.0]]),
        turn_values=torch.tensor([[0.5, 0.6]]),
        turn_weights=torch.tensor([[1.0, 3.0]]),
    )
    assert turn_credit(LearningRule(credit=credit), exp, 2)[0].tolist() == pytest.approx(wanted)


def test_figures_and_tables_of_a_study_can_be_made():
    """From made-up rows, so that the first real study meets no code that never ran."""
    import figures

    probe = {"best": 0.8, "worst": 0.7, "best_by_chance": 0.4, "worst_by_chance": 0.4, "tau": 0.5}
    probe |= {"dialogues": 9, "tau_dialogues": 9, "last_is_worst": 0.6}
    rows = [
        {
            **row(credit, seed, after + 0.01 * seed),
            "steps": 9,
            "truth": [{"step": step, **probe} for step in (3, 7)],
        }
        for credit, after in (("norm_itpo", 0.7), ("trajectory", 0.6))
        for seed in range(3)
    ]
    scores = figures.score_table(rows)
    assert "| norm_itpo | 3 | 0.887 [" in scores and "+0.125 [+0.125, +0.125] (0.25)" in scores
    assert "| norm_itpo |  | 1.00 |" in figures.win_table(rows)
    assert "trajectory | 3 | late | 27 | 0.80 (0.40) | 0.70 (0.40) | 0.60 | +0.50 |" in figures.truth_table(
        figures.probed_methods(rows)
    )
    assert figures.svg(figures.score_figure(rows)) == figures.svg(figures.score_figure(rows))
    assert "norm_itpo" in figures.svg(figures.curve_figure(rows))


def test_what_a_rule_pays_for_asking_once_more():
    from length_pull import RULES, asking_over_answering

    turn_ids = torch.tensor([[1, 1, 0, 2, 3], [1, 0, 2, 0, 0], [1, 1, 0, 0, 0]])
    advantages = torch.tensor([[1.0, 3.0, 0.0, 4.0, 2.0], [1.0, 0.0, -1.0, 0.0, 0.0], [9.0, 9.0, 0.0, 0.0, 0.0]])
    # (2 + 4) / 2 - 2 = 1 and 1 - (-1) = 2; the last dialogue never asked
    assert asking_over_answering(advantages, turn_ids) == pytest.approx(1.5)
    experience = Experience(
        outcomes=torch.tensor([1.0, 0.0, 0.0, 1.0]),
        valid=torch.ones(4, dtype=torch.bool),
        turn_ids=torch.tensor([[1, 0, 2, 0, 3], [1, 0, 2, 0, 0], [1, 0, 0, 0, 0], [1, 0, 2, 0, 3]]),
        token_rewards=torch.zeros(4, 5),  # the PRM knows nothing: equal shares
    )
    found = {
        name: asking_over_answering(token_advantages(rule, experience, 4, 3)[0], experience.turn_ids)
        for name, rule in RULES.items()
    }
    for name in ("trajectory share", "baseline credit_weighted", "raw ITPO"):
        assert found[name] == pytest.approx(0, abs=1e-6)
    assert found["baseline turn"] > 0.3  # what is still to come counts for the turns before it


def test_a_probe_looks_at_failures_alone():
    looked = []

    class Spy(study.TruthProbe):
        def _compare(self, which):
            looked.append(which)
            return {}

    outcomes = [1.0, 0.2, None, 0.49, 0.5, *[0.0] * 30]
    probe = Spy([4, 8])
    probe.trainer = SimpleNamespace(dialogues=[SimpleNamespace(outcome=outcome) for outcome in outcomes])
    for step in (3, 4):
        probe.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert looked == [[1, 3, *range(5, 5 + study.PROBED_FAILURES - 2)]] and probe.rows == [{"step": 4}]
    probe.trainer.dialogues = [SimpleNamespace(outcome=1.0)] * 4
    probe.on_step_end(None, SimpleNamespace(global_step=8), None)
    assert len(looked) == 1  # nothing failed, nothing to compare


def test_both_prms_are_compared_on_the_same_failures():
    from offline_prm import of_kind

    names = ("best", "worst", "best_by_chance", "worst_by_chance", "last_is_worst", "tau")
    online, offline = ({**dict.fromkeys(names, x), "dialogues": 2, "tau_dialogues": 2} for x in (0.25, 0.75))
    row = {"seed": 0, "steps": 48, "probes": [{"step": 47, "online": online, "offline": offline}]}
    for kind, wanted in (("online", 0.25), ("offline", 0.75)):
        assert study.agreement_by_phase(of_kind([row], kind))["late"]["worst"] == wanted


@pytest.mark.slow
def test_a_run_is_listened_to_batch_by_batch():
    from length_pull import EVERY, RULES, TRUTH, listen

    rows = listen(seed=0, steps=4)
    assert [row["step"] for row in rows] == [1, 3]  # two steps a batch
    assert set(rows[0]["pull"]) == {*RULES, TRUTH} and set(rows[1]["pull"]) == set(RULES) and EVERY > 1
    for row in rows:
        assert row["pull"]["trajectory share"] == pytest.approx(0, abs=1e-6) and 1 <= row["turns"] <= 6
        assert row["pull"]["baseline turn"] > row["pull"]["baseline credit_weighted"]


@pytest.mark.slow
def test_a_row_holds_curve_and_truth():
    small = {"max_steps": 2, "gradient_accumulation_steps": 1, "num_generations": 4, "num_iterations": 1}
    cell = Cell("math_tutoring", "norm_itpo", options=small, probes=(2,))
    made = json.loads(json.dumps(study.run_cell(cell, eval_dialogues=8)))
    assert study.row_cell(made) == cell
    assert made["curve"]["step"] == [1, 2] and len(made["curve"]["outcome"]) == 2
    (probe,) = made["truth"]
    assert probe["step"] == 2 and 0 <= probe["best_by_chance"] <= 1
    assert 1 <= probe["dialogues"] <= study.PROBED_FAILURES
    assert made["cpu_seconds"] > 0


def test_committed_tables_and_figures_follow_from_the_committed_rows():
    from figures import products

    for path, text in products().items():
        assert path.exists() and path.read_text() == text, f"{path.name} differs from the rows: run `make figures`"


def test_every_row_of_evidence_and_rule_has_a_name_and_every_rule_is_accepted(tmp_path):
    from evidence import RESULTS, RULES, rule_of, settings_of

    named = {rule_of(row) for name in ("stress", "stress_rules") for row in study.read_rows(RESULTS / f"{name}.jsonl")}
    assert set(RULES) <= named, "a rule without a row"
    assert all(rule_of(row) for row in study.read_rows(RESULTS / "stress_rules.jsonl"))
    for credit, options in map(settings_of, RULES):
        ITPOConfig(output_dir=str(tmp_path), use_cpu=True, credit=credit, **options)


def test_prime_tells_nothing_about_a_failed_dialogue():
    exp = Experience(
        torch.tensor([1.0, math.nan]), torch.tensor([True, False]), torch.tensor([[1, 2], [1, 2]]),
        torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
    )  # fmt: skip
    assert turn_credit(LearningRule(credit="prime"), exp, 2).tolist() == [pytest.approx([0.1, 0.2]), [0.0, 0.0]]
