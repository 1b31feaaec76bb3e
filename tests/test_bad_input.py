"""Corrupt checkpoints and empty data: a clear error before work starts."""

import shutil

import pytest
from datasets import Dataset

from itpo_lib.config import ITPOConfig
from itpo_lib.errors import ItpoError
from itpo_lib.models import load_policy, shipped_checkpoint
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


def test_a_corrupt_run_is_named(tmp_path):
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(ItpoError, match=r"settings\.json"):
        RunSettings.load(tmp_path)


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
