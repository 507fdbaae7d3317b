"""Partial objects: the first points of the objects of a file, as codes that a sample begins with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import ragged_arange, rows_of, to_offsets
from foundation.errors import DataError
from foundation.generate.conditions import Objects, clouds_of
from foundation.generate.request_config import Complete
from foundation.generate.trained import as_trained
from foundation.tokens.tokenizer import Codes, Tokenizer


@dataclass(frozen=True)
class Beginnings:
    """First points of B objects: their codes [n, K], and their values float32 [n, F] in the tokenizer's features."""

    codes: NDArray[np.int64]
    values: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, index: NDArray[np.int64]) -> Beginnings:
        """Those of the objects with these numbers [b], taken in turn."""
        rows, offsets = rows_of(self.offsets, index % len(self))
        return Beginnings(self.codes[rows], self.values[rows], offsets)

    def each(self) -> list[NDArray[np.int64]]:
        """The codes of each object."""
        return np.split(self.codes, self.offsets[1:-1])

    def placed(self, values: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        """Decoded points [N, F] of the objects that began so, with the points that were given exactly as they were."""
        counts = np.diff(self.offsets)
        values = values.copy()
        values[np.repeat(offsets[:-1], counts) + ragged_arange(counts)] = self.values
        return values

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        digest = hashlib.sha256(self.offsets.tobytes())
        digest.update(self.values.tobytes())
        return digest.hexdigest()


def read_beginnings(
    card: DatasetCard, tokenizer: Tokenizer, complete: Complete, objects: int
) -> tuple[Beginnings, Objects]:
    """The first points of the first `objects` objects of a file, and these objects' labels and conditions.

    Raises DataError where the tokenizer codes no single points, or refuses the file's.
    """
    if tokenizer.tokens_per_object is not None:
        raise DataError(
            f"the tokenizer of '{card.tag}' codes patches and not points: partial objects have no codes to begin with"
        )
    names = [c.name for c in card.conditions]
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], PointClouds]] = []
    left = objects
    for clouds in clouds_of(card, Path(complete.file)):
        clouds = as_trained(card, tokenizer, clouds.select(slice(0, left)))
        codes, first = encode_first(tokenizer, clouds, complete.keep)
        parts.append((codes.values, first.points, first.counts, first))
        left -= len(clouds)
        if left == 0:
            break
    if not sum(len(part[3]) for part in parts):
        raise DataError(f"{complete.file}: holds no objects")
    codes_of, values, counts = (np.concatenate([part[i] for part in parts]) for i in range(3))
    labels = np.concatenate([part[3].labels for part in parts])
    conditions = np.concatenate([part[3].conditions_named(names) for part in parts])
    return Beginnings(codes_of, values, to_offsets(counts)), Objects(labels, conditions, complete.file)


def encode_first(tokenizer: Tokenizer, clouds: PointClouds, keep: int) -> tuple[Codes, PointClouds]:
    """Codes of the first points of all clouds, which know nothing of the others; and these points."""
    codes = tokenizer.encode(clouds, keep)
    names = [feature.name for feature in tokenizer.features]
    return codes, clouds.first_points(keep).with_columns(names, clouds.condition_names, clouds.tag)
