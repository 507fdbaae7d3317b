"""What every container can do for a reader: name its keys, count its entries, give arrays of a range of entries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """One vector per entry, as a flat array: entry i owns counts[i] values, one entry after the other.

    values: [N]; counts: int64 [B] with sum N
    """

    values: NDArray
    counts: NDArray[np.int64]


Array = NDArray | Ragged
"""What a key holds in a range of B entries: a dense array [B, ...] or vectors of different lengths."""


class Source(ABC):
    """An open file. Use it as a context manager.

    Every method raises DataError, naming the file and the key, when the file is damaged, truncated or lacks the key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def keys(self) -> tuple[str, ...]:
        """Names of all arrays in the file, as `read` takes them."""

    @abstractmethod
    def entries(self, keys: Sequence[str]) -> int:
        """Number of entries, the same for all these keys; DataError when they disagree or a key is not there."""

    @abstractmethod
    def bytes_per_entry(self, keys: Sequence[str]) -> float:
        """Memory that one entry of these keys takes when it is read, about: for the size of chunks."""

    @abstractmethod
    def read(self, keys: Sequence[str], start: int, stop: int) -> dict[str, Array]:
        """The arrays of entries start to stop (exclusive), by key."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Key -> its type and shape in words, "float32 [100000, 6480]", for `inspect`."""

    def close(self) -> None:  # noqa: B027 - nothing to close is fine
        """Let go of the file."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
