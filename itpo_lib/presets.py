"""Settings that a run starts from, per scale. Anything here can be overridden on the command line."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "max_steps": 50,
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "learning_rate": 5e-4,
    "prm_beta": 0.05,
    "prm_learning_rate": 1e-3,
    "micro_batch_size": 16,
}
TEXT: dict[str, Any] = {
    "max_steps": 100,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 8,
    "num_generations": 8,
    "learning_rate": 5e-6,
    "prm_beta": 0.05,
    "prm_learning_rate": 5e-6,
    "micro_batch_size": 8,
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
PRESETS = {"tiny": TINY, "text": TEXT, "hub": HUB}
ADAPTERS: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}
