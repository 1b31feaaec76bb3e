"""Replay for the PRM: dialogues of earlier batches, so that it keeps seeing failures once the policy succeeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .dialogue import DialogueBatch
from .errors import ItpoError, require


@dataclass
class Judged:
    """Dialogues with what the PRM learns them by. `ref_logprobs`: (B, T); `outcomes`: (B,); `valid`: (B,) bool."""

    batch: DialogueBatch
    ref_logprobs: Tensor
    outcomes: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.batch)

    def rows(self, index: Tensor | slice) -> Judged:
        """The same with only some rows, cut to their longest dialogue."""
        batch = self.batch.rows(index)
        ref_logprobs = self.ref_logprobs[index][:, : batch.turn_ids.shape[1]]
        return Judged(batch, ref_logprobs, self.outcomes[index], self.valid[index])

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, flat."""
        fields = {name: getattr(self.batch, name) for name in DialogueBatch.__dataclass_fields__}
        return {**fields, "ref_logprobs": self.ref_logprobs, "outcomes": self.outcomes, "valid": self.valid}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Judged:
        """The inverse of `tensors`."""
        batch = DialogueBatch(**{name: tensors[name] for name in DialogueBatch.__dataclass_fields__})
        return cls(batch, tensors["ref_logprobs"], tensors["outcomes"], tensors["valid"])


def joined(first: Judged, second: Judged) -> Judged:
    """The rows of both, `first` before `second`, right-padded to the longer."""
    ours, theirs = first.tensors(), second.tensors()
    together = {}
    for name, values in ours.items():
        pair = [values, theirs[name].to(values.device)]
        if values.dim() == 2:
            width = max(part.shape[1] for part in pair)
            pair = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in pair]
        together[name] = torch.cat(pair)
    return Judged.from_tensors(together)


class Replay:
    """The newest `capacity` dialogues, on the CPU, with exact state on disk."""

    def __init__(self, capacity: int):
        require(capacity > 0, f"a replay needs room for at least one dialogue, got capacity={capacity}")
        self.capacity = capacity
        self.kept: Judged | None = None

    def add(self, judged: Judged) -> None:
        """Keep the valid rows; the oldest leave once there are too many."""
        judged = Judged.from_tensors({name: values.cpu() for name, values in judged.tensors().items()})
        if judged.valid.any():
            fresh = judged.rows(judged.valid.nonzero()[:, 0])
            both = fresh if self.kept is None else joined(self.kept, fresh)
            self.kept = both.rows(slice(max(0, len(both) - self.capacity), None))

    def draw(self, n: int, seed: int) -> Judged | None:
        """At most `n` different rows, the same for the same `seed`; None while nothing is kept."""
        if self.kept is None:
            return None
        order = torch.randperm(len(self.kept), generator=torch.Generator().manual_seed(seed))
        return self.kept.rows(order[:n])

    def save(self, folder: Path) -> None:
        """All rows as one safetensors file; no file while nothing is kept."""
        if self.kept is not None:
            save_file({k: v.contiguous() for k, v in self.kept.tensors().items()}, folder / "replay.safetensors")

    def load(self, folder: Path) -> None:
        """The inverse of `save`."""
        path = folder / "replay.safetensors"
        require(path.exists(), f"checkpoint {folder} lacks {path.name}: it was made without prm_replay")
        try:
            self.kept = Judged.from_tensors(load_file(path))
        except (SafetensorError, KeyError) as error:
            raise ItpoError(f"corrupt checkpoint: {path} cannot be read ({error})") from error
