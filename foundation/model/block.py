"""One block of the transformer: attention and MLP, each added to the residual stream.

Everything but attention itself works on each step alone, before it (`project`) and after it (`finish`). These halves
are what `torch.compile` gets: attention between them has shapes that change with every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.model.attention import Packing, attend
from foundation.model.config import TransformerConfig
from foundation.model.positions import rotate


class HeadNorm(nn.RMSNorm):
    """RMSNorm over each head, in the type of what comes in: under autocast the weight has another."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Projections of causal grouped-query attention; T steps, H heads, G of keys and values, d wide."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = c.heads, c.groups, c.head_width
        qkv_bias = c.bias if c.qkv_bias is None else c.qkv_bias
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.groups) * self.size, bias=qkv_bias)
        self.out = nn.Linear(c.width, c.width, bias=c.bias)
        # one gain for queries and keys: attention sees their products only
        self.norm_qk = HeadNorm(self.size) if c.qk_norm else nn.Identity()

    def project(self, x: Tensor, turn: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys [T, H + G, d], and values [T, G, d], of x [T, D]."""
        qk, v = self.qkv(x).unflatten(-1, (-1, self.size)).split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        return rotate(self.norm_qk(qk), turn), v


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + MLP(norm(x)). Post-norm: norm(x + attention(x)), norm(x + MLP(x))."""

    compiled = False

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = make_norm(c), make_norm(c)
        self.attention = Attention(c)
        self.activation, sides = ACTIVATIONS[c.activation]
        self.gate_up = nn.Linear(c.width, sides * c.mlp_width, bias=c.bias)
        self.down = nn.Linear(c.mlp_width, c.width, bias=c.bias)
        self.dropout = nn.Dropout(c.dropout)
        self.pre_norm = c.norm_place == "pre"

    def project(self, x: Tensor, turn: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries and keys [T, H + G, d], and values [T, G, d], of x [T, D]."""
        return self.attention.project(self.norm_attention(x) if self.pre_norm else x, turn)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [T, D] and what its steps attended to, [T, H, d] -> [T, D]."""
        added = self.dropout(self.attention.out(attended.flatten(1)))
        if self.pre_norm:
            x = x + added
            return x + self._mlp(self.norm_mlp(x))
        x = self.norm_attention(x + added)
        return self.norm_mlp(x + self._mlp(x))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.activation(self.gate_up(x))))

    def forward(self, x: Tensor, turn: Tensor | None, packing: Packing) -> Tensor:
        """x [T, D] -> [T, D]."""
        project, finish = compiled_halves() if self.compiled and self.training else (Block.project, Block.finish)
        qk, v = project(self, x, turn)
        return finish(self, x, attend(qk, v, self.attention.heads, packing))


def swiglu(x: Tensor) -> Tensor:
    """[T, 2 n] -> [T, n] (arXiv:2002.05202)."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "swiglu": (swiglu, 2),
    "gelu": (F.gelu, 1),
    "relu": (F.relu, 1),
}
"""Activations, and how many times the hidden width they take."""


def make_norm(c: TransformerConfig) -> nn.Module:
    """A norm over the width."""
    return nn.RMSNorm(c.width) if c.norm == "rms" else nn.LayerNorm(c.width)


@cache
def compiled_halves() -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]:
    """`Block.project` and `Block.finish` compiled, each as one graph for any number of steps and for all blocks."""
    return (
        torch.compile(Block.project, fullgraph=True, dynamic=True),
        torch.compile(Block.finish, fullgraph=True, dynamic=True),
    )
