"""Which container a file is, and opening it."""

from __future__ import annotations

from pathlib import Path

from foundation.data.formats.containers.damage import damage_as_data_error
from foundation.data.formats.containers.source import Source
from foundation.errors import DataError, did_you_mean

CONTAINERS = ("root", "parquet", "hdf5", "npz", "showerdata")
SUFFIXES = {
    ".root": "root",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".npz": "npz",
}
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def container_of(path: Path) -> str | None:
    """Which container this file is, one of CONTAINERS: by its first bytes, or by its suffix where they tell nothing."""
    return _by_content(path) or SUFFIXES.get(path.suffix.lower())


def open_source(path: Path, container: str, tree: str | None = None) -> Source:
    """The file as a source of arrays, to be used as a context manager.

    container: one of CONTAINERS; tree: name of the TTree or RNTuple of a ROOT file, None for the only one

    Raises DataError when there is no such file, it is another container, or damaged.
    """
    if container not in CONTAINERS:
        raise DataError(f"no container '{container}'{did_you_mean(container, CONTAINERS)}")
    if not path.is_file():
        raise DataError(f"{path}: is a folder, not a file" if path.is_dir() else f"{path}: no such file")
    with damage_as_data_error(path):
        size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: is empty; copy or download it again")
    found = _by_content(path)
    # The files of showerdata are HDF5; whether one has its layout is seen when it is opened.
    if found != container and {found, container} != {"showerdata", "hdf5"}:
        what = f"it is {found}" if found else "it begins like none"
        raise DataError(f"{path}: is not a {container} file, {what}; damaged, or another format than the card's")
    return _opened(path, container, tree)


def _opened(path: Path, container: str, tree: str | None) -> Source:
    # The libraries take a second to import, so only the one that is needed is.
    if container == "root":
        from foundation.data.formats.containers.root import RootSource

        return RootSource(path, tree)
    if container == "parquet":
        from foundation.data.formats.containers.parquet import ParquetSource

        return ParquetSource(path)
    if container == "npz":
        from foundation.data.formats.containers.npz import NpzSource

        return NpzSource(path)
    if container == "showerdata":
        from foundation.data.formats.containers.showerdata import ShowerdataSource

        return ShowerdataSource(path)
    from foundation.data.formats.containers.hdf5 import Hdf5Source

    return Hdf5Source(path)


def _by_content(path: Path) -> str | None:
    """By the first bytes, None when they are of no container or cannot be read."""
    try:
        with path.open("rb") as file:
            begin = file.read(8)
            if begin.startswith(b"root"):
                return "root"
            if begin.startswith(b"PAR1"):
                return "parquet"
            if begin.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                return "npz"
            # HDF5 lets other data of 512, 1024, 2048 ... bytes come first.
            at = 512
            while begin and begin != HDF5_MAGIC and at <= 2**20:
                file.seek(at)
                begin, at = file.read(8), 2 * at
    except OSError:
        return None
    return _kind_of_hdf5(path) if begin == HDF5_MAGIC else None


def _kind_of_hdf5(path: Path) -> str:
    from foundation.data.formats.containers.hdf5 import has_attribute

    try:
        return "showerdata" if has_attribute(path, "showerdata_version") else "hdf5"
    except DataError:
        return "hdf5"
