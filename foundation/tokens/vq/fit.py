"""Training of a VQ-VAE tokenizer: batches of clouds or points, and the loss over the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.data.ragged import length_buckets, rows_of
from foundation.tokens.config import VqVaeConfig
from foundation.tokens.vq.net import Group, VqVae, real
from foundation.tokens.vq.point_groups import single_points, whole_clouds
from foundation.tokens.vq.quantisers import START_POINTS_PER_CODE
from foundation.tokens.vq.training import CodebookHealth, Metrics, train

POINTS_PER_GROUP = 8192
"""Points that the network sees at once without gradients, few enough to stay in the cache."""


class Fit:
    """Training of `net` on standardised features x [N, F] of clouds, whose squared errors count by `weights` [F]."""

    def __init__(
        self,
        net: VqVae,
        x: NDArray[np.float32],
        offsets: NDArray[np.int64],
        weights: NDArray[np.float32],
        config: VqVaeConfig,
        seed: int,
    ) -> None:
        self.net, self.x, self.offsets, self.config, self.seed = net, x, offsets, config, seed
        self.weights = torch.from_numpy(weights)
        self.health = CodebookHealth([config.codebook] * config.quantisers, config.batch_points)
        self.rng = np.random.default_rng(seed)
        self.batches = self._batches_of_clouds() if config.sees_clouds else self._batches_of_points()
        # vectors that were trained freely would lie far outside of levels
        self.free_steps = int(config.free_start * config.steps) if config.quantiser == "vq" else 0

    def run(self, name: str, on_step: Callable[[int, Metrics], None]) -> None:
        """Train the net of tokenizer `name`; say so where it leaves most of a codebook unused."""
        c = self.config
        self.net.train()
        train(
            self.net,
            self._loss,
            on_step,
            steps=c.steps,
            learning_rate=c.learning_rate,
            weight_decay=c.weight_decay,
        )
        self.health.warn(name)

    def _loss(self, step: int) -> tuple[Tensor, Metrics]:
        if step == self.free_steps:
            self._start_codes()
        replaced = self.net.quantise.replaced
        error, commitment, codes = losses(self.net, next(self.batches), self.weights, step >= self.free_steps)
        metrics = {"reconstruction": float(error.detach())}
        if codes is not None:
            self.health.add(codes.numpy())
            metrics |= self.health.metrics() | {"replaced": float(self.net.quantise.replaced - replaced)}
        return error + commitment, metrics

    @torch.no_grad()
    def _start_codes(self) -> None:
        """Start the codes by k-means on the latent vectors of many clouds, not of one batch."""
        chosen = self.rng.permutation(len(self.offsets) - 1)
        wanted = START_POINTS_PER_CODE * self.config.codebook
        chosen = chosen[: int(np.searchsorted(np.cumsum(np.diff(self.offsets)[chosen]), wanted)) + 1]
        rows, offsets = rows_of(self.offsets, chosen)
        divided = whole_clouds if self.config.sees_clouds else single_points
        self.net.eval()
        latents = [
            self.net.latents(torch.from_numpy(self.x[rows[part]]), None).flatten(0, 1)
            for part in divided(offsets, POINTS_PER_GROUP)
        ]
        self.net.quantise.start(torch.cat(latents), self.seed)
        self.net.train()

    def _batches_of_clouds(self) -> Iterator[list[Group]]:
        """Clouds in random order, all of them before any comes again."""
        counts = np.diff(self.offsets)
        filled = np.flatnonzero(counts)
        at_once = max(1, int(self.config.batch_points / counts[filled].mean()))
        waiting = np.zeros(0, np.int64)
        while True:
            while len(waiting) < at_once:
                waiting = np.concatenate([waiting, self.rng.permutation(filled)])
            rows, offsets = rows_of(self.offsets, waiting[:at_once])
            waiting = waiting[at_once:]
            yield groups_of(self.x[rows], offsets)

    def _batches_of_points(self) -> Iterator[list[Group]]:
        """Points drawn one by one: those of one cloud are alike."""
        while True:
            rows = self.rng.integers(0, len(self.x), self.config.batch_points)
            yield [(torch.from_numpy(self.x[rows])[None], None)]


def groups_of(x: NDArray[np.float32], offsets: NDArray[np.int64]) -> list[Group]:
    """Clouds of features x [N, F] in groups of similar length."""
    return [(torch.from_numpy(x[b.rows]), torch.from_numpy(b.valid)) for b in length_buckets(offsets)]


def losses(
    net: VqVae, groups: list[Group], weights: Tensor, quantised: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Reconstruction loss, commitment loss and codes [N, K] of a batch; every real point counts the same.

    The reconstruction loss is the squared error times `weights` [F], averaged over features and real points.
    """
    reconstructed, codes, commitment = net(groups, quantised)
    truth = torch.cat([real(x, valid) for x, valid in groups])
    return ((reconstructed - truth).square() * weights).mean(), commitment, codes
