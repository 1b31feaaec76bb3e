"""Settings that a run starts from, per scale. Anything here can be overridden on the command line."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "max_steps": 96,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "num_generations": 4,
    "num_iterations": 2,
    "learning_rate": 5e-4,  # chosen by benchmarks/tune.py
    "lr_scheduler_type": "linear",
    "beta": 0.02,
    "credit_temperature": 2.0,
    "prm_beta": 0.05,
    "prm_learning_rate": 1e-3,
    "micro_batch_size": 16,
}
TEXT: dict[str, Any] = {  # one prompt a step, for a CPU; on a GPU: --set gradient_accumulation_steps=16
    "max_steps": 100,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_generations": 4,
    "learning_rate": 1e-5,
    "beta": 1e-3,
    "prm_beta": 0.05,
    "prm_learning_rate": 1e-5,
    "micro_batch_size": 4,
}
HUB: dict[str, Any] = {  # the paper's released scripts (RLOO): 16 prompts x 8 samples
    "max_steps": 500,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 32,
    "num_generations": 8,
    "learning_rate": 1e-6,
    "prm_beta": 0.01,
    "prm_learning_rate": 1e-6,
    "prm_mini_batch_size": 4,
    "beta": 1e-3,
    "micro_batch_size": 4,
    "gradient_checkpointing": True,
}
DEVICES = ("auto", "cpu")
EVAL_DIALOGUES = {"tiny": 256, "text": 4, "hub": 64}
PRESETS = {"tiny": TINY, "text": TEXT, "hub": HUB}
ADAPTERS: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}
