"""The shapes of decoder-only models, and how many parameters follow from them. No weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on, for Llama- and Qwen2-like models.

    `hidden`, `intermediate`: widths; `attention_bias`: biases on queries, keys and values (Qwen2).
    """

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True
    attention_bias: bool = True

    @property
    def kv_width(self) -> int:
        """Width of a token's keys (or values) in one layer."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear maps of one layer: q, k, v, o, gate, up, down."""
        h, kv, m = self.hidden, self.kv_width, self.intermediate
        return [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]

    @property
    def parameters(self) -> int:
        """All weights, an embedding that is shared with the head counted once."""
        biases = self.hidden + 2 * self.kv_width if self.attention_bias else 0
        layer = sum(i * o for i, o in self.linears) + biases + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter_parameters(self, rank: int) -> int:
        """Weights of one LoRA adapter on every linear map of every layer: rank · (in + out) each."""
        return self.layers * rank * sum(i + o for i, o in self.linears)

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """The shape in a Hugging Face config."""
        text = config.get_text_config()
        return cls(
            text.hidden_size,
            text.num_hidden_layers,
            text.intermediate_size,
            text.num_attention_heads,
            text.num_key_value_heads,
            text.vocab_size,
            bool(config.tie_word_embeddings),
            text.model_type == "qwen2",
        )


SHAPES = {
    "tiny": ModelShape(128, 2, 256, 4, 4, 133),
    "smollm2": ModelShape(576, 30, 1536, 9, 3, 49152, attention_bias=False),
    "Qwen/Qwen2.5-0.5B-Instruct": ModelShape(896, 24, 4864, 14, 2, 151936),
    "Qwen/Qwen2.5-1.5B-Instruct": ModelShape(1536, 28, 8960, 12, 2, 151936),
    "Qwen/Qwen2.5-3B-Instruct": ModelShape(2048, 36, 11008, 16, 2, 151936),
    "Qwen/Qwen2.5-7B-Instruct": ModelShape(3584, 28, 18944, 28, 4, 152064, tied=False),
    "Qwen/Qwen2.5-14B-Instruct": ModelShape(5120, 48, 13824, 40, 8, 152064, tied=False),
}
