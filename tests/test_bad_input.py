"""Corrupt checkpoints and empty data: a clear error before work starts."""

import json
import shutil

import pytest
import torch
from datasets import Dataset

from itpo_lib.config import ITPOConfig
from itpo_lib.errors import ItpoError
from itpo_lib.files import make_folder, make_room
from itpo_lib.models import check_policy, load_policy, shipped_checkpoint
from itpo_lib.run import RunSettings
from itpo_lib.tasks.math_tiny import TinyMathTutoring
from itpo_lib.trainer import ITPOTrainer
from itpo_lib.trl_rows import goal_dataset


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(shipped_checkpoint("math_tutoring"), tmp_path / "policy")


def test_cut_off_weights_are_named(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ItpoError, match=r"corrupt checkpoint.*model\.safetensors"):
        load_policy(str(checkpoint))


def test_broken_config_is_named(checkpoint):
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ItpoError, match=r"corrupt checkpoint.*config\.json"):
        load_policy(str(checkpoint))


def test_pickled_weights_are_not_loaded(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(ItpoError, match="safetensors"):
        load_policy(str(checkpoint))


def test_a_missing_warm_start_says_how_to_make_one():
    with pytest.raises(ItpoError, match="itpo warmstart --task math_tutoring --difficulty easy"):
        load_policy("tiny", "math_tutoring", difficulty="easy")


def fewer_rows(folder):
    model, chat = load_policy(str(folder))
    model.resize_token_embeddings(len(chat.tokenizer) - 5)
    model.config.pad_token_id = None
    model.save_pretrained(folder)


def without_end(folder):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in settings.items() if k not in ("pad_token", "eos_token")}))


def without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def as_run(folder):
    (folder / "config.json").rename(folder / "settings.json")


@pytest.mark.parametrize(
    "damage, says",
    [
        (fewer_rows, "has ids up to .* and the model's embedding has"),
        (without_end, "neither a pad_token nor an eos_token"),
        (without_tokenizer, "holds no tokenizer"),
        (as_run, "it is a run, whose policy is .*policy/policy"),
    ],
)
def test_a_model_that_could_not_play_is_refused(checkpoint, damage, says):
    damage(checkpoint)
    with pytest.raises(ItpoError, match=says):
        load_policy(str(checkpoint))


def test_weights_that_are_no_numbers_are_named():
    model, _ = load_policy("tiny")
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ItpoError, match="weights hold NaN or infinity"):
        check_policy(model, None)


@pytest.mark.parametrize(
    "text, says",
    [
        ("[]", r"corrupt run: settings\.json"),
        ("{", r"corrupt run: settings\.json"),
        ('{"steps": 3}', r"corrupt run: settings\.json"),
        ('{"task": 3}', r"settings\.json: task must be str, got 3"),
        ('{"seed": "x"}', r"settings\.json: seed must be int, got 'x'"),
        ('{"device": "cuda"}', r"settings\.json: unknown device 'cuda'.*auto, cpu"),
    ],
)
def test_a_corrupt_run_is_named(tmp_path, text, says):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ItpoError, match=says):
        RunSettings.load(tmp_path)


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("seed", -1, "seed must be >= 0, got -1"),
        ("seed", 2**32, "seed must be <= 4294967295"),
        ("device", "gpu", "unknown device 'gpu': choose one of auto, cpu"),
        ("scale", "tinny", "Did you mean 'tiny'"),
        ("threads", 0, "threads must be >= 1"),
        ("lora", "yes", "lora must be bool, got 'yes'"),
    ],
)
def test_a_setting_that_no_run_could_mean_is_refused(name, value, says):
    with pytest.raises(ItpoError, match=says):
        RunSettings(**{name: value})


NAN, INFINITY = float("nan"), float("inf")
NONSENSE = {
    "beta": (NAN, -1.0), "length_penalty": (NAN, -5.0), "credit_temperature": (1e-320, 0.0), "temperature": (INFINITY, 0),
    "prm_clip": (0.0, -1.0), "prm_max_grad_norm": (0.0, -1.0), "prm_mini_batch_size": (0, -3), "prm_epochs": (0, -1),
    "critic_epochs": (0,), "micro_batch_size": (0,), "max_steps": (0, -2), "learning_rate": (NAN, -1.0),
    "num_iterations": (0,), "per_device_train_batch_size": (0,), "num_generations": (1,), "prm_beta": (1e-320,),
    "max_completion_length": (10,), "gamma": (NAN, 2.0), "prm_balanced": ("no",),
    "learning_rate ": ("abc",),
}  # fmt: skip


@pytest.mark.parametrize("name, value", [(name, value) for name, values in NONSENSE.items() for value in values])
def test_nonsense_is_refused_before_work(tmp_path, name, value):
    name = name.strip()
    with pytest.raises(ItpoError, match=rf"{name} .*{value}"):
        ITPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(ItpoError, match=f"cannot write to {folder}"):
            make_folder(folder)
    with pytest.raises(ItpoError, match="it is a folder; name a file"):
        make_room(tmp_path)
    make_room(tmp_path / "new" / "x.json")
    assert (tmp_path / "new").is_dir()


class Empty(TinyMathTutoring):
    def size(self, split):
        return 0


def test_empty_data_is_refused(tmp_path):
    with pytest.raises(ItpoError, match="dataset is empty"):
        goal_dataset(Empty(), 8)
    model, chat = load_policy("tiny")
    args = ITPOConfig(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    nothing = Dataset.from_dict({"prompt": [], "goal_index": []})
    with pytest.raises(ItpoError, match="train_dataset is empty"):
        ITPOTrainer(model, args, TinyMathTutoring(), chat, train_dataset=nothing)


class Shifted(TinyMathTutoring):
    def goal(self, index, split="train"):
        return super().goal(index + 1, split)


class Gone(TinyMathTutoring):
    def goal(self, index, split="train"):
        raise KeyError("no such row")


@pytest.mark.parametrize(
    "task, says",
    [
        (Shifted, r"goal\(0, 'train'\) says that it is goal 1 of 'train'"),
        (Gone, "goal 0 of 'train': KeyError: 'no such row'"),
    ],
)
def test_a_goal_that_is_another_one_is_refused(task, says):
    with pytest.raises(ItpoError, match=says):
        goal_dataset(task(), 4)
