"""Imports of many files: the same bytes however many workers, resumable, and never a file left out without a word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data import dask_workers
from foundation.data.card_format import Files, RandomSplit
from foundation.data.cards import DatasetCard, load_card
from foundation.data.files import read_many, read_point_clouds
from foundation.data.formats.reading import MAX_RANGE
from foundation.data.importing import ALL, ImportSummary, import_dataset, random_members, splits_of
from foundation.errors import DataError

CLASSES = ("g", "q", "t", "w", "z")


def write_jets(path: Path, jets: int, places: int = 5, first: int = 0, **storage: object) -> Path:
    """A file in JetNet's layout; the jet's pT counts the jets, so that each can be known again."""
    rng = np.random.default_rng(first)
    real = np.arange(places) < rng.integers(1, places + 1, jets)[:, None]
    share = np.sort(rng.uniform(0.01, 0.3, (jets, places)))[:, ::-1]
    columns = [*rng.normal(0, 0.1, (2, jets, places)), share, np.ones((jets, places))]
    jet = [first + np.arange(jets) + 1000, rng.normal(0, 1, jets), rng.uniform(10, 200, jets), real.sum(1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        data = np.stack(columns, axis=2) * real[..., None]
        f.create_dataset("particle_features", data=data.astype(np.float32), **storage)
        f["jet_features"] = np.stack(jet, axis=1).astype(np.float32)
    return path


def jets_card(**files: object) -> DatasetCard:
    """JetNet's card, with other splits."""
    return load_card("jetnet30").model_copy(update={"files": Files.model_validate({"pattern": "*.hdf5", **files})})


def jetnet(folder: Path, jets: int = 40) -> list[Path]:
    """The five files of JetNet, small, not in its order."""
    return [write_jets(folder / f"{name}.hdf5", jets, 5, 100 * i) for i, name in enumerate(CLASSES)][::-1]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def jet_numbers(paths: Sequence[Path]) -> list[int]:
    """Which jets these parts hold."""
    return (read_many(list(paths)).condition("jet_pt").astype(int) - 1000).tolist()


# splits


def test_jetnet_is_dealt_out_like_the_jetnet_library_does(tmp_path: Path) -> None:
    card = load_card("jetnet30")
    files = splits_of(card, jetnet(tmp_path / "files", 43))
    assert [path.name[0] for path in files[ALL]] == list(CLASSES)
    summary = import_dataset(card, files, tmp_path / "parts")
    # as jetnet/datasets/jetnet.py and utils.getSplitting have it, from the classes one after the other
    jets = np.concatenate([100 * i + np.arange(43) for i in range(5)])
    dealt = jets[np.random.default_rng(42).permutation(len(jets))]
    cuts = (np.cumsum([0.0, 0.7, 0.15, 0.15]) * len(jets)).astype(int)
    for split, a, b in zip(("train", "valid", "test"), cuts[:-1], cuts[1:], strict=True):
        assert sorted(jet_numbers(summary.parts[split])) == sorted(dealt[a:b].tolist())
        clouds = read_many(list(summary.parts[split]))
        assert (clouds.labels == np.array(jet_numbers(summary.parts[split])) // 100).all()
        assert summary.objects[split] == b - a
    assert summary.report.objects == len(jets)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 500), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_random_split_deals_every_object_out_once(total: int, weights: list[int]) -> None:
    shares = {str(i): w / sum(weights) for i, w in enumerate(weights)}
    sizes = np.bincount(random_members(RandomSplit(shares=shares), total), minlength=len(weights))
    # a running sum of shares may fall just short of a whole number, and is rounded down
    assert sizes.sum() == total and (np.abs(sizes - total * np.array(list(shares.values()))) < 2).all()


def test_bad_jets_do_not_move_others_to_another_split(tmp_path: Path) -> None:
    card, files = load_card("jetnet30"), splits_of(load_card("jetnet30"), jetnet(tmp_path / "files"))
    whole = import_dataset(card, files, tmp_path / "whole")
    with h5py.File(files[ALL][1], "r+") as f:
        f["particle_features"][3, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"q\.hdf5.*NaN.*number 3"):
        import_dataset(card, files, tmp_path / "parts")
    assert not (tmp_path / "parts" / "import.json").exists()
    summary = import_dataset(card, files, tmp_path / "parts", skip_bad=True)
    assert sum(summary.report.bad.values()) == 1 and any("skipped 1 objects" in line for line in summary.lines())
    for split, paths in whole.parts.items():
        assert jet_numbers(summary.parts[split]) == [n for n in jet_numbers(paths) if n != 103]


def test_files_are_split_by_name_and_no_file_twice(tmp_path: Path) -> None:
    card = jets_card(splits={"train": "train_*/*.hdf5", "test": "test/*.hdf5"})
    paths = [Path("/a/train_1/x.hdf5"), Path("/a/test/x.hdf5"), Path("train_2/y.hdf5")]
    assert splits_of(card, paths) == {"train": [paths[0], paths[2]], "test": [paths[1]]}
    with pytest.raises(DataError, match=r"z\.hdf5: fits no split of card 'jetnet30' \(train: train_\*"):
        splits_of(card, [Path("val/z.hdf5")])
    with pytest.raises(DataError, match="fits the splits train, test alike"):
        splits_of(jets_card(splits={"train": "*.hdf5", "test": "t.hdf5"}), [Path("t.hdf5")])
    path = write_jets(tmp_path / "g.hdf5", 3)
    with pytest.raises(DataError, match="given twice, for split 'train' and for split 'test'"):
        import_dataset(card, {"train": [path], "test": [tmp_path / "x" / ".." / "g.hdf5"]}, tmp_path / "parts")
    with pytest.raises(DataError, match=r"'\.\./x' cannot be the name of a split"):
        import_dataset(card, {"../x": [path]}, tmp_path / "parts")
    with pytest.raises(DataError, match="no files to import"):
        import_dataset(card, {"train": []}, tmp_path / "parts")


# many files


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Path]], Path, ImportSummary]:
    """Files of two splits, one of them of two ranges, and what one process made of them."""
    folder = tmp_path_factory.mktemp("many")
    sizes = {"g1": 30, "q1": MAX_RANGE + 5, "t1": 0, "w1": 7}
    train = [write_jets(folder / f"{name}.hdf5", n, 2, 1000 * i) for i, (name, n) in enumerate(sizes.items())]
    files = {"train": train, "test": [write_jets(folder / "g9.hdf5", 12, 2, 9000)]}
    return files, folder / "parts", import_dataset(load_card("jetnet30"), files, folder / "parts")


def test_every_range_is_one_part_in_the_order_of_the_files(many: tuple) -> None:
    files, folder, summary = many
    names = ["00000-0000.h5", "00001-0000.h5", "00001-0001.h5", "00003-0000.h5"]
    assert list(summary.parts["train"]) == [folder / "train" / name for name in names]
    assert summary.objects == {"train": MAX_RANGE + 42, "test": 12} and summary.kept == 0
    clouds = read_many(list(summary.parts["train"]))
    with h5py.File(files["train"][1]) as f:
        pt = f["jet_features"][:, 0]
        counts = f["jet_features"][:, 3]
    assert np.array_equal(clouds.condition("jet_pt")[30 : 30 + len(pt)], pt)
    assert np.array_equal(clouds.counts[30 : 30 + len(pt)], counts)
    assert summary.report.objects == MAX_RANGE + 54 and summary.report.points == counts.sum() + sum(
        len(read_point_clouds(folder / part).points)
        for part in ("train/00000-0000.h5", "train/00003-0000.h5", "test/00000-0000.h5")
    )
    written = json.loads((folder / "import.json").read_text())
    assert written["objects"] == summary.objects and written["report"]["points"] == summary.report.points
    assert written["parts"]["test"] == ["test/00000-0000.h5"] and not written["skipped"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a running Dask cluster with one worker process."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster:
        yield cluster.scheduler_address


def test_two_processes_make_the_same_bytes(many: tuple, tmp_path: Path) -> None:
    files, folder, summary = many
    parallel = import_dataset(load_card("jetnet30"), files, tmp_path, workers=2)
    assert content(tmp_path) == content(folder)
    assert parallel.report == summary.report and parallel.objects == summary.objects


def test_a_running_cluster_makes_the_same_bytes_and_goes_on(many: tuple, cluster: str, tmp_path: Path) -> None:
    files, folder, _ = many
    card = load_card("jetnet30")
    import_dataset(card, files, tmp_path / "parts", scheduler=cluster)
    assert content(tmp_path / "parts") == content(folder)
    broken = tmp_path / "g.hdf5"
    broken.write_bytes(files["test"][0].read_bytes()[:2000])
    with pytest.raises(DataError, match=r"g\.hdf5"):
        import_dataset(card, {"test": [broken]}, tmp_path / "broken", scheduler=cluster)
    assert import_dataset(card, files, tmp_path / "parts", scheduler=cluster).kept == 5


def test_what_an_interrupted_import_lacks_is_made_up(many: tuple, tmp_path: Path) -> None:
    files, _, _ = many
    card = load_card("jetnet30")
    first = import_dataset(card, files, tmp_path)
    before = content(tmp_path)
    gone, cut, other = first.parts["train"][0], first.parts["train"][2], first.parts["test"][0]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:1500])
    other.write_bytes(first.parts["train"][3].read_bytes())  # whole, but of another file
    (tmp_path / "import.json").unlink()
    again = import_dataset(card, files, tmp_path)
    assert content(tmp_path) == before
    assert again.kept == 2 and again.report == first.report and again.objects == first.objects
    assert "2 parts were kept from an earlier run" in again.lines()


def test_a_changed_file_or_card_is_imported_anew(tmp_path: Path) -> None:
    card, path = load_card("jetnet30"), write_jets(tmp_path / "g.hdf5", 9)
    files, parts = {"train": [path]}, tmp_path / "parts"
    import_dataset(card, files, parts)
    assert import_dataset(card, files, parts).kept == 1
    assert import_dataset(card, files, parts, features=["pt", "eta_rel"]).kept == 0
    assert read_point_clouds(parts / "train" / "00000-0000.h5").features == ("pt", "eta_rel")
    write_jets(path, 8)
    summary = import_dataset(card, files, parts, features=["pt", "eta_rel"])
    assert summary.kept == 0 and summary.objects == {"train": 8}
    with pytest.raises(DataError, match=r"no feature 'ptt' - did you mean 'pt'\?"):
        import_dataset(card, files, parts, features=["ptt"])


def test_parts_of_another_import_are_never_mixed_in(tmp_path: Path) -> None:
    card = load_card("jetnet30")
    paths = [write_jets(tmp_path / f"{name}.hdf5", 4) for name in "gq"]
    import_dataset(card, {"train": paths}, tmp_path / "parts")
    with pytest.raises(DataError, match=r"train/00001-0000\.h5: not of this import; choose another folder"):
        import_dataset(card, {"train": paths[:1]}, tmp_path / "parts")


# files that cannot be read


def with_a_bad_file(folder: Path) -> list[Path]:
    """Three files, of which the second is cut off."""
    paths = [write_jets(folder / f"{name}.hdf5", 20) for name in "gqt"]
    paths[1].write_bytes(paths[1].read_bytes()[:3000])
    return paths


def test_an_unreadable_file_is_named_or_skipped_and_listed(tmp_path: Path) -> None:
    card, paths = load_card("jetnet30"), with_a_bad_file(tmp_path / "files")
    with pytest.raises(DataError, match=r"files/q\.hdf5"):
        import_dataset(card, {"train": paths}, tmp_path / "parts")
    summary = import_dataset(card, {"train": paths}, tmp_path / "parts", skip_bad=True)
    assert [path.name for path in summary.parts["train"]] == ["00000-0000.h5", "00002-0000.h5"]
    ((file, why),) = summary.skipped
    assert file == str(paths[1]) and "q.hdf5" in why and summary.objects == {"train": 40}
    assert json.loads((tmp_path / "parts" / "import.json").read_text())["skipped"] == [{"file": file, "why": why}]
    with pytest.raises(DataError, match="none of the 1 files can be read"):
        import_dataset(card, {"train": paths[1:2]}, tmp_path / "none", skip_bad=True)


def test_no_file_can_be_skipped_where_objects_are_dealt_out(tmp_path: Path) -> None:
    card = load_card("jetnet30")
    files = splits_of(card, with_a_bad_file(tmp_path / "files"))
    with pytest.raises(DataError, match=r"q\.hdf5.*dealt out over all files, so none of them can be skipped"):
        import_dataset(card, files, tmp_path / "parts", skip_bad=True)


def test_a_file_that_breaks_in_the_middle_leaves_no_part_behind(tmp_path: Path) -> None:
    card = load_card("jetnet30")
    paths = [write_jets(tmp_path / f"{name}.hdf5", 500, fletcher32=True, chunks=(500, 5, 4)) for name in "gq"]
    import_dataset(card, {"train": paths}, tmp_path / "parts")
    with h5py.File(paths[0]) as f:
        place = f["particle_features"].id.get_chunk_info(0).byte_offset
    with open(paths[0], "r+b") as file:
        file.seek(place + 100)
        file.write(b"\xff\xff\xff\xff")
    with pytest.raises(DataError, match=r"g\.hdf5"):
        import_dataset(card, {"train": paths}, tmp_path / "parts")
    summary = import_dataset(card, {"train": paths}, tmp_path / "parts", skip_bad=True)
    assert [file for file, _ in summary.skipped] == [f"{paths[0]}, objects 0 to 499"]
    assert [path.name for path in (tmp_path / "parts" / "train").iterdir()] == ["00001-0000.h5"]


# workers


def test_workers_that_cannot_be_had_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, cluster: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(dask_workers, "ANSWER_SECONDS", 0.5)
    files: Mapping[str, Sequence[Path]] = {"train": [write_jets(tmp_path / "g.hdf5", 3)]}
    for address, message in {
        "tcp://127.0.0.1:9": "no Dask scheduler answers at 'tcp://127.0.0.1:9'",
        "localhost": "missing port number",
    }.items():
        with pytest.raises(DataError, match=message):
            import_dataset(load_card("jetnet30"), files, tmp_path / "parts", scheduler=address)
    with pytest.raises(DataError, match="0 workers cannot do anything"):
        import_dataset(load_card("jetnet30"), files, tmp_path / "parts", workers=0)


SCRIPT = """
import sys
from pathlib import Path

from foundation.data.cards import load_card
from foundation.data.importing import import_dataset

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    import_dataset(load_card("jetnet30"), {"train": sorted(folder.glob("*.hdf5"))}, folder / "parts", workers=2)
"""


def processes_of_group(group: int) -> list[str]:
    """Processes of a group, without those that only wait to be collected."""
    found = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()[1:]]
    return [pid for pid, of_group, state in rows if of_group == str(group) and not state.startswith("Z")]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_killed_import_leaves_no_process_and_only_whole_parts(tmp_path: Path, how: signal.Signals) -> None:
    path = write_jets(tmp_path / "g0000.hdf5", 100_000)
    for i in range(1, 80):
        os.link(path, tmp_path / f"g{i:04d}.hdf5")
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path], start_new_session=True)
    train = tmp_path / "parts" / "train"
    end = time.monotonic() + 120
    while len(list(train.glob("*.h5"))) < 3 and time.monotonic() < end:
        assert run.poll() is None
        time.sleep(0.05)
    if how == signal.SIGKILL:
        run.kill()
    else:
        os.killpg(run.pid, how)
    assert run.wait(30) != 0
    while processes_of_group(run.pid) and time.monotonic() < end + 30:
        time.sleep(0.1)
    assert not processes_of_group(run.pid)
    parts = list(train.glob("*.h5"))
    assert 3 <= len(parts) < 80 and not (tmp_path / "parts" / "import.json").exists()
    assert {len(read_point_clouds(part)) for part in parts} == {100_000}
