"""A world so small that every dialogue can be listed: exact values, exact gradients, exact bias.

One fact is hidden. In each turn the assistant asks a good question, asks a bad one, or answers. A
question gets the fact out of the user with a probability that depends on the question; an answer ends
the dialogue with outcome R = 1 if the fact is known and a lower R if it is a guess; who never answers
gets 0. The policy is a table of logits, π(a|s) = softmax(logits[s])_a, one row per state (turn, known).

An estimator of ∇E[R] that is only ever run on samples hides its bias in noise. Here its expectation
is a finite sum over all groups of dialogues, so the bias is a number.

Shapes: N dialogues (all that can happen), K turns at most, S states, A actions. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .advantages import rloo
from .credit import Credit, CreditInputs, assign_credit, reverse_cumsum
from .errors import require

ASK_GOOD, ASK_BAD, ANSWER = range(3)
N_ACTIONS = 3


@dataclass(frozen=True)
class World:
    """The rules. `tells_good`, `tells_bad`: how likely a question is to bring out the fact.

    `guess`: the outcome of an answer without the fact. `lengths`: tokens per action, for token rewards.
    """

    max_turns: int = 3
    tells_good: float = 0.8
    tells_bad: float = 0.2
    guess: float = 0.25
    lengths: tuple[int, int, int] = (3, 2, 4)

    @property
    def n_states(self) -> int:
        """Two per turn: the fact is unknown, or known."""
        return 2 * self.max_turns

    def state(self, turn: int, known: bool) -> int:
        """The row of the policy's table; `turn` counts from 0."""
        return 2 * turn + int(known)

    def dialogues(self) -> Dialogues:
        """Every dialogue that can happen, each once."""
        done: list[tuple[list[int], list[int], float, float]] = []  # states, actions, P(user's replies), R
        prefixes: list[tuple[list[int], list[int], float, bool]] = [([], [], 1.0, False)]
        for turn in range(self.max_turns):
            following = []
            for states, actions, probability, known in prefixes:
                seen = [*states, self.state(turn, known)]
                done.append((seen, [*actions, ANSWER], probability, 1.0 if known else self.guess))
                for action, tells in ((ASK_GOOD, self.tells_good), (ASK_BAD, self.tells_bad)):
                    replies = [(tells, True), (1.0 - tells, False)]
                    if known or turn + 1 == self.max_turns:  # nothing to tell, or nobody left to hear it
                        replies = [(1.0, known)]
                    following += [(seen, [*actions, action], probability * p, fact) for p, fact in replies]
            prefixes = following
        done += [(states, actions, probability, 0.0) for states, actions, probability, _ in prefixes]

        def pad(rows: list[list[int]]) -> Tensor:
            return torch.tensor([row + [0] * (self.max_turns - len(row)) for row in rows])

        return Dialogues(
            world=self,
            states=pad([d[0] for d in done]),
            actions=pad([d[1] for d in done]),
            mask=pad([[1] * len(d[0]) for d in done]).bool(),
            user_probs=torch.tensor([d[2] for d in done], dtype=torch.float64),
            outcomes=torch.tensor([d[3] for d in done], dtype=torch.float64),
        )


@dataclass(frozen=True)
class Dialogues:
    """All N dialogues of a world. `states`, `actions`, `mask`: (N, K); `user_probs`, `outcomes`: (N,)."""

    world: World
    states: Tensor
    actions: Tensor
    mask: Tensor
    user_probs: Tensor
    outcomes: Tensor

    @property
    def n_turns(self) -> Tensor:
        """(N,) float."""
        return self.mask.sum(1).double()

    def turn_logprobs(self, logits: Tensor) -> Tensor:
        """log π(a_k|s_k), (N, K); 0 where there is no turn."""
        return logits.log_softmax(-1)[self.states, self.actions] * self.mask

    def probabilities(self, logits: Tensor) -> Tensor:
        """P(τ) = Π_k π(a_k|s_k) · P(user's replies), (N,); they sum to 1."""
        return self.turn_logprobs(logits).sum(1).exp() * self.user_probs

    def expectation(self, logits: Tensor, values: Tensor) -> Tensor:
        """E[f] = Σ_τ P(τ) f(τ) of any `values` (N,), a scalar."""
        return (self.probabilities(logits) * values).sum()

    def gradient(self, logits: Tensor, values: Tensor) -> Tensor:
        """∇E[f] with respect to the logits, (S, A), by autograd through the whole sum."""
        logits = logits.detach().requires_grad_(True)
        return torch.autograd.grad(self.expectation(logits, values), logits)[0]

    def scores(self, logits: Tensor) -> Tensor:
        """The score function ∇log π(a_k|s_k), (N, K, S, A).

        For a softmax table it is onehot(a) - π(·|s) in row s and 0 elsewhere.
        """
        rows = torch.eye(N_ACTIONS, dtype=torch.float64)[self.actions] - logits.softmax(-1)[self.states]
        where = torch.nn.functional.one_hot(self.states, self.world.n_states).double() * self.mask[..., None]
        return where[..., None] * rows[:, :, None, :]

    def action_values(self, logits: Tensor, values: Tensor) -> Tensor:
        """Q(s, a) = E[f | the dialogue passes s and does a there], (S, A)."""
        index = (self.states * N_ACTIONS + self.actions)[self.mask]
        weights = self.probabilities(logits)[:, None].expand(self.mask.shape)[self.mask]
        f = values[:, None].expand(self.mask.shape)[self.mask]
        total = torch.zeros(2, self.world.n_states * N_ACTIONS, dtype=torch.float64)
        total[0].index_add_(0, index, weights * f)
        total[1].index_add_(0, index, weights)
        return (total[0] / total[1].clamp(min=1e-300)).unflatten(0, (-1, N_ACTIONS))

    def true_values(self, logits: Tensor) -> Tensor:
        """V_0 to V_K of each dialogue, (N, K+1): E[R] before each turn, R at the end, 0 beyond it."""
        of_state = (logits.softmax(-1) * self.action_values(logits, self.outcomes)).sum(1)
        values = torch.nn.functional.pad(of_state[self.states] * self.mask, (0, 1))
        return values.scatter(1, self.mask.sum(1, keepdim=True), self.outcomes[:, None])

    def turn_rewards(self, table: Tensor) -> Tensor:
        """R_k = r(s_k, a_k) from a `table` (S, A); returns (N, K)."""
        return table[self.states, self.actions] * self.mask

    def tokens(self, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
        """Turn ids and token values, both (N, T), as if each action were `world.lengths` tokens long.

        `log_ratios` (S, A, max length): what a PRM would say about each token of each action.
        """
        width, steps = log_ratios.shape[-1], torch.arange(self.mask.shape[1])
        lengths = torch.tensor(self.world.lengths)[self.actions] * self.mask
        exists = torch.arange(width) < lengths[..., None]  # (N, K, width)
        turn_ids = (exists * (steps[:, None] + 1)).flatten(1)
        return turn_ids, (log_ratios[self.states, self.actions] * exists).flatten(1)


def named_credit(
    dialogues: Dialogues, name: str, log_ratios: Tensor | None = None, logits: Tensor | None = None
) -> Credit:
    """The library's own credit `name` (a method that rewards turns) on all N dialogues.

    `log_ratios` (S, A, max length) stands for a PRM that is held fixed; a copy of the policy (zeros)
    where it is left out. "value" and "oracle" take the exact values of the policy `logits`.
    """
    world = dialogues.world
    if log_ratios is None:
        log_ratios = torch.zeros(world.n_states, N_ACTIONS, max(world.lengths), dtype=torch.float64)
    turn_ids, rewards = dialogues.tokens(log_ratios)
    values = None if logits is None else dialogues.true_values(logits)[:, :-1]
    return assign_credit(name, CreditInputs(dialogues.outcomes, turn_ids, world.max_turns, rewards, turn_values=values))


def expected_gradient(
    dialogues: Dialogues,
    logits: Tensor,
    credit: Credit,
    group_size: int = 2,
    baseline: str | None = "turn",
    gamma: float = 1.0,
) -> Tensor:
    """The exact mean of the policy-gradient estimator over all groups of `group_size` dialogues, (S, A).

        ĝ = 1/G Σ_i Σ_k A_{i,k} ∇log π(a_{i,k}|s_{i,k}),      E[ĝ] = Σ_groups P(τ_1)···P(τ_G) ĝ

    All N^G groups go through the library's `rloo` in one batch of G·N^G dialogues. `baseline=None`
    is REINFORCE: A_{i,k} is the return-to-go, and nothing is subtracted. Memory grows with G·N^G·K.
    """
    groups, weights = all_groups(dialogues, logits, group_size if baseline else 1)
    advantages = group_advantages(dialogues, credit, groups, baseline, gamma)
    expected = torch.zeros_like(credit.rewards, dtype=torch.float64)
    shared = advantages * weights[:, None, None] / groups.shape[1]
    expected.index_add_(0, groups.flatten(), shared.flatten(0, 1))  # Σ over groups of P(group)·A, per dialogue
    return torch.einsum("nk,nksa->sa", expected * credit.mask, dialogues.scores(logits))


def gradient_variance(
    dialogues: Dialogues,
    logits: Tensor,
    credit: Credit,
    group_size: int = 2,
    baseline: str | None = "turn",
    gamma: float = 1.0,
) -> float:
    """The exact variance of that estimator, E|ĝ|² - |E[ĝ]|²: how far one group's gradient strays from the mean."""
    size, scores = group_size if baseline else 1, dialogues.scores(logits)
    squares, mean = 0.0, torch.zeros_like(logits)
    for groups, weights in zip(*(part.split(20_000) for part in all_groups(dialogues, logits, size)), strict=True):
        advantages = group_advantages(dialogues, credit, groups, baseline, gamma)
        estimates = torch.einsum("gik,giksa->gsa", advantages / size, scores[groups])
        squares += float((weights * estimates.square().sum((1, 2))).sum())
        mean += torch.einsum("g,gsa->sa", weights, estimates)
    return (squares - float(mean.square().sum())) * size / group_size


def all_groups(dialogues: Dialogues, logits: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Every group of dialogues, (N^G, G) indices, and its probability, (N^G,)."""
    n = len(dialogues.outcomes)
    require(n**group_size <= 4_000_000, f"{n} dialogues make {n}^{group_size} groups: too many to list")
    groups = torch.cartesian_prod(*[torch.arange(n)] * group_size).view(-1, group_size)
    return groups, dialogues.probabilities(logits)[groups].prod(1)


def group_advantages(
    dialogues: Dialogues, credit: Credit, groups: Tensor, baseline: str | None, gamma: float
) -> Tensor:
    """Advantages of each group's turns, (groups, G, K), by the library's `rloo`; returns-to-go without a baseline."""
    rows = groups.flatten()
    parts = {f.name: getattr(credit, f.name) for f in fields(credit)}
    picked: dict[str, Any] = {name: None if part is None else part[rows] for name, part in parts.items()}
    batch = Credit(**picked)
    if baseline is None:
        advantages = reverse_cumsum(batch.rewards, gamma) * batch.mask
    else:
        advantages = rloo(batch, dialogues.outcomes[rows], groups.shape[1], baseline, gamma)
    return advantages.unflatten(0, groups.shape)


def bias(estimate: Tensor, exact: Tensor) -> tuple[float, float]:
    """How wrong an expected gradient is: |ĝ - g| / |g|, and the cosine of the angle between ĝ and g."""
    cosine = (estimate * exact).sum() / (estimate.norm() * exact.norm()).clamp(min=1e-300)
    return float((estimate - exact).norm() / exact.norm()), float(cosine)
