"""The slow and plain: the whole algorithm in one loop, without TRL, and a generator without a cache.

The loop is what `ITPOTrainer` is held against: RLOO with Norm-ITPO credit, one optimizer step per batch, no KL.
Everything is written out on purpose.
"""

import copy

import torch

from itpo_lib.dialogue import collate
from itpo_lib.generation import CachedGenerator
from itpo_lib.rollout import Episode, play


def assistant_logprobs(model, batch):
    """log π of each completion token by a plain forward pass over whole dialogues, (B, T)."""
    rows = []
    for ids, start, length in zip(batch.input_ids, batch.prompt_lengths, batch.completion_lengths, strict=True):
        n = int(start + length)
        logprobs = model(input_ids=ids[None, :n]).logits[0].log_softmax(-1)
        chosen = logprobs[:-1].gather(-1, ids[1:n, None])[:, 0][int(start) - 1 :]
        rows.append(torch.nn.functional.pad(chosen, (0, batch.completion_ids.shape[1] - len(chosen))))
    return torch.stack(rows) * (batch.turn_ids > 0)


def reference_run(model, chat, task, batches, *, seeds, group, beta, eta, prm_lr, lr, whiten=True):
    """Train for `len(batches)` steps; yields (advantages, loss) of each step.

    `batches`: lists of goal indices, one per dialogue; `seeds`: their user seeds.
    """
    frozen, prm = copy.deepcopy(model), copy.deepcopy(model)
    prm_optimizer = torch.optim.AdamW(prm.parameters(), lr=prm_lr, weight_decay=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for goals, row_seeds in zip(batches, seeds, strict=True):
        # 1. play the dialogues
        episodes = [Episode(task.goal(g), s) for g, s in zip(goals, row_seeds, strict=True)]
        dialogues = play(model, chat, task, episodes)
        batch, outcomes = collate(dialogues, chat.pad_id), torch.tensor([d.outcome for d in dialogues]).to(model.dtype)
        # 2. one step of the PRM, then score again
        with torch.no_grad():
            ref = assistant_logprobs(frozen, batch)
        scores = beta * (assistant_logprobs(prm, batch) - ref).sum(1)
        prm_loss = -(outcomes * scores.sigmoid().log() + (1 - outcomes) * (-scores).sigmoid().log()).mean()
        prm_optimizer.zero_grad()
        prm_loss.backward()
        torch.nn.utils.clip_grad_norm_(prm.parameters(), 10.0)
        prm_optimizer.step()
        with torch.no_grad():
            token_rewards = beta * (assistant_logprobs(prm, batch) - ref)
        # 3. shares, leave-one-out on the outcome, return-to-go: row by row
        advantages = torch.zeros_like(ref)
        for i, dialogue in enumerate(dialogues):
            mates = [j for j in range(i - i % group, i - i % group + group) if j != i]
            edge = outcomes[i] - outcomes[mates].mean()
            sums = torch.stack([token_rewards[i][batch.turn_ids[i] == k].sum() for k in range(1, dialogue.n_turns + 1)])
            shares = torch.softmax(sums / eta, 0)
            for k in range(1, dialogue.n_turns + 1):
                advantages[i][batch.turn_ids[i] == k] = shares[k - 1 :].sum() * edge
        # 4. whiten over assistant tokens
        mask = batch.turn_ids > 0
        if whiten:
            mean = advantages[mask].mean()
            std = (advantages[mask] - mean).square().mean().sqrt()
            advantages = torch.where(mask, (advantages - mean) / std, 0.0) if std > 1e-8 else torch.zeros_like(ref)
        # 5. policy gradient, mean over assistant tokens
        logprobs = assistant_logprobs(model, batch)
        ratio = (logprobs - logprobs.detach()).exp()
        loss = -(torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield advantages.detach(), loss.item()


class ReprefillGenerator:
    """The slow oracle: forgets the cache after every turn and reads each dialogue from the start."""

    def __init__(self, model, stop_ids, temperature=1.0):
        self.model, self.stop_ids, self.temperature = model, stop_ids, temperature
        self.contexts = {}

    def generate(self, rows, new_ids, uniforms):
        for row, ids in zip(rows, new_ids, strict=True):
            self.contexts[row] = self.contexts.get(row, []) + ids
        fresh = CachedGenerator(self.model, self.stop_ids, self.temperature)
        turns = fresh.generate(rows, [self.contexts[row] for row in rows], uniforms)
        for row, turn in zip(rows, turns, strict=True):
            self.contexts[row] += turn.ids
        return turns
