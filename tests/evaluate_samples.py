"""Toy jets and showers for the tests of evaluation: gamma-distributed pT, three prongs for tops, layered showers."""

from __future__ import annotations

import numpy as np

from foundation.data.cards import load_card
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets

JET_CARD = load_card("pythia_jets")
SHOWER_CARD = load_card("gflash_siw")


def toy_jets(n: int, seed: int, smear: float = 1.0) -> PointClouds:
    """Alternating one-prong (label 0) and three-prong (label 1) jets; `smear` scales pT and width."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    counts = np.maximum(rng.poisson(np.where(labels == 1, 40, 25)), 3)
    points, owners = int(counts.sum()), np.repeat(np.arange(n), counts)
    axes = rng.normal(size=(n, 3, 2))
    axes *= np.where(labels == 1, 0.3, 0.03)[:, None, None] / np.linalg.norm(axes, axis=2, keepdims=True)
    pt = rng.gamma(0.5, 1.0, points) + 0.002
    pt *= (rng.uniform(500, 1000, n) / np.bincount(owners, pt))[owners] * smear
    angles = axes[owners, rng.integers(0, 3, points)] + rng.normal(0, 0.1, (points, 2)) * smear
    table = np.column_stack([pt, angles, rng.integers(0, 5, points), rng.integers(0, 3, points)])
    return PointClouds(
        table.astype(np.float32), to_offsets(counts), JET_CARD.feature_names, JET_CARD.feature_units,
        labels, np.zeros((n, 0), np.float32), tag=JET_CARD.tag,
    )  # fmt: skip


def toy_showers(n: int, seed: int, scale: float = 1.0) -> PointClouds:
    """Showers of 5-50 GeV whose visible energy rises with the incident energy; `scale` multiplies hit energies."""
    rng = np.random.default_rng(seed)
    incident = rng.uniform(5, 50, n).astype(np.float32)
    counts = np.maximum(rng.poisson(20 + incident), 1)
    points, owners = int(counts.sum()), np.repeat(np.arange(n), counts)
    layer = np.clip(rng.gamma(4, 1.2, points), 0, 11).astype(int)
    cells = np.clip(np.round(rng.normal(5.5, 1.5, (points, 2))), 0, 11)
    energy = scale * (0.1 + rng.gamma(2.0, 1.0, points) * incident[owners] / 10)
    return PointClouds(
        np.column_stack([layer, cells, energy]).astype(np.float32), to_offsets(counts), SHOWER_CARD.feature_names,
        SHOWER_CARD.feature_units, np.zeros(n, np.int64), incident[:, None], ("incident_energy",), ("GeV",),
        SHOWER_CARD.tag,
    )  # fmt: skip
