"""Cross-entropy over the legal ids of each place only, with logits that never exist all at once.

The gradient is computed in the forward pass, chunk by chunk, while the logits of a chunk are still there, as in Liger
(arXiv:2410.10989): three matrix products instead of the four of computing the logits again in the backward pass, and no
more memory than one chunk and the gradients themselves.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foundation.tokens.layout import Slot
from foundation.tokens.vocabulary import EOS

CHUNK_LOGITS = 32 * 2**20
"""Logits that exist at a time. Chunks of less than some 500 steps would read the weights too often."""
SLICE_LOGITS = 2**19
"""Logits of which a CPU takes the softmax at a time: they stay in its cache."""


def slot_logits(hidden: Tensor, weight: Tensor, slot: Slot, bias: Tensor | None = None) -> Tensor:
    """Logits [m, slot.width] over the legal ids of a slot, eos last; hidden [m, D], weight [vocabulary, D]."""
    logits = hidden @ _legal(weight, slot).t()
    return logits if bias is None else logits + _legal(bias, slot)


def local_targets(targets: Tensor, slot: Slot) -> Tensor:
    """Ids to columns of `slot_logits`."""
    return torch.where(targets == EOS, slot.size, targets - slot.start)


def restricted_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    slots: Tensor,
    table: Sequence[Slot],
    bias: Tensor | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Sum over all targets of -log p(target | legal ids) + z_loss log^2 Z, an fp32 scalar (fp64 of fp64).

    hidden [T, D], weight [vocabulary, D], bias [vocabulary], targets and slots [T, S] with -1 where nothing is
    predicted. Z is the sum of exp(logit) over the legal ids (arXiv:2204.02311, section 5). Matrix products are in the
    type of autocast where that is on, else in that of `hidden`; sums of logits and of gradients are in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    groups = list(_by_slot(targets, slots, table))
    if device == "cuda" and liger_installed():
        return _liger(hidden, weight, bias, groups, z_loss, dtype)
    return _FusedLoss.apply(hidden, weight, bias, groups, z_loss, dtype, torch.is_grad_enabled())


@dataclass(frozen=True)
class _Group:
    """All targets of one slot: steps [m], rows of `hidden`; columns [m] of `slot_logits` that are right."""

    slot: Slot
    steps: Tensor
    columns: Tensor


def _by_slot(targets: Tensor, slots: Tensor, table: Sequence[Slot]) -> Iterator[_Group]:
    # sorted, not searched for slot by slot: the device is asked once for the numbers
    flat = slots.reshape(-1)
    order = flat.to(torch.int16).argsort(stable=True)
    unused, *counts = torch.bincount(flat + 1, minlength=len(table) + 1).tolist()
    places = order[unused:].split(counts)
    for slot, place in zip(table, places, strict=True):
        if len(place):
            wanted = targets.reshape(-1).index_select(0, place)
            yield _Group(slot, place // slots.shape[1], local_targets(wanted, slot))


def _legal(values: Tensor, slot: Slot) -> Tensor:
    """Rows of the legal ids of a slot, eos last, of values [vocabulary, ...]."""
    rows = values[slot.start : slot.start + slot.size]
    return torch.cat([rows, values[EOS : EOS + 1]]) if slot.ends else rows


class _Head:
    """One slot's output rows at work, chunk by chunk; adds up their gradients."""

    def __init__(self, rows: Tensor, bias: Tensor | None, chunk: int, z_loss: float, learning: bool) -> None:
        """rows [width, D] in the type of the matrix products, bias [width]; chunk: most steps at a time."""
        exact = _exact(rows.dtype)
        self.rows, self.bias, self.z_loss = rows, bias, z_loss
        # kept from chunk to chunk: fresh memory of this size costs a CPU a good part of what is done with it
        self.scores = rows.new_empty(chunk, len(rows))
        self.slice = min(chunk, max(1, SLICE_LOGITS // len(rows))) if rows.device.type == "cpu" else chunk
        self.logits = None if rows.dtype == exact else rows.new_empty(self.slice, len(rows), dtype=exact)
        self.d_rows = torch.zeros_like(rows, dtype=exact) if learning else None
        self.product = torch.empty_like(rows) if learning and self.logits is not None else None
        self.d_bias = None if bias is None or not learning else torch.zeros_like(bias, dtype=exact)

    def __call__(self, hidden: Tensor, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """Summed loss of steps hidden [m, D] with these right columns [m], and its gradient [m, D] where learning."""
        scores = torch.mm(hidden, self.rows.t(), out=self.scores[: len(hidden)])
        slices = zip(scores.split(self.slice), columns[:, None].split(self.slice), strict=True)
        losses, factors = zip(*(self._softmax(*part) for part in slices), strict=True)
        loss = torch.stack(losses).sum()
        return loss, None if self.d_rows is None else self._gradients(hidden, scores, torch.cat(factors))

    def _softmax(self, scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss of scores [n, width] with these right columns [n, 1], and factors [n, 1].

        Leaves d_scores in `scores`: their product with the factors, row by row, is the gradient of the logits. The
        factors are left for the small side of the products that follow, which saves a pass over the logits.
        """
        logits = scores if self.logits is None else self.logits[: len(scores)].copy_(scores)
        if self.bias is not None:
            logits += self.bias
        chosen, top = logits.gather(1, right), logits.amax(1, keepdim=True)
        total = logits.sub_(top).exp_().sum(1, keepdim=True)
        log_z = top + total.log()
        factor = (1.0 + 2.0 * self.z_loss * log_z) / total
        if self.d_rows is not None:
            logits.scatter_add_(1, right, -1.0 / factor)
            if self.d_bias is not None:
                self.d_bias.addmv_(logits.t(), factor[:, 0])
            if self.logits is not None:
                scores.copy_(logits)
        return (log_z - chosen + self.z_loss * log_z**2).sum(), factor

    def _gradients(self, hidden: Tensor, d_scores: Tensor, factor: Tensor) -> Tensor:
        """Adds to the gradient of the rows, and returns that of `hidden`."""
        assert self.d_rows is not None
        scaled = (hidden * factor).to(hidden.dtype)
        if self.d_rows.dtype == d_scores.dtype:
            self.d_rows.addmm_(d_scores.t(), scaled)
        else:
            _add(self.d_rows, torch.mm(d_scores.t(), scaled, out=self.product))
        return (d_scores @ self.rows) * factor


class _FusedLoss(torch.autograd.Function):
    """Forward keeps the gradients of the sum; backward multiplies them with the gradient that the sum gets."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        groups: list[_Group],
        z_loss: float,
        dtype: torch.dtype,
        learning: bool,
    ) -> Tensor:
        learning = learning and any(ctx.needs_input_grad)
        total = hidden.new_zeros((), dtype=_exact(dtype))
        d_hidden = torch.zeros_like(hidden, dtype=total.dtype) if learning else None
        gradients: list[Tensor | None] = []
        with torch.autocast(hidden.device.type, enabled=False):
            for group in groups:
                chunk = _chunk(len(group.steps), group.slot.width)
                rows = _legal(weight, group.slot).to(dtype)
                head = _Head(rows, None if bias is None else _legal(bias, group.slot), chunk, z_loss, learning)
                for steps, columns in zip(group.steps.split(chunk), group.columns.split(chunk), strict=True):
                    loss, d_steps = head(hidden.index_select(0, steps).to(dtype), columns)
                    total += loss
                    if d_hidden is not None and d_steps is not None:
                        d_hidden.index_add_(0, steps, d_steps)
                gradients += [head.d_rows, head.d_bias]
        ctx.slots, ctx.hidden_dtype = [group.slot for group in groups], hidden.dtype
        ctx.like = [(None if x is None else (x.shape, x.dtype)) for x in (weight, bias)]
        ctx.save_for_backward(d_hidden, *gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden, *gradients = ctx.saved_tensors
        d_weight, d_bias = (
            None if like is None else _spread(gradients[i::2], ctx.slots, scale, *like)
            for i, like in enumerate(ctx.like)
        )
        return (d_hidden * scale).to(ctx.hidden_dtype), d_weight, d_bias, None, None, None, None


def _spread(parts: list[Tensor], slots: list[Slot], scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The inverse of `_legal`: a tensor of this shape that holds the slots' parts times `scale`, else 0."""
    whole = torch.zeros(shape, dtype=dtype, device=scale.device)
    for part, slot in zip(parts, slots, strict=True):
        whole[slot.start : slot.start + slot.size].addcmul_(part[: slot.size], scale)
        if slot.ends:
            whole[EOS].addcmul_(part[-1], scale)
    return whole


def _add(total: Tensor, part: Tensor) -> None:
    """total += part, which is of another type; a CPU would write all of it anew in that of `total` first."""
    rows = max(1, SLICE_LOGITS // total.shape[1]) if total.device.type == "cpu" else len(total)
    for sliced, added in zip(total.split(rows), part.split(rows), strict=True):
        sliced += added


def _chunk(steps: int, width: int) -> int:
    """Steps of a chunk: as many as there may be logits for, and about as many in the last chunk as in the others."""
    chunks = -(-steps * width // CHUNK_LOGITS)
    return -(-steps // chunks)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Type of sums: at least fp32."""
    return torch.promote_types(dtype, torch.float32)


def _liger(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, groups: list[_Group], z_loss: float, dtype: torch.dtype
) -> Tensor:
    """The same by the kernels of Liger, which is installed."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # where nothing is to learn, this rank takes part in the backward pass all the same
    total = 0.0 * hidden.sum(dtype=_exact(dtype))
    for group in groups:
        steps = hidden.index_select(0, group.steps).to(dtype)
        rows = _legal(weight, group.slot).to(dtype)
        added = None if bias is None else _legal(bias, group.slot).to(dtype)
        total = total + liger_fused_linear_cross_entropy(
            steps, rows, group.columns, added, lse_square_scale=z_loss, reduction="sum"
        )
    return total


@cache
def liger_installed() -> bool:
    """Whether the kernels of the extra `liger` are there."""
    return importlib.util.find_spec("liger_kernel") is not None
