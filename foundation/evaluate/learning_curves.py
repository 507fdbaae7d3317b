"""Scores against the number of labels or objects a network was trained on, over repetitions with other seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from foundation.errors import DataError

DEFINITIONS = {"learning_curve": "mean-over-seeds/student-t-68-1"}
LEVEL = 0.6827
"""Of the interval of the mean: one standard deviation of a Gaussian."""


@dataclass(frozen=True)
class CurvePoint:
    """A score at one training size, over seeds.

    mean, std: of the scores; std with ddof 1, how far one training scatters
    low, high: interval of the mean by Student's t (68.27 %), for trainings whose scores scatter like a Gaussian
    lowest, highest: of the scores

    std, low and high are NaN with one seed: nothing is known of the scatter.
    """

    n_train: int
    seeds: int
    mean: float
    std: float
    low: float
    high: float
    lowest: float
    highest: float


def learning_curve(
    trainings: Iterable[tuple[int, int, float]], *, level: float = LEVEL, what: str = "learning curve"
) -> tuple[CurvePoint, ...]:
    """Points by rising training size from (objects trained on, seed, score), one for each training."""
    by_size: dict[int, dict[int, float]] = {}
    for size, seed, score in trainings:
        if not np.isfinite(score):
            raise DataError(f"{what}: the score of seed {seed} at {size} training objects is not finite")
        if seed in by_size.setdefault(int(size), {}):
            raise DataError(f"{what}: two scores of seed {seed} at {size} training objects; give every training once")
        by_size[int(size)][seed] = float(score)
    if not by_size:
        raise DataError(f"{what}: no score was given")
    return tuple(_point(size, list(by_size[size].values()), level) for size in sorted(by_size))


def _point(size: int, scores: list[float], level: float) -> CurvePoint:
    from scipy.stats import t

    mean, n = float(np.mean(scores)), len(scores)
    std = float(np.std(scores, ddof=1)) if n > 1 else float("nan")
    reach = float(t.ppf(0.5 + level / 2, n - 1)) * std / np.sqrt(n) if n > 1 else float("nan")
    return CurvePoint(size, n, mean, std, mean - reach, mean + reach, min(scores), max(scores))
