"""The warm start at text scale: a pre-trained chat model imitates scripted dialogues, through TRL's SFTTrainer.

As it comes, a small chat model does not end a dialogue in the form that a task asks for, so every outcome is 0 and
reinforcement learning has nothing to compare. Here it learns the form, and to be right once informed. It also learns
the novice's habit of guessing early: that is what reinforcement learning is left to change.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from .callbacks import ProgressBar
from .chat import ChatFormat
from .dialogue import Dialogue
from .errors import ItpoError, require, unknown_name
from .evaluate import Evaluation, evaluate
from .logprobs import backbone, lm_logits
from .models import load_policy
from .presets import DEVICES
from .run import quiet_libraries
from .tasks import Task, get_task, play_scripted
from .warmstart import save_policy

MICRO_BATCH = 8  # dialogues of one pass: more cost memory and gain no speed
IGNORED = -100  # the label of a token that the loss leaves out, in PyTorch and TRL alike


@dataclass(frozen=True)
class Mixture:
    """What is imitated. `revealed`: share of dialogues whose opening hides nothing; they teach to finish well.
    `expert`: share of dialogues with the expert, who asks until informed; in the others the novice speaks."""

    revealed: float = 0.5
    expert: float = 0.2

    def __post_init__(self) -> None:
        for name in ("revealed", "expert"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"the mixture's share {name!r} must lie in [0, 1], got {value!r}")


# The writing expert hands over the article itself, which nobody can know from the wishes: imitating it teaches to invent.
MIXTURES = {"document_writing": Mixture(expert=0.0)}


@dataclass(frozen=True)
class WarmStart:
    """Settings of a warm start. `steps` optimiser steps on `batch_size` fresh dialogues each."""

    task: str = "math_tutoring"
    model: str = "smollm2"
    difficulty: str | None = None
    steps: int = 120
    batch_size: int = 16
    learning_rate: float = 3e-4
    layers: int | None = 15  # the uppermost so many learn, half of SmolLM2's, which is cheaper; None: all weights
    seed: int = 0
    device: str = "auto"
    mixture: Mixture | None = None  # default: the task's own in MIXTURES, else Mixture()
    eval_dialogues: int = 64

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "layers", "eval_dialogues"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be >= 1, got {value}")
        require(self.learning_rate > 0, f"learning_rate must be > 0, got {self.learning_rate}")
        if self.device not in DEVICES:
            raise unknown_name("device", self.device, DEVICES)

    @property
    def imitated(self) -> Mixture:
        """The mixture in use."""
        return self.mixture or MIXTURES.get(self.task, Mixture())

    def world(self, revealed: bool = False) -> Task:
        """The task to imitate, or its variant that hides nothing."""
        options: dict[str, Any] = {} if self.difficulty is None else {"difficulty": self.difficulty}
        return get_task(self.task, "text", **options, **({"revealed": True} if revealed else {}))


def scripted_dialogues(settings: WarmStart, chat: ChatFormat) -> list[Dialogue]:
    """All dialogues of a warm start, tokenised; dialogue i is that of goal i with user and scripts of seed i."""
    n = settings.steps * settings.batch_size
    mixture = settings.imitated
    hiding, revealed = settings.world(), settings.world(revealed=True) if mixture.revealed else None
    dialogues = []
    for index, (opens, asks) in enumerate(np.random.default_rng([9, settings.seed]).random((n, 2)), settings.seed * n):
        world = revealed if revealed is not None and opens < mixture.revealed else hiding
        goal, script = world.goal(index), world.expert if asks < mixture.expert else world.novice
        assistant = script(goal, seed=index)
        if assistant is None:
            raise ItpoError(f"task {settings.task!r} (text) has no scripted {script.__name__} to imitate")
        dialogues.append(chat.dialogue(play_scripted(world, goal, assistant, user_seed=index)[0]))
    return dialogues


def training_row(dialogue: Dialogue) -> dict[str, list[int]]:
    """Token ids as they are in a rollout; labels on the assistant's own tokens alone, its ends of turn included."""
    pairs = zip(dialogue.completion_ids, dialogue.turn_ids, strict=True)
    labels = [token if turn > 0 else IGNORED for token, turn in pairs]
    return {
        "input_ids": dialogue.prompt_ids + dialogue.completion_ids,
        "labels": [IGNORED] * len(dialogue.prompt_ids) + labels,
    }


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 pays: on GPUs that have it, and on CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def choose_layers(model: PreTrainedModel, layers: int | None) -> None:
    """Let the uppermost `layers` learn (and the last norm), or all weights. The backward pass ends where learning ends."""
    model.requires_grad_(layers is None)
    if layers is not None:
        decoder = backbone(model)
        blocks = getattr(decoder, "layers", None)
        if blocks is None:
            raise ItpoError(f"layers={layers}: {type(model).__name__} does not list its layers; use layers=None")
        for part in (*blocks[-layers:], getattr(decoder, "norm", None)):
            if part is not None:
                part.requires_grad_(True)


class LightHeadSFT(SFTTrainer):
    """TRL's trainer with the same loss through our own LM head, for one process on a CPU.

    TRL's fused head is made for GPUs. On a CPU it takes more time than the rest of the model.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean negative log-likelihood of the labelled tokens."""
        policy, labels = self.accelerator.unwrap_model(model), inputs["labels"][:, 1:]
        with self.accelerator.autocast():
            states = backbone(policy)(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state[:, :-1]
            logits = lm_logits(policy, states[labels != IGNORED])  # (N, V), N labelled tokens
        loss = torch.nn.functional.cross_entropy(logits, labels[labels != IGNORED], reduction="sum")
        return loss / (num_items_in_batch or len(logits))


def sft_trainer(model: PreTrainedModel, chat: ChatFormat, settings: WarmStart, folder: str) -> SFTTrainer:
    """TRL's trainer on rows that are tokens already: it renders and tokenises nothing.

    Batches hold dialogues of like length. On a CPU the attention is the plain one: the backward pass of
    the fused kernel is slower there.
    """
    on_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    micro = math.gcd(settings.batch_size, MICRO_BATCH)
    choose_layers(model, settings.layers)
    if on_cpu:
        model.set_attn_implementation("eager")
    args = SFTConfig(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, settings.steps // 10),
        weight_decay=0.01,
        max_length=None,
        packing=False,
        train_sampling_strategy="group_by_length",
        bf16=fast_bf16(torch.device("cpu" if on_cpu else "cuda")),
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=settings.seed,
    )
    rows = Dataset.from_list([training_row(d) for d in scripted_dialogues(settings, chat)])
    make = LightHeadSFT if on_cpu else SFTTrainer
    trainer = make(
        model, args, train_dataset=rows, processing_class=chat.tokenizer, callbacks=[ProgressBar(loss=".3f")]
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def imitate(settings: WarmStart, out: Path) -> dict[str, Any]:
    """Fine-tune on scripted dialogues and save the policy in `out`; returns the report that lies there too.

    Short enough to be run again rather than resumed: `out` appears only when it is complete.
    """
    quiet_libraries()
    settings.world()  # as in `measure`
    model, chat = load_policy(settings.model, settings.task)
    attention = model.config._attn_implementation
    with tempfile.TemporaryDirectory() as folder:
        trainer, began = sft_trainer(model, chat, settings, folder), time.process_time()
        trainer.train()
    seconds = time.process_time() - began
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    model.eval().requires_grad_(True).set_attn_implementation(attention)
    report = {
        **asdict(settings),
        "scale": "text",
        "mixture": asdict(settings.imitated),
        "parameters": model.num_parameters(),
        "first_loss": round(losses[0], 4),
        "final_loss": round(float(np.mean(losses[-5:])), 4),
        "cpu_seconds": round(seconds, 1),
    }
    save_policy(model, chat, out, report)
    return report


def warmstart_text(settings: WarmStart, out: Path) -> dict[str, Any]:
    """`imitate`, with evaluations before, after, and after with openings that hide nothing ("informed")."""
    quiet_libraries()
    before = measure(settings, settings.model)[0]
    report = imitate(settings, out)
    after, informed = (measure(settings, str(out), revealed)[0] for revealed in (False, True))
    report |= {"before": before.to_dict(), "after": after.to_dict(), "informed": informed.to_dict()}
    (out / "warmstart.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def measure(settings: WarmStart, model_name: str, revealed: bool = False) -> tuple[Evaluation, list[Dialogue]]:
    """Sampled validation dialogues of a model, in bf16 where that is fast."""
    world = settings.world(revealed)  # an unknown task is refused before a model is loaded
    device = torch.device("cpu" if settings.device == "cpu" or not torch.cuda.is_available() else "cuda")
    dtype = torch.bfloat16 if fast_bf16(device) else torch.float32
    model, chat = load_policy(model_name, settings.task, dtype=dtype, device=device)
    return evaluate(model, chat, world, settings.eval_dialogues, seed=settings.seed)
