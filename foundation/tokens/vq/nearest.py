"""Nearest of many vectors: exact search, and k-means that is built on it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

TREE_DIMENSIONS = 12
"""Up to here a tree is faster: what a network makes of a few features lies near a surface of as few dimensions."""
BLOCK = 2**18
"""Distances that are held at once, few enough to stay in the cache."""


class NearestCode:
    """Index of the nearest of C vectors, the first of those that are equal; exact, whatever else is asked with it.

    vectors: [C, D]
    """

    def __init__(self, vectors: NDArray[np.floating]) -> None:
        self.vectors, self.first = np.unique(vectors.astype(np.float64), axis=0, return_index=True)
        self.squares = np.einsum("cd,cd->c", self.vectors, self.vectors)
        self.tree = cKDTree(self.vectors) if vectors.shape[1] <= TREE_DIMENSIONS else None

    def __call__(self, points: NDArray[np.floating]) -> NDArray[np.int64]:
        """Indices int64 [N] of the vectors nearest to points [N, D]."""
        if self.tree is not None:
            return self.first[self.tree.query(points)[1]].astype(np.int64)
        found = np.empty(len(points), np.int64)
        rows = max(1, BLOCK // len(self.vectors))
        for start in range(0, len(points), rows):
            block = points[start : start + rows].astype(np.float64)
            found[start : start + rows] = (self.squares - 2.0 * block @ self.vectors.T).argmin(axis=1)
        return self.first[found].astype(np.int64)


def k_means(
    points: NDArray[np.floating], size: int, rng: np.random.Generator, rounds: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Centres [size, D] of clusters of points [N, D], and the cluster of each point [N].

    Starts from points drawn at random; a cluster that has lost its points starts again at a point that lies far from
    its centre. With fewer different points than `size`, some centres are equal.
    """
    exact: NDArray[np.float64] = points.astype(np.float64)
    centres = exact[rng.choice(len(exact), size, replace=len(exact) < size)]
    owners = NearestCode(centres)(exact)
    for _ in range(rounds):
        centres = _means(exact, owners, centres, rng)
        owners = NearestCode(centres)(exact)
    return centres, owners


def _means(
    points: NDArray[np.float64], owners: NDArray[np.int64], centres: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    counts = np.bincount(owners, minlength=len(centres))
    sums = [np.bincount(owners, weights=column, minlength=len(centres)) for column in points.T]
    means = np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        far = np.square(points - centres[owners]).sum(axis=1) + 1e-30
        means[empty] = points[rng.choice(len(points), len(empty), p=far / far.sum())]
    return means
