"""Showers in any layered geometry: GFlash against its formulas and constants, Geant4 with small tables."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.cards import Condition, DatasetCard, Feature, Geant4Showers, GFlashShowers, load_card
from foundation.data.geometry import CartesianGeometry, CylindricalGeometry, Geometry, LayerGroup, RingLayers
from foundation.data.point_clouds import PointClouds
from foundation.data.simulate.campaign import campaign_jobs, run_campaign
from foundation.data.simulate.geant4 import geant4_environment, geant4_showers
from foundation.data.simulate.gflash import showers_and_provenance, simulate_showers
from foundation.data.simulate.matter import MATERIALS, medium_of
from foundation.errors import DataError

TABLES = Path(__file__).parent / "data" / "geant4_em"
CRYSTALS = LayerGroup(repeat=10, active="PbWO4", active_mm=23.0)
PLATES = LayerGroup(repeat=12, absorber="W", absorber_mm=5.6, active="Si", active_mm=0.5)


def card_of(geometry: Geometry, simulator: GFlashShowers | Geant4Showers, **changes: object) -> DatasetCard:
    """A card of showers in this geometry, with indices of its axes and the energy as features."""
    indices = [Feature(name=name, unit="index", kind="integer", range=(0, 999)) for name in geometry.axes]
    settings: dict[str, object] = {
        "name": "showers",
        "title": "Showers",
        "domain": "shower",
        "tag": "showers",
        "licence": "none",
        "features": (*indices, Feature(name="energy", unit="MeV")),
        "order": geometry.axes,
        "conditions": (Condition(name="incident_energy", unit="GeV", range=(1.0, 100.0)),),
        "geometry": geometry,
        "simulator": simulator,
    }
    return DatasetCard.model_validate(settings | changes)


def gflash(**changes: object) -> GFlashShowers:
    return GFlashShowers.model_validate({"kind": "gflash", "energy_gev": (5.0, 50.0), "threshold_mev": 0.0} | changes)


def squares(*layers: LayerGroup, cells: int = 31, cell_mm: float = 5.0) -> CartesianGeometry:
    return CartesianGeometry(cells=cells, cell_mm=cell_mm, layers=layers)


def with_simulator(card: DatasetCard, **changes: object) -> DatasetCard:
    assert card.simulator is not None
    return card.model_copy(update={"simulator": card.simulator.model_copy(update=changes)})


def visible(clouds: PointClouds) -> np.ndarray:
    """Energy of all hits of each shower, MeV."""
    return np.bincount(clouds.owners, clouds.feature("energy").astype(float), len(clouds))


def mean(clouds: PointClouds, feature: str) -> float:
    """Mean of a feature over all hits, weighted with their energy."""
    return float(np.average(clouds.feature(feature), weights=clouds.feature("energy")))


# GFlash


def test_shipped_cards_keep_their_random_numbers() -> None:
    # The quickstart's figures stand and fall with them. Made with the first version of the simulator.
    clouds = simulate_showers(load_card("gflash_siw"), 5, 1)
    assert clouds.counts.tolist() == [130, 141, 77, 139, 98] and visible(clouds).sum() == pytest.approx(
        1590.81191324, rel=1e-6
    )
    clouds = simulate_showers(load_card("gflash_ild"), 5, 1)
    assert clouds.counts.tolist() == [1180, 1397, 644, 1486, 912] and visible(clouds).sum() == pytest.approx(
        7571.20666735, rel=1e-6
    )


def test_rings_see_what_squares_see() -> None:
    rings = load_card("gflash_par04")
    assert rings.geometry is not None
    layer = LayerGroup(repeat=45, pairs=2, absorber="W", absorber_mm=1.4, active="Si", active_mm=0.3)
    assert rings.simulator is not None
    energies = np.full(60, 20.0)
    a = simulate_showers(rings, 60, 3, energies)
    b = simulate_showers(card_of(squares(layer), rings.simulator), 60, 4, energies)  # type: ignore[arg-type]
    assert a.features == ("layer", "alpha", "r", "energy")
    assert visible(a).mean() == pytest.approx(visible(b).mean(), rel=0.02)
    assert mean(a, "layer") == pytest.approx(mean(b, "layer"), rel=0.05)
    per_sector = np.bincount(a.feature("alpha").astype(int), a.feature("energy"), 16)
    assert per_sector.max() < 1.1 * per_sector.min()
    x, y = rings.geometry.centres_mm({name: a.feature(name) for name in rings.geometry.axes})
    assert np.average(np.hypot(x, y), weights=a.feature("energy")) < 6.0


def test_pairs_of_plates_read_out_together_are_one_layer() -> None:
    halves = LayerGroup(repeat=3, pairs=2, absorber="W", absorber_mm=1.4, active="Si", active_mm=0.3, gap_mm=1.0)
    whole = LayerGroup(repeat=3, absorber="W", absorber_mm=2.8, active="Si", active_mm=0.6, gap_mm=2.0)
    fine, coarse = medium_of(squares(halves)), medium_of(squares(whole))
    assert fine.layer_edges_x0 == pytest.approx(coarse.layer_edges_x0)
    assert fine.sampling_fractions == pytest.approx(coarse.sampling_fractions)
    assert fine.sampling_frequency == pytest.approx(2 * coarse.sampling_frequency)
    assert fine.layer_depths_mm[0] == pytest.approx((1.55 + 4.25) / 2) and coarse.layer_depths_mm[1] == 5.4 + 3.1


@pytest.mark.parametrize(
    ("name", "x0", "loss"), [("PbWO4", 7.39, 1.229), ("CsI", 8.39, 1.243), ("polystyrene", 43.79, 1.936)]
)
def test_compounds_have_the_values_of_the_particle_data_group(name: str, x0: float, loss: float) -> None:
    assert MATERIALS[name].radiation_length == pytest.approx(x0, rel=0.01)
    assert MATERIALS[name].minimum_loss == pytest.approx(loss, rel=0.02)


def test_a_homogeneous_calorimeter_sees_everything() -> None:
    card = load_card("gflash_pbwo4")
    assert card.geometry is not None
    medium = medium_of(card.geometry)
    assert medium.homogeneous and medium.moliere_radius_mm == pytest.approx(19.6, rel=0.08)
    assert medium.critical_energy_mev == pytest.approx(9.6, rel=0.08) and set(medium.sampling_fractions) == {1.0}
    for gev in (5.0, 40.0):
        clouds = simulate_showers(with_simulator(card, particle="electron"), 100, 2, np.full(100, gev))
        response = visible(clouds) / 1000 / gev
        assert 0.95 < response.mean() < 1.0 and response.max() <= 1 + 1e-6 and response.std() < 0.02
        # The maximum of the mean profile lies at ln y - 0.812 radiation lengths.
        profile = np.bincount(clouds.feature("layer").astype(int), clouds.feature("energy"), 10)
        depth_x0 = (profile.argmax() + 0.5) * 2.59
        assert depth_x0 == pytest.approx(np.log(1000 * gev / medium.critical_energy_mev) - 0.812, abs=2.0)
    blurred = simulate_showers(with_simulator(card, sampling_resolution=0.1), 200, 2, np.full(200, 25.0))
    assert (visible(blurred) / 25000).std() == pytest.approx(0.1 / 5, rel=0.4)


def test_sampling_fluctuations_can_be_switched_off() -> None:
    card, energies = load_card("gflash_siw"), np.full(100, 20.0)
    card = with_simulator(card, particle="electron", threshold_mev=0.0)
    on, off = (
        visible(simulate_showers(with_simulator(card, sampling_fluctuations=flag), 100, 1, energies))
        for flag in (True, False)
    )
    assert on.mean() == pytest.approx(off.mean(), rel=0.02)
    assert on.std() / on.mean() == pytest.approx(0.2 / np.sqrt(20), rel=0.3) and off.std() < on.std() / 3


def test_leaning_showers_move_sideways_and_end_earlier() -> None:
    geometry = squares(LayerGroup(repeat=30, absorber="W", absorber_mm=2.1, active="Si", active_mm=0.5, gap_mm=3.0))
    conditions = [{"name": "theta", "unit": unit, "range": (0, 90)} for unit in ("deg", "rad")]
    straight = simulate_showers(card_of(geometry, gflash()), 60, 1, np.full(60, 30.0))
    leaning = card_of(geometry, gflash(theta_deg=(30.0, 30.0)), conditions=conditions[:1])
    clouds = simulate_showers(leaning, 60, 1, np.full(60, 30.0))
    assert clouds.condition("theta") == pytest.approx(30.0)
    assert mean(clouds, "layer") == pytest.approx(np.cos(np.pi / 6) * mean(straight, "layer"), rel=0.08)
    assert mean(clouds, "y") == pytest.approx(15.0, abs=0.1)
    energy, layer = clouds.feature("energy"), clouds.feature("layer")
    for at in (5, 15):
        x = (np.average(clouds.feature("x")[layer == at], weights=energy[layer == at]) - 15) * 5.0
        assert x == pytest.approx((at * 5.6 + 2.35) * np.tan(np.pi / 6), abs=1.5)
    spread = simulate_showers(
        card_of(geometry, gflash(theta_deg=(10.0, 40.0)), conditions=conditions[1:]), 50, 1
    ).condition("theta")
    assert np.deg2rad(10) <= spread.min() < 0.3 and 0.55 < spread.max() <= np.deg2rad(40)


def test_classes_are_particles_and_units_those_of_the_card() -> None:
    particles = {"gamma": "photon", "e": "electron"}
    card = card_of(
        squares(PLATES),
        gflash(particles=particles),
        classes=("gamma", "e"),
        features=(
            Feature(name="layer", kind="integer", range=(0, 11)),
            Feature(name="energy", unit="GeV"),
        ),
        order=(),
        conditions=(Condition(name="incident_energy", unit="MeV", range=(1.0, 1e5)),),
    )
    jobs = campaign_jobs(card, {"train": 4}, 1, Path("nowhere"), 10)["train"]
    assert [(job.class_name, job.count) for job in jobs] == [("gamma", 2), ("e", 2)]
    both = [showers_and_provenance(card, 60, 1, np.full(60, 20.0), name)[0] for name in ("gamma", "e")]
    assert [set(clouds.labels) for clouds in both] == [{0}, {1}]
    assert mean(both[0], "layer") > mean(both[1], "layer") + 0.3
    assert both[0].condition("incident_energy") == pytest.approx(20_000.0)
    assert 0.1 < visible(both[1]).mean() < 0.4  # GeV, 1 % of 20 GeV
    with pytest.raises(DataError, match="no class 'gama' - did you mean 'gamma'"):
        showers_and_provenance(card, 1, 1, class_name="gama")
    with pytest.raises(ValueError, match="one entry per class"):
        card_of(squares(PLATES), gflash(), classes=("gamma", "e"))


def test_matter_that_cannot_be_simulated_is_named() -> None:
    for layers, message in (
        ((PLATES, LayerGroup()), "entry 1 of the geometry's layers names no active material"),
        ((PLATES, CRYSTALS), "entry 1 of the geometry's layers has no absorber but others have"),
        ((LayerGroup(active="PbWO3", active_mm=1.0),), "material 'PbWO3' - did you mean 'PbWO4'"),
    ):
        with pytest.raises(DataError, match=message):
            medium_of(squares(*layers))
    with pytest.raises(ValueError, match="positive energies"):
        gflash(energy_gev=(5.0, 1.0))
    with pytest.raises(ValueError, match="80 degrees"):
        gflash(theta_deg=(10.0, 90.0))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Sampling or homogeneous calorimeters of squares or rings, every layer group different."""
    homogeneous = draw(st.booleans())
    matter: list[dict[str, object]] = []
    for _ in range(draw(st.integers(1, 3))):
        active = draw(st.sampled_from(["PbWO4", "CsI"] if homogeneous else ["Si", "LAr", "polystyrene"]))
        group: dict[str, object] = {
            "repeat": draw(st.integers(1, 6)),
            "active": active,
            "active_mm": draw(st.floats(0.3, 9)),
        }
        if not homogeneous:
            group |= {"absorber": draw(st.sampled_from(["W", "Pb", "Cu"])), "absorber_mm": draw(st.floats(1, 6))}
        matter.append(group)
    if draw(st.booleans()):
        return CartesianGeometry(cells=draw(st.integers(1, 12)), cell_mm=30.0, layers=[LayerGroup(**g) for g in matter])
    edges = (0.0, *np.cumsum(draw(st.lists(st.floats(5, 50), min_size=1, max_size=5))))
    sectors = draw(st.lists(st.integers(1, 8), min_size=3, max_size=3))
    rings = [RingLayers(**g, r_edges_mm=edges, alpha_bins=n) for g, n in zip(matter, sectors, strict=False)]
    return CylindricalGeometry(kind="cylindrical", layers=rings)


@settings(max_examples=25, deadline=None)
@given(geometries(), st.integers(1, 2**31))
def test_hits_lie_in_the_geometry_and_energy_is_not_made(geometry: Geometry, seed: int) -> None:
    card = card_of(geometry, gflash(particle="electron", sampling_fluctuations=False, theta_deg=(0.0, 20.0)))
    clouds = simulate_showers(card, 4, seed, np.full(4, 20.0))
    coordinates = {name: clouds.feature(name).astype(np.int64) for name in geometry.axes}
    numbers = geometry.numbers(coordinates)
    assert numbers.min() >= 0 and clouds.counts.min() > 0
    assert all(np.array_equal(v, coordinates[k]) for k, v in geometry.coordinates(numbers).items())
    assert all(len(set(n)) == len(n) for n in np.split(numbers, clouds.offsets[1:-1]))
    assert visible(clouds).max() <= 20_000 * medium_of(geometry).sampling_fractions.max() * (1 + 1e-6)


# Geant4

needs_geant4 = pytest.mark.skipif(
    importlib.util.find_spec("geant4_pybind") is None, reason="geant4-pybind is not installed (extra geant4)"
)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The small tables of this repository instead of whatever Geant4 data there are."""
    for name in ("G4LEDATA", "G4ENSDFSTATEDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GEANT4_DATA_DIR", str(TABLES))


def geant4(**changes: object) -> Geant4Showers:
    given = {"kind": "geant4", "energy_gev": (1.0, 2.0), "threshold_mev": 0.0}
    return Geant4Showers.model_validate(given | changes)


@needs_geant4
@pytest.mark.usefixtures("data")
def test_geant4_sees_three_per_cent_in_the_silicon_of_par04() -> None:
    card = load_card("geant4_par04")
    clouds, provenance = geant4_showers(card, 8, 5, np.full(8, 4.0))
    assert visible(clouds).mean() / 4000 == pytest.approx(0.032, rel=0.06)
    assert (
        clouds.features == ("layer", "alpha", "r", "energy")
        and clouds.condition("incident_energy").tolist() == [4.0] * 8
    )
    profile = np.bincount(clouds.feature("layer").astype(int), clouds.feature("energy"), 45)
    assert 5 <= profile.argmax() <= 12 and profile[30:].sum() < 0.05 * profile.sum()
    assert mean(clouds, "r") < 2 and clouds.feature("energy").min() >= np.float32(0.0005)
    assert provenance["data"] == {"G4LEDATA": "G4EMLOW0.0-generated", "G4ENSDFSTATEDATA": "G4ENSDFSTATE0.0-generated"}


@needs_geant4
@pytest.mark.usefixtures("data")
def test_geant4_conserves_energy_in_a_homogeneous_block() -> None:
    block = squares(LayerGroup(repeat=40, active="W", active_mm=4.0), cells=40, cell_mm=10.0)
    clouds, _ = geant4_showers(card_of(block, geant4(particle="photon")), 6, 5, np.full(6, 2.0))
    response = visible(clouds) / 2000
    assert response.mean() == pytest.approx(0.997, abs=0.005) and response.max() <= 1.0005


@needs_geant4
@pytest.mark.usefixtures("data")
def test_geant4_particles_lean_towards_x() -> None:
    geometry = squares(LayerGroup(repeat=10, absorber="W", absorber_mm=3.5, active="Si", active_mm=0.5, gap_mm=4.0))
    clouds, _ = geant4_showers(card_of(geometry, geant4(theta_deg=(30.0, 30.0), energy_gev=(2.0, 3.0))), 8, 3)
    here = clouds.feature("layer") == 4
    x, y = (np.average(clouds.feature(v)[here], weights=clouds.feature("energy")[here]) for v in ("x", "y"))
    assert (x - 15) * 5 == pytest.approx((4 * 8 + 3.75) * np.tan(np.pi / 6), abs=5.0) and abs(y - 15) < 1.0
    assert clouds.condition("incident_energy").min() >= 2.0 and clouds.condition("incident_energy").max() <= 3.0


@pytest.mark.slow
@needs_geant4
@pytest.mark.usefixtures("data")
def test_geant4_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    card = with_simulator(load_card("geant4_par04"), energy_gev=(1.0, 1.5))
    files = [run_campaign(card, {"train": 4}, 7, tmp_path / str(n), n, shard_size=2)["train"] for n in (1, 2)]
    one, two = ([hashlib.sha256(path.read_bytes()).hexdigest() for path in of] for of in files)
    assert one == two and len(set(one)) == 2


@needs_geant4
@pytest.mark.usefixtures("data")
def test_geant4_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(message: str, layer: LayerGroup = PLATES, **changes: object) -> None:
        with pytest.raises(DataError, match=message):
            geant4_showers(card_of(squares(layer), geant4(**changes)), 1, 1)

    broken("did you mean 'emstandard_opt1'", physics="emstandard_op1")
    broken("only photon, electron, positron interact", particle="pi+")
    broken(
        "material 'Plumb' .*Geant4's own names begin",
        LayerGroup(absorber="Plumb", absorber_mm=1, active="Si", active_mm=1),
    )
    broken(
        "does not know the material 'G4_Plumb'",
        LayerGroup(absorber="G4_Plumb", absorber_mm=1, active="Si", active_mm=1),
    )
    # Geant4 aborts its process; what it printed is kept.
    broken("Geant4 stopped in G4Seltzer.*br82", LayerGroup(absorber="Pb", absorber_mm=1, active="Si", active_mm=1))
    monkeypatch.setattr("foundation.data.simulate.geant4.MAX_ROUNDS", 2)
    broken("no hit above 90000.0 MeV in 2 attempts", threshold_mev=9e4)
    monkeypatch.delenv("GEANT4_DATA_DIR")
    broken(r"set G4LEDATA \(G4EMLOW, now not set\), G4ENSDFSTATEDATA")
    with pytest.raises(DataError, match="no geant4 simulator"):
        geant4_showers(load_card("gflash_siw"), 1, 1)


def test_geant4_data_are_found_where_they_are(tmp_path: Path) -> None:
    for name in ("home/.geant4_pybind/G4EMLOW8.7", "home/.geant4_pybind/G4EMLOW8.8", "states"):
        (tmp_path / name).mkdir(parents=True)
    given = {"HOME": str(tmp_path / "home"), "G4ENSDFSTATEDATA": str(tmp_path / "states"), "CI": "true"}
    found = geant4_environment(given, "emstandard", tmp_path)
    assert found["G4LEDATA"].endswith("G4EMLOW8.8") and found["G4ENSDFSTATEDATA"] == given["G4ENSDFSTATEDATA"]
    assert found["G4ABLADATA"] == str(tmp_path) and "CI" not in found  # with CI geant4_pybind would download
    with pytest.raises(DataError, match="G4PARTICLEXSDATA"):
        geant4_environment(given, "FTFP_BERT", tmp_path)
    with pytest.raises(DataError, match="now /no/where"):
        geant4_environment(given | {"G4LEDATA": "/no/where"}, "emstandard", tmp_path)
