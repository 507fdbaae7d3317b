"""Cross-entropy over the legal ids of each place only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foundation.tokens.layout import Slot
from foundation.tokens.vocabulary import EOS

CHUNK_LOGITS = 8 * 2**20
"""Logits that exist at a time; more are computed again in the backward pass, chunk by chunk."""


def slot_logits(hidden: Tensor, weight: Tensor, slot: Slot) -> Tensor:
    """Logits [m, slot.width] over the legal ids of a slot, eos last; hidden [m, D], weight [vocabulary, D]."""
    rows = weight[slot.start : slot.start + slot.size]
    if slot.ends:
        rows = torch.cat([rows, weight[EOS : EOS + 1]])
    return hidden @ rows.t()


def local_targets(targets: Tensor, slot: Slot) -> Tensor:
    """Ids to columns of `slot_logits`."""
    return torch.where(targets == EOS, slot.size, targets - slot.start)


def restricted_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, slots: Tensor, table: Sequence[Slot]
) -> Tensor:
    """Sum over all targets of -log p(target | legal ids), fp32 scalar.

    hidden [T, D], weight [vocabulary, D], targets and slots [T, S] with -1 where nothing is predicted.
    """
    if not bool((slots >= 0).any()):
        return 0.0 * hidden.sum(dtype=torch.float32)  # nothing to learn, but every rank takes part in the backward pass
    total = hidden.new_zeros((), dtype=torch.float32)
    for number, slot in enumerate(table):
        step, column = torch.nonzero(slots == number, as_tuple=True)
        if len(step) == 0:
            continue
        wanted = local_targets(targets[step, column], slot)
        chunk = max(1, CHUNK_LOGITS // slot.width)
        for first in range(0, len(step), chunk):
            h = hidden.index_select(0, step[first : first + chunk])
            y = wanted[first : first + chunk]
            if len(step) > chunk:
                total = total + checkpoint(_cross_entropy_sum, h, weight, y, slot, use_reentrant=False)
            else:
                total = total + _cross_entropy_sum(h, weight, y, slot)
    return total


def _cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, slot: Slot) -> Tensor:
    return F.cross_entropy(slot_logits(hidden, weight, slot).float(), targets, reduction="sum")
