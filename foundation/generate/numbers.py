"""Random numbers of objects beside those that they are sampled with: what each is for keeps them apart.

They too depend on (seed, purpose, object, place) alone (foundation/generate/randomness.py), for many objects at once
and in any order. A generator of numpy per object would take 20 us to make.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.data.ragged import ragged_arange
from foundation.generate.randomness import object_keys
from foundation.generate.randomness import uniform as uniform_tensor

INSIDE_BINS, CONDITIONS, ORDER = range(3)
"""What the numbers are for; those of one purpose say nothing of those of another."""
AT_ONCE = 4096


def keys(seed: int, purpose: int, objects: NDArray[np.int64]) -> Tensor:
    """What the numbers of each object follow from, int64 [B]."""
    # no object has a number below 0: nothing is sampled with this seed
    own_seed = int(object_keys(seed, torch.tensor([-1 - purpose]))[0])
    return object_keys(own_seed, torch.from_numpy(np.asarray(objects, np.int64)))


def uniform(of: Tensor, places: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Number in [0, 1) at a place of each object, [B]; of: keys [B] or [1]; places [B], or one for all."""
    return uniform_tensor(of, torch.from_numpy(np.atleast_1d(np.asarray(places, np.int64)))).numpy()


def uniform_of_points(of: Tensor, counts: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), [N, columns], for the points of objects with these counts [B]."""
    points = torch.from_numpy(np.repeat(of.numpy(), counts))[:, None]
    places = torch.from_numpy(columns * ragged_arange(counts))[:, None]
    drawn, column = np.empty((len(points), columns)), torch.arange(columns)
    for first in range(0, len(points), AT_ONCE):  # so few that they stay in the cache
        rows = slice(first, first + AT_ONCE)
        drawn[rows] = uniform_tensor(points[rows], places[rows] + column).numpy()
    return drawn
