"""The backbone: a decoder-only transformer over packed sequences of multi-column steps.

Pre-norm blocks with RMSNorm, rotary positions, grouped-query attention and SwiGLU. A step with several streams is
embedded as the sum of its ids' embeddings; `none` is the zero vector. Shapes: T steps of all sequences, S columns,
D width, H heads, G key/value heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.model.attention import Packing, attend
from foundation.model.config import TransformerConfig
from foundation.tokens.vocabulary import NONE


class Cache:
    """Keys and values of the steps decoded so far: [layers, b, G, max_steps, d] each."""

    def __init__(self, config: TransformerConfig, rows: int, max_steps: int, device: torch.device) -> None:
        shape = (config.layers, rows, config.groups, max_steps, config.head_width)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)

    def keep(self, rows: Tensor, steps: int) -> None:
        """Keep these rows only; `steps` steps are filled, the rest need not be copied."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(old.shape[0], len(rows), *old.shape[2:])
            new[:, :, :, :steps] = old[:, rows, :, :steps]
            setattr(self, name, new)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = c.heads, c.groups, c.head_width
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.groups) * self.size, bias=False)
        self.out = nn.Linear(c.width, c.width, bias=False)

    def _project(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys [T, H + G, d], and values [T, G, d], of x [T, D]."""
        qk, v = self.qkv(x).unflatten(-1, (-1, self.size)).split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        return rotate(qk, turn), v

    def forward(self, x: Tensor, turn: Tensor, packing: Packing) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.out(attend(*self._project(x, turn), self.heads, packing).flatten(1))

    def decode(self, x: Tensor, turn: Tensor, keys: Tensor, values: Tensor, step: int) -> Tensor:
        """One step of b sequences, x [b, D], against the cached steps before it."""
        qk, v = self._project(x, turn)
        q, keys[:, :, step], values[:, :, step] = qk[:, : self.heads], qk[:, self.heads :], v
        y = F.scaled_dot_product_attention(
            q[:, :, None],
            keys[:, :, : step + 1],
            values[:, :, : step + 1],
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(y[:, :, 0].flatten(1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.RMSNorm(c.width), nn.RMSNorm(c.width)
        self.attention = Attention(c)
        self.gate_up = nn.Linear(c.width, 2 * c.mlp_width, bias=False)
        self.down = nn.Linear(c.mlp_width, c.width, bias=False)
        self.dropout = nn.Dropout(c.dropout)

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm_mlp(x)).chunk(2, dim=-1)
        return self.dropout(self.down(F.silu(gate) * up))

    def forward(self, x: Tensor, turn: Tensor, packing: Packing) -> Tensor:
        """x [T, D] -> [T, D]."""
        x = x + self.dropout(self.attention(self.norm_attention(x), turn, packing))
        return x + self._mlp(x)

    def decode(self, x: Tensor, turn: Tensor, keys: Tensor, values: Tensor, step: int) -> Tensor:
        """x [b, D] -> [b, D]."""
        x = x + self.attention.decode(self.norm_attention(x), turn, keys, values, step)
        return x + self._mlp(x)


class Transformer(nn.Module):
    """Ids to hidden states, and the output matrix that turns hidden states into logits."""

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.width, padding_idx=NONE)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.output = None if config.tied else nn.Parameter(torch.empty(vocabulary, config.width))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        # a small output matrix makes the first prediction uniform over the legal ids
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[NONE].zero_()
        if self.output is not None:
            nn.init.normal_(self.output, std=0.02)
        # each block adds to the residual stream: keep its size independent of the depth
        for block in self._blocks():
            for last in (block.attention.out, block.down):
                nn.init.normal_(last.weight, std=(last.in_features * 2 * self.config.layers) ** -0.5)

    def _blocks(self) -> Iterator[Block]:
        return (block for block in self.blocks if isinstance(block, Block))

    @property
    def output_weight(self) -> Tensor:
        """Output matrix [vocabulary, D]."""
        return self.embedding.weight if self.output is None else self.output

    def forward(self, ids: Tensor, positions: Tensor, packing: Packing) -> Tensor:
        """ids [T, S], positions [T] -> hidden states [T, D]."""
        turn = rotation(positions, self.config)
        x = self.embedding(ids).sum(dim=1)
        for block in self.blocks:
            x = block(x, turn, packing)
        return self.norm(x)

    def decode(self, ids: Tensor, step: int, cache: Cache) -> Tensor:
        """One more step of b sequences that are equally far: ids [b, S] at position `step` -> hidden states [b, D]."""
        turn = rotation(torch.tensor([step], device=ids.device), self.config)
        x = self.embedding(ids).sum(dim=1)
        for layer, block in enumerate(self._blocks()):
            x = block.decode(x, turn, cache.keys[layer], cache.values[layer], step)
        return self.norm(x)


def rotation(positions: Tensor, config: TransformerConfig) -> Tensor:
    """Complex phases [T, 1, d/2] of rotary positions (arXiv:2104.09864)."""
    half = config.head_width // 2
    frequency = config.rope_base ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angle = positions[:, None].float() * frequency
    return torch.polar(torch.ones_like(angle), angle)[:, None]


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of x [T, heads, d], each as one complex number."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
