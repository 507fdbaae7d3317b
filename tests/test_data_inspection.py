"""`foundation data inspect`: which card fits, what is in the file, and whether the numbers are credible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_files import JETS, SHOWERS, card_of, jet_arrays, shower_arrays, write_arrays

from foundation.data.cards import DatasetCard
from foundation.data.files import write_point_clouds
from foundation.data.formats.reading import read_file
from foundation.data.inspect.inspection import inspect
from foundation.data.inspect.sanity import RULES, warnings
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError

CARDS = [card_of(SHOWERS), card_of(JETS)]


def test_the_card_that_fits_is_found_and_used(tmp_path: Path) -> None:
    found = inspect(write_arrays(tmp_path / "jets_1.h5", jet_arrays()), CARDS)
    assert (found.container, found.card) == ("hdf5", "small_jets")
    assert [(f.card, f.fits, f.name_fits) for f in found.fits] == [("small_jets", True, True)]
    assert "[40, 8, 4]" in found.arrays["constituents"]
    assert found.objects is not None and found.objects.looked_at == found.objects.in_file == 40
    assert set(found.objects.classes) == {"background", "signal"}
    real = jet_arrays()["constituents"][..., 3] != 0
    pt = jet_arrays()["constituents"][..., 0][real]
    look = found.features[0]
    assert (look.name, look.low, look.high) == ("pt", pt.min(), pt.max())
    assert look.median == pytest.approx(np.median(pt)) and (look.not_finite, look.outside) == (0, 0)
    assert not found.warnings


def test_showers_are_told_from_jets_by_their_keys(tmp_path: Path) -> None:
    found = inspect(write_arrays(tmp_path / "any.hdf5", shower_arrays()), CARDS)
    assert found.card == "small_showers" and not found.fits[0].name_fits and not found.warnings


def test_the_more_specific_card_and_the_fitting_name_come_first(tmp_path: Path) -> None:
    bare = {**JETS["format"], "objects": {}, "label": None}
    less = card_of(JETS, name="less", attributes=[], format=bare)
    other = card_of(JETS, name="other", files={"pattern": "other_*.h5"})
    path = write_arrays(tmp_path / "jets_1.h5", jet_arrays())
    assert [f.card for f in inspect(path, [less, other, card_of(JETS)]).fits] == ["small_jets", "less", "other"]


def test_near_misses_say_what_is_missing_or_has_another_shape(tmp_path: Path) -> None:
    arrays = jet_arrays()
    arrays["jet"] = arrays.pop("jets")
    found = inspect(write_arrays(tmp_path / "jets_1.h5", arrays), CARDS)
    assert found.card is None and not found.fits
    arrays = {**jet_arrays(), "constituents": np.zeros((40, 9, 4), np.float32)}
    (near,) = inspect(write_arrays(tmp_path / "jets_2.h5", arrays), CARDS).fits
    assert near.problems == ("'constituents' has 9 places, the card 8",)
    arrays = {**shower_arrays(), "showers": np.zeros((30, 25), np.float32)}
    (near,) = inspect(write_arrays(tmp_path / "showers_1.hdf5", arrays), CARDS).fits
    assert near.problems == ("'showers' has 25 voxels, the card's geometry 24",)
    arrays = shower_arrays()
    arrays["incident_energy"] = arrays.pop("incident_energies")
    (near,) = inspect(write_arrays(tmp_path / "showers_2.hdf5", arrays), CARDS).fits
    assert near.missing == ("no key 'incident_energies[0]' - did you mean 'incident_energy'?",)


def test_own_files_are_recognised_with_and_without_their_card(tmp_path: Path) -> None:
    card = card_of(JETS)
    clouds, _ = read_file(card, write_arrays(tmp_path / "jets_1.h5", jet_arrays()))
    write_point_clouds(tmp_path / "own.h5", clouds)
    known, unknown = inspect(tmp_path / "own.h5", [card]), inspect(tmp_path / "own.h5", [])
    assert (known.card, unknown.card) == ("small_jets", None)
    assert known.features == unknown.features and len(known.features) == 3
    assert known.container == "point clouds of this platform"
    write_point_clouds(tmp_path / "other.h5", replace(clouds, units=("MeV", "1", "rad")))
    assert "is in MeV" in inspect(tmp_path / "other.h5", [card]).warnings[0]


def test_a_file_whose_numbers_cannot_be_read_still_shows_its_arrays(tmp_path: Path) -> None:
    arrays = jet_arrays()
    arrays["jets"][0, 1] = 9
    found = inspect(write_arrays(tmp_path / "jets_1.h5", arrays), CARDS)
    assert found.arrays and not found.features and "no class of the card" in found.warnings[0]


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no data")
    (tmp_path / "empty.h5").write_bytes(b"")
    cut = write_arrays(tmp_path / "jets_1.h5", jet_arrays()).read_bytes()[:700]
    (tmp_path / "cut.h5").write_bytes(cut)
    for name in ("nowhere.h5", "text.txt", "empty.h5", "cut.h5", "."):
        with pytest.raises(DataError, match=str(tmp_path)) as caught:
            inspect(tmp_path / name, CARDS)
        assert "\n" not in str(caught.value)


# The table of rules: each with a right file, and wrong ones on both sides


def clouds_of(card: DatasetCard, **columns: float) -> PointClouds:
    """Three objects of ten equal points; names of objects begin with `jet_` or are incident_energy."""
    of_objects = {n: v for n, v in columns.items() if n.startswith("jet_") or n == "incident_energy"}
    features = {n: v for n, v in columns.items() if n not in of_objects}
    units = {"pt": "GeV", "energy": "MeV", "phi": "rad", "phi_rel": "rad", "jet_pt": "GeV", "incident_energy": "GeV"}
    return PointClouds(
        points=np.tile(np.array(list(features.values()), np.float32), (30, 1)),
        offsets=to_offsets(np.full(3, 10)),
        features=tuple(features),
        units=tuple(units.get(name, "1") for name in features),
        labels=np.zeros(3, np.int64),
        conditions=np.tile(np.array(list(of_objects.values()), np.float32), (3, 1)),
        condition_names=tuple(of_objects),
        condition_units=tuple(units.get(name, "1") for name in of_objects),
        tag=card.tag,
    )


JET, SHOWER = card_of(JETS), card_of(SHOWERS)
RIGHT = [
    (JET, {"pt": 60.0, "eta_rel": 0.3, "phi_rel": -0.3, "jet_pt": 600.0}),
    (JET, {"pt_rel": 0.09, "eta_rel": 2.7, "phi_rel": 3.1}),
    (JET, {"pt": 5.0, "phi": 6.28}),
    (SHOWER, {"energy": 100.0, "incident_energy": 50.0}),
    (SHOWER, {"energy": 4500.0, "incident_energy": 50.0}),
]
WRONG = [
    (JET, {"pt": 4000.0}, "median pT of the constituents", "MeV"),
    (JET, {"pt": 1e-4}, "median pT of the constituents", "TeV"),
    (JET, {"jet_pt": 600_000.0, "eta_rel": 0.0}, "median pT of the jets", "MeV"),
    (JET, {"jet_pt": 0.6, "eta_rel": 0.0}, "median pT of the jets", "TeV"),
    (JET, {"pt": 60.0, "jet_pt": 6.0}, "over the jet's pT", "different units"),
    (JET, {"pt": 0.06, "jet_pt": 600.0}, "over the jet's pT", "different units"),
    (JET, {"eta_rel": -7.0}, "|eta_rel|", "eta itself"),
    (JET, {"pt_rel": 60.0}, "sum of pt_rel", "pT itself"),
    (JET, {"pt_rel": 0.001}, "sum of pt_rel", "scaled"),
    (JET, {"phi": 90.0}, "largest angle", "degrees"),
    (SHOWER, {"phi": 90.0}, "largest angle", "degrees"),
    (SHOWER, {"energy": 100_000.0, "incident_energy": 50.0}, "over incident energy", "0.02 if the hits were in keV"),
    (SHOWER, {"energy": 0.1, "incident_energy": 50.0}, "over incident energy", "0.02 if the hits were in GeV"),
]


@pytest.mark.parametrize("card, columns", RIGHT)
def test_credible_numbers_give_no_warning(card: DatasetCard, columns: dict[str, float]) -> None:
    assert warnings(card, clouds_of(card, **columns)) == []


@pytest.mark.parametrize("card, columns, what, verdict", WRONG)
def test_numbers_that_are_not_credible_are_noticed(
    card: DatasetCard, columns: dict[str, float], what: str, verdict: str
) -> None:
    assert any(what in text and verdict in text for text in warnings(card, clouds_of(card, **columns)))


def test_every_rule_has_a_file_that_breaks_it() -> None:
    broken = {
        (card.domain, text.partition(" is ")[0])
        for card, c, *_ in WRONG
        for text in warnings(card, clouds_of(card, **c))
    }
    assert broken == {(rule.domain, rule.what) for rule in RULES}


def test_units_that_are_wrong_in_a_file_are_noticed(tmp_path: Path) -> None:
    arrays = jet_arrays()
    arrays["constituents"][..., 0] *= 1000
    arrays["jets"][:, 0] *= 1000
    assert any(
        "looks like MeV" in text for text in inspect(write_arrays(tmp_path / "jets_1.h5", arrays), CARDS).warnings
    )
    showers = shower_arrays()
    showers["showers"] /= 1000
    found = inspect(write_arrays(tmp_path / "showers_1.hdf5", showers), CARDS)
    assert any("if the hits were in GeV" in text for text in found.warnings)
