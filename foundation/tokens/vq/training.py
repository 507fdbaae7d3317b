"""How the network of a tokenizer is trained, and how the use of its codes is watched meanwhile."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW

from foundation.console import say
from foundation.errors import DataError

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are cut."""
POINTS_PER_CODE = 10
"""The use of a codebook is counted over the last steps that gave so many points for each code."""

Metrics = Mapping[str, float]


def train(
    net: nn.Module,
    loss: Callable[[int], tuple[Tensor, Metrics]],
    on_step: Callable[[int, Metrics], None],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 1e-2,
) -> None:
    """Minimise `loss` by AdamW, with one cycle of the learning rate.

    loss: number of the step -> the loss of a batch that it draws, and what to report of it
    Raises DataError where the training diverges.
    """
    optimizer = AdamW(net.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * one_cycle(step, steps)
        total, metrics = loss(step)
        optimizer.zero_grad()
        total.backward()
        if not math.isfinite(nn.utils.clip_grad_norm_(net.parameters(), LARGEST_GRADIENT)):
            raise DataError(f"the training of the tokenizer diverged at step {step}: lower its learning_rate")
        optimizer.step()
        on_step(step, metrics)


def one_cycle(step: int, steps: int) -> float:
    """Fraction of the peak learning rate: short linear rise, then a cosine to a hundredth."""
    rise = min(1.0, (step + 1) / max(1, steps // 20))
    return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / steps)))


class CodebookHealth:
    """How well the codes of K codebooks are used, over the last steps.

    sizes:        codes of each codebook
    batch_points: points of a step, about
    """

    def __init__(self, sizes: list[int], batch_points: int) -> None:
        self.counts = [np.zeros(size, np.int64) for size in sizes]
        steps = max(10, math.ceil(POINTS_PER_CODE * max(sizes) / batch_points))
        self.window: deque[NDArray[np.int64]] = deque(maxlen=steps)

    def add(self, codes: NDArray[np.int64]) -> None:
        """Count the codes [N, K] of a step, and forget those of the oldest."""
        if len(self.window) == self.window.maxlen:
            self._count(self.window[0], -1)
        self.window.append(codes)
        self._count(codes, 1)

    def _count(self, codes: NDArray[np.int64], sign: int) -> None:
        for k, counts in enumerate(self.counts):
            counts += sign * np.bincount(codes[:, k], minlength=len(counts))

    def metrics(self) -> dict[str, float]:
        """Share of codes in use, and perplexity (codes of an evenly used codebook as informative), of each codebook."""
        found = {}
        for k, counts in enumerate(self.counts):
            found[f"code{k}_used"] = usage(counts)
            found[f"code{k}_perplexity"] = perplexity(counts)
        return found

    def warn(self, name: str) -> None:
        """Say which codebooks of tokenizer `name` are used by less than half."""
        for k, counts in enumerate(self.counts):
            # few points cannot use many codes
            if counts.sum() >= 0.5 * POINTS_PER_CODE * len(counts) and usage(counts) < 0.5:
                say(
                    f"tokenizer '{name}': only {usage(counts):.0%} of the {len(counts):,} codes of code{k} are in use; "
                    "a smaller codebook would code as much, a longer training may use more"
                )


def usage(counts: NDArray[np.int64]) -> float:
    """Share of codes that occur, of their counts."""
    return float((counts > 0).mean())


def perplexity(counts: NDArray[np.int64]) -> float:
    """Exponential of the entropy of the codes, of their counts; 0 where there are none."""
    total = counts.sum()
    if total == 0:
        return 0.0
    p = counts[counts > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))
