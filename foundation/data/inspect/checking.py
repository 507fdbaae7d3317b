"""Check files of a dataset against its card: what is wrong, how often, where; nothing is changed.

A file that cannot be read is a row like any other, and the check goes on with the next file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundation.console import Progress
from foundation.data.card_format import PaddedPoints
from foundation.data.cards import DatasetCard
from foundation.data.describe.text_table import table_lines
from foundation.data.formats.read_report import ReadReport
from foundation.data.formats.reading import ObjectFile, open_file
from foundation.data.formats.soundness import wrong_objects
from foundation.data.inspect import sanity
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import ragged_arange
from foundation.errors import DataError

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
_ObjectCheck = Callable[[str, Severity, NDArray[np.bool_], str], None]
"""Tallies a finding by the mask of the objects that it is true of."""
PROBES = 60
"""Reads that are spent on finding which objects of a range cannot be read."""
ALL_FILES = "all files"
CLASS_ROWS = 20
"""Datasets of more classes have one row for all of them."""
LOOKED_AT = 2000
"""Objects of each file that the rules of `sanity` look at."""


@dataclass(frozen=True)
class CheckRow:
    """One finding in one file."""

    check: str
    file: str
    count: int
    of: int
    """How many objects or points there were to check."""
    severity: Severity
    example: int | None = None
    """Number of an object in the file, from 0."""
    detail: str = ""

    @property
    def share(self) -> float:
        """count / of; 1 where there is nothing to count."""
        return self.count / self.of if self.of else 1.0


@dataclass(frozen=True)
class CheckResult:
    """All findings, the worst first."""

    card: str
    files: int
    objects: int
    rows: tuple[CheckRow, ...]

    def number(self, severity: Severity) -> int:
        """Findings of this severity."""
        return sum(row.severity == severity for row in self.rows)

    def lines(self) -> list[str]:
        """A table and a verdict, for a terminal."""
        header = ("severity", "check", "file", "count", "share", "example", "detail")
        files = {row.file for row in self.rows}
        # Names are enough where they are different.
        short = len({Path(file).name for file in files}) == len(files)
        cells = [
            (
                row.severity, row.check, Path(row.file).name if short else row.file, f"{row.count:,}",
                f"{row.share:.3g}", "" if row.example is None else f"object {row.example}", row.detail,
            )
            for row in self.rows
        ]  # fmt: skip
        verdict = f"{self.files} files, {self.objects:,} objects: {self.number('error')} errors, "
        verdict += f"{self.number('warning')} warnings"
        return [*(table_lines(header, cells) if cells else []), verdict]

    def write_json(self, path: Path) -> None:
        """The findings for machines: card, files, objects, rows with all fields and the share."""
        rows = [{**asdict(row), "share": row.share} for row in self.rows]
        content = {"card": self.card, "files": self.files, "objects": self.objects, "rows": rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)


@dataclass
class _Tally:
    """Counts of one file, summed over its ranges."""

    file: str
    found: dict[tuple[str, Severity, str], list[int | None]] = field(default_factory=dict)
    """(check, severity, detail) -> [count, of, example]"""
    objects: int = 0
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    numbers: list[NDArray[np.int64]] = field(default_factory=list)

    def add(
        self, check: str, severity: Severity, count: int, of: int, example: int | None = None, detail: str = ""
    ) -> None:
        entry = self.found.setdefault((check, severity, detail), [0, 0, None])
        entry[0] = (entry[0] or 0) + count
        entry[1] = (entry[1] or 0) + of
        if entry[2] is None and count:
            entry[2] = example

    def rows(self) -> Iterator[CheckRow]:
        for (check, severity, detail), (count, of, example) in self.found.items():
            if count:
                yield CheckRow(check, self.file, count, of or 0, severity, example, detail)


def check(card: DatasetCard, paths: Sequence[Path]) -> CheckResult:
    """Read all files and list what is wrong with them, the worst first. Files may also be the platform's own."""
    rows: list[CheckRow] = []
    objects = 0
    labels: list[NDArray[np.int64]] = []
    with Progress("check", len(paths), "files") as progress:
        for path in paths:
            tally = _check_file(card, path)
            rows += tally.rows()
            objects += tally.objects
            labels += tally.labels
            progress.advance(note=path.name)
    rows += _classes(card, np.concatenate(labels) if labels else np.zeros(0, np.int64))
    rows.sort(key=lambda row: SEVERITIES.index(row.severity))
    return CheckResult(card.name, len(paths), objects, tuple(rows))


def _check_file(card: DatasetCard, path: Path) -> _Tally:
    tally = _Tally(str(path))
    try:
        with open_file(card, path) as file:
            if not file.objects:
                tally.add("no objects", "error", 1, 1)
            for part in file.ranges():
                for start, clouds, report in _readable(file, part.start, part.stop, tally):
                    _check_clouds(card, clouds, report, start, tally)
    except DataError as error:
        tally.add("file cannot be read", "error", 1, 1, detail=_without(path, error))
    _duplicates(tally)
    return tally


def _without(path: Path, error: DataError) -> str:
    """The sentence of an error, without the name of the file that stands in its own column."""
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{path}, ")


def _readable(file: ObjectFile, start: int, stop: int, tally: _Tally) -> Iterator[tuple[int, PointClouds, ReadReport]]:
    """The pieces of a range that can be read, with their first object; what cannot is tallied.

    Where a piece cannot be read it is halved, PROBES times at most: a few objects that are laid out wrongly are found,
    and in a file where all are wrong not all are tried.
    """
    pieces, probes = [(start, stop)], 0
    while pieces:
        a, b = pieces.pop()
        try:
            clouds, report = file.read(a, b, on_bad="keep")
        except DataError as error:
            probes += 1
            if b - a > 1 and probes <= PROBES:
                middle = (a + b) // 2
                pieces += [(middle, b), (a, middle)]
                continue
            tally.objects += b - a
            tally.add("objects cannot be read", "error", b - a, b - a, a, _sentence(file.path, error))
            continue
        yield a, clouds, report


def _sentence(path: Path, error: DataError) -> str:
    """What is wrong, without the range that it was met in, so that equal mistakes are counted together."""
    text = _without(path, error)
    return text.partition(": ")[2] if text.startswith("objects ") else text


def _check_clouds(card: DatasetCard, clouds: PointClouds, report: ReadReport, start: int, tally: _Tally) -> None:
    """Tally the findings in the objects of a piece of a file."""
    n = len(clouds)
    tally.objects += n
    # Objects that the selection leaves out are not among the clouds; then numbers in the file are not known.
    first = None if report.left_out else start

    def objects(name: str, severity: Severity, mask: NDArray[np.bool_], detail: str = "") -> None:
        example = None if first is None or not mask.any() else first + int(mask.argmax())
        tally.add(name, severity, int(mask.sum()), n, example, detail)

    for what, mask in wrong_objects(card, clouds).items():
        objects(what, "error", mask)
    if card.domain == "shower":
        objects("no hits", "warning", clouds.counts == 0)
    for attribute in card.attributes:
        if attribute.name in clouds.condition_names:
            objects(f"NaN or infinite '{attribute.name}'", "warning", ~np.isfinite(clouds.condition(attribute.name)))
    for condition in card.conditions:
        values, (low, high) = clouds.condition(condition.name), condition.range
        window = f"card: {low:g} to {high:g} {condition.unit}"
        objects(f"'{condition.name}' out of range", "warning", (values < low) | (values > high), window)
    _points_outside(card, clouds, first, tally)
    _places(card, clouds, objects)
    tally.add("order of the points is not the card's", "info", report.reordered, n, detail=", ".join(card.order))
    for name, count in report.missing.items():
        tally.add(f"'{name}' is \"none\" in the file", "info", count, len(clouds.points))
    for name, count in report.left_out.items():
        tally.add(f"'{name}' outside the selection", "info", count, n + count)
    if tally.objects == n:
        for text in sanity.warnings(card, clouds.select(slice(0, LOOKED_AT))):
            tally.add("units", "warning", min(n, LOOKED_AT), min(n, LOOKED_AT), detail=text)
    tally.labels.append(clouds.labels)
    tally.hashes.append(object_hashes(clouds))
    tally.numbers.append(np.where(clouds.counts > 0, start + np.arange(n), -1))


def _points_outside(card: DatasetCard, clouds: PointClouds, first: int | None, tally: _Tally) -> None:
    """Points beyond the card's range: cells that the detector does not have are errors, the rest is not."""
    for feature in card.features:
        if feature.range is None:
            continue
        values, (low, high) = clouds.feature(feature.name), feature.range
        outside = (values < low) | (values > high)
        example = first + int(clouds.owners[outside.argmax()]) if outside.any() and first is not None else None
        severity: Severity = "error" if feature.kind == "integer" else "warning"
        detail = f"points; card: {low:g} to {high:g} {feature.unit}"
        tally.add(f"'{feature.name}' out of range", severity, int(outside.sum()), len(values), example, detail)


def _places(card: DatasetCard, clouds: PointClouds, add: _ObjectCheck) -> None:
    """Objects longer than the places of the format, and those that fill all and so may have been cut."""
    points = card.format.points if card.format is not None else None
    if isinstance(points, PaddedPoints) and points.places is not None:
        detail = f"{points.places} places in files of this card"
        add("more points than places", "warning", clouds.counts > points.places, detail)
        add("all places filled: may have been cut", "info", clouds.counts == points.places, detail)


def object_hashes(clouds: PointClouds) -> NDArray[np.uint64]:
    """A number per object [B] that depends on all its points and their order; equal objects have equal numbers."""
    bits = np.ascontiguousarray(clouds.points, np.float32).view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        columns = np.arange(1, bits.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        place = ragged_arange(clouds.counts).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        rows = _mixed(_mixed(bits + columns).sum(axis=1, dtype=np.uint64) + place)
        sums = np.concatenate([[np.uint64(0)], np.cumsum(rows, dtype=np.uint64)])
        return _mixed(sums[clouds.offsets[1:]] - sums[clouds.offsets[:-1]] + clouds.counts.astype(np.uint64))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): every bit depends on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _duplicates(tally: _Tally) -> None:
    """Objects whose points are those of an earlier object of the file; empty objects are not compared."""
    if not tally.hashes:
        return
    hashes, numbers = np.concatenate(tally.hashes), np.concatenate(tally.numbers)
    hashes, numbers = hashes[numbers >= 0], numbers[numbers >= 0]
    _, first = np.unique(hashes, return_index=True)
    again = np.ones(len(hashes), bool)
    again[first] = False
    if again.any():
        example = int(numbers[again.argmax()])
        tally.add("duplicate of an earlier object", "warning", int(again.sum()), len(hashes), example)


def _classes(card: DatasetCard, labels: NDArray[np.int64]) -> Iterator[CheckRow]:
    """How the objects of all files are shared between the classes."""
    if not len(labels) or len(card.classes) < 2:
        return
    counts: Mapping[int, int] = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    if len(card.classes) > CLASS_ROWS:
        there = sorted((n for n in counts if n >= 0), key=lambda n: -counts[n])
        words = ", ".join(f"{card.classes[n]} {counts[n]:,}" for n in there[:5])
        yield CheckRow("classes there are", ALL_FILES, len(there), len(card.classes), "info", detail=f"most: {words}")
    else:
        for number, name in enumerate(card.classes):
            yield CheckRow(f"class '{name}'", ALL_FILES, int(counts.get(number, 0)), len(labels), "info")
    if counts.get(-1):
        yield CheckRow("no class", ALL_FILES, int(counts[-1]), len(labels), "warning")
