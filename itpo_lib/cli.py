"""The `itpo` command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .errors import ItpoError, require

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Multi-turn reinforcement learning with turn-wise credit."
)
console = Console()

TaskName = Annotated[
    str, typer.Option("--task", help="math_tutoring, document_writing, medical_recommendation, or your own")
]
Scale = Annotated[
    str, typer.Option(help="tiny (offline, seconds), text (offline, a real model), hub (the paper's data)")
]
Difficulty = Annotated[str | None, typer.Option(help="easy, normal or stress, where the task has levels")]
ModelName = Annotated[str | None, typer.Option("--model", help="tiny, smollm2, a folder, or a model on the hub")]
Device = Annotated[str, typer.Option(help="auto or cpu")]


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Print what is wrong with the input and exit with 2; anything else keeps its traceback."""
    try:
        yield
    except ItpoError as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {error}", markup=True, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


@app.command()
def train(
    task: TaskName = "math_tutoring",
    scale: Scale = "tiny",
    model: ModelName = None,
    difficulty: Difficulty = None,
    credit: Annotated[str, typer.Option(help="trajectory, uniform, prime, itpo or norm_itpo")] = "norm_itpo",
    estimator: Annotated[str, typer.Option(help="rloo, grpo or ppo")] = "rloo",
    baseline: Annotated[
        str | None, typer.Option(help="RLOO's baseline: turn, official, outcome, credit_weighted")
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint")
    ] = False,
) -> None:
    """Train a policy; writes a report, curves, metrics and checkpoints into --out."""
    with clear_errors():
        from .run import RunSettings

        if resume:
            run_and_show(RunSettings.load(out), resume=True)
            return
        require(peft in (None, "lora"), f"unknown --peft {peft!r}: choose lora, or leave it out")
        options = {"credit": credit, "estimator": estimator, **parse_options(set_ or [])}
        options |= {k: v for k, v in (("baseline", baseline), ("max_steps", steps)) if v is not None}
        run_and_show(
            RunSettings(
                task=task,
                scale=scale,
                model=model,
                out=str(out),
                seed=seed,
                device=device,
                lora=peft == "lora",
                eval_dialogues=eval_dialogues,
                options=options,
                task_options={"difficulty": difficulty} if difficulty else {},
            )
        )


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
        run_and_show(RunSettings(out=str(out)))


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Option("--model", help="tiny, smollm2, a folder (runs/demo/policy), or a hub model")
    ] = "tiny",
    task: TaskName = "math_tutoring",
    scale: Scale = "tiny",
    difficulty: Difficulty = None,
    dialogues: Annotated[
        int | None,
        typer.Option("-n", "--dialogues", help="Validation dialogues; default 256 tiny, 4 text, 64 hub", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of users and sampler")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the dialogues to this JSON file")] = None,
) -> None:
    """Measure a policy, greedy and sampled, with 95% bootstrap intervals."""
    with clear_errors():
        from .evaluate import evaluate as evaluate_policy
        from .models import load_policy
        from .presets import EVAL_DIALOGUES
        from .run import quiet_libraries, task_ceiling
        from .tasks import get_task

        use_one_thread(scale)
        quiet_libraries()
        world = get_task(task, scale, **({"difficulty": difficulty} if difficulty else {}))
        policy, chat = load_policy(model, task, difficulty=getattr(world, "difficulty", "normal"))
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
    goal: Annotated[int, typer.Option(help="Number of the goal")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the user")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the transcript to this JSON file")] = None,
) -> None:
    """Be the assistant: talk to a simulated user in the terminal. An empty line ends the dialogue."""
    with clear_errors():
        from .tasks import get_task

        world = get_task(task, scale, **({"difficulty": difficulty} if difficulty else {}))
        wanted = world.goal(goal, "validation")
        user, messages = world.user(wanted, seed), world.opening_messages(wanted)
        console.print(f"[dim]You are the assistant; at most {world.limits.max_turns} turns.[/]")
        console.print(messages[-1]["content"], style="cyan", markup=False)
        for turn in range(world.limits.max_turns):
            text = typer.prompt("you", default="", show_default=False).strip()
            if not text:
                break
            messages.append({"role": "assistant", "content": text})
            reply = user.reply(text)
            if reply.done or turn + 1 == world.limits.max_turns:
                break
            messages.append({"role": "user", "content": reply.text})
            console.print(reply.text, style="cyan", markup=False)
        outcome = world.checked_outcome(wanted, messages)
        console.print(
            f"Outcome R = {outcome:.2f}. The right answer: {wanted.answer}. Hidden: {wanted.hidden}", markup=False
        )
        if save is not None:
            save.write_text(json.dumps({"messages": messages, "outcome": outcome, "goal": goal}, indent=1) + "\n")


@app.command()
def warmstart(
    task: TaskName = "math_tutoring",
    difficulty: Annotated[str, typer.Option(help="easy, normal or stress")] = "normal",
    steps: Annotated[int, typer.Option(help="Imitation steps of 64 dialogues", min=1)] = 800,
    seed: Annotated[int, typer.Option(help="Seed of weights and dialogues")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoint; default: the shipped one's place")] = None,
) -> None:
    """Make the starting policy of a tiny task: competent once informed, but inclined to guess."""
    with clear_errors():
        from .models import CHECKPOINTS
        from .run import quiet_libraries
        from .warmstart import warmstart as make

        use_one_thread("tiny")
        quiet_libraries()
        report = make(task, difficulty, out or CHECKPOINTS / f"{task}-{difficulty}", steps=steps, seed=seed)
        console.print_json(json.dumps(report))


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


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs; a value is JSON where it parses as JSON, else a string."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        require(bool(sign) and name.isidentifier(), f"--set wants name=value, got {pair!r}")
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


def show_dialogue(title: str, dialogue: dict[str, Any]) -> None:
    """One dialogue as text."""
    outcome = "failed" if dialogue["outcome"] is None else f"R = {dialogue['outcome']:.2f}"
    console.print(f"\n[bold]{title} training[/] ({outcome})")
    for message in dialogue["messages"]:
        if message["role"] != "system":
            style = "green" if message["role"] == "assistant" else "cyan"
            console.print(f"  {message['role']:>9}: {message['content']}", style=style, markup=False, highlight=False)


def show_table(columns: dict[str, dict[str, Any]], ceiling: float | None) -> None:
    """Evaluations side by side."""
    first = next(iter(columns.values()))
    table = Table(title=f"{first['dialogues']} validation dialogues, mean [95% bootstrap interval]")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for key, label in (
        ("success", "success rate"),
        ("outcome", "mean outcome"),
        ("turns", "turns"),
        ("words", "words"),
    ):
        cells = [f"{c[key]['mean']:.3f} \\[{c[key]['low']:.3f}, {c[key]['high']:.3f}]" for c in columns.values()]
        table.add_row(label, *cells)
    if ceiling is not None:
        table.add_row("of the ceiling", *(f"{c['outcome']['mean'] / ceiling:.0%}" for c in columns.values()))
        table.caption = f"ceiling (scripted expert): {ceiling:.3f}"
    console.print(table)


if __name__ == "__main__":
    app()
