"""`itpo evaluate` and `itpo play`: dialogues with a finished policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..files import make_room
from ..terminal import console, show_message, show_table
from .options import Difficulty, ModelName, Scale, TaskName, TaskOptions, options_of_task, policy_for


def evaluate(
    model: ModelName = None,
    task: TaskName = "math_tutoring",
    scale: Scale = "tiny",
    difficulty: Difficulty = None,
    dialogues: Annotated[
        int | None,
        typer.Option("-n", "--dialogues", help="Validation dialogues; default 256 tiny, 4 text, 64 hub", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of users and sampler", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the dialogues to this JSON file")] = None,
    task_option: TaskOptions = None,
) -> None:
    """Measure a policy, greedy and sampled, with 95% bootstrap intervals."""
    from ..evaluate import evaluate as evaluate_policy
    from ..presets import EVAL_DIALOGUES
    from ..run import task_ceiling
    from ..tasks import get_task

    make_room(out)
    world = get_task(task, scale, **options_of_task(difficulty, task_option))
    policy, chat = policy_for(model, task, world)
    results, n = {}, dialogues or EVAL_DIALOGUES.get(scale, 64)
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        with console.status(f"playing {n} dialogues, {name}"):
            results[name] = evaluate_policy(policy, chat, world, n, temperature=temperature, seed=seed)
    show_table({name: summary.to_dict() for name, (summary, _) in results.items()}, task_ceiling(world))
    if out is not None:
        out.write_text(json.dumps({k: [d.to_dict() for d in played] for k, (_, played) in results.items()}) + "\n")


def play(
    task: TaskName = "math_tutoring",
    scale: Scale = "tiny",
    difficulty: Difficulty = None,
    role: Annotated[
        str, typer.Option(help="assistant: talk to a simulated user; user: talk to a policy")
    ] = "assistant",
    model: ModelName = None,
    goal: Annotated[int, typer.Option(help="Number of the goal", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the other side", min=0)] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the session to this JSON file")] = None,
    task_option: TaskOptions = None,
) -> None:
    """Be the assistant or the user of a dialogue in the terminal. An empty line ends it."""
    from ..human import HumanSession
    from ..tasks import get_task

    make_room(save)
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
