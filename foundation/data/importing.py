"""Import many files of a dataset into the platform's own: in parallel, resumable at any moment, always the same bytes.

Each range of each file becomes one part, folder/split/FILE-RANGE.h5. What a part holds follows from the card, its file
and the split alone, never from the number of workers or from what was there before. Parts appear complete or not at
all, and `import.json` only when all of them are there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path, PurePath

import h5py
import numpy as np
from numpy.typing import NDArray

from foundation import __version__
from foundation.console import Progress
from foundation.data.card_format import LabelFile, RandomSplit
from foundation.data.cards import DatasetCard
from foundation.data.dask_workers import Run, running
from foundation.data.files import write_point_clouds
from foundation.data.formats.read_report import ReadReport
from foundation.data.formats.reading import Range, open_file, plan, with_features
from foundation.errors import DataError

SCHEMA = "foundation/import/1"
SUMMARY = "import.json"
ALL = "all"
"""Name of the split of files that are not split; a card's random split deals their objects out."""


@dataclass(frozen=True)
class ImportSummary:
    """What an import did.

    parts: split -> its parts, in order; objects: split -> point clouds in them; skipped: (file, why) of what could not
    be read; kept: how many parts were there from an earlier run
    """

    folder: Path
    parts: Mapping[str, tuple[Path, ...]]
    objects: Mapping[str, int]
    report: ReadReport
    skipped: tuple[tuple[str, str], ...]
    kept: int

    def lines(self) -> list[str]:
        """What a user should know, one fact per line."""
        lines = [
            f"{split}: {self.objects[split]:,} objects in {len(parts)} parts below {self.folder / split}"
            for split, parts in self.parts.items()
        ]
        if self.kept:
            lines.append(f"{self.kept} parts were kept from an earlier run")
        return lines + self.report.lines() + [f"skipped {file}: {why}" for file, why in self.skipped]


@dataclass(frozen=True)
class Piece:
    """One range of one file: what a worker does at a time.

    splits:  names of the splits that its objects go to
    members: which of them each object goes to, uint8 [stop - start]; None where there is one split only
    """

    path: str
    name: str
    start: int
    stop: int
    splits: tuple[str, ...]
    members: NDArray[np.uint8] | None
    skip_bad: bool

    def parts(self, folder: Path) -> dict[str, Path]:
        """The part of each split."""
        return {split: folder / split / f"{self.name}.h5" for split in self.splits}


@dataclass(frozen=True)
class Done:
    """What became of a piece: objects of each split and what reading met, or why it could not be read."""

    objects: Mapping[str, int]
    report: ReadReport
    kept: bool = False
    error: str | None = None


def splits_of(card: DatasetCard, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Split -> its files, as the card tells them apart by name; ALL -> all files where it does not.

    Files of one class each come in the order of the card's classes, as `RandomSplit` has it; else the order stays.

    Raises DataError for a file that belongs to no split, or to several.
    """
    patterns = card.files.splits if card.files else {}
    if not patterns:
        return {ALL: _in_order_of_classes(card, paths)}
    found: dict[str, list[Path]] = {split: [] for split in patterns}
    for path in paths:
        fits = [split for split, pattern in patterns.items() if any(PurePath(path).match(p) for p in pattern.split())]
        if len(fits) != 1:
            what = f"fits the splits {', '.join(fits)} alike" if fits else "fits no split"
            known = ", ".join(f"{split}: {pattern}" for split, pattern in patterns.items())
            raise DataError(f"{path}: {what} of card '{card.name}' ({known}); say yourself which split it is")
        found[fits[0]].append(path)
    return {split: of_split for split, of_split in found.items() if of_split}


def _in_order_of_classes(card: DatasetCard, paths: Sequence[Path]) -> list[Path]:
    label = card.format.label if card.format else None
    if not isinstance(label, LabelFile):
        return list(paths)

    def position(path: Path) -> int:
        fits = (card.classes.index(name) for pattern, name in label.file.items() if fnmatch(path.name, pattern))
        return next(fits, len(card.classes))

    return sorted(paths, key=position)


def random_members(split: RandomSplit, total: int) -> NDArray[np.uint8]:
    """To which share each object belongs, by its place in `split.shares`; uint8 [total].

    Cut like JetNet's own: by the rounded-down running sums of the shares, along one permutation of all objects.
    """
    cuts = (np.cumsum(list(split.shares.values())) * total).astype(np.int64)
    cuts[-1] = total
    members = np.empty(total, np.uint8)
    sizes = np.diff(cuts, prepend=0)
    members[np.random.default_rng(split.seed).permutation(total)] = np.repeat(np.arange(len(cuts)), sizes)
    return members


def import_dataset(
    card: DatasetCard,
    files: Mapping[str, Sequence[Path]],
    folder: Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    skip_bad: bool = False,
    features: Sequence[str] = (),
) -> ImportSummary:
    """Import the files of each split into folder/split/FILE-RANGE.h5, numbered in the order given.

    files:     split -> files, see `splits_of`; those of ALL are dealt out where the card has a random split
    scheduler: address of a running Dask cluster, whose workers must see the files and the folder under the same paths
               and have this package; without it, `workers` processes of this machine do the work
    skip_bad:  leave out, count and list what cannot be right or read; without it, that is an error
    features:  those of the card's features to import; all without

    Parts that an earlier run made of the same files with the same card are kept.
    Raises DataError at the first file or object that cannot be read, and when the folder holds another import.
    """
    card = with_features(card, tuple(features))
    files = _checked(files)
    (folder / SUMMARY).unlink(missing_ok=True)
    with running(workers, scheduler) as run:
        pieces, skipped = _plan_all(card, files, run, skip_bad)
        _check_nothing_else(folder, pieces)
        done = _import_all(card, pieces, folder, run)
    summary = _summary(folder, pieces, done, skipped)
    _write_summary(card, files, summary)
    return summary


def _checked(files: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """The files with absolute paths, which mean the same to every worker."""
    absolute = {split: [Path(path).resolve() for path in paths] for split, paths in files.items() if paths}
    if not absolute:
        raise DataError("no files to import")
    seen: dict[Path, str] = {}
    for split, paths in absolute.items():
        if split in ("", ".", "..") or "/" in split or "\\" in split:
            raise DataError(f"'{split}' cannot be the name of a split: it names a folder")
        for path in paths:
            if path in seen:
                raise DataError(f"{path}: given twice, for split '{seen[path]}' and for split '{split}'")
            seen[path] = split
    return absolute


# Planning: which pieces there are. It opens every file, so it is shared among the workers too.


def _plan_all(
    card: DatasetCard, files: Mapping[str, Sequence[Path]], run: Run, skip_bad: bool
) -> tuple[list[Piece], list[tuple[str, str]]]:
    paths = [path for of_split in files.values() for path in of_split]
    ranges: dict[Path, list[Range]] = {}
    reasons: dict[Path, str] = {}
    with Progress("looking into the files", len(paths), "files") as progress:
        for place, found in run(partial(_plan, _as_json(card)), paths):
            if isinstance(found, str):
                if not skip_bad:
                    raise DataError(found)
                reasons[paths[place]] = found
            else:
                ranges[paths[place]] = found
            progress.advance()
    if not ranges:
        raise DataError(f"none of the {len(paths)} files can be read; the first: {reasons[paths[0]]}")
    pieces: list[Piece] = []
    for split, of_split in files.items():
        random = card.files.random_split if card.files and split == ALL else None
        if random and (lost := [reasons[path] for path in of_split if path in reasons]):
            raise DataError(f"{lost[0]} - objects are dealt out over all files, so none of them can be skipped")
        pieces += _pieces(split, of_split, ranges, random, skip_bad)
    return pieces, [(str(path), reasons[path]) for path in paths if path in reasons]


def _plan(card: str, path: Path) -> list[Range] | str:
    """The ranges of a file, or why it cannot be read."""
    try:
        return plan(_card_of(card), path)
    except DataError as error:
        return str(error)


def _pieces(
    split: str, paths: Sequence[Path], ranges: Mapping[Path, list[Range]], random: RandomSplit | None, skip_bad: bool
) -> list[Piece]:
    flat = [(i, j, part) for i, path in enumerate(paths) for j, part in enumerate(ranges.get(path, ()))]
    members = random_members(random, sum(part.stop - part.start for _, _, part in flat)) if random else None
    pieces, first = [], 0
    for i, j, part in flat:
        last = first + part.stop - part.start
        pieces.append(
            Piece(
                path=str(paths[i]),
                name=f"{i:05d}-{j:04d}",
                start=part.start,
                stop=part.stop,
                splits=tuple(random.shares) if random else (split,),
                members=None if members is None else members[first:last].copy(),
                skip_bad=skip_bad,
            )
        )
        first = last
    return pieces


def _check_nothing_else(folder: Path, pieces: Sequence[Piece]) -> None:
    """Parts of another import would be taken for parts of this one."""
    ours = {path for piece in pieces for path in piece.parts(folder).values()}
    for of_split in sorted({path.parent for path in ours}):
        if others := sorted(set(of_split.glob("*.h5")) - ours):
            raise DataError(f"{others[0]}: not of this import; choose another folder, or remove what is in {of_split}")


# Reading: one piece after the other, or on many workers.


def _import_all(card: DatasetCard, pieces: Sequence[Piece], folder: Path, run: Run) -> list[Done]:
    done: dict[int, Done] = {}
    total = sum(piece.stop - piece.start for piece in pieces)
    with Progress(f"importing {card.name}", total, "objects") as progress:
        for place, result in run(partial(import_piece, _as_json(card), folder.resolve()), pieces):
            piece = pieces[place]
            if result.error is not None and not piece.skip_bad:
                raise DataError(result.error)
            done[place] = result
            progress.advance(piece.stop - piece.start)
    return [done[place] for place in range(len(pieces))]


def import_piece(card: str, folder: Path, piece: Piece) -> Done:
    """Read one range and write its parts, unless they are there already. The card comes as JSON."""
    parts = piece.parts(folder)
    try:
        identities = {split: _identity(card, piece, split) for split in parts}
        if there := _finished(parts, identities):
            return there
        for path in parts.values():
            path.unlink(missing_ok=True)
        with open_file(_card_of(card), Path(piece.path)) as file:
            clouds, report, kept_objects = file.read_kept(
                piece.start, piece.stop, "skip" if piece.skip_bad else "error"
            )
    except DataError as error:
        return Done({}, ReadReport(), error=str(error))
    members = np.zeros(len(clouds), np.uint8) if piece.members is None else piece.members[kept_objects]
    objects = {}
    for number, (split, path) in enumerate(parts.items()):
        chosen = clouds if piece.members is None else clouds.select(members == number)
        write_point_clouds(path, chosen, {"import": identities[split], "report": asdict(report)})
        objects[split] = len(chosen)
    return Done(objects, report)


def _identity(card: str, piece: Piece, split: str) -> dict[str, object]:
    """What the content of a part follows from; equal identities have equal parts."""
    path = Path(piece.path)
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    members = None if piece.members is None else hashlib.sha256(piece.members.tobytes()).hexdigest()
    return {
        "card": _card_of(card).name,
        "card_sha256": hashlib.sha256(card.encode()).hexdigest(),
        "software": __version__,
        "file": path.name,
        "bytes": found.st_size,
        "modified_ns": found.st_mtime_ns,
        "range": [piece.start, piece.stop],
        "split": split,
        "members_sha256": members,
        "skip_bad": piece.skip_bad,
    }


def _finished(parts: Mapping[str, Path], identities: Mapping[str, dict[str, object]]) -> Done | None:
    """What an earlier run made of the same piece, if all its parts are there and whole."""
    objects, report = {}, ReadReport()
    for split, path in parts.items():
        try:
            with h5py.File(path) as f:
                provenance = json.loads(f.attrs["provenance"])
                if provenance["import"] != identities[split]:
                    return None
                objects[split] = len(f["labels"])
                report = ReadReport(**provenance["report"])
        except (OSError, KeyError, ValueError, TypeError):
            return None
    return Done(objects, report, kept=True)


def _as_json(card: DatasetCard) -> str:
    return json.dumps(card.model_dump(mode="json"), sort_keys=True)


@lru_cache(maxsize=4)
def _card_of(text: str) -> DatasetCard:
    return DatasetCard.model_validate_json(text)


# The end: everything is summed in the order of the files.


def _summary(
    folder: Path, pieces: Sequence[Piece], done: Sequence[Done], skipped: Sequence[tuple[str, str]]
) -> ImportSummary:
    parts: dict[str, list[Path]] = {}
    objects: dict[str, int] = {}
    for piece, result in zip(pieces, done, strict=True):
        for split, path in piece.parts(folder).items():
            if result.error is None:
                parts.setdefault(split, []).append(path)
                objects[split] = objects.get(split, 0) + result.objects[split]
    unread = [
        (f"{piece.path}, objects {piece.start} to {piece.stop - 1}", result.error)
        for piece, result in zip(pieces, done, strict=True)
        if result.error is not None
    ]
    return ImportSummary(
        folder=folder,
        parts={split: tuple(paths) for split, paths in parts.items()},
        objects=objects,
        report=sum((result.report for result in done), ReadReport()),
        skipped=(*skipped, *unread),
        kept=sum(len(piece.splits) for piece, result in zip(pieces, done, strict=True) if result.kept),
    )


def _write_summary(card: DatasetCard, files: Mapping[str, Sequence[Path]], summary: ImportSummary) -> None:
    content = {
        "schema": SCHEMA,
        "card": card.name,
        "features": card.feature_names,
        "files": {split: [str(path) for path in paths] for split, paths in files.items()},
        "parts": {
            split: [path.relative_to(summary.folder).as_posix() for path in paths]
            for split, paths in summary.parts.items()
        },
        "objects": summary.objects,
        "report": asdict(summary.report),
        "skipped": [{"file": file, "why": why} for file, why in summary.skipped],
    }
    summary.folder.mkdir(parents=True, exist_ok=True)
    part = summary.folder / (SUMMARY + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, summary.folder / SUMMARY)
