"""The warm start at text scale: which tokens it learns, from which dialogues, and that it learns them."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner

from itpo_lib import warmstart as module
from itpo_lib.chat import ChatFormat
from itpo_lib.cli import app
from itpo_lib.dialogue import collate
from itpo_lib.errors import ItpoError
from itpo_lib.evaluate import paired_gain
from itpo_lib.logprobs import token_logprobs
from itpo_lib.models import load_policy, tiny_model
from itpo_lib.tasks import get_task, play_scripted
from itpo_lib.warmstart_text import (
    IGNORED,
    Mixture,
    WarmStart,
    choose_layers,
    scripted_dialogues,
    training_row,
    warmstart_text,
)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    f"Ġ{word}"
    for word in ("the", "to", "you", "it", "say", "about", "What", "can", "Final", "answer", "problem", "and")
]
SMALL = WarmStart(task="math_tutoring", steps=3, batch_size=4, layers=None, device="cpu", eval_dialogues=2)


def text_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes plus a few merged words, in the chat template of SmolLM2's family: any English text fits."""
    pieces, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    core = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",  # as in SmolLM2: padding equals the end of a turn
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(text_tokenizer())


@pytest.fixture(scope="module")
def start(chat, tmp_path_factory):
    """A folder with an untrained chat model of two layers."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(chat.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=chat.end_of_turn_id,
        bos_token_id=None,
        pad_token_id=chat.pad_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder


# What is learned


def test_ids_are_those_of_the_chat_template(chat):
    for dialogue in scripted_dialogues(SMALL, chat):
        rendered = chat.tokenizer.apply_chat_template(dialogue.messages, return_dict=False)
        assert training_row(dialogue)["input_ids"] == rendered[: rendered_length(chat, rendered)]


def rendered_length(chat, rendered):
    """Up to the last end of turn: the template's line break after it is never sampled."""
    return len(rendered) - rendered[::-1].index(chat.end_of_turn_id)


def test_labels_are_the_assistants_words_and_ends_of_turn_alone(chat):
    for dialogue in scripted_dialogues(SMALL, chat):
        row = training_row(dialogue)
        assert len(row["labels"]) == len(row["input_ids"])
        learned = [token for token in row["labels"] if token != IGNORED]
        said = [m["content"] for m in dialogue.messages if m["role"] == "assistant"]
        assert learned == [token for text in said for token in [*chat.plain_ids(text), chat.end_of_turn_id]]
        assert all(a in (IGNORED, b) for a, b in zip(row["labels"], row["input_ids"], strict=True))


def test_trl_takes_the_rows_as_they_are_and_its_loss_is_ours(chat, start, tmp_path):
    from itpo_lib.warmstart_text import sft_trainer

    model = load_policy(str(start))[0]
    trainer = sft_trainer(model, chat, SMALL, str(tmp_path))
    dialogues = scripted_dialogues(SMALL, chat)
    for row, dialogue in zip(trainer.train_dataset, dialogues, strict=True):
        assert {name: row[name] for name in ("input_ids", "labels")} == training_row(dialogue)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(dialogues))])
    trainer.accelerator.native_amp = False  # fp32, to compare exactly
    ours = collate(dialogues, chat.pad_id)
    with torch.no_grad():
        loss = trainer.compute_loss(model.eval(), dict(batch))
        trls = super(type(trainer), trainer).compute_loss(model, dict(batch))
        shared = trainer.compute_loss(model, dict(batch), num_items_in_batch=1000)
        expected = -token_logprobs(model, ours).sum() / ours.assistant_mask.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, trls, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared * 1000, loss * ours.assistant_mask.sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layers, learning", [(1, {"layers.1.", "norm."}), (None, {"embed", "layers.0.", "layers.1.", "norm."})]
)
def test_only_the_chosen_layers_learn(start, layers, learning):
    model = load_policy(str(start))[0]
    choose_layers(model, layers)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    parts = ("embed", "layers.0.", "layers.1.", "norm.")
    assert {next(part for part in parts if name.startswith(f"model.{part}")) for name in names} == learning


# Which dialogues are imitated


def outcomes(settings, chat):
    """Of all dialogues: the outcome, and whether the opening hid something."""
    world = settings.world()
    played = []
    for index, dialogue in enumerate(scripted_dialogues(settings, chat)):
        goal = world.goal(index + settings.seed * settings.steps * settings.batch_size)
        hid = dialogue.messages[1]["content"] == goal.opening
        played.append((world.outcome(goal, dialogue.messages), hid))
    return played


@pytest.mark.parametrize("revealed, expert", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_the_mixture_decides_who_is_imitated(chat, revealed, expert):
    settings = replace(SMALL, steps=1, batch_size=60, mixture=Mixture(revealed, expert), seed=1)
    played = outcomes(settings, chat)
    share = sum(not hid for _, hid in played) / len(played)
    assert share == pytest.approx(revealed, abs=0.0 if revealed in (0.0, 1.0) else 0.2)
    hidden = [outcome for outcome, hid in played if hid]
    if hidden and expert in (0.0, 1.0):  # the novice guesses early, the expert hardly ever fails
        assert (sum(hidden) / len(hidden) > 0.8) == (expert == 1.0)
    assert all(outcome == 1.0 for outcome, hid in played if not hid)  # informed scripts are right


def test_seeds_never_share_a_dialogue_and_repeat_themselves(chat):
    first, again = (scripted_dialogues(SMALL, chat) for _ in range(2))
    other = scripted_dialogues(replace(SMALL, seed=1), chat)
    assert [d.completion_ids for d in first] == [d.completion_ids for d in again]
    assert not {d.messages[1]["content"] for d in first} & {d.messages[1]["content"] for d in other}


def test_the_writer_never_imitates_an_article_that_nobody_told(chat):
    settings = replace(SMALL, task="document_writing", steps=1, batch_size=20)
    world = settings.world()
    for index, dialogue in enumerate(scripted_dialogues(settings, chat)):
        assert world.goal(index).answer not in dialogue.messages[-1]["content"]


# That it learns, and what it leaves behind


@pytest.mark.slow
def test_it_learns_and_the_folder_is_a_policy(start, tmp_path):
    out = tmp_path / "policy"
    settings = replace(SMALL, model=str(start), steps=15, batch_size=8, learning_rate=1e-2)
    report = warmstart_text(settings, out)
    assert report["final_loss"] < 0.8 * report["first_loss"]
    assert json.loads((out / "warmstart.json").read_text()) == json.loads(json.dumps(report))
    assert {"before", "after", "informed", "cpu_seconds", "steps", "mixture"} <= report.keys()
    model, chat = load_policy(str(out))
    assert model.config._attn_implementation == "sdpa"
    settings = replace(settings, seed=7, steps=1)
    fresh = collate(scripted_dialogues(settings, chat), chat.pad_id)
    loss = {}
    for name, policy in (("start", load_policy(str(start))[0]), ("end", model)):
        with torch.no_grad():
            loss[name] = float(-token_logprobs(policy, fresh).sum() / fresh.assistant_mask.sum())
    assert loss["end"] < 0.8 * loss["start"]  # on dialogues that it has not seen
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_dialogues_of_the_warm_start_are_the_tasks_own(chat):
    settings = replace(SMALL, mixture=Mixture(0.0, 1.0))
    world, first = settings.world(), scripted_dialogues(settings, chat)[0]
    goal = world.goal(0)
    assert first.messages == play_scripted(world, goal, world.expert(goal, 0), user_seed=0)[0]


# What is reported


def test_a_gain_is_the_mean_of_paired_differences():
    gain = paired_gain([0.0, 0.5, 1.0, 0.0], [0.5, 1.0, 1.0, 0.0])
    assert gain.mean == 0.25 and 0.0 <= gain.low < 0.25 < gain.high <= 0.5
    with pytest.raises(ItpoError, match="got 1 and 2"):
        paired_gain([0.0], [0.0, 1.0])


def test_the_table_of_a_task_follows_from_its_rows():
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import figures

    def row(stage, steps, outcomes, **more):
        mean = {"mean": sum(outcomes) / 2, "low": 0.0, "high": 1.0}
        evaluation = {"outcome": mean, "success": mean, "turns": mean, "outcome_name": "rubric"}
        return {
            "task": "math_tutoring",
            "stage": stage,
            "steps": steps,
            "seed": 0,
            "evaluation": evaluation,
            "outcomes": outcomes,
            **more,
        }

    rows = [
        row("warm_start", 9, [0.5, 1.0], cpu_seconds=61.7),
        row("as_it_comes", 0, [0.0, 0.0]),
        row("informed", 9, [1.0, 1.0]),
    ]
    _, _, first, second, third = figures.text_tables(rows)["text_math_tutoring"].splitlines()
    assert first.startswith("| as it comes | 0 | 0.000 [0.000, 1.000] |") and first.endswith("|  |  |")
    assert second.startswith("| warm start | 9 | 0.750 ") and "0.750 [0.500, 1.000] | 62 |" in second
    assert third.startswith("| warm start, nothing hidden | 9 | 1.000 ") and third.endswith("|  |  |")


# Bad input


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--task", "maths", "--out", "OUT"], "math_tutoring"),
        (["--difficulty", "hard", "--out", "OUT"], "stress"),
        (["--model", "no/such/folder", "--out", "OUT"], "cannot load"),
        ([], "--out"),
        (["--scale", "hub", "--out", "OUT"], "choose one of text, tiny"),
        (["--scale", "tiny", "--model", "smollm2", "--out", "OUT"], "--scale text"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, arguments, says):
    arguments = [str(tmp_path / "out") if a == "OUT" else a for a in arguments]
    scale = [] if "--scale" in arguments else ["--scale", "text"]
    result = CliRunner().invoke(app, ["warmstart", *scale, "--steps", "1", *arguments])
    assert result.exit_code == 2, result.output
    assert says in result.output.replace("\n", " ")


def test_settings_are_checked():
    with pytest.raises(ItpoError, match=r"'expert' must lie in \[0, 1\], got 1.5"):
        Mixture(expert=1.5)
    with pytest.raises(ItpoError, match="steps must be >= 1, got 0"):
        WarmStart(steps=0)
    with pytest.raises(ItpoError, match="learning_rate must be > 0, got -1"):
        WarmStart(learning_rate=-1)


def test_a_task_without_scripts_is_refused(chat, tmp_path, monkeypatch):
    from itpo_lib.tasks.math_text import TextMathTutoring

    monkeypatch.setattr(TextMathTutoring, "novice", lambda self, goal, seed: None)
    with pytest.raises(ItpoError, match=r"'math_tutoring' .* has no scripted"):
        scripted_dialogues(replace(SMALL, mixture=Mixture(0.0, 0.0)), chat)


def test_the_tiny_warm_start_imitates_the_novice(tmp_path, monkeypatch):
    evaluate, seen, imitated = module.evaluate, [], module.novice_dialogues
    short = lambda model, chat, world, n: evaluate(model, chat, world, n=4)  # noqa: E731
    monkeypatch.setattr(module, "evaluate", short)
    monkeypatch.setattr(module, "novice_dialogues", lambda *args: seen.append(args) or imitated(*args))
    report = module.warmstart("math_tutoring", "easy", tmp_path / "p", steps=12, batch_size=4, seed=3)
    assert [(args[0].revealed, *args[2:]) for args in seen[:4]] == [
        (False, 72, 2), (True, 72, 2), (False, 74, 2), (True, 74, 2)
    ]  # fmt: skip
    trained, chat = load_policy(str(tmp_path / "p"))
    fresh, world = tiny_model(chat.tokenizer, 3), get_task("math_tutoring", difficulty="easy")
    batch = collate(imitated(world, chat, 0, 8), chat.pad_id)
    losses = [float(-token_logprobs(m, batch).sum() / batch.assistant_mask.sum()) for m in (fresh, trained)]
    assert losses[0] == pytest.approx(math.log(len(chat.tokenizer)), rel=0.05) and losses[1] < losses[0] - 1
    assert (
        report["final_loss"] == pytest.approx(losses[1], rel=0.25) and report["parameters"] == trained.num_parameters()
    )
