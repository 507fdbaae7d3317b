"""Which voxels become hits when patches are decoded, and how their energies spread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

NEWTON_STEPS = 60
NEAR = 1e-4
"""How near to a whole number chances add up; well below the margin in `drawn`."""
GOLDEN = 0.6180339887498949


def spread(
    shares: NDArray[np.float64], widths: NDArray[np.float64], groups: NDArray[np.int64], uniform: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Shares [N] drawn from lognormal densities with these medians and widths, by numbers [N] in [0, 1).

    The codes of a group (a patch of a shower) tell its energy, but not how it is shared by all its hits: each `groups`
    [N] keeps the mean of its sum, and only the shares of its hits spread.
    """
    values = shares * np.exp(widths * ndtri(uniform.clip(1e-6, 1 - 1e-6)))
    wanted = np.bincount(groups, shares * np.exp(0.5 * widths**2))
    return values * (wanted / np.bincount(groups, values).clip(1e-30))[groups]


def scaled(
    energies: NDArray[np.float64], owners: NDArray[np.int64], sums: NDArray[np.float64], lowest: float
) -> NDArray[np.float64]:
    """Energies [N], none below `lowest` >= 0, whose sums per object are `sums` [B]: what lies above `lowest` is scaled.

    An object with more hits than its sum allows gets hits of the lowest energy.
    """
    above = (energies - lowest).clip(1e-30)
    room = (sums - lowest * np.bincount(owners, minlength=len(sums))).clip(0.0)
    return lowest + above * (room / np.bincount(owners, above, len(sums)).clip(1e-30))[owners]


def many(uniform: NDArray[np.float64], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Evenly spread numbers in [0, 1), one for each `index` [N], from one number `uniform` [N] of their group."""
    return (uniform + GOLDEN * index) % 1.0


def brightest(scores: NDArray[np.floating], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The `counts` [B] voxels with the highest scores [B, V] of each object, bool [B, V]."""
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = np.arange(scores.shape[1])
    chosen = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(chosen, order, rank[None, :] < counts[:, None], axis=1)
    return chosen


def drawn(chances: NDArray[np.floating], uniform: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Voxels drawn with these chances [B, V] and one number `uniform` [B] in [0, 1) per object, bool [B, V].

    Systematic sampling (W. G. Madow, Ann. Math. Stat. 20 (1949) 333): each voxel is hit with exactly its chance, and
    the number of hits of an object is the sum of its chances, rounded up or down.
    """
    # away from the ends, where rounding would give or take a hit when the chances add up to a whole number
    start = 1e-3 + (1 - 2e-3) * uniform
    passed = np.floor(np.cumsum(chances.astype(np.float64), axis=1) + start[:, None])
    return np.diff(passed, axis=1, prepend=0.0) > 0


def chances_of(odds: NDArray[np.floating], counts: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """Chances [B, V] from log odds [B, V]; the same shift of all odds of an object makes them add up to its count."""
    logits = odds.astype(np.float32)
    if counts is None:
        return expit(logits)
    # no finite shift reaches the ends; so small a difference from a whole number is rounded away in `drawn`
    wanted = counts.clip(NEAR, odds.shape[1] - NEAR)
    shift = np.zeros(len(odds), np.float32)
    for _ in range(NEWTON_STEPS):
        chances = expit(logits + shift[:, None])
        missing = wanted - chances.sum(axis=1, dtype=np.float64)
        unfinished = np.abs(missing) > NEAR
        if not unfinished.any():
            break
        slope = np.einsum("bv,bv->b", chances, 1 - chances)
        # short steps, because far from the solution the slope vanishes
        shift += np.where(unfinished, np.clip(missing / slope.clip(1e-9), -3.0, 3.0), 0.0).astype(np.float32)
    return expit(logits + shift[:, None])
