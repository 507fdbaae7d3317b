"""Causal attention inside each sequence of a packed batch: one function, the fastest backend of the device.

CUDA, half precision: `torch.nn.attention.varlen` over the flat batch. Elsewhere: sequences of similar length are
laid side by side and go through SDPA; padding is on the right, so the causal mask alone keeps it out of real queries.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foundation.data.ragged import length_buckets


class Packing:
    """Where the sequences of a flat batch are: made once per batch, shared by all layers.

    offsets: int64 [B + 1]; sequence b owns steps offsets[b]:offsets[b + 1]
    places: int64 [T]; where each step stands in the padded buckets, laid one behind the other
    shapes: (sequences, length) of each bucket
    """

    def __init__(self, offsets: NDArray[np.int64], device: torch.device) -> None:
        self.offsets = offsets
        self.cumulative = torch.from_numpy(offsets.astype(np.int32)).to(device)
        self.longest = int(np.diff(offsets).max(initial=0))
        self.shapes: list[tuple[int, int]] = []
        places = np.empty(int(offsets[-1]), np.int64)
        self.padded = 0
        for bucket in length_buckets(offsets):
            places[bucket.rows[bucket.valid]] = self.padded + np.flatnonzero(bucket.valid.ravel())
            self.padded += bucket.rows.size
            self.shapes.append((bucket.rows.shape[0], bucket.rows.shape[1]))
        self.places = torch.from_numpy(places).to(device)


def attend(qk: Tensor, v: Tensor, heads: int, packing: Packing) -> Tensor:
    """Causal attention within sequences: queries and keys qk [T, H + G, d], v [T, G, d] -> [T, H, d]; heads is H."""
    if qk.is_cuda and qk.dtype in (torch.bfloat16, torch.float16):
        return _varlen(qk[:, :heads], qk[:, heads:], v, packing)
    return _bucketed(qk, v, heads, packing)


def _bucketed(qk: Tensor, v: Tensor, heads: int, packing: Packing) -> Tensor:
    groups = v.shape[1]
    padded = _Spread.apply(qk, v, packing.places, packing.padded)
    outputs = []
    for (b, length), part in zip(packing.shapes, padded.split([b * n for b, n in packing.shapes]), strict=True):
        q, k, v = part.view(b, length, -1, v.shape[-1]).transpose(1, 2).split((heads, groups, groups), dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != groups)
        outputs.append(y.transpose(1, 2).flatten(0, 1))
    return _Gather.apply(torch.cat(outputs), packing.places)


class _Spread(torch.autograd.Function):
    """Rows of qk and v, side by side, to distinct places of a longer, else zero tensor.

    Distinct places make the gradient a plain gather, several times faster than that of general indexing.
    """

    @staticmethod
    def forward(ctx: Any, qk: Tensor, v: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.heads = qk.shape[1]
        padded = qk.new_zeros(size, qk.shape[1] + v.shape[1], v.shape[2])
        padded[:, : ctx.heads].index_copy_(0, places, qk)
        padded[:, ctx.heads :].index_copy_(0, places, v)
        return padded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        rows = gradient.index_select(0, places)
        return rows[:, : ctx.heads], rows[:, ctx.heads :], None, None


class _Gather(torch.autograd.Function):
    """The inverse of _Spread: the rows at distinct places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, places, gradient), None


def _varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    c, n = packing.cumulative, packing.longest
    attended = varlen_attn(q, k, v, c, c, n, n, **_causal_argument())
    assert isinstance(attended, Tensor)  # a tuple only when the normalisation is asked for
    return attended


@cache
def _causal_argument() -> dict[str, Any]:
    """The causal switch of varlen_attn: a flag up to torch 2.11, a window later."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    return {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
