"""A training run small enough to break on purpose: a table policy over five words, five exchangeable pieces.

The user hides one fact. A turn that says ASK brings it out, mostly; SAY answers and ends the dialogue,
END ends a turn, UM means nothing, USER is what the user's words look like. A turn that is cut off at
four tokens ruins the dialogue. PRM, shares and advantages are the library's; the pieces are the reader's.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..advantages import leave_one_out, spread_to_tokens
from ..credit import softmax_shares, unit_sums

ASK, SAY, UM, END, USER = range(5)
N_WORDS, MAX_TURNS, TURN_TOKENS, GROUP, BATCH = 5, 4, 4, 2, 64
PAD = END  # as with many tokenizers, the fill token is the end of a turn
BETA, TEMPERATURE = 0.3, 1.0
PANELS = {
    "success": "success rate",
    "prm_loss": "loss of the PRM",
    "edge": "(R - b) / (R - the other's R), where they differ",
    "p_end": "P(END) after ASK or SAY",
    "p_user": "P(USER) at the start of a turn",
}


def valid_tokens(ids: Tensor, lengths: Tensor, pad_id: int) -> Tensor:
    """(B, T) bool: the tokens that are no padding."""
    return torch.arange(ids.shape[1]) < lengths[:, None]


def train_mask(turn_ids: Tensor, valid: Tensor) -> Tensor:
    """(B, T) bool: the tokens that the policy is trained on."""
    return valid & (turn_ids > 0)


def baseline(outcomes: Tensor, group_size: int) -> Tensor:
    """(B,): what each outcome is compared with."""
    return leave_one_out(outcomes, torch.ones_like(outcomes, dtype=torch.bool), group_size)[0]


def policy_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """The loss to minimise, mean over the tokens of `mask`; all (B, T)."""
    return -(logprobs * advantages * mask).sum() / mask.sum()


def prm_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the PRM on its loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


HEALTHY: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (valid_tokens, train_mask, baseline, policy_loss, prm_step)
}
BROKEN: dict[str, Callable[..., Any]] = {
    "valid_tokens": lambda ids, lengths, pad_id: ids != pad_id,
    "train_mask": lambda turn_ids, valid: valid,
    "baseline": lambda outcomes, g: outcomes.unflatten(0, (-1, g)).mean(1).repeat_interleave(g),
    "policy_loss": lambda logprobs, advantages, mask: (logprobs * advantages * mask).sum() / mask.sum(),
    "prm_step": lambda optimizer, loss: loss.backward(),
}
RUNS = {"A": "baseline", "B": "policy_loss", "C": "valid_tokens", "D": "prm_step", "E": "train_mask"}
CAUSES = {
    "the PRM never steps": "prm_step",
    "pad = eos": "valid_tokens",
    "the advantage has the wrong sign": "policy_loss",
    "user tokens are trained on": "train_mask",
    "the baseline contains the sample itself": "baseline",
}


def converse(probs: list[list[float]], rng: random.Random) -> tuple[list[int], list[int], list[int], float]:
    """One dialogue: token ids, turn ids, the state that each token was said in, and the outcome."""
    ids: list[int] = []
    turn_ids: list[int] = []
    states: list[int] = []
    known, last = False, USER
    for turn in range(1, MAX_TURNS + 1):
        said = set()
        for _ in range(TURN_TOKENS):
            states.append(last + N_WORDS * known)
            last = rng.choices(range(N_WORDS), probs[states[-1]])[0]
            ids.append(last)
            turn_ids.append(turn)
            said.add(last)
            if last == END:
                break
        if END not in said or SAY in said:
            return ids, turn_ids, states, (1.0 if known else 0.25) * (END in said)
        known = known or (ASK in said and rng.random() < 0.8)
        if turn < MAX_TURNS:  # two words of the user
            states += [END + N_WORDS * known, USER + N_WORDS * known]
            ids, turn_ids, last = [*ids, USER, USER], [*turn_ids, 0, 0], USER
    return ids, turn_ids, states, 0.0


def collate(played: list[tuple[list[int], list[int], list[int], float]]) -> tuple[Tensor, ...]:
    """ids, turn ids and states (B, T), lengths and outcomes (B,)."""
    *columns, outcomes = zip(*played, strict=True)
    padded = (
        pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
        for rows, fill in zip(columns, (PAD, 0, 0), strict=True)
    )
    return *padded, torch.tensor([len(ids) for ids in columns[0]]), torch.tensor(outcomes)


def train(pieces: Mapping[str, Callable[..., Any]] | None = None, steps: int = 80) -> dict[str, list[float]]:
    """Train with some `pieces` replaced; returns one curve per panel."""
    use = {**HEALTHY, **(pieces or {})}
    policy, prm = torch.zeros(2, 2 * N_WORDS, N_WORDS).unbind()
    reference = policy.log_softmax(-1)
    optimizer, prm_optimizer = (torch.optim.Adam([table.requires_grad_(True)], lr=0.1) for table in (policy, prm))
    rng, curves = random.Random(0), defaultdict(list)
    for _ in range(steps):
        probs = policy.detach().softmax(-1)
        ids, turn_ids, states, lengths, outcomes = collate([converse(probs.tolist(), rng) for _ in range(BATCH)])
        # the PRM learns from the outcomes, then shares them out
        rewards = BETA * (prm.log_softmax(-1) - reference)[states, ids] * (turn_ids > 0)
        prm_loss = torch.nn.functional.binary_cross_entropy_with_logits(rewards.sum(1), outcomes)
        use["prm_step"](prm_optimizer, prm_loss)
        sums = unit_sums(rewards.detach(), turn_ids, MAX_TURNS)
        exists = torch.arange(1, MAX_TURNS + 1) <= turn_ids.amax(1, keepdim=True)
        edge = outcomes - use["baseline"](outcomes, GROUP)
        units = softmax_shares(sums, exists, TEMPERATURE) * exists.sum(1, keepdim=True) * edge[:, None]
        advantages = spread_to_tokens(units, turn_ids.cummax(1).values)
        # the policy learns from the advantages
        mask = use["train_mask"](turn_ids, use["valid_tokens"](ids, lengths, PAD))
        loss = use["policy_loss"](policy.log_softmax(-1)[states, ids], advantages, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        others = baseline(outcomes, GROUP)
        measured = {
            "success": (outcomes == 1.0).float().mean(),
            "prm_loss": prm_loss,
            "edge": (edge / (outcomes - others))[others != outcomes].mean(),
            "p_end": probs.unflatten(0, (2, N_WORDS))[:, [ASK, SAY], END].mean(),
            "p_user": probs.unflatten(0, (2, N_WORDS))[:, USER, USER].mean(),
        }
        for name, value in measured.items():
            curves[name].append(value.item())
    return dict(curves)


def run_of(label: str) -> dict[str, list[float]]:
    """The curves of one of the broken runs A to E."""
    return train({RUNS[label]: BROKEN[RUNS[label]]})
