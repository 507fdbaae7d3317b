"""The network of the patches tokenizer: a transformer over the patches of a shower, a quantiser, a transformer back.

After the VQ-VAE of the CERN generalised shower transformer (see `patches`): every patch becomes a vector, fixed
sine-cosine positions tell the patches apart, and all patches of a shower see each other. Here each vector also gets the
object's totals (incident energy, visible fraction, number of hits), which are known on both sides, so that the codes
need not carry them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ

from foundation.tokens.config import PatchesConfig
from foundation.tokens.patches.grid import PatchGrid

SEARCH_CELLS = 1 << 22
"""Distances computed at once when the nearest codes are looked up."""
DEAD = 0.1
"""A code used less often than this share of the mean is replaced."""


class Block(nn.Module):
    """Pre-norm transformer block over sequences of one length."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, P, width] -> [B, P, width]."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.mix(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class PatchNet(nn.Module):
    """Encoder, quantiser and decoder over the patches of a grid.

    entries: numbers per patch that go in
    exits:   numbers per patch that come out
    totals:  numbers per object that both sides know
    """

    positions: Tensor

    def __init__(
        self, grid: PatchGrid, periodic: tuple[bool, ...], entries: int, exits: int, totals: int, config: PatchesConfig
    ) -> None:
        super().__init__()
        c = config
        self.register_buffer("positions", sine_positions(grid, periodic, c.width), persistent=False)
        self.enter, self.enter_totals = nn.Linear(entries, c.width), nn.Linear(totals, c.width)
        self.encoder = nn.Sequential(*(Block(c.width, c.heads) for _ in range(c.encoder_blocks)))
        self.to_latent = nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, c.latent))
        self.quantise = ResidualVQ(
            dim=c.latent,
            num_quantizers=c.quantisers,
            codebook_size=c.codebook,
            decay=0.95,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=DEAD * c.batch_objects * grid.patches / c.codebook,
            commitment_weight=c.commitment,
        )
        self.from_latent, self.leave_totals = nn.Linear(c.latent, c.width), nn.Linear(totals, c.width)
        self.decoder = nn.Sequential(*(Block(c.width, c.heads) for _ in range(c.decoder_blocks)))
        self.leave = nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, exits))

    def latents(self, x: Tensor, totals: Tensor) -> Tensor:
        """Latent vectors [B, P, latent] of patches x [B, P, entries] of objects with these totals [B, T]."""
        h = self.enter(x) + self.enter_totals(totals)[:, None] + self.positions
        return self.to_latent(self.encoder(h))

    def outputs(self, z: Tensor, totals: Tensor) -> Tensor:
        """What the decoder says of each patch, [B, P, exits], from its latent vectors z [B, P, latent]."""
        h = self.from_latent(z) + self.leave_totals(totals)[:, None] + self.positions
        return self.leave(self.decoder(h))

    def codes(self, z: Tensor) -> Tensor:
        """Nearest codes [..., quantisers] of latent vectors z [..., latent], each of what the ones before left over."""
        rest, codes = z.flatten(0, -2), []
        for book in self.quantise.codebooks:
            near = [_nearest(part, book) for part in rest.split(max(1, SEARCH_CELLS // len(book)))]
            codes.append(torch.cat(near))
            rest = rest - book[codes[-1]]
        return torch.stack(codes, dim=1).unflatten(0, z.shape[:-1])

    def vectors(self, codes: Tensor) -> Tensor:
        """Latent vectors [..., latent] that codes [..., quantisers] stand for."""
        return sum((book[codes[..., q]] for q, book in enumerate(self.quantise.codebooks)), torch.zeros(1))


def _nearest(z: Tensor, book: Tensor) -> Tensor:
    return torch.addmm(book.square().sum(dim=1), z, book.t(), alpha=-2.0).argmin(dim=1)


def sine_positions(grid: PatchGrid, periodic: tuple[bool, ...], width: int) -> Tensor:
    """Fixed sine-cosine positions of the patches, float32 [P, width]: every axis has an equal share of the width.

    Along an axis the wave lengths rise geometrically from 2 pi to 10,000 x 2 pi patches (Vaswani et al.,
    arXiv:1706.03762); along a periodic one they are the whole turn and its whole fractions, so that the last patch lies
    beside the first.
    """
    axes = len(grid.along)
    waves = width // (2 * axes)
    parts: list[NDArray[np.float64]] = []
    for position, size, turns in zip(grid.positions.T, grid.along, periodic, strict=True):
        pace = 2 * np.pi / size * np.arange(1, waves + 1) if turns else 10_000.0 ** (-np.arange(waves) / max(1, waves))
        angles = position[:, None] * pace
        parts += [np.sin(angles), np.cos(angles)]
    parts.append(np.zeros((grid.patches, width - 2 * axes * waves)))
    return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))
