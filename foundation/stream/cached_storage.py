"""A remote folder with a cache beside it: range requests until a shard has been fetched, memory maps from then on."""

from __future__ import annotations

import mmap
import os
import threading
from functools import partial
from typing import Any

from numpy.typing import NDArray

from foundation.console import warn
from foundation.errors import DataError
from foundation.stream.shard_cache import ShardCache, Urgency
from foundation.stream.sources import RangesIgnored, Source
from foundation.stream.storage import Maps, Storage, array_in

OPEN_CACHED = 4
"""Shards a process keeps mapped; mapped shards cannot be removed, so few."""
FETCHERS = 2
"""Threads of a process that fetch shards in the background."""


class CachedStorage(Storage):
    """Blocks are read from the source at once, while their shards are fetched in the background for the next time.

    Blocks come in random order, so that a cache smaller than the dataset would be rewritten all the time: a shard that
    is merely read takes only room that is free or held by what this run has not read. `will_need` removes older ones.
    """

    _of_this_process = ("_maps", "_lock", "_wanted", "_fetching", "_given_up")

    def __init__(self, source: Source, cache: ShardCache) -> None:
        self.source, self.cache = source, cache
        super().__init__(source.folder)

    def begin(self) -> None:
        self._maps = Maps(OPEN_CACHED)
        self._lock = threading.Lock()
        self._wanted: dict[str, Urgency] = {}
        self._fetching: set[str] = set()
        self._given_up: dict[str, Urgency] = {}
        """Files not fetched in the background up to this urgency: there is no room, or fetching them failed."""

    def where(self, name: str) -> str:
        key = self._key(name)
        kept = f" (cached as {self.cache.path(key)})" if key and self.cache.path(key).exists() else ""
        return self.source.where(name) + kept

    def expect(self, name: str, size: int, sha256: str = "") -> None:
        super().expect(name, size, sha256)
        self.source.expect(name, size, sha256)

    def read(self, name: str, start: int, stop: int) -> memoryview:
        mapped = self._mapped(name)
        if mapped is None and self.source.ranges:
            self._want([name], Urgency.IDLE)
            try:
                return self.source.read(name, start, stop)
            except RangesIgnored:
                self.source.ranges = False
        if mapped is None:
            mapped = self._fetch(name)
        if not 0 <= start <= stop <= len(mapped):
            raise DataError(f"{self.where(name)}: bytes {start}-{stop} asked for, the file has {len(mapped)}")
        return memoryview(mapped)[start:stop]

    def read_all(self, name: str) -> bytes:
        return self.source.read_all(name)

    def size(self, name: str) -> int:
        return self.source.size(name)

    def exists(self, name: str) -> bool:
        return name in self._expected or self.source.exists(name)

    def array(self, name: str) -> NDArray[Any]:
        if self._key(name) is None:
            return self.source.array(name)
        return array_in(self._fetch(name), self.where(name))

    def will_need(self, names: list[str]) -> None:
        self._want(names, Urgency.SOON)

    def _key(self, name: str) -> str | None:
        expected = self._expected.get(name)
        return expected.sha256 + os.path.splitext(name)[1] if expected and expected.sha256 and expected.size else None

    def _mapped(self, name: str) -> mmap.mmap | None:
        mapped = self._maps.get(name)
        if mapped is None and (key := self._key(name)):
            mapped = self.cache.open(key)
            if mapped is not None:
                self._maps.put(name, mapped)
        return mapped

    def _fetch(self, name: str) -> mmap.mmap:
        mapped = self._fetch_if(name, Urgency.NOW)
        assert mapped is not None
        self._maps.put(name, mapped)
        return mapped

    def _fetch_if(self, name: str, urgency: Urgency) -> mmap.mmap | None:
        key = self._key(name)
        if key is None:
            raise DataError(f"{self.where(name)}: no sha256 is known for it, so it cannot be kept in a cache")
        return self.cache.fetch(key, self._expected[name].size, partial(self.source.fetch, name), urgency)

    def _want(self, names: list[str], urgency: Urgency) -> None:
        """Have files fetched in the background; those needed soon before all others."""
        with self._lock:
            new = {name: urgency for name in names if self._is_worth(name, urgency)}
            if urgency == Urgency.SOON:
                self._wanted = new | {name: u for name, u in self._wanted.items() if name not in new}
            else:
                self._wanted |= {name: u for name, u in new.items() if name not in self._wanted}
            for _ in range(min(len(self._wanted), FETCHERS - len(self._fetching))):
                name = next(iter(self._wanted))
                # a daemon: to end the program must not take as long as all that is still wanted
                threading.Thread(target=self._work, args=self._take(name), name="fetch shards", daemon=True).start()

    def _is_worth(self, name: str, urgency: Urgency) -> bool:
        given_up = name in self._given_up and self._given_up[name] >= urgency
        return not (given_up or name in self._fetching or self._key(name) is None or self._maps.get(name))

    def _take(self, name: str) -> tuple[str, Urgency]:
        self._fetching.add(name)
        return name, self._wanted.pop(name)

    def _work(self, name: str, urgency: Urgency) -> None:
        """Fetch this file, then others while there are any."""
        while True:
            given_up = self._try(name, urgency)
            with self._lock:
                self._fetching.discard(name)
                if given_up is not None:
                    self._given_up[name] = given_up
                if not self._wanted:
                    return
                name, urgency = self._take(next(iter(self._wanted)))

    def _try(self, name: str, urgency: Urgency) -> Urgency | None:
        """Fetch a file. When it is not here after that: the urgency up to which there is no use in trying again."""
        try:
            mapped = self._fetch_if(name, urgency)
        except DataError as error:
            # what is read stays right: it comes by range requests, and the reader checks each block
            warn(f"not kept in the cache: {error}")
            return Urgency.NOW
        return Urgency.IDLE if mapped is None and urgency == Urgency.IDLE else None
