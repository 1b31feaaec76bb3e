"""Credit: who in a dialogue earned its outcome. Token rewards and outcomes in, unit rewards out.

A *unit* is what receives one reward: a turn, or for PRIME a token. Shapes: B dialogues, T completion
tokens, K units. `unit_ids` (B, T) holds 1..K on assistant tokens and 0 elsewhere; `mask` (B, K) marks
the units that exist. Equations: arXiv 2603.23550 (ITPO), arXiv 2502.01456 (PRIME).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import ItpoError, require, unknown_name


@dataclass(frozen=True)
class Credit:
    """What a credit method says.

    `shares` (B, K) sum to 1 per dialogue where the method gives shares of R. `blame` (B, K) are the
    shares of a dialogue that went worse than expected: a turn that the PRM likes least bears most.
    Where a method does not tell the two apart, `blame` is None and `shares` serve for both.
    """

    rewards: Tensor
    mask: Tensor
    unit_ids: Tensor
    shares: Tensor | None = None
    blame: Tensor | None = None


def unit_sums(values: Tensor, unit_ids: Tensor, n_units: int) -> Tensor:
    """Σ_{t in unit k} values_t, (B, T) -> (B, K). Tokens of id 0 (user, glue, padding) fall away."""
    sums = values.new_zeros(len(values), n_units + 1).scatter_add_(1, unit_ids, values)
    return sums[:, 1:]


def unit_lengths(unit_ids: Tensor, n_units: int) -> Tensor:
    """Tokens per unit, (B, T) -> (B, K) float."""
    return unit_sums(torch.ones_like(unit_ids, dtype=torch.float32), unit_ids, n_units)


def unit_firsts(values: Tensor, unit_ids: Tensor, n_units: int) -> Tensor:
    """The value at each unit's first token, (B, T) -> (B, K)."""
    before = torch.nn.functional.pad(unit_ids[:, :-1], (1, 0))
    return unit_sums(values * (unit_ids != before), unit_ids, n_units)


def last_unit(mask: Tensor) -> Tensor:
    """(B, K) float: 1 on each dialogue's last unit, all 0 where it has none."""
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1), value=False)
    return (mask & ~following).float()


def uniform_shares(mask: Tensor, seed: int) -> Tensor:
    """Dirichlet(1) shares over the units of each dialogue, (B, K); the same for the same `seed`.

    Drawn unit by unit, so that padding K does not change them.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = -torch.rand(mask.T.shape, generator=generator, dtype=torch.float64).T.clamp(min=1e-12).log()
    draws = draws.to(mask.device, torch.float32) * mask
    return draws / draws.sum(1, keepdim=True).clamp(min=1e-12)


def softmax_shares(sums: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """w = softmax_k(R_k^imp / η) over each dialogue's own turns, (B, K). `temperature` is η > 0."""
    require(temperature > 0, f"the credit temperature η must be > 0, got {temperature}")
    scores = (sums / temperature).masked_fill(~mask, -torch.inf)
    return torch.where(mask, scores.softmax(1), 0.0).nan_to_num(0.0)


def official_softmax_shares(token_rewards: Tensor, unit_ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """The released code's shares: softmax(mean · L / η) on rescaled token rewards, (B, K).

    Token rewards are first divided by the batch's largest |return-to-go|; L is the batch's mean turn
    length in tokens. So a dialogue's shares depend on what else is in the batch.
    """
    scale = reverse_cumsum(token_rewards).abs().max().clamp(min=1e-12)
    lengths = unit_lengths(unit_ids, mask.shape[1])
    means = unit_sums(token_rewards / scale, unit_ids, mask.shape[1]) / lengths.clamp(min=1)
    mean_length = lengths.sum() / mask.sum().clamp(min=1)
    return softmax_shares(means * mean_length, mask, temperature)


def reverse_cumsum(values: Tensor, gamma: float = 1.0) -> Tensor:
    """G_k = Σ_{j>=k} γ^{j-k} values_j along the last axis."""
    if gamma == 1.0:
        return values.flip(-1).cumsum(-1).flip(-1)
    result, running = torch.empty_like(values), torch.zeros_like(values[..., 0])
    for k in reversed(range(values.shape[-1])):
        running = values[..., k] + gamma * running
        result[..., k] = running
    return result


def token_units(turn_ids: Tensor) -> Tensor:
    """Every assistant token as a unit of its own, (B, T) -> (B, T) ids 1..n."""
    assistant = turn_ids > 0
    return assistant.cumsum(1) * assistant


@dataclass(frozen=True)
class CreditInputs:
    """What any credit method may look at.

    `outcomes` (B,); `turn_ids` (B, T); `n_turns` = K; `token_rewards` (B, T), β·log-ratio of the PRM;
    `turn_values` (B, K), what the dialogue is worth before each turn; `turn_weights` (B, K), a judge's.
    """

    outcomes: Tensor
    turn_ids: Tensor
    n_turns: int
    token_rewards: Tensor
    temperature: float = 0.4
    softmax: str = "sum"
    seed: int = 0
    turn_values: Tensor | None = None
    turn_weights: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, K) bool: the turns that exist."""
        return unit_lengths(self.turn_ids, self.n_turns) > 0


def _from_shares(inputs: CreditInputs, shares: Tensor) -> Credit:
    return Credit(shares * inputs.outcomes[:, None], inputs.mask, inputs.turn_ids, shares)


def trajectory(inputs: CreditInputs) -> Credit:
    """Trajectory share: all of R at the end, so that every token gets the same return."""
    return _from_shares(inputs, last_unit(inputs.mask))


def uniform(inputs: CreditInputs) -> Credit:
    """Uniform decomposition: Dirichlet(1) shares of R."""
    return _from_shares(inputs, uniform_shares(inputs.mask, inputs.seed))


def prime(inputs: CreditInputs) -> Credit:
    """PRIME: the PRM's reward on each token, and the outcome on the last."""
    units = token_units(inputs.turn_ids)
    n_units = max(1, int(units.max()))
    mask = unit_lengths(units, n_units) > 0
    rewards = unit_sums(inputs.token_rewards, units, n_units) + last_unit(mask) * inputs.outcomes[:, None]
    return Credit(rewards, mask, units)


def itpo(inputs: CreditInputs) -> Credit:
    """ITPO: R_k = R_k^imp = Σ_{t in turn k} r_φ(y_t)."""
    return Credit(unit_sums(inputs.token_rewards, inputs.turn_ids, inputs.n_turns), inputs.mask, inputs.turn_ids)


def norm_itpo(inputs: CreditInputs) -> Credit:
    """Norm-ITPO: R_k = w_k · R with w a softmax of the implicit turn rewards; Σ_k R_k = R."""
    if inputs.softmax == "official":
        shares = official_softmax_shares(inputs.token_rewards, inputs.turn_ids, inputs.mask, inputs.temperature)
        return _from_shares(inputs, shares)
    sums = unit_sums(inputs.token_rewards, inputs.turn_ids, inputs.n_turns)
    credit = _from_shares(inputs, softmax_shares(sums, inputs.mask, inputs.temperature))
    return replace(credit, blame=softmax_shares(-sums, inputs.mask, inputs.temperature))


def judge(inputs: CreditInputs) -> Credit:
    """LLM as a judge: its weights of the turns, brought to sum 1, are shares of R."""
    if inputs.turn_weights is None:
        raise ItpoError("credit 'judge' needs turn_weights (B, K)")
    weights = inputs.turn_weights * inputs.mask
    return _from_shares(inputs, weights / weights.sum(1, keepdim=True).clamp(min=1e-12))


def value_differences(inputs: CreditInputs) -> Credit:
    """R_k = V_k - V_{k-1}, with V_K = R: TD errors of a value model, or the true credit. Σ_k R_k = R - V_0.

    The shares are what Norm-ITPO would make of these rewards, for the baselines that share R out.
    """
    if inputs.turn_values is None:
        raise ItpoError("credits 'value' and 'oracle' need turn_values (B, K)")
    mask, before = inputs.mask, inputs.turn_values
    following = torch.nn.functional.pad(before[:, 1:], (0, 1))
    after = torch.where(last_unit(mask) > 0, inputs.outcomes[:, None], following)
    gains = (after - before) * mask
    shares, blame = (softmax_shares(sign * gains, mask, inputs.temperature) for sign in (1, -1))
    return Credit(gains, mask, inputs.turn_ids, shares, blame)


CREDITS: dict[str, Callable[[CreditInputs], Credit]] = {
    "trajectory": trajectory,
    "uniform": uniform,
    "prime": prime,
    "itpo": itpo,
    "norm_itpo": norm_itpo,
    "value": value_differences,
    "judge": judge,
    "oracle": value_differences,
}
NEEDS_PRM = frozenset({"prime", "itpo", "norm_itpo"})
GIVES_SHARES = frozenset({"trajectory", "uniform", "norm_itpo", "judge"})  # its rewards are shares of R
CAN_SHARE = GIVES_SHARES | {"value", "oracle"}  # rewards of their own, and shares on request
SOFTMAX_MODES = ("sum", "official")


def assign_credit(name: str, inputs: CreditInputs) -> Credit:
    """The credit that the method `name` gives."""
    if name not in CREDITS:
        raise unknown_name("credit", name, CREDITS)
    if inputs.softmax not in SOFTMAX_MODES:
        raise unknown_name("softmax mode", inputs.softmax, SOFTMAX_MODES)
    return CREDITS[name](inputs)
