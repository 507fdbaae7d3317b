"""Damaged files of every container give a named error or the right arrays, never a crash or a hang."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from foundation.data.formats.containers.source import Array
from foundation.errors import DataError

from container_files import KINDS, equal, read, sample, write

# Damage. Where nothing has a checksum (see foundation/data/formats/containers/damage.py) wrong numbers can come out.

UNCHECKED = {
    "root": {"part_px", "part_charge", "part_isMuon", "jet_pt", "event", "image"},
    "rntuple": {"part_px", "part_charge", "part_isMuon", "jet_pt", "event", "image"},
    "parquet": set(),
    "hdf5": {"part_px", "part_charge", "part_isMuon"},
    "npz": set(),
    "showerdata": {"showers", "energies", "directions", "pdg", "shower_ids", "num_points"},
}


def damaged_copies(raw: bytes, truncations: int, flips: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    copies = [raw[: int(size)] for size in np.linspace(0, len(raw) - 1, truncations)]
    for bit in rng.integers(0, 8 * len(raw), flips):
        copy = bytearray(raw)
        copy[bit // 8] ^= 1 << (bit % 8)
        copies.append(bytes(copy))
    return copies


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_an_error_or_the_arrays(kind: str, tmp_path: Path) -> None:
    good, bad, arrays = tmp_path / "good", tmp_path / "bad", sample(kind)
    write(kind, good, [arrays])
    raw = good.read_bytes()
    errors = 0
    for copy in damaged_copies(raw, 20, 100):
        bad.write_bytes(copy)
        try:
            got = read(kind, bad, list(arrays))
        except DataError as error:
            assert str(bad) in str(error)
            errors += 1
            continue
        assert {key for key in arrays if not equal(got[key], arrays[key])} <= UNCHECKED[kind]
    assert errors >= 19  # all truncations at least, but for one that may cut nothing that is needed


def test_packed_numbers_with_a_checksum_are_never_wrong(tmp_path: Path) -> None:
    """A bit in the numbers themselves, in the containers that have a checksum of them when they are packed."""
    arrays: dict[str, Array] = {"x": np.random.default_rng(3).integers(0, 500, 20000).astype(np.float32)}
    for kind in ("root", "parquet", "hdf5", "npz"):
        write(kind, tmp_path / kind, [arrays])
        raw = (tmp_path / kind).read_bytes()
        noticed = 0
        for copy in damaged_copies(raw, 0, 100):
            (tmp_path / "bad").write_bytes(copy)
            try:
                assert equal(read(kind, tmp_path / "bad", ["x"])["x"], arrays["x"]), kind
            except DataError:
                noticed += 1
        assert noticed > 5


def test_a_heap_that_goes_nowhere_does_not_hang(tmp_path: Path) -> None:
    """HDF5 itself never comes back from a heap with a size of zero, and asks for gigabytes for a wrong length."""
    path = tmp_path / "showers.h5"
    write("hdf5", path, [{"x": sample("hdf5")["part_px"]}])
    raw = path.read_bytes()
    heap = raw.index(b"GCOL")
    # The first object's size is 8 bytes after its header begins, the reference to it ends with the heap's address.
    lost = raw[: heap + 16] + bytes(16) + raw[heap + 32 :]
    reference = raw.index(heap.to_bytes(8, "little") + (1).to_bytes(4, "little")) - 4
    long = raw[: reference + 3] + b"\x40" + raw[reference + 4 :]
    for damaged, message in [(lost, "the heap at .* is damaged"), (long, "is not in its heap")]:
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"'x' cannot be read: .*{message}"):
            read("hdf5", path, ["x"])


def test_absurd_sizes_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (10, 2**40), "f4", chunks=(1, 1024))
    with pytest.raises(DataError, match="'x' would take .* GiB at once"):
        read("hdf5", tmp_path / "a.h5", ["x"], [0, 1])
