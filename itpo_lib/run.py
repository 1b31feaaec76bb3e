"""One training run from settings to report, resumable: what the command line and the notebooks call."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checking import check_bounds, check_types
from .errors import ItpoError, require, unknown_name
from .files import make_folder, write_whole
from .presets import ADAPTERS, DEVICES, EVAL_DIALOGUES, PRESETS
from .tasks import Task, ceiling, get_task

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from .trainer import ITPOTrainer

BOUNDS = {">= 0": ("seed",), "<= 4294967295": ("seed",), ">= 1": ("eval_dialogues", "threads")}  # seeds: NumPy's


@dataclass
class RunSettings:
    """What defines a run. `options` overrides fields of `ITPOConfig`; `task_options` go to the task."""

    task: str = "math_tutoring"
    scale: str = "tiny"
    model: str | None = None  # default: the shipped warm start (tiny), SmolLM2 (text), Qwen2.5-3B-Instruct (hub)
    out: str = "runs/latest"
    seed: int = 0
    device: str = "auto"
    lora: bool = False
    eval_dialogues: int | None = None  # default: 256 tiny, 4 text, 64 hub
    threads: int | None = None  # default: 1 for tiny models, torch's choice otherwise
    options: dict[str, Any] = field(default_factory=dict)
    task_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(RunSettings, vars(self))
        for name, choices in (("scale", PRESETS), ("device", DEVICES)):
            if getattr(self, name) not in choices:
                raise unknown_name(name, getattr(self, name), choices)
        check_bounds(self, BOUNDS)

    @property
    def n_eval(self) -> int:
        """Dialogues of one evaluation."""
        return self.eval_dialogues or EVAL_DIALOGUES[self.scale]

    def save(self) -> None:
        """Write `settings.json` into the run's folder."""
        make_folder(Path(self.out))
        write_whole(Path(self.out) / "settings.json", json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, run: Path) -> RunSettings:
        """The settings of an earlier run."""
        path = run / "settings.json"
        require(path.exists(), f"{run} is no run: settings.json is missing")
        try:
            return cls(**{**json.loads(path.read_text()), "out": str(run)})
        except ItpoError as error:
            raise ItpoError(f"{path}: {error}") from error
        except (ValueError, TypeError) as error:
            raise ItpoError(f"corrupt run: {path.name} cannot be read ({error})") from error


@dataclass
class RunResult:
    """A finished (or stopped) run: evaluations before and after, and the trainer with its models."""

    settings: RunSettings
    before: dict[str, Any]
    after: dict[str, Any] | None
    ceiling: float | None
    trainer: ITPOTrainer
    stopped: bool = False


DEFAULT_MODELS = {"tiny": "tiny", "text": "smollm2", "hub": "Qwen/Qwen2.5-3B-Instruct"}


def quiet_libraries() -> None:
    """Keep the libraries' notices out of notebooks and terminals; our own errors stay."""
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    for message in (".*pin_memory.*", ".*gradient_checkpointing.*", ".*activation_checkpointing.*"):
        warnings.filterwarnings("ignore", message=message)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What TRL and transformers refuse (batch sizes, precision, strategies, packages that lack) as our error."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise ItpoError(str(error)) from error


def build_trainer(settings: RunSettings, callbacks: Sequence[TrainerCallback] = ()) -> ITPOTrainer:
    """The trainer of a run; every setting is checked before any work starts."""
    settings = replace(settings)  # checked once more: its fields may have been set since
    if settings.threads or settings.scale == "tiny":
        torch.set_num_threads(settings.threads or 1)
    quiet_libraries()
    from .config import ITPOConfig, check_options  # imports TRL, which takes seconds
    from .models import load_policy
    from .trainer import ITPOTrainer

    task = get_task(settings.task, settings.scale, **settings.task_options)
    check_options(settings.options)
    gpu = torch.accelerator.is_available() and settings.device != "cpu"
    where = {"output_dir": settings.out, "seed": settings.seed, "use_cpu": not gpu}
    common = {"disable_tqdm": True, "save_steps": 20, "dataloader_pin_memory": gpu and torch.cuda.is_available()}
    with refusals():
        args = ITPOConfig(**{**common, **PRESETS[settings.scale], **settings.options, **where})
    make_folder(Path(settings.out))
    name = settings.model or DEFAULT_MODELS[settings.scale]
    difficulty = getattr(task, "difficulty", "normal")
    dtype = torch.bfloat16 if args.bf16 and settings.lora else torch.float32
    model, chat = load_policy(name, settings.task, dtype=dtype, device=args.device, difficulty=difficulty)
    adapters = None
    if settings.lora:
        from peft import LoraConfig

        adapters = LoraConfig(**ADAPTERS)
    with refusals():
        trainer = ITPOTrainer(model, args, task, chat, callbacks=list(callbacks), peft_config=adapters)
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def train(settings: RunSettings, resume: bool = False, callbacks: Sequence[TrainerCallback] = ()) -> RunResult:
    """Evaluate, train, evaluate again, and write the run's folder.

    Writes settings.json, metrics.jsonl, evaluation.json, dialogues.json, curves.png, report.html and
    the policy. `resume` continues from the newest complete checkpoint, exactly.
    """
    from .callbacks import GracefulStop, MetricsFile, OnBegin, ProgressBar
    from .resuming import COMPLETE, check_resumable, latest_checkpoint, step_of

    out = Path(settings.out)
    metrics = out / "metrics.jsonl"
    held = metrics.exists() or latest_checkpoint(out) is not None
    require(resume or not held, f"{out} already holds a run: resume it, or choose another folder")
    stop = GracefulStop()
    trainer = build_trainer(settings, [MetricsFile(metrics), ProgressBar(), stop, OnBegin(settings.save), *callbacks])
    if not resume:  # else they wait until the checkpoint is loaded: what it refuses must not stay
        settings.save()
    began = time.perf_counter()
    with trainer.accelerator.main_process_first():  # the others read what it wrote
        keep = resume or not trainer.accelerator.is_main_process
        before = _evaluate_before(settings, trainer, keep)
    checkpoint = latest_checkpoint(out) if resume else None
    if checkpoint is not None:
        check_resumable(checkpoint / COMPLETE, trainer.args)  # the trainer's check comes after DeepSpeed has loaded
    if checkpoint is not None and 0 < trainer.args.max_steps <= step_of(checkpoint):
        trainer.restore(checkpoint)  # all steps are done: what is left is the evaluation
    else:
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            stop.release()
    require(trainer.state.global_step > 0, "the run took no step: look at max_steps, num_train_epochs and batch sizes")
    result = RunResult(settings, before, None, task_ceiling(trainer.task), trainer, stopped=stop.asked)
    if not stop.asked and trainer.accelerator.is_main_process:
        finish(result, time.perf_counter() - began)
    return result


def task_ceiling(task: Task) -> float | None:
    """The scripted expert's success, where the task has an expert."""
    if task.size("validation") == 0 or task.expert(task.goal(0, "validation"), 0) is None:
        return None
    return ceiling(task, n=500)


def measure(settings: RunSettings, trainer: ITPOTrainer) -> dict[str, Any]:
    """The evaluation of the policy as it stands, and some of its dialogues."""
    from .evaluate import evaluate

    policy = trainer.accelerator.unwrap_model(trainer.model).eval()
    summary, dialogues = evaluate(policy, trainer.chat, trainer.task, settings.n_eval)
    return {"summary": summary.to_dict(), "dialogues": [d.to_dict() for d in dialogues[:8]]}


def _evaluate_before(settings: RunSettings, trainer: ITPOTrainer, keep: bool) -> dict[str, Any]:
    """The starting policy's evaluation, made once per run; a resumed run keeps it, if it is of the same policy."""
    path = Path(settings.out) / "before.json"
    of = {"n": settings.n_eval, **{k: getattr(settings, k) for k in ("task", "scale", "model", "task_options")}}
    of = json.loads(json.dumps(of))  # as it will be read: a tuple is a list by then
    if not (keep and path.exists()):
        write_whole(path, json.dumps({**measure(settings, trainer), "of": of}))
    try:
        before = json.loads(path.read_text())
        found = before["summary"] and before["dialogues"] and before.get("of", of)
    except (ValueError, KeyError, TypeError) as error:
        raise ItpoError(f"corrupt run: {path} cannot be read ({error!r}); remove it, and it is made again") from error
    require(found == of, f"{path} is of another run ({found}); remove it, and it is made again")
    return before


def finish(result: RunResult, seconds: float) -> None:
    """Evaluate the trained policy and write everything that a reader of the run wants."""
    from .callbacks import read_metrics
    from .out_of_memory import peak_gib
    from .plots import learning_curves, save_figure
    from .report import write_report

    trainer, out = result.trainer, Path(result.settings.out)
    result.after = measure(result.settings, trainer)
    evaluation = {"before": result.before["summary"], "after": result.after["summary"], "ceiling": result.ceiling}
    used = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "peak_gib": round(peak_gib(), 2),
    }
    (out / "evaluation.json").write_text(json.dumps({**evaluation, **used}, indent=2) + "\n")
    played = {"before": result.before["dialogues"], "after": result.after["dialogues"]}
    (out / "dialogues.json").write_text(json.dumps(played, indent=1) + "\n")
    trainer.save_model(str(out / "policy"))
    save_figure(learning_curves(read_metrics(out / "metrics.jsonl"), result.ceiling), out / "curves.png")
    write_report(result, seconds)
