"""VQ-VAE tokenizer: a code (or a few residual ones) per point for its continuous features, exact codes for categories.

After OmniJet-alpha (arXiv:2403.05618): points are embedded, optionally look at the other points of their cloud
(conditional tokenization), are quantised to the nearest of `codebook` latent vectors, and are decoded likewise. With
several quantisers, each codes what the ones before left over (residual quantisation, arXiv:2107.03312): fine resolution
from small codebooks.
The reconstruction loss counts real points only; nothing is padded outside the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import length_buckets, rows_of
from foundation.errors import DataError
from foundation.tokens.config import VqVaeConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.tokenizer import NOTHING, Codes, Points, Stream, Tokenizer
from foundation.tokens.transforms import category_size, exact_codes, inverse_transform, lowest_value

CLOUDS_PER_PASS = 512


Groups = list[tuple[Tensor, Tensor]]
"""Per bucket of clouds: rows [b, L] of the flat array, valid [b, L]."""


class Block(nn.Module):
    """Pre-norm block: attention among the points of a cloud (optional), then a two-layer perceptron."""

    def __init__(self, width: int, heads: int, attention: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width) if attention else None
        self.mix = nn.Linear(width, width) if attention else None
        self.norm_attention = nn.LayerNorm(width) if attention else None
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """x [N, width] -> [N, width]."""
        if self.qkv is not None and self.mix is not None and self.norm_attention is not None:
            x = x + self.mix(self._attend(self.qkv(self.norm_attention(x)), groups))
        return x + self.down(F.silu(self.up(self.norm(x))))

    def _attend(self, qkv: Tensor, groups: Groups) -> Tensor:
        width = qkv.shape[1] // 3
        out = torch.zeros_like(qkv[:, :width])
        for rows, valid in groups:
            q, k, v = qkv[rows].unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
            out = out.index_put((rows[valid],), y.transpose(1, 2).flatten(2)[valid])
        return out


class VqVae(nn.Module):
    """Encoder, quantiser and decoder over F continuous features of ragged clouds."""

    def __init__(self, n_features: int, config: VqVaeConfig) -> None:
        super().__init__()
        c = config
        self.enter = nn.Linear(n_features, c.width)
        self.encoder = nn.ModuleList(Block(c.width, c.heads, c.attention) for _ in range(c.encoder_blocks))
        self.to_latent = nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, c.latent))
        self.quantise = ResidualVQ(
            dim=c.latent,
            num_quantizers=c.quantisers,
            codebook_size=c.codebook,
            decay=0.95,
            kmeans_init=True,
            kmeans_iters=5,
            threshold_ema_dead_code=1,
            commitment_weight=c.commitment,
        )
        self.from_latent = nn.Linear(c.latent, c.width)
        self.decoder = nn.ModuleList(Block(c.width, c.heads, c.attention) for _ in range(c.decoder_blocks))
        self.leave = nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, n_features))

    def latents(self, x: Tensor, groups: Groups) -> Tensor:
        """Latent vectors [N, latent] of standardised features x [N, F]."""
        h = self.enter(x)
        for block in self.encoder:
            h = block(h, groups)
        return self.to_latent(h)

    def features(self, z: Tensor, groups: Groups) -> Tensor:
        """Standardised features [N, F] of latent vectors z [N, latent]."""
        h = self.from_latent(z)
        for block in self.decoder:
            h = block(h, groups)
        return self.leave(h)

    def forward(self, x: Tensor, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction [N, F], codes [N, quantisers], commitment loss."""
        quantised, codes, commitment = self.quantise(self.latents(x, groups)[None])
        return self.features(quantised[0], groups), codes[0], commitment.sum()

    def codes(self, z: Tensor) -> Tensor:
        """Nearest codes [N, quantisers] of latent vectors z [N, latent], each of what the ones before left over."""
        codes, rest = [], z
        for codebook in self.quantise.codebooks:
            code = torch.addmm(codebook.square().sum(dim=1), rest, codebook.t(), alpha=-2.0).argmin(dim=1)
            rest = rest - codebook[code]
            codes.append(code)
        return torch.stack(codes, dim=1)

    def vectors(self, codes: Tensor) -> Tensor:
        """Latent vectors [N, latent] that codes [N, quantisers] stand for."""
        return sum((book[codes[:, q]] for q, book in enumerate(self.quantise.codebooks)), torch.zeros(1))


class VqVaeTokenizer(Tokenizer):
    """K = quantisers + categorical features: streams `code0`, `code1`, ... first, then the categories exactly."""

    kind = "vqvae"

    def __init__(
        self, inputs: Inputs, config: VqVaeConfig, net: VqVae, mean: NDArray[np.float64], std: NDArray[np.float64]
    ) -> None:
        super().__init__(inputs)
        self.config, self.net, self.mean, self.std = config, net.eval(), mean, std

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (
            *(Stream(f"code{q}", self.config.codebook) for q in range(self.config.quantisers)),
            *(Stream(f.name, category_size(f)) for f in self.inputs.exact),
        )

    @staticmethod
    def fit(
        inputs: Inputs,
        clouds: PointClouds,
        config: VqVaeConfig,
        seed: int,
        on_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
    ) -> VqVaeTokenizer:
        """Train on `clouds`. `on_step` is called after every step with its number and metrics."""
        if not inputs.continuous:
            raise DataError(f"tokenizer '{inputs.name}': a vqvae needs continuous features")
        x = inputs.transformed(clouds)
        # features whose card declares no scale are brought to unit size; those that do keep the card's weight
        mean, std = x.mean(axis=0), np.full(x.shape[1], max(x.std(axis=0).max(), 1e-6))
        x = ((x - mean) / std).astype(np.float32)
        torch.manual_seed(seed)
        net = VqVae(len(inputs.continuous), config).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-2)
        rng = np.random.default_rng(seed)
        per_batch = max(1, int(config.batch_points / max(clouds.counts.mean(), 1.0)))
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _one_cycle(step, config.steps)
            batch = rng.integers(0, len(clouds), per_batch)
            rows, offsets = rows_of(clouds.offsets, batch)
            truth = torch.from_numpy(x[rows])
            reconstructed, codes, commitment = net(truth, _groups(offsets))
            error = F.mse_loss(reconstructed, truth)
            optimizer.zero_grad()
            (error + commitment).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            on_step(
                step, {"reconstruction": float(error.detach()), "codes_in_batch": float(codes[:, 0].unique().numel())}
            )
        return VqVaeTokenizer(inputs, config, net, mean, std)

    @torch.no_grad()
    def _encode(self, clouds: PointClouds) -> Codes:
        x = self.inputs.transformed(clouds)
        x = ((x - self.mean) / self.std).astype(np.float32)
        codes = np.empty((len(x), self.config.quantisers), np.int64)
        for rows, groups in self._passes(clouds.offsets):
            latents = self.net.latents(torch.from_numpy(x[rows]), groups)
            codes[rows] = self.net.codes(latents).numpy()
        exact = [exact_codes(f, clouds.feature(f.name)) for f in self.inputs.exact]
        return Codes(np.column_stack([codes, *exact]), clouds.offsets)

    @torch.no_grad()
    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        x = np.empty((len(codes.values), len(self.inputs.continuous)), np.float64)
        for rows, groups in self._passes(codes.offsets):
            latents = self.net.vectors(torch.from_numpy(codes.values[rows, : self.config.quantisers]))
            x[rows] = self.net.features(latents, groups).numpy()
        x = x * self.std + self.mean
        columns: dict[str, NDArray] = {
            f.name: inverse_transform(f, x[:, i]) for i, f in enumerate(self.inputs.continuous)
        }
        for k, f in enumerate(self.inputs.exact):
            columns[f.name] = codes.values[:, self.config.quantisers + k] + lowest_value(f)
        return Points(np.stack([columns[f.name] for f in self.features], axis=1).astype(np.float32), codes.offsets)

    def code_vectors(self) -> dict[str, NDArray[np.float32]]:
        books = self.net.quantise.codebooks.detach().numpy()
        return {f"code{q}": books[q] for q in range(self.config.quantisers)}

    def _passes(self, offsets: NDArray[np.int64]) -> Iterator[tuple[slice, Groups]]:
        """Rows and attention groups of a few hundred clouds at a time, so that memory does not grow with the file."""
        for first in range(0, len(offsets) - 1, CLOUDS_PER_PASS):
            part = offsets[first : first + CLOUDS_PER_PASS + 1]
            yield slice(int(part[0]), int(part[-1])), _groups(part - part[0])

    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        arrays = {f"net.{k}": v.numpy() for k, v in self.net.state_dict().items()}
        return self.config.model_dump(), arrays | {"mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, inputs: Inputs, settings: dict, arrays: dict[str, NDArray]) -> VqVaeTokenizer:
        config = VqVaeConfig(**settings)
        net = VqVae(len(arrays["mean"]), config)
        net.load_state_dict({k.removeprefix("net."): torch.from_numpy(v) for k, v in arrays.items() if "net." in k})
        return VqVaeTokenizer(inputs, config, net, arrays["mean"], arrays["std"])


def _one_cycle(step: int, steps: int) -> float:
    """Fraction of the peak learning rate: short linear rise, then a cosine to a hundredth."""
    rise = min(1.0, (step + 1) / max(1, steps // 20))
    return rise * (0.01 + 0.99 * 0.5 * (1.0 + float(np.cos(np.pi * step / steps))))


def _groups(offsets: NDArray[np.int64]) -> Groups:
    return [(torch.from_numpy(b.rows), torch.from_numpy(b.valid)) for b in length_buckets(offsets)]
