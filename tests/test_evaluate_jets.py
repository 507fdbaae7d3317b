"""Jet observables against hand computation and FastJet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.evaluate.jets import jet_observables, n_subjettiness

from evaluate_samples import toy_jets


def clouds(*jets: list[tuple[float, float, float]]) -> PointClouds:
    """Jets from lists of (pt, eta_rel, phi_rel)."""
    points = np.array([p for jet in jets for p in jet], np.float32).reshape(-1, 3)
    return PointClouds(
        points, to_offsets(np.array([len(jet) for jet in jets])), ("pt", "eta_rel", "phi_rel"), ("GeV", "1", "rad"),
        np.zeros(len(jets), np.int64), np.zeros((len(jets), 0), np.float32),
    )  # fmt: skip


def test_mass_and_pt_by_hand() -> None:
    # m^2 = 2 pT1 pT2 (cosh deta - cos dphi)
    found = jet_observables(clouds([(100.0, 0.3, 0.1), (50.0, -0.2, -0.3)], [(80.0, 0.0, 0.0)]))
    expected = np.sqrt(2 * 100 * 50 * (np.cosh(0.5) - np.cos(0.4)))
    assert found["mass"][0] == pytest.approx(expected, rel=1e-6)
    assert found["pt"][0] == pytest.approx(np.hypot(100 + 50 * np.cos(0.4), 50 * np.sin(0.4)), rel=1e-6)
    assert found["mass"][1] == pytest.approx(0.0, abs=1e-6)
    assert found["multiplicity"].tolist() == [2, 1]


def test_what_does_not_exist_is_nan_and_stays_in_place() -> None:
    good = [(50.0, 0.1, 0.0), (40.0, -0.1, 0.1), (30.0, 0.0, -0.2), (5.0, 0.3, 0.3)]
    found = jet_observables(clouds([], good, good[:2], [(np.nan, 0.0, 0.0), *good], [(0.0, 0.0, 0.0), *good], good))
    assert np.isnan(found["mass"]).tolist() == [True, False, False, True, True, False]
    assert np.isnan(found["tau32"]).tolist() == [True, False, True, True, True, False]
    assert found["multiplicity"][0] == 0
    assert found["tau21"][1] == found["tau21"][5]


def test_three_constituents_are_three_subjets() -> None:
    tau = n_subjettiness(clouds([(50.0, 0.4, 0.0), (40.0, -0.4, 0.1), (30.0, 0.0, -0.4)]))
    assert tau[0, 2] == pytest.approx(0.0, abs=1e-12)
    assert tau[0, 0] > tau[0, 1] > 0


def test_tau_by_hand() -> None:
    # two pairs, each collinear: two axes leave nothing; with one axis, at eta = 0 by symmetry, every dR is 0.3
    tau = n_subjettiness(clouds([(25.0, 0.3, 0.0), (25.0, 0.3, 0.0), (25.0, -0.3, 0.0), (25.0, -0.3, 0.0)]), radius=0.8)
    assert tau[0, 0] == pytest.approx(0.3 / 0.8, rel=1e-6)
    assert tau[0, 1] == pytest.approx(0.0, abs=1e-6)


# the wide ones recombine with the beam and wrap around in phi
@pytest.mark.parametrize(("spread", "n"), [(1.0, 120), (5.0, 60)])
def test_tau_agrees_with_fastjet(spread: float, n: int) -> None:
    fastjet = pytest.importorskip("fastjet")
    jets = toy_jets(n, seed=3)
    jets.points[:, 1:3] *= spread
    jets.points[:, 2] = (jets.points[:, 2] + np.pi) % (2 * np.pi) - np.pi

    expected = []
    for points in jets:
        pt, eta, phi = points[:, :3].astype(np.float64).T
        momenta = zip(pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta), strict=True)
        particles = [fastjet.PseudoJet(*p) for p in momenta]
        sequence = fastjet.ClusterSequence(particles, fastjet.JetDefinition(fastjet.kt_algorithm, 0.8))
        taus = []
        for k in (1, 2, 3):
            axes = sequence.exclusive_jets(k)
            taus.append(sum(p.pt() * min(p.delta_R(a) for a in axes) for p in particles) / (pt.sum() * 0.8))
        expected.append(taus)
    np.testing.assert_allclose(n_subjettiness(jets), expected, rtol=1e-7, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), boost=st.floats(-1.0, 1.0), turn=st.floats(-3.0, 3.0), scale=st.floats(0.1, 10.0))
def test_boost_rotation_scale_and_order(seed: int, boost: float, turn: float, scale: float) -> None:
    jets = toy_jets(6, seed)
    rng = np.random.default_rng(seed)
    moved = jets.points.copy()
    moved[:, 0] *= scale
    moved[:, 1] += boost
    moved[:, 2] = (moved[:, 2] + turn + np.pi) % (2 * np.pi) - np.pi
    shuffled = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in pairwise(jets.offsets)])
    other = PointClouds(
        moved[shuffled], jets.offsets, jets.features, jets.units, jets.labels, jets.conditions, tag=jets.tag
    )
    before, after = jet_observables(jets), jet_observables(other)
    for name, power in {"mass": scale, "pt": scale, "multiplicity": 1.0, "tau21": 1.0, "tau32": 1.0}.items():
        np.testing.assert_allclose(after[name], before[name] * power, rtol=2e-3)


def test_empty_sample_has_empty_observables() -> None:
    assert all(len(values) == 0 for values in jet_observables(clouds()).values())
