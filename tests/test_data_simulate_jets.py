"""Simulated jets: the detector, the labels and the classes are physics, and the same for the same seed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.cards import DatasetCard, PythiaProcess, load_card, shipped
from foundation.data.point_clouds import PointClouds
from foundation.data.simulate.campaign import run_campaign
from foundation.data.simulate.detector import detect, perfect_detector
from foundation.data.simulate.jet_finding import FoundJets
from foundation.data.simulate.jet_labels import hard_partons, matched
from foundation.data.simulate.particles import IDENTITIES, Particles
from foundation.data.simulate.pythia_jets import simulate_jets
from foundation.data.simulate.towers import ECAL, HCAL, Towers
from foundation.data.simulate.tracks import impact_parameters, impact_resolution
from foundation.errors import DataError

TEN = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")


def with_simulator(card: DatasetCard, **changes: object) -> DatasetCard:
    assert card.simulator is not None
    return card.model_copy(update={"simulator": card.simulator.model_copy(update=changes)})


def fast(name: str) -> DatasetCard:
    """A shipped card without multiparton interactions: several times faster."""
    return with_simulator(load_card(name), mpi=False)


@pytest.fixture(scope="module")
def jets() -> dict[str, PointClouds]:
    return {name: simulate_jets(fast("pythia_jets"), name, 60, seed=11) for name in ("qg", "top")}


@pytest.fixture(scope="module")
def ten() -> dict[str, PointClouds]:
    return {name: simulate_jets(fast("pythia_jetclass"), name, 30, seed=3) for name in TEN}


def beam(pdg: int, pt: float, n: int, eta: float = 0.2) -> Particles:
    """n particles of one kind, one per event, spread over phi, all from the origin."""
    massless = np.full(n, pt * np.cosh(eta))
    phi = np.linspace(-3, 3, n)
    return Particles(np.arange(n), np.full(n, pdg), np.full(n, pt), np.full(n, eta), phi, massless, np.zeros((n, 3)))


def jet_momenta(clouds: PointClouds) -> dict[str, np.ndarray]:
    pt, eta, phi = (clouds.feature(name).astype(float) for name in ("pt", "eta_rel", "phi_rel"))
    parts = {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "e": pt * np.cosh(eta)}
    return {name: np.bincount(clouds.owners, value, len(clouds)) for name, value in parts.items()}


def significance(clouds: PointClouds) -> np.ndarray:
    """|d0| in units of its error, of all tracks."""
    d0, error = clouds.feature("d0"), clouds.feature("d0_err")
    return np.abs(d0[error > 0]) / error[error > 0]


# detector


def test_track_efficiency_charge_and_identity() -> None:
    rng = np.random.default_rng(1)
    for pdg, efficiency, identity, charge in ((211, 0.95, 0, 1), (-211, 0.95, 0, -1), (13, 0.99, 2, -1)):
        seen = detect(beam(pdg, 30.0, 4000), rng)
        tracks = seen.charge != 0
        assert np.mean(tracks) * len(tracks) / 4000 == pytest.approx(efficiency, abs=0.015)
        assert set(seen.identity[tracks]) == {identity} and set(seen.charge[tracks]) == {charge}
        assert seen.pt[tracks].mean() == pytest.approx(30.0, rel=0.03)


@pytest.mark.parametrize(("pdg", "name"), [(22, "photon"), (130, "neutral_hadron"), (2112, "neutral_hadron")])
def test_neutral_particles_become_towers_of_their_energy(pdg: int, name: str) -> None:
    seen = detect(beam(pdg, 80.0, 2000), np.random.default_rng(2))
    assert set(seen.identity) == {IDENTITIES.index(name)} and not seen.charge.any()
    assert len(seen.pt) > 1990
    assert (seen.pt * np.cosh(seen.eta)).mean() == pytest.approx(80 * np.cosh(0.2), rel=0.02)
    assert np.abs(seen.eta - 0.2).max() < 0.09
    assert not np.any([seen.d0, seen.d0_err, seen.dz, seen.dz_err])


def test_energy_of_tracks_is_not_counted_twice() -> None:
    seen = detect(beam(211, 40.0, 3000), np.random.default_rng(3))
    per_event = np.bincount(seen.event, seen.pt, 3000)
    assert per_event.mean() == pytest.approx(40.0, rel=0.08)


def test_nothing_is_seen_outside_the_acceptance_and_perfect_detector_loses_nothing() -> None:
    far = beam(211, 5.0, 50, eta=3.0)
    assert not len(detect(far, np.random.default_rng(4)).pt)
    assert np.array_equal(perfect_detector(far).pt, far.pt)


@settings(max_examples=50, deadline=None)
@given(st.floats(-2.85, 2.85), st.floats(-3.14, 3.14), st.integers(0, 10_000), st.sampled_from([ECAL, HCAL]))
def test_towers_hold_their_points(eta: float, phi: float, event: int, grid: Towers) -> None:
    tower = grid.index(np.array([event]), np.array([eta]), np.array([phi]))
    again = grid.point_inside(tower, np.random.default_rng(0))
    assert np.array_equal(grid.index(np.array([event]), *again), tower)
    assert grid.unpack(tower)[0][0] == event


# impact parameters


def test_sign_of_impact_parameters_is_that_of_delphes() -> None:
    vertex = np.array([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0], [0.0, 2.0, 5.0]])
    at = replace(beam(211, 2.0, 3, eta=1.0), phi=np.full(3, np.pi / 2), vertex=vertex)  # they fly along +y
    d0, dz = impact_parameters(at)
    assert d0 == pytest.approx([1.0, 0.0, 0.0])  # (x py - y px) / pT
    assert dz == pytest.approx([5.0, 5.0 - np.sinh(1.0), 5.0 - 2 * np.sinh(1.0)])
    backwards = impact_parameters(replace(at, phi=-at.phi))
    assert backwards[0] == pytest.approx([-1.0, 0.0, 0.0])
    assert not np.any(impact_parameters(replace(at, pdg=np.full(3, 22))))


vertices = st.tuples(*[st.floats(-5, 5)] * 3)


@settings(max_examples=30, deadline=None)
@given(vertices, st.floats(-2.4, 2.4), st.floats(-3.1, 3.1), st.floats(-20, 20))
def test_any_point_of_a_line_has_the_same_impact_parameters(
    vertex: tuple[float, float, float], eta: float, phi: float, step: float
) -> None:
    direction = np.array([np.cos(phi), np.sin(phi), np.sinh(eta)])
    both = np.array([vertex, np.array(vertex) + step * direction])
    d0, dz = impact_parameters(replace(beam(-13, 1.0, 2, eta), phi=np.full(2, phi), vertex=both))
    assert d0[0] == pytest.approx(d0[1], abs=1e-9) and dz[0] == pytest.approx(dz[1], abs=1e-7)
    assert abs(d0[0]) <= np.hypot(vertex[0], vertex[1]) + 1e-9


def test_impact_parameters_are_smeared_by_the_error_that_is_given() -> None:
    prompt = detect(beam(13, 5.0, 4000), np.random.default_rng(6))
    for value, error in ((prompt.d0, prompt.d0_err), (prompt.dz, prompt.dz_err)):
        assert (value / error).std() == pytest.approx(1.0, abs=0.05)
        assert (value / error).mean() == pytest.approx(0.0, abs=0.08)
    moved = replace(beam(13, 5.0, 4000), vertex=np.tile([3.0, 0.0, 1.0], (4000, 1)))
    seen = detect(moved, np.random.default_rng(6))
    assert np.array_equal(seen.pt, prompt.pt)  # where it comes from changes nothing but d0 and dz
    assert seen.d0 - prompt.d0 == pytest.approx(3 * np.sin(seen.phi))


def test_impact_resolution_at_the_values_of_its_source() -> None:
    # Of JetClass's detector card, after arXiv:1405.6569: mm at 0.20, 1.0 and 140 GeV in the barrel.
    d0_err, dz_err = impact_resolution(np.array([0.2014, 0.999, 140.0]), np.full(3, 0.5))
    assert d0_err == pytest.approx([0.3543, 0.0753, 0.0104], rel=0.18)
    assert dz_err[0] == pytest.approx(0.3693, rel=0.12)
    forward = impact_resolution(np.array([1.0]), np.array([-2.0]))
    assert forward[0][0] > 1.5 * d0_err[1] and forward[1][0] > 4 * dz_err[1]


# labels


def found(axes: list[tuple[int, float, float]]) -> FoundJets:
    """Jets of (event, eta, phi) without constituents."""
    event, eta, phi = (np.array(column) for column in zip(*axes, strict=True))
    none = np.zeros(0, np.int64)
    return FoundJets(event, np.full(len(eta), 600.0), eta, phi, np.full(len(eta), 600.0), none, none)


def generated(rows: list[tuple[int, int, int, int, float, float]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Particles of (event, id, status, row of the mother, eta, phi)."""
    event, number, status, mother, eta, phi = (np.array(column) for column in zip(*rows, strict=True))
    columns = {"px": np.cos(phi), "py": np.sin(phi), "pz": np.sinh(eta)}
    return event, {"id": number, "status": status, "mother1": mother, **columns}


def test_the_nearest_parton_gives_the_label() -> None:
    partons = hard_partons(*generated([(0, 2, -23, 0, 0.0, 0.0), (0, 21, -23, 0, 0.3, 0.0), (1, -5, -23, 0, 0.0, 3.1)]))
    jets = found([(0, 0.1, 0.0), (0, 0.2, 0.0), (0, 0.8, 0.0), (1, 0.0, -3.1), (2, 0.0, 0.0)])
    rule = {flavours: PythiaProcess(settings=(), matched="parton", flavours=flavours) for flavours in ((2,), (21,))}
    assert matched(jets, partons, 3, rule[2,], 0.8).tolist() == [True, False, False, False, False]
    assert matched(jets, partons, 3, rule[21,], 0.8).tolist() == [False, True, False, False, False]
    of_any = PythiaProcess(settings=(), matched="parton")
    assert matched(jets, partons, 3, of_any, 0.8).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize(("lepton_phi", "inside"), [(0.5, True), (1.2, False)])
def test_all_products_of_a_decay_must_be_in_the_jet(lepton_phi: float, inside: bool) -> None:
    rows = [(0, 25, -22, 0, 0.0, 0.0), (0, 24, -22, 0, 0.0, 0.0), (0, -24, -22, 0, 0.0, 0.0)]
    rows += [(0, 2, -23, 1, 0.2, 0.1), (0, -1, -23, 1, 0.0, -0.3)]
    rows += [(0, 11, 23, 2, 0.0, lepton_phi), (0, -12, 23, 2, 0.0, 3.0)]  # the neutrino may be anywhere
    partons = hard_partons(*generated(rows))
    rule = PythiaProcess(settings=(), matched="decay", decay_products=3)
    assert matched(found([(0, 0.0, 0.0)]), partons, 1, rule, 0.8).tolist() == [inside]
    assert not matched(found([(0, 0.0, 0.0)]), partons, 1, rule.model_copy(update={"decay_products": 2}), 0.8).any()


def test_a_lepton_alone_makes_no_parton_jet() -> None:
    partons = hard_partons(*generated([(0, 13, -23, 0, 0.0, 0.0), (0, 1, -23, 0, 2.0, 0.0)]))
    assert not matched(found([(0, 0.0, 0.0)]), partons, 1, PythiaProcess(settings=(), matched="parton"), 0.8).any()


def test_a_rule_without_its_number_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load((shipped("datasets") / "pythia_jets.yaml").read_text())
    del content["simulator"]["processes"]["top"]["decay_products"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match="decay_products must be given"):
        load_card(str(tmp_path / "mine.yaml"))


# jets


def test_jets_are_in_the_selected_window_and_ordered(jets: dict[str, PointClouds]) -> None:
    for name, clouds in jets.items():
        assert len(clouds) == 60 and set(clouds.labels) == {fast("pythia_jets").classes.index(name)}
        p = jet_momenta(clouds)
        pt = np.hypot(p["px"], p["py"])
        assert pt.min() > 499.9 and pt.max() < 1000.1
        assert np.abs(np.arctan2(p["py"], p["px"])).max() < 1e-4  # phi_rel is relative to the sum of constituents
        for points in clouds:
            assert np.all(np.diff(points[:, 0]) <= 0)


def test_quantities_of_the_jet_are_those_of_its_constituents(jets: dict[str, PointClouds]) -> None:
    for clouds in jets.values():
        p = jet_momenta(clouds)
        assert clouds.condition("jet_pt") == pytest.approx(np.hypot(p["px"], p["py"]), rel=1e-4)
        massless = np.sqrt(np.maximum(p["e"] ** 2 - p["px"] ** 2 - p["py"] ** 2 - p["pz"] ** 2, 0))
        assert np.all(clouds.condition("jet_mass") > massless - 0.05)
        assert np.median(clouds.condition("jet_mass") / massless) < 1.05
        assert np.abs(clouds.condition("jet_eta")).max() < 2 and np.ptp(clouds.condition("jet_phi")) > 4


def test_pid_and_charge_agree(jets: dict[str, PointClouds]) -> None:
    for clouds in jets.values():
        pid, charge = clouds.feature("pid").astype(int), clouds.feature("charge").astype(int)
        assert np.array_equal(pid <= 2, charge != 1)  # tracks, and only tracks, are charged
        assert np.bincount(pid, minlength=5)[[0, 3, 4]].min() > 60


def test_top_jets_have_the_top_mass_and_more_constituents(jets: dict[str, PointClouds]) -> None:
    assert 165 < np.median(jets["top"].condition("jet_mass")) < 190
    assert np.median(jets["qg"].condition("jet_mass")) < 120
    assert jets["top"].counts.mean() > jets["qg"].counts.mean()


def test_jets_follow_from_the_seed(jets: dict[str, PointClouds]) -> None:
    card = fast("pythia_jets")
    again, other = simulate_jets(card, "top", 10, seed=11), simulate_jets(card, "top", 10, seed=12)
    assert again.points.tobytes() == jets["top"].select(slice(0, 10)).points.tobytes()
    assert again.conditions.tobytes() == jets["top"].select(slice(0, 10)).conditions.tobytes()
    assert again.points.tobytes() != other.points.tobytes()


def test_ten_classes_have_the_masses_of_what_they_come_from(ten: dict[str, PointClouds]) -> None:
    assert load_card("pythia_jetclass").classes == TEN
    low_high = {"Hbb": (105, 140), "Hcc": (112, 140), "Hgg": (115, 140), "H4q": (115, 140), "Zqq": (85, 105)}
    low_high |= {"Wqq": (75, 92), "Tbqq": (165, 190), "QCD": (30, 110), "Hqql": (60, 120), "Tbl": (80, 165)}
    for position, (name, clouds) in enumerate(ten.items()):
        low, high = low_high[name]
        assert len(clouds) == 30 and set(clouds.labels) == {position}
        assert low < np.median(clouds.condition("jet_mass")) < high, name
    n = {name: clouds.counts.mean() for name, clouds in ten.items()}
    assert n["Hgg"] > n["Hbb"] and n["Tbqq"] > n["Wqq"] and n["H4q"] > n["Hqql"]


def test_leptonic_classes_hold_a_hard_lepton(ten: dict[str, PointClouds]) -> None:
    def hard_leptons(clouds: PointClouds) -> float:
        chosen = np.isin(clouds.feature("pid"), (1, 2)) & (clouds.feature("pt") > 20)
        return len(np.unique(clouds.owners[chosen])) / len(clouds)

    assert hard_leptons(ten["Hqql"]) > 0.7 and hard_leptons(ten["Tbl"]) > 0.7
    assert max(hard_leptons(ten[name]) for name in ("QCD", "Hgg", "H4q", "Wqq")) < 0.2


def test_heavy_flavour_is_displaced(ten: dict[str, PointClouds]) -> None:
    far = {name: np.mean(significance(clouds) > 3) for name, clouds in ten.items()}
    assert far["Hbb"] > 2 * far["Hcc"] > 2 * far["QCD"]
    assert min(far["Tbqq"], far["Tbl"]) > 1.5 * far["Wqq"]
    assert np.median(significance(ten["Hgg"])) == pytest.approx(0.67, abs=0.06)  # a Gaussian of its error


def test_only_tracks_have_impact_parameters(ten: dict[str, PointClouds]) -> None:
    clouds = PointClouds.concatenate(list(ten.values()))
    neutral = clouds.feature("charge") == 1
    for name in ("d0", "dz"):
        assert not clouds.feature(name)[neutral].any() and not clouds.feature(f"{name}_err")[neutral].any()
        assert clouds.feature(f"{name}_err")[~neutral].min() > 0
    card = load_card("pythia_jetclass")
    for feature in card.features:
        assert feature.range is None or np.mean(np.abs(clouds.feature(feature.name)) > feature.range[1]) < 1e-3


def test_without_a_detector_impact_parameters_are_exact() -> None:
    clouds = simulate_jets(with_simulator(fast("pythia_jetclass"), detector=False), "Hbb", 20, seed=4)
    assert not clouds.feature("d0_err").any() and not clouds.feature("dz_err").any()
    d0, charged = clouds.feature("d0"), clouds.feature("charge") != 1
    assert not d0[~charged].any()
    prompt = np.mean(np.abs(d0[charged]) < 1e-6)
    assert 0.2 < prompt < 0.9 and np.abs(d0).max() > 0.5  # the others come from the decays of b hadrons


def test_gluon_jets_have_more_constituents_than_quark_jets() -> None:
    clouds = {name: simulate_jets(fast("pythia_quark_gluon"), name, 60, seed=5) for name in ("quark", "gluon")}
    assert clouds["gluon"].counts.mean() > 1.25 * clouds["quark"].counts.mean()
    assert np.median(clouds["gluon"].condition("jet_mass")) > np.median(clouds["quark"].condition("jet_mass"))


def test_files_with_impact_parameters_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    card = fast("pythia_jetclass")
    card = card.model_copy(update={"classes": ("Hbb", "Wqq")})
    card = with_simulator(card, processes={name: card.simulator.processes[name] for name in card.classes})  # type: ignore[union-attr]
    files = [run_campaign(card, {"train": 6}, 7, tmp_path / str(n), n, shard_size=3)["train"] for n in (1, 2)]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_generators_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    simulate_jets(fast("pythia_jets"), "qg", 1, seed=1)
    assert capfd.readouterr().out == ""


def test_jet_mistakes_are_named() -> None:
    card = fast("pythia_jets")
    with pytest.raises(DataError, match="did you mean 'top'"):
        simulate_jets(card, "tpo", 1, 1)
    with pytest.raises(DataError, match="seeds from 1"):
        simulate_jets(card, "top", 1, 0)
    broken = card.simulator.processes | {  # type: ignore[union-attr]
        "qg": card.simulator.processes["qg"].model_copy(update={"settings": ("HardQDC:all = on",)})  # type: ignore[union-attr]
    }
    with pytest.raises(DataError, match="does not accept the setting 'HardQDC:all = on'"):
        simulate_jets(with_simulator(card, processes=broken), "qg", 1, 1)


def test_missing_generators_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythia8mc", None)
    with pytest.raises(DataError, match=r'pip install "foundation-hep\[simulate\]"'):
        simulate_jets(fast("pythia_jets"), "top", 1, 1)
