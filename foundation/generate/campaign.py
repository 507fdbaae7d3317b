"""Point clouds from a model: conditions in, physical units out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.console import Progress
from foundation.data.cards import DatasetCard
from foundation.data.collisions import hits_outside, resolve
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.generate.sampler import SamplingConfig, sample
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Codes, Tokenizer


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
    clouds = decoded(tokenizer, card, Codes(np.concatenate(codes), offsets), labels, conditions, seed)
    report = {"objects": len(clouds), "reached_max_points": cut, "empty": int((clouds.counts == 0).sum())}
    if card.domain == "shower":
        clouds, report["merged_hits"] = resolve(clouds, card.geometry, "sum")
        if card.geometry is not None:
            report["hits_outside_geometry"] = int(hits_outside(clouds, card.geometry).sum())
    return Generated(clouds, report)


def decoded(
    tokenizer: Tokenizer,
    card: DatasetCard,
    codes: Codes,
    labels: NDArray[np.int64],
    conditions: NDArray[np.float32],
    seed: int,
) -> PointClouds:
    """The clouds that codes stand for; what is random in a tokenizer is drawn from (seed, number of the object)."""
    given = dict(zip((c.name for c in card.conditions), conditions.T, strict=True))
    points = tokenizer.decode(codes, _uniform(seed, codes.offsets, len(tokenizer.streams)), given)
    return PointClouds(
        points=points.values,
        offsets=points.offsets,
        features=tuple(f.name for f in tokenizer.features),
        units=tuple(f.unit for f in tokenizer.features),
        conventions=tuple(f.convention for f in tokenizer.features),
        labels=labels,
        conditions=conditions.astype(np.float32),
        condition_names=tuple(c.name for c in card.conditions),
        condition_units=tuple(c.unit for c in card.conditions),
        tag=card.tag,
    )


def _uniform(seed: int, offsets: NDArray[np.int64], streams: int) -> NDArray[np.float64]:
    """Random numbers for the values inside bins, [N, K], from (seed, object) alone."""
    parts = [np.random.default_rng([seed, i, 1]).random((int(n), streams)) for i, n in enumerate(np.diff(offsets))]
    return np.concatenate(parts) if parts else np.zeros((0, streams))
