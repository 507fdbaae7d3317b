"""Shower observables and profiles by hand."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.data.point_clouds import PointClouds
from foundation.evaluate.showers import shower_observables, shower_profiles

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
