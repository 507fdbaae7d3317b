"""Jets, and what the reference implementations say about them: tests/data/jet_metrics."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets

FOLDER = Path(__file__).parent / "data" / "jet_metrics"
SEED = 11
"""Of the generator that jetnet's metrics drew from."""


@cache
def recorded_jets(side: str) -> PointClouds:
    """The jets of "truth" or "generated"."""
    with np.load(FOLDER / "jets.npz") as arrays:
        return jets_of(arrays[f"{side}_points"][:, [2, 0, 1]], np.diff(arrays[f"{side}_offsets"]))


@cache
def recorded_arrays() -> dict[str, NDArray[np.float64]]:
    """Polynomials and observables by name."""
    with np.load(FOLDER / "references.npz") as arrays:
        return dict(arrays)


@cache
def recorded_numbers() -> dict[str, Any]:
    """Metrics by name."""
    return json.loads((FOLDER / "references.json").read_text())


def jets_of(points: NDArray[Any], counts: NDArray[Any]) -> PointClouds:
    """Jets from rows (pt, eta, phi)."""
    n = len(counts)
    return PointClouds(
        points.astype(np.float32), to_offsets(counts.astype(np.int64)), ("pt", "eta_rel", "phi_rel"), ("1", "1", "rad"),
        np.zeros(n, np.int64), np.zeros((n, 0), np.float32),
    )  # fmt: skip


def smeared(jets: PointClouds, width: float, seed: int = 0) -> PointClouds:
    """The same jets with every angle and every logarithm of pT smeared by a Gaussian of this width."""
    rng = np.random.default_rng(seed)
    points = jets.points.copy()
    points[:, 0] *= np.exp(rng.normal(0, width, len(points))).astype(np.float32)
    points[:, 1:3] += rng.normal(0, width, (len(points), 2)).astype(np.float32)
    return PointClouds(
        points, jets.offsets, jets.features, jets.units, jets.labels, jets.conditions, tag=jets.tag
    )  # fmt: skip
