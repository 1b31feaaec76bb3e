"""`itpo train`, `demo`, `warmstart` and `study`: whatever changes weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import require, unknown_name
from ..files import make_room
from ..terminal import console, show_dialogue, show_study, show_table
from .options import (
    SCALES,
    TASKS,
    Device,
    Difficulty,
    ModelName,
    TaskName,
    TaskOptions,
    options_of_task,
    parse_options,
    refuse_flags,
    use_one_thread,
)

LATEST = "runs/latest"


def train(
    ctx: typer.Context,
    config: Annotated[
        str | None, typer.Option(help="A recipe: its name (see `itpo doctor`) or a TOML file; flags go over it")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help=f"{TASKS}; default math_tutoring")] = None,
    scale: Annotated[str | None, typer.Option(help=f"{SCALES}; default tiny")] = None,
    model: ModelName = None,
    difficulty: Difficulty = None,
    credit: Annotated[
        str | None,
        typer.Option(
            help="trajectory, uniform, value, judge, prime, itpo, norm_itpo or oracle (the truth); default norm_itpo"
        ),
    ] = None,
    estimator: Annotated[str | None, typer.Option(help="rloo, grpo or ppo; default rloo")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="RLOO's baseline: auto, turn, official, outcome, credit_weighted or signed")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random; default 0", min=0)] = None,
    out: Annotated[Path | None, typer.Option(help=f"Folder of the run; default {LATEST}")] = None,
    peft: Annotated[str | None, typer.Option(help="lora: train adapters on one frozen base")] = None,
    device: Annotated[str | None, typer.Option(help="auto or cpu; default auto")] = None,
    eval_dialogues: Annotated[
        int | None, typer.Option(help="Dialogues of each evaluation; default 256 tiny, 4 text, 64 hub", min=1)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any field of ITPOConfig, as name=value; repeatable")
    ] = None,
    task_option: TaskOptions = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out from its newest checkpoint, as it was but for --set"),
    ] = False,
) -> None:
    """Train a policy; writes a report, curves, metrics and checkpoints into --out."""
    from ..recipes import settings_of
    from ..run import RunSettings

    changes = parse_options(set_ or [])
    if resume:
        refuse_flags(
            ctx, ("out", "set_", "resume"), "a resumed run keeps its settings; change options with --set NAME=VALUE"
        )
        settings = RunSettings.load(out or Path(LATEST))
        settings.options |= changes
        run_and_show(settings, resume=True)
        return
    require(peft in (None, "lora"), f"unknown --peft {peft!r}: choose lora, or leave it out")
    options = typed(credit=credit, estimator=estimator, baseline=baseline, max_steps=steps) | changes
    given = typed(task=task, scale=scale, model=model, out=out and str(out), seed=seed, device=device)
    given |= typed(lora=True if peft else None, eval_dialogues=eval_dialogues)
    given["task_options"] = options_of_task(difficulty, task_option)
    run_and_show(RunSettings(**given, options=options) if config is None else settings_of(config, given, options))


def typed(**flags: Any) -> dict[str, Any]:
    """The flags that were given on the command line."""
    return {name: value for name, value in flags.items() if value is not None}


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; an earlier demo there is replaced")] = Path("runs/demo"),
) -> None:
    """Train the tiny math tutor with Norm-ITPO and show what changed. About a minute on a laptop."""
    from ..run import RunSettings

    if out.exists():
        require((out / "demo").exists(), f"{out} holds something other than a demo; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / "demo").touch()
    run_and_show(RunSettings(out=str(out), options={"max_steps": 80}))


def run_and_show(settings: Any, resume: bool = False) -> None:
    """Run, then print a dialogue before and after, the table, and where everything is."""
    from ..run import train as train_run

    result = train_run(settings, resume=resume)
    if result.stopped:
        console.print(f"Stopped and saved. Continue with: itpo train --resume --out {settings.out}", markup=False)
        return
    if result.after is None:  # not the main process
        return
    both = (result.before["dialogues"], result.after["dialogues"])
    gains = [(b["outcome"] or 0) < (a["outcome"] or 0) for b, a in zip(*both, strict=True)]
    shown = gains.index(True) if True in gains else 0  # a goal on which training made the difference
    for name, dialogues in zip(("Before", "After"), both, strict=True):
        show_dialogue(name, dialogues[shown])
    show_table({"before": result.before["summary"], "after": result.after["summary"]}, result.ceiling)
    console.print(f"Report: {settings.out}/report.html", markup=False)


def warmstart(
    task: TaskName = "math_tutoring",
    scale: Annotated[
        str, typer.Option(help="tiny: a new small model. text: a chat model learns the task's form (uses TRL)")
    ] = "tiny",
    model: Annotated[
        str | None, typer.Option("--model", help="text: smollm2 (the default), a folder, or a model on the hub")
    ] = None,
    difficulty: Annotated[str, typer.Option(help="easy, normal or stress")] = "normal",
    steps: Annotated[
        int | None, typer.Option(help="Imitation steps; default 800 of 64 dialogues (tiny), 120 of 16 (text)", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and dialogues", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint; default at tiny scale: the shipped one's place")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="tiny: go on from the shipped policy of this difficulty, not from new weights")
    ] = None,
    device: Device = "auto",
) -> None:
    """Make a starting policy: it knows the task's form and is competent once informed, but inclined to guess."""
    from ..models import CHECKPOINTS
    from ..run import quiet_libraries

    if scale not in ("tiny", "text"):
        raise unknown_name("scale of warm starts", scale, ("tiny", "text"))
    use_one_thread(scale)
    quiet_libraries()
    if scale == "text":
        from ..warmstart_text import WarmStart, warmstart_text

        require(out is not None, "a warm start at text scale has no shipped place: name a folder with --out")
        chosen = typed(steps=steps, model=model)
        settings = WarmStart(task=task, difficulty=difficulty, seed=seed, device=device, **chosen)
        console.print_json(json.dumps(warmstart_text(settings, out)))  # type: ignore[arg-type]
        return
    from ..warmstart import warmstart as make

    require(model is None, "--model belongs to --scale text: at tiny scale the model is made from nothing")
    require(out is not None or ".py:" not in task, "a task of your own has no shipped place: name a folder with --out")
    place = out or CHECKPOINTS / f"{task}-{difficulty}"
    console.print_json(json.dumps(make(task, difficulty, place, steps=steps or 800, seed=seed, start=start)))


def study(
    task: TaskName = "math_tutoring",
    difficulty: Annotated[str, typer.Option(help="easy, normal or stress")] = "normal",
    credit: Annotated[list[str] | None, typer.Option(help="A credit method to compare; repeatable")] = None,
    seeds: Annotated[int, typer.Option(help="Runs per method", min=1)] = 5,
    jobs: Annotated[int, typer.Option(help="Runs at a time, one thread each", min=1)] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Two methods, two seeds, short runs: minutes")] = False,
    out: Annotated[Path, typer.Option(help="Rows of finished runs; they are skipped next time")] = Path(
        "runs/study.jsonl"
    ),
) -> None:
    """Compare credit methods over seeds on a tiny task, under RLOO."""
    from tqdm import tqdm

    from ..credit import CREDITS
    from ..models import shipped_checkpoint
    from ..study import grid, run_study
    from ..tasks import get_task

    for name in credit or []:
        if name not in CREDITS:
            raise unknown_name("credit", name, CREDITS)
    get_task(task, difficulty=difficulty)
    shipped_checkpoint(task, difficulty)
    make_room(out)
    credits = credit or (["norm_itpo", "trajectory"] if quick else list(CREDITS))
    options = {"max_steps": 40} if quick else {}
    cells = grid([task], credits, ["rloo"], range(2 if quick else seeds), difficulty=difficulty, options=options)
    rows = list(tqdm(run_study(cells, out, jobs), total=len(cells), desc="study", unit="run"))
    show_study(f"{task}, {difficulty}", credits, rows)
