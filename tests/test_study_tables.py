"""What the notebooks say about the study's rows: tables, verdicts, figures, and where the rows come from."""

import json

import numpy as np
import pytest
from test_study import row

from itpo_lib.credit import CREDITS
from itpo_lib.errors import ItpoError
from itpo_lib.study import agreement_by_phase, committed_rows
from itpo_lib.study_plots import curve_figure, probe_figure, score_figure
from itpo_lib.study_tables import (
    pooled_table,
    score_table,
    settings_table,
    standing_table,
    told_apart,
    verdict,
    verdicts,
)


def runs(credit: str, *afters: float) -> list[dict]:
    return [row(credit, seed, after) for seed, after in enumerate(afters)]


def test_a_verdict_wants_every_seed_or_a_small_p():
    plain = runs("trajectory", *[0.40] * 8)  # the ceiling is 0.8
    above = verdict(runs("itpo", 0.48, 0.56, 0.64, 0.72), plain)
    assert above.startswith("itpo minus trajectory +0.250, from +0.100 to +0.400, ahead on 4 of 4: ")
    assert above.endswith("**higher on every seed** (by chance, once in 8)")
    assert "**lower on every seed**" in verdict(runs("itpo", 0.32, 0.36, 0.38, 0.36), plain)
    mostly = runs("itpo", 0.398, 0.56, 0.64, 0.56)  # three of four: p = 4/16 does not convince
    assert verdict(mostly, plain).endswith("ahead on 3 of 4 (p = 0.25): **not told apart**")
    assert verdict(runs("itpo", 0.398, *[0.56] * 7), plain).endswith("(p = 0.02): **higher**")
    assert verdict(plain, plain).endswith("ahead on 0 of 8 (p = 1.00): **not told apart**")
    assert verdict(runs("itpo", 0.5, 0.6, 0.7), plain).endswith("ahead on 3 of 3: **too few seeds to tell**")
    assert (
        verdict(runs("itpo", 0.5), plain) == "itpo minus trajectory +0.125, ahead on 1 of 1: **too few seeds to tell**"
    )


def test_verdicts_keep_estimators_apart_and_skip_what_shares_no_seed():
    grpo = runs("norm_itpo", 0.1, 0.1, 0.1, 0.1) + runs("trajectory", 0.2, 0.3, 0.2, 0.3)
    late = [row("uniform", 7, 0.5)]
    rows = runs("norm_itpo", 0.5, 0.6, 0.7, 0.8) + runs("trajectory", 0.2, 0.3, 0.2, 0.3) + late
    lines = verdicts(rows + [{**r, "estimator": "grpo"} for r in grpo]).splitlines()
    assert [line.split(":")[0] for line in lines] == ["- rloo", "- grpo"]
    assert "higher on every seed" in lines[0] and "lower on every seed" in lines[1]
    assert verdicts(runs("norm_itpo", 0.5)) == "No other method has run on the seeds of norm_itpo yet."
    assert verdicts(runs("uniform", 0.5)) == verdicts([]) == "The rows hold no run of norm_itpo yet."


def test_tables_sort_by_score_and_name_settings():
    rows = runs("trajectory", 0.4, 0.6) + [
        {**r, "options": {"max_steps": 112, "prm_beta": 0.1}} for r in runs("norm_itpo", 0.64, 0.72)
    ]
    rows = [{**r, "steps": 112} for r in rows]
    lines = score_table(rows).splitlines()
    assert lines[2].startswith("| math tutoring, rloo | norm_itpo | 2 | 0.850 |")  # two seeds: no interval
    assert lines[2].endswith("| +0.225 |") and lines[3].endswith("|  |")
    grpo = [{**rows[0], "estimator": "grpo", "seed": seed} for seed in (0, 1, 2, 7)]
    settings = settings_table([*grpo, *rows])
    assert "| norm_itpo | normal | 112 | rloo 0–1 | prm_beta 0.1 |" in settings
    assert "| trajectory | normal | 112 | rloo 0–1; grpo 0–2 7 | nothing |" in settings


def test_the_standing_counts_what_is_told_apart():
    ours, plain = runs("norm_itpo", 0.5, 0.6, 0.7, 0.8), runs("trajectory", 0.2, 0.3, 0.2, 0.3)
    assert (told_apart(ours, plain), told_apart(plain, ours), told_apart(ours, ours)) == (1, -1, 0)
    assert told_apart(ours[:3], plain) == 0, "three seeds are too few"
    mixed = runs("judge", 0.7, 0.5, 0.8, 0.7)
    lines = standing_table([*ours, *plain, *mixed, *runs("oracle", 0.71, 0.71, 0.71, 0.81)]).splitlines()
    assert lines[2] == "| math tutoring, rloo | 4 | 0.812 | 2 of 3 | oracle | judge | trajectory |"
    assert standing_table(plain).count("\n") == 2, "no run of the method that is asked about"
    faster = [{**r, "curve": {**r["curve"], "outcome": [x + 0.08 for x in r["curve"]["outcome"]]}} for r in ours]
    grpo = [{**r, "estimator": "grpo"} for r in (*faster[:1], *plain[:1])]
    pooled = pooled_table([*faster, *plain, *grpo, *runs("judge", 0.1)]).splitlines()
    gap = np.mean([0.3, 0.3, 0.5, 0.5]) / 0.8  # the ceiling; seed 0 counts once, though two estimators ran on it
    assert pooled[2].startswith(f"| norm_itpo | {gap:+.3f} [") and pooled[2].endswith("| 0.625 |")
    assert "| 5 of 5 | +0.100 [+0.100, +0.100] (0.125) |" in pooled[2], "0.08 higher all along; four signs agree"
    assert pooled[3].startswith("| judge | -0.125 [") and "| 0 of 1 | +0.000 [" in pooled[3]
    assert pooled[4] == "| trajectory |  |  |  | 0.250 |" and len(pooled) == 5


def test_figures_take_whatever_the_rows_hold():
    import matplotlib.pyplot as plt

    probe = {"best": 0.8, "worst": 0.7, "best_by_chance": 0.4, "worst_by_chance": 0.4, "tau": 0.5}
    probe |= {"dialogues": 9, "tau_dialogues": 9, "last_is_worst": 0.6}
    rows = runs("norm_itpo", 0.6) + runs("trajectory", 0.4, 0.5)
    for made in (score_figure(rows), curve_figure(rows)):
        assert len(made.axes) == 1
    for made in (score_figure([]), curve_figure([])):  # a study that has not come to this task
        assert made.axes[0].texts[0].get_text() == "no runs yet"
    assert score_table([]).count("\n") == settings_table([]).count("\n") == 2
    with pytest.raises(ItpoError, match="--probes"):
        probe_figure(rows)
    for r in rows:
        r["steps"] = 9
    rows[0]["truth"] = [{"step": 3, **probe}, {"step": 7, **probe}]
    rows[1]["truth"] = [{"step": 3, **probe, "best": 0.5}]
    best = probe_figure(rows).axes[0].get_lines()
    assert [list(line.get_xdata()) for line in best[:2]] == [["early"]] * 2  # only what both were probed in
    assert [line.get_ydata()[0] for line in best[::2][:2]] == [0.5, 0.8]  # trajectory first, as in the course
    colours = {made.axes[0].get_lines()[0].get_color() for made in (probe_figure(rows), curve_figure(rows))}
    assert len(colours) == 1  # a method looks alike in every figure
    plt.close("all")


def test_probes_are_pooled_by_dialogue_and_third_of_training():
    names = ("best", "worst", "best_by_chance", "worst_by_chance", "last_is_worst")
    few, many = ({**dict.fromkeys(names, x), "dialogues": n} for x, n in ((1.0, 1), (0.5, 3)))
    none = {**dict.fromkeys(names, float("nan")), "dialogues": 0, "tau": float("nan"), "tau_dialogues": 0}
    first = [{"step": 1, "tau": 1.0, "tau_dialogues": 1, **few}, {"step": 16, "tau": -1.0, "tau_dialogues": 1, **many}]
    rows = [{"steps": 48, "truth": first}, {"steps": 48, "truth": [{"step": 17, **none}, {"step": 48, **none}]}]
    found = agreement_by_phase(rows)
    assert list(found) == ["early", "middle", "late"]
    assert found["early"]["best"] == (1 + 3 * 0.5) / 4 and found["early"]["dialogues"] == 4
    assert found["early"]["tau"] == 0 and np.isnan(found["late"]["tau"]) and found["middle"]["dialogues"] == 0


def test_eight_methods_all_show_and_look_different():
    import matplotlib.pyplot as plt

    probe = {"step": 3, "best": 0.8, "worst": 0.7, "best_by_chance": 0.4, "worst_by_chance": 0.4, "dialogues": 9}
    probe |= {"tau_dialogues": 9, "last_is_worst": 0.6, "tau": 0.5}
    rows = [{**row(credit, 0, 0.5), "steps": 9, "truth": [probe]} for credit in CREDITS]
    for figure in (curve_figure(rows), probe_figure(rows)):
        lines = [line for line in figure.axes[0].get_lines() if line.get_label() in CREDITS]
        assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == len(CREDITS) == 8
    plt.close("all")


def test_committed_rows_are_found_read_and_never_written(tmp_path):
    assert {r["credit"] for r in committed_rows("bar")} == {"norm_itpo"}
    half = json.dumps({"credit": "itpo"}) + '\n{"credit": "tra'  # a study is writing its second row
    (tmp_path / "mine.jsonl").write_text(half)
    assert committed_rows("mine", tmp_path) == [{"credit": "itpo"}]
    assert (tmp_path / "mine.jsonl").read_text() == half
    with pytest.raises(ItpoError, match=r"unknown study 'mien'.*Did you mean 'mine'"):
        committed_rows("mien", tmp_path)
    with pytest.raises(ItpoError, match="no rows of any study"):
        committed_rows("mine", tmp_path / "nowhere")


def test_a_cell_without_the_credit_does_not_hide_the_cells_after_it():
    rows = [row("trajectory", 0, 0.4), {**row("norm_itpo", 0, 0.4), "task": "document_writing"}]
    assert "| document writing, rloo | 1 | 0.500 | 1 of 1 | none | none | none |" in standing_table(rows)
