"""Older dialogues for the PRM, and its balanced loss."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import normal
from hypothesis import given
from hypothesis import strategies as st

from itpo_lib.dialogue import collate
from itpo_lib.errors import ItpoError
from itpo_lib.logprobs import token_logprobs
from itpo_lib.prm import ImplicitPRM, balance
from itpo_lib.replay import Judged, Replay, joined


def judged(chat, texts: list[str], first: int = 0) -> Judged:
    """One dialogue per text; outcomes count up from `first`, reference log-probs are -1 and lower."""
    opening = {"role": "user", "content": "help me please ."}
    batch = collate([chat.dialogue([opening, {"role": "assistant", "content": t}]) for t in texts], chat.pad_id)
    ref = (-1 - normal(first, *batch.turn_ids.shape, dtype=torch.float32).abs()) * batch.assistant_mask
    return Judged(batch, ref, first + torch.arange(len(texts)).float(), torch.ones(len(texts), dtype=torch.bool))


def same(one: Judged, other: Judged) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tensors().values(), other.tensors().values(), strict=True))


def test_joining_changes_no_row_and_no_logprob(chat, frozen_model):
    short, long = judged(chat, ["hello ."]), judged(chat, ["how many apples ?", "the answer is 12 plus 5 ."], 1)
    both = joined(short, long)
    assert same(both.rows(slice(0, 1)), short) and same(both.rows(slice(1, 3)), long)
    alone, together = token_logprobs(frozen_model, short.batch), token_logprobs(frozen_model, both.batch)[:1]
    assert torch.allclose(together[:, : alone.shape[1]], alone, atol=1e-5)
    assert together[:, alone.shape[1] :].eq(0).all()


def test_the_oldest_leave_first_and_failed_dialogues_never_enter(chat):
    replay = Replay(3)
    assert replay.draw(2, seed=0) is None
    first = judged(chat, ["hello .", "how many apples ?"])
    first.valid[1] = False
    for rows in (first, judged(chat, ["the answer is 12 plus 5 ."] * 2, 10), judged(chat, ["hello ."], 20)):
        replay.add(rows)
    assert replay.kept.outcomes.tolist() == [10, 11, 20]
    drawn = replay.draw(99, seed=4)
    assert sorted(drawn.outcomes.tolist()) == [10, 11, 20]
    assert same(drawn, replay.draw(99, seed=4))
    assert len({tuple(replay.draw(99, seed=s).outcomes.tolist()) for s in range(20)}) > 1


def test_state_survives_the_disk_and_damage_is_named(chat, tmp_path):
    replay, fresh = Replay(4), Replay(4)
    with pytest.raises(ItpoError, match=r"lacks replay\.safetensors"):
        fresh.load(tmp_path)
    replay.add(judged(chat, ["hello .", "how many apples ?"]))
    replay.save(tmp_path)
    fresh.load(tmp_path)
    assert same(replay.kept, fresh.kept)
    (tmp_path / "replay.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ItpoError, match="corrupt checkpoint"):
        fresh.load(tmp_path)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=12))
def test_good_and_bad_weigh_half_each_with_soft_outcomes_too(rows):
    outcomes, valid = torch.tensor([r for r, _ in rows]), torch.tensor([v for _, v in rows])
    weights, targets = balance(outcomes, valid)
    assert weights.isfinite().all() and weights[~valid].eq(0).all() and targets.isfinite().all()
    n, mean = valid.sum().item(), outcomes[valid].mean().item() if valid.any() else 0.0
    assert weights.sum().item() == pytest.approx(n, rel=1e-3)
    if 1e-3 < mean < 1 - 1e-3:
        assert (weights * targets).sum().item() == pytest.approx(n / 2, rel=1e-3)
        assert (weights * (1 - targets)).sum().item() == pytest.approx(n / 2, rel=1e-3)


@pytest.mark.parametrize("outcomes", [[1.0, 0.0, 0.0, 0.0], [0.25, 0.5, 0.75, 0.25]])
def test_mini_batches_keep_the_balance_of_the_batch(chat, model, outcomes):
    """Half-batches weigh their rows as the whole batch would, not by balances of their own."""
    rows = judged(chat, ["hello .", "how many apples ?", "the answer is 12 plus 5 .", "what a nice day ."])
    losses = []
    for size in (None, 2):
        prm = ImplicitPRM(copy.deepcopy(model), beta=0.5, lr=0.0, balanced=True, mini_batch=size)
        losses.append(prm.update(rows.batch, rows.ref_logprobs, torch.tensor(outcomes), rows.valid)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_balanced_prm_steps_as_if_the_rare_outcome_came_as_often(chat, model):
    """Three good dialogues and a bad one, balanced, are three good ones and the bad one three times."""
    rows = judged(chat, ["hello .", "how many apples ?", "the answer is 12 plus 5 .", "what a nice day ."])
    thrice = joined(rows, joined(rows.rows(slice(3, 4)), rows.rows(slice(3, 4))))
    found = []
    for lesson, balanced in ((rows, True), (thrice, False)):
        prm = ImplicitPRM(copy.deepcopy(model), beta=0.5, lr=1e-2, balanced=balanced)
        outcomes = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])[: len(lesson)]
        prm.update(lesson.batch, lesson.ref_logprobs, outcomes, lesson.valid)
        found.append(torch.cat([p.grad.flatten() for p in prm.model.parameters()]))
    assert found[0].norm() > 0.1 and torch.allclose(*found, atol=1e-4)
