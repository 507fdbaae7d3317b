"""The commands `foundation vocabulary ...`: look at vocabularies, compare and grow them. Each imports what it needs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.console import say
from foundation.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from foundation.data.cards import DatasetCard
    from foundation.tokens.growth import Difference
    from foundation.tokens.tokenizer import Tokenizer
    from foundation.tokens.vocabulary import DatasetEntry, Range, Vocabulary

OK, PROBLEMS = 0, 2

DESCRIPTION = """\
Look at the ids that models are trained on. FILE is a vocabulary.json, or the folder that holds
one: that of a tokenize stage or of a model.
"""
EPILOG = """\
examples:
  foundation vocabulary show runs/quickstart/tokens           ranges of ids, and the datasets
  foundation vocabulary show FILE --id 0 17 812               what these ids mean
  foundation vocabulary diff OLD NEW                          what was added, what has changed
  foundation vocabulary grow FILE --card CARD --tokenizer FOLDER --out grown.json

exit codes:
  0 fine   2 a mistake in a file or an option, and of `diff` also: NEW is no growth of OLD
"""
DIFF_HELP = """\
Say what NEW has beside OLD, and whether every id of OLD means the same in NEW. Then a model of OLD
can go on with NEW: it needs embeddings for the new ids only. Exit code 0: equal, or NEW is a growth
of OLD; 2: it is not, and what changed is listed.
"""
GROW_HELP = """\
Write a vocabulary that has one more dataset. Ids that are there keep their meaning. If the same
tokenizer codes another dataset of the vocabulary, both share its ranges, and only the tag, the
classes and the conditions of the new dataset are added.
"""
VOCABULARY_HELP = "vocabulary.json, or a folder that holds it"


def add_vocabulary_commands(commands: Any) -> None:
    """Add `vocabulary` and its commands to the subparsers of `foundation`."""
    raw = argparse.RawDescriptionHelpFormatter
    vocabulary = commands.add_parser(
        "vocabulary", help="look at, compare and grow the ids of models", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=raw,
    )  # fmt: skip
    actions = vocabulary.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, command: Any, words: str, text: str | None = None) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(
            name, help=words, description=text or words, formatter_class=raw
        )
        parser.set_defaults(command=command)
        return parser

    show = add("show", _show, "the ranges of ids, the datasets, or what ids mean")
    show.add_argument("file", metavar="FILE", type=Path, help=VOCABULARY_HELP)
    part = show.add_mutually_exclusive_group()
    part.add_argument("--dataset", metavar="TAG", help="only what belongs to this dataset")
    part.add_argument("--id", metavar="N", type=int, nargs="+", default=[], help="only say what these ids mean")
    diff = add("diff", _diff, "what one vocabulary has beside another", DIFF_HELP)
    diff.add_argument("old", metavar="OLD", type=Path, help=VOCABULARY_HELP)
    diff.add_argument("new", metavar="NEW", type=Path, help=VOCABULARY_HELP)
    _add_grow(add("grow", _grow, "add a dataset", GROW_HELP))


def _add_grow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help=VOCABULARY_HELP)
    parser.add_argument("--card", metavar="CARD", required=True, help="name of a shipped card, or path of a YAML file")
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", type=Path, required=True, help="folder with tokenizer.json: what codes it"
    )
    parser.add_argument(
        "--conditions", metavar="NAME", nargs="*", help="only these conditions of the card; with no name, none (all)"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="file to write, which must not exist")


# What the words on the command line mean


def _load(path: Path) -> Vocabulary:
    from foundation.tokens.vocabulary import Vocabulary

    file = path / "vocabulary.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path}: no vocabulary.json here: name one, or the folder of a tokenize stage or of a model")
    return Vocabulary.load(file)


def _card(options: argparse.Namespace) -> DatasetCard:
    """The card, with the wanted conditions only, in the order in which they are named."""
    from foundation.data.cards import load_card

    card = load_card(options.card)
    if options.conditions is None:
        return card
    known = {condition.name: condition for condition in card.conditions}
    for name in options.conditions:
        if name not in known:
            raise DataError(f"card '{card.name}' has no condition '{name}'{did_you_mean(name, known)}")
    return card.model_copy(update={"conditions": tuple(known[name] for name in options.conditions)})


def _require_fitting(card: DatasetCard, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that would refuse the point clouds of this card; say so where it has never seen any."""
    import numpy as np

    from foundation.data.point_clouds import PointClouds

    no_points = np.zeros((0, len(card.features)), np.float32)
    tokenizer.inputs.require(
        PointClouds(
            no_points,
            np.zeros(1, np.int64),
            card.feature_names,
            card.feature_units,
            np.zeros(0, np.int64),
            np.zeros((0, 0), np.float32),
            tag=card.tag,
            conventions=card.feature_conventions,
        )
    )
    if card.tag not in tokenizer.inputs.datasets:
        fitted_on = "', '".join(tokenizer.inputs.datasets)
        say(f"note: tokenizer '{tokenizer.name}' was fitted on '{fitted_on}', not on '{card.tag}'")


# Tables


def _range_lines(vocabulary: Vocabulary, ranges: Iterable[Range]) -> list[str]:
    from foundation.data.describe.text_table import table_lines
    from foundation.tokens.id_names import IdNames

    names = IdNames(vocabulary)
    rows = [(r.name, str(r.start), str(r.size), names.range_meaning(r)) for r in ranges]
    return table_lines(("range", "start", "size", "meaning"), rows)


def _dataset_lines(entries: Iterable[DatasetEntry]) -> list[str]:
    from foundation.data.describe.text_table import table_lines

    header = ("dataset", "classes", "conditions", "tokens", "streams", "tokenizer", "sha256")
    return table_lines(header, [_dataset_row(entry) for entry in entries])


def _dataset_row(entry: DatasetEntry) -> Sequence[str]:
    from foundation.tokens.id_names import condition_in_words

    return (
        entry.name,
        ", ".join(entry.classes) or "none",
        "; ".join(map(condition_in_words, entry.conditions)) or "none",
        "one per point" if entry.tokens_per_object is None else f"{entry.tokens_per_object} per object",
        ", ".join(entry.streams),
        entry.codes,
        entry.tokenizer[:12],
    )


def _difference_lines(new: Vocabulary, difference: Difference) -> Iterable[str]:
    if difference.ranges:
        yield from ("added ranges", *(f"  {line}" for line in _range_lines(new, difference.ranges)), "")
    if difference.datasets:
        yield from ("added datasets", *(f"  {line}" for line in _dataset_lines(difference.datasets)), "")
    if difference.changed:
        yield from ("changed", *(f"  {sentence}" for sentence in difference.changed), "")


# The commands


def _show(options: argparse.Namespace) -> int:
    vocabulary = _load(options.file)
    if options.id:
        _say_ids(vocabulary, options.id)
        return OK
    entries, ranges = list(vocabulary.datasets.values()), list(vocabulary.ranges.values())
    say(f"{vocabulary.size:,} ids in {len(ranges)} ranges, {len(entries)} datasets; sha256 {vocabulary.digest}")
    if options.dataset:
        entries = [vocabulary.dataset(options.dataset)]
        ranges = vocabulary.ranges_of(options.dataset)
    for line in ("", *_range_lines(vocabulary, ranges), "", *_dataset_lines(entries)):
        say(line)
    return OK


def _say_ids(vocabulary: Vocabulary, ids: Sequence[int]) -> None:
    from foundation.data.describe.text_table import table_lines
    from foundation.tokens.id_names import IdNames

    names = IdNames(vocabulary)
    rows = [(str(number), names.range_of(number).name, names.meaning(number)) for number in ids]
    for line in table_lines(("id", "range", "meaning"), rows):
        say(line)


def _diff(options: argparse.Namespace) -> int:
    from foundation.tokens.growth import compare

    old, new = _load(options.old), _load(options.new)
    difference = compare(old, new)
    for line in _difference_lines(new, difference):
        say(line)
    if not difference.is_growth:
        turned = f"; {options.old} is a growth of {options.new}" if compare(new, old).is_growth else ""
        say(f"{options.new} is no growth of {options.old}: a model of one cannot go on with the other{turned}")
        return PROBLEMS
    if old.digest == new.digest:
        say(f"equal: {old.size:,} ids, sha256 {old.digest}")
    else:
        say(f"{options.new} is a growth of {options.old}: {_ids_in_words(old, new)}")
    return OK


def _ids_in_words(old: Vocabulary, new: Vocabulary) -> str:
    from foundation.tokens.growth import new_ids

    added = new_ids(old, new)
    return f"ids 0 to {added.start - 1} mean the same, {added.start} to {added.stop - 1} are new"


def _grow(options: argparse.Namespace) -> int:
    from foundation.tokens.growth import compare
    from foundation.tokens.kinds import load_tokenizer
    from foundation.tokens.tokenizer import tokenizer_digest
    from foundation.tokens.vocabulary import Addition

    old, card = _load(options.file), _card(options)
    if options.out.exists():
        raise DataError(f"{options.out}: exists already, and is not overwritten; choose another name")
    tokenizer = load_tokenizer(options.tokenizer)
    _require_fitting(card, tokenizer)
    new = old.grow([Addition.of(card, tokenizer, tokenizer_digest(options.tokenizer))])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    new.save(options.out)
    for line in _difference_lines(new, compare(old, new)):
        say(line)
    say(f"{options.out}: {_ids_in_words(old, new)}; sha256 {new.digest}")
    return OK
