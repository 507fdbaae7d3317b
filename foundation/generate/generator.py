"""Objects by their numbers: sampled, decoded, resolved and, where it is asked for, judged and calibrated.

What becomes of object i follows from the model, the settings, the seed and i alone. A rejected object is drawn again
under the number i + t 2^40 of its t-th next try, which follows from i too.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.collisions import hits_outside
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.generate.beginnings import Beginnings
from foundation.generate.corrections import Calibration, accepted
from foundation.generate.decoding import decoded, resolved
from foundation.generate.request_config import Reject
from foundation.generate.sampler import Request, Sampled, Sampler
from foundation.tokens.conditions import conditions_outside
from foundation.tokens.tokenizer import Codes, Tokenizer

TRY = 2**40
"""Distance of the numbers of an object's tries; a campaign has fewer objects."""
COUNTS = (
    "objects", "reached_max_points", "empty", "merged_hits", "hits_outside_geometry", "rejected", "not_accepted",
    "tokens",
)  # fmt: skip
"""Counts of a report, in the order in which they are said; rejected ones of all tries, tokens without ends."""
DECODED_POINTS = 500_000
"""Points that are decoded at a time, about."""


@dataclass(frozen=True)
class Wanted:
    """b objects to generate: their numbers int64 [b], labels [b], conditions [b, C], and how they begin."""

    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    conditions: NDArray[np.float32]
    beginnings: Beginnings | None = None

    def __len__(self) -> int:
        return len(self.index)

    def select(self, rows: NDArray[np.int64]) -> Wanted:
        """Some of them."""
        begun = None if self.beginnings is None else self.beginnings.of(rows)
        return Wanted(self.index[rows], self.labels[rows], self.conditions[rows], begun)


@dataclass(frozen=True)
class Generated:
    """Clouds, and what happened on the way: counts that a user must know."""

    clouds: PointClouds
    report: dict[str, int]


class _Part:
    """A part on its way: what was drawn of it so far, and what was accepted."""

    def __init__(self, number: int, wanted: Wanted) -> None:
        self.number, self.wanted = number, wanted
        self.tries = np.zeros(len(wanted), np.int64)
        self.pending = np.arange(len(wanted))
        """Rows that are being drawn."""
        self.drawn: dict[int, Sampled] = {}
        """By row."""
        self.accepted: list[tuple[NDArray[np.int64], PointClouds]] = []
        """Rows and their clouds."""
        self.counts: Counter[str] = Counter()

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the objects of these rows, of their present try."""
        return self.wanted.index[rows] + TRY * self.tries[rows]

    def clouds(self) -> PointClouds:
        """All clouds, in their order."""
        rows = np.concatenate([rows for rows, _ in self.accepted])
        return PointClouds.concatenate([clouds for _, clouds in self.accepted]).select(np.argsort(rows))


@dataclass(frozen=True)
class Generator:
    """Generates objects of one dataset with a sampler that knows the model, the dataset and the seed.

    prefix: ids [b, P] for labels [b] and conditions [b, C]
    """

    sampler: Sampler
    prefix: Callable[[NDArray[np.int64], NDArray[np.float32]], NDArray[np.int64]]
    tokenizer: Tokenizer
    card: DatasetCard
    seed: int
    reject: Reject | None = None
    calibration: Calibration | None = None

    def parts(
        self, wanted: Iterable[Wanted], advance: Callable[[int], None] = lambda objects: None
    ) -> Iterator[tuple[int, Generated]]:
        """Number of each part among `wanted`, and what was generated, as parts become ready.

        While the last objects of a part end, the next one has begun: the sampler is never short of work before the end.
        advance: called with the number of objects that are ready, as soon as they are
        """
        coming, again = enumerate(wanted), deque[Request]()
        places: dict[int, tuple[_Part, int]] = {}

        def requests() -> Iterator[Request]:
            while True:
                while again:
                    yield again.popleft()
                number, part = next(coming, (0, None))
                if part is None:
                    return
                yield from self._requests(_Part(number, part), places)

        while True:
            for sampled in self.sampler.objects(requests()):
                part, row = places.pop(sampled.index)
                part.drawn[row] = sampled
                if len(part.drawn) < len(part.pending):
                    continue
                advance(self._judge(part))
                if len(part.pending):
                    again.extend(self._requests(part, places))
                else:
                    yield part.number, self._finished(part)
            if not again:
                return

    def _requests(self, part: _Part, places: dict[int, tuple[_Part, int]]) -> Iterator[Request]:
        """Requests for the pending rows of a part; `places` gets where their answers belong."""
        rows, numbers = part.pending.tolist(), part.numbers(part.pending).tolist()
        chosen = part.wanted.select(part.pending)
        begun = [None] * len(rows) if chosen.beginnings is None else chosen.beginnings.each()
        prefixes = self.prefix(chosen.labels, chosen.conditions)
        for row, number, prefix, given in zip(rows, numbers, prefixes, begun, strict=True):
            places[number] = part, row
            yield Request(number, prefix, given)

    def _judge(self, part: _Part) -> int:
        """Decode what was drawn of a part and accept it, or note that it is to be drawn again; how many are good."""
        rows, drawn = part.pending, [part.drawn[row] for row in part.pending.tolist()]
        clouds = self._decoded(part, rows, drawn)
        good = np.ones(len(rows), np.bool_)
        if self.reject is not None:
            good = accepted(self.reject, resolved(clouds, self.card)[0])
            last = part.tries[rows] + 1 >= self.reject.tries
            part.counts.update(rejected=int((~good).sum()), not_accepted=int((~good & last).sum()))
            good |= last
        part.accepted.append((rows[good], clouds.select(good)))
        cut = np.array([sampled.cut for sampled in drawn])
        part.counts.update(reached_max_points=int((cut & good).sum()))
        part.tries[rows] += 1
        part.pending, part.drawn = rows[~good], {}
        return int(good.sum())

    def _decoded(self, part: _Part, rows: NDArray[np.int64], drawn: list[Sampled]) -> PointClouds:
        """Clouds of these rows, decoded in pieces of about as many points: a part may have many."""
        counts = np.array([len(sampled.codes) for sampled in drawn], np.int64)
        part.counts.update(tokens=int(counts.sum()) * len(self.tokenizer.streams))
        borders = np.flatnonzero(np.diff(np.cumsum(counts) // DECODED_POINTS)) + 1
        pieces = []
        for piece in np.split(np.arange(len(rows)), borders):
            wanted = part.wanted.select(rows[piece])
            values = np.concatenate([drawn[i].codes for i in piece.tolist()])
            codes = Codes(values, to_offsets(counts[piece]))
            pieces.append(
                decoded(
                    self.tokenizer, self.card, codes, wanted.labels, wanted.conditions, self.seed,
                    part.numbers(rows[piece]), wanted.beginnings,
                )
            )  # fmt: skip
        return PointClouds.concatenate(pieces)

    def _finished(self, part: _Part) -> Generated:
        """The clouds of a part, resolved and calibrated, and its counts."""
        card, clouds = self.card, part.clouds()
        report = {
            "objects": len(clouds),
            "reached_max_points": part.counts["reached_max_points"],
            "empty": int((clouds.counts == 0).sum()),
        }
        if card.domain == "shower":
            clouds, report["merged_hits"] = resolved(clouds, card)
            if card.geometry is not None:
                report["hits_outside_geometry"] = int(hits_outside(clouds, card.geometry).sum())
        if self.reject is not None:
            report |= {name: part.counts[name] for name in ("rejected", "not_accepted")}
        outside = conditions_outside(card.conditions, clouds.conditions, card.tag)
        report |= {f"outside_{name}": count for name, count in outside.items()}
        report["tokens"] = part.counts["tokens"]
        return Generated(clouds if self.calibration is None else self.calibration(clouds), report)
