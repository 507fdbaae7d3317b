"""Samples from files of any generator: in the format of a card, or point clouds of this platform."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py

from foundation.data.cards import DatasetCard
from foundation.data.files import is_point_cloud_file
from foundation.data.formats.reading import read_first
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError

ESSENTIAL = {"jet": ("pt", "eta_rel", "phi_rel"), "shower": ("energy",)}
"""Features without which nothing can be evaluated; showers need the axes of their geometry as well."""


@dataclass(frozen=True)
class SampleFiles:
    """Objects of one sample, and what a reader of the numbers must know of the files."""

    clouds: PointClouds
    notes: tuple[str, ...]


def read_sample(card: DatasetCard, paths: Sequence[Path], most: int, what: str) -> SampleFiles:
    """The first `most` objects, as many of each file; objects that cannot be right are left out and counted in a note.

    Files of this platform may lack features and conditions of the card, which a generator need not make.
    Raises DataError for files of another dataset, without objects, or without what every metric needs.
    """
    fitting = [_card_of_file(card, path) for path in paths]
    narrowest = min(fitting, key=lambda found: len(found.features) + len(found.object_units))
    clouds, report = read_first(narrowest, paths, most)
    notes = [f"{what}: {line}" for line in report.lines()[1:] if not _is_of_no_matter(line)]
    lacking = [name for name in card.object_units if name not in clouds.condition_names]
    if lacking:
        notes.append(f"{what}: the files do not have {', '.join(lacking)}")
    return SampleFiles(clouds, tuple(notes))


def _is_of_no_matter(line: str) -> bool:
    """Keys that a card does not name, and points in another order, change no number."""
    return line.startswith("not read") or "the card's order" in line


def _card_of_file(card: DatasetCard, path: Path) -> DatasetCard:
    """The card with what the file has; one in the card's own format has it all, or reading says what is missing."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not is_point_cloud_file(path):
        return card
    with h5py.File(path) as f:
        tag = str(f.attrs.get("tag", ""))
        names, quantities = (set(json.loads(f.attrs.get(key, "[]"))) for key in ("features", "condition_names"))
    if tag != card.tag:
        raise DataError(
            f"{path}: holds objects of '{tag}', and card '{card.name}' describes '{card.tag}'; truth and generated "
            "objects must be of one card"
        )
    for name in (*ESSENTIAL[card.domain], *(card.geometry.axes if card.geometry is not None else ())):
        if name not in names:
            raise DataError(f"{path}: has no feature '{name}', without which nothing can be evaluated")
    return card.model_copy(
        update={
            "features": tuple(f for f in card.features if f.name in names),
            "order": tuple(key for key in card.order if key.lstrip("-") in names),
            "conditions": tuple(c for c in card.conditions if c.name in quantities),
            "attributes": tuple(a for a in card.attributes if a.name in quantities),
            "selection": {name: window for name, window in card.selection.items() if name in quantities},
        }
    )
