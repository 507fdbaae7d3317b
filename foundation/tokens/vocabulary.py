"""The shared vocabulary: one id space of disjoint ranges for all datasets of a model.

    special | tags | classes | conditions | <tokenizer>.<stream> ...

Ids never move: growing appends ranges, so that a checkpoint of the smaller vocabulary stays valid. Datasets that one
tokenizer codes share its ranges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from foundation.data.cards import Condition, DatasetCard
from foundation.errors import DataError, did_you_mean
from foundation.tokens.conditions import require_bins
from foundation.tokens.tokenizer import Stream, Tokenizer

VERSION, VERSION_OF_SHARING = 1, 2
"""Files of version 2 have a tokenizer that is not named after its dataset, or one of patches."""
SPECIALS = ("none", "bos", "eos", "any")
NONE, BOS, EOS, ANY = range(len(SPECIALS))
"""none: no code in this place; any: a class or condition that is not given."""


@dataclass(frozen=True)
class Range:
    """A contiguous range of ids."""

    name: str
    start: int
    size: int

    @property
    def stop(self) -> int:
        """The id after the last one."""
        return self.start + self.size


@dataclass(frozen=True)
class DatasetEntry:
    """What the vocabulary knows of a dataset; the order of `streams` is that of its tokenizer's codes."""

    name: str
    classes: tuple[str, ...]
    conditions: tuple[Condition, ...]
    streams: tuple[str, ...]
    tokenizer: str
    """sha256 of the tokenizer."""
    codes: str = ""
    """Name of the tokenizer, and so of the ranges of its streams; that of the dataset where it is not given."""
    tokens_per_object: int | None = None
    """How many tokens every object has; None where each point of an object is a token."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", self.codes or self.name)

    def to_json(self) -> dict[str, object]:
        """Plain data; what is as in the first version is left out, so that old vocabularies keep their digest."""
        data: dict[str, object] = {
            "name": self.name,
            "classes": list(self.classes),
            "conditions": [c.model_dump(mode="json") for c in self.conditions],
            "streams": list(self.streams),
            "tokenizer": self.tokenizer,
        }
        if self.codes != self.name:
            data["codes"] = self.codes
        if self.tokens_per_object is not None:
            data["tokens_per_object"] = self.tokens_per_object
        return data

    @staticmethod
    def from_json(data: dict) -> DatasetEntry:
        """Rebuild an entry from `to_json`."""
        return DatasetEntry(
            data["name"],
            tuple(data["classes"]),
            tuple(Condition.model_validate(c) for c in data["conditions"]),
            tuple(data["streams"]),
            data["tokenizer"],
            data.get("codes", ""),
            data.get("tokens_per_object"),
        )


@dataclass(frozen=True)
class Addition:
    """A dataset that a vocabulary is to hold, and the tokenizer that codes it.

    codes:  name of the tokenizer; digest: its sha256
    tokens_per_object: as the tokenizer says, None where each point is a token
    """

    card: DatasetCard
    codes: str
    streams: tuple[Stream, ...]
    digest: str
    tokens_per_object: int | None = None

    @classmethod
    def of(cls, card: DatasetCard, tokenizer: Tokenizer, digest: str) -> Addition:
        """A dataset that this tokenizer codes."""
        return cls(card, tokenizer.name, tokenizer.streams, digest, tokenizer.tokens_per_object)

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each range of the codes, by its name."""
        return {f"{self.codes}.{stream.name}": stream.size for stream in self.streams}

    @property
    def entry(self) -> DatasetEntry:
        """What the vocabulary keeps of it."""
        streams = tuple(s.name for s in self.streams)
        card = self.card
        return DatasetEntry(
            card.tag, card.classes, card.conditions, streams, self.digest, self.codes, self.tokens_per_object
        )


class Vocabulary:
    """All ranges, by name, and the datasets that use them."""

    def __init__(self, ranges: Sequence[Range], datasets: Sequence[DatasetEntry]) -> None:
        self.ranges = {r.name: r for r in ranges}
        self.datasets = {d.name: d for d in datasets}
        starts = [r.start for r in ranges]
        ends = [r.stop for r in ranges]
        if len(self.ranges) != len(ranges) or starts != [0, *ends[:-1]] or "special" not in self.ranges:
            raise DataError("the vocabulary's ranges are not disjoint and contiguous: the file is damaged")
        for name in (name for d in datasets for name in _range_names(d)):
            if name not in self.ranges:
                raise DataError(f"the vocabulary has a dataset that needs the range '{name}', but no such range")

    @staticmethod
    def build(datasets: Sequence[Addition]) -> Vocabulary:
        """The vocabulary of these datasets."""
        return Vocabulary([Range("special", 0, len(SPECIALS))], []).grow(datasets)

    def grow(self, datasets: Sequence[Addition]) -> Vocabulary:
        """This vocabulary with more datasets; existing ids keep their meaning, new ones follow.

        A dataset whose tokenizer is here already shares its ranges. Raises DataError for a tag that is taken, for two
        tokenizers of the same name, and for conditions that cannot have bins.
        """
        entries, ranges = dict(self.datasets), dict(self.ranges)
        streams: dict[str, int] = {}
        for new in datasets:
            self._require_new(new, entries)
            if new.codes not in {known.codes for known in entries.values()}:
                streams |= new.sizes
            entries[new.card.tag] = new.entry
        for name, size in [*_own_ranges([new.card for new in datasets]), *streams.items()]:
            if name in ranges:
                raise DataError(f"two parts of the vocabulary would be called '{name}': rename a dataset or tokenizer")
            ranges[name] = Range(name, max(r.stop for r in ranges.values()), size)
        for name, size in (item for new in datasets for item in new.sizes.items()):
            if ranges[name].size != size:
                raise DataError(f"range '{name}' has {ranges[name].size} ids, but a tokenizer of that name has {size}")
        return Vocabulary(list(ranges.values()), list(entries.values()))

    @staticmethod
    def _require_new(new: Addition, entries: dict[str, DatasetEntry]) -> None:
        tag = new.card.tag
        if tag in entries:
            raise DataError(f"the vocabulary already has a dataset '{tag}': a tag names one dataset only")
        for condition in new.card.conditions:
            require_bins(condition, tag)
        if new.tokens_per_object is not None and new.tokens_per_object < 1:
            raise DataError(f"tokenizer '{new.codes}' of '{tag}' has {new.tokens_per_object} tokens per object")
        for known in entries.values():
            same = known.tokenizer == new.digest and known.tokens_per_object == new.tokens_per_object
            if known.codes == new.codes and not (same and known.streams == new.entry.streams):
                raise DataError(
                    f"two tokenizers are called '{new.codes}': that of '{known.name}' (sha256 {known.tokenizer[:12]}) "
                    f"and that of '{tag}' ({new.digest[:12]}): fit one of them under another name"
                )

    @property
    def size(self) -> int:
        """Number of ids."""
        return max(r.stop for r in self.ranges.values())

    def dataset(self, tag: str) -> DatasetEntry:
        """The dataset with this tag; DataError with the nearest name otherwise."""
        if tag not in self.datasets:
            raise DataError(f"the vocabulary has no dataset '{tag}'{did_you_mean(tag, self.datasets)}")
        return self.datasets[tag]

    @property
    def tokenizers(self) -> dict[str, DatasetEntry]:
        """Each tokenizer by its name, with the first dataset that it codes."""
        first: dict[str, DatasetEntry] = {}
        for entry in self.datasets.values():
            first.setdefault(entry.codes, entry)
        return first

    def stream_range(self, tag: str, stream: str) -> Range:
        """Ids of one stream of a dataset's codes."""
        entry = self.dataset(tag)
        if stream not in entry.streams:
            raise DataError(f"the codes of '{tag}' have no stream '{stream}'{did_you_mean(stream, entry.streams)}")
        return self.ranges[f"{entry.codes}.{stream}"]

    def stream_ranges(self, tag: str) -> tuple[Range, ...]:
        """Ids of all K streams of a dataset's codes, in their order."""
        return tuple(self.stream_range(tag, stream) for stream in self.dataset(tag).streams)

    def ranges_of(self, tag: str) -> list[Range]:
        """All ranges that sequences of a dataset use, the special ids first."""
        return [self.ranges["special"], *(self.ranges[name] for name in _range_names(self.dataset(tag)))]

    def tag_id(self, tag: str) -> int:
        """The id that names a dataset."""
        return self.ranges[f"tag.{self.dataset(tag).name}"].start

    def class_range(self, tag: str) -> Range:
        """Ids of a dataset's classes; an empty range where it has none."""
        return self.ranges.get(f"class.{self.dataset(tag).name}", Range(f"class.{tag}", 0, 0))

    def condition_range(self, tag: str, condition: str) -> Range:
        """Ids of the bins of a dataset's condition."""
        return self.ranges[f"condition.{self.dataset(tag).name}.{condition}"]

    def to_json(self) -> dict[str, object]:
        """Plain data from which `from_json` builds an equal vocabulary."""
        entries = [d.to_json() for d in self.datasets.values()]
        shares = any("codes" in entry or "tokens_per_object" in entry for entry in entries)
        return {
            "version": VERSION_OF_SHARING if shares else VERSION,
            "ranges": [asdict(r) for r in self.ranges.values()],
            "datasets": entries,
        }

    @staticmethod
    def from_json(data: dict) -> Vocabulary:
        """Rebuild a vocabulary from `to_json`."""
        if data.get("version") not in (VERSION, VERSION_OF_SHARING):
            raise DataError(
                f"vocabulary version {data.get('version')} is not readable here (expected {VERSION_OF_SHARING} or "
                f"lower): install the version of this package that wrote it"
            )
        entries = [DatasetEntry.from_json(d) for d in data["datasets"]]
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
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a vocabulary, or a damaged one ({error})") from None


def _own_ranges(cards: Sequence[DatasetCard]) -> list[tuple[str, int]]:
    """Name and size of the ranges that datasets do not share: tags, classes and conditions."""
    tags = [(f"tag.{card.tag}", 1) for card in cards]
    classes = [(f"class.{card.tag}", len(card.classes)) for card in cards if card.classes]
    return [*tags, *classes, *((f"condition.{card.tag}.{c.name}", c.bins) for card in cards for c in card.conditions)]


def _range_names(entry: DatasetEntry) -> list[str]:
    """All ranges that a dataset uses."""
    names = [f"tag.{entry.name}", *([f"class.{entry.name}"] if entry.classes else [])]
    names += [f"condition.{entry.name}.{c.name}" for c in entry.conditions]
    return names + [f"{entry.codes}.{stream}" for stream in entry.streams]
