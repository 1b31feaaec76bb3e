"""`ITPOTrainer` against the oracle loop, its metrics, its errors, and exact resume after SIGKILL."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import reference_run
from transformers import TrainerCallback

from itpo_lib.config import ITPOConfig, check_options
from itpo_lib.dialogue import collate
from itpo_lib.errors import DialogueFailed, ItpoError
from itpo_lib.learning import LearningRule
from itpo_lib.logprobs import backbone, lm_logits, token_logprobs
from itpo_lib.models import check_policy, load_policy, shipped_checkpoint
from itpo_lib.resuming import COMPLETE, check_resumable, latest_checkpoint
from itpo_lib.run import RunSettings, build_trainer, train
from itpo_lib.tasks import get_task, register_task
from itpo_lib.tasks.math_tiny import TinyMathTutoring
from itpo_lib.trainer import ITPOTrainer

SMALL = {
    "max_steps": 2, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 4,
    "num_iterations": 1, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "beta": 0.0,
}  # fmt: skip


def settings(tmp_path, task_options=None, **options):
    return RunSettings(
        out=str(tmp_path / "run"),
        device="cpu",
        eval_dialogues=4,
        options={**SMALL, "save_strategy": "no", **options},
        task_options=task_options or {},
    )


class Recorder:
    """Wraps a trainer so that each batch's goals, seeds, advantages and loss can be compared."""

    def __init__(self, trainer):
        self.goals, self.seeds, self.advantages, self.losses, self.completions = [], [], [], [], []
        generate, loss = trainer._generate_and_score_completions, trainer._compute_loss

        def recording_generate(inputs):
            output = generate(inputs)
            self.goals.append([row["goal_index"] for row in inputs])
            self.seeds.append([episode.seed for episode in trainer._batch_episodes])
            self.advantages.append(output["advantages"].clone())
            self.completions.append(output["completion_ids"].clone())
            return output

        def recording_loss(model, inputs):
            value = loss(model, inputs)
            self.losses.append(value.item())
            return value

        trainer._generate_and_score_completions, trainer._compute_loss = recording_generate, recording_loss


@pytest.mark.parametrize("whiten, slices", [(True, 1), (False, 1), (True, 4)])
def test_trainer_agrees_with_the_plain_loop(tmp_path, whiten, slices):
    """In float64, since Adam turns the rounding noise of a vanishing gradient into a full step."""
    model, chat = load_policy("tiny", dtype=torch.float64)
    plain = copy.deepcopy(model)
    args = ITPOConfig(
        output_dir=str(tmp_path), use_cpu=True, save_strategy="no", disable_tqdm=True, whiten_advantages=whiten,
        baseline="outcome",
        **{**SMALL, "max_steps": 3, "per_device_train_batch_size": 8 // slices, "gradient_accumulation_steps": slices},
    )  # fmt: skip
    trainer = ITPOTrainer(model, args, get_task("math_tutoring"), chat)
    record = Recorder(trainer)
    trainer.train()
    steps = reference_run(
        plain, chat, trainer.task, record.goals, seeds=record.seeds, group=args.num_generations, beta=args.prm_beta,
        eta=args.credit_temperature, prm_lr=args.prm_learning_rate, lr=args.learning_rate, whiten=whiten,
    )  # fmt: skip
    losses = [sum(record.losses[i : i + slices]) for i in range(0, 3 * slices, slices)]
    for advantages, loss, (expected_advantages, expected_loss) in zip(record.advantages, losses, steps, strict=True):
        assert advantages.abs().max() > 0.1, "a batch without signal shows nothing"
        torch.testing.assert_close(advantages.double(), expected_advantages.double(), atol=1e-5, rtol=1e-5)
        assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert whiten or abs(record.losses[0]) > 1e-3
    for trained, expected in zip(trainer.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, atol=1e-4, rtol=0)  # the updates are of size 3e-3


def test_kl_goes_to_one_place(tmp_path):
    in_loss = build_trainer(settings(tmp_path / "a", beta=0.1, kl_in="loss"))
    in_loss.train()
    assert any("kl" in row for row in in_loss.state.log_history)
    in_reward = build_trainer(settings(tmp_path / "b", beta=0.1, kl_in="reward"))
    in_reward.train()
    assert not any("kl" in row for row in in_reward.state.log_history)
    same = all(torch.equal(a, b) for a, b in zip(in_loss.model.parameters(), in_reward.model.parameters(), strict=True))
    assert not same


def test_adapters_train_on_one_frozen_base(tmp_path):
    run = settings(tmp_path)
    run.lora = True
    trainer = build_trainer(run)
    base = {n: p.clone() for n, p in trainer.model.named_parameters() if "lora" not in n}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if "lora_B" in n and p.abs().max() > 0}
    assert any(".default." in n for n in moved) and any(".prm." in n for n in moved)
    assert all(torch.equal(base[n], p) for n, p in trainer.model.named_parameters() if n in base)


def test_the_prm_does_not_enter_the_gradient_clip_of_a_policy_with_adapters(tmp_path):
    """Both live in one model, and the clip looks at all of its gradients: the PRM must leave none behind."""
    run = settings(tmp_path, max_steps=1)
    run.lora = True
    trainer = build_trainer(run)
    trainer.task.outcome = lambda goal, messages: 1.0  # nothing to compare: the policy itself has no gradient
    trainer.train()
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert norms == [pytest.approx(0.0, abs=1e-6)]


@pytest.mark.parametrize(
    "options, says",
    [
        ({"credit": "norm-itpo"}, "norm_itpo"),
        ({"estimator": "reinforce"}, "rloo"),
        ({"baseline": "mean"}, "outcome"),
        ({"num_generations": 1}, "at least 2|>= 2"),
        ({"per_device_train_batch_size": 6}, "divisible"),
        ({"num_iterations": 2, "save_strategy": "steps", "save_steps": 25}, "multiple of 2"),
        ({"credit": "itpo", "baseline": "outcome"}, "shares"),
        ({"estimator": "ppo", "credit": "itpo", "baseline": "credit_weighted"}, "shares"),
        ({"estimator": "ppo", "baseline": "official"}, "auto, turn, credit_weighted"),
        ({"estimator": "grpo", "baseline": "official"}, "takes baseline auto, turn, outcome"),
        ({"top_p": 0.9}, "top_p"),
        ({"gamma": 2.0}, "gamma"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite and >= 0, got inf"),
        ({"critic_clip": float("nan")}, "critic_clip must be .*got nan"),
        ({"save_strategy": "steps", "save_steps": 0}, "save_steps must be > 0, got 0"),
        ({"credit": "value", "gamma": 0.9}, "gamma must be 1, got 0.9"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_bad_settings_are_refused_before_work(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        build_trainer(settings(tmp_path, **options))


def with_dropout(model):
    model.config.attention_dropout = 0.1
    return model, None


def with_dropout_in_layers(model):
    model.config.resid_pdrop = 0.1
    return model, None


def with_adapters(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])), None


def with_dropout_in_adapters(model):
    from peft import LoraConfig

    return model, LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.05)


def with_learned_positions(model):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": model.config.vocab_size, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)), None


@pytest.mark.parametrize(
    "change, says",
    [
        (with_dropout, "attention_dropout=0.1: with dropout the loss sees another policy .* set it to 0$"),
        (with_dropout_in_layers, r"resid_pdrop=0\.1: .* or disable_dropout=true"),
        (with_dropout_in_adapters, "lora_dropout=0.05: with dropout"),
        (with_adapters, "already has adapters.*merge"),
        (with_learned_positions, "gpt2 has learned positions"),
    ],
)
def test_a_policy_that_the_loss_would_see_otherwise_is_refused(tmp_path, change, says):
    model, chat = load_policy("tiny")
    model, peft_config = change(model)
    with pytest.raises(ItpoError, match=says):
        ITPOTrainer(
            model, ITPOConfig(output_dir=str(tmp_path), use_cpu=True, **SMALL), get_task("math_tutoring"), chat,
            peft_config=peft_config,
        )  # fmt: skip


def test_dropout_in_layers_can_be_left_to_trl(tmp_path):
    model, _ = with_dropout_in_layers(load_policy("tiny")[0])
    check_policy(model, None, disable_dropout=True)
    model.config.attention_dropout = 0.1
    with pytest.raises(ItpoError, match=r"^attention_dropout=0\.1: "):
        check_policy(model, None, disable_dropout=True)


def test_no_clip_can_be_said_and_numpys_numbers_are_numbers(tmp_path):
    endless = dict.fromkeys(("prm_max_grad_norm", "critic_clip", "prm_clip", "max_grad_norm"), float("inf"))
    common = {"output_dir": str(tmp_path), "use_cpu": True}
    assert ITPOConfig(**common, **endless).critic_clip == float("inf")
    numbers = {"max_steps": np.int64(3), "prm_balanced": np.bool_(True), "max_grad_norm": None}
    check_options(numbers)
    assert ITPOConfig(**common, **numbers, save_strategy="no", save_steps=0).max_steps == 3


@pytest.mark.parametrize("lora", [False, True])
def test_resuming_a_finished_run_only_evaluates_it(tmp_path, lora):
    """Cut off in the last evaluation: the policy is the checkpoint's, and no step is taken beyond the last."""
    run = settings(tmp_path, save_strategy="steps", save_steps=2)
    run.lora = lora
    train(run)
    folder = tmp_path / "run"
    (weights,) = (folder / "policy").glob("*model.safetensors")
    trained, names = weights.read_bytes(), sorted(path.name for path in folder.iterdir())
    shutil.rmtree(folder / "policy")
    (folder / "report.html").unlink()
    again = train(run, resume=True)
    assert weights.read_bytes() == trained and sorted(path.name for path in folder.iterdir()) == names
    assert again.trainer.state.global_step == 2 and not any("checkpoint-3" in name for name in names)


def test_an_evaluation_knows_its_run_whatever_the_tasks_options_are_made_of(tmp_path):
    """A tuple, and a dict by numbers, are other things once they were JSON."""

    class Optioned(TinyMathTutoring):
        name = "optioned"

        def __init__(self, pair=(0, 0), by=None, **options):
            super().__init__(**options)

    register_task(Optioned)
    run = settings(tmp_path, task_options={"pair": (1, 2), "by": {1: 2}}, max_steps=1)
    run.task, run.model = "optioned", str(shipped_checkpoint("math_tutoring"))
    assert train(run).trainer.state.global_step == 1


def test_the_prm_and_the_critic_answer_with_their_own_weights(tmp_path):
    """TRL ties the policy's `forward` to the policy; a copy that kept it would speak with the policy's voice."""
    trainer = build_trainer(settings(tmp_path, max_steps=1, estimator="ppo", learning_rate=0.1))
    trainer.train()
    ids = torch.arange(6)[None]
    for model in (trainer.prm.model, trainer.critic.model.model):
        own = lm_logits(model, backbone(model)(ids).last_hidden_state)
        assert torch.allclose(model(ids).logits, own, atol=1e-4)
        assert (own - trainer.model(ids).logits).abs().max() > 0.1


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a device to choose")
def test_without_an_accelerator_bf16_trains_on_the_cpu(tmp_path):
    """The device is chosen by itself: nobody has to say that it is the CPU."""
    run = settings(tmp_path, max_steps=1, bf16=True)
    run.device, run.lora = "auto", True
    trainer = build_trainer(run)
    trainer.train()
    assert trainer.args.use_cpu and trainer.state.global_step == 1


def test_bad_task_names_are_refused(tmp_path):
    with pytest.raises(ItpoError, match="math_tutoring"):
        build_trainer(RunSettings(task="maths", out=str(tmp_path)))
    with pytest.raises(ItpoError, match="tiny"):
        get_task("math_tutoring", "huge")
    with pytest.raises(ItpoError, match=r"safetensors|missing|cannot load"):
        build_trainer(RunSettings(model=str(tmp_path / "nothing"), out=str(tmp_path)))


class Flaky(TinyMathTutoring):
    """From the third batch on, its outcomes are NaN or its judge fails."""

    name, mode, played = "flaky", "nan", 0

    def outcome(self, goal, messages):
        type(self).played += 1
        if self.played > 8 * 2 + 8:  # one evaluation would count too: none is made here
            if self.mode == "nan":
                return float("nan")
            if self.mode == "breaks":
                raise KeyError("no such answer")
            raise DialogueFailed("the judge did not answer")
        return super().outcome(goal, messages)


@pytest.mark.parametrize(
    "mode, says",
    [
        ("nan", "outcome nan for goal"),
        ("fails", "max_failed_share"),
        ("breaks", r"task 'flaky' \(tiny\), goal \d+ of 'train', user seed \d+: KeyError: 'no such answer'"),
    ],
)
def test_a_task_that_breaks_in_mid_run_loses_nothing(tmp_path, mode, says):
    register_task(Flaky)
    Flaky.mode, Flaky.played = mode, 0
    run = settings(tmp_path, max_steps=8, save_strategy="steps", save_steps=100)
    run.task, run.model = "flaky", str(shipped_checkpoint("math_tutoring"))
    trainer = build_trainer(run)
    with pytest.raises(ItpoError, match=says) as caught:
        trainer.train()
    assert "saved at step 3" in str(caught.value)
    assert (tmp_path / "run" / "checkpoint-3" / "itpo_complete.json").exists()


SCRIPT = """
import sys
from itpo_lib.run import RunSettings, train
out, resume = sys.argv[1], sys.argv[2] == "resume"
options = dict(max_steps=6, per_device_train_batch_size=8, num_generations=4, learning_rate=1e-3, save_steps=2,
               estimator="ppo", num_iterations=2, prm_replay=24, prm_balanced=True)
train(RunSettings(out=out, device="cpu", eval_dialogues=4, options=options), resume=resume)
"""


def curve(path):
    timed = ("time/", "step_time", "runtime", "per_second", "epoch")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows]


@pytest.mark.slow
def test_sigkill_and_resume_give_the_same_curve_bit_for_bit(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run([*command, str(tmp_path / "whole"), "fresh"], check=True, env=environment, capture_output=True)
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, str(killed), "fresh"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.time() + 300
    while time.time() < deadline and process.poll() is None:
        rows = (killed / "metrics.jsonl").read_text().splitlines() if (killed / "metrics.jsonl").exists() else []
        if len(rows) >= 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    subprocess.run([*command, str(killed), "resume"], check=True, env=environment, capture_output=True)
    whole, resumed = curve(tmp_path / "whole" / "metrics.jsonl"), curve(killed / "metrics.jsonl")
    assert [row["step"] for row in resumed] == list(range(1, 7))
    assert resumed == whole
    one, other = (json.loads((p / "evaluation.json").read_text())["after"] for p in (tmp_path / "whole", killed))
    assert one == other


def test_a_checkpoint_cut_off_while_saving_is_passed_over(tmp_path):
    for step in (2, 10, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert latest_checkpoint(tmp_path) is None
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert latest_checkpoint(tmp_path).name == "checkpoint-4"


def test_a_run_writes_everything_a_reader_wants(tmp_path):
    run = settings(tmp_path, max_steps=2)
    result = train(run)
    out = tmp_path / "run"
    names = {
        "settings.json",
        "metrics.jsonl",
        "evaluation.json",
        "dialogues.json",
        "curves.png",
        "report.html",
        "policy",
    }
    assert names <= {p.name for p in out.iterdir()}
    assert result.after["summary"]["dialogues"] == 4
    html = (out / "report.html").read_text()
    assert "Before and after" in html and "http://" not in html and "https://" not in html
    with pytest.raises(ItpoError, match="already holds a run"):
        train(run)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps with a checkpoint of each; copy it before you damage it."""
    run = settings(tmp_path_factory.mktemp("finished"), save_strategy="steps", save_steps=1)
    train(run)
    return run.out


def damaged(finished, tmp_path, name, change):
    """A copy of the run, with one file cut off, gone, or of other contents."""
    run = shutil.copytree(finished, tmp_path / "run")
    file = run / name
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9] if change == "cut" else change)
    return run


def resume(run, **options):
    again = RunSettings.load(run)
    again.options |= {"max_steps": 3, **options}
    return train(again, resume=True)


@pytest.mark.parametrize("change", ["gone", "cut"])
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "prm.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
     "config.json", "tokenizer.json"],
)  # fmt: skip
def test_a_checkpoint_that_lost_something_is_refused(finished, tmp_path, name, change):
    run = damaged(finished, tmp_path, f"checkpoint-2/{name}", change)
    args = ITPOConfig(output_dir=str(run), use_cpu=True, **SMALL)
    says = rf"corrupt checkpoint .*checkpoint-2: {name}: missing or cut off\. .*remove it to resume from the one before"
    with pytest.raises(ItpoError, match=says):
        check_resumable(run / "checkpoint-2" / COMPLETE, args)
    check_resumable(run / "checkpoint-1" / COMPLETE, args)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_file_in_a_checkpoint_of_an_older_version_is_named(finished, tmp_path, name):
    """It has no list of files, so the damage comes to light while loading; nothing is unpickled."""
    run = damaged(finished, tmp_path, f"checkpoint-2/{name}", b"\x80\x04cposix\nsystem\n")
    note = run / "checkpoint-2" / COMPLETE
    note.write_text(json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "files"}))
    with pytest.raises(ItpoError, match=r"corrupt checkpoint .*checkpoint-2: .*remove it to resume"):
        resume(run)


@pytest.mark.parametrize(
    "name, change, says",
    [
        ("before.json", b"{", "before.json cannot be read .*remove it, and it is made again"),
        ("before.json", b"{}", "before.json cannot be read"),
        ("before.json", b'{"summary": {"n": 4}, "dialogues": [1], "of": {"task": "x"}}', "of another run"),
        ("metrics.jsonl", b'{"loss": 1}\n', "metrics.jsonl has a row without a step"),
        ("metrics.jsonl", b"3\n", "metrics.jsonl has a row without a step"),
        ("settings.json", b'{"options": {"prm_epochs": "two"}}', "prm_epochs must be int, got 'two'"),
    ],
)
def test_a_damaged_run_is_named(finished, tmp_path, name, change, says):
    with pytest.raises(ItpoError, match=says):
        resume(damaged(finished, tmp_path, name, change))


def test_a_refused_resume_leaves_the_settings_and_a_good_one_takes_them_over(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "settings.json").read_text()
    with pytest.raises(ItpoError, match=r"critic\.safetensors"):
        resume(run, estimator="ppo")
    assert (run / "settings.json").read_text() == before
    (run / "checkpoint-best").mkdir()
    (run / "checkpoint-best" / COMPLETE).touch()  # somebody's copy is no step
    assert resume(run).trainer.state.global_step == 3
    assert RunSettings.load(run).options["max_steps"] == 3


def test_a_new_run_takes_over_nothing_of_another(finished, tmp_path):
    run = settings(tmp_path, max_steps=1)
    (tmp_path / "run").mkdir()
    other = json.loads((Path(finished) / "before.json").read_text())
    other["summary"]["outcome"]["mean"] = 7.0
    (tmp_path / "run" / "before.json").write_text(json.dumps(other))
    assert train(run).before["summary"]["outcome"]["mean"] < 1
    (tmp_path / "run" / "metrics.jsonl").unlink()
    shutil.copytree(Path(finished) / "checkpoint-1", tmp_path / "run" / "checkpoint-1")
    with pytest.raises(ItpoError, match="already holds a run"):
        train(run)


def test_a_run_without_a_step_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ITPOTrainer, "train", lambda self, **kwargs: None)
    with pytest.raises(ItpoError, match="the run took no step"):
        train(settings(tmp_path))


class PressCtrlC(TrainerCallback):
    """Sends this process the signal of Ctrl-C in the middle of a step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_and_the_run_goes_on_from_there(tmp_path):
    run = settings(tmp_path, max_steps=4, save_strategy="steps", save_steps=100)
    result = train(run, callbacks=[PressCtrlC()])
    assert result.stopped and result.after is None
    assert latest_checkpoint(tmp_path / "run").name == "checkpoint-2"
    resumed = train(RunSettings.load(tmp_path / "run"), resume=True)
    assert not resumed.stopped and resumed.trainer.state.global_step == 4
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_order_of_update_and_score_matters(tmp_path, temperature):
    scores = {}
    for order in ("update_then_score", "score_then_update"):
        options = {"prm_order": order, "max_steps": 1, "whiten_advantages": False, "temperature": temperature}
        trainer = build_trainer(settings(tmp_path / order, **options))
        record = Recorder(trainer)
        trainer.train()
        scores[order] = record.advantages[0]
    first = scores["score_then_update"]  # before its first update the PRM knows nothing: equal shares
    rows = [row[row != 0].unique() for row in first if (row != 0).any()]
    assert rows and all(len(values.round(decimals=5).unique()) == 1 for values in rows)
    assert (scores["update_then_score"] - first).abs().max() > 1e-4


def test_a_training_that_fails_gives_ctrl_c_back(tmp_path):
    from transformers import TrainerCallback

    from itpo_lib.run import RunSettings, train

    class Breaks(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            raise ItpoError("broken on purpose")

    before = signal.getsignal(signal.SIGINT)
    options = {"max_steps": 2, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    settings = RunSettings(out=str(tmp_path / "run"), device="cpu", eval_dialogues=4, options=options)
    with pytest.raises(ItpoError, match="broken on purpose"):
        train(settings, callbacks=[Breaks()])
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_light_head_learns_what_trls_head_learns(tmp_path, temperature):
    curves, policies = [], []
    for light in (False, True):
        trainer = build_trainer(settings(tmp_path / str(light), beta=0.01, temperature=temperature))
        assert not trainer.light_head  # a tiny vocabulary stays with TRL's
        trainer.light_head = light
        trainer.train()
        curves.append([(row["loss"], row["entropy"]) for row in trainer.state.log_history if "entropy" in row])
        policies.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert curves[0] == [pytest.approx(row, abs=1e-4) for row in curves[1]]
    start = torch.cat([p.detach().flatten() for p in load_policy("tiny", "math_tutoring")[0].parameters()])
    moved, apart = (policies[0] - start).norm(), (policies[0] - policies[1]).norm()
    assert apart < 0.02 * moved


def test_a_run_in_waves_learns_what_a_run_without_learns(tmp_path, monkeypatch):
    """The trainer passes `rollout_waves` on, and the curve is the same up to rounding."""
    from itpo_lib import trainer as module

    play, asked, curves = module.play, [], []
    monkeypatch.setattr(module, "play", lambda *args, **kwargs: asked.append(kwargs["waves"]) or play(*args, **kwargs))
    for waves in (1, 2):
        trainer = build_trainer(settings(tmp_path / str(waves), rollout_waves=waves))
        trainer.train()
        curves.append([(r["outcome"], r["grad_norm"]) for r in trainer.state.log_history if "outcome" in r])
    assert asked == [1, 1, 2, 2] and curves[0] == [pytest.approx(row, rel=1e-2) for row in curves[1]]


def test_kl_is_in_the_loss_or_in_the_reward(tmp_path):
    for place in ("loss", "reward"):
        trainer = build_trainer(settings(tmp_path / place, beta=0.1, kl_in=place, max_steps=1))
        trainer.train()
        assert (trainer.experience.penalties is not None) == (place == "reward")


def test_the_reference_of_the_users_words_cannot_make_the_kl_infinite(tmp_path):
    """TRL takes exp(ref - policy) of all tokens, then masks; exp(0 - (-90)) times a mask of 0 is NaN."""
    trainer = build_trainer(settings(tmp_path, beta=0.1))
    inner, seen = trainer._generate_and_score_completions, []
    trainer._generate_and_score_completions = lambda inputs: seen.append(inner(inputs)) or seen[-1]
    trainer.train()
    batch = collate(trainer.dialogues, trainer.chat.pad_id)
    reference = seen[-1]["ref_per_token_logps"][:, : batch.turn_ids.shape[1]]
    assert (reference[~batch.assistant_mask] + 90.0).exp().max() == 0 and reference[batch.assistant_mask].min() > -90


def test_the_kl_in_the_reward_has_its_coefficient(tmp_path):
    trainer = build_trainer(settings(tmp_path, beta=0.1, kl_in="reward"))
    trainer.train()
    batch = collate(trainer.dialogues, trainer.chat.pad_id)
    ratio = (batch.logprobs - token_logprobs(trainer.frozen, batch)) * batch.assistant_mask
    assert ratio.abs().max() > 1e-3, "the policy has not moved"
    torch.testing.assert_close(trainer.experience.penalties, 0.1 * ratio, atol=1e-6, rtol=0)


def test_a_dialogues_seed_depends_on_run_step_batch_and_row(tmp_path):
    trainer, rows = build_trainer(settings(tmp_path)), [{"goal_index": 0}] * 2
    seeds = lambda: [episode.seed for episode in trainer._episodes(rows)]  # noqa: E731
    first, second_batch = seeds(), seeds()
    trainer.state.global_step = 1
    second_step = seeds()
    trainer.state.global_step = 0
    assert seeds() == first
    trainer.args.seed, trainer.state.global_step = trainer.args.seed + 1, 1
    assert len({*first, *second_batch, *second_step, *seeds()}) == 8


def test_a_run_has_goals_for_all_of_its_steps(tmp_path):
    groups = 8 // 4
    assert len(build_trainer(settings(tmp_path / "a")).train_dataset) == groups * 64
    assert len(build_trainer(settings(tmp_path / "b", max_steps=100)).train_dataset) == groups * 100


@pytest.mark.parametrize("option", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}])
def test_every_knob_that_bends_the_policy_is_refused(tmp_path, option):
    with pytest.raises(ItpoError, match="exact policy"):
        ITPOConfig(output_dir=str(tmp_path), use_cpu=True, **option)


def test_the_rule_takes_every_setting(tmp_path):
    names = ("credit_temperature", "softmax_mode", "gamma", "gae_lambda", "length_penalty", "grpo_scale")
    values = (0.7, "official", 0.9, 0.8, 0.01, "none")
    chosen = dict(zip(names, values, strict=True))
    args = ITPOConfig(output_dir=str(tmp_path), use_cpu=True, whiten_advantages=False, estimator="grpo", **chosen)
    assert args.rule == LearningRule("norm_itpo", "grpo", "credit_weighted", whiten_advantages=False, **chosen)
