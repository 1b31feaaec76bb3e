"""What a batch reports of itself, and how its slices are regrouped, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import layout

from itpo_lib.batch_metrics import outcome_metrics, policy_metrics, speech_metrics
from itpo_lib.batching import regroup_by_length
from itpo_lib.dialogue import Dialogue, collate
from itpo_lib.learning import Experience
from itpo_lib.logprobs import token_logprobs


def test_outcome_metrics_by_hand():
    exp = Experience(
        outcomes=torch.tensor([1.0, 0.5, math.nan, 0.0]),
        valid=torch.tensor([True, True, False, True]),
        turn_ids=layout([[2, 1], [1], [1, 1, 1], [2]]),
        token_rewards=torch.zeros(4, 1),
    )
    found = outcome_metrics(exp, threshold=0.5, length_penalty=0.1)
    wanted = {"success": 2 / 3, "outcome": 0.5, "outcome_std": (1 / 6) ** 0.5, "score": 0.5 - 0.1 * 2, "turns": 7 / 4}
    assert found == pytest.approx(wanted)
    assert outcome_metrics(replace(exp, valid=torch.zeros(4, dtype=torch.bool)), 0.5, 0.1) == {"turns": 7 / 4}


def test_speech_metrics_by_hand():
    say = lambda *texts: Dialogue([], [{"role": "assistant", "content": text} for text in texts])  # noqa: E731
    assert speech_metrics([say("how many ?", "12"), say("how many ?", "3 4")]) == {
        "words": 9 / 2,
        "distinct_questions": 0.5,
    }
    assert speech_metrics([say("12"), say("1 2 3")]) == {"words": 2.0}


def test_policy_metrics_by_hand(frozen_model, chat):
    """The KL is the k3 estimate over the policy's own tokens; the sampler is probed on the first rows alone."""
    talk = [{"role": "user", "content": "help me please ."}, {"role": "assistant", "content": "how many apples ?"}]
    batch = collate([chat.dialogue(talk)] * 5, chat.pad_id)
    batch.logprobs = token_logprobs(frozen_model, batch, 2.0)
    batch.logprobs[3, 0] += 0.25
    batch.logprobs[4, 0] += 9.0
    log_ratio = torch.full(batch.turn_ids.shape, math.log(2.0))
    found = policy_metrics(frozen_model, batch, log_ratio, 2.0)
    assert found == pytest.approx({"kl_to_reference": 0.5 + math.log(2.0) - 1, "sampler_mismatch": 0.25}, abs=1e-5)


def test_slices_are_regrouped_by_length_and_nothing_is_lost():
    def piece(prompts: list[list[int]], completions: list[list[int]], weights: list[float]) -> dict:
        left = [[0] * (4 - len(p)) + p for p in prompts]
        right = [c + [0] * (5 - len(c)) for c in completions]
        ids = {"prompt_ids": torch.tensor(left), "completion_ids": torch.tensor(right)}
        masks = {name.replace("ids", "mask"): (values > 0).long() for name, values in ids.items()}
        more = {"old_per_token_logps": -0.1 * ids["completion_ids"], "advantages": torch.tensor(weights)}
        return {**ids, **masks, **more, "num_items_in_batch": 7}

    first = piece([[1, 2, 3], [4]], [[5, 6, 7, 8], [9]], [0.5, -0.5])  # of lengths 7, 2
    second = piece([[1], [2, 3]], [[4, 5, 6], [7]], [0.25, -0.25])  # of lengths 4, 3
    short, long = regroup_by_length([first, second])
    assert short["prompt_ids"].tolist() == [[0, 4], [2, 3]] and short["completion_ids"].tolist() == [[9], [7]]
    assert long["prompt_ids"].tolist() == [[0, 0, 1], [1, 2, 3]]
    assert long["completion_ids"].tolist() == [[4, 5, 6, 0], [5, 6, 7, 8]]
    for part, weights in ((short, [-0.5, -0.25]), (long, [0.25, 0.5])):
        assert part["advantages"].tolist() == weights and part["num_items_in_batch"] == 7
        assert torch.equal(part["old_per_token_logps"], -0.1 * part["completion_ids"])
        for name in ("prompt", "completion"):
            assert torch.equal(part[f"{name}_mask"], (part[f"{name}_ids"] > 0).long())
