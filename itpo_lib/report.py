"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dialogue import Dialogue
from .scoring import ScoredTurn, score_turns

if TYPE_CHECKING:
    from .run import RunResult

MEASURES = (
    ("success", "success rate"),
    ("outcome", "mean outcome R"),
    ("turns", "assistant turns"),
    ("words", "words"),
)


def write_report(result: RunResult, seconds: float) -> Path:
    """Write `report.html` into the run's folder. All text from dialogues is escaped."""
    from jinja2 import Environment

    settings, out = result.settings, Path(result.settings.out)
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("itpo_lib").joinpath("templates/report.html").read_text()
    )
    assert result.after is not None
    html = page.render(
        settings=settings,
        rule=result.trainer.args.rule,
        measures=[(label, result.before["summary"][key], result.after["summary"][key]) for key, label in MEASURES],
        n=result.after["summary"]["dialogues"],
        ceiling=result.ceiling,
        seconds=seconds,
        steps=result.trainer.state.global_step,
        curves=base64.b64encode((out / "curves.png").read_bytes()).decode(),
        pairs=dialogue_pairs(result),
        options=json.dumps(settings.options, sort_keys=True),
    )
    path = out / "report.html"
    path.write_text(html)
    return path


def dialogue_pairs(result: RunResult) -> list[dict[str, Any]]:
    """Three validation goals, played before and after; first those on which training made a difference."""
    assert result.after is not None
    pairs = []
    played = list(zip(result.before["dialogues"], result.after["dialogues"], strict=False))
    played.sort(key=lambda pair: (pair[0]["outcome"] or 0) >= (pair[1]["outcome"] or 0))  # stable
    for before, after in played[:3]:
        goal = result.trainer.task.goal(after["goal_index"], after["split"])
        sides = [describe(result, Dialogue.from_dict(data)) for data in (before, after)]
        pairs.append({"goal": goal, "sides": list(zip(("before training", "after training"), sides, strict=True))})
    return pairs


def describe(result: RunResult, dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue's messages, each assistant turn with its implicit reward and share where there is a PRM."""
    trainer = result.trainer
    scores: Iterator[ScoredTurn] = iter(())
    if trainer.prm is not None and dialogue.n_turns:
        scored = score_turns(trainer.prm, trainer.frozen, trainer.chat, [dialogue], trainer.args.credit_temperature)
        scores = iter(scored[0])
    rows = []
    for message in dialogue.messages:
        score = next(scores, None) if message["role"] == "assistant" else None
        rows.append({"role": message["role"], "text": message["content"], "score": score})
    return {"rows": rows, "outcome": dialogue.outcome, "turns": dialogue.n_turns}
