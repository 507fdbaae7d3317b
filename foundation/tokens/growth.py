"""How two vocabularies differ: what was added, and whether all that was there still means the same."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.errors import DataError
from foundation.tokens.vocabulary import DatasetEntry, Range, Vocabulary


@dataclass(frozen=True)
class Difference:
    """What a new vocabulary has beside an old one.

    ranges, datasets: what was added
    changed: a sentence for each thing of the old one that is gone or means something else now
    """

    ranges: tuple[Range, ...]
    datasets: tuple[DatasetEntry, ...]
    changed: tuple[str, ...]

    @property
    def is_growth(self) -> bool:
        """True where each old id keeps its meaning, also where nothing was added."""
        return not self.changed


def compare(old: Vocabulary, new: Vocabulary) -> Difference:
    """What was added to `old` to get `new`, and what is not as it was."""
    changed = [*_changed_ranges(old, new), *_changed_datasets(old, new)]
    kept = [name for name in new.datasets if name in old.datasets]
    if not changed and (kept != list(old.datasets) or kept != list(new.datasets)[: len(kept)]):
        changed.append("the datasets stand in another order")
    return Difference(
        tuple(r for name, r in new.ranges.items() if name not in old.ranges),
        tuple(d for name, d in new.datasets.items() if name not in old.datasets),
        tuple(changed),
    )


def new_ids(old: Vocabulary, new: Vocabulary) -> range:
    """The ids that `new` has beside those of `old`, for which a model of `old` has no embeddings yet.

    Raises DataError where `new` is no growth of `old`.
    """
    difference = compare(old, new)
    if difference.changed:
        more = len(difference.changed) - 1
        raise DataError(
            f"the vocabulary is not a growth of the model's: {difference.changed[0]}"
            + (f", and {more} more of such (`foundation vocabulary diff` lists them)" if more else "")
        )
    return range(old.size, new.size)


def _changed_ranges(old: Vocabulary, new: Vocabulary) -> list[str]:
    changed = []
    for name, was in old.ranges.items():
        now = new.ranges.get(name)
        if now is None:
            changed.append(f"range '{name}' ({_ids(was)}) is gone")
        elif now != was:
            changed.append(f"range '{name}' had {_ids(was)} and has {_ids(now)}")
    return changed


def _ids(r: Range) -> str:
    return f"ids {r.start} to {r.stop - 1}" if r.size > 1 else f"id {r.start}"


def _changed_datasets(old: Vocabulary, new: Vocabulary) -> list[str]:
    changed = []
    for name, was in old.datasets.items():
        now = new.datasets.get(name)
        if now is None:
            changed.append(f"dataset '{name}' is gone")
            continue
        if now.classes != was.classes:
            changed.append(f"classes of '{name}' were {_listed(was.classes)} and are {_listed(now.classes)}")
        if now.conditions != was.conditions:
            changed.append(f"conditions of '{name}', or their ranges, bins or units, are others")
        if now.streams != was.streams or now.tokens_per_object != was.tokens_per_object:
            changed.append(f"codes of '{name}' were {_shape(was)} and are {_shape(now)}")
        if (now.tokenizer, now.codes) != (was.tokenizer, was.codes):
            changed.append(
                f"'{name}' was coded by tokenizer '{was.codes}' (sha256 {was.tokenizer[:12]}) and is by "
                f"'{now.codes}' ({now.tokenizer[:12]})"
            )
    return changed


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _shape(entry: DatasetEntry) -> str:
    """`code0, code1` or `code0 of 64 tokens`."""
    fixed = f" of {entry.tokens_per_object} tokens" if entry.tokens_per_object else ""
    return _listed(entry.streams) + fixed
