"""Does a reward know what a dialogue or a turn was worth, and is training still healthy? Functions of plain numbers.

Shapes: N dialogues or units; (B, K) turns of B dialogues with a bool mask; S training steps. An answer
that the data cannot give (nothing varies, nothing to count) is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from .advantages import baselines_for
from .enumerable import Dialogues, bias, expected_gradient, gradient_variance, named_credit
from .errors import require
from .learning import LearningRule, discount

NAN = float("nan")


# Rankings


def kendall_tau(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's τ-b of two rankings (N,): concordant minus discordant pairs, over √(untied in x · untied in y).

    With a binary y it cannot reach 1: pairs with equal y count in x's part of the denominator.
    """
    a, b = _pair(x, y)
    signs_a, signs_b = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
    untied = np.sqrt(np.square(signs_a).sum() * np.square(signs_b).sum())
    return float((signs_a * signs_b).sum() / untied) if untied > 0 else NAN


def kendall_within(scores: ArrayLike, outcomes: ArrayLike, groups: ArrayLike) -> tuple[float, int]:
    """Mean τ-b inside each group, and how many groups counted: those in which the outcome varies.

    Equal scores in such a group know nothing: τ = 0. `groups` (N,) names the group of each entry.
    """
    x, y = _pair(scores, outcomes)
    names = np.asarray(groups)
    inside = [names == name for name in np.unique(names) if np.ptp(y[names == name]) > 0]
    taus = [kendall_tau(x[rows], y[rows]) if np.ptp(x[rows]) > 0 else 0.0 for rows in inside]
    return (float(np.mean(taus)) if taus else NAN), len(taus)


def ranks(values: ArrayLike) -> np.ndarray:
    """Ranks 1..N, equal values share the mean of theirs."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's ρ: the correlation of the ranks."""
    a, b = _pair(x, y)
    return linear_fit(ranks(a), ranks(b)).correlation


def convergence(history: ArrayLike) -> np.ndarray:
    """Spearman's ρ of each step's rewards to the last step's, (S, N) -> (S,): when does the ranking settle?

    Rows are the rewards of the same N turns (or tokens) of fixed dialogues, scored again as training goes on.
    """
    rows = np.asarray(history, dtype=float)
    return np.array([spearman(row, rows[-1]) for row in rows])


# Scale


@dataclass(frozen=True)
class Fit:
    """Least squares y = slope·x + intercept, and the correlation."""

    slope: float
    intercept: float
    correlation: float

    @property
    def r_squared(self) -> float:
        """Share of y's variance that the line explains."""
        return self.correlation**2


def linear_fit(x: ArrayLike, y: ArrayLike) -> Fit:
    """With x = R and y = Σ_k R_k^imp: Norm-ITPO lies on the diagonal by construction, ITPO wanders."""
    a, b = _pair(x, y)
    if not len(a) or np.ptp(a) == 0:
        return Fit(NAN, NAN, NAN)
    da, db = a - a.mean(), b - b.mean()
    slope = (da @ db) / (da @ da)
    correlation = (da @ db) / np.sqrt((da @ da) * (db @ db)) if np.ptp(b) > 0 else NAN
    return Fit(float(slope), float(b.mean() - slope * a.mean()), float(correlation))


@dataclass(frozen=True)
class Calibration:
    """Bins of predicted success that hold anything: mean prediction, mean outcome, count; and their gap."""

    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: Σ_bins count/N · |observed - predicted|."""
        return float(np.average(np.abs(self.observed - self.predicted), weights=self.count))


def calibration(scores: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> Calibration:
    """Reliability of sigmoid(R_φ) as a forecast of R, in `bins` of equal width."""
    x, y = _pair(scores, outcomes)
    require(len(x) > 0, "cannot calibrate on no dialogues")
    forecast = 1 / (1 + np.exp(-x))
    place = np.minimum((forecast * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    full = count > 0
    means = [np.bincount(place, weights=part, minlength=bins)[full] / count[full] for part in (forecast, y)]
    return Calibration(means[0], means[1], count[full])


# Agreement with the truth


@dataclass(frozen=True)
class Agreement:
    """How often a credit names a truly best and a truly worst turn, and how often chance would."""

    best: float
    worst: float
    best_by_chance: float
    worst_by_chance: float
    dialogues: int


def agreement(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike, tolerance: float) -> Agreement:
    """Best-turn and worst-turn agreement of `estimate` with `truth`, both (B, K).

    Every turn within `tolerance` of the true best counts as best, likewise for worst. A dialogue whose
    turns all lie within the tolerance asks nothing and is left out. Where the estimate ties, its pick is
    random among the tied. Chance is a turn picked blindly from these same dialogues.
    """
    require(tolerance >= 0, f"tolerance must be >= 0, got {tolerance}")
    rows = [
        (np.asarray(e)[m], np.asarray(t)[m]) for e, t, m in zip(*map(np.asarray, (estimate, truth, mask)), strict=True)
    ]
    rows = [(e, t) for e, t in rows if len(t) > 1 and np.ptp(t) > tolerance]
    hits = np.array([[*_hits(e, t, tolerance), *_hits(-e, -t, tolerance)] for e, t in rows])
    best, best_by_chance, worst, worst_by_chance = hits.mean(0).tolist() if rows else [NAN] * 4
    return Agreement(best, worst, best_by_chance, worst_by_chance, len(rows))


def _hits(estimate: np.ndarray, truth: np.ndarray, tolerance: float) -> tuple[float, float]:
    """Chance that the estimate's top turn, and that a blind pick, is among the truly best."""
    best = truth >= truth.max() - tolerance
    return float(best[estimate >= estimate.max() - 1e-9].mean()), float(best.mean())


# Length and collapse


@dataclass(frozen=True)
class LengthEffect:
    """A quantity by number of turns: mean, standard error and count per length, and the line through all."""

    turns: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    count: np.ndarray
    fit: Fit


def length_effect(n_turns: ArrayLike, values: ArrayLike) -> LengthEffect:
    """Does a reward or an advantage (N,) grow with the dialogue's length? The error of a single value is NaN."""
    lengths, y = _pair(n_turns, values)
    turns = np.unique(lengths)
    parts = [y[lengths == k] for k in turns]
    errors = [part.std(ddof=1) / np.sqrt(len(part)) if len(part) > 1 else NAN for part in parts]
    means, counts = [part.mean() for part in parts], [len(part) for part in parts]
    return LengthEffect(turns, np.array(means), np.array(errors), np.array(counts), linear_fit(lengths, y))


COLLAPSE_SIGNALS = ("outcome_std", "entropy", "distinct_questions")


def first_fall(values: Sequence[float], share: float = 0.5, window: int = 5) -> int | None:
    """Where the trailing mean of `window` values first lies below `share` of the first window's mean."""
    data = np.asarray(values, dtype=float)
    if len(data) <= window:
        return None
    trailing = np.convolve(data, np.ones(window) / window, "valid")  # entry i ends at value i + window - 1
    low = np.flatnonzero(trailing < share * trailing[0])
    return int(low[0]) + window - 1 if len(low) else None


def collapse_steps(
    metrics: Sequence[Mapping[str, Any]], signals: Sequence[str] = COLLAPSE_SIGNALS, share: float = 0.5, window: int = 5
) -> dict[str, int | None]:
    """The training step at which each signal of a run's metrics fell; None where it held.

    The spread of outcomes and the entropy fall before the mean does ("echo trap", arXiv 2504.20073). The
    spread also falls when nearly all succeed: read it together with the mean.
    """
    falls: dict[str, int | None] = {}
    for signal in signals:
        rows = [(row["step"], row[signal]) for row in metrics if row.get(signal) is not None]
        place = first_fall([value for _, value in rows], share, window)
        falls[signal] = None if place is None else int(rows[place][0])
    return falls


# Gradients, where they are exact


@dataclass(frozen=True)
class GradientRow:
    """One estimator on the enumerable world, against g = ∇E[R]. `baseline` None: returns as they are.

    `bias` |E[ĝ] - g| / |g|; `cosine` of E[ĝ] and g; `noise` √Var[ĝ] / |g| of one group; `length_pull`,
    the cosine of the bias and ∇E[number of turns]: above 0 the bias drags dialogues out.
    """

    credit: str
    baseline: str | None
    bias: float
    cosine: float
    noise: float
    length_pull: float


def gradient_table(
    dialogues: Dialogues,
    logits: torch.Tensor,
    log_ratios: torch.Tensor | None = None,
    credits: Sequence[str] = ("trajectory", "itpo", "norm_itpo", "oracle"),
) -> list[GradientRow]:
    """Exact bias and noise of RLOO, in groups of two, for every credit and baseline that go together.

    `logits` (S, A) are the policy, `log_ratios` (S, A, max length) a fixed PRM. (Credit "uniform" would
    show one draw of its shares.)
    """
    exact, longer = dialogues.gradient(logits, dialogues.outcomes), dialogues.gradient(logits, dialogues.n_turns)
    rows = []
    for name in credits:
        credit, gamma = named_credit(dialogues, name, log_ratios, logits=logits), discount(LearningRule(name))
        fitting = [b for b in baselines_for(name) if b != "signed" or credit.blame is not None]
        for baseline in (None, *fitting):
            found = expected_gradient(dialogues, logits, credit, 2, baseline, gamma)
            variance = gradient_variance(dialogues, logits, credit, 2, baseline, gamma)
            size, cosine = bias(found, exact)
            pull = bias(found - exact, longer)[1] if size > 1e-9 else 0.0
            rows.append(GradientRow(name, baseline, size, cosine, variance**0.5 / float(exact.norm()), pull))
    return rows


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    require(a.ndim == 1 and a.shape == b.shape, f"needs two lists of one length, got shapes {a.shape} and {b.shape}")
    return a, b
