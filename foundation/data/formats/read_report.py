"""What reading met, in numbers that add up over ranges and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReadReport:
    """What reading met: counts, which add up over ranges and files."""

    objects: int = 0
    points: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    """Quantity -> how often the file says "none", read as 0."""
    outside: Mapping[str, int] = field(default_factory=dict)
    """Feature -> points outside the card's range; they are kept."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Quantity -> objects that the card's selection leaves out."""
    bad: Mapping[str, int] = field(default_factory=dict)
    """What is wrong -> objects that were skipped for it."""
    empty: int = 0
    """Objects without points; they are kept."""
    reordered: int = 0
    """Objects whose points were put into the card's order."""
    unused_keys: tuple[str, ...] = ()
    """Keys of the files that the card does not read."""

    def __add__(self, other: ReadReport) -> ReadReport:
        def added(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
            return dict(Counter(a) + Counter(b))

        return ReadReport(
            self.objects + other.objects,
            self.points + other.points,
            added(self.missing, other.missing),
            added(self.outside, other.outside),
            added(self.left_out, other.left_out),
            added(self.bad, other.bad),
            self.empty + other.empty,
            self.reordered + other.reordered,
            tuple(dict.fromkeys([*self.unused_keys, *other.unused_keys])),
        )

    def lines(self) -> list[str]:
        """What a user should know, one fact per line."""
        share = 100.0 / max(1, self.points)
        lines = [f"{self.objects:,} objects, {self.points:,} points"]
        lines += [f"skipped {n:,} objects: {what}" for what, n in self.bad.items()]
        lines += [f"left out {n:,} objects: {name} outside the card's selection" for name, n in self.left_out.items()]
        lines += [f"{n:,} values of '{name}' say \"none\" and are read as 0" for name, n in self.missing.items()]
        lines += [
            f"{n:,} points ({n * share:.2g} %) have '{name}' outside the card's range; they are kept"
            for name, n in self.outside.items()
        ]
        if self.empty:
            lines.append(f"{self.empty:,} objects have no points; they are kept")
        if self.reordered:
            lines.append(f"{self.reordered:,} objects had their points put into the card's order")
        if self.unused_keys:
            lines.append(f"not read: {', '.join(self.unused_keys)}")
        return lines
