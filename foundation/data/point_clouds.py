"""The core type: a ragged batch of point clouds (jets of constituents, showers of hits)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from foundation.data.ragged import ragged_arange, rows_of, to_offsets
from foundation.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PointClouds:
    """B point clouds with N points in all, as a flat array plus offsets.

    points:      float32 [N, F]; one row per constituent or hit
    offsets:     int64 [B + 1]; cloud i owns rows offsets[i]:offsets[i + 1]
    features:    F feature names, in column order
    units:       F units, in column order ("1" where dimensionless)
    labels:      int64 [B]; index into the card's classes, -1 where unknown
    conditions:  float32 [B, C]; object-level quantities: conditions (incident energy) and attributes (jet mass)
    condition_names, condition_units: C names and units
    tag:         name of the dataset the clouds come from
    conventions: F conventions, as the dataset's card states them; "" or nothing at all where none is stated
    """

    points: NDArray[np.float32]
    offsets: NDArray[np.int64]
    features: tuple[str, ...]
    units: tuple[str, ...]
    labels: NDArray[np.int64]
    conditions: NDArray[np.float32]
    condition_names: tuple[str, ...] = field(default=())
    condition_units: tuple[str, ...] = field(default=())
    tag: str = ""
    conventions: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        n, b = len(self.points), len(self.offsets) - 1
        if self.points.ndim != 2 or self.points.shape[1] != len(self.features):
            raise DataError(f"points have shape {self.points.shape}, but {len(self.features)} features are named")
        if len(self.units) != len(self.features):
            raise DataError(f"{len(self.features)} features but {len(self.units)} units")
        if self.conventions and len(self.conventions) != len(self.features):
            raise DataError(f"{len(self.features)} features but {len(self.conventions)} conventions")
        if b < 0 or self.offsets[0] != 0 or self.offsets[-1] != n or np.any(np.diff(self.offsets) < 0):
            raise DataError(f"offsets must rise from 0 to the number of points ({n})")
        if len(self.labels) != b:
            raise DataError(f"{b} point clouds but {len(self.labels)} labels")
        if self.conditions.shape != (b, len(self.condition_names)):
            raise DataError(f"conditions have shape {self.conditions.shape}, expected {(b, len(self.condition_names))}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Points per cloud, int64 [B]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> NDArray[np.int64]:
        """Index of the cloud that each point belongs to, int64 [N]."""
        return np.repeat(np.arange(len(self)), self.counts)

    def feature(self, name: str) -> NDArray[np.float32]:
        """One feature of all points, float32 [N]."""
        if name not in self.features:
            raise DataError(f"these point clouds have no feature '{name}'{did_you_mean(name, self.features)}")
        return self.points[:, self.features.index(name)]

    def condition(self, name: str) -> NDArray[np.float32]:
        """One condition of all clouds, float32 [B]."""
        if name not in self.condition_names:
            raise DataError(f"these point clouds have no condition '{name}'{did_you_mean(name, self.condition_names)}")
        return self.conditions[:, self.condition_names.index(name)]

    def conditions_named(self, names: Sequence[str]) -> NDArray[np.float32]:
        """These conditions of all clouds, float32 [B, len(names)]."""
        columns = [self.condition(name) for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((len(self), 0), np.float32)

    def select(self, index: NDArray[np.integer] | NDArray[np.bool_] | slice) -> PointClouds:
        """The clouds at `index` (integers in any order, a mask, or a slice), as new PointClouds."""
        chosen = np.arange(len(self))[index]
        rows, offsets = rows_of(self.offsets, chosen)
        return replace(
            self,
            points=self.points[rows],
            offsets=offsets,
            labels=self.labels[chosen],
            conditions=self.conditions[chosen],
        )

    def first_points(self, n: int) -> PointClouds:
        """The same clouds with their first n points only; of shorter ones, all."""
        counts = np.minimum(self.counts, n)
        rows = np.repeat(self.offsets[:-1], counts) + ragged_arange(counts)
        return replace(self, points=self.points[rows], offsets=to_offsets(counts))

    def with_columns(self, features: Sequence[str], conditions: Sequence[str], tag: str) -> PointClouds:
        """The same clouds with these features and conditions only, under another tag."""
        for name in features:
            self.feature(name)
        columns = [self.features.index(name) for name in features]
        return replace(
            self,
            points=self.points[:, columns],
            features=tuple(features),
            units=tuple(self.units[i] for i in columns),
            conventions=tuple(self.conventions[i] for i in columns) if self.conventions else (),
            conditions=self.conditions_named(conditions),
            condition_names=tuple(conditions),
            condition_units=tuple(self.condition_units[self.condition_names.index(c)] for c in conditions),
            tag=tag,
        )

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """The points of each cloud in turn, float32 [n, F]."""
        return (self.points[a:b] for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True))

    @staticmethod
    def concatenate(parts: Sequence[PointClouds]) -> PointClouds:
        """All clouds of `parts` in order; they must share features, units, conditions and tag."""
        if not parts:
            raise DataError("nothing to concatenate: no point clouds were given")
        first = parts[0]
        for part in parts[1:]:
            for name in ("features", "units", "conventions", "condition_names", "condition_units", "tag"):
                if getattr(part, name) != getattr(first, name):
                    raise DataError(
                        f"point clouds with different {name} cannot be joined: "
                        f"{getattr(first, name)} and {getattr(part, name)}"
                    )
        counts = np.concatenate([p.counts for p in parts])
        return replace(
            first,
            points=np.concatenate([p.points for p in parts]),
            offsets=to_offsets(counts),
            labels=np.concatenate([p.labels for p in parts]),
            conditions=np.concatenate([p.conditions for p in parts]),
        )

    # as the arrays of other packages: foundation/data/exchange.py says what is in them

    def to_awkward(self) -> Any:
        """An awkward array of records: `points` (records with the features), `label`, and the conditions by name."""
        from foundation.data.exchange import to_awkward

        return to_awkward(self)

    @staticmethod
    def from_awkward(array: Any, units: Mapping[str, str] | None = None, tag: str = "") -> PointClouds:
        """Point clouds of records as `to_awkward` makes them; units by name, where the array does not carry them."""
        from foundation.data.exchange import from_awkward

        return from_awkward(array, units or {}, tag)

    def to_numpy(self, padded: bool = True, length: int | None = None) -> tuple[NDArray[np.float32], NDArray]:
        """Zero-padded points [B, L, F] and a mask bool [B, L], True for points; else points [N, F] and offsets."""
        from foundation.data.exchange import to_numpy

        return to_numpy(self, padded, length)

    def to_torch(self, padded: bool = True, length: int | None = None) -> tuple[Tensor, Tensor]:
        """As `to_numpy`, as tensors."""
        from foundation.data.exchange import to_torch

        return to_torch(self, padded, length)

    def to_pandas(self, per: Literal["point", "object"] = "point") -> Any:
        """A DataFrame with a row per point (`object` says whose), or one per object (label, points, conditions)."""
        from foundation.data.exchange import to_pandas

        return to_pandas(self, per)
