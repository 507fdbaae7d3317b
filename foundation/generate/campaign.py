"""Point clouds from a model: conditions in, physical units out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foundation.console import Progress
from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.generate.sampler import SamplingConfig, sample
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Generated:
    """Clouds, and what happened on the way: counts that a user must know."""

    clouds: PointClouds
    report: dict[str, int]


def generate(
    model: Transformer,
    layout: Layout,
    tokenizer: Tokenizer,
    card: DatasetCard,
    labels: NDArray[np.int64],
    conditions: NDArray[np.float32],
    *,
    seed: int,
    config: SamplingConfig,
    batch: int = 512,
) -> Generated:
    """Generate one cloud per label [B] (-1: any class) and row of conditions [B, C] (NaN: any).

    The result for object i depends on the model, the seed and i only, not on `batch`.
    """
    prefix = layout.prefix(card.tag, labels, conditions)
    codes, counts, cut = [], [], 0
    with Progress(f"generate {card.tag}", len(labels), "objects") as progress:
        for first in range(0, len(labels), batch):
            part = np.arange(first, min(first + batch, len(labels)))
            sampled = sample(model, layout, card.tag, prefix[part], part, seed, config)
            codes.append(sampled.codes)
            counts.append(np.diff(sampled.offsets))
            cut += int(sampled.cut.sum())
            progress.advance(len(part))
    if not codes:
        raise DataError("nothing to generate: no objects were asked for")
    offsets = to_offsets(np.concatenate(counts))
    points = tokenizer.decode(np.concatenate(codes), offsets, _uniform(seed, offsets, len(tokenizer.streams)))
    clouds = PointClouds(
        points=points,
        offsets=offsets,
        features=card.feature_names,
        units=card.feature_units,
        labels=labels,
        conditions=conditions.astype(np.float32),
        condition_names=tuple(c.name for c in card.conditions),
        condition_units=tuple(c.unit for c in card.conditions),
        tag=card.tag,
    )
    report = {"objects": len(clouds), "reached_max_points": cut, "empty": int((clouds.counts == 0).sum())}
    if card.domain == "shower":
        clouds, report["merged_hits"] = merge_hits(clouds)
    return Generated(clouds, report)


def _uniform(seed: int, offsets: NDArray[np.int64], streams: int) -> NDArray[np.float64]:
    """Random numbers for the values inside bins, [N, K], from (seed, object) alone."""
    parts = [np.random.default_rng([seed, i, 1]).random((int(n), streams)) for i, n in enumerate(np.diff(offsets))]
    return np.concatenate(parts) if parts else np.zeros((0, streams))


def merge_hits(clouds: PointClouds) -> tuple[PointClouds, int]:
    """Hits of one shower in the same cell become one with the sum of their energies; how many were merged away.

    A cell can be read out once; the sum keeps the shower's energy. The merged hit stands where the first one stood.
    """
    cell = np.stack([clouds.feature(name).astype(np.int64) for name in ("layer", "x", "y")])
    keys = np.stack([clouds.owners, *cell])
    _, first, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    merged = len(clouds.points) - len(first)
    if merged == 0:
        return clouds, 0
    energy = clouds.features.index("energy")
    points = clouds.points[first].copy()
    points[:, energy] = np.bincount(inverse.ravel(), weights=clouds.points[:, energy])
    order = np.argsort(first)
    counts = np.bincount(clouds.owners[first], minlength=len(clouds))
    return replace(clouds, points=points[order], offsets=to_offsets(counts)), merged
