"""Where the files of a sharded dataset lie: a folder, or a URL that is read by range requests or through a cache.

Readers ask for bytes by file name and never see the difference. What belongs to one process (memory maps, locks,
threads, connections) is made anew after a fork and after unpickling, so that workers of a DataLoader can use a storage.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError

OPEN_SHARDS = 64
"""Memory maps that a local storage keeps open; each holds a file descriptor."""
CACHE_BYTES = 200 * 10**9
"""How much a cache folder may hold unless told otherwise."""
PIPE = "pipe:"
_SHA256_OR_NONE = re.compile(r"([0-9a-f]{64})?")


class Expected(NamedTuple):
    """What the manifest says about a file."""

    size: int
    sha256: str


class Storage(ABC):
    """The files of one dataset folder, read by name (`manifest.json`, `000000.tar`).

    Every method raises DataError, naming the file by its full path or URL, when the file is missing, cannot be read
    or is not what `expect` announced. Safe to use from several threads, after a fork and after pickling.
    """

    local = False
    """Whether the files lie in a folder of this machine, which can perhaps be written to."""
    _of_this_process: tuple[str, ...] = ()
    """Attributes that `begin` makes and that no other process can use."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._expected: dict[str, Expected] = {}
        self.begin()
        _storages.add(self)

    def begin(self) -> None:  # noqa: B027 (not every storage holds something)
        """Make what belongs to this process alone; called at the start, in a forked child and after unpickling."""

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self._of_this_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.begin()
        _storages.add(self)

    def where(self, name: str) -> str:
        """Full path or URL of a file, for messages; without passwords and tokens."""
        return f"{self.folder}/{name}"

    def expect(self, name: str, size: int, sha256: str = "") -> None:
        """Say what the manifest promises about a file. Opens nothing; a difference is an error when the file is read.

        The size is compared when a file is opened (local) or fetched (cache), the hash when it is fetched. Only a file
        with a hash is kept in a cache, under its hash: a dataset written anew never meets the bytes of the old one.
        """
        if name.startswith("/") or ".." in name.split("/") or not _SHA256_OR_NONE.fullmatch(sha256):
            raise DataError(f"{self.where(name)}: not a file name and sha256 that a manifest can give ({sha256!r})")
        self._expected[name] = Expected(size, sha256)

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> memoryview:
        """Bytes start:stop of a file, read-only. Fewer are an error."""

    @abstractmethod
    def read_all(self, name: str) -> bytes:
        """A whole small file, as it is now: never from a cache."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file. An unreachable or refusing server is an error, not False."""

    @abstractmethod
    def array(self, name: str) -> NDArray[Any]:
        """The array of a .npy file, memory-mapped and read-only; a remote file is fetched whole first."""

    def will_need(self, names: list[str]) -> None:  # noqa: B027 (without a cache there is nothing to do)
        """Start fetching files that are read next, in this order."""


_storages: weakref.WeakSet[Storage] = weakref.WeakSet()


def _begin_in_child() -> None:
    for storage in list(_storages):
        storage.begin()


os.register_at_fork(after_in_child=_begin_in_child)


def open_storage(folder: Path | str, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> Storage:
    """The storage of a dataset folder: a path, any URL that fsspec knows, or WebDataset's `pipe:`.

    `s3://bucket/folder`, `gs://...`, `https://...` are read by range requests; with a cache folder, which all processes
    of a node share, whole shards are fetched beside them, up to `cache_bytes`. `pipe:COMMAND`, with `{name}` where the
    file's name goes, runs a command (without a shell) per file, so it needs the cache. Credentials are those that the
    protocol finds by itself (environment, its own files, fsspec's configuration). Touches no file, opens no connection.
    """
    text = str(folder)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if not text.startswith(PIPE) and "://" not in text:
        return LocalStorage(text)
    # fsspec takes a while to import, and most datasets are local
    from foundation.stream.cached_storage import CachedStorage
    from foundation.stream.shard_cache import ShardCache
    from foundation.stream.sources import CommandSource, Source, UrlSource

    source: Source = CommandSource(text) if text.startswith(PIPE) else UrlSource(text)
    if cache is not None:
        return CachedStorage(source, ShardCache(Path(cache), cache_bytes))
    if not source.ranges:
        raise DataError(f"{text}: the output of a command cannot be read in parts: give a cache folder (cache: ...)")
    return source


class LocalStorage(Storage):
    """A folder of this machine; its shards are memory-mapped, the most recently used ones stay open."""

    local = True
    _of_this_process = ("_maps",)

    def begin(self) -> None:
        self._maps = Maps(OPEN_SHARDS)

    def read(self, name: str, start: int, stop: int) -> memoryview:
        mapped = self._maps.get(name)
        if mapped is None:
            mapped = self._open(name)
            self._maps.put(name, mapped)
        # asked of the open file each time: to touch a page behind the end of a file that was cut would kill the process
        size = mapped.size()
        if not 0 <= start <= stop <= size:
            raise DataError(f"{self.where(name)}: bytes {start}-{stop} asked for, the file has {size}: {COPY_AGAIN}")
        return memoryview(mapped)[start:stop]

    def read_all(self, name: str) -> bytes:
        try:
            return Path(self.where(name)).read_bytes()
        except OSError as error:
            raise self._problem(name, error) from None

    def size(self, name: str) -> int:
        try:
            return os.stat(self.where(name)).st_size
        except OSError as error:
            raise self._problem(name, error) from None

    def exists(self, name: str) -> bool:
        return os.path.isfile(self.where(name))

    def array(self, name: str) -> NDArray[Any]:
        return array_in(self._open(name), self.where(name))

    def _open(self, name: str) -> mmap.mmap:
        try:
            with open(self.where(name), "rb") as file:
                size, expected = os.fstat(file.fileno()).st_size, self._expected.get(name)
                if size == 0 or (expected and size != expected.size):
                    says = f", the manifest says {expected.size}" if expected else ""
                    raise DataError(f"{self.where(name)}: has {size} bytes{says}: {COPY_AGAIN}")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._problem(name, error) from None

    def _problem(self, name: str, error: OSError) -> DataError:
        if isinstance(error, FileNotFoundError):
            return DataError(f"{self.where(name)}: missing: {COPY_AGAIN}")
        return DataError(f"{self.where(name)}: cannot be read ({error.strerror})")


COPY_AGAIN = "copy the file again from where the dataset was written, or write the dataset again"


class Maps:
    """Open memory maps by name, the least recently used given up first; a map lives on while it has views."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()

    def get(self, name: str) -> mmap.mmap | None:
        """The map of a file, if it is open."""
        with self._lock:
            mapped = self._maps.get(name)
            if mapped is not None:
                self._maps.move_to_end(name)
            return mapped

    def put(self, name: str, mapped: mmap.mmap) -> None:
        """Keep a map open."""
        with self._lock:
            self._maps[name] = mapped
            self._maps.move_to_end(name)
            while len(self._maps) > self.most:
                self._maps.popitem(last=False)


def array_in(data: mmap.mmap, where: str) -> NDArray[Any]:
    """The array of a mapped .npy file; read-only, and the file stays mapped as long as the array lives."""
    head = io.BytesIO(bytes(data[:65536]))
    try:
        version = np.lib.format.read_magic(head)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, by_column, dtype = read_header(head)
    except (ValueError, KeyError) as error:
        raise DataError(f"{where}: not a .npy file ({error}): {COPY_AGAIN}") from None
    if dtype.hasobject:
        raise DataError(f"{where}: holds Python objects, which are not read: {COPY_AGAIN}")
    count = int(np.prod(shape, dtype=np.int64))
    if head.tell() + count * dtype.itemsize > len(data):
        raise DataError(f"{where}: has {len(data)} bytes, too few for an array of shape {shape}: {COPY_AGAIN}")
    flat = np.frombuffer(data, dtype, count, head.tell())
    return flat.reshape(shape, order="F" if by_column else "C")
