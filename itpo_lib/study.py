"""The study: one training run per task, estimator, credit and seed, each in a process of its own; and what the rows say.

A row is a JSON line. Finished runs are skipped, so a study may be stopped and started at will.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from .callbacks import read_metrics
from .diagnostics import agreement, kendall_within
from .errors import ItpoError, require, unknown_name
from .evaluate import Estimate

if TYPE_CHECKING:
    from .true_credit import TrueCredit

TOLERANCE = 0.1  # turns whose true credits differ by less count as equal: above the standard error of the truth
FAILURE = 0.5  # outcomes below it are probed
PROBED_FAILURES, PROBE_SAMPLES = 16, 32  # of a batch, and continuations from each boundary


@dataclass(frozen=True)
class Cell:
    """One run. `options` are fields of `ITPOConfig` that differ from the preset; `probes` are the steps at which
    the credit of the newest failures is compared with the truth."""

    task: str
    credit: str
    estimator: str = "rloo"
    seed: int = 0
    difficulty: str = "normal"
    options: dict[str, Any] = field(default_factory=dict)
    probes: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Equal for runs that would be the same."""
        return json.dumps([self.task, self.difficulty, self.estimator, self.credit, self.seed, self.options])


def grid(
    tasks: Sequence[str], credits: Sequence[str], estimators: Sequence[str], seeds: Iterable[int], **common: Any
) -> list[Cell]:
    """All combinations, seeds outermost: a study that is cut short has few seeds of everything."""
    cells = itertools.product(seeds, tasks, estimators, credits)
    return [Cell(task, credit, estimator, seed, **common) for seed, task, estimator, credit in cells]


# One run


class TruthProbe(TrainerCallback):
    """At given steps, compares the credit that the trainer just gave with the true credit, on dialogues that failed.

    Why failures: once most dialogues succeed, the turns of a success are worth the same up to the error of the
    truth, and no credit can be told from another. A failure always has a turn at which the value fell.
    """

    def __init__(self, steps: Sequence[int]):
        self.steps, self.cpu_seconds = frozenset(steps), 0.0
        self.trainer: Any = None  # set once there is one
        self.rows: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps and self.trainer is not None:
            began = time.process_time()
            played = self.trainer.dialogues
            failed = [i for i, d in enumerate(played) if d.outcome is not None and d.outcome < FAILURE]
            if failed:
                self.rows.append({"step": state.global_step, **self._compare(failed[:PROBED_FAILURES])})
            self.cpu_seconds += time.process_time() - began

    def _compare(self, which: list[int]) -> dict[str, float]:
        from .true_credit import true_values

        trainer = self.trainer
        policy, step = trainer.accelerator.unwrap_model(trainer.model), trainer.state.global_step
        played = [trainer.dialogues[i] for i in which]
        truth = true_values(policy, trainer.chat, trainer.task, played, PROBE_SAMPLES, seed=step)
        return compared(trainer.turn_credit()[which].cpu().numpy(), truth)


def compared(given: np.ndarray, truth: TrueCredit) -> dict[str, float]:
    """How well a credit (B, K) agrees with the true credit of the same dialogues, rounded for a row."""
    mask, true = truth.mask.numpy(), truth.credit.numpy()
    found = agreement(given, true, mask, TOLERANCE)
    last = agreement(-mask.cumsum(1), true, mask, TOLERANCE).worst  # as if the last turn were always to blame
    groups = np.repeat(np.arange(len(mask)), mask.sum(1))
    tau, counted = kendall_within(given[mask], true[mask], groups)
    measured = {**asdict(found), "last_is_worst": last, "tau": tau, "tau_dialogues": counted}
    return {name: round(value, 4) for name, value in measured.items()}


def run_cell(cell: Cell, eval_dialogues: int = 512) -> dict[str, Any]:
    """Train and evaluate; a row of settings, curves and results.

    CPU seconds are those of making the trainer, training and one evaluation of sampled dialogues; imports come on top.
    """
    from .evaluate import evaluate
    from .run import RunSettings, build_trainer, task_ceiling

    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(
            task=cell.task,
            out=folder,
            seed=cell.seed,
            device="cpu",
            options={"credit": cell.credit, "estimator": cell.estimator, "save_strategy": "no", **cell.options},
            task_options={"difficulty": cell.difficulty},
        )
        probe = TruthProbe(cell.probes)
        trainer = build_trainer(settings, [probe])
        probe.trainer = trainer
        began = time.process_time()
        before = evaluate(trainer.model, trainer.chat, trainer.task, eval_dialogues)[0]
        measuring = time.process_time() - began
        trainer.train()
        after = evaluate(trainer.model.eval(), trainer.chat, trainer.task, eval_dialogues)[0]
        seconds = time.process_time() - start - measuring - probe.cpu_seconds
        greedy = evaluate(trainer.model, trainer.chat, trainer.task, eval_dialogues, temperature=0.0)[0]
        history = [row for row in trainer.state.log_history if "outcome" in row]
    curve = {name: [round(row.get(name, float("nan")), 4) for row in history] for name in ("step", *CURVES)}
    results = {
        "steps": trainer.state.global_step,
        "ceiling": task_ceiling(trainer.task),
        "before": before.outcome.mean,
        "after": after.outcome.mean,
        "after_greedy": greedy.outcome.mean,
        "success_before": before.success.mean,
        "success": after.success.mean,
        "turns": after.turns.mean,
        "cpu_seconds": round(seconds, 1),
    }
    return {**asdict(cell), **results, "curve": curve, "truth": probe.rows}


CURVES = ("outcome", "turns", "entropy", "distinct_questions")


# Many runs


def run_study(cells: Sequence[Cell], out: Path, jobs: int = 1) -> Iterator[dict[str, Any]]:
    """Run what `out` lacks, append each finished row to it, and yield all rows of `cells`, old ones first.

    A run that fails does not lose the others: its error is raised when they are done.
    """
    require(jobs >= 1, f"jobs must be >= 1, got {jobs}")
    wanted = {cell.key: cell for cell in cells}
    for row in read_rows(out):
        if wanted.pop(row_cell(row).key, None) is not None:
            yield row
    out.parent.mkdir(parents=True, exist_ok=True)
    failed: list[ItpoError] = []
    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(run_in_process, cell) for cell in wanted.values()]
        try:
            for done in as_completed(runs):
                try:
                    row = done.result()
                except ItpoError as error:
                    failed.append(error)
                    continue
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                yield row
        finally:
            for run in runs:
                run.cancel()
    if failed:
        raise failed[0]


def run_in_process(cell: Cell) -> dict[str, Any]:
    """`run_cell` in a process of its own: runs cannot disturb each other, and CPU time is the run's own.

    The process is forked from a server that has imported the libraries once, where the system can fork.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["itpo_lib.trainer", "itpo_lib.run", "itpo_lib.evaluate"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_and_send, args=(cell, theirs), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = "it ended without a word: killed, or out of memory"
    process.join()
    if isinstance(answer, str):
        raise ItpoError(f"the run {cell.key} failed:\n{answer[-2000:]}")
    return answer


def run_and_send(cell: Cell, connection: Connection) -> None:
    """In the process of a run: a row goes through `connection`, or the traceback; nothing is printed."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            connection.send(run_cell(cell))
        except BaseException:
            connection.send(traceback.format_exc())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All finished runs of a study; a last line cut off by a crash is dropped from the file."""
    rows = read_metrics(path)
    if path.exists() and len(rows) < len(path.read_text().splitlines()):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def committed_rows(name: str = "study", folder: Path | None = None) -> list[dict[str, Any]]:
    """The rows that come with this package, wherever it is: in an installed wheel or in a checkout.

    Only reads: a study may be writing to the file. `folder` is where to look instead.
    """
    package = Path(__file__).parent
    places = [folder] if folder else [package / "results", package.parent / "benchmarks" / "results"]
    files = [place / f"{name}.jsonl" for place in places]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        known = {file.stem for place in places for file in place.glob("*.jsonl")}
        require(
            bool(known), f"no rows of any study in {' or '.join(map(str, places))}: install the wheel, or use a clone"
        )
        raise unknown_name("study", name, known)
    return read_metrics(found)


def row_cell(row: dict[str, Any]) -> Cell:
    """The cell that a row belongs to."""
    known = {name: row[name] for name in Cell.__dataclass_fields__ if name in row}
    return Cell(**{**known, "probes": tuple(row.get("probes", ()))})


# What the rows say


def score(row: dict[str, Any]) -> float:
    """Final mean outcome as a share of the ceiling."""
    return row["after"] / row["ceiling"]


def area(row: dict[str, Any]) -> float:
    """Mean outcome over all training batches as a share of the ceiling: area under the learning curve."""
    return float(np.mean(row["curve"]["outcome"])) / row["ceiling"]


def steps_to(row: dict[str, Any], share: float = 0.8, window: int = 3) -> float:
    """The first step whose trailing mean outcome reaches `share` of the ceiling; infinite where it never does."""
    outcomes = np.asarray(row["curve"]["outcome"])
    means = np.convolve(outcomes, np.ones(window) / window, "valid")
    reached = np.flatnonzero(means >= share * row["ceiling"])
    return float(row["curve"]["step"][reached[0] + window - 1]) if len(reached) else float("inf")


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of a few seeds and their range: no interval keeps its promise with three to five of them."""
    require(len(values) > 0, "cannot average no seeds")
    return Estimate(float(np.mean(values)), min(values), max(values))


def sign_flip_p(gaps: Sequence[float]) -> float:
    """Two-sided p-value: how often does a mean as far from 0 come about when every sign is a coin's?

    Exact, all 2^n signs are tried. With n gaps it cannot fall below 2^(1-n): 0.0625 for 5 seeds.
    """
    flips = np.array(list(itertools.product((1, -1), repeat=len(gaps)))) @ np.asarray(gaps) / len(gaps)
    return float(np.mean(np.abs(flips) >= abs(np.mean(gaps)) - 1e-12))


def paired(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> tuple[Estimate, float]:
    """Mean difference of scores on the same seeds with its range, and the exact sign-flip p-value."""
    theirs = {row["seed"]: score(row) for row in others}
    gaps = [score(row) - theirs[row["seed"]] for row in rows if row["seed"] in theirs]
    require(len(gaps) > 0, "no common seeds to compare")
    return over_seeds(gaps), sign_flip_p(gaps)


def wins(groups: dict[str, Sequence[dict[str, Any]]]) -> dict[tuple[str, str], float]:
    """For each pair of methods: on which share of their common seeds does the first score higher (ties half)?"""
    table = {}
    for (a, first), (b, second) in itertools.permutations(groups.items(), 2):
        theirs = {row["seed"]: score(row) for row in second}
        gaps = [score(row) - theirs[row["seed"]] for row in first if row["seed"] in theirs]
        if gaps:
            table[a, b] = float(np.mean([0.5 if gap == 0 else gap > 0 for gap in gaps]))
    return table


PHASES = ("early", "middle", "late")  # thirds of a run


def agreement_by_phase(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The probes of all rows pooled by third of training; each dialogue counts once."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        for probe in row["truth"]:
            phase = PHASES[min(2, 3 * (int(probe["step"]) - 1) // row["steps"])]
            found.setdefault(phase, []).append(probe)
    return {phase: pooled(found[phase]) for phase in PHASES if phase in found}


def pooled(probes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of the probes' measures, weighted by the dialogues that counted in each; and how many those were."""
    counts = {"dialogues": sum(p["dialogues"] for p in probes)}
    counts["tau_dialogues"] = sum(p["tau_dialogues"] for p in probes)
    means = {}
    for name in ("best", "worst", "best_by_chance", "worst_by_chance", "last_is_worst", "tau"):
        weight = "tau_dialogues" if name == "tau" else "dialogues"
        total = sum(p[name] * p[weight] for p in probes if p[weight])
        means[name] = total / counts[weight] if counts[weight] else float("nan")
    return {**means, **counts}
