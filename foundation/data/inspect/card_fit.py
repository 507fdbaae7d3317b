"""Does a card describe a file? Keys, shapes and the file's name are compared; the numbers are not looked at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath

import numpy as np

from foundation.data.card_format import FileFormat, PaddedPoints, PointRows, RaggedPoints, VoxelImages
from foundation.data.cards import DatasetCard
from foundation.data.formats.containers.keyed import Key
from foundation.data.formats.containers.source import Array, Ragged, Source
from foundation.data.formats.layouts import keys_of
from foundation.data.geometry import n_voxels
from foundation.errors import DataError, did_you_mean

NEAR = 0.5
"""A card with this share of its keys in the file is a near miss."""

SHOWN = 3
"""Missing keys and other problems that are told."""


@dataclass(frozen=True)
class Fit:
    """How well a card describes a file."""

    card: str
    keys: int
    """Keys that the card reads."""
    missing: tuple[str, ...] = ()
    """Those that the file has not."""
    problems: tuple[str, ...] = ()
    """What else is not as the card says."""
    name_fits: bool = False
    """Whether the file is named like those of the dataset."""

    @property
    def fits(self) -> bool:
        """The file can be read with this card."""
        return not self.missing and not self.problems

    @property
    def share(self) -> float:
        """Share of the card's keys that are in the file."""
        return 1 - len(self.missing) / max(1, self.keys)

    @property
    def rank(self) -> tuple[bool, float, int, bool, int]:
        """For sorting, the best the greatest: of cards that fit alike the more specific one."""
        return self.fits, self.share, -len(self.problems), self.name_fits, self.keys

    def words(self) -> str:
        """One sentence."""
        named = "the name fits too" if self.name_fits else "the name is another"
        if self.fits:
            return f"{self.card}: all {self.keys} keys are there and have the right shape; {named}"
        wrong = [*self.missing, *self.problems]
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        return f"{self.card}: {'; '.join(wrong[:SHOWN])}{more}"


def fit(card: DatasetCard, source: Source) -> Fit:
    """Compare a card with an open file. Raises DataError when the file is damaged."""
    assert card.format is not None
    form = card.format
    keys = _keys_in_file(form, source)
    missing = tuple(
        f"no key '{key}'{_nearest(key, source.keys)}"
        for key in keys
        if key not in source.keys and Key.parse(key).name not in source.keys
    )
    problems = () if missing else _problems(card, form, source, keys)
    return Fit(card.name, len(keys), missing, problems, name_fits(card, source.path))


def _nearest(key: str, keys: tuple[str, ...]) -> str:
    """The nearest key of a file where one is near; nothing else, as files have many keys."""
    hint = did_you_mean(key, keys)
    return hint if "did you mean" in hint else ""


def name_fits(card: DatasetCard, path: Path) -> bool:
    """Whether the file is named like those of the card's dataset."""
    return card.files is not None and fnmatch(path.name, PurePath(card.files.pattern).name)


def _keys_in_file(form: FileFormat, source: Source) -> list[str]:
    """The keys that the card reads; of images whose keys have numbers in their names the first, if there is one."""
    points = form.points
    if not isinstance(points, VoxelImages) or "{" not in points.key:
        return keys_of(form)
    pattern = re.compile(re.sub(r"\\{\w+\\}", r"[-+.0-9eE]+", re.escape(points.key)))
    return keys_of(form, next((key for key in source.keys if pattern.fullmatch(key)), None))


def _problems(card: DatasetCard, form: FileFormat, source: Source, keys: list[str]) -> tuple[str, ...]:
    """What is not as the card says although all keys are there: lengths, shapes, the name of the file."""
    try:
        first = source.read(keys, 0, min(1, source.entries(keys)))
    except DataError as error:
        return (str(error).removeprefix(f"{source.path}: "),)
    problems = list(_shape_problems(card, form, first, keys))
    if form.from_file_name is not None and not fnmatch(source.path.name, re.sub(r"\{\w+\}", "*", form.from_file_name)):
        problems.append(f"the name of the file should be like '{form.from_file_name}', as numbers are read from it")
    return tuple(problems)


def _shape_problems(
    card: DatasetCard, form: FileFormat, arrays: Mapping[str, Array], keys: list[str]
) -> tuple[str, ...]:
    points = form.points
    match points:
        case VoxelImages():
            image = arrays[keys[0]]
            expected = n_voxels(card.geometry) if card.geometry is not None else 0
            found = 0 if isinstance(image, Ragged) else int(np.prod(image.shape[1:]))
            return () if found == expected else (f"'{keys[0]}' has {found} voxels, the card's geometry {expected}",)
        case PaddedPoints(key=str(key)):
            return _padded_problems(points, key, arrays[key])
        case PaddedPoints():
            flat = [key for key in points.keys.values() if isinstance(arrays[key], Ragged)]
            return (f"'{flat[0]}' has vectors of different lengths, not places",) if flat else ()
        case PointRows(key=key):
            if not isinstance(arrays[key], Ragged):
                return (f"'{key}' is a dense array, not a vector per object",)
            width = len(points.columns)
            rest = arrays[key].counts % width  # type: ignore[union-attr]
            return (f"'{key}' holds no multiple of {width} numbers per object",) if rest.any() else ()
        case RaggedPoints():
            dense = [key for key in points.keys.values() if not isinstance(arrays[key], Ragged)]
            return (f"'{dense[0]}' has one number per object, not a vector",) if dense else ()
    return ()


def _padded_problems(points: PaddedPoints, key: str, array: Array) -> tuple[str, ...]:
    columns = len(points.columns)
    if isinstance(array, Ragged):
        return (f"'{key}' has vectors of different lengths, not places",)
    if "place" not in points.axes:
        expected = (points.places or 0) * columns
        found = array.shape[1] if array.ndim == 2 else 0
        return (
            () if found == expected else (f"'{key}' has shape {_shape(array)}, the card {expected} numbers per object",)
        )
    if array.ndim != 3:
        return (f"'{key}' has shape {_shape(array)}, the card three axes",)
    places, found = array.shape[points.axes.index("place")], array.shape[points.axes.index("column")]
    problems = []
    if found != columns:
        problems.append(f"'{key}' has {found} columns, the card {columns}")
    if points.places is not None and places != points.places:
        problems.append(f"'{key}' has {places} places, the card {points.places}")
    return tuple(problems)


def _shape(array: Array) -> str:
    return f"[n, {', '.join(map(str, array.shape[1:]))}]" if not isinstance(array, Ragged) else "[n, var]"
