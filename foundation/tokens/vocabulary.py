"""The shared vocabulary: one id space of disjoint ranges for all datasets of a model.

    special | tags | classes | conditions | <dataset>.<stream> ...

Ids never move: growing appends ranges, so that a checkpoint of the smaller vocabulary stays valid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Condition, DatasetCard
from foundation.errors import DataError, did_you_mean
from foundation.tokens.tokenizer import Stream

VERSION = 1
SPECIALS = ("none", "bos", "eos", "any")
NONE, BOS, EOS, ANY = range(len(SPECIALS))
"""none: no code in this place; any: a class or condition that is not given."""


@dataclass(frozen=True)
class Range:
    """A contiguous range of ids."""

    name: str
    start: int
    size: int


@dataclass(frozen=True)
class DatasetEntry:
    """What the vocabulary knows of a dataset; the order of `streams` is that of its tokenizer's codes."""

    name: str
    classes: tuple[str, ...]
    conditions: tuple[Condition, ...]
    streams: tuple[str, ...]
    tokenizer: str
    """sha256 of the tokenizer."""


class Vocabulary:
    """All ranges, by name, and the datasets that use them."""

    def __init__(self, ranges: Sequence[Range], datasets: Sequence[DatasetEntry]) -> None:
        self.ranges = {r.name: r for r in ranges}
        self.datasets = {d.name: d for d in datasets}
        starts = [r.start for r in ranges]
        ends = [r.start + r.size for r in ranges]
        if len(self.ranges) != len(ranges) or starts != [0, *ends[:-1]]:
            raise DataError("the vocabulary's ranges are not disjoint and contiguous: the file is damaged")

    @staticmethod
    def build(datasets: Sequence[tuple[DatasetCard, tuple[Stream, ...], str]]) -> Vocabulary:
        """The vocabulary of these datasets: (card, streams and sha256 of its tokenizer) each."""
        return Vocabulary([Range("special", 0, len(SPECIALS))], []).grow(datasets)

    def grow(self, datasets: Sequence[tuple[DatasetCard, tuple[Stream, ...], str]]) -> Vocabulary:
        """This vocabulary with more datasets appended; existing ids keep their meaning."""
        ranges, entries = list(self.ranges.values()), list(self.datasets.values())
        new: list[tuple[str, int]] = []
        for card, _, _ in datasets:
            if card.tag in self.datasets or [c.tag for c, _, _ in datasets].count(card.tag) > 1:
                raise DataError(f"the vocabulary already has a dataset '{card.tag}': a tag names one dataset only")
        new += [(f"tag.{card.tag}", 1) for card, _, _ in datasets]
        new += [(f"class.{card.tag}", len(card.classes)) for card, _, _ in datasets if card.classes]
        new += [(f"condition.{card.tag}.{c.name}", c.bins) for card, _, _ in datasets for c in card.conditions]
        new += [(f"{card.tag}.{s.name}", s.size) for card, streams, _ in datasets for s in streams]
        for name, size in new:
            ranges.append(Range(name, ranges[-1].start + ranges[-1].size, size))
        for card, streams, digest in datasets:
            names = tuple(s.name for s in streams)
            entries.append(DatasetEntry(card.tag, card.classes, card.conditions, names, digest))
        return Vocabulary(ranges, entries)

    @property
    def size(self) -> int:
        """Number of ids."""
        return max(r.start + r.size for r in self.ranges.values())

    def dataset(self, tag: str) -> DatasetEntry:
        """The dataset with this tag; DataError with the nearest name otherwise."""
        if tag not in self.datasets:
            raise DataError(f"the vocabulary has no dataset '{tag}'{did_you_mean(tag, self.datasets)}")
        return self.datasets[tag]

    def to_json(self) -> dict[str, object]:
        """Plain data from which `from_json` builds an equal vocabulary."""
        return {
            "version": VERSION,
            "ranges": [asdict(r) for r in self.ranges.values()],
            "datasets": [
                {
                    "name": d.name,
                    "classes": list(d.classes),
                    "conditions": [c.model_dump(mode="json") for c in d.conditions],
                    "streams": list(d.streams),
                    "tokenizer": d.tokenizer,
                }
                for d in self.datasets.values()
            ],
        }

    @staticmethod
    def from_json(data: dict) -> Vocabulary:
        """Rebuild a vocabulary from `to_json`."""
        if data.get("version") != VERSION:
            raise DataError(f"vocabulary version {data.get('version')} is not readable here (expected {VERSION})")
        entries = [
            DatasetEntry(
                d["name"],
                tuple(d["classes"]),
                tuple(Condition.model_validate(c) for c in d["conditions"]),
                tuple(d["streams"]),
                d["tokenizer"],
            )
            for d in data["datasets"]
        ]
        return Vocabulary([Range(**r) for r in data["ranges"]], entries)

    @property
    def digest(self) -> str:
        """sha256 that shards and checkpoints carry."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        path.write_text(json.dumps(self.to_json(), indent=1))

    @staticmethod
    def load(path: Path) -> Vocabulary:
        """Read a vocabulary written by `save`."""
        try:
            return Vocabulary.from_json(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a vocabulary, or a damaged one ({error})") from None


def condition_bins(condition: Condition, values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Bin of each value of a condition, 0 .. bins - 1; values outside the range fall into the first or last bin."""
    low, high = condition.range
    if condition.scale == "log":
        place = np.log(np.maximum(values, 1e-30) / low) / np.log(high / low)
    else:
        place = (values - low) / (high - low)
    return np.clip((place * condition.bins).astype(np.int64), 0, condition.bins - 1)
