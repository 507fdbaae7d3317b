"""Shower observables and profiles by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foundation.data.geometry import CylindricalGeometry, RingLayers
from foundation.data.point_clouds import PointClouds
from foundation.evaluate.comparison import compare
from foundation.evaluate.displays import shower_picture
from foundation.evaluate.showers import cell_positions, shower_observables, shower_profiles

from evaluate_samples import SHOWER_CARD, toy_showers

GEOMETRY = SHOWER_CARD.geometry
assert GEOMETRY is not None


def showers(points: list[list[float]], offsets: list[int], incident: list[float]) -> PointClouds:
    return PointClouds(
        np.array(points, np.float32).reshape(-1, 4), np.array(offsets), SHOWER_CARD.feature_names,
        SHOWER_CARD.feature_units, np.zeros(len(incident), np.int64), np.array(incident, np.float32)[:, None],
        ("incident_energy",), ("GeV",), SHOWER_CARD.tag,
    )  # fmt: skip


def test_observables_by_hand() -> None:
    # 12 cells of 10 mm: cell 6 lies at +5 mm, cell 4 at -15 mm, cell 5 at -5 mm
    sample = showers([[2, 6, 5, 30.0], [4, 4, 5, 10.0], [0, 0, 0, 0.0]], [0, 2, 2, 3], [10.0, 20.0, 5.0])
    found = shower_observables(sample, GEOMETRY)
    assert found["energy_sum"].tolist() == [40.0, 0.0, 0.0]
    assert found["hits"].tolist() == [2, 0, 1]
    assert found["response"] == pytest.approx([0.004, 0.0, 0.0])
    assert found["cog_layer"][0] == pytest.approx(2.5)
    assert found["cog_x"][0] == pytest.approx((30 * 5 + 10 * -15) / 40)
    assert found["cog_y"][0] == pytest.approx(-5.0)
    assert np.isnan(found["cog_x"][1:]).all()


def test_broken_hits_and_unknown_incident_energy_are_nan() -> None:
    sample = showers([[2, 6, 5, np.nan], [2, 6, 5, 1.0]], [0, 1, 2], [10.0, np.nan])
    found = shower_observables(sample, GEOMETRY)
    assert np.isnan(found["energy_sum"]).tolist() == [True, False]
    assert np.isnan(found["response"]).all()


def test_profiles_hold_all_energy_and_all_hits() -> None:
    sample = toy_showers(30, 0)
    layers, rings, spectrum = shower_profiles(sample, GEOMETRY)
    total = shower_observables(sample, GEOMETRY)["energy_sum"]
    np.testing.assert_allclose(layers.per_shower.sum(1), total)
    np.testing.assert_allclose(rings.per_shower.sum(1), total)
    np.testing.assert_array_equal(spectrum.per_shower.sum(1), sample.counts)


def test_profiles_by_hand() -> None:
    layers, rings, _ = shower_profiles(showers([[2, 6, 5, 30.0], [4, 0, 0, 10.0]], [0, 2], [10.0]), GEOMETRY)
    assert layers.per_shower[0, 2] == 30.0
    assert layers.per_shower[0, 4] == 10.0
    assert rings.per_shower[0, 0] == 30.0  # at (5, -5) mm
    assert rings.per_shower[0, 7] == 10.0  # at (-55, -55) mm, 77.8 mm from the axis


RINGS = CylindricalGeometry(
    kind="cylindrical",
    layers=(RingLayers(r_edges_mm=(0, 10, 30)), RingLayers(r_edges_mm=(0, 4, 20), alpha_bins=4)),
)


def ring_showers(points: list[list[float]], offsets: list[int]) -> PointClouds:
    return PointClouds(
        np.array(points, np.float32), np.array(offsets), ("layer", "alpha", "r", "energy"),
        ("index", "index", "index", "MeV"), np.zeros(len(offsets) - 1, np.int64),
        np.zeros((len(offsets) - 1, 0), np.float32),
    )  # fmt: skip


def test_rings_by_hand() -> None:
    # in layer 1, sector 2 is centred at pi/4 and sector 0 at -3/4 pi; rings at 2 and 12 mm
    sample = ring_showers([[1, 2, 1, 30.0], [1, 0, 1, 10.0], [0, 0, 1, 5.0], [0, 0, 0, 1.0]], [0, 3, 4])
    found = shower_observables(sample, RINGS)
    assert found["energy_sum"].tolist() == [45.0, 1.0]
    assert found["cog_layer"] == pytest.approx([40 / 45, 0])
    # the whole rings of layer 0 say nothing of the direction
    assert found["cog_x"][0] == pytest.approx((30 - 10) * 12 / np.sqrt(2) / 40) == pytest.approx(found["cog_y"][0])
    assert np.isnan(found["cog_x"][1])
    layers, rings, spectrum = shower_profiles(sample, RINGS)
    assert layers.per_shower.tolist() == [[5.0, 40.0], [1.0, 0.0]]
    assert rings.edges.tolist() == [0, 4, 10, 20, 30]
    assert rings.per_shower.tolist() == [[0, 0, 40.0, 5.0], [0, 1.0, 0, 0]]
    assert spectrum.per_shower.sum(1).tolist() == [3, 1]


def test_hits_outside_of_the_rings_have_no_place() -> None:
    found = shower_observables(ring_showers([[1, 2, 1, 30.0], [0, 3, 0, 10.0], [1, 4, 0, 1.0]], [0, 2, 3]), RINGS)
    assert found["energy_sum"].tolist() == [40.0, 1.0]
    assert np.isnan(found["cog_x"]).all() and found["cog_layer"].tolist() == [0.75, 1.0]


def test_positions_in_mm_are_taken_as_they_are() -> None:
    sample = toy_showers(20, 1)
    x, y = cell_positions(sample, GEOMETRY)
    table = sample.points.copy()
    table[:, 1], table[:, 2] = x, y
    in_mm = replace(sample, points=table, units=("index", "mm", "mm", "MeV"))
    for name, values in shower_observables(sample, GEOMETRY).items():
        np.testing.assert_allclose(shower_observables(in_mm, GEOMETRY)[name], values, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(shower_profiles(sample, GEOMETRY), shower_profiles(in_mm, GEOMETRY), strict=True):
        np.testing.assert_allclose(ours.per_shower.sum(0), theirs.per_shower.sum(0), rtol=1e-6)


@pytest.mark.parametrize("kind", ["rings", "mm"])
def test_comparison_and_display_of_rings_and_of_positions(kind: str) -> None:
    def sample(seed: int) -> PointClouds:
        clouds = toy_showers(60, seed)
        table = clouds.points.copy()
        if kind == "mm":
            table[:, 1], table[:, 2] = cell_positions(clouds, GEOMETRY)
            return replace(clouds, points=table, units=("index", "mm", "mm", "MeV"))
        table[:, :3] = np.minimum(table[:, [0, 1, 2]], [11, 7, 2])
        return replace(clouds, points=table, features=("layer", "alpha", "r", "energy"))

    rings = RingLayers(r_edges_mm=(0, 5, 10, 20), alpha_bins=8, repeat=12)
    geometry = GEOMETRY if kind == "mm" else CylindricalGeometry(kind="cylindrical", layers=(rings,))
    card = SHOWER_CARD.model_copy(update={"geometry": geometry})
    result = compare(sample(1), sample(2), card)
    rows = {row.observable: row for row in result.rows if row.group == "all"}
    assert not any(row.problem for row in rows.values())
    assert np.isfinite(rows["cog_x"].w1) and np.isfinite(rows["radial_profile"].w1)
    picture = shower_picture({"generated": result})
    assert picture.caption.endswith("x, y in mm.")
