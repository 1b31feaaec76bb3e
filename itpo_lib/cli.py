"""The `itpo` command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from .errors import DialogueFailed, ItpoError, require
from .terminal import console, show_dialogue, show_doctor, show_grades, show_message, show_study, show_table

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Multi-turn reinforcement learning with turn-wise credit."
)

TaskName = Annotated[
    str,
    typer.Option("--task", help="math_tutoring, document_writing, medical_recommendation, or your own: file.py:Class"),
]
Scale = Annotated[
    str, typer.Option(help="tiny (offline, seconds), text (offline, a real model), hub (the paper's data)")
]
Difficulty = Annotated[str | None, typer.Option(help="easy, normal or stress, where the task has levels")]
ModelName = Annotated[str | None, typer.Option("--model", help="tiny, smollm2, a folder, or a model on the hub")]
Device = Annotated[str, typer.Option(help="auto or cpu")]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option("--task-option", help="An option of the task, as name=value (hub: user_url, user_model); repeatable"),
]


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Print what is wrong with the input and exit with 2; anything else keeps its traceback."""
    try:
        yield
    except (ItpoError, DialogueFailed) as error:
        Console(stderr=True).print(
            f"[bold red]Error:[/] {escape(str(error))}", markup=True, highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from None


@app.command()
def train(
    ctx: typer.Context,
    config: Annotated[
        str | None, typer.Option(help="A recipe: its name (see `itpo doctor`) or a TOML file; flags go over it")
    ] = None,
    task: TaskName = "math_tutoring",
    scale: Scale = "tiny",
    model: ModelName = None,
    difficulty: Difficulty = None,
    credit: Annotated[
        str, typer.Option(help="trajectory, uniform, value, judge, prime, itpo, norm_itpo or oracle (the truth)")
    ] = "norm_itpo",
    estimator: Annotated[str, typer.Option(help="rloo, grpo or ppo")] = "rloo",
    baseline: Annotated[
        str | None, typer.Option(help="RLOO's baseline: auto, turn, official, outcome, credit_weighted or signed")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the run")] = Path("runs/latest"),
    peft: Annotated[str | None, typer.Option(help="lora: train adapters on one frozen base")] = None,
    device: Device = "auto",
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
    with clear_errors():
        from .run import RunSettings

        if resume:
            settings = RunSettings.load(out)
            settings.options |= parse_options(set_ or [])
            run_and_show(settings, resume=True)
            return
        require(peft in (None, "lora"), f"unknown --peft {peft!r}: choose lora, or leave it out")
        typed = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
        named: dict[str, Any] = {"credit": credit, "estimator": estimator, "baseline": baseline, "max_steps": steps}
        wanted: dict[str, Any] = {
            "task": task,
            "scale": scale,
            "model": model,
            "out": str(out),
            "seed": seed,
            "device": device,
            "lora": peft == "lora",
            "eval_dialogues": eval_dialogues,
        }
        task_options = options_of_task(difficulty, task_option)
        if config is None:
            options = {**{k: v for k, v in named.items() if v is not None}, **parse_options(set_ or [])}
            run_and_show(RunSettings(**wanted, options=options, task_options=task_options))
        else:
            from .recipes import settings_of

            flags = {"max_steps": "steps", "lora": "peft"}
            given, options = ({k: v for k, v in d.items() if flags.get(k, k) in typed} for d in (wanted, named))
            run_and_show(
                settings_of(config, {**given, "task_options": task_options}, options | parse_options(set_ or []))
            )


@app.command()
def doctor() -> None:
    """Say what this machine can run: processors, memory, versions, and which recipes fit."""
    with clear_errors():
        from .doctor import inspect_machine, verdicts, versions

        machine = inspect_machine()
        show_doctor(machine, versions(), verdicts(machine))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; an earlier demo there is replaced")] = Path("runs/demo"),
) -> None:
    """Train the tiny math tutor with Norm-ITPO and show what changed. About a minute on a laptop."""
    with clear_errors():
        from .run import RunSettings

        if out.exists():
            require((out / "demo").exists(), f"{out} holds something other than a demo; choose another --out")
            shutil.rmtree(out)
        out.mkdir(parents=True)
        (out / "demo").touch()
        run_and_show(RunSettings(out=str(out), options={"max_steps": 80}))


@app.command()
def evaluate(
    model: ModelName = None,
    task: TaskName = "math_tutoring",
    scale: Scale = "tiny",
    difficulty: Difficulty = None,
    dialogues: Annotated[
        int | None,
        typer.Option("-n", "--dialogues", help="Validation dialogues; default 256 tiny, 4 text, 64 hub", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of users and sampler")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the dialogues to this JSON file")] = None,
    task_option: TaskOptions = None,
) -> None:
    """Measure a policy, greedy and sampled, with 95% bootstrap intervals."""
    with clear_errors():
        from .evaluate import evaluate as evaluate_policy
        from .presets import EVAL_DIALOGUES
        from .run import task_ceiling
        from .tasks import get_task

        world = get_task(task, scale, **options_of_task(difficulty, task_option))
        policy, chat = policy_for(model, task, world)
        results, n = {}, dialogues or EVAL_DIALOGUES.get(scale, 64)
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            with console.status(f"playing {n} dialogues, {name}"):
                results[name] = evaluate_policy(policy, chat, world, n, temperature=temperature, seed=seed)
        show_table({name: summary.to_dict() for name, (summary, _) in results.items()}, task_ceiling(world))
        if out is not None:
            out.write_text(json.dumps({k: [d.to_dict() for d in played] for k, (_, played) in results.items()}) + "\n")


@app.command()
def play(
    task: TaskName = "math_tutoring",
    scale: Scale = "tiny",
    difficulty: Difficulty = None,
    role: Annotated[
        str, typer.Option(help="assistant: talk to a simulated user; user: talk to a policy")
    ] = "assistant",
    model: ModelName = None,
    goal: Annotated[int, typer.Option(help="Number of the goal")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the other side")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the session to this JSON file")] = None,
    task_option: TaskOptions = None,
) -> None:
    """Be the assistant or the user of a dialogue in the terminal. An empty line ends it."""
    with clear_errors():
        from .human import HumanSession
        from .tasks import get_task

        world = get_task(task, scale, **options_of_task(difficulty, task_option))
        policy = policy_for(model, task, world) if role == "user" else (None, None)
        session = HumanSession(world, world.goal(goal, "validation"), seed, role, *policy)
        console.print(f"[dim]You are the {role}; at most {world.limits.max_turns} assistant turns.[/]")
        if role == "user":
            console.print(f"You want: {session.reveal()}", markup=False)
        for message in session.messages:
            show_message(message["role"], message["content"])
        while not session.ended:
            text = typer.prompt("you", default="", show_default=False).strip()
            if not text:
                session.end()
            elif (reply := session.say(text)).text:
                show_message("user" if role == "assistant" else "assistant", reply.text)
        outcome = f"failed: {session.failure}" if session.outcome is None else f"R = {session.outcome:.2f}"
        goal_text = "The right answer: {answer}. Hidden: {hidden}".format(**session.reveal())
        title = world.outcome_name[0].upper() + world.outcome_name[1:]
        console.print(f"{title}: {outcome}. {goal_text}", markup=False)
        if save is not None:
            session.save(save)


@app.command()
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
    seed: Annotated[int, typer.Option(help="Seed of weights and dialogues")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint; default at tiny scale: the shipped one's place")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="tiny: go on from the shipped policy of this difficulty, not from new weights")
    ] = None,
    device: Device = "auto",
) -> None:
    """Make a starting policy: it knows the task's form and is competent once informed, but inclined to guess."""
    with clear_errors():
        from .models import CHECKPOINTS
        from .run import quiet_libraries

        require(scale in ("tiny", "text"), f"no warm start at scale {scale!r}: choose tiny or text")
        use_one_thread(scale)
        quiet_libraries()
        if scale == "text":
            from .warmstart_text import WarmStart, warmstart_text

            require(out is not None, "a warm start at text scale has no shipped place: name a folder with --out")
            chosen = {k: v for k, v in (("steps", steps), ("model", model)) if v is not None}
            settings = WarmStart(task=task, difficulty=difficulty, seed=seed, device=device, **chosen)  # type: ignore[arg-type]
            console.print_json(json.dumps(warmstart_text(settings, out)))  # type: ignore[arg-type]
            return
        from .warmstart import warmstart as make

        require(model is None, "--model belongs to --scale text: at tiny scale the model is made from nothing")
        require(
            out is not None or ".py:" not in task, "a task of your own has no shipped place: name a folder with --out"
        )
        place = out or CHECKPOINTS / f"{task}-{difficulty}"
        console.print_json(json.dumps(make(task, difficulty, place, steps=steps or 800, seed=seed, start=start)))


@app.command()
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
    with clear_errors():
        from tqdm import tqdm

        from .credit import CREDITS
        from .study import grid, run_study

        credits = credit or (["norm_itpo", "trajectory"] if quick else list(CREDITS))
        options = {"max_steps": 40} if quick else {}
        cells = grid([task], credits, ["rloo"], range(2 if quick else seeds), difficulty=difficulty, options=options)
        rows = list(tqdm(run_study(cells, out, jobs), total=len(cells), desc="study", unit="run"))
        show_study(f"{task}, {difficulty}", credits, rows)


@app.command()
def serve_user(
    model: Annotated[str, typer.Option("--model", help="smollm2, a folder, or a model on the hub")],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is reachable from this machine only")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on", min=1, max=65535)] = 8000,
) -> None:
    """Serve a language model as user and judge of the hub scale: with vLLM where installed, else with transformers."""
    with clear_errors():
        name = model
        if model == "smollm2":
            from .models import smollm2_folder

            name = str(smollm2_folder())
        binaries = Path(sys.executable).parent
        engine = "vllm" if (binaries / "vllm").exists() else "transformers"
        require(
            engine == "vllm" or all(importlib.util.find_spec(package) for package in ("fastapi", "uvicorn")),
            "a server needs more packages: pip install 'transformers[serving]', or vllm on a machine with a GPU",
        )
        command = [str(binaries / engine), "serve", name, "--host", host, "--port", str(port)]
        console.print(f"{engine} {' '.join(command[1:])}", markup=False, soft_wrap=True)
        url = f"http://{host}:{port}/v1"
        console.print(
            f"Train with --task-option user_url={url} --task-option user_model={name}", markup=False, soft_wrap=True
        )
        os.execv(command[0], command)


@app.command()
def grade(
    submissions: Annotated[
        Path, typer.Argument(help="Folder of submissions: STUDENT/ASSIGNMENT.ipynb or STUDENT__ASSIGNMENT.ipynb")
    ],
    solutions: Annotated[Path, typer.Option(help="Folder of the solution notebooks")] = Path("solutions"),
    out: Annotated[Path, typer.Option(help="Folder for grades.csv, feedback/ and results/")] = Path("grades"),
    jobs: Annotated[int, typer.Option(help="Submissions graded side by side", min=1)] = 2,
    cell_seconds: Annotated[float, typer.Option(help="Time limit of a cell", min=1)] = 60,
    seconds: Annotated[float, typer.Option(help="Time limit of a submission", min=1)] = 300,
    memory_mb: Annotated[int, typer.Option(help="Memory of a student's process beyond the libraries", min=64)] = 2048,
) -> None:
    """Grade submissions without a database. Student code runs confined; what is finished is not run again."""
    with clear_errors():
        from .grading import Limits
        from .grading import grade as grade_all

        show_grades(grade_all(submissions, solutions, out, jobs, Limits(cell_seconds, seconds, memory_mb)), out)


@app.command()
def lab(folder: Annotated[Path, typer.Argument(help="Folder of the notebooks")] = Path("notebooks")) -> None:
    """Open the notebooks in JupyterLab."""
    with clear_errors():
        require(folder.is_dir(), f"there is no folder {str(folder)!r} here; run this from the project's folder")
        jupyter = Path(sys.executable).with_name("jupyter-lab")  # found without an activated environment too
        require(jupyter.exists(), "JupyterLab is not installed: pip install 'itpo-lib[notebooks]'")
        os.execv(jupyter, [str(jupyter), str(folder)])


def use_one_thread(scale: str) -> None:
    """More threads slow a tiny model down."""
    if scale == "tiny":
        import torch

        torch.set_num_threads(1)


def policy_for(name: str | None, task: str, world: Any) -> tuple[Any, Any]:
    """A policy and its chat format; without a name, the one that training at this scale starts from."""
    from .models import load_policy
    from .run import DEFAULT_MODELS, quiet_libraries

    use_one_thread(world.scale)
    quiet_libraries()
    return load_policy(name or DEFAULT_MODELS[world.scale], task, difficulty=getattr(world, "difficulty", "normal"))


def options_of_task(difficulty: str | None, pairs: list[str] | None) -> dict[str, Any]:
    """What goes to the task's constructor."""
    return {**({"difficulty": difficulty} if difficulty else {}), **parse_options(pairs or [], "--task-option")}


def parse_options(pairs: list[str], flag: str = "--set") -> dict[str, Any]:
    """`name=value` pairs; a value is JSON where it parses as JSON, else a string."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        require(bool(sign) and name.isidentifier(), f"{flag} wants name=value, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def run_and_show(settings: Any, resume: bool = False) -> None:
    """Run, then print a dialogue before and after, the table, and where everything is."""
    from .run import train as train_run

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


if __name__ == "__main__":
    app()
