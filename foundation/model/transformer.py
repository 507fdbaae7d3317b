"""The backbone: a decoder-only transformer over packed sequences of multi-column steps.

A step with several streams is embedded as the sum of its ids' embeddings; `none` is the zero vector. Shapes: T steps of
all sequences, S columns, F continuous features, D width, H heads, G key/value heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foundation.errors import DataError
from foundation.model.attention import Packing
from foundation.model.block import Block, make_norm
from foundation.model.cache import Cache
from foundation.model.config import TransformerConfig
from foundation.model.positions import POSITIONS, Positions
from foundation.model.registers import Registers
from foundation.tokens.vocabulary import NONE


class Transformer(nn.Module):
    """Ids to hidden states, and the output matrix that turns hidden states into logits."""

    recompute = False

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.width, padding_idx=NONE)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        # after a block of post-norm, hidden states are normalised already
        self.norm = make_norm(config) if config.norm_place == "pre" else nn.Identity()
        self.output = None if config.tied else nn.Parameter(torch.empty(vocabulary, config.width))
        self.output_bias = nn.Parameter(torch.empty(vocabulary)) if config.output_bias else None
        self.positions: Positions = POSITIONS[config.positions](config)
        self.registers = Registers(config.registers, config.width) if config.registers else None
        self.features = nn.Linear(len(config.features), config.width, bias=False) if config.features else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # a small output matrix makes the first prediction uniform over the legal ids; norms make up for a small input
        small = min(0.02, 0.32 * self.config.width**-0.5)
        nn.init.normal_(self.embedding.weight, std=small)
        with torch.no_grad():
            self.embedding.weight[NONE].zero_()
        if self.output is not None:
            nn.init.normal_(self.output, std=small)
        if self.output_bias is not None:
            nn.init.zeros_(self.output_bias)
        # each block adds to the residual stream: keep its size independent of the depth
        for block in self._blocks():
            for last in (block.attention.out, block.down):
                nn.init.normal_(last.weight, std=(last.in_features * 2 * self.config.layers) ** -0.5)
        for added in self._added_to_embeddings():
            nn.init.normal_(added, std=small)

    def _added_to_embeddings(self) -> Iterator[Tensor]:
        for module in (self.positions, self.registers, self.features):
            if module is not None:
                yield from module.parameters()

    def _blocks(self) -> Iterator[Block]:
        return (block for block in self.blocks if isinstance(block, Block))

    def prepare(self, compile: bool = False, recompute: bool = False) -> None:
        """How blocks are trained: compiled, and with activations computed again in the backward pass, not kept."""
        for block in self._blocks():
            block.compiled = compile
        self.recompute = recompute

    @property
    def output_weight(self) -> Tensor:
        """Output matrix [vocabulary, D]."""
        return self.embedding.weight if self.output is None else self.output

    def forward(self, ids: Tensor, positions: Tensor, packing: Packing, features: Tensor | None = None) -> Tensor:
        """ids [T, S], positions [T], features [T, F] -> hidden states [T, D].

        Raises DataError where the model reads features and there are none, or where a sequence is too long for it.
        """
        self.positions.require(packing.longest)
        x = self.positions.placed(self._embedded(ids, features), positions)
        kept = None
        if self.registers is not None:
            x, positions, packing, kept = self.registers(x, positions, packing)
        turn = self.positions.turn(positions)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                # outside of what is compiled; random numbers need no care where none are drawn
                dropout = self.config.dropout > 0
                x = checkpoint(block, x, turn, packing, use_reentrant=False, preserve_rng_state=dropout)
            else:
                x = block(x, turn, packing)
        return self.norm(x if kept is None else x.index_select(0, kept))

    def _embedded(self, ids: Tensor, features: Tensor | None) -> Tensor:
        x = self.embedding(ids).sum(dim=1)
        if self.features is None:
            return x
        if features is None:
            names = ", ".join(self.config.features)
            raise DataError(f"the model reads the continuous features {names} of every point: they are not given")
        return x + self.features(features.to(x.dtype))

    def open_cache(self, rows: int, max_steps: int, dtype: torch.dtype | None = None) -> Cache:
        """A cache for sequences of up to so many steps; the registers have entered it."""
        weight = self.embedding.weight
        self.positions.require(max_steps)
        cache = Cache(self.config, rows, max_steps, weight.device, dtype or weight.dtype)
        if self.registers is not None:
            for vector in self.registers.vectors:
                self._advance(vector.expand(rows, -1), cache.positions, [cache])
        return cache

    def decode(self, ids: Tensor, caches: Sequence[Cache], pieces: Sequence[int] | None = None) -> Tensor:
        """One more step of n sequences: ids [n, S] -> hidden states [n, D], and all caches are a step further.

        The rows of the first cache come first, and so on; rows behind those of the last cache are padding. pieces: how
        many rows go through a matrix product at a time. Raises DataError where the model reads features, which a
        generator does not have, or where a sequence becomes too long.
        """
        self.positions.require(max(cache.step for cache in caches) + 1)
        positions = _positions(len(ids), caches)
        placed = self.positions.placed(self._embedded(ids, None), positions)
        return self._advance(placed, positions, caches, pieces)

    def _advance(
        self, x: Tensor, positions: Tensor, caches: Sequence[Cache], pieces: Sequence[int] | None = None
    ) -> Tensor:
        """Embeddings x [n, D] of the next step of every row, at `positions` [n] -> hidden states [n, D]."""
        turn, sizes = self.positions.turn(positions), list(pieces or (len(x),))
        turns = [None] * len(sizes) if turn is None else turn.split(sizes)
        for layer, block in enumerate(self._blocks()):
            parts = [block.project(*part) for part in zip(x.split(sizes), turns, strict=True)]
            qk, v = parts[0] if len(parts) == 1 else (torch.cat(each) for each in zip(*parts, strict=True))
            attended = _attended(layer, qk, v, self.config.heads, caches)
            finished = [block.finish(*part) for part in zip(x.split(sizes), attended.split(sizes), strict=True)]
            x = finished[0] if len(parts) == 1 else torch.cat(finished)
        for cache in caches:
            cache.advance()
        return self.norm(x)


def _positions(rows: int, caches: Sequence[Cache]) -> Tensor:
    """Positions int64 [rows] of the next step of every cache's rows; 0 for the padding behind them."""
    known = [cache.positions for cache in caches]
    padding = rows - sum(cache.rows for cache in caches)
    return torch.cat([*known, known[0].new_zeros(padding)]) if padding or len(known) > 1 else known[0]


def _attended(layer: int, qk: Tensor, v: Tensor, heads: int, caches: Sequence[Cache]) -> Tensor:
    """What the next step of every row attends to, [n, H, d], of qk [n, H + G, d] and v [n, G, d]; 0 for padding."""
    bounds = [*accumulate((cache.rows for cache in caches), initial=0)]
    parts = [
        cache.attend(layer, qk[a:b], v[a:b], heads) for cache, a, b in zip(caches, bounds, bounds[1:], strict=False)
    ]
    padding = len(v) - bounds[-1]
    if padding:
        parts.append(v.new_zeros(padding, heads, v.shape[2]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
