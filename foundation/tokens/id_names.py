"""What an id means, in words."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from foundation.data.cards import Condition
from foundation.errors import DataError
from foundation.tokens.conditions import condition_edges
from foundation.tokens.vocabulary import NONE, SPECIALS, Range, Vocabulary

SPECIAL_MEANINGS = (
    "no code in this place",
    "a sequence begins",
    "a sequence ends",
    "a class or condition that is not given",
)


class IdNames:
    """What an id means: its range and its place there, classes by their name."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ranges = list(vocabulary.ranges.values())
        self._starts: Sequence[int] = [r.start for r in self._ranges]
        entries = vocabulary.datasets.values()
        self._classes = {f"class.{d.name}": (d.name, d.classes) for d in entries if d.classes}
        self._conditions = {f"condition.{d.name}.{c.name}": (d.name, c) for d in entries for c in d.conditions}
        self._tags = {f"tag.{d.name}": d.name for d in entries}
        self._coded: dict[str, list[str]] = {}
        for d in entries:
            for stream in d.streams:
                self._coded.setdefault(f"{d.codes}.{stream}", []).append(d.name)

    def range_of(self, number: int) -> Range:
        """The range that an id belongs to; DataError where there is no such id."""
        if not 0 <= number < self._vocabulary.size:
            raise DataError(f"there is no id {number} in this vocabulary: ids go from 0 to {self._vocabulary.size - 1}")
        return self._ranges[bisect_right(self._starts, number) - 1]

    def of(self, number: int) -> str:
        """`812 jets.pt 14`, or nothing for the empty place."""
        if number == NONE:
            return ""
        r = self.range_of(number)
        place = number - r.start
        if r.name == "special":
            return f"{number} {SPECIALS[place]}"
        if r.name in self._classes:
            return f"{number} {r.name} {self._classes[r.name][1][place]}"
        return f"{number} {r.name}" + (f" {place}" if r.size > 1 else "")

    def meaning(self, number: int) -> str:
        """`bin 3 of 8 of condition 'incident_energy' of 'showers': 11.9 to 15.8 GeV`, or the like."""
        r = self.range_of(number)
        place = number - r.start
        if r.name == "special":
            return f"{SPECIALS[place]}: {SPECIAL_MEANINGS[place]}"
        if r.name in self._tags:
            return f"an object of dataset '{self._tags[r.name]}'"
        if r.name in self._classes:
            tag, classes = self._classes[r.name]
            return f"class '{classes[place]}' of '{tag}'"
        if r.name in self._conditions:
            tag, condition = self._conditions[r.name]
            low, high = condition_edges(condition)[place : place + 2].tolist()
            return f"condition '{condition.name}' of '{tag}': {low:.6g} to {high:.6g} {condition.unit}"
        return f"code {place} of 0 to {r.size - 1} of {self._stream(r)}"

    def range_meaning(self, r: Range) -> str:
        """What the ids of a range are for."""
        if r.name == "special":
            return ", ".join(SPECIALS)
        if r.name in self._tags:
            return f"dataset '{self._tags[r.name]}'"
        if r.name in self._classes:
            return f"classes {', '.join(self._classes[r.name][1])}"
        if r.name in self._conditions:
            return condition_in_words(self._conditions[r.name][1])
        return self._stream(r)

    def _stream(self, r: Range) -> str:
        return f"the codes of {', '.join(self._coded.get(r.name, ['no dataset']))}"


def condition_in_words(condition: Condition) -> str:
    """`incident_energy, 32 log bins from 1 to 1000 GeV`."""
    low, high = condition.range
    return f"{condition.name}, {condition.bins} {condition.scale} bins from {low:g} to {high:g} {condition.unit}"
