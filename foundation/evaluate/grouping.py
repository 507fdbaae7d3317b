"""Which objects are compared with which: classes, bins of incident energy, and random halves of the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError

MINIMUM = 20
"""Objects per half below which no distance is quoted."""

Members = dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Name of a group -> which objects of the truth and of the generated are in it."""


@dataclass(frozen=True)
class Split:
    """One random split of a group, as indices of truth (a, b) and generated objects, n each."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    generated: NDArray[np.int64]

    @property
    def n(self) -> int:
        """Objects per side."""
        return len(self.a)


def random_split(n_truth: int, n_generated: int, seed: Sequence[int]) -> Split:
    """Two halves of the truth and generated objects, as many of each as half of the truth and the generated have."""
    n = min(n_truth // 2, n_generated)
    if n < MINIMUM:
        raise DataError(
            f"{n_truth} truth and {n_generated} generated objects; at least {2 * MINIMUM} and {MINIMUM} are needed"
        )
    rng = np.random.default_rng(list(seed))
    order = rng.permutation(n_truth)
    return Split(order[:n], order[n : 2 * n], rng.permutation(n_generated)[:n])


def by_class(truth: PointClouds, generated: PointClouds, card: DatasetCard) -> Members:
    """Objects per class of the card; all in one group where the card has none, or one side does not know its own."""
    if not card.classes or not all((clouds.labels >= 0).any() for clouds in (truth, generated)):
        return {"all": (np.arange(len(truth)), np.arange(len(generated)))}
    return {
        name: (np.flatnonzero(truth.labels == k), np.flatnonzero(generated.labels == k))
        for k, name in enumerate(card.classes)
    }


def by_energy(truth: PointClouds, generated: PointClouds, bins: int) -> Members:
    """All showers, then those per bin of incident energy with equal numbers of truth showers."""
    members: Members = {"all": (np.arange(len(truth)), np.arange(len(generated)))}
    if "incident_energy" not in truth.condition_names or "incident_energy" not in generated.condition_names:
        return members
    energies = truth.condition("incident_energy"), generated.condition("incident_energy")
    known = energies[0][np.isfinite(energies[0])]
    edges = np.unique(np.round(np.quantile(known, np.linspace(0, 1, bins + 1)), 1)) if len(known) else np.zeros(0)
    for k in range(len(edges) - 1 if len(edges) > 2 else 0):
        low = -np.inf if k == 0 else edges[k]
        high = np.inf if k == len(edges) - 2 else edges[k + 1]
        inside = [np.flatnonzero((e >= low) & (e < high)) for e in energies]
        members[f"{edges[k]:g}-{edges[k + 1]:g} GeV"] = (inside[0], inside[1])
    return members
