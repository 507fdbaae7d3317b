"""Learned vectors before every sequence: places where attention can rest that stand for no particle."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from foundation.data.ragged import to_offsets
from foundation.model.attention import Packing


class Registers(nn.Module):
    """R vectors that all steps of a sequence attend to (arXiv:2309.16588; as attention sinks, arXiv:2309.17453).

    They stand at positions -R .. -1. As no step is before them, they are the same for every sequence.
    """

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(number, width))

    def forward(self, x: Tensor, positions: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Packing, Tensor]:
        """x [T, D], positions [T] -> the same with registers before each sequence, and where the steps went [T]."""
        number, counts = len(self.vectors), np.diff(packing.offsets)
        whole = Packing(to_offsets(counts + number), x.device)
        owner = np.repeat(np.arange(1, len(counts) + 1), counts)
        kept = torch.from_numpy(np.arange(len(owner)) + number * owner).to(x.device)
        before = torch.from_numpy((whole.offsets[:-1, None] + np.arange(number)).ravel()).to(x.device)
        mixed = x.new_empty(len(kept) + len(before), x.shape[1])
        mixed = mixed.index_copy(0, kept, x).index_copy(0, before, self.vectors.to(x.dtype).repeat(len(counts), 1))
        places = torch.arange(-number, 0, device=x.device).repeat(len(counts))
        shifted = positions.new_empty(len(mixed)).index_copy(0, kept, positions).index_copy(0, before, places)
        return mixed, shifted, whole, kept
