"""Tokenizers whose loss is known by hand: one that distorts points by a factor and a shift, one of whole grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.tokens.inputs import Inputs
from foundation.tokens.tokenizer import NOTHING, Codes, Points, Stream, Tokenizer

from conftest import SHOWERS, toy_jets


class Distorting(Tokenizer):
    """Codes values on a grid exactly and decodes pT by a factor too high, eta shifted."""

    kind = "distorting"

    def __init__(self, inputs: Inputs, factor: float, shift: float) -> None:
        super().__init__(inputs)
        self.factor, self.shift = factor, shift

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(Stream(f.name, 400) for f in self.features)

    def _encode(self, clouds: PointClouds) -> Codes:
        columns = [clouds.feature(f.name) / STEP.get(f.name, 1.0) for f in self.features]
        return Codes(np.rint(np.stack(columns, 1)).astype(np.int64) + 200, clouds.offsets)

    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        values = (codes.values - 200) * np.array([STEP.get(f.name, 1.0) for f in self.features])
        return Points((values * [self.factor, 1, 1, 1] + [0, self.shift, 0, 0]).astype(np.float32), codes.offsets)

    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        raise AssertionError("not saved")

    from_state = state  # type: ignore[assignment]


STEP = {"eta_rel": 0.01, "phi_rel": 0.01}


def grid_jets(n: int, seed: int) -> PointClouds:
    """Toy jets whose values lie on the grid of `Distorting`."""
    clouds = toy_jets(n, seed)
    points = clouds.points.copy()
    points[:, 0] = np.clip(np.rint(points[:, 0]), 1, 190)
    points[:, 1:3] = np.rint(points[:, 1:3] * 100) / 100
    return replace(clouds, points=points)


class Grid(Tokenizer):
    """A token for each voxel of the toy calorimeter: its energy in MeV, rounded down; from 1 MeV on it is a hit."""

    kind = "grid"

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (Stream("code0", 300),)

    @property
    def tokens_per_object(self) -> int:
        return 5 * 6 * 6

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("incident_energy",)

    def _encode(self, clouds: PointClouds) -> Codes:
        assert SHOWERS.geometry is not None
        place = SHOWERS.geometry.numbers({n: clouds.feature(n).astype(np.int64) for n in ("layer", "x", "y")})
        size = len(clouds) * self.tokens_per_object
        energy = np.bincount(clouds.owners * self.tokens_per_object + place, clouds.feature("energy"), size)
        return Codes(energy.astype(np.int64)[:, None], np.arange(0, size + 1, self.tokens_per_object))

    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        assert len(conditions["incident_energy"]) == len(codes)
        owners, place = np.nonzero(codes.values.reshape(len(codes), -1))
        layer, x, y = np.unravel_index(place, (5, 6, 6))
        energy = codes.values.reshape(len(codes), -1)[owners, place]
        offsets = np.append(0, np.cumsum(np.bincount(owners, minlength=len(codes))))
        return Points(np.stack([layer, x, y, energy], 1).astype(np.float32), offsets)

    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        raise AssertionError("not saved")

    from_state = state  # type: ignore[assignment]
