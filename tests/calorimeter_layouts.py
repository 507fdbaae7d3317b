"""Small files in the exact layouts of published calorimeter datasets, with toy showers, and what a reader must find.

Keys, shapes, types and units are those that public code writes or reads; the showers are random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import load_card
from foundation.data.geometry import CartesianGeometry, CylindricalGeometry, n_voxels

Geometry = CartesianGeometry | CylindricalGeometry
Rng = np.random.Generator
SPADE_PLACES = 3700
CALOCLOUDS_PLACES = 6000


@dataclass(frozen=True)
class Truth:
    """What a file holds, under the card's names and in its units and order.

    points:  name -> [N]; counts: points of each shower [n]
    objects: name -> [n], conditions and attributes; labels: [n]
    """

    points: dict[str, NDArray]
    counts: NDArray[np.int64]
    objects: dict[str, NDArray]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Cells:
    """Toy showers as filled voxels: numbers [N] in the geometry's order, energies in MeV [N], hits per shower [n]."""

    numbers: NDArray[np.int64]
    energies: NDArray[np.float32]
    counts: NDArray[np.int64]

    def images(self, voxels: int) -> NDArray[np.float32]:
        """Dense flat images [n, voxels]."""
        images = np.zeros((len(self.counts), voxels), np.float32)
        images[np.repeat(np.arange(len(self.counts)), self.counts), self.numbers] = self.energies
        return images

    def points(self, geometry: Geometry) -> dict[str, NDArray]:
        """Coordinates and energies, one value per hit."""
        return {**geometry.coordinates(self.numbers), "energy": self.energies}


def toy_cells(voxels: int, rng: Rng, n: int, most: int = 40) -> Cells:
    """Showers of 1 to `most` different voxels each, the second one empty; the first voxel and the last are used."""
    counts = rng.integers(1, most + 1, n)
    counts[1] = 0
    numbers = [np.sort(rng.choice(voxels, count, replace=False)) for count in counts]
    numbers[0][0], numbers[-1][-1] = 0, voxels - 1
    total = int(counts.sum())
    energies = np.exp(rng.uniform(np.log(1e-3), np.log(500.0), total)).astype(np.float32)
    return Cells(np.concatenate(numbers), energies, counts)


def same_label(n: int) -> NDArray[np.int64]:
    """Label 0 for all showers."""
    return np.zeros(n, np.int64)


def padded(columns: Mapping[str, NDArray], counts: NDArray[np.int64], places: int, first: bool) -> NDArray[np.float32]:
    """Array [n, places, columns] of flat columns; empty places come first or last and are zero."""
    table = np.stack([*columns.values()], axis=1).astype(np.float32)
    array = np.zeros((len(counts), places, table.shape[1]), np.float32)
    place = np.arange(places)
    array[(place >= places - counts[:, None]) if first else (place < counts[:, None])] = table
    return array


def write_calochallenge(path: Path, geometry: Geometry, rng: Rng, n: int = 6, discrete: bool = False) -> Truth:
    """CaloChallenge: gzip, `incident_energies` (n, 1) and `showers` (n, V), both in MeV."""
    cells = toy_cells(n_voxels(geometry), rng, n)
    energy = 256.0 * 2.0 ** rng.integers(0, 15, n) if discrete else np.exp(rng.uniform(np.log(1e3), np.log(1e6), n))
    with h5py.File(path, "w") as file:
        file.create_dataset("incident_energies", data=energy.reshape(n, 1), compression="gzip")
        file.create_dataset("showers", data=cells.images(n_voxels(geometry)).astype(np.float64), compression="gzip")
    return Truth(cells.points(geometry), cells.counts, {"incident_energy": energy / 1000}, same_label(n))


def write_getting_high(path: Path, geometry: Geometry, rng: Rng, n: int = 4) -> Truth:
    """Getting High: group `30x30` with `energy` (n, 1) in GeV and `layers` (n, 30, 30, 30) in MeV, not packed."""
    cells = toy_cells(n_voxels(geometry), rng, n)
    energy = rng.uniform(10, 100, n)
    with h5py.File(path, "w") as file:
        group = file.create_group("30x30")
        group.create_dataset("energy", data=energy.reshape(n, 1))
        group.create_dataset("layers", data=cells.images(27000).reshape(n, 30, 30, 30).astype(np.float64))
    return Truth(cells.points(geometry), cells.counts, {"incident_energy": energy}, same_label(n))


def ild_points(rng: Rng, n: int) -> tuple[dict[str, NDArray], NDArray[np.int64], NDArray[np.float32]]:
    """Hits in 30 layers of 30 x 30 cells, their numbers, and incident energies in GeV."""
    geometry = load_card("omnijet_alpha_c").geometry
    assert geometry is not None
    cells = toy_cells(n_voxels(geometry), rng, n)
    return cells.points(geometry), cells.counts, rng.uniform(10, 100, n).astype(np.float32)


def write_omnijet_alpha_c(path: Path, rng: Rng, n: int = 5) -> Truth:
    """OmniJet-alpha_C: `showers` (n, hits, 4) x, y, z, energy, hits in falling energy, zeros after them, and `genE`."""
    points, counts, energy = ild_points(rng, n)
    order = np.lexsort((-points["energy"], np.repeat(np.arange(n), counts)))
    columns = {name: points[name][order] for name in ("x", "y", "layer", "energy")}
    with h5py.File(path, "w") as file:
        file["showers"] = padded(columns, counts, 50, first=False)
        file["genE"] = energy
    return Truth(points, counts, {"incident_energy": energy}, same_label(n))


def write_spade_events(path: Path, rng: Rng, n: int = 5) -> Truth:
    """SPADE: `events` (n, 5, 3700) x, z, y, energy and one more, zeros before the hits, `n_points` and `energy`."""
    points, counts, energy = ild_points(rng, n)
    columns = {name: points[name] for name in ("x", "layer", "y", "energy")}
    # SPADE does not read the fifth row; here it is what no other row is, so that a mix-up would show.
    columns["unknown"] = np.full(len(points["x"]), -7.0)
    with h5py.File(path, "w") as file:
        file["events"] = padded(columns, counts, SPADE_PLACES, first=True).transpose(0, 2, 1)
        file["n_points"], file["energy"] = counts, energy
    return Truth(points, counts, {"incident_energy": energy}, same_label(n))


def write_spade_separate(path: Path, rng: Rng, n: int = 5) -> Truth:
    """SPADE: `energy`, `x`, `y`, `z` (n, places) each, the hits anywhere, and `incident_energy`."""
    points, counts, energy = ild_points(rng, n)
    table = padded({name: points[name] for name in ("x", "y", "layer", "energy")}, counts, 50, first=True)
    # One empty place in the middle: what is a hit is said by its energy alone.
    table = np.concatenate([table[:, :45], np.zeros_like(table[:, :1]), table[:, 45:]], axis=1)
    with h5py.File(path, "w") as file:
        for i, key in enumerate(("x", "y", "z", "energy")):
            file[key] = table[:, :, i]
        file["incident_energy"] = energy
    return Truth(points, counts, {"incident_energy": energy}, same_label(n))


def write_caloclouds(path: Path, rng: Rng, n: int = 4) -> Truth:
    """CaloClouds 3: `energy` (n, 1) and `events` (n, 6000, 4) in GeV, padding first, and `p_norm_local` (3, n)."""
    counts = rng.integers(1, 60, n)
    total = int(counts.sum())
    owners = np.repeat(np.arange(n), counts)
    depth = rng.uniform(0, 30, total).astype(np.float32)
    order = np.lexsort((depth, owners))
    points: dict[str, NDArray] = {
        "x": rng.normal(0, 30, total).astype(np.float32),
        "layer": depth[order],
        "y": rng.normal(0, 30, total).astype(np.float32),
        "energy": np.exp(rng.uniform(np.log(1e-8), np.log(1e-2), total)).astype(np.float32),
    }
    direction = rng.normal(size=(3, n))
    direction[2] = np.abs(direction[2])
    direction /= np.linalg.norm(direction, axis=0)
    energy = rng.uniform(10, 90, n).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["energy"] = energy.reshape(n, 1)
        file["events"] = padded(points, counts, CALOCLOUDS_PLACES, first=True)
        file["p_norm_local"] = direction
    points["energy"] = points["energy"].astype(np.float64) * 1000
    objects = {"incident_energy": energy, "theta": np.arccos(direction[2])}
    objects |= {f"direction_{axis}": direction[i] for i, axis in enumerate("xyz")}
    return Truth(points, counts, objects, same_label(n))


def cloud_in_layers(rng: Rng, n: int, layers: int) -> tuple[dict[str, NDArray], NDArray[np.int64]]:
    """Points with x and y in mm and energies in GeV, by layer, x and y, the second shower empty; and their numbers."""
    counts = rng.integers(1, 50, n)
    counts[1] = 0
    total = int(counts.sum())
    points: dict[str, NDArray] = {
        "x": rng.normal(0, 40, total).astype(np.float32),
        "y": rng.normal(0, 40, total).astype(np.float32),
        "layer": rng.integers(0, layers, total).astype(np.float32),
        "energy": np.exp(rng.uniform(np.log(1e-5), np.log(0.1), total)).astype(np.float32),
    }
    order = np.lexsort((points["y"], points["x"], points["layer"], np.repeat(np.arange(n), counts)))
    return {name: values[order] for name, values in points.items()}, counts


def unit_vectors(rng: Rng, n: int) -> NDArray[np.float32]:
    """Directions with a positive last component, [n, 3]."""
    vectors = rng.normal(size=(n, 3))
    vectors[:, 2] = np.abs(vectors[:, 2])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_showerdata(path: Path, rng: Rng, n: int = 6) -> Truth:
    """A file of the library showerdata: x, y, layer, energy in GeV, time; several kinds of particles."""
    import showerdata

    points, counts = cloud_in_layers(rng, n, 78)
    points["time"] = rng.uniform(0, 20, len(points["x"])).astype(np.float32)
    codes = np.array([11, -11, 22, 130, 211, -211, 321, -321, 2112, -2112, 2212, -2212])
    labels = rng.integers(0, len(codes), n)
    energy, direction = rng.uniform(1, 1000, n).astype(np.float32), unit_vectors(rng, n)
    showerdata.Showers(
        points=padded(points, counts, 60, first=False),
        energies=energy,
        pdg=codes[labels].astype(np.int32),
        directions=direction,
    ).save(path)
    points["energy"] = points["energy"].astype(np.float64) * 1000
    return Truth(points, counts, _with_direction(energy, direction), labels)


def write_multi_calo(path: Path, rng: Rng, n: int = 6) -> Truth:
    """Multi-geometry points: vectors of d_t, d_z, layer, energy in GeV, 0; and the shower's own quantities."""
    points, counts = cloud_in_layers(rng, n, 90)
    table = np.stack([*points.values(), np.zeros_like(points["x"])], axis=1).astype(np.float32)
    energy, direction = rng.uniform(1, 100, n).astype(np.float32), unit_vectors(rng, n)
    fraction, layers = rng.uniform(0.01, 0.2, n).astype(np.float32), rng.integers(1, 90, n).astype(np.float32)
    gun = rng.normal(0, 1000, (n, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        showers = file.create_dataset("showers", (n,), h5py.vlen_dtype(np.dtype("float32")))
        for i, rows in enumerate(np.split(table, np.cumsum(counts)[:-1])):
            showers[i] = rows.reshape(-1)
        file["energies"], file["directions"] = energy.reshape(n, 1), direction
        file["sampling_fraction"], file["num_layers"] = fraction.reshape(n, 1), layers.reshape(n, 1)
        file["gun_position"] = gun
    points["energy"] = points["energy"].astype(np.float64) * 1000
    objects = _with_direction(energy, direction) | {"sampling_fraction": fraction, "n_layers": layers}
    objects |= {f"gun_{axis}": gun[:, i] for i, axis in enumerate("xyz")}
    return Truth(points, counts, objects, same_label(n))


def _with_direction(energy: NDArray, direction: NDArray) -> dict[str, NDArray]:
    theta = np.arccos(direction[:, 2].astype(np.float64))
    axes = {f"direction_{axis}": direction[:, i] for i, axis in enumerate("xyz")}
    return {"incident_energy": energy, "theta": theta, **axes}


def write_hgem_images(path: Path, geometry: Geometry, rng: Rng, angle: int, group: str = "", each: int = 2) -> Truth:
    """Par04 images: an array (events, 18, 50, 45) in MeV for each energy in GeV, which is its name.

    `path` must be named like SiW_angle_90.h5; `group` is put before the names ("Angle_90/").
    """
    # HDF5 sorts names as text, 1, 1024, 16, 2; a reader takes them as numbers.
    energies = [1, 2, 16, 1024]
    cells = toy_cells(n_voxels(geometry), rng, each * len(energies))
    images = cells.images(n_voxels(geometry)).reshape(-1, 45, 50, 18).transpose(0, 3, 2, 1)
    with h5py.File(path, "w") as file:
        for i, energy in enumerate(energies):
            file.create_dataset(f"{group}{energy}", data=images[each * i : each * (i + 1)], compression="gzip")
    objects: dict[str, NDArray] = {
        "incident_energy": np.repeat(np.array(energies, float), each),
        "theta": np.full(len(cells.counts), np.deg2rad(angle)),
    }
    return Truth(cells.points(geometry), cells.counts, objects, same_label(len(cells.counts)))


def write_lemurs(path: Path, geometry: Geometry, rng: Rng, label: int, n: int = 5) -> Truth:
    """LEMURS: `showers` (n, 9, 16, 45) r, alpha, layer and `incident_energy` (n,) in MeV, angles (n,) in radians.

    The name of `path` must say the detector of the label.
    """
    cells = toy_cells(n_voxels(geometry), rng, n)
    images = cells.images(n_voxels(geometry)).reshape(n, 45, 16, 9).transpose(0, 3, 2, 1)
    energy = rng.uniform(1e3, 1e5, n).astype(np.float32)
    theta, phi = rng.uniform(0.87, 2.27, n).astype(np.float32), rng.uniform(0, 6.28, n).astype(np.float32)
    with h5py.File(path, "w") as file:
        for key, array in (
            ("showers", images),
            ("incident_energy", energy),
            ("incident_theta", theta),
            ("incident_phi", phi),
        ):
            file.create_dataset(key, data=array, compression="gzip", compression_opts=9)
    objects: dict[str, NDArray] = {
        "incident_energy": energy.astype(np.float64) / 1000,
        "theta": theta,
        "phi_angle": phi,
    }
    return Truth(cells.points(geometry), cells.counts, objects, np.full(n, label))
