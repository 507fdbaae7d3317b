"""Causal attention inside each sequence of a packed batch: one function, the fastest backend of the device.

CUDA, half precision: `torch.nn.attention.varlen` over the flat batch. Elsewhere: sequences of similar length are laid side
by side and go through SDPA; padding is on the right, so the causal mask alone keeps it out of every real query.
"""

from __future__ import annotations

import inspect
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foundation.data.ragged import length_buckets


class Packing:
    """Where the sequences of a flat batch are: made once per batch, shared by all layers."""

    def __init__(self, offsets: NDArray[np.int64], device: torch.device) -> None:
        self.cumulative = torch.from_numpy(offsets.astype(np.int32)).to(device)
        self.longest = int(np.diff(offsets).max(initial=0))
        self.buckets: list[tuple[Tensor, Tensor, Tensor]] = []
        for bucket in length_buckets(offsets):
            flat = np.flatnonzero(bucket.valid.ravel())
            self.buckets.append(
                (
                    torch.from_numpy(bucket.rows).to(device),
                    torch.from_numpy(bucket.rows.ravel()[flat]).to(device),
                    torch.from_numpy(flat).to(device),
                )
            )


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Causal attention within sequences. q [T, H, d]; k, v [T, G, d] with G dividing H; returns [T, H, d]."""
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return _varlen(q, k, v, packing)
    return _bucketed(q, k, v, packing)


def _bucketed(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    parts, rows = [], []
    for places, real_rows, real_places in packing.buckets:
        y = F.scaled_dot_product_attention(
            q[places].transpose(1, 2),
            k[places].transpose(1, 2),
            v[places].transpose(1, 2),
            is_causal=True,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        parts.append(y.transpose(1, 2).flatten(0, 1)[real_places])
        rows.append(real_rows)
    return torch.empty_like(q).index_copy(0, torch.cat(rows), torch.cat(parts))


def _varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    c, n = packing.cumulative, packing.longest
    return varlen_attn(q, k, v, c, c, n, n, **_causal_argument())


@cache
def _causal_argument() -> dict[str, object]:
    """The causal switch of varlen_attn: a flag up to torch 2.11, a window later."""
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size": (-1, 0)} if "window_size" in inspect.signature(varlen_attn).parameters else {"is_causal": True}
