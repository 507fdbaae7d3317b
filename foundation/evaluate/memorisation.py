"""Does a generator repeat its training sample? Nearest neighbours, the C_T test, and exact copies.

All compare with objects of the truth that were held out from training: a good generator is as far from its training
sample as those are. Features [B, d] are observables of each object, which are standardised on the training sample, or
vectors of whole clouds (neighbours.py), which are taken as they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.metrics import Floats, Measurement
from foundation.evaluate.neighbours import Standard, nearest

DEFINITIONS = {
    "closer_to_training": "share-closer-to-training/foundation-1",
    "distance_ratio": "median-nearest-distance-ratio/foundation-1",
    "copying": "c-t/data-copying-a0ba2db",
    "exact_copies": "exact-copies/float32-1",
    "repeats": "repeats/float32-1",
}
"""Name and version of the definition of every number (docs/reference/metrics.md)."""
MINIMUM = 50
"""Objects of each sample below which nothing is quoted."""
LARGEST = 20_000
"""Objects of each sample at most: the work grows with the product of their numbers."""
CELLS = 10
LEAST_SHARE = 0.02
"""Of the generated objects, that a cell must hold to count in C_T."""
RESAMPLINGS = 100


@dataclass(frozen=True)
class Memorisation:
    """How near generated objects are to the training sample.

    closer_to_training: share of generated objects that have a training object nearer than the nearest held-out one, of
        equally many of both; 0.5 for a generator that does not know which is which. Its error is that of a random
        exchange of training and held-out objects, which knows how many generated objects share a neighbour
    z, p_value:     of the share against 0.5, one-sided: small p where it copies
    distance_ratio: median distance of generated objects to the training sample / that of held-out ones; 1 is ideal,
        less is copying, more is poor quality; bootstrap error over generated and held-out objects
    copying:        C_T, the mean z over cells: 0 is ideal, negative is copying, positive is further off than truth. Its
        error is that of the mean of z that scatter by 1, so that C_T / error is its significance
    objects:        of each of the three samples
    """

    closer_to_training: Measurement
    z: float
    p_value: float
    distance_ratio: Measurement
    copying: Measurement
    objects: int


def memorisation(
    training: Floats,
    held_out: Floats,
    generated: Floats,
    *,
    standardise: bool = True,
    seed: int = 0,
    largest: int = LARGEST,
) -> Memorisation:
    """Compare features [B, d] of training, held-out and generated objects; equally many of each are drawn.

    standardise: in units of the training sample's standard deviation; not for `cloud_vectors`, which are scaled.
    """
    from scipy.stats import norm

    drawn = _drawn({"training": training, "held-out": held_out, "generated": generated}, seed, largest)
    standard = Standard.fit(drawn["training"])
    train, held, made = (standard.apply(x) if standardise else x for x in drawn.values())
    n = len(train)
    from_train, from_held = nearest(made, train), nearest(made, held)
    closer = np.where(from_train.distance == from_held.distance, 0.5, from_train.distance < from_held.distance)
    share, error = float(closer.mean()), _exchange_error(closer, from_train.index, from_held.index, n)
    z = (share - 0.5) / error if error > 0 else 0.0
    of_held = nearest(held, train).distance
    return Memorisation(
        Measurement(share, error),
        z,
        float(norm.sf(z)),
        _median_ratio(from_train.distance, of_held, seed),
        copying_test(train, held, made, seed=seed),
        n,
    )


def _drawn(samples: dict[str, Floats], seed: int, largest: int) -> dict[str, Floats]:
    widths = {np.asarray(features).shape[1:] for features in samples.values()}
    if len(widths) != 1 or len(next(iter(widths))) != 1:
        raise DataError("memorisation: the three samples must be tables [objects, features] with the same features")
    for name, features in samples.items():
        if len(features) < MINIMUM:
            raise DataError(
                f"memorisation: the {name} sample has {len(features)} objects, at least {MINIMUM} are needed"
            )
        broken = int((~np.isfinite(features).all(1)).sum())
        if broken:
            raise DataError(
                f"memorisation: {broken} objects of the {name} sample have a feature that is not finite; leave them out"
            )
    n = min(largest, *(len(features) for features in samples.values()))
    rng = np.random.default_rng(seed)
    return {name: np.asarray(x, np.float64)[rng.permutation(len(x))[:n]] for name, x in samples.items()}


def _exchange_error(closer: Floats, in_train: NDArray[np.int64], in_held: NDArray[np.int64], n: int) -> float:
    """Standard deviation of the share if a random half of the 2 n reference objects were those of training.

    A generated object counts for training where the nearest of all reference objects is of training, so the share is
    the sum over the chosen half of how many have each as their nearest; ties count half for both and do not scatter.
    """
    decided = closer != 0.5
    winner = np.where(closer == 1, in_train, n + in_held)[decided]
    times = np.bincount(winner, minlength=2 * n) / len(closer)
    return float(0.5 * np.sqrt(2 * n * times.var(ddof=1)))


def _median_ratio(of_generated: Floats, of_held: Floats, seed: int) -> Measurement:
    def ratio(a: Floats, b: Floats) -> float:
        below = float(np.median(b))
        return float(np.median(a)) / below if below > 0 else float("nan")

    rng = np.random.default_rng([seed, 1])
    sizes = len(of_generated), len(of_held)
    drawn = [
        ratio(of_generated[rng.integers(0, sizes[0], sizes[0])], of_held[rng.integers(0, sizes[1], sizes[1])])
        for _ in range(RESAMPLINGS)
    ]
    return Measurement(ratio(of_generated, of_held), float(np.std(drawn, ddof=1)))


def copying_test(
    training: Floats, held_out: Floats, generated: Floats, *, cells: int = CELLS, seed: int = 0
) -> Measurement:
    """C_T of Meehan, Chaudhuri and Dasgupta (arXiv:2004.05675, eq. 4) in cells found by k-means on the training sample.

    Fewer cells than asked for where one of them has no held-out or no training object.
    """
    from scipy.cluster.vq import kmeans2

    for k in range(cells, 0, -1):
        centres, in_training = kmeans2(training, k, minit="++", seed=np.random.default_rng(seed))
        in_held = nearest(held_out, centres).index
        if min(np.bincount(x, minlength=k).min() for x in (in_training, in_held)) > 0:
            break
    in_generated = nearest(generated, centres).index
    return copying_of_cells(
        (training, in_training.astype(np.int64)), (held_out, in_held), (generated, in_generated), least=LEAST_SHARE
    )


Celled = tuple[Floats, NDArray[np.int64]]
"""Features [B, d] of objects, and the cell of each, [B]."""


def copying_of_cells(
    training: Celled, held_out: Celled, generated: Celled, *, least: float = LEAST_SHARE
) -> Measurement:
    """C_T in given cells: the mean of `copying_z` weighted with the held-out objects of each cell.

    Cells with no more than the share `least` of the generated objects do not count; without any that does: NaN.
    """
    scores, weights = [], []
    for cell in range(int(training[1].max()) + 1):
        there, held, made = (x[which == cell] for x, which in (training, held_out, generated))
        if len(made) <= least * len(generated[0]):
            continue
        if len(there) == 0 or len(held) == 0:
            raise DataError(f"C_T: cell {cell} has no training or no held-out objects; take fewer cells")
        scores.append(copying_z(nearest(held, there).distance, nearest(made, there).distance))
        weights.append(len(held))
    if not scores:
        return Measurement(float("nan"), float("nan"))
    w = np.array(weights) / sum(weights)
    return Measurement(float(w @ scores), float(np.sqrt((w**2).sum())))


def copying_z(of_held_out: Floats, of_generated: Floats) -> float:
    """Z of Mann and Whitney for distances to the training sample: negative where generated objects are the nearer.

    As the authors' code (github.com/casey-meehan/data-copying, a0ba2db) has it: variance without ties, and half a pair
    as correction for continuity.
    """
    from scipy.stats import rankdata

    n, m = len(of_held_out), len(of_generated)
    u = rankdata(np.concatenate([of_generated, of_held_out]))[:m].sum() - m * (m + 1) / 2
    return float((u - n * m / 2 + 0.5) / np.sqrt(n * m * (n + m + 1) / 12))


@dataclass(frozen=True)
class Copies:
    """Generated objects that are, point for point and bit for bit, what is elsewhere; the order of points is free.

    of_training: generated objects that are in the training sample
    held_out_of_training: share of held-out objects that are: what chance gives where values are coarse
    repeats:     generated objects that were generated before
    """

    of_training: int
    share: Measurement
    held_out_of_training: float
    repeats: int
    generated: int


def exact_copies(training: PointClouds, held_out: PointClouds, generated: PointClouds) -> Copies:
    """Count copies, by the features that all samples have; of all objects, none is left out."""
    names = [f for f in training.features if f in held_out.features and f in generated.features]
    if not names:
        raise DataError("exact copies: the samples have no feature in common")
    if len(generated) == 0:
        raise DataError("exact copies: the generated sample is empty")
    known = set(_fingerprints(training, names))
    made = _fingerprints(generated, names)
    copies = sum(print_ in known for print_ in made)
    held = _fingerprints(held_out, names)
    share = copies / len(made)
    return Copies(
        copies,
        Measurement(share, float(np.sqrt(share * (1 - share) / len(made)))),
        sum(print_ in known for print_ in held) / len(held) if held else float("nan"),
        len(made) - len(Counter(made)),
        len(made),
    )


def _fingerprints(clouds: PointClouds, names: list[str]) -> list[bytes]:
    """A hash of each cloud's points in sorted order; -0 counts as 0."""
    columns = [clouds.feature(name) + np.float32(0) for name in names]
    order = np.lexsort((*columns, clouds.owners))
    table = np.ascontiguousarray(np.stack(columns, axis=1)[order], np.float32)
    ends = clouds.offsets
    return [blake2b(table[a:b].tobytes(), digest_size=16).digest() for a, b in pairwise(ends.tolist())]
