"""Labels and conditions of the objects of a campaign: each object's follow from the seed and its number alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from foundation.data.cards import Condition, DatasetCard
from foundation.data.files import is_point_cloud_file, point_cloud_file_size, read_point_clouds
from foundation.data.formats.reading import read_in_ranges
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean
from foundation.generate.numbers import CONDITIONS, ORDER, keys, uniform
from foundation.generate.request_config import Asked, Distribution, Values
from foundation.tokens.conditions import conditions_outside

ANY, ANY_CLASS = "any", -1
SMALL = 1e-30
"""Lowest value that a normal distribution gives where the bins are logarithmic."""
AT_ONCE = 20_000
"""Objects of a file that are read at a time."""


@dataclass(frozen=True)
class Objects:
    """What a file says of B objects beside their points: labels int64 [B], conditions float32 [B, C] of the card."""

    labels: NDArray[np.int64]
    conditions: NDArray[np.float32]
    source: str = ""

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        digest = hashlib.sha256(self.labels.tobytes())
        digest.update(self.conditions.tobytes())
        return digest.hexdigest()


def objects_of_file(card: DatasetCard, source: str) -> Objects:
    """Labels and conditions of all objects of a file or folder; their points are read past."""
    names = [c.name for c in card.conditions]
    parts = [(p.labels, p.conditions_named(names)) for p in clouds_of(card, Path(source))]
    labels, conditions = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if len(labels) == 0:
        raise DataError(f"{source}: holds no objects")
    return Objects(labels, conditions, source)


def clouds_of(card: DatasetCard, source: Path) -> Iterator[PointClouds]:
    """Clouds of a file, or of the *.h5 of a folder, some thousand at a time; the platform's or in the card's format."""
    paths = sorted(source.glob("*.h5")) if source.is_dir() else [source]
    if not paths:
        raise DataError(f"{source}: there is no file *.h5 in this folder")
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if is_point_cloud_file(path):
            for first in range(0, max(1, point_cloud_file_size(path).clouds), AT_ONCE):
                yield read_point_clouds(path, first, first + AT_ONCE)
        else:
            yield from (clouds for clouds, _ in read_in_ranges(card, path))


@dataclass(frozen=True)
class Asking:
    """Labels and conditions of objects by their number. The card is that of the model: its classes and conditions.

    found:  what the file of `asked.source` says, where there is one
    paired: object i takes what the file says of its i-th object, in turn, whatever classes are asked for
    """

    card: DatasetCard
    asked: Asked
    seed: int
    found: Objects | None = None
    paired: bool = False
    _orders: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict)

    @staticmethod
    def of(card: DatasetCard, asked: Asked, seed: int, paired_with: Objects | None = None) -> Asking:
        """Checked and ready. Raises DataError for unknown names, and for values that the model was not trained on.

        paired_with: objects of which each takes what is not asked for, in turn
        """
        found = paired_with
        if asked.source is not None and found is None:
            found = objects_of_file(card, asked.source.file)
        asking = Asking(card, asked, seed, found, paired=paired_with is not None)
        asking._check_names()
        asking._check_ranges()
        return asking

    @cached_property
    def labels(self) -> tuple[int, ...] | None:
        """Labels that are taken in turn; None where they come with the conditions from a file."""
        if self.asked.classes == (ANY,):
            return (ANY_CLASS,)
        if self.asked.classes:
            return tuple(self.card.classes.index(name) for name in self.asked.classes)
        if self.found is not None:
            return None
        return tuple(range(len(self.card.classes))) or (ANY_CLASS,)

    def __call__(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Labels int64 [b] and conditions float32 [b, C] (NaN: left open) of the objects with these numbers [b]."""
        turns = 1 if self.labels is None else len(self.labels)
        # within each class, so that lists are not tied to classes
        turn, number = index % turns, index // turns
        labels = np.full(len(index), ANY_CLASS, np.int64)
        conditions = np.full((len(index), len(self.card.conditions)), np.nan, np.float32)
        if self.labels is not None:
            labels = np.array(self.labels, np.int64)[turn]
        if self.found is not None:
            rows = index % len(self.found.labels) if self.paired else self._rows(labels, number, index)
            conditions = self.found.conditions[rows]
            labels = self.found.labels[rows] if self.labels is None else labels
        of_objects = keys(self.seed, CONDITIONS, index)
        for c, condition in enumerate(self.card.conditions):
            if condition.name in self.asked.conditions:
                drawn = uniform(of_objects, c + 1)
                low, high = condition.range
                if self.asked.outside:
                    low, high = (SMALL if condition.scale == "log" else -np.inf), np.inf
                conditions[:, c] = _values(self.asked.conditions[condition.name], number, drawn, low, high)
        return labels, conditions

    def _rows(
        self, labels: NDArray[np.int64], number: NDArray[np.int64], index: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Row of the file for each object: the `number`-th of its class, drawn by its `index` or in turn."""
        assert self.found is not None and self.asked.source is not None
        rows = np.empty(len(index), np.int64)
        for label in np.unique(labels).tolist():
            here, own = labels == label, self._of_class(label)
            if self.asked.source.take == "drawn":
                place = (uniform(keys(self.seed, CONDITIONS, index[here]), 0) * len(own)).astype(np.int64)
            else:
                place = self._in_turn(label, number[here], len(own))
            rows[here] = own[place]
        return rows

    def _of_class(self, label: int) -> NDArray[np.int64]:
        assert self.found is not None
        if label == ANY_CLASS:
            return np.arange(len(self.found.labels))
        own = np.flatnonzero(self.found.labels == label)
        if len(own) == 0:
            name = self.card.classes[label]
            raise DataError(f"{self.found.source}: no objects of class '{name}' to take conditions of")
        return own

    def _in_turn(self, label: int, number: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Place of the `number`-th object among the `size` of its class."""
        assert self.asked.source is not None
        rounds, place = np.divmod(number, size)
        if self.asked.source.take == "shuffled":
            for turn in np.unique(rounds).tolist():
                here = rounds == turn
                place[here] = self._order(label, turn, size)[place[here]]
        return place

    def _order(self, label: int, turn: int, size: int) -> NDArray[np.int64]:
        """Order of one pass through the objects of a class."""
        if (label, turn) not in self._orders:
            if len(self._orders) > 2 * len(self.card.classes) + 2:
                self._orders.clear()
            of_pass = keys(self.seed, ORDER, np.array([label + 1 + (turn << 16)]))
            self._orders[label, turn] = np.argsort(uniform(of_pass, np.arange(size)), kind="stable")
        return self._orders[label, turn]

    def _check_names(self) -> None:
        tag, names = self.card.tag, [c.name for c in self.card.conditions]
        for name in self.asked.conditions:
            if name not in names:
                raise DataError(f"dataset '{tag}' has no condition '{name}'{did_you_mean(name, names)}")
        for name in () if self.asked.classes == (ANY,) else self.asked.classes:
            if name not in self.card.classes:
                raise DataError(f"dataset '{tag}' has no class '{name}'{did_you_mean(name, self.card.classes)}")
        for label in self.labels or ():
            if self.found is not None and not self.paired:
                self._of_class(label)

    def _check_ranges(self) -> None:
        for c, condition in enumerate(self.card.conditions):
            if condition.name in self.asked.conditions:
                extent = _extent(self.asked.conditions[condition.name])
            elif self.found is not None:
                extent = self.found.conditions[:, c].astype(np.float64)
            else:
                continue
            # with logarithmic bins this refuses what is not above 0, also where `outside` allows much
            if conditions_outside([condition], extent[:, None], self.card.tag) and not self.asked.outside:
                raise DataError(_out_of_range(condition, extent, self.card.tag))


def _values(
    values: Values, number: NDArray[np.int64], drawn: NDArray[np.float64], low: float, high: float
) -> NDArray[np.floating]:
    """Value of one condition for each object, by its number within its class and a drawn number in [0, 1)."""
    if isinstance(values, Distribution):
        return _from_distribution(values, drawn, low, high)
    if isinstance(values, str):
        return np.full(len(number), np.nan)
    table = np.atleast_1d(np.asarray(values, np.float64))
    return table[number % len(table)]


def _from_distribution(d: Distribution, drawn: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    if d.uniform is not None:
        return d.uniform[0] + drawn * (d.uniform[1] - d.uniform[0])
    if d.log_uniform is not None:
        return d.log_uniform[0] * (d.log_uniform[1] / d.log_uniform[0]) ** drawn
    if d.choice is not None:
        return np.asarray(d.choice)[(drawn * len(d.choice)).astype(np.int64)]
    assert d.normal is not None
    mean, sigma = d.normal
    below, above = ndtr((low - mean) / sigma), ndtr((high - mean) / sigma)
    # never 0 or 1, which would be infinite; clipped, as far tails lose their digits
    inside = np.clip(below + drawn * (above - below), 2.0**-54, 1.0 - 2.0**-53)
    return np.clip(mean + sigma * ndtri(inside), low, high)


def _extent(values: Values) -> NDArray[np.float64]:
    """Values that can occur, or the lowest and the highest of them."""
    if isinstance(values, str):
        return np.array([np.nan])
    if not isinstance(values, Distribution):
        return np.atleast_1d(np.asarray(values, np.float64))
    # a normal distribution is cut to the range
    return np.array(values.uniform or values.log_uniform or values.choice or [np.nan])


def _out_of_range(condition: Condition, values: NDArray[np.float64], tag: str) -> str:
    low, high = condition.range
    asked = f"{np.nanmin(values):g}" + (f" to {np.nanmax(values):g}" if np.nanmin(values) < np.nanmax(values) else "")
    return (
        f"condition '{condition.name}' of '{tag}' is asked for with {asked} {condition.unit}, but the model was "
        f"trained on {low:g} to {high:g}: ask for values in between, or allow others with `outside`, which then count "
        "as the nearest bin"
    )
