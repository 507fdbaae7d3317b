"""The networks of a VQ-VAE tokenizer: encoder and decoder of points, alone or beside the other points of their cloud.

Points come in groups: clouds of (nearly) equal length side by side, so that attention needs little padding or none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.tokens.config import VqVaeConfig
from foundation.tokens.vq.quantisers import Codebooks, Levels, Quantiser

Group = tuple[Tensor, Tensor | None]
"""Points [b, L, F] of b clouds, and which of them are real, bool [b, L]; None where all are."""

LANES = 16
"""Numbers of 32 bits in a vector of the CPU's."""


class Attention(nn.Module):
    """Multi-head attention of normalised points to all points of their cloud; without positions, their order means
    nothing. OmniJet-alpha's blocks normalise what it gives once more."""

    def __init__(self, width: int, heads: int, dropout: float, norm_after: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_after = nn.LayerNorm(width) if norm_after else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x [b, L, width] -> [b, L, width]; points that are not `valid` are seen by none."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if valid is None else valid[:, None, None, :]
        if valid is None and k.shape[2] % LANES >= LANES // 2:
            k, v, seen = _whole_lanes(k, v)
        rate = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=rate)
        return self.norm_after(self.mix(y.transpose(1, 2).flatten(2)))


def _whole_lanes(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [b, heads, L, d] with a few more that the mask hides: what is left over of a vector of the CPU's
    would be computed number by number, which takes as long as all the rest."""
    length, more = k.shape[2], -k.shape[2] % LANES
    seen = k.new_zeros(1, 1, 1, length + more)
    seen[..., length:] = -torch.inf
    return F.pad(k, (0, 0, 0, more)), F.pad(v, (0, 0, 0, more)), seen


class Block(nn.Module):
    """Attention (optional), then a perceptron with one hidden layer, each of the normalised input and added to it."""

    def __init__(self, width: int, hidden: int, attention: Attention | None, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x [b, L, width] -> [b, L, width]."""
        if self.attention is not None:
            x = x + self.attention(x, valid)
        return x + self.down(self.dropout(F.silu(self.up(self.norm(x)))))


def normformer_block(width: int, heads: int, attention: bool, dropout: float) -> Block:
    """OmniJet-alpha's block (arXiv:2403.05618, after NormFormer, arXiv:2110.09456), the identity at the start."""
    block = Block(width, width, Attention(width, heads, dropout, norm_after=True) if attention else None, dropout)
    zeros = [block.down.weight, block.down.bias]
    if block.attention is not None:
        nn.init.xavier_uniform_(block.attention.qkv.weight)
        zeros += [block.attention.norm.weight, block.attention.qkv.bias, block.attention.mix.bias]
    for parameter in zeros:
        nn.init.zeros_(parameter)
    return block


def pre_norm_block(width: int, heads: int, attention: bool, dropout: float) -> Block:
    """The usual block of a transformer."""
    return Block(width, 2 * width, Attention(width, heads, dropout, norm_after=False) if attention else None, dropout)


class Layer(nn.Module):
    """One more layer of a plain perceptron, without a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x [b, L, width] -> [b, L, width]."""
        return self.linear(F.relu(x))


class VqVae(nn.Module):
    """Encoder, quantiser and decoder of F features of points."""

    def __init__(self, n_features: int, config: VqVaeConfig) -> None:
        super().__init__()
        c = config
        self.enter = nn.Linear(n_features, c.width)
        self.encoder = _blocks(c, c.encoder_blocks)
        self.to_latent = _way_out(c, c.latent)
        self.quantise = _quantiser(c)
        self.from_latent = nn.Linear(c.latent, c.width)
        self.decoder = _blocks(c, c.decoder_blocks)
        self.leave = _way_out(c, n_features)

    def latents(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Latent vectors [b, L, latent] of standardised features x [b, L, F]."""
        h = self.enter(x)
        for block in self.encoder:
            h = block(h, valid)
        return self.to_latent(h)

    def features(self, z: Tensor, valid: Tensor | None) -> Tensor:
        """Standardised features [b, L, F] of latent vectors z [b, L, latent]."""
        h = self.from_latent(z)
        for block in self.decoder:
            h = block(h, valid)
        return self.leave(h)

    def latents_of(self, groups: list[Group]) -> Tensor:
        """Latent vectors [N, latent] of all real points, group by group."""
        return torch.cat([real(self.latents(x, valid), valid) for x, valid in groups])

    def forward(self, groups: list[Group], quantised: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
        """Reconstruction [N, F] of all real points, their codes [N, K], and the commitment loss.

        quantised: without it latent vectors go to the decoder as they are, and there are no codes
        """
        z, codes, commitment = self.latents_of(groups), None, torch.zeros(())
        if quantised:
            z, codes, commitment = self.quantise.quantise(z)
        sizes = [x.shape[0] * x.shape[1] if valid is None else int(valid.sum()) for x, valid in groups]
        parts = [
            real(self.features(_side_by_side(part, x, valid), valid), valid)
            for part, (x, valid) in zip(z.split(sizes), groups, strict=True)
        ]
        return torch.cat(parts), codes, commitment


def real(values: Tensor, valid: Tensor | None) -> Tensor:
    """The real points [n, F] of a group's values [b, L, F]."""
    return values.flatten(0, 1) if valid is None else values[valid]


def _side_by_side(values: Tensor, x: Tensor, valid: Tensor | None) -> Tensor:
    """The inverse of `real` for a group of x [b, L, F]: values [n, D] -> [b, L, D], zero where there is no point."""
    if valid is None:
        return values.unflatten(0, x.shape[:2])
    return values.new_zeros(*x.shape[:2], values.shape[1]).index_put((valid,), values)


def _blocks(config: VqVaeConfig, number: int) -> nn.ModuleList:
    c = config
    if c.architecture == "mlp":
        return nn.ModuleList(Layer(c.width) for _ in range(number - 1))
    block = normformer_block if c.architecture == "normformer" else pre_norm_block
    return nn.ModuleList(block(c.width, c.heads, c.attention, c.dropout) for _ in range(number))


def _way_out(config: VqVaeConfig, size: int) -> nn.Module:
    last = nn.Linear(config.width, size)
    if config.architecture == "normformer":
        return last
    return nn.Sequential(nn.ReLU() if config.architecture == "mlp" else nn.LayerNorm(config.width), last)


def _quantiser(config: VqVaeConfig) -> Quantiser:
    c = config
    if c.quantiser == "fsq":
        return Levels(c.levels, c.quantisers)
    return Codebooks(c.latent, c.codebook, c.quantisers, c.commitment, c.decay, c.dead_codes, c.batch_points)
