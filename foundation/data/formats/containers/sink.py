"""What every container can do for a writer: take arrays part by part, and finish the file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from foundation.data.formats.containers.source import Array


class Sink(ABC):
    """A file that is being written under a temporary name. The arrays of all parts have the same keys and types."""

    @abstractmethod
    def append(self, arrays: Mapping[str, Array]) -> None:
        """Write the next entries of every key."""

    @abstractmethod
    def finish(self) -> None:
        """Write what belongs at the end. Called once, after all parts, before `close`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file, finished or not."""
