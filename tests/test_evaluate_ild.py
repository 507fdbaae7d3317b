"""Observables of showers in square cells, and response and resolution: by hand, by their laws, and by ranking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from foundation.data.cards import load_card
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.evaluate.ild import ild_distances, ild_showers, quantiled_kl
from foundation.evaluate.response import fit_resolution, response_bins

CARD = load_card("omnijet_alpha_c")
GEOMETRY = CARD.geometry
assert GEOMETRY is not None


def clouds_of(points: np.ndarray, counts: np.ndarray, incident: np.ndarray) -> PointClouds:
    """Showers of layer, x, y [cells] and energy [MeV]; incident energies in GeV."""
    return PointClouds(
        points.astype(np.float32).reshape(-1, 4), to_offsets(counts), CARD.feature_names, CARD.feature_units,
        np.zeros(len(counts), np.int64), incident.astype(np.float32)[:, None], ("incident_energy",), ("GeV",), CARD.tag,
    )  # fmt: skip


def toy_showers(count: int, seed: int, smear: float = 1.0) -> PointClouds:
    """Showers around the middle of the layers; a smear above 1 makes them wider, deeper, and their hits stronger."""
    rng = np.random.default_rng(seed)
    incident = rng.uniform(10, 100, count)
    counts = rng.poisson(40 + incident * smear)
    owners, n = np.repeat(np.arange(count), counts), int(counts.sum())
    layer = np.clip(rng.gamma(4, 2.5 * smear, n).astype(int), 0, 29)
    x, y = np.clip(np.rint(14.5 + rng.normal(0, 2 * smear, (2, n)) + 0.5 * (smear - 1)), 0, 29)
    energy = rng.lognormal(-1, 1.2, n) * smear * (incident / 50)[owners]
    return clouds_of(np.stack([layer, x, y, energy], axis=1), counts, incident)


def test_observables_by_hand() -> None:
    # the first shower has a hit of 0.1 MeV, which is not above the threshold, the second one nothing else
    points = np.array([[2, 14, 15, 3.0], [28, 20, 15, 1.0], [29, 0, 0, 0.1], [5, 1, 1, 0.05]])
    found = ild_showers(clouds_of(points, np.array([3, 1]), np.array([10.0, 10.0])), GEOMETRY)
    assert found.observables["energy_sum"].tolist() == [4.0, 0.0]
    assert found.observables["hits"].tolist() == [2, 0]
    assert found.observables["cog_x"][0] == pytest.approx((3 * 14 + 20) / 4)
    assert found.observables["cog_z"][0] == pytest.approx((3 * 2 + 28) / 4)
    assert found.observables["layer_of_maximum"][0] == 2
    assert np.isnan(found.observables["cog_y"][1])
    assert np.isnan(found.observables["layer_of_maximum"][1])
    assert len(found.cell_energy) == 4
    assert np.flatnonzero(found.longitudinal[0]).tolist() == [2, 28]
    assert found.radial[0, 0] == pytest.approx(3.0)  # 0.71 cells from the middle
    assert found.radial[0, 5] == pytest.approx(1.0)  # 5.52 cells
    assert found.longitudinal.shape == (2, 30)
    assert found.radial.shape == (2, 21)


def test_positions_in_mm_are_counted_in_cells() -> None:
    sample = toy_showers(10, 0)
    points = sample.points.copy()
    points[:, 1:3] = (points[:, 1:3] - 14.5) * 5.0883
    in_mm = replace(sample, points=points, units=("index", "mm", "mm", "MeV"))
    for name, values in ild_showers(sample, GEOMETRY).observables.items():
        np.testing.assert_allclose(ild_showers(in_mm, GEOMETRY).observables[name], values, rtol=1e-5)


def test_the_quantiled_divergence_by_hand() -> None:
    truth = np.arange(100.0)
    generated = np.concatenate([np.arange(50.0), np.arange(50.0)])  # all in the lower half
    p, q = np.array([0.5, 0.5]), np.array([1 + 1e-10, 1e-10]) / (1 + 2e-10)
    assert quantiled_kl(truth, generated, 2).value == pytest.approx(float((p * np.log(p / q)).sum()))
    assert quantiled_kl(truth, truth, 10).value == pytest.approx(0.0, abs=1e-8)
    assert quantiled_kl(np.round(truth / 30), np.round(truth / 30), 30).value == pytest.approx(0.0, abs=1e-8)


def test_smeared_truth_is_further_away_than_truth() -> None:
    truth = ild_showers(toy_showers(400, 1), GEOMETRY)
    none, some, much = (
        ild_distances(truth, ild_showers(toy_showers(400, 2, smear), GEOMETRY)) for smear in (1.0, 1.2, 1.6)
    )
    for a, b, c in zip(none, some, much, strict=True):
        assert a.w1.value < b.w1.value < c.w1.value, a.observable
        assert a.kl.value < b.kl.value < c.kl.value, a.observable
        assert b.w1.error > 0
        assert b.kl.error > 0
    assert ild_distances(truth, truth)[1].w1.value == 0


def test_w1_is_that_of_scipy() -> None:
    truth, generated = (ild_showers(toy_showers(n, n, smear), GEOMETRY) for n, smear in ((40, 1.0), (30, 1.3)))
    for row in ild_distances(truth, generated)[:-2]:
        a, b = ({"cell_energy": s.cell_energy, **s.observables}[row.observable] for s in (truth, generated))
        assert row.w1.value == pytest.approx(wasserstein_distance(a, b), rel=1e-9)


def test_response_and_resolution_come_back() -> None:
    rng = np.random.default_rng(5)
    energies = np.array([5.0, 10.0, 20.0, 40.0, 80.0, 160.0])
    incident = np.repeat(energies, 4000)
    true = np.sqrt(0.17**2 / incident + (0.2 / incident) ** 2 + 0.01**2)
    visible = 30.0 * incident * (1 + true * rng.normal(size=len(incident)))  # 3 % are seen
    points = np.stack([np.zeros(len(incident))] * 3 + [visible], axis=1)
    bins = response_bins(clouds_of(points, np.ones(len(incident), int), incident))
    assert [b.energy for b in bins] == energies.tolist()
    for b in bins:
        assert abs(b.response.value - 0.03) < 4 * b.response.error
        assert abs(b.resolution.value - true[incident == b.energy][0]) < 4 * b.resolution.error
    fitted = fit_resolution(bins)
    assert abs(fitted.stochastic.value - 0.17) < 4 * fitted.stochastic.error
    assert abs(fitted.constant.value - 0.01) < 4 * fitted.constant.error
    assert abs(fitted.noise.value - 0.2) < 4 * fitted.noise.error
    assert fitted.chi2 / fitted.degrees_of_freedom < 6
    assert fitted(np.array([20.0]))[0] == pytest.approx(np.sqrt(0.17**2 / 20 + 0.0001 + 0.0001), rel=0.05)


def test_continuous_energies_are_binned_and_the_bins_can_be_given() -> None:
    sample = toy_showers(2000, 3)
    bins = response_bins(sample)
    assert len(bins) == 10
    assert sum(b.showers for b in bins) == 2000
    edges = np.array([b.low for b in bins] + [bins[-1].high])
    assert response_bins(sample, edges) == bins
    assert response_bins(sample, edges, threshold_mev=0.5)[0].response.value < bins[0].response.value


def test_bad_samples_are_refused_in_a_sentence() -> None:
    sample = toy_showers(60, 0)
    measured = ild_showers(sample, GEOMETRY)
    with pytest.raises(DataError, match="empty"):
        ild_showers(sample.select(slice(0)), GEOMETRY)
    with pytest.raises(DataError, match="square cells"):
        ild_showers(sample, load_card("calochallenge_ds2").geometry)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not finite"):
        ild_showers(replace(sample, points=sample.points + np.float32("inf")), GEOMETRY)
    with pytest.raises(DataError, match="20 showers"):
        ild_distances(measured, ild_showers(sample.select(slice(10)), GEOMETRY))
    with pytest.raises(DataError, match="incident_energy"):
        response_bins(sample.with_columns(CARD.feature_names, (), CARD.tag))
    with pytest.raises(DataError, match="no bin"):
        response_bins(sample.select(slice(10)))
    with pytest.raises(DataError, match="3 bins"):
        fit_resolution(response_bins(sample, np.array([10.0, 100.0])))
