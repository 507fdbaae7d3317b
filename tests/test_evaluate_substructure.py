"""Substructure against fastjet and fastjet-contrib, hand computation and symmetries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.cards import load_card
from foundation.errors import DataError
from foundation.evaluate.energy_flow import energy_flow_polynomials
from foundation.evaluate.jets import n_subjettiness, relative_pt
from foundation.evaluate.substructure import constituent_charges, jet_charge, jet_panel, soft_drop_mass

from evaluate_samples import toy_jets
from recorded_jets import jets_of, recorded_arrays, recorded_jets


def test_substructure_agrees_with_fastjet() -> None:
    jets, recorded = recorded_jets("truth"), recorded_arrays()
    panel = jet_panel(jets)
    enough = jets.counts >= 3
    taus = n_subjettiness(jets.select(enough))
    for n in (1, 2, 3):
        np.testing.assert_allclose(taus[:, n - 1], recorded[f"tau{n}_truth"][enough], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(panel["tau32"][enough], taus[:, 2] / taus[:, 1], rtol=1e-12)
    np.testing.assert_allclose(panel["d2"], recorded["d2_truth"], rtol=1e-10)
    np.testing.assert_allclose(panel["soft_drop_mass"], recorded["soft_drop_mass_truth"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(panel["mass"], recorded["mass_truth"], rtol=1e-9, atol=1e-8)
    assert np.isnan(panel["tau21"]).tolist() == (~enough).tolist() == np.isnan(panel["d2"]).tolist()


# constituents over a wide range recombine with the beam and wrap around in azimuth; soft drop must not mind either
@pytest.mark.parametrize(("beta", "z_cut"), [(0.0, 0.1), (1.0, 0.2), (0.0, 0.4)])
def test_soft_drop_agrees_with_fastjet_contrib(beta: float, z_cut: float) -> None:
    fastjet = pytest.importorskip("fastjet")
    ak = pytest.importorskip("awkward")
    jets = toy_jets(60, seed=4)
    jets.points[:, 1:3] *= 3
    jets.points[:, 2] = (jets.points[:, 2] + np.pi) % (2 * np.pi) - np.pi
    pt, eta, phi = jets.points[:, :3].astype(np.float64).T
    momenta = {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "E": pt * np.cosh(eta)}
    events = ak.unflatten(ak.Array(momenta), jets.counts)
    events = ak.with_name(events, "Momentum4D")
    sequence = fastjet.ClusterSequence(events, fastjet.JetDefinition(fastjet.cambridge_algorithm, 1000.0))
    expected = ak.to_numpy(sequence.exclusive_jets_softdrop_grooming(1, beta, z_cut).msoftdrop).ravel()
    found = soft_drop_mass(jets, z_cut=z_cut, beta=beta)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-3)


def test_soft_drop_by_hand() -> None:
    # the soft one at wide angle is dropped, the two hard ones stay
    hard = [[50.0, 0.1, 0.0], [40.0, -0.1, 0.0]]
    jets = jets_of(
        np.array([*hard, [3.0, 0.0, 0.6], *hard, [9.0, 0.5, 0.0], [1.0, 0.0, 0.0]]), np.array([3, 2, 1, 1, 0])
    )
    found = soft_drop_mass(jets)
    pair = np.sqrt(2 * 50 * 40 * (np.cosh(0.2) - 1))
    assert found[:4] == pytest.approx([pair, pair, 0, 0], rel=1e-5) and np.isnan(found[4])
    lopsided = jets_of(np.array([[50.0, 0.1, 0.0], [1.0, -0.1, 0.0]]), np.array([2]))
    assert soft_drop_mass(lopsided)[0] == 0


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), boost=st.floats(-1, 1), turn=st.floats(-2, 2), scale=st.floats(0.1, 10))
def test_panel_under_boosts_turns_and_scales(seed: int, boost: float, turn: float, scale: float) -> None:
    jets = toy_jets(8, seed)
    moved = jets.points.copy()
    moved[:, 0] *= scale
    moved[:, 1:3] += np.array([boost, turn], np.float32)
    before, after = jet_panel(jets), jet_panel(jets_of(moved[:, :3], jets.counts))
    for name, power in {"pt": 1, "mass": 1, "multiplicity": 0, "d2": 0, "tau21": 0}.items():
        np.testing.assert_allclose(after[name], before[name] * scale**power, rtol=5e-3, atol=1e-5)
    np.testing.assert_allclose(after["phi"], before["phi"] + turn, atol=1e-4)
    assert (before["soft_drop_mass"] <= before["mass"] * (1 + 1e-9)).all()


def test_axis_by_hand() -> None:
    panel = jet_panel(jets_of(np.array([[5.0, 0.7, -3.0], [1.0, 0.5, 3.1], [1.0, -0.5, -3.1]]), np.array([1, 2])))
    assert panel["eta"] == pytest.approx([0.7, 0.0], abs=1e-6)
    assert panel["phi"][0] == pytest.approx(-3.0) and abs(panel["phi"][1]) == pytest.approx(np.pi)


def test_panel_keeps_broken_jets_in_place() -> None:
    good = toy_jets(3, 1)
    points = np.concatenate([good.points[:, :3], [[np.nan, 0, 0], [1, 0, 0]], [[0, 0.1, 0.1]], [[5.0, 0.1, 0.1]]])
    jets = jets_of(points, np.concatenate([good.counts, [2, 1, 1, 0]]))
    panel = jet_panel(jets, polynomials=energy_flow_polynomials(jets))
    for name, values in panel.items():
        assert np.isfinite(values[:3]).all() and np.isnan(values[3:5]).all(), name
        assert np.isnan(values[5]) == (name in {"tau21", "tau32", "d2"}), name
        assert np.isnan(values[6]) == (name != "multiplicity"), name
    with pytest.raises(DataError, match="shape"):
        jet_panel(jets, polynomials=np.zeros((2, 36)))
    assert all(len(values) == 0 for values in jet_panel(jets_of(np.zeros((0, 3)), np.zeros(0))).values())


def test_jet_charge_by_hand_and_by_card() -> None:
    jets = jets_of(np.array([[9.0, 0, 0], [4.0, 0, 0], [1.0, 0.1, 0]]), np.array([2, 1, 0]))
    found = jet_charge(jets, np.array([1.0, -1.0, 1.0]))
    assert found[:2] == pytest.approx([(3 - 2) / np.sqrt(13), 1.0]) and np.isnan(found[2])
    with pytest.raises(DataError, match="2 charges"):
        jet_charge(jets, np.ones(2))
    card = load_card("pythia_jets")
    toys = toy_jets(50, 2)
    charges = constituent_charges(toys, card)
    assert charges is not None and (charges == toys.feature("charge") - 1).all()
    assert np.isfinite(jet_panel(toys, card=card)["charge"]).all()
    assert "charge" not in jet_panel(toys) and constituent_charges(jets, card) is None


def test_relative_pt() -> None:
    jets = jets_of(np.array([[9.0, 0, 0], [4.0, 0, 0], [1.0, 0.1, 0]]), np.array([2, 1]))
    assert relative_pt(jets).feature("pt") == pytest.approx([9 / 13, 4 / 13, 1.0])
    assert relative_pt(jets, np.array([20.0, 2.0])).feature("pt") == pytest.approx([0.45, 0.2, 0.5])
    with pytest.raises(DataError, match="3 values of jet pT were given for 2 jets"):
        relative_pt(jets, np.ones(3))
    with pytest.raises(DataError, match="no pT above zero"):
        relative_pt(jets, np.array([1.0, 0.0]))
