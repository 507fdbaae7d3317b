"""File containers: what is written is read back, ranges are parts of the whole, mistakes are named."""

from __future__ import annotations

import itertools
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import showerdata
import uproot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.data.formats.containers.opening import container_of, open_source
from foundation.data.formats.containers.root import entries_of, trees_of
from foundation.data.formats.containers.source import Array, Ragged
from foundation.data.formats.containers.writing import ArrayWriter, write_arrays
from foundation.errors import DataError

from container_files import KINDS, LENGTHS, equal, joined, read, sample, settings_of, vectors, write

DATA = Path(__file__).parent / "data"

# Writing and reading back


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_in_parts_is_read_back(kind: str, tmp_path: Path) -> None:
    path, arrays = tmp_path / "file", sample(kind)
    write(kind, path, [arrays, arrays])
    assert os.listdir(tmp_path) == ["file"]
    assert container_of(path) == settings_of(kind)["container"]
    got = read(kind, path, list(arrays))
    for key, array in arrays.items():
        assert equal(got[key], joined([array, array])), key


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_is_a_part_of_the_whole(kind: str, tmp_path: Path) -> None:
    path, arrays = tmp_path / "file", sample(kind)
    write(kind, path, [arrays, arrays, arrays])
    whole = {key: joined([array] * 3) for key, array in arrays.items()}
    with open_source(path, *(settings_of(kind)[s] for s in ("container", "tree"))) as source:  # type: ignore[arg-type]
        # Forward in uneven steps over the borders of the parts, back, twice the same, nothing, and the very end.
        for start, stop in [(0, 5), (5, 5), (5, 17), (17, 30), (2, 3), (2, 3), (3, 36), (36, 36), (0, 36), (35, 36)]:
            for key, array in source.read(list(arrays), start, stop).items():
                assert equal(array, entries_of(whole[key], start, stop)), (key, start, stop)
        for keys in (list(arrays)[:1], list(arrays)[-2:]):
            for key, array in source.read(keys, 7, 20).items():
                assert equal(array, entries_of(whole[key], 7, 20)), key


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=3),
    cuts=st.lists(st.floats(0, 1), max_size=4),
)
@pytest.mark.parametrize("kind", KINDS)
def test_any_lengths_and_any_ranges(kind: str, parts: list[list[int]], cuts: list[float], tmp_path: Path) -> None:
    path = tmp_path / "file"
    written = [sample(kind, lengths) for lengths in parts]
    write(kind, path, written)
    total = sum(map(len, parts))
    got = read(kind, path, list(written[0]), [0, *sorted(round(cut * total) for cut in cuts), total])
    for key in written[0]:
        assert equal(got[key], joined([arrays[key] for arrays in written])), key


def test_attributes_are_kept(tmp_path: Path) -> None:
    for kind in KINDS:
        write_arrays(tmp_path / kind, arrays=sample(kind), attributes={"made_by": "a test"}, **settings_of(kind))  # type: ignore[arg-type]
    for kind in ("hdf5", "showerdata"):
        with h5py.File(tmp_path / kind) as file:
            assert file.attrs["made_by"] == "a test"
    assert pq.read_schema(tmp_path / "parquet").metadata[b"made_by"] == b"a test"
    assert str(np.load(tmp_path / "npz")["made_by"]) == "a test"
    with uproot.open(tmp_path / "root") as file:
        assert str(file["made_by"]) == "a test"


# What the field's own tools find in our files, and we in theirs


def test_uproot_reads_our_root_files_like_jetclass(tmp_path: Path) -> None:
    arrays = sample("root")
    write("root", tmp_path / "tree.root", [arrays])
    write("rntuple", tmp_path / "ntuple.root", [arrays])
    for name in ("tree.root", "ntuple.root"):
        with uproot.open(tmp_path / name) as file:
            lists = file["tree"]["part_px"].array().to_list()
            kind = file["tree"]["part_px"].typename
        assert [len(row) for row in lists] == LENGTHS
        assert list(itertools.chain(*lists)) == arrays["part_px"].values.tolist()  # type: ignore[union-attr]
        assert kind == ("float[]" if name == "tree.root" else "std::vector<float>")


def test_showerdata_reads_our_files(tmp_path: Path) -> None:
    arrays = sample("showerdata")
    write("showerdata", tmp_path / "showers.h5", [arrays, arrays])
    showers = showerdata.load(tmp_path / "showers.h5")
    assert showers.points.shape == (2 * len(LENGTHS), max(LENGTHS), 5)
    assert np.array_equal((showers.points[:, :, 3] > 0).sum(axis=1), LENGTHS * 2)
    assert np.array_equal(showers.energies, np.concatenate([arrays["energies"]] * 2))  # type: ignore[list-item]


def test_showerdata_takes_padded_showers_and_counts_what_is_not_given(tmp_path: Path) -> None:
    points = np.zeros((3, 4, 4), np.float32)
    points[0, :2], points[2, :4] = 1.5, 2.5
    points[2, 1, 3] = 0.0
    arrays: dict[str, Array] = {"showers": points, "energies": np.ones(3, np.float32), "pdg": np.full(3, 11)}
    write("showerdata", tmp_path / "showers.h5", [arrays, {**arrays, "showers": points[:, :4]}])
    got = read("showerdata", tmp_path / "showers.h5", ["showers", "num_points", "shower_ids", "directions[2]"])
    assert got["num_points"].tolist() == [2, 0, 4] * 2  # type: ignore[union-attr]
    assert got["shower_ids"].tolist() == list(range(6))  # type: ignore[union-attr]
    assert got["directions[2]"].tolist() == [1.0] * 6  # type: ignore[union-attr]
    assert equal(got["showers"].values[:8], points[0, :2].reshape(-1))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["JetClassII_example.root", "JetClassII_example.parquet"])
def test_a_real_jetclass2_file(name: str) -> None:
    kind = container_of(DATA / name)
    assert kind is not None
    got = read(kind, DATA / name, ["part_px", "part_py", "part_isMuon", "part_charge", "jet_pt", "jet_nparticles"])
    px, py = got["part_px"], got["part_py"]
    assert isinstance(px, Ragged) and isinstance(py, Ragged)
    assert equal(px.counts, got["jet_nparticles"].astype(np.int64))  # type: ignore[union-attr]
    owner = np.repeat(np.arange(100), px.counts)
    pt = np.hypot(np.bincount(owner, px.values), np.bincount(owner, py.values))
    np.testing.assert_allclose(pt, got["jet_pt"], rtol=1e-5)  # type: ignore[arg-type]
    assert got["part_isMuon"].values.dtype == bool and got["part_charge"].values.dtype == np.int32  # type: ignore[union-attr]


def test_real_jetclass2_files_of_both_kinds_hold_the_same() -> None:
    with open_source(DATA / "JetClassII_example.parquet", "parquet") as parquet:
        with open_source(DATA / "JetClassII_example.root", "root", "tree") as root:
            assert set(parquet.keys) == set(root.keys)
            a, b = (source.read(parquet.keys, 13, 57) for source in (parquet, root))
    assert all(equal(a[key], b[key]) for key in a)


def test_a_real_caloclouds_file() -> None:
    path = DATA / "ild_photons_caloclouds3.hdf5"
    got = read("hdf5", path, ["events", "energy[0]", "p_norm_local[2,:]"])
    with h5py.File(path) as file:
        assert equal(got["events"], file["events"][:])
        assert equal(got["energy[0]"], file["energy"][:, 0])
        assert equal(got["p_norm_local[2,:]"], file["p_norm_local"][2])


def test_tables_and_groups_of_hdf5(tmp_path: Path) -> None:
    table = np.zeros(9, [("index", "<i8"), ("values_block_0", "<f4", (8,)), ("values_block_1", "<i8", (2,))])
    table["values_block_0"] = np.arange(72).reshape(9, 8)
    with h5py.File(tmp_path / "top.h5", "w") as file:
        file["table/table"] = table
        file["30x30/layers"] = np.arange(72, dtype=">f4").reshape(9, 2, 2, 2)
        file["30x30/name"] = "text"
        file["away"] = h5py.ExternalLink("/etc/passwd", "/")
    keys = ["table/table/values_block_0", "table/table/values_block_1[1]", "30x30/layers"]
    got = read("hdf5", tmp_path / "top.h5", keys)
    assert equal(got[keys[0]], table["values_block_0"])
    assert equal(got[keys[1]], table["values_block_1"][:, 1])
    assert equal(got[keys[2]], np.arange(72, dtype=np.float32).reshape(9, 2, 2, 2))
    with open_source(tmp_path / "top.h5", "hdf5") as source:
        assert "away" not in source.keys and "float32 [9, 2, 2, 2]" == source.describe()["30x30/layers"]


def test_columns_and_rows_are_joined_when_written(tmp_path: Path) -> None:
    a, b = np.arange(4.0), np.arange(4, 8.0)
    arrays: dict[str, Array] = {"jet[0]": a, "jet[1]": b, "p[0,:]": a, "p[1,:]": b}
    write("hdf5", tmp_path / "file", [arrays, arrays])
    got = read("hdf5", tmp_path / "file", [*arrays, "jet"])
    assert all(equal(got[key], np.concatenate([array, array])) for key, array in arrays.items())  # type: ignore[list-item]
    with h5py.File(tmp_path / "file") as file:
        assert file["jet"].shape == (8, 2) and file["p"].shape == (2, 8)
        assert file["jet"].compression == "gzip" and file["jet"].fletcher32


def test_parquet_rows_that_begin_inside_a_group(tmp_path: Path) -> None:
    lists = [[float(i)] * (i % 4) for i in range(30)]
    large = pa.array(lists, pa.large_list(pa.field("item", pa.float32(), nullable=False)))
    fixed = pa.array([[i, i] for i in range(30)], pa.list_(pa.int16(), 2))
    table = pa.table({"a": large, "b": fixed, "c": pa.array(np.arange(30) % 2 == 0)})
    pq.write_table(table, tmp_path / "file", row_group_size=7)
    with open_source(tmp_path / "file", "parquet") as source:
        for start, stop in [(5, 9), (9, 21), (21, 22), (6, 8), (0, 30), (28, 30)]:
            got = source.read(["b", "a", "c"], start, stop)
            assert got["a"].counts.tolist() == [i % 4 for i in range(start, stop)]  # type: ignore[union-attr]
            assert got["a"].values.tolist() == list(itertools.chain(*lists[start:stop]))  # type: ignore[union-attr]
            assert got["b"].tolist() == [[i, i] for i in range(start, stop)]  # type: ignore[union-attr]
            assert got["c"].tolist() == [i % 2 == 0 for i in range(start, stop)]  # type: ignore[union-attr]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_in_order_costs_one_pass(save: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.arange(6000, dtype=">f8").reshape(50, 30, 4), np.arange(50)
    save(tmp_path / "jets.npz", X=x, y=y)  # type: ignore[operator]
    opened: list[str] = []
    original = zipfile.ZipFile.open
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda self, name, *a, **k: opened.append(name) or original(self, name, *a, **k)
    )
    with open_source(tmp_path / "jets.npz", "npz") as source:
        for start in range(0, 50, 5):
            got = source.read(["X", "y", "X[3]"], start, start + 5)
            assert np.array_equal(got["X"], x[start : start + 5]) and np.array_equal(got["y"], y[start : start + 5])  # type: ignore[arg-type]
            assert np.array_equal(got["X[3]"], x[start : start + 5, 3])  # type: ignore[arg-type]
        assert sorted(opened) == ["X.npy", "X.npy", "y.npy", "y.npy"]  # once for the header, once for the numbers
        assert np.array_equal(source.read(["y"], 3, 9)["y"], y[3:9])  # type: ignore[arg-type]


def test_baskets_are_unpacked_once_for_ranges_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with uproot.recreate(tmp_path / "jets.root") as file:
        tree = file.mktree("tree", {"x": "float32"})
        for part in range(3):
            tree.extend({"x": np.arange(100.0, dtype=np.float32) + 100 * part})
    with open_source(tmp_path / "jets.root", "root") as source:
        source.keys, source.entries(["x"])
        asked: list[tuple[int, int]] = []
        original = type(source)._arrays  # type: ignore[attr-defined]
        monkeypatch.setattr(
            type(source), "_arrays", lambda self, names, a, b: asked.append((a, b)) or original(self, names, a, b)
        )
        for start in range(0, 300, 30):
            assert source.read(["x"], start, start + 30)["x"].tolist() == list(range(start, start + 30))  # type: ignore[union-attr]
    assert asked == [(0, 100), (100, 200), (200, 300)]


# Mistakes of users


def test_errors_name_file_key_and_the_nearest_name(tmp_path: Path) -> None:
    for kind in KINDS:
        arrays = sample(kind)
        path = tmp_path / f"{kind}_file"
        write(kind, path, [arrays])
        key = next(iter(arrays))
        with open_source(path, *(settings_of(kind)[s] for s in ("container", "tree"))) as source:  # type: ignore[arg-type]
            with pytest.raises(DataError, match=rf"{kind}_file: has no '{key}s'.* did you mean '{key}'"):
                source.read([f"{key}s"], 0, 1)
            with pytest.raises(DataError, match="entries 5 to 13 are asked for, but there are 12"):
                source.read([key], 5, 13)
            with pytest.raises(DataError, match="no keys"):
                source.entries([])
        with pytest.raises(DataError, match=r"does_not_exist: no such file"):
            open_source(tmp_path / "does_not_exist", str(settings_of(kind)["container"]))
        (tmp_path / "empty").touch()
        with pytest.raises(DataError, match="empty: is empty"):
            open_source(tmp_path / "empty", str(settings_of(kind)["container"]))
        other = "npz" if kind != "npz" else "root"
        with pytest.raises(DataError, match=f"is not a {other} file, it is {settings_of(kind)['container']}"):
            open_source(path, other)
    with pytest.raises(DataError, match="no container 'hdf6' - did you mean 'hdf5'"):
        open_source(path, "hdf6")


def test_arrays_of_different_lengths(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["PFCands"], file["jet_kinematics"] = np.zeros((100, 3, 2)), np.zeros((99, 4))
    with open_source(tmp_path / "a.h5", "hdf5") as source:
        with pytest.raises(DataError, match="PFCands has 100 entries but jet_kinematics has 99"):
            source.read(["PFCands", "jet_kinematics"], 0, 10)
        with pytest.raises(DataError, match="'jet_kinematics' has 4 columns, from 0"):
            source.entries(["jet_kinematics[4]"])
        with pytest.raises(DataError, match="'jet_kinematics' has 99 rows, from 0"):
            source.entries(["jet_kinematics[99,:]"])
    with pytest.raises(DataError, match="a.npz: x has 3 entries but y has 4"):
        write_arrays(tmp_path / "a.npz", "npz", {"x": np.zeros(3), "y": np.zeros(4)})


def test_another_tree(tmp_path: Path) -> None:
    with uproot.recreate(tmp_path / "two.root") as file:
        file["Events"] = {"x": np.arange(3)}
        file["Runs"] = {"y": np.arange(2)}
    assert trees_of(tmp_path / "two.root") == ("Events", "Runs")
    with pytest.raises(DataError, match="two.root: has no tree 'Event' - did you mean 'Events'"):
        open_source(tmp_path / "two.root", "root", "Event")
    with pytest.raises(DataError, match="has 2 trees; say which one"):
        open_source(tmp_path / "two.root", "root")


def test_what_is_not_numbers_is_described_and_refused(tmp_path: Path) -> None:
    words = np.asarray(["a", "b"], object)
    np.savez(tmp_path / "a.npz", objects=words, text=words.astype(str), one=np.float64(3), f=np.ones((2, 3), order="F"))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["text"], file["one"] = ["a", "b"], 3.0
    pq.write_table(
        pa.table({"text": ["a", "b"], "holes": [1.0, None], "in_list": [[1], [None]]}), tmp_path / "a.parquet"
    )
    with uproot.recreate(tmp_path / "a.root") as file:
        file["tree"] = {"text": ["a", "b"]}
    for name, key, message in [
        ("a.npz", "objects", "Python objects are never read"),
        ("a.npz", "text", "does not hold numbers"),
        ("a.npz", "one", "without entries"),
        ("a.npz", "f", "ascontiguousarray"),
        ("a.h5", "text", "Python objects are never read"),
        ("a.h5", "one", "without entries"),
        ("a.parquet", "text", "only numbers"),
        ("a.parquet", "holes", r"1 missing entries \(null\)"),
        ("a.parquet", "in_list", r"1 missing values \(null\)"),
        ("a.root", "text", "only numbers"),
    ]:
        with open_source(tmp_path / name, str(container_of(tmp_path / name))) as source:
            assert key in source.describe()
            with pytest.raises(DataError, match=f"{name}: '{key}' .*{message}"):
                source.read([key], 0, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_behind_when_writing_fails(kind: str, tmp_path: Path) -> None:
    path, arrays = tmp_path / "file", sample(kind)
    path.write_text("the old file")
    with pytest.raises(KeyboardInterrupt):
        with ArrayWriter(path, **settings_of(kind)) as file:  # type: ignore[arg-type]
            file.append(arrays)
            raise KeyboardInterrupt
    with pytest.raises(DataError, match="'pdg' is .* but was" if kind == "showerdata" else "'event' is .* but was"):
        other = {key: np.float16(array) if key in ("event", "pdg") else array for key, array in arrays.items()}  # type: ignore[arg-type]
        write(kind, path, [arrays, other])
    with pytest.raises(DataError, match="nothing to write"):
        write(kind, path, [])
    assert os.listdir(tmp_path) == ["file"] and path.read_text() == "the old file"


def test_what_a_container_cannot_hold(tmp_path: Path) -> None:
    showers = sample("showerdata")
    for container, arrays, message in [
        ("npz", {"a": vectors([1, 2])}, "'a' has vectors of different lengths, which an npz file cannot hold"),
        ("hdf5", {"a": np.asarray([None, 1])}, "'a' has type object: Python objects"),
        ("showerdata", {"showers": showers["showers"]}, "needs 'energies'"),
        ("showerdata", {**showers, "weights": showers["pdg"]}, "has no place for 'weights'"),
        ("showerdata", {k: showers[k] for k in ("showers", "energies", "pdg")}, "vectors need 'num_points'"),
        ("showerdata", {**showers, "num_points": np.full(12, 3)}, "no multiples of 'num_points'"),
        ("hdf5", {"a[0]": np.zeros(2), "a[2]": np.zeros(2)}, "columns of 'a' must be given all"),
        ("root", {"a": np.zeros(2)}, "needs the name of its tree"),
    ]:
        with pytest.raises(DataError, match=message):
            write_arrays(tmp_path / "file", container, arrays)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_what_a_file_is_without_its_suffix(tmp_path: Path) -> None:
    for kind in KINDS:
        write(kind, tmp_path / "file.dat", [sample(kind)])
        assert container_of(tmp_path / "file.dat") == settings_of(kind)["container"]
    (tmp_path / "page.root").write_text("<!DOCTYPE html>")
    assert container_of(tmp_path / "page.root") == "root" and container_of(tmp_path / "page") is None
    with pytest.raises(DataError, match="page.root: is not a root file, it begins like none"):
        open_source(tmp_path / "page.root", "root")
