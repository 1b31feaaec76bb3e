"""What every check shares: run a student's answer with care, compare, and name the likely mistake.

A `Check` holds a right answer in float64, random and odd cases, and typical wrong answers. Whichever
wrong answer behaves as the student's does names the mistake; no message tells how to do it right.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import require

VISIBLE, HIDDEN = range(4), range(100, 130)  # seeds; from 100 on the cases are larger
SECONDS = 20.0  # of computing, not of waiting: what one check may take, also on a busy machine
Case = tuple[str, tuple]  # what is special about it, and the arguments
Cases = Callable[[int], Iterable[Case]]


class CheckFailed(AssertionError):
    """An answer that is not right yet; the message says what to look at."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message alone, without the library's stack."""
        return [f"✗ {self}"]


class TooSlow(BaseException):
    """Raised into an answer that does not come to an end; `except Exception` does not swallow it."""


class Draw:
    """Random inputs of one seed, float32 as in training; hidden seeds draw larger ones."""

    def __init__(self, seed: int):
        self.generator, self.most = torch.Generator().manual_seed(seed), 4 if seed < HIDDEN.start else 7

    def integer(self, low: int, high: int | None = None) -> int:
        """A whole number from `low` to `high` (default: the seed's largest size), both included."""
        return int(torch.randint(low, (self.most if high is None else high) + 1, (), generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return 0.001 + 0.998 * torch.rand(*shape, generator=self.generator)

    def turn_ids(self, counts: Sequence[int], glue: int | None = None) -> Tensor:
        """(B, T) ids: dialogue i has `counts[i]` turns of 1 to 4 tokens, each followed by user tokens."""
        rows: list[list[int]] = [[] for _ in counts]
        for row, count in zip(rows, counts, strict=True):
            for k in range(1, count + 1):
                row += [k] * self.integer(1, 4) + [0] * (self.integer(0, 2) if glue is None else glue)
        width = max(1, *map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def on_layouts(build: Callable[[Draw, Tensor, int], tuple]) -> Cases:
    """Cases from the turn ids (B, T) and K of every kind of batch."""

    def cases(seed: int) -> Iterator[Case]:
        draw = Draw(seed)
        counts = [draw.integer(1) for _ in range(draw.integer(2, 5))]
        for special, ids, k in (
            ("a random batch", draw.turn_ids(counts), max(counts)),
            ("turns that touch, with no user token between", draw.turn_ids([3, 2], glue=0), 3),
            ("a dialogue without any turn", draw.turn_ids([2, 0, 1], glue=1), 2),
            ("more columns than turns", draw.turn_ids([1, 2], glue=1), 4),
            ("one turn that fills the row", torch.ones(1, 4, dtype=torch.long), 1),
        ):
            yield special, build(draw, ids, k)

    return cases


def on_groups(build: Callable[[Draw, Tensor, int], tuple]) -> Cases:
    """Cases from the mask (B, K) of the turns that exist, in groups of G neighbours."""

    def cases(seed: int) -> Iterator[Case]:
        draw = Draw(seed)
        for g in (2, draw.integer(3)):
            for special, counts in (
                ("dialogues of different length", [draw.integer(1) for _ in range(2 * g)]),
                ("dialogues of equal length", [3] * g),
                ("one long dialogue among short ones", [4] + [1] * (g - 1)),
            ):
                mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
                yield f"{special}, groups of {g}", build(draw, mask, g)

    return cases


def run(fn: Callable[..., Any], *args: Any) -> Any:
    """The answer's result on copies of `args`; whatever it raises becomes a `CheckFailed`."""
    mine = copy.deepcopy(args)
    try:
        result = fn(*mine)
    except CheckFailed:
        raise
    except NotImplementedError as error:
        raise CheckFailed("not written yet: put your code in place of `raise NotImplementedError()`") from error
    except (Exception, SystemExit) as error:
        frames = [
            f for f in traceback.extract_tb(error.__traceback__)[1:] if f.line and "site-packages" not in f.filename
        ]
        line = f" (in line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
        arguments = ", ".join(map(describe, args))
        raise CheckFailed(
            f"your code raised {type(error).__name__}: {error}{line}\n  for the arguments ({arguments})"
        ) from error
    for i, (before, after) in enumerate(zip(args, mine, strict=True)):
        if isinstance(before, Tensor | np.ndarray | list | dict) and not same(after, before, 0.0):
            raise CheckFailed(f"your code changes its argument number {i + 1} in place; later code still needs it")
    return result


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop what takes longer, where the system has alarms and this is the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except TooSlow:
        raise CheckFailed(
            f"no result after {seconds:g} seconds of computing: is there a loop that never ends?"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


@dataclass
class Check:
    """The check of one exercise; call it with the student's answer.

    `reference`: a right answer. `cases(seed)`: inputs. `mistakes`: message -> a wrong answer that makes
    it. `probe(answer, *inputs)`: what is compared (default: the answer's own result), so that a loss can
    be judged by its gradient and a class by its behaviour.
    """

    title: str
    reference: Callable[..., Any]
    cases: Cases
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    probe: Callable[..., Any] = run
    tolerance: float = 1e-4

    def __call__(self, answer: Callable[..., Any], seeds: Iterable[int] = VISIBLE) -> None:
        require(callable(answer), f"{self.title}: hand over the function itself, without calling it")
        try:
            with time_limit(SECONDS), torch.random.fork_rng(devices=[]):
                number = self._judge(answer, [case for seed in seeds for case in self.cases(seed)])
        except CheckFailed as failure:
            raise CheckFailed(f"{self.title}: {failure}") from failure.__cause__
        print(f"✓ {self.title}: right in {number} cases")

    def _judge(self, answer: Callable[..., Any], cases: list[Case]) -> int:
        found = [self.probe(answer, *args) for _, args in cases]
        wanted = [self._double(self.reference, case) for case in cases]
        wrong = [i for i in range(len(cases)) if not same(found[i], wanted[i], self.tolerance)]
        if wrong and (message := self._diagnose(cases, found, wanted, wrong)):
            raise CheckFailed(message)
        if wrong:
            raise CheckFailed(f"{difference(found[wrong[0]], wanted[wrong[0]])}\n  in this case: {cases[wrong[0]][0]}")
        return len(cases)

    def _diagnose(self, cases: list[Case], found: list, wanted: list, wrong: list[int]) -> str | None:
        """The mistake that explains most of the wrong results, if that is more than half of them."""
        some = wrong[:30] + [i for i in range(len(cases)) if i not in wrong][:10]  # the right ones break ties
        best, hits = None, (len(wrong[:30]) / 2, 0)
        for message, mistake in {**self.mistakes, **ALWAYS}.items():
            alike = [i for i in some if self._behaves_as(message, mistake, cases[i], found[i], wanted[i])]
            if (score := (len(set(alike).intersection(wrong)), len(alike))) > hits:
                best, hits = message, score
        return best

    def _double(self, answer: Callable[..., Any], case: Case) -> Any:
        """The probe in float64."""
        double = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in case[1]]
        return self.probe(answer, *double)

    def _behaves_as(self, message: str, mistake: Callable[..., Any], case: Case, found: Any, wanted: Any) -> bool:
        try:
            if message in ALWAYS:
                return same(found, mistake(numbers(wanted)), self.tolerance)
            other = self._double(mistake, case)
            if (given := numbers(found)) is not None and (alike := numbers(other)) is not None:
                return same(
                    given.nan_to_num(0.0), alike.nan_to_num(0.0), self.tolerance
                )  # a 0 / 0 on top of the mistake
            return same(found, other, self.tolerance)
        except (Exception, CheckFailed):
            return False


def _shift(x: Tensor, by: int) -> Tensor:
    return torch.nn.functional.pad(x, (by, -by))


ALWAYS: dict[str, Callable[[Tensor], Tensor]] = {  # mistakes that any answer can make, as functions of the right result
    "you return 0 everywhere": torch.zeros_like,
    "the sign is reversed": torch.neg,
    "off by one: your columns are one too far to the right": lambda x: _shift(x, 1),
    "off by one: your columns are one too far to the left": lambda x: _shift(x, -1),
    "rows and columns are swapped": lambda x: x.mT if x.ndim > 1 else x,
    "you add up over the wrong axis: every row is the same": lambda x: x.sum(0, keepdim=True).expand(x.shape),
    "you return one number; wanted is one for each row": lambda x: x.sum(),
}


def same(found: Any, wanted: Any, tolerance: float) -> bool:
    """Equal in structure, shape and value. Lists and arrays of numbers count as tensors, 0 and 1 as False and True."""
    if isinstance(wanted, dict):
        alike = isinstance(found, dict) and found.keys() == wanted.keys()
        return alike and all(same(found[key], value, tolerance) for key, value in wanted.items())
    if (right := numbers(wanted)) is None:
        if isinstance(wanted, tuple | list):
            alike = isinstance(found, tuple | list) and len(found) == len(wanted)
            return alike and all(same(f, w, tolerance) for f, w in zip(found, wanted, strict=True))
        return type(found) is type(wanted) and bool(found == wanted)
    if (given := numbers(found)) is None or given.shape != right.shape:
        return False
    scale = float(right.abs().nan_to_num(0.0).max()) if right.numel() else 1.0
    slack = tolerance * min(max(scale, 0.01), 1.0)  # stays below the values it guards
    return torch.allclose(given, right, rtol=tolerance, atol=slack, equal_nan=True)


def numbers(value: Any) -> Tensor | None:
    """A float64 copy of a number, a tensor, an array or a nested list of numbers; None for anything else."""
    if isinstance(value, str | bytes | dict) or value is None:
        return None
    try:
        return torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value).detach().double()
    except (TypeError, ValueError, RuntimeError):
        return None


def difference(found: Any, wanted: Any) -> str:
    """Where two results differ first, in a sentence."""
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        key = next(k for k in wanted if not same(found[k], wanted[k], 1e-4))
        return (
            f"expected, but not so: {key}" if wanted[key] is True else f"{key}: {difference(found[key], wanted[key])}"
        )
    right, given = numbers(wanted), numbers(found)
    if right is None or given is None:
        if isinstance(wanted, tuple | list) and isinstance(found, tuple | list) and len(found) == len(wanted):
            i = next(i for i in range(len(wanted)) if not same(found[i], wanted[i], 1e-4))
            return f"result {i + 1} of {len(wanted)}: {difference(found[i], wanted[i])}"
        return f"you return {describe(found)}, wanted {describe(wanted)}" + "; is a `return` missing?" * (found is None)
    if given.shape != right.shape:
        return f"you return the shape {tuple(given.shape)}, wanted {tuple(right.shape)}"
    if not given.isfinite().all() and right.isfinite().all():
        return f"you return {float(given[~given.isfinite()][0])} somewhere: a division by 0, a log of 0, or inf - inf?"
    where = tuple(((given - right).abs() > 1e-4 * right.abs().clamp(max=1.0)).nonzero()[:1].flatten().tolist())
    integers = "; whole numbers lose fractions" if "int" in describe(found) and (right % 1).any() else ""
    at = f"at {list(where)} " if where else ""
    return f"{at}you return {float(given[where]):.6g}, wanted {float(right[where]):.6g}{integers}"


def describe(value: Any) -> str:
    """A value in a few words: a tensor by dtype and shape, anything else by its text."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    text = getattr(value, "__name__", "a function") if callable(value) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
