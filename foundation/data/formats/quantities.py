"""Quantities of a range of objects under our names, and those that follow from them by textbook formulas.

Momenta and energies of jets are in GeV, angles in radians. Cartesian components, (pT, eta, phi) and coordinates
relative to the jet are the same information: what is asked for is made of what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError, did_you_mean

Floats = NDArray[np.float64]


@dataclass
class Quantities:
    """B objects with N points in all.

    points:  name -> [N], one value per constituent or hit
    objects: name -> [B]
    counts:  points of each object, int64 [B]
    sum_is_axis: the jet's pT, eta and phi may be those of the sum of its constituents
    """

    points: dict[str, NDArray]
    objects: dict[str, NDArray]
    counts: NDArray[np.int64]
    sum_is_axis: bool = True
    _pending: set[str] = field(default_factory=set)

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """Object of each point, int64 [N]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def point(self, name: str) -> NDArray:
        """A quantity of the points [N], derived if it is not there. Raises DataError if it cannot be."""
        if name not in self.points:
            self.points[name] = self._derived(name, POINT_RULES.get(name, []))
        return self.points[name]

    def object(self, name: str) -> NDArray:
        """A quantity of the objects [B], derived if it is not there. Raises DataError if it cannot be."""
        if name not in self.objects:
            if name in ("jet_n_constituents", "n_points"):
                self.objects[name] = self.counts
            elif name in SUMS:
                values = np.asarray(self.point(SUMS[name]), np.float64)
                self.objects[name] = np.bincount(self.owners, values, len(self.counts)).astype(np.float64)
            elif name in AXIS and not self.sum_is_axis:
                raise DataError(f"the file gives no '{name}'; with axis: constituents it is that of their sum")
            else:
                self.objects[name] = self._derived(name, OBJECT_RULES.get(name, []))
        return self.objects[name]

    def has_point(self, name: str) -> bool:
        """Whether `point` would give it."""
        try:
            self.point(name)
        except DataError:
            return False
        return True

    def has_object(self, name: str) -> bool:
        """Whether `object` would give it."""
        try:
            self.object(name)
        except DataError:
            return False
        return True

    def _derived(self, name: str, rules: list[Rule]) -> Floats:
        """By the first rule whose inputs are there."""
        if name in self._pending:
            raise DataError(f"'{name}' would follow from itself")
        self._pending.add(name)
        try:
            for needs, formula in rules:
                try:
                    inputs = [self._input(need) for need in needs]
                except DataError:
                    continue
                return formula(*inputs)
        finally:
            self._pending.discard(name)
        known = [*self.points, *self.objects]
        raise DataError(f"there is no '{name}', nor what it would follow from{did_you_mean(name, known)}")

    def _input(self, need: str) -> Floats:
        """What a rule needs, in double precision; "@jet_eta" is the jet's, for each of its constituents."""
        if need.startswith("@"):
            return np.asarray(self.object(need[1:]), np.float64)[self.owners]
        of_object = need in OBJECT_RULES or need in SUMS or need in self.objects
        return np.asarray(self.object(need) if of_object else self.point(need), np.float64)


Rule = tuple[tuple[str, ...], Callable[..., Floats]]


def wrapped(angle: Floats) -> Floats:
    """The same angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _pseudorapidity(px: Floats, py: Floats, pz: Floats) -> Floats:
    # A momentum along the beam has no finite pseudorapidity; 1e-9 GeV gives it a large one.
    return np.arcsinh(pz / np.maximum(np.hypot(px, py), 1e-9))


def _from_rapidity(pt: Floats, rapidity: Floats, mass: Floats) -> Floats:
    return np.arcsinh(np.sqrt(1 + (mass / np.maximum(pt, 1e-9)) ** 2) * np.sinh(rapidity))


def _mass(energy: Floats, px: Floats, py: Floats, pz: Floats) -> Floats:
    return np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0.0))


def _energy(px: Floats, py: Floats, pz: Floats, mass: Floats) -> Floats:
    return np.sqrt(px**2 + py**2 + pz**2 + mass**2)


# The first rule whose inputs are there counts. Inputs with @ are quantities of the object.
POINT_RULES: dict[str, list[Rule]] = {
    "pt": [(("px", "py"), np.hypot), (("pt_rel", "@jet_pt"), np.multiply)],
    "phi": [(("px", "py"), lambda px, py: np.arctan2(py, px)), (("phi_rel", "@jet_phi"), lambda a, b: wrapped(a + b))],
    "eta": [
        (("px", "py", "pz"), _pseudorapidity),
        (("pt", "rapidity", "mass"), _from_rapidity),
        # Without masses constituents are massless, and rapidity is pseudorapidity.
        (("rapidity",), lambda y: y),
        (("eta_rel", "@jet_eta"), np.add),
    ],
    "pt_rel": [(("pt", "@jet_pt"), np.divide)],
    "eta_rel": [(("eta", "@jet_eta"), np.subtract)],
    "phi_rel": [(("phi", "@jet_phi"), lambda a, b: wrapped(a - b))],
    "px": [(("pt", "phi"), lambda pt, phi: pt * np.cos(phi))],
    "py": [(("pt", "phi"), lambda pt, phi: pt * np.sin(phi))],
    "pz": [(("pt", "eta"), lambda pt, eta: pt * np.sinh(eta))],
    "energy": [(("px", "py", "pz", "mass"), _energy), (("pt", "eta"), lambda pt, eta: pt * np.cosh(eta))],
    "mass": [(("energy", "px", "py", "pz"), _mass)],
    "rapidity": [
        (("energy", "pz"), lambda e, pz: np.arctanh(np.clip(pz / np.maximum(e, 1e-12), -1 + 1e-15, 1 - 1e-15)))
    ],
}
OBJECT_RULES: dict[str, list[Rule]] = {
    "jet_pt": [(("sum_px", "sum_py"), np.hypot)],
    "jet_eta": [(("sum_px", "sum_py", "sum_pz"), _pseudorapidity)],
    "jet_phi": [(("sum_px", "sum_py"), lambda px, py: np.arctan2(py, px))],
    "jet_energy": [(("sum_energy",), lambda energy: energy)],
    "jet_mass": [(("sum_energy", "sum_px", "sum_py", "sum_pz"), _mass)],
    "theta": [
        (
            ("direction_x", "direction_y", "direction_z"),
            lambda x, y, z: np.arccos(z / np.maximum(np.sqrt(x**2 + y**2 + z**2), 1e-12)),
        )
    ],
    "direction_x": [(("theta", "phi_angle"), lambda theta, phi: np.sin(theta) * np.cos(phi))],
    "direction_y": [(("theta", "phi_angle"), lambda theta, phi: np.sin(theta) * np.sin(phi))],
    "direction_z": [(("theta",), np.cos)],
}
SUMS = {"sum_px": "px", "sum_py": "py", "sum_pz": "pz", "sum_energy": "energy"}
"""Sum over the constituents of an object -> what is summed."""
AXIS = ("jet_pt", "jet_eta", "jet_phi")
