"""Which ids are legal at each place of a sequence, and whether a sequence obeys that.

What `Layout.sequences` builds is legal, and nothing else is: the grammar of foundation/tokens/layout.py, read the other
way round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.tokens.id_names import IdNames
from foundation.tokens.layout import Layout
from foundation.tokens.vocabulary import ANY, BOS, EOS, NONE, Range


@dataclass(frozen=True)
class Legal:
    """Legal ids of every place of a sequence with T steps: start .. stop - 1, and `other`; int64 [T, S] each."""

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    other: NDArray[np.int64]

    def accepts(self, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of the ids [t, S] of the first t steps are legal."""
        t = len(ids)
        return ((ids >= self.start[:t]) & (ids < self.stop[:t])) | (ids == self.other[:t])


class Grammar:
    """The grammar of all datasets in a layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._names = IdNames(layout.vocabulary)

    def legal(self, tag: str, points: int, ends: bool = True) -> Legal:
        """Legal ids of a sequence with so many points (or patches), from bos to its last step.

        ends: it has no more points than these. Else it is one that goes on, and where a sequence may end, eos is not
        among the legal ids.
        """
        layout, p = self.layout, self.layout.prefix_length(tag)
        steps = int(layout.lengths(tag, np.array([points]))[0])
        empty = np.full((steps, layout.columns), NONE)
        legal = Legal(empty, empty.copy(), empty.copy())
        for step, (r, other) in enumerate(self._prefix(tag)):
            legal.start[step, 0], legal.stop[step, 0], legal.other[step, 0] = r.start, r.stop, other
        ranges = layout.vocabulary.stream_ranges(tag)
        for stream, r in enumerate(ranges):
            body, column = layout.place(stream, np.arange(points), len(ranges))
            legal.start[p + body, column], legal.stop[p + body, column] = r.start, r.stop
            legal.other[p + body, column] = r.start
        if ends:
            legal.other[p + int(layout.end_step(tag, np.array(points))), 0] = EOS
        return legal

    def _prefix(self, tag: str) -> list[tuple[Range, int]]:
        """Range and other legal id of each step of the prefix."""
        vocabulary = self.layout.vocabulary
        tag_id = vocabulary.tag_id(tag)
        conditions = [vocabulary.condition_range(tag, c.name) for c in vocabulary.dataset(tag).conditions]
        fixed = [(Range("bos", BOS, 1), BOS), (Range("tag", tag_id, 1), tag_id)]
        return fixed + [(r, ANY) for r in (vocabulary.class_range(tag), *conditions)]

    def check(self, tag: str, ids: NDArray[np.integer]) -> None:
        """Raise DataError, naming the place, unless ids [T, S] are a whole sequence of this dataset."""
        problem = self.problem(tag, ids)
        if problem is not None:
            raise DataError(f"not a sequence of '{tag}': {problem}")

    def problem(self, tag: str, ids: NDArray[np.integer]) -> str | None:
        """What is wrong with a sequence [T, S] of a dataset, first place first; None where it is legal."""
        if ids.ndim != 2 or ids.shape[1] != self.layout.columns:
            return f"it has the shape {ids.shape}, but steps have {self.layout.columns} columns"
        if not len(ids):
            return "it has no steps"
        points, ends = self._points(tag, ids)
        legal = self.legal(tag, points, ends)
        steps = len(legal.start) if ends else len(ids)
        wrong = np.argwhere(~legal.accepts(ids[:steps]))
        if len(wrong):
            return self._wrong_place(tag, ids, legal, *wrong[0].tolist())
        if len(ids) < steps:
            return f"it breaks off after step {len(ids) - 1}, and has {steps} steps with its {points} points"
        if not ends:
            return f"it breaks off after step {len(ids) - 1} without eos"
        if len(ids) > steps:
            return f"it goes on at step {steps}, after its end"
        return None

    def _points(self, tag: str, ids: NDArray[np.integer]) -> tuple[int, bool]:
        """Points of a sequence by its first eos that stands where one may, and whether there is one."""
        entry, p = self.layout.entry(tag), self.layout.prefix_length(tag)
        if entry.tokens_per_object is not None:
            return entry.tokens_per_object, True
        every = int(self.layout.end_step(tag, np.array(1)))
        ends = np.flatnonzero(ids[p::every, 0] == EOS)
        return (int(ends[0]), True) if len(ends) else (len(ids), False)

    def _wrong_place(self, tag: str, ids: NDArray[np.integer], legal: Legal, step: int, column: int) -> str:
        found = int(ids[step, column])
        known = 0 < found < self.layout.vocabulary.size
        name = self._names.of(found) if known else f"{found}, which is none of the vocabulary's" if found else "no id"
        return f"step {step}, column {column} has {name}, where {self._wanted(tag, legal, step, column)} is legal"

    def _wanted(self, tag: str, legal: Legal, step: int, column: int) -> str:
        start, stop, other = (int(a[step, column]) for a in (legal.start, legal.stop, legal.other))
        words = []
        if stop > start:
            name = self._names.range_of(start).name
            words.append(f"{start} ({name})" if stop == start + 1 else f"{start} to {stop - 1} ({name})")
        if other in (ANY, EOS):
            words.append(self._names.of(other))
        first = self.layout.first_slot[tag]
        if start == self.layout.slots[first].start and self.layout.slots[first].ends and column == 0:
            words.append(self._names.of(EOS))
        return " or ".join(words) or "no id"
