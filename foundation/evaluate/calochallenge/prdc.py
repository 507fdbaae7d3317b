"""Precision, recall, density and coverage of showers (arXiv:1904.06991, arXiv:2002.09797), in bounded memory.

With radii R_i of the true and G_j of the generated showers, the distances to their k-th nearest neighbours in their own
sample, and d_ij between true and generated ones:

    precision = mean_j any_i d_ij < R_i          recall   = mean_i any_j d_ij < G_j
    density   = mean_j sum_i (d_ij < R_i) / k    coverage = mean_i (min_j d_ij < R_i)

They agree with the package prdc 0.2 that evaluate.py of the CaloChallenge calls, with k = 5 on log10 of the voxels in
MeV, empty ones as 0.1 MeV. That value lies above the threshold of datasets 2 and 3: an empty voxel is closer to one of
0.1 MeV than one of 0.02 MeV is. It is the challenge's choice, and what its published numbers have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from foundation.console import Progress
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.calochallenge.settings import Settings
from foundation.evaluate.calochallenge.voxels import voxel_matrix
from foundation.evaluate.metrics import Floats, Measurement

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NEAREST = 5
EMPTY_MEV = 0.1
BLOCK_BYTES = 256_000_000
BLOCK_SHOWERS = 5000
"""Showers whose dense voxels, and whose distances to as many others, are in memory: about a gigabyte in all."""


@dataclass(frozen=True)
class Prdc:
    """The four numbers. Errors: of the means over showers, with the radii taken as given."""

    precision: Measurement
    recall: Measurement
    density: Measurement
    coverage: Measurement


def shower_prdc(
    truth: PointClouds,
    generated: PointClouds,
    settings: Settings,
    seed: int = 0,
    k: int = NEAREST,
    most: int | None = None,
) -> Prdc:
    """PRDC of the voxels of showers.

    most: showers of each sample at most, drawn with the seed; the work goes with its square. All where it is None, as
          the challenge does. The numbers depend on the size of the samples.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for sample in (truth, generated):
        if most is not None and len(sample) > most:
            sample = sample.select(np.sort(rng.permutation(len(sample))[:most]))
        rows.append(_logarithms(voxel_matrix(sample, settings)))
    return _prdc(rows[0], rows[1], k)


def prdc(truth: Floats, generated: Floats, k: int = NEAREST) -> Prdc:
    """PRDC of rows of features [N, D] and [M, D]."""
    for name, rows in (("truth", truth), ("generated", generated)):
        if not np.isfinite(rows).all():
            raise DataError(f"precision and recall: {name} has features that are not finite")
    return _prdc(np.asarray(truth, np.float64), np.asarray(generated, np.float64), k)


def _logarithms(voxels: csr_matrix) -> csr_matrix:
    """log10(E / 0.1 MeV): shifted against the challenge's log10 E, so that empty voxels are zero; no distance moves."""
    logarithms = voxels.astype(np.float64)
    logarithms.data = np.log10(logarithms.data) - np.log10(EMPTY_MEV)
    return logarithms


def _prdc(truth: csr_matrix | Floats, generated: csr_matrix | Floats, k: int) -> Prdc:
    sizes = truth.shape[0], generated.shape[0]
    if min(sizes) < k + 2:
        raise DataError(f"precision and recall with k = {k} need at least {k + 2} showers of each sample; got {sizes}")
    block = min(BLOCK_SHOWERS, max(1, BLOCK_BYTES // (8 * truth.shape[1])))
    with Progress("precision and recall", 3, "passes") as progress:
        radii = _radii(truth, k, block)
        progress.advance()
        generated_radii = _radii(generated, k, block)
        progress.advance()
        near = np.zeros(sizes[1])
        recalled, covered = np.zeros(sizes[0], np.bool_), np.zeros(sizes[0], np.bool_)
        for i, a in _blocks(truth, block):
            closest = torch.full((len(a),), torch.inf, dtype=torch.float64)
            for j, b in _blocks(generated, block):
                distance = _distances(a, b)
                near[j] += (distance < radii[i, None]).sum(0).numpy()
                recalled[i] |= (distance < generated_radii[None, j]).any(1).numpy()
                closest = torch.minimum(closest, distance.amin(1))
            covered[i] = (closest < radii[i]).numpy()
        progress.advance()
    return Prdc(_mean(near > 0), _mean(recalled), _mean(near / k), _mean(covered))


def _radii(rows: csr_matrix | Floats, k: int, block: int) -> Tensor:
    """Distance of each row to its k-th nearest other one, [N]."""
    found = []
    for i, a in _blocks(rows, block):
        nearest = torch.full((len(a), k + 1), torch.inf, dtype=torch.float64)
        for j, b in _blocks(rows, block):
            distance = _distances(a, b)
            if i == j:
                distance.fill_diagonal_(0.0)
            kept = torch.topk(distance, min(k + 1, distance.shape[1]), dim=1, largest=False, sorted=False).values
            nearest = torch.topk(torch.cat([nearest, kept], dim=1), k + 1, dim=1, largest=False, sorted=False).values
        found.append(nearest.amax(1))  # of k + 1, as the row itself is one of them
    return torch.cat(found)


def _blocks(rows: csr_matrix | Floats, block: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, rows.shape[0], block):
        part = slice(start, min(start + block, rows.shape[0]))
        dense = rows[part] if isinstance(rows, np.ndarray) else rows[part].toarray()
        yield part, torch.from_numpy(np.ascontiguousarray(dense))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances [len(a), len(b)] by |a|^2 + |b|^2 - 2 a b, as scikit-learn has them."""
    squares = torch.addmm((b * b).sum(1)[None, :], a, b.T, alpha=-2.0)
    return squares.add_((a * a).sum(1)[:, None]).clamp_(min=0.0).sqrt_()


def _mean(values: np.ndarray) -> Measurement:
    numbers = values.astype(np.float64)
    return Measurement(float(numbers.mean()), float(numbers.std(ddof=1) / np.sqrt(len(numbers))))
