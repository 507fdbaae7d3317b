"""Shards: what was written is read back, every sequence once, with the same bytes however it was written."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.files import write_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Tokenize
from foundation.recipe.stages.tokenization import tokenize
from foundation.stream.reading import ShardedDataset
from foundation.stream.shard_index import Columns
from foundation.stream.shuffling import Encoded, Part, places
from foundation.stream.writing import write_dataset, write_shards
from foundation.tokens.config import PerFeatureConfig
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.per_feature import PerFeatureTokenizer
from foundation.tokens.transforms import transform
from foundation.tokens.vocabulary import Vocabulary

from conftest import SHOWERS, inputs_of, toy_showers
from shard_parts import COLUMNS, IDENTITY, SMALL, SlowEncode, contents, parts, sequences, write

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of six parts, read-only."""
    home = tmp_path_factory.mktemp("shards")
    write(home / "toy", home / "notes")
    return home / "toy"


def in_memory(folder: Path, data: Encoded, **settings: object) -> ShardedDataset:
    """Written with `write_shards` and opened."""
    write_shards(
        folder, "toy", data.codes, data.offsets, data.labels, data.conditions, identity=IDENTITY,
        **{"largest_code": 300, "seed": 1, **settings},  # type: ignore[arg-type]
    )  # fmt: skip
    return ShardedDataset(folder, "v" * 64)


def assert_holds(dataset: ShardedDataset, data: Encoded, exact_features: bool = True) -> None:
    """Every sequence of `data` is there once, whole, with all that belongs to it."""
    seen = []
    for number in range(dataset.n_blocks):
        block = dataset.block(number)
        assert np.array_equal(np.diff(block.offsets), dataset.lengths_of(number))
        assert len(block) == dataset.sequences[number] and len(block.codes) == dataset.points[number]
        for place, i in enumerate(block.ids.astype(int)):
            ours = slice(*block.offsets[place : place + 2])
            theirs = slice(*data.offsets[i : i + 2])
            assert np.array_equal(block.codes[ours], data.codes[theirs])
            assert block.labels[place] == data.labels[i] and block.conditions[place] == data.conditions[i]
            if block.features is not None and data.features is not None:
                assert np.allclose(block.features[ours], data.features[theirs], rtol=1e-3, atol=1e-3)
        seen += block.ids.tolist()
    assert sorted(seen) == list(range(len(data.labels))) == list(range(len(dataset)))


# The order


@given(st.integers(1, 3000), st.integers(0, 2**32), st.lists(st.integers(0, 3000), max_size=3))
def test_places_are_a_permutation_in_whatever_pieces_they_are_asked_for(total, seed, cuts) -> None:
    borders = sorted({0, total, *(c for c in cuts if c < total)})
    found = np.concatenate([places(a, b, total, seed) for a, b in pairwise(borders)])
    assert np.array_equal(np.sort(found), np.arange(total))


def test_places_of_neighbours_have_nothing_in_common() -> None:
    total = 20_000
    found = places(0, total, total, 5).astype(float)
    other = places(0, total, total, 6).astype(float)
    for a, b in ((found[:-1], found[1:]), (found, np.arange(total)), (found, other)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(total)
    # an input sorted by class: each tenth of the output has its share of the first class
    share = np.histogram(found[: total // 10], bins=10, range=(0, total))[0] / (total // 100)
    assert np.abs(share - 1).max() < 0.3


# Writing and reading


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 150), st.integers(0, 9), st.integers(1, 40), st.integers(1, 400), st.integers(300, 9000))
def test_what_was_written_is_read_once_and_whole(tmp_path_factory, n, seed, block_sequences, block_bytes, shard_bytes):
    data = sequences(n, seed)
    folder = tmp_path_factory.mktemp("any") / "d"
    settings = {"block_sequences": block_sequences, "block_bytes": block_bytes, "shard_bytes": shard_bytes}
    dataset = in_memory(folder, data, features=data.features, feature_names=("a", "b"), **settings)
    assert dataset.sequences.max() <= block_sequences
    assert_holds(dataset, data)


def test_the_parts_of_a_dataset_are_shuffled_into_each_other(written: Path) -> None:
    dataset = ShardedDataset(written, "v" * 64)
    whole = Encoded.joined([sequences(40, seed) for seed in range(1, 7)])
    assert_holds(dataset, whole)
    assert len(dataset.manifest["shards"]) > 3
    assert dataset.manifest["counted"] == {"outside.pt": 21}
    assert [source["sequences"] for source in dataset.manifest["sources"]] == [40] * 6
    assert dataset.manifest["longest"] == max(dataset.lengths_of(b).max() for b in range(dataset.n_blocks))
    from_parts = [set((dataset.block(b).ids // 40).tolist()) for b in range(dataset.n_blocks)]
    assert min(len(found) for found in from_parts) >= 4
    assert not (written / "unfinished").exists()


def test_bytes_follow_from_the_sequences_alone(tmp_path: Path, written: Path) -> None:
    write(tmp_path / "again", tmp_path / "notes")
    assert contents(tmp_path / "again") == contents(written)
    # in one piece instead of six: only what is said of the parts differs
    whole = Encoded.joined([sequences(40, seed) for seed in range(1, 7)])
    write_dataset(
        tmp_path / "whole", "toy", [Part("all", 240, len(whole.codes))], lambda _: whole, COLUMNS,
        identity=IDENTITY, seed=3, **SMALL,
    )  # fmt: skip
    ours, theirs = contents(tmp_path / "whole"), contents(written)
    assert {name for name in theirs if ours[name] != theirs[name]} == {"manifest.json", "made_from"}
    write(tmp_path / "other", tmp_path / "notes", seed=4)
    assert contents(tmp_path / "other")["000000.tar"] != theirs["000000.tar"]


@pytest.mark.slow
def test_many_workers_write_the_same_bytes(tmp_path: Path, written: Path) -> None:
    write(tmp_path / "many", tmp_path / "notes", workers=2)
    assert contents(tmp_path / "many") == contents(written)


def test_plain_webdataset_reads_the_same_blocks(written: Path) -> None:
    import webdataset

    dataset = ShardedDataset(written, "v" * 64)
    shards = sorted(str(p) for p in written.glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert len(samples) == dataset.n_blocks
    for number, sample in enumerate(samples):
        block = dataset.block(number)
        assert (os.path.basename(sample["__url__"]), sample["__key__"]) == dataset.name_of(number)
        for name in ("codes", "offsets", "labels", "conditions", "ids", "features"):
            assert np.array_equal(sample[f"{name}.npy"], getattr(block, name)), name


def test_members_have_the_smallest_types(tmp_path: Path, written: Path) -> None:
    types = {name: member.dtype for name, member in ShardedDataset(written, "v" * 64).members.items()}
    assert types == {
        "codes": "uint16", "conditions": "float32", "features": "float16", "ids": "uint64", "labels": "int8",
        "offsets": "uint32",
    }  # fmt: skip
    few = sequences(5, 1, largest_code=200)
    small = in_memory(tmp_path / "small", few, largest_code=255)
    assert small.block(0).codes.dtype == np.uint8 and small.block(0).features is None
    large = in_memory(tmp_path / "large", replace(few, labels=few.labels + 70_000), largest_code=70_000)
    assert large.members["codes"].dtype == "uint32" and large.members["labels"].dtype == "int32"
    assert np.load(tmp_path / "large" / "lengths.npy").dtype == np.uint16
    long = Encoded(np.zeros((70_000, 1), int), np.array([0, 70_000]), np.zeros(1, int), np.zeros((1, 0)))
    longest = in_memory(tmp_path / "long", long)
    assert longest.lengths_of(0).tolist() == [70_000] and longest.block(0).conditions.shape == (1, 0)


def test_nothing_is_copied_that_is_large(written: Path) -> None:
    block = ShardedDataset(written, "v" * 64).block(1)
    for array in (block.codes, block.features, block.ids, block.conditions):
        assert array is not None and not array.flags.owndata and not array.flags.writeable and array.flags.aligned


def test_a_label_budget_is_the_first_sequences(written: Path) -> None:
    whole = ShardedDataset(written, "v" * 64)
    ids = np.concatenate([whole.block(b).ids for b in range(whole.n_blocks)])
    for limit in (0, 1, int(whole.sequences[0]), int(whole.sequences[0]) + 1, len(whole)):
        few = ShardedDataset(written, "v" * 64, limit=limit)
        blocks = [few.block(b) for b in range(few.n_blocks)]
        assert len(few) == limit == sum(len(b) for b in blocks) == few.sequences.sum()
        assert few.points.tolist() == [len(b.codes) for b in blocks]
        assert [i for b in blocks for i in b.ids.tolist()] == ids[:limit].tolist()
    with pytest.raises(DataError, match="1000 sequences asked for, but there are 240"):
        ShardedDataset(written, "v" * 64, limit=1000)


def test_a_dataset_travels_to_other_processes_without_its_arrays(written: Path) -> None:
    dataset = ShardedDataset(written, "v" * 64, limit=50)
    dataset.block(0)
    sent = pickle.dumps(dataset)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).block(1).codes, dataset.block(1).codes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offsets": np.array([0, 0])}, "part '1' was encoded to 1 sequences; announced were 40 sequences of"),
        ({"codes": np.zeros((3, 2), int)}, r"codes of shape \(3, 2\)"),
        ({"labels": np.zeros(39, int)}, "39 labels"),
        ({"conditions": np.zeros((40, 2))}, r"conditions of shape \(40, 2\)"),
        ({"features": None}, "features of shape None"),
        ({"ids": np.zeros(3, np.uint64)}, "another number of ids"),
        ({"codes": sequences(40, 1).codes + 1}, "to 301, allowed are 0 to 300"),
        ({"codes": sequences(40, 1).codes - 9}, "codes reach from -"),
        ({"features": sequences(40, 1).features * 1e6}, "a feature is not finite as float16"),  # type: ignore[operator]
    ],
)
def test_a_part_that_is_not_as_announced_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    wrong = replace(sequences(40, 1), **change)
    with pytest.raises(DataError, match=said):
        write_dataset(tmp_path / "d", "toy", parts(1), lambda _: wrong, COLUMNS, identity=IDENTITY, seed=1)
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_nothing_to_write_and_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sequences to write for 'toy'"):
        in_memory(tmp_path, sequences(0, 1))
    with pytest.raises(DataError, match="a block holds at least 1 sequence"):
        in_memory(tmp_path, sequences(3, 1), block_sequences=0)


def test_empty_parts_and_ids_of_ones_own(tmp_path: Path) -> None:
    data = replace(sequences(40, 1), ids=np.arange(40, dtype=np.uint64) + 2**40, features=None)
    nothing = Encoded(np.zeros((0, 2), int), np.zeros(1, int), np.zeros(0, int), np.zeros((0, 1)))
    columns = Columns(streams=2, largest_code=300, conditions=1)
    both = [Part("none", 0, 0), Part("1", 40, len(data.codes))]
    write_dataset(
        tmp_path, "toy", both, lambda part: nothing if part.name == "none" else data, columns, identity=IDENTITY, seed=1
    )
    assert sorted(ShardedDataset(tmp_path, "v" * 64).block(0).ids) == list(range(2**40, 2**40 + 40))


# The tokenize stage


class Silent:
    """A tracker that keeps nothing."""

    run_id, ui_command = None, ""

    def log_dataset(self, *_: object) -> None: ...


def artifact(folder: Path) -> Artifact:
    """A finished stage in a folder."""
    outputs = {p.relative_to(folder).as_posix(): (p.stat().st_size, "0" * 64) for p in folder.rglob("*.*")}
    return Artifact(folder, "kind", folder.name, "key", {}, 1, {}, {}, outputs, {}, "", "", 0.0)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Showers in three files, and a tokenizer."""
    home = tmp_path_factory.mktemp("stages")
    for seed in range(3):
        write_point_clouds(home / "showers" / "train" / f"{seed}.h5", toy_showers(50, seed))
    (home / "showers" / "card.json").write_text(SHOWERS.model_dump_json())
    clouds = toy_showers(50, 0)
    config = PerFeatureConfig(type="per_feature", bins=300)
    fitted = PerFeatureTokenizer.fit(inputs_of(SHOWERS, clouds), clouds, config)
    fitted.save(home / "codes")
    return {name: artifact(home / name) for name in ("showers", "codes")}


def tokenized(folder: Path, stages: dict[str, Artifact], **settings: object) -> Path:
    """What the tokenize stage leaves of the showers."""
    spec = Tokenize(
        kind="tokenize", name="tokens", datasets=[{"from": "showers", "tokenizer": "codes"}], features="float16",
        block_sequences=16, **settings,
    )  # fmt: skip
    folder.mkdir()
    tokenize(spec, StageContext(folder, folder, folder, None, 1, 0, 1, Silent(), stages))  # type: ignore[arg-type]
    return folder / "toy_showers"


def test_the_tokenize_stage_works_file_by_file(
    tmp_path: Path, stages: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foundation.recipe.stages.tokenization.PART_BYTES", 1)
    home = tokenized(tmp_path / "one", stages)
    dataset = ShardedDataset(home / "train", Vocabulary.load(home.parent / "vocabulary.json").digest)
    clouds = PointClouds.concatenate([toy_showers(50, seed) for seed in range(3)])
    features = transform(SHOWERS.features[3], clouds.feature("energy"))[:, None]
    codes = load_tokenizer(home / "tokenizer").encode(clouds).values
    assert_holds(dataset, Encoded(codes, clouds.offsets, clouds.labels, clouds.conditions, features=features))
    assert dataset.manifest["features"] == ["energy"] and dataset.sequences.max() <= 16
    assert [source["sequences"] for source in dataset.manifest["sources"]] == [50, 50, 50]
    # parts of several files: the same shards
    monkeypatch.setattr("foundation.recipe.stages.tokenization.PART_BYTES", 10_000)
    other = tokenized(tmp_path / "two", stages)
    ours, theirs = contents(home / "train"), contents(other / "train")
    assert {name for name in ours if ours[name] != theirs[name]} <= {"manifest.json", "made_from"}


@pytest.mark.slow
def test_the_tokenize_stage_gives_the_same_with_many_workers(
    tmp_path: Path, stages: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foundation.recipe.stages.tokenization.PART_BYTES", 1)
    one, two = (contents(tokenized(tmp_path / str(n), stages, workers=n)) for n in (1, 2))
    assert one == two


# What a killed or failed writer leaves


def start(folder: Path, notes: Path, seconds: float) -> subprocess.Popen[bytes]:
    """`shard_parts.write` in a process of its own."""
    command = [sys.executable, str(TESTS / "shard_parts.py"), str(folder), str(notes), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(("pattern", "seconds"), [("*.run", 0.15), ("*.shard.json", 0.0)])
def test_a_killed_writer_goes_on_to_the_same_bytes(tmp_path: Path, written: Path, pattern: str, seconds: float) -> None:
    folder, notes = tmp_path / "d", tmp_path / "notes"
    process = start(folder, notes, seconds)
    while process.poll() is None and len(list((folder / "unfinished").glob(pattern))) < 2:
        time.sleep(0.001)
    process.kill()
    process.wait()
    if seconds:
        assert not (folder / "manifest.json").exists()
        with pytest.raises(DataError, match=r"manifest\.json: missing"):
            ShardedDataset(folder, "v" * 64)
    write(folder, notes)
    assert contents(folder) == contents(written)
    # at most the part that was at work when the process died is encoded twice
    assert len(notes.read_text().split()) <= 7


def test_what_is_finished_is_used_and_what_is_of_other_content_is_not(tmp_path: Path) -> None:
    folder, notes = tmp_path / "d", tmp_path / "notes"
    write(folder, notes, count=2)
    before = contents(folder)
    write(folder, notes, count=2)
    assert notes.read_text().split() == ["1", "2"]
    (folder / "000001.tar").unlink()
    write(folder, notes, count=2)
    assert contents(folder) == before and len(notes.read_text().split()) == 4
    write(folder, notes, count=1)  # fewer shards: the old ones go
    assert len(ShardedDataset(folder, "v" * 64)) == 40
    changed = [replace(part, stamp="new") for part in parts(1)]
    encode = SlowEncode(notes)
    write_dataset(folder, "toy", changed, encode, COLUMNS, identity=IDENTITY, seed=3, **SMALL)
    assert len(notes.read_text().split()) == 6


needs_dev_full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="there is no /dev/full, which is always full"
)


def fill_the_disk(folder: Path, name: str) -> None:
    """A dataset that was begun, and whose file of this name meets a full disk."""

    def interrupted(part: Part) -> Encoded:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(folder, "toy", parts(6), interrupted, COLUMNS, identity=IDENTITY, seed=3, **SMALL)
    (folder / f"{name}.part").symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("name", ["unfinished/000004.run", "000001.tar", "index.npy", "lengths.npy", "manifest.json"])
def test_a_full_disk_is_said_and_nothing_counts_as_finished(tmp_path: Path, written: Path, name: str) -> None:
    folder, notes = tmp_path / "d", tmp_path / "notes"
    fill_the_disk(folder, name)
    with pytest.raises(DataError, match=rf"{name}: cannot be written \(No space left on device\)"):
        write(folder, notes)
    assert not (folder / "manifest.json").exists() and not (folder / name).exists()
    write(folder, notes)
    assert contents(folder) == contents(written)
    assert len(notes.read_text().split()) <= 7


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder can be here")
    with pytest.raises(DataError, match="file: cannot be made a folder"):
        write(tmp_path / "file", tmp_path / "notes")
