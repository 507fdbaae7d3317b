"""A folder of fetched shards that all processes of a node share: each is fetched once, all together stay below a size.

Files are named by their sha256 and appear complete, by renaming, or not at all. Locks are those of flock(2), which the
system lets go when a process ends, however it ends: whoever fetches a shard holds its partial file, whoever reads one
holds the shard for as long as it is mapped, and what is held is never removed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import IO

from foundation.console import warn
from foundation.errors import DataError

PART = ".part"


class Urgency(IntEnum):
    """How much a shard is wanted."""

    IDLE = 0
    """Take it if there is room: free, or held by what nobody has read since this process began."""
    SOON = 1
    """It is read next: remove what was read longest ago."""
    NOW = 2
    """A reader waits: also wait for the process that is fetching it."""


class ShardCache:
    """The folder `folder`, kept below `limit` bytes; only shards in use at once can exceed it."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.began = time.time()
        self._warned = False

    def path(self, key: str) -> Path:
        """Where a shard lies once it is here."""
        return self.folder / key

    def open(self, key: str) -> mmap.mmap | None:
        """Map a shard, if it is here; it counts as used now and is not removed as long as the map lives."""
        try:
            descriptor = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None
        try:
            self._flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink == 0:  # removed while we opened it
                return None
            os.utime(descriptor)
            # the map has its own copy of the descriptor, and the lock lasts until the last copy is closed
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def fetch(self, key: str, size: int, fill: Callable[[IO[bytes]], None], urgency: Urgency) -> mmap.mmap | None:
        """Map a shard, fetched by `fill(file)` if it is not here.

        None: there is no room for it, or another process is fetching it (never when the urgency is NOW). What `fill`
        raises is raised, and the shard is not here.
        """
        part = self.path(key + PART)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                mapped = self.open(key)
                if mapped is not None:
                    return mapped
                with self._locked(part, wait=urgency == Urgency.NOW) as descriptor:
                    if descriptor is None:
                        return None
                    # who held the lock before us has renamed or removed the file: look again
                    if not _is(descriptor, part):
                        continue
                    if not self._fill(descriptor, part, size, fill, urgency):
                        return None
                    os.rename(part, self.path(key))
        except OSError as error:
            raise self._unusable(error) from None

    def _fill(
        self, descriptor: int, part: Path, size: int, fill: Callable[[IO[bytes]], None], urgency: Urgency
    ) -> bool:
        done = False
        try:
            if self._make_room(descriptor, size, urgency):
                with os.fdopen(descriptor, "r+b", closefd=False) as file:
                    fill(file)
                    file.flush()
                    os.fsync(descriptor)
                done = True
        finally:
            if not done:
                part.unlink(missing_ok=True)
        return done

    def _make_room(self, descriptor: int, size: int, urgency: Urgency) -> bool:
        """Remove what was used longest ago until `size` bytes fit, and reserve them in the open partial file."""
        with self._locked(self.folder / ".lock", wait=True):
            os.ftruncate(descriptor, 0)  # it may be what a killed process left
            files = self._files()
            used = sum(bytes_ for _, _, bytes_, _ in files)
            free = shutil.disk_usage(self.folder).free
            missing = max(used + size - self.limit, size - free)
            for is_shard, used_at, bytes_, path in files:
                recent = is_shard and used_at >= self.began
                if missing <= 0 or (recent and urgency == Urgency.IDLE):
                    break
                if _remove_unless_held(path):
                    missing -= bytes_
                    free += bytes_
                    self._warn_if(recent, "shards read in this run are removed for others and will be fetched again")
            if missing > 0 and urgency != Urgency.NOW:
                return False
            if free < size:
                raise DataError(
                    f"{self.folder}: {free} bytes are free, {size} are needed: free space, or another folder"
                )
            self._warn_if(missing > 0, "all shards in it are in use, so it has to grow beyond its limit")
            os.ftruncate(descriptor, size)
        return True

    def _files(self) -> list[tuple[bool, float, int, Path]]:
        """(whether complete, time of last use, bytes, path) of every file, in the order in which they may go."""
        files = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                status = entry.stat()
                files.append((not entry.name.endswith(PART), status.st_mtime, status.st_size, Path(entry.path)))
        return sorted(file for file in files if file[3].name != ".lock")

    def _warn_if(self, true: bool, what: str) -> None:
        if true and not self._warned:
            self._warned = True
            warn(f"{self.folder}: {what}; give the cache more than {self.limit / 1e9:g} GB")

    @contextmanager
    def _locked(self, path: Path, wait: bool) -> Iterator[int | None]:
        """A descriptor of the file, which only this thread holds, or None when it is held and we do not wait."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _held.add(descriptor)
        try:
            try:
                self._flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            _held.discard(descriptor)
            os.close(descriptor)

    def _flock(self, descriptor: int, kind: int) -> None:
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            raise
        except OSError as error:  # a network file system without locks
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> DataError:
        return DataError(
            f"{self.folder}: cannot be used as a cache ({error.strerror or error}): free space there, or choose a "
            "folder on a disk of this machine"
        )


def _is(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_unless_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is(descriptor, path):
            return False
        os.unlink(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child has copies of our descriptors, which would hold our locks after our end."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
