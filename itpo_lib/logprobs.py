"""Log-probabilities of the assistant's tokens: one kernel for policy, PRM and reference."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .dialogue import DialogueBatch


def hidden_states(model: PreTrainedModel, batch: DialogueBatch) -> Tensor:
    """Last hidden states that predict the completion tokens, (B, T, H).

    Position t of the result is the state after everything before completion token t. Positions are
    explicit, so models with learned positions agree too. Prompt positions never reach the LM head.
    """
    mask = batch.attention_mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    states = backbone(model)(
        input_ids=batch.input_ids, attention_mask=mask.long(), position_ids=positions, use_cache=False
    ).last_hidden_state
    steps = torch.arange(batch.completion_ids.shape[1], device=states.device)
    index = (batch.prompt_lengths[:, None] + steps - 1).clamp(max=batch.input_ids.shape[1] - 1)
    return states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))


def token_logprobs(
    model: PreTrainedModel, batch: DialogueBatch, temperature: float = 1.0, micro_batch: int | None = None
) -> Tensor:
    """log π(y_t | context) of every assistant token, (B, T), fp32 or better; 0 at all other positions.

    Only assistant tokens reach the LM head. `micro_batch` bounds the rows of one forward pass; rows of
    like length go together, so that little of a pass is spent on padding.
    """
    parts = micro_batches(batch, micro_batch)
    if len(parts) > 1:
        width, order = batch.completion_ids.shape[1], torch.cat(parts)
        rows = [token_logprobs(model, batch.rows(part), temperature) for part in parts]
        padded = torch.cat([torch.nn.functional.pad(r, (0, width - r.shape[1])) for r in rows])
        return padded[order.argsort()]
    mask = batch.assistant_mask
    logits = lm_logits(model, hidden_states(model, batch)[mask]) / temperature  # (N, V), N assistant tokens
    chosen = logits.gather(-1, batch.completion_ids[mask][:, None])[:, 0] - logits.logsumexp(-1)
    result = torch.zeros(mask.shape, dtype=chosen.dtype, device=mask.device)
    return result.masked_scatter(mask, chosen)


def loss_logprobs(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, mask: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log π and entropy in nats of the tokens that a loss counts, both (B, T), fp32 or better; 0 elsewhere.

    TRL's layout: `input_ids` and `attention_mask` (B, P+T) with prompts padded on the left, completions on the right;
    `mask` (B, T) marks the counted completion tokens, and only they reach the LM head. No gradient flows into the entropy.
    """
    counted = mask.bool()
    states = backbone(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    width = mask.shape[1]
    logits = lm_logits(model, states[:, -width - 1 : -1][counted]) / temperature  # (N, V), N counted tokens
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, input_ids[:, -width:][counted][:, None])[:, 0]
    with torch.no_grad():
        entropies = -(logprobs.exp() * logprobs).sum(-1)
    nothing = torch.zeros(mask.shape, dtype=chosen.dtype, device=mask.device)
    return nothing.masked_scatter(counted, chosen), nothing.masked_scatter(counted, entropies)


def micro_batches(batch: DialogueBatch, size: int | None) -> list[Tensor]:
    """Indices of all rows in groups of at most `size`, sorted by length; one group in the batch's order if they fit."""
    if size is None or len(batch) <= size:
        return [torch.arange(len(batch), device=batch.input_ids.device)]
    return list((batch.prompt_lengths + batch.completion_lengths).argsort(stable=True).split(size))


def lm_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits of hidden states in fp32 or better, with the model's own soft cap where it has one."""
    logits = model.get_output_embeddings()(states)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The model below its LM head; adapters injected by PEFT stay active inside it."""
    inner = getattr(model, "get_base_model", lambda: model)()  # a PeftModel is a wrapper
    return inner.get_decoder()
