"""Batches prepared ahead by one thread, while the model works on the ones before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """make(first), make(first + 1), ... make(last - 1), in this order, up to `depth` of them made ahead.

    With depth 0 there is no thread and each is made when it is asked for. What is made ahead and not taken is lost:
    whoever resumes asks for the step after the last one taken. An exception of `make` reaches the caller at the step
    that it belongs to, with its own traceback. Used as a context manager, no thread is left behind.
    """

    def __init__(self, make: Callable[[int], Item], first: int, last: int, depth: int) -> None:
        self._make, self._steps = make, range(first, last)
        self._ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(max(1, depth))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True) if depth > 0 else None

    def __enter__(self) -> Prefetcher[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        if self._thread is None:
            yield from map(self._make, self._steps)
            return
        self._thread.start()
        for _ in self._steps:
            item, error = self._ready.get()
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    def close(self) -> None:
        """Stop the thread and wait for its end, at most as long as it takes to make one item."""
        self._stopped.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        for step in self._steps:
            try:
                done: tuple[Item | None, BaseException | None] = self._make(step), None
            except BaseException as error:  # the caller decides
                done = None, error
            if not self._put(done) or done[1] is not None:
                return

    def _put(self, done: tuple[Item | None, BaseException | None]) -> bool:
        """False where nobody waits for it any more."""
        while not self._stopped.is_set():
            try:
                self._ready.put(done, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
