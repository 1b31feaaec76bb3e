"""The warm start: imitate a scripted novice who is competent once informed, but guesses early.

Half of the dialogues have an opening that reveals everything. Without that half, RL finds that
answers never pay and collapses to guessing at once.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .chat import ChatFormat
from .dialogue import Dialogue, collate
from .errors import require
from .evaluate import evaluate
from .logprobs import token_logprobs
from .models import load_policy, tiny_model, tiny_tokenizer
from .tasks import Task, get_task, play_scripted


def novice_dialogues(task: Task, chat: ChatFormat, start: int, n: int) -> list[Dialogue]:
    """`n` scripted dialogues of goals `start` to `start + n - 1`, tokenised."""
    dialogues = []
    for index in range(start, start + n):
        goal = task.goal(index)
        novice = task.novice(goal, seed=index)
        require(novice is not None, f"task {task.name!r} ({task.scale}) has no scripted novice to imitate")
        dialogues.append(chat.dialogue(play_scripted(task, goal, novice, user_seed=index)[0]))  # type: ignore[arg-type]
    return dialogues


def warmstart(
    task_name: str,
    difficulty: str,
    out: Path,
    steps: int = 800,
    batch_size: int = 64,
    seed: int = 0,
    start: str | None = None,
) -> dict:
    """Train a tiny policy by imitation and save it in `out`; returns what was measured.

    `steps` optimiser steps on `batch_size` fresh dialogues each, half of them with everything revealed.
    `start` names a difficulty of the same task whose shipped policy to go on from; default: new weights.
    """
    from tqdm.auto import tqdm

    hiding = get_task(task_name, difficulty=difficulty)
    revealed = get_task(task_name, difficulty=difficulty, revealed=True)
    chat = ChatFormat(tiny_tokenizer(hiding.vocabulary()))  # type: ignore[attr-defined]
    began = time.process_time()
    if start is None:
        model = tiny_model(chat.tokenizer, seed)  # type: ignore[arg-type]
    else:
        model, known = load_policy("tiny", task_name, difficulty=start)
        require(known.tokenizer.get_vocab() == chat.tokenizer.get_vocab(), f"{start} and {difficulty} differ in words")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    half = batch_size // 2
    for step in tqdm(range(steps), desc=f"warm start {task_name}", unit="step"):
        first = (seed * steps + step) * half
        dialogues = novice_dialogues(hiding, chat, first, half) + novice_dialogues(revealed, chat, first, half)
        batch = collate(dialogues, chat.pad_id)
        loss = -token_logprobs(model, batch).sum() / batch.assistant_mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    measured = [evaluate(model, chat, world, n=512)[0] for world in (hiding, revealed)]
    report = {
        "task": task_name,
        "difficulty": difficulty,
        "start": start,
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(loss.item(), 4),
        "success": measured[0].success.mean,
        "outcome": measured[0].outcome.mean,
        "success_when_informed": measured[1].success.mean,
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    save_policy(model, chat, out, report)
    return report


def save_policy(model: PreTrainedModel, chat: ChatFormat, out: Path, report: dict) -> None:
    """Write a policy folder (safetensors, tokenizer, how it was made); replaces `out` only once complete."""
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    chat.tokenizer.save_pretrained(fresh)
    (fresh / "warmstart.json").write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
