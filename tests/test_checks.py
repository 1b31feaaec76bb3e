"""Mutation tests of the checks: every stored wrong answer is refused, every right one accepted, and nothing fools them."""

from __future__ import annotations

import contextlib
import copy
import sys
import threading

import numpy as np
import pytest
import torch
from wrong_answers import RIGHT, WRONG

from itpo_lib import checks
from itpo_lib.checks import core
from itpo_lib.checks.core import Check, CheckFailed, Draw, difference, same
from itpo_lib.errors import ItpoError

NAMES = [name.removeprefix("check_") for name in checks.CHECKS]
PLAIN = {name: check for name, check in checks.CHECKS.items() if isinstance(check, Check)}
DEFAULT = {name: check for name, check in PLAIN.items() if check.probe is core.run}
FEW = range(1)
CHANGEABLE = [
    name
    for name, check in DEFAULT.items()
    if any(isinstance(x, torch.Tensor | list | dict) for _, args in check.cases(0) for x in args)
]


def stored(answers):
    return [pytest.param(c, a, id=f"{c}-{label}") for c, found in answers.items() for label, a in found.items()]


def labelled(answers):
    return [pytest.param(c, label, a, id=f"{c}-{label}") for c, found in answers.items() for label, a in found.items()]


# The stored answers


@pytest.mark.parametrize(("check", "label", "answer"), labelled(WRONG))
def test_wrong_answers_are_refused(check, label, answer, capsys):
    """With the message that the label asks for."""
    with pytest.raises(CheckFailed) as failure:
        checks.CHECKS[f"check_{check}"](answer)
    _, _, word = label.partition(" | ")
    assert word in str(failure.value), f"the message does not say {word!r}: {failure.value}"
    assert "✓" not in capsys.readouterr().out


@pytest.mark.parametrize(("check", "answer"), stored(RIGHT))
@pytest.mark.parametrize("seeds", [checks.VISIBLE, checks.HIDDEN], ids=["visible", "hidden"])
def test_right_answers_are_accepted(check, answer, seeds, capsys):
    checks.CHECKS[f"check_{check}"](answer, seeds=list(seeds)[:4])
    assert capsys.readouterr().out.startswith("✓")


def test_every_exercise_has_enough_stored_answers():
    assert set(WRONG) == set(RIGHT) == set(NAMES)
    assert min(map(len, WRONG.values())) >= 5 and min(map(len, RIGHT.values())) >= 2


# The mistakes that a check knows


@pytest.mark.parametrize("name", PLAIN)
def test_every_known_mistake_gets_its_own_message(name):
    """No mistake is let through, and none hides behind another's message."""
    check = PLAIN[name]
    for message, mistake in check.mistakes.items():
        with pytest.raises(CheckFailed) as failure:
            check(mistake, seeds=range(2))
        assert message in str(failure.value)


@pytest.mark.parametrize("name", PLAIN)
def test_the_reference_passes(name, capsys):
    PLAIN[name](PLAIN[name].reference, seeds=range(100, 104))
    assert "right in" in capsys.readouterr().out


def test_messages_hold_no_code():
    """A message names the mistake; it never hands over a line of the solution."""
    for check in PLAIN.values():
        for message in check.mistakes:
            assert not any(code in message for code in ("torch", "lambda", "(1)", "dim=", "==")), message


# What must not fool a check


def spoil(answer, how):
    """A right answer, spoilt in a way that has nothing to do with the exercise."""

    def spoilt(*args):
        result = answer(*copy.deepcopy(args))
        return how(result, args)

    return spoilt


def overwrite(result, args):
    for x in args:
        if isinstance(x, torch.Tensor):
            x.copy_(~x if x.dtype == torch.bool else x + 7)
        elif isinstance(x, list):
            x.clear()
        elif isinstance(x, dict):
            x.clear()
    return result


def to_nan(result, args):
    if isinstance(result, tuple):
        return tuple(to_nan(r, args) for r in result)
    return torch.as_tensor(result).double() * torch.nan


@pytest.mark.parametrize("name", CHANGEABLE)
def test_changed_arguments_are_noticed(name):
    check = DEFAULT[name]
    with pytest.raises(CheckFailed, match="in place"):
        check(spoil(check.reference, overwrite), seeds=FEW)


@pytest.mark.parametrize("name", [name for name in DEFAULT if name != "check_parse_verdict"])
def test_nan_is_noticed(name):
    check = DEFAULT[name]
    with pytest.raises(CheckFailed):
        check(spoil(check.reference, to_nan), seeds=FEW)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "prm_step"])  # whose result nobody looks at
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda *args: (_ for _ in ()).throw(NotImplementedError()), "not written yet"),
        (lambda *args: 1 / 0, "ZeroDivisionError"),
        (lambda *args: sys.exit(0), "SystemExit"),
        (lambda *args: "a text", ""),
        (lambda *args: None, ""),
        (lambda: None, ""),
        (lambda *args: [[1.0, 2.0], [3.0]], ""),
        (lambda *args: object(), ""),
        (lambda *args: np.array(["a"]), ""),
    ],
    ids=["stub", "raises", "exits", "text", "None", "no arguments", "ragged", "object", "array of texts"],
)
def test_answers_that_are_no_answers(name, answer, message):
    with pytest.raises(CheckFailed, match=message or None):
        checks.CHECKS[f"check_{name}"](answer, seeds=FEW)


def test_endless_loops_are_stopped(monkeypatch):
    monkeypatch.setattr(core, "SECONDS", 0.3)

    def forever(values, turn_ids, n_turns):
        while True:
            with contextlib.suppress(Exception):  # must not swallow the alarm
                values = values + 1

    with pytest.raises(CheckFailed, match="never ends"):
        checks.CHECKS["check_turn_sums"](forever)


def test_checks_work_outside_the_main_thread():
    failures = []

    def work():
        try:
            checks.CHECKS["check_turn_sums"](lambda v, i, k: v)
        except CheckFailed as failure:
            failures.append(str(failure))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(failures) == 1


def test_a_check_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)

    def reseeds(values, turn_ids, n_turns):
        torch.manual_seed(123)
        return torch.zeros(len(values), n_turns).scatter_add(1, (turn_ids - 1).clamp(min=0), values * (turn_ids > 0))

    checks.CHECKS["check_turn_sums"](reseeds)
    assert torch.equal(torch.rand(1), expected)


def test_results_of_other_kinds_are_taken_as_they_are():
    """float64, numpy and results with gradients are right answers too."""
    check, reference = checks.CHECKS["check_turn_sums"], PLAIN["check_turn_sums"].reference
    check(lambda v, i, k: reference(v.double(), i, k))
    check(lambda v, i, k: reference(v, i, k).numpy())
    check(lambda v, i, k: reference(v, i, k).requires_grad_(True))
    check(lambda v, i, k: reference(v, i, k).tolist())


def test_calling_the_function_first_is_explained():
    with pytest.raises(ItpoError, match="without calling it"):
        checks.CHECKS["check_turn_sums"](torch.zeros(2))


def test_notebooks_show_the_message_without_the_stack():
    assert CheckFailed("turn sums: hm")._render_traceback_() == ["✗ turn sums: hm"]


def test_an_error_names_the_line():
    with pytest.raises(CheckFailed, match=r"in line \d+: return values \+ missing_name"):
        checks.CHECKS["check_turn_sums"](broken)


def broken(values, turn_ids, n_turns):
    return values + missing_name  # noqa: F821


# The tools


def test_hidden_cases_are_larger():
    sizes = [max(Draw(s).most for s in seeds) for seeds in (checks.VISIBLE, checks.HIDDEN)]
    assert sizes[0] < sizes[1]
    largest = max(args[0].shape[0] for s in checks.HIDDEN for _, args in PLAIN["check_turn_sums"].cases(s))
    assert largest > max(args[0].shape[0] for s in checks.VISIBLE for _, args in PLAIN["check_turn_sums"].cases(s)) - 1


def test_cases_depend_on_the_seed_alone():
    for check in PLAIN.values():
        one, two = list(check.cases(3)), list(check.cases(3))
        for (_, a), (_, b) in zip(one, two, strict=True):
            plain = [(x, y) for x, y in zip(a, b, strict=True) if not callable(x) and not hasattr(x, "world")]
            assert all(same(x, y, 0.0) for x, y in plain)


def test_same():
    assert same([1.0, 2.0], torch.tensor([1.0, 2.0]), 1e-4) and same(np.float32(0.5), 0.5, 1e-4)
    assert same(np.array([2.0, 1.0])[::-1], torch.tensor([1.0, 2.0]), 1e-4), "a view with negative strides"
    assert same({"a": [1, "x"]}, {"a": [1, "x"]}, 1e-4) and not same({"a": 1}, {"a": 1, "b": 2}, 1e-4)
    assert not same(torch.tensor([1e-3]), torch.tensor([0.0]), 1e-4)
    assert not same(torch.tensor([0.0]), torch.tensor([1e-3]), 1e-4), "the tolerance must stay below the values"
    assert (
        not same(torch.zeros(2, 1), torch.zeros(2), 1e-4) and not same(None, 0.0, 1e-4) and not same(True, None, 1e-4)
    )


def test_difference_says_where():
    assert difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])) == "at [1] you return 2, wanted 3"
    assert "shape (2,), wanted (1, 2)" in difference(torch.zeros(2), torch.zeros(1, 2))
    assert "nan" in difference(torch.tensor([torch.nan]), torch.tensor([0.0]))
    assert "`return` missing" in difference(None, torch.zeros(2))
    assert difference((1.0, 5.0), (1.0, 2.0)) == "at [1] you return 5, wanted 2"
    assert difference({"it holds": False}, {"it holds": True}) == "expected, but not so: it holds"
