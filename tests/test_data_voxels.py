"""Voxel images to hits and back, and hits that share a voxel."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.collisions import hits_outside, resolve
from foundation.data.formats.voxels import hits_to_images, image_shape, images_to_hits
from foundation.data.geometry import CartesianGeometry, CylindricalGeometry, LayerGroup, RingLayers, n_voxels
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError

from conftest import toy_showers

REGULAR = CylindricalGeometry(kind="cylindrical", layers=(RingLayers(repeat=3, r_edges_mm=(0, 1, 2, 3), alpha_bins=4),))
IRREGULAR = CylindricalGeometry(
    kind="cylindrical",
    layers=(
        RingLayers(r_edges_mm=(0, 5, 10)),
        RingLayers(r_edges_mm=(0, 2, 4, 6), alpha_bins=5),
        RingLayers(r_edges_mm=(0, 100), repeat=2, alpha_bins=2),
    ),
)
GRID = CartesianGeometry(cells=4, cell_mm=5.0, layers=(LayerGroup(repeat=2),))
GEOMETRIES = st.sampled_from([REGULAR, IRREGULAR, GRID])
Layers = CartesianGeometry | CylindricalGeometry


def images_of(geometry: Layers, showers: int, filled: float, seed: int) -> np.ndarray:
    """Images with this share of voxels filled, energies of all sizes a float32 has."""
    rng = np.random.default_rng(seed)
    images = np.exp(rng.uniform(-40, 40, (showers, n_voxels(geometry)))).astype(np.float32)
    images[rng.random(images.shape) >= filled] = 0
    return images


def showers_of(geometry: Layers, hits: int, showers: int, seed: int) -> PointClouds:
    """Hits in voxels drawn at random, so that many share one."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, hits + 1, showers)
    n = int(counts.sum())
    cells = geometry.coordinates(rng.integers(0, n_voxels(geometry), n))
    energy, time = rng.choice([0.5, 1.5, 2.25, 7.0], n), np.arange(n)
    return PointClouds(
        np.stack([*(cells[name] for name in geometry.axes), energy, time], axis=1).astype(np.float32),
        to_offsets(counts), (*geometry.axes, "energy", "time"), ("index", "index", "index", "MeV", "ns"),
        np.zeros(showers, np.int64), np.zeros((showers, 0), np.float32),
    )  # fmt: skip


def voxels(clouds: PointClouds, geometry: Layers) -> np.ndarray:
    """Number of every hit's voxel, over all showers."""
    cells = {name: clouds.feature(name).astype(np.int64) for name in geometry.axes}
    return clouds.owners * n_voxels(geometry) + geometry.numbers(cells)


def energies(clouds: PointClouds) -> np.ndarray:
    return np.bincount(clouds.owners, clouds.feature("energy"), len(clouds))


@settings(max_examples=40, deadline=None)
@given(GEOMETRIES, st.integers(0, 5), st.sampled_from([0.0, 0.1, 0.6, 1.0]), st.integers(0, 2**31))
def test_images_come_back_exactly(geometry: Layers, showers: int, filled: float, seed: int) -> None:
    images = images_of(geometry, showers, filled, seed)
    columns, counts = images_to_hits(images, geometry)
    np.testing.assert_array_equal(counts, np.count_nonzero(images, axis=1))
    assert set(columns) == {*geometry.axes, "energy"} and all(len(c) == counts.sum() for c in columns.values())
    back = hits_to_images(columns, columns["energy"], counts, geometry)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, images)
    numbers = np.nonzero(images)[1]
    np.testing.assert_array_equal(geometry.numbers({n: columns[n].astype(int) for n in geometry.axes}), numbers)


@pytest.mark.parametrize("geometry", [REGULAR, GRID])
def test_axes_in_any_order_flat_or_folded(geometry: Layers) -> None:
    images = images_of(geometry, 3, 0.3, 1).reshape(3, *image_shape(geometry))
    columns, counts = images_to_hits(images, geometry)
    sums = {name: np.bincount(columns[name].astype(int), columns["energy"]) for name in geometry.axes}
    for order in permutations(range(3)):
        axes = tuple(geometry.axes[i] for i in order)
        turned = images.transpose(0, *(i + 1 for i in order))
        for given_images in (turned, turned.reshape(3, -1)):
            hits, number = images_to_hits(given_images, geometry, axes)
            np.testing.assert_array_equal(number, counts)
            for name in geometry.axes:
                np.testing.assert_allclose(np.bincount(hits[name].astype(int), hits["energy"]), sums[name])
            np.testing.assert_array_equal(hits_to_images(hits, hits["energy"], number, geometry, axes), turned)


def test_images_of_another_geometry_are_refused_with_the_count_expected() -> None:
    with pytest.raises(DataError, match=r"36 voxels: \(B, 36\) or \(B, 3, 4, 3\)"):
        images_to_hits(np.ones((2, 35)), REGULAR)
    with pytest.raises(DataError, match=r"\(B, 36\) or \(B, 3, 3, 4\)"):
        images_to_hits(np.ones((2, 3, 4, 3)), REGULAR, ("r", "layer", "alpha"))
    with pytest.raises(DataError, match=r"21 voxels: \(B, 21\) is expected"):
        images_to_hits(np.ones((2, 5)), IRREGULAR)
    with pytest.raises(DataError, match="36 voxels"):
        images_to_hits(np.ones(36), REGULAR)
    with pytest.raises(DataError, match="no axis 'rr' - did you mean 'r'"):
        images_to_hits(np.ones((2, 36)), REGULAR, ("layer", "alpha", "rr"))
    with pytest.raises(DataError, match="each once"):
        images_to_hits(np.ones((2, 36)), REGULAR, ("layer", "alpha"))
    with pytest.raises(DataError, match="one order of voxels, layer, alpha, r"):
        images_to_hits(np.ones((2, 21)), IRREGULAR, ("r", "alpha", "layer"))
    with pytest.raises(DataError, match="numbers are expected"):
        images_to_hits(np.full((2, 36), "1"), REGULAR)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_voxels_without_a_sensible_energy_are_refused_by_place(value: float) -> None:
    images = np.zeros((3, 36), np.float32)
    images[:, 4] = 1.0
    images[1, 7] = value
    with pytest.raises(DataError, match=f"1 voxels are .* {value:g} in voxel 7 of shower 1"):
        images_to_hits(images, REGULAR)


def test_hits_that_an_image_cannot_hold_are_refused() -> None:
    hits = {"layer": np.array([0, 1, 1]), "alpha": np.array([0, 2, 2]), "r": np.array([0, 1, 1])}
    counts = np.array([0, 2, 1])
    assert np.count_nonzero(hits_to_images(hits, np.ones(3), counts, REGULAR)) == 3
    with pytest.raises(DataError, match="1 hits share a voxel.*resolve"):
        hits_to_images(hits, np.ones(3), np.array([0, 0, 3]), REGULAR)
    with pytest.raises(DataError, match="shower 2 has a hit of energy 0"):
        hits_to_images(hits, np.array([1, 1, 0]), counts, REGULAR)
    with pytest.raises(DataError, match="energy nan"):
        hits_to_images(hits, np.array([1, np.nan, 1]), counts, REGULAR)
    with pytest.raises(DataError, match="'alpha' is 4 "):
        hits_to_images({**hits, "alpha": np.array([0, 4, 2])}, np.ones(3), counts, REGULAR)


@settings(max_examples=40, deadline=None)
@given(GEOMETRIES, st.sampled_from([3, 15, 60]), st.sampled_from(["sum", "shift"]), st.integers(0, 2**31))
def test_after_resolving_no_voxel_has_two_hits_and_no_energy_is_lost(
    geometry: Layers, hits: int, rule: str, seed: int
) -> None:
    clouds = showers_of(geometry, hits, 6, seed)
    found, changed = resolve(clouds, geometry, rule)  # type: ignore[arg-type]
    assert len(np.unique(voxels(found, geometry))) == len(found.points)
    np.testing.assert_allclose(energies(found), energies(clouds), rtol=1e-6)
    distinct = len(np.unique(voxels(clouds, geometry)))
    assert changed == len(clouds.points) - distinct
    assert (np.diff(found.feature("time"))[np.diff(found.owners) == 0] > 0).all()  # the order of the hits is kept
    assert resolve(found, geometry, rule)[1] == 0  # type: ignore[arg-type]
    if rule == "sum":
        assert len(found.points) == distinct
        return
    keys = clouds.owners * geometry.n_layers + clouds.feature("layer").astype(int)
    capacity = np.tile(geometry.voxels_per_layer, len(clouds))
    expected = np.minimum(np.bincount(keys, minlength=len(capacity)), capacity)
    after = np.bincount(found.owners * geometry.n_layers + found.feature("layer").astype(int), minlength=len(capacity))
    np.testing.assert_array_equal(after, expected)
    if len(found.points) == len(clouds.points):
        np.testing.assert_array_equal(found.points[:, 3:], clouds.points[:, 3:])


def one_shower(cells: list[tuple[int, int, int]], energy: list[float], geometry: Layers) -> PointClouds:
    return PointClouds(
        np.column_stack([cells, energy]).astype(np.float32), np.array([0, len(cells)]), (*geometry.axes, "energy"),
        ("index", "index", "index", "MeV"), np.zeros(1, np.int64), np.zeros((1, 0), np.float32),
    )  # fmt: skip


def test_the_strongest_stays_and_alpha_is_periodic() -> None:
    one_ring = CylindricalGeometry(kind="cylindrical", layers=(RingLayers(r_edges_mm=(0, 1), alpha_bins=6),))
    clouds = one_shower([(0, 0, 0)] * 4, [1.0, 5.0, 3.0, 2.0], one_ring)
    found, changed = resolve(clouds, one_ring, "shift")
    # voxel 0 is even: the falling index first, which is sector 5 beyond -pi; then 1, then two sectors away
    assert found.feature("alpha").tolist() == [4, 0, 5, 1] and changed == 3
    odd = resolve(one_shower([(0, 1, 0)] * 3, [3, 2, 1], one_ring), one_ring, "shift")[0]
    assert odd.feature("alpha").tolist() == [1, 2, 0]


def test_the_nearest_free_voxel_is_taken_and_a_full_layer_adds() -> None:
    clouds = one_shower([(0, 1, 1), (0, 1, 1), (0, 0, 1), (0, 1, 0), (0, 2, 1), (0, 1, 2)], [9, 1, 1, 1, 1, 1], GRID)
    found, _ = resolve(clouds, GRID, "shift")
    # the four neighbours are taken: one of the diagonal ones, for the odd voxel 5 with the rising index
    assert found.points[1].tolist() == [0, 2, 2, 1]
    full = one_shower([(1, x, y) for x in range(4) for y in range(4)] + [(1, 3, 2)], [2.0] * 16 + [0.5], GRID)
    found, changed = resolve(full, GRID, "shift")
    assert changed == 1 and len(found.points) == 16
    assert found.points[14].tolist() == [1, 3, 2, 2.5]


@pytest.mark.parametrize("geometry", [REGULAR, IRREGULAR, GRID])
def test_every_moved_hit_goes_to_the_nearest_voxel_that_was_free(geometry: Layers) -> None:
    clouds = showers_of(geometry, 20, 30, 4)
    found, changed = resolve(clouds, geometry, "shift")
    before, energy, names = voxels(clouds, geometry), clouds.feature("energy"), geometry.axes[1:]
    hit = found.feature("time").astype(int)  # the row that the hit had
    after = dict(zip(hit.tolist(), voxels(found, geometry).tolist(), strict=True))
    taken = set(before.tolist())
    free_at = dict(zip(before.tolist(), range(len(before)), strict=True))
    moved = 0
    for row in np.lexsort([np.arange(len(before)), -energy]).tolist():
        if free_at.pop(int(before[row]), None) is not None:
            assert after[row] == before[row]  # the first of the strongest stays
            continue
        moved += 1
        cells = geometry.coordinates(np.arange(n_voxels(geometry)))
        own, first = int(before[row]) % n_voxels(geometry), int(before[row]) // n_voxels(geometry) * n_voxels(geometry)
        apart = [np.abs(cells[name] - cells[name][own]) for name in names]
        if names[0] == "alpha":
            apart[0] = np.minimum(apart[0], geometry.bounds(cells["layer"])["alpha"] - apart[0])
        distance = np.where(cells["layer"] == cells["layer"][own], apart[0] ** 2 + apart[1] ** 2, np.inf)
        distance[[voxel - first for voxel in taken if 0 <= voxel - first < len(distance)]] = np.inf
        if row in after:
            assert distance[after[row] - first] == distance.min() < np.inf
            taken.add(after[row])
        else:
            assert distance.min() == np.inf
    assert moved == changed > 0


def test_summing_without_a_geometry_goes_by_the_indices() -> None:
    clouds = toy_showers(40, 3)
    summed, added = resolve(clouds, None, "sum")
    assert added > 0 and len(summed.points) == len(clouds.points) - added
    np.testing.assert_allclose(energies(summed), energies(clouds), rtol=1e-6)
    assert len(np.unique(np.column_stack([summed.owners, summed.points[:, :3]]), axis=0)) == len(summed.points)
    assert resolve(summed, None, "sum")[1] == 0


def test_hits_with_positions_share_no_voxel() -> None:
    clouds = showers_of(GRID, 30, 3, 1)
    in_mm = PointClouds(
        clouds.points, clouds.offsets, clouds.features, ("index", "mm", "mm", "MeV", "ns"), clouds.labels,
        clouds.conditions,
    )  # fmt: skip
    assert resolve(in_mm, GRID, "sum")[1] == resolve(in_mm, None, "sum")[1] == 0
    assert not hits_outside(in_mm, GRID).any()
    with pytest.raises(DataError, match="indices of a geometry"):
        resolve(in_mm, GRID, "shift")


def test_hits_outside_the_geometry_are_summed_found_and_not_shifted() -> None:
    clouds = one_shower([(0, 4, 0), (0, 4, 0), (1, 0, 0)], [1, 2, 3], IRREGULAR)
    assert hits_outside(clouds, IRREGULAR).tolist() == [True, True, False]
    summed, added = resolve(clouds, IRREGULAR, "sum")
    assert added == 1 and summed.feature("energy").tolist() == [3, 3]
    with pytest.raises(DataError, match="'alpha' is 4 "):
        resolve(clouds, IRREGULAR, "shift")


def test_blocks_of_showers_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    clouds = showers_of(IRREGULAR, 12, 20, 5)
    whole = resolve(clouds, IRREGULAR, "shift")
    monkeypatch.setattr("foundation.data.collisions.BLOCK_VOXELS", 3 * n_voxels(IRREGULAR))
    parts = resolve(clouds, IRREGULAR, "shift")
    assert parts[1] == whole[1] > 0
    np.testing.assert_array_equal(parts[0].points, whole[0].points)
