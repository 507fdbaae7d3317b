"""Damaged and foreign shards: every kind is noticed and named, or with `skip` counted, and the rest is still read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foundation.errors import DataError
from foundation.stream.reading import Block, ShardedDataset
from foundation.stream.shard_index import Member, index_shard

from shard_parts import write

VOCABULARY = "v" * 64
SHARD, BAD = "000001.tar", 1
"""The shard that is damaged, in its block BAD."""


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of some shards with several blocks each, read-only."""
    home = tmp_path_factory.mktemp("intact")
    write(home / "toy", home / "notes")
    return home / "toy"


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(intact, tmp_path / "damaged"))


def bad_block(folder: Path) -> tuple[int, np.void]:
    """Number of the damaged block over all shards, and its line of the index."""
    index = np.load(folder / "index.npy")
    number = int(np.flatnonzero(index["shard"] == 1)[BAD])
    return number, index[number]


def place(folder: Path, member: str, byte: int) -> int:
    """Where a byte of a member of the bad block stands in the tar; negative ones are of its tar header."""
    _, line = bad_block(folder)
    return int(line["offset"]) + int(line[f"{member}_at"]) + byte


def cut(at: Callable[[Path], int]) -> Callable[[Path], None]:
    """Only the bytes before this one are left."""

    def damage(folder: Path) -> None:
        data = (folder / SHARD).read_bytes()
        (folder / SHARD).write_bytes(data[: at(folder)])

    return damage


def change(at: Callable[[Path], int], new: Callable[[bytes], bytes], size: int = 1) -> Callable[[Path], None]:
    """Other bytes in the same place."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / SHARD).read_bytes())
        start = at(folder)
        data[start : start + size] = new(bytes(data[start : start + size]))
        (folder / SHARD).write_bytes(bytes(data))

    return damage


def flip(old: bytes) -> bytes:
    return bytes([old[0] ^ 1])


def zeros(old: bytes) -> bytes:
    return bytes(len(old))


def header(folder: Path) -> int:
    """First byte of the block: the tar header of its first member."""
    return place(folder, "codes", -512)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated inside a payload": (cut(lambda f: place(f, "codes", 150)), "has .* bytes, the manifest says"),
    "truncated between members": (cut(header), "has .* bytes, the manifest says"),
    "truncated inside a header": (cut(lambda f: header(f) + 100), "has .* bytes, the manifest says"),
    "a byte of a header": (change(lambda f: header(f) + 130, flip), "a tar header: CRC differs"),
    "a header of zeros": (change(header, zeros, 512), "a tar header: CRC differs"),
    "two records of zeros": (change(header, zeros, 1024), r"member codes\.npy: CRC differs"),
    "a byte of the codes": (change(lambda f: place(f, "codes", 140), flip), r"member codes\.npy: CRC differs"),
    "the magic of an array": (change(lambda f: place(f, "labels", 2), flip), r"member labels\.npy: CRC differs"),
    "an empty file": (cut(lambda f: 0), "has 0 bytes"),
    "an error page": (
        lambda f: (f / SHARD).write_text("<html><body>404 Not Found</body></html>") and None,
        "has 39 bytes, the manifest says",
    ),
    "missing": (lambda f: (f / SHARD).unlink(), "missing"),
}
WHOLE_SHARD = {"truncated inside a payload", "truncated between members", "truncated inside a header", "an empty file",
               "an error page", "missing"}  # fmt: skip


def read_all(dataset: ShardedDataset) -> list[Block]:
    return [dataset.block(number) for number in range(dataset.n_blocks)]


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_an_error_that_names_shard_and_block(folder: Path, kind: str) -> None:
    damage, said = DAMAGES[kind]
    dataset = ShardedDataset(folder, VOCABULARY)  # before it happens: a running training meets it while it reads
    damage(folder)
    number, _ = bad_block(folder)
    with pytest.raises(DataError, match=said) as error:
        dataset.block(number)
    assert SHARD in str(error.value) and f"block 000001-{BAD:05d}" in str(error.value)
    with pytest.raises(DataError, match=SHARD):
        read_all(ShardedDataset(folder, VOCABULARY))


@pytest.mark.parametrize("kind", DAMAGES)
def test_skipped_damage_is_counted_said_once_and_leaves_its_place(
    folder: Path, intact: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[kind][0](folder)
    dataset, whole = ShardedDataset(folder, VOCABULARY, on_bad_block="skip"), ShardedDataset(intact, VOCABULARY)
    found = [*read_all(dataset), *read_all(dataset)]
    number, _ = bad_block(folder)
    shards = np.load(intact / "index.npy")["shard"]
    assert set(dataset.bad_blocks) == (set(np.flatnonzero(shards == 1).tolist()) if kind in WHOLE_SHARD else {number})
    assert all(
        SHARD in reason and f"block {dataset.name_of(b)[1]}" in reason for b, reason in dataset.bad_blocks.items()
    )
    assert capfd.readouterr().err.count("warning: skipped") == len(dataset.bad_blocks)
    for b, block in enumerate(found[: dataset.n_blocks]):
        assert len(block) == dataset.sequences[b] and block.bad == (b in dataset.bad_blocks)
        if block.bad:
            assert block.codes.shape == (0, 2) and not block.offsets.any() and (block.labels == -1).all()
            assert np.isnan(block.conditions).all() and block.features is not None and block.features.shape == (0, 2)
        else:
            assert np.array_equal(block.codes, whole.block(b).codes)


# Files that do not belong together


def edit_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def rewrite(folder: Path, name: str, array: np.ndarray) -> None:
    """Another array, and a manifest that agrees to it."""
    np.save(folder / name, array)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    data = (folder / name).read_bytes()
    files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(folder, files=files)


def another(folder: Path) -> Path:
    """The same sequences in another order, so that all files have the same sizes."""
    write(folder.parent / "another", folder.parent / "notes", seed=9)
    return folder.parent / "another"


def swap_shards(folder: Path) -> None:
    shutil.move(folder / "000000.tar", folder / "kept")
    shutil.move(folder / SHARD, folder / "000000.tar")
    shutil.move(folder / "kept", folder / SHARD)


def lose_a_sequence(folder: Path) -> None:
    index = np.load(folder / "index.npy")
    index["sequences"][0] += 1
    index["sequences"][1] -= 1
    rewrite(folder, "index.npy", index)


def shift_lengths(folder: Path) -> None:
    rewrite(folder, "lengths.npy", np.roll(np.load(folder / "lengths.npy"), 1))


def flip_in_index(folder: Path) -> None:
    data = bytearray((folder / "index.npy").read_bytes())
    data[-3] ^= 1
    (folder / "index.npy").write_bytes(bytes(data))


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard of another dataset": (
        lambda f: shutil.copy(another(f) / SHARD, f),
        r"000001\.tar: (block 000001-00000: member .*CRC differs: damaged, or of another dataset|has .* bytes)",
    ),
    "shards that changed places": (swap_shards, r"000000\.tar: (block 000000-00000: .*CRC differs|has .* bytes)"),
    "an additional shard": (
        lambda f: shutil.copy(f / SHARD, f / "000099.tar"),
        r"000099\.tar: not a shard of this dataset",
    ),
    "the manifest of another dataset": (
        lambda f: shutil.copy(another(f) / "manifest.json", f),
        r"index\.npy: does not belong to this manifest\.json",
    ),
    "another vocabulary": (
        lambda f: edit_manifest(f, vocabulary="f" * 64),
        "written for vocabulary ffffffffffff, but vvvvvvvvvvvv is needed",
    ),
    "another tokenizer": (lambda f: edit_manifest(f, tokenizer="f" * 64), "written for tokenizer ffffffffffff"),
    "another dataset of the vocabulary": (lambda f: edit_manifest(f, tag="showers"), "written for tag showers"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: missing"),
    "half a manifest": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text()[:200]),
        r"manifest\.json: not valid JSON",
    ),
    "an old manifest": (
        lambda f: edit_manifest(f, format="foundation/shards/1"),
        "format is foundation/shards/1, expected foundation/shards/2: tokenise the dataset again",
    ),
    "a manifest that lost something": (
        lambda f: (f / "manifest.json").write_text('{"format": "foundation/shards/2"}'),
        r"(says nothing about|written for)",
    ),
    "no index": (lambda f: (f / "index.npy").unlink(), r"index\.npy: missing"),
    "a changed index": (flip_in_index, r"index\.npy: does not belong to this manifest\.json, or is damaged"),
    "an index of fewer blocks": (
        lambda f: rewrite(f, "index.npy", np.load(f / "index.npy")[:-1]),
        r"index\.npy: does not have \d+ lines",
    ),
    "an index of fewer points": (
        lambda f: edit_manifest(f, points=1),
        r"index\.npy: does not add up to 240 sequences, 1 points",
    ),
    "members that disagree with the index": (
        lose_a_sequence,
        r"000000\.tar: block 000000-00000: its members disagree: conditions\.npy does not hold \d+ rows",
    ),
    "no lengths": (lambda f: (f / "lengths.npy").unlink(), r"lengths\.npy: missing"),
    "too few lengths": (
        lambda f: rewrite(f, "lengths.npy", np.load(f / "lengths.npy")[:-1]),
        r"lengths\.npy: does not hold the lengths of 240 sequences",
    ),
    "other lengths": (shift_lengths, r"block 000000-0000\d: offsets do not fit lengths\.npy"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_that_do_not_belong_together_are_named(folder: Path, kind: str) -> None:
    spoil, said = FOREIGN[kind]
    spoil(folder)
    with pytest.raises(DataError, match=said):
        read_all(ShardedDataset(folder, VOCABULARY, expected={"tag": "toy", "tokenizer": "t" * 64}))


def test_a_word_that_is_no_choice_is_refused(intact: Path) -> None:
    with pytest.raises(DataError, match="on_bad_block is 'skipp' - did you mean 'skip'"):
        ShardedDataset(intact, VOCABULARY, on_bad_block="skipp")  # type: ignore[arg-type]


# A tar that is to be indexed


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: {**m, "labels": Member("int64")}, r"member labels\.npy: an array int8"),
        (lambda m: {name: m[name] for name in m if name != "ids"}, "its members are not codes, conditions, features"),
    ],
)
def test_a_tar_of_other_members_is_not_indexed(intact: Path, spoil: Callable[[dict], dict], said: str) -> None:
    members = ShardedDataset(intact, VOCABULARY).members
    assert np.array_equal(index_shard(intact / SHARD, 1, members)["crc32"], np.load(intact / "index.npy")["crc32"][
        np.load(intact / "index.npy")["shard"] == 1
    ])  # fmt: skip
    with pytest.raises(DataError, match=said):
        index_shard(intact / SHARD, 1, spoil(members))


def test_what_is_no_tar_is_not_indexed(intact: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"<html>" * 1000)
    with pytest.raises(DataError, match=r"x\.tar: not a tar"):
        index_shard(tmp_path / "x.tar", 0, ShardedDataset(intact, VOCABULARY).members)
