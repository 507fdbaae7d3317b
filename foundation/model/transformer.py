"""The backbone: a decoder-only transformer over packed sequences of multi-column steps.

A step with several streams is embedded as the sum of its ids' embeddings; `none` is the zero vector. Shapes: T steps of
all sequences, S columns, F continuous features, D width, H heads, G key/value heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Iterator

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

    def decode(self, ids: Tensor, step: int, cache: Cache) -> Tensor:
        """One more step of b sequences that are equally far: ids [b, S] at position `step` -> hidden states [b, D].

        Raises DataError where the model reads features, which a generator does not have, or where `step` is too far.
        """
        self.positions.require(step + 1)
        if step == 0 and self.registers is not None:
            for number, vector in enumerate(self.registers.vectors):
                self._decode(vector.expand(len(ids), -1), number - cache.registers, cache)
        position = torch.tensor([step], device=ids.device)
        return self._decode(self.positions.placed(self._embedded(ids, None), position), step, cache)

    def _decode(self, x: Tensor, step: int, cache: Cache) -> Tensor:
        turn = self.positions.turn(torch.tensor([step], device=x.device))
        for layer, block in enumerate(self._blocks()):
            x = block.decode(x, turn, cache.keys[layer], cache.values[layer], cache.registers + step)
        return self.norm(x)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
