"""`foundation data check`: every kind of finding, from a file that has it; a good file has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from dataset_files import JETS, SHOWERS, card_of, jet_arrays, shower_arrays, write_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foundation.data.files import write_point_clouds
from foundation.data.formats.reading import read_file
from foundation.data.inspect.checking import CheckResult, CheckRow, check, object_hashes
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets

Arrays = dict[str, NDArray]


def jets_with(tmp_path: Path, change: Callable[[Arrays], object] = lambda a: None, **card: Any) -> CheckResult:
    arrays = jet_arrays()
    change(arrays)
    return check(card_of(JETS, **card), [write_arrays(tmp_path / "jets_1.h5", arrays)])


def showers_with(tmp_path: Path, change: Callable[[Arrays], object] = lambda a: None, **card: Any) -> CheckResult:
    arrays = shower_arrays()
    change(arrays)
    return check(card_of(SHOWERS, **card), [write_arrays(tmp_path / "showers_1.hdf5", arrays)])


def the(result: CheckResult, words: str) -> CheckRow:
    """The only row about something."""
    (row,) = [row for row in result.rows if words in row.check]
    return row


def put(key: str, index: Any, value: float) -> Callable[[Arrays], None]:
    """Something that changes a number of the arrays."""

    def change(arrays: Arrays) -> None:
        arrays[key][index] = value

    return change


def test_good_files_have_no_errors_and_no_warnings(tmp_path: Path) -> None:
    for result in (jets_with(tmp_path), showers_with(tmp_path)):
        assert {row.severity for row in result.rows} <= {"info"}
    assert result.lines()[-1] == "1 files, 30 objects: 0 errors, 0 warnings"


@pytest.mark.parametrize("value, words", [(np.nan, "NaN or infinite 'eta_rel'"), (np.inf, "NaN or infinite 'eta_rel'")])
def test_values_that_are_not_finite(tmp_path: Path, value: float, words: str) -> None:
    row = the(jets_with(tmp_path, put("constituents", (7, 1, 1), value)), words)
    assert (row.severity, row.count, row.of, row.example) == ("error", 1, 40, 7)


def test_negative_pt(tmp_path: Path) -> None:
    row = the(jets_with(tmp_path, put("constituents", (slice(5, 8), 2, 0), -1.0)), "negative 'pt'")
    assert (row.severity, row.count, row.example) == ("error", 3, 5)


def test_negative_voxels_are_found_one_by_one(tmp_path: Path) -> None:
    def change(arrays: Arrays) -> None:
        arrays["showers"][11, 3] = -1.0
        arrays["showers"][20, 4] = np.nan

    result = showers_with(tmp_path, change)
    rows = [row for row in result.rows if row.severity == "error"]
    assert sum(row.count for row in rows) == 2 and min(row.example for row in rows if row.example is not None) == 11
    assert result.objects == 30


def test_jets_of_nothing_are_errors_and_showers_of_nothing_are_not(tmp_path: Path) -> None:
    row = the(jets_with(tmp_path, put("constituents", 3, 0.0)), "no constituents")
    assert (row.severity, row.count, row.example) == ("error", 1, 3)
    row = the(showers_with(tmp_path, put("showers", 4, 0.0)), "no hits")
    assert (row.severity, row.count, row.example) == ("warning", 1, 4)


def test_features_and_conditions_out_of_range(tmp_path: Path) -> None:
    row = the(jets_with(tmp_path, put("constituents", (9, 0, 1), 2.5)), "'eta_rel' out of range")
    assert (row.severity, row.count, row.example) == ("warning", 1, 9)
    row = the(showers_with(tmp_path, put("incident_energies", (6, 0), 2e6)), "'incident_energy' out of range")
    assert (row.severity, row.count, row.example) == ("warning", 1, 6)


def test_cells_that_the_detector_has_not_are_errors(tmp_path: Path) -> None:
    features = [{**f, "range": [0, 1]} if f["name"] == "layer" else f for f in SHOWERS["features"]]
    row = the(showers_with(tmp_path, features=features), "'layer' out of range")
    assert row.severity == "error" and row.count > 0


def test_duplicates(tmp_path: Path) -> None:
    def change(arrays: Arrays) -> None:
        arrays["constituents"][[20, 31]] = arrays["constituents"][4]

    row = the(jets_with(tmp_path, change), "duplicate")
    assert (row.severity, row.count, row.example) == ("warning", 2, 20)


def test_another_order_is_told(tmp_path: Path) -> None:
    def change(arrays: Arrays) -> None:
        arrays["constituents"][12, [0, 1]] = arrays["constituents"][12, [1, 0]]

    row = the(jets_with(tmp_path, change), "order of the points")
    assert (row.severity, row.count) == ("info", 1)


def test_values_that_mean_none_and_objects_left_out_are_told(tmp_path: Path) -> None:
    form = {**JETS["format"], "conversions": {"eta_rel": {"missing": 0.0}}}
    pt = jet_arrays()["jets"][:, 0]
    result = jets_with(tmp_path, put("constituents", (2, 0, 1), 0.0), format=form, selection={"jet_pt": [0.0, 200.0]})
    assert the(result, "'eta_rel' is \"none\"").count == 1
    assert the(result, "outside the selection").count == int((pt > 200).sum()) > 0


def test_full_places_and_classes_are_told(tmp_path: Path) -> None:
    result = jets_with(tmp_path, put("constituents", (0, slice(None), slice(0, 4)), 1.0))
    assert the(result, "all places filled").count == 1
    shares = [the(result, f"class '{name}'").share for name in ("background", "signal")]
    assert sum(shares) == 1 and min(shares) > 0


def test_attributes_that_are_not_finite_and_units_that_are_wrong(tmp_path: Path) -> None:
    row = the(jets_with(tmp_path, put("jets", (13, 0), np.nan)), "'jet_pt'")
    assert (row.severity, row.count, row.example) == ("warning", 1, 13)

    def in_mev(arrays: Arrays) -> None:
        arrays["constituents"][..., 0] *= 1000
        arrays["jets"][:, 0] *= 1000

    rows = [row for row in jets_with(tmp_path, in_mev).rows if row.check == "units"]
    assert rows and all("MeV" in row.detail for row in rows)


def test_objects_without_class(tmp_path: Path) -> None:
    card = card_of(JETS)
    clouds, _ = read_file(card, write_arrays(tmp_path / "jets_1.h5", jet_arrays()))
    clouds.labels[:5] = -1
    write_point_clouds(tmp_path / "own.h5", clouds)
    row = the(check(card, [tmp_path / "own.h5"]), "no class")
    assert (row.severity, row.count) == ("warning", 5)


def test_arrays_of_different_lengths_missing_keys_and_empty_files(tmp_path: Path) -> None:
    def shorter(arrays: Arrays) -> None:
        arrays["jets"] = arrays["jets"][:-1]

    assert "39" in the(jets_with(tmp_path, shorter), "cannot be read").detail
    renamed = {**JETS["format"], "objects": {"jet_pt": "jet[0]"}}
    assert "did you mean 'jets'" in the(jets_with(tmp_path, format=renamed), "cannot be read").detail
    empty = write_arrays(tmp_path / "jets_2.h5", {k: a[:0] for k, a in jet_arrays().items()})
    assert the(check(card_of(JETS), [empty]), "no objects").severity == "error"


def test_a_file_that_cannot_be_read_does_not_stop_the_check(tmp_path: Path) -> None:
    good = write_arrays(tmp_path / "jets_1.h5", jet_arrays())
    cut = tmp_path / "jets_2.h5"
    cut.write_bytes(good.read_bytes()[:1500])
    result = check(card_of(JETS), [cut, tmp_path / "nowhere.h5", good])
    assert [row.file for row in result.rows if row.check == "file cannot be read"] == [
        str(cut), str(tmp_path / "nowhere.h5"),
    ]  # fmt: skip
    assert result.objects == 40 and result.number("error") == 2


def test_objects_with_broken_labels_are_counted(tmp_path: Path) -> None:
    def change(arrays: Arrays) -> None:
        arrays["jets"][[3, 17], 1] = 7

    row = the(jets_with(tmp_path, change), "objects cannot be read")
    assert (row.severity, row.count, row.example) == ("error", 2, 3)


def test_the_findings_for_machines(tmp_path: Path) -> None:
    result = jets_with(tmp_path, put("constituents", (7, 1, 1), np.nan))
    result.write_json(tmp_path / "out" / "found.json")
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert (found["card"], found["files"], found["objects"]) == ("small_jets", 1, 40)
    assert found["rows"][0]["severity"] == "error" and found["rows"][0]["share"] == 1 / 40
    assert not list(tmp_path.rglob("*.part"))


def clouds_of(objects: list[list[float]]) -> PointClouds:
    flat = np.array([value for values in objects for value in values], np.float32).reshape(-1, 1)
    return PointClouds(
        np.concatenate([flat, flat * 2], axis=1), to_offsets(np.array([len(o) for o in objects])), ("a", "b"),
        ("1", "1"), np.zeros(len(objects), np.int64), np.zeros((len(objects), 0), np.float32),
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3).map(float), max_size=4), min_size=1, max_size=12))
def test_hashes_are_equal_where_objects_are(objects: list[list[float]]) -> None:
    hashes = object_hashes(clouds_of(objects))
    for i, a in enumerate(objects):
        for j, b in enumerate(objects):
            assert (hashes[i] == hashes[j]) == (a == b)


def test_the_check_does_not_change_files(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "jets_1.h5", jet_arrays())
    before = path.read_bytes()
    check(card_of(JETS), [path])
    assert path.read_bytes() == before
    with h5py.File(path) as f:
        assert set(f) == {"constituents", "jets"}
