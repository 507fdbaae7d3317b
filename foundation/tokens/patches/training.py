"""Training of the patches tokenizer's network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation.tokens.config import PatchesConfig
from foundation.tokens.patches.net import PatchNet
from foundation.tokens.patches.scale import VoxelScale
from foundation.tokens.patches.voxels import Hits

WARM_UP = 0.2
"""Share of the training without the quantiser."""
KMEANS_VECTORS = 16
"""Latent vectors per code that k-means starts from, where memory allows."""
MOST_VECTORS = 1 << 14

Dense = Callable[[Hits], tuple[Tensor, Tensor]]
"""Shares [B, P, V] of dense patches, and totals [B, T], of some showers."""


def train(
    net: PatchNet,
    scale: VoxelScale,
    real: NDArray[np.bool_],
    dense: Dense,
    hits: Hits,
    config: PatchesConfig,
    seed: int,
    on_step: Callable[[int, Mapping[str, float]], None],
) -> None:
    """Train `net` on `hits`; only voxels that are `real` [P, V] count. `on_step` is called after every step.

    The first steps train encoder and decoder alone; then k-means on the latent vectors of many showers gives the codes,
    so that few of them start dead (compare A. Łańcucki et al., arXiv:2005.08520).
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-2, betas=(0.9, 0.98))
    rng = np.random.default_rng(seed)
    warm = int(WARM_UP * config.steps)
    mask = torch.from_numpy(real)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _one_cycle(step, config.steps)
        if step == warm:
            _start_codes(net, scale, dense, hits, config, rng)
        shares, totals = dense(hits.select(rng.integers(0, len(hits), config.batch_objects)))
        latents = net.latents(scale.enter(shares), totals)
        used, commitment = 0.0, torch.zeros(())
        if step >= warm:
            latents, codes, commitments = net.quantise(latents)
            used, commitment = float(codes[..., 0].unique().numel()), commitments.sum()
        loss = scale.loss(net.outputs(latents, totals), shares, mask)
        optimizer.zero_grad()
        (loss + commitment).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        on_step(step, {"reconstruction": float(loss.detach()), "codes_in_batch": used})


@torch.no_grad()
def _start_codes(
    net: PatchNet, scale: VoxelScale, dense: Dense, hits: Hits, config: PatchesConfig, rng: np.random.Generator
) -> None:
    """Codes from k-means, which the quantiser runs on the first vectors that it sees."""
    wanted = min(KMEANS_VECTORS * config.codebook, MOST_VECTORS)
    objects = max(1, -(-wanted // len(net.positions)))
    vectors = []
    for part in hits.select(rng.integers(0, len(hits), objects)).parts(config.batch_objects):
        shares, totals = dense(part)
        vectors.append(net.latents(scale.enter(shares), totals).flatten(0, 1))
    latents = torch.cat(vectors)
    chosen = torch.from_numpy(rng.permutation(len(latents))[:wanted])
    net.quantise(latents[chosen][None])


def _one_cycle(step: int, steps: int) -> float:
    """Fraction of the peak learning rate: short linear rise, then a cosine to a hundredth."""
    rise = min(1.0, (step + 1) / max(1, steps // 20))
    return rise * (0.01 + 0.99 * 0.5 * (1.0 + float(np.cos(np.pi * step / steps))))
