"""Stages that make or take point clouds: simulate, import. They leave `card.json` and `SPLIT/*.h5`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from foundation.console import Progress, say
from foundation.data.by_card import clouds_of_card
from foundation.data.cards import DatasetCard, load_card
from foundation.data.files import read_many, read_point_clouds, write_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, RecipeError, did_you_mean
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Import, Simulate


def simulate(spec: Simulate, context: StageContext) -> dict[str, Any]:
    """Run the simulator of the card for every split and class."""
    from foundation.data.simulate.campaign import run_campaign

    card = _with_simulator(load_card(spec.dataset, context.recipe_folder), spec.simulator)
    workers = spec.workers or len(os.sched_getaffinity(0))
    run_campaign(card, spec.objects, context.seed, context.folder, workers, spec.shard_size)
    return _summary(card, context.folder, spec.objects)


def import_files(spec: Import, context: StageContext) -> dict[str, Any]:
    """Read point-cloud files, check them against the card, and keep a copy in the platform's order of features."""
    card = load_card(spec.dataset, context.recipe_folder)
    for split, patterns in spec.files.items():
        paths = sorted({p for pattern in patterns for p in _matches(context.recipe_folder, pattern)})
        with Progress(f"import {split}", len(paths), "files") as progress:
            for number, path in enumerate(paths):
                clouds = _as_card_says(read_point_clouds(path), card, path)
                write_point_clouds(context.folder / split / f"{number:05d}.h5", clouds, {"imported_from": path.name})
                progress.advance()
    return _summary(card, context.folder, spec.files)


def card_of(artifact: Artifact) -> DatasetCard:
    """The card, as it was used, of a simulate or import stage."""
    path = artifact.folder / "card.json"
    if not path.is_file():
        raise RecipeError(
            f"stage '{artifact.name}' ({artifact.kind}) holds no dataset: name a simulate or import stage"
        )
    return DatasetCard.model_validate_json(path.read_text())


def read_split(artifact: Artifact, split: str) -> PointClouds:
    """All point clouds of a split of a simulate or import stage."""
    paths = sorted((artifact.folder / split).glob("*.h5"))
    if not paths:
        splits = sorted(p.name for p in artifact.folder.iterdir() if p.is_dir())
        raise DataError(f"stage '{artifact.name}' has no split '{split}'{did_you_mean(split, splits)}")
    return read_many(paths)


def _with_simulator(card: DatasetCard, settings: Mapping[str, object]) -> DatasetCard:
    if card.simulator is None:
        raise RecipeError(f"dataset '{card.name}' has no simulator: its files are read with an import stage")
    known = type(card.simulator).model_fields
    for key in settings:
        if key not in known:
            raise RecipeError(f"simulator of '{card.name}' has no setting '{key}'{did_you_mean(key, known)}")
    try:
        simulator = {**card.simulator.model_dump(), **settings}
        return DatasetCard.model_validate({**card.model_dump(), "simulator": simulator})
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"simulator of '{card.name}': {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _summary(card: DatasetCard, folder: Path, splits: Mapping[str, object]) -> dict[str, Any]:
    counts, points = {}, {}
    for split in splits:
        clouds = read_many(sorted((folder / split).glob("*.h5")))
        counts[split], points[split] = len(clouds), round(float(clouds.counts.mean()), 1)
    (folder / "card.json").write_text(card.model_dump_json(indent=1))
    line = ", ".join(f"{n} {split}" for split, n in counts.items())
    each = f"{np.mean(list(points.values())):.0f} points each"
    return {
        "dataset": card.name,
        "tag": card.tag,
        "title": card.title,
        "objects": counts,
        "points_per_object": points,
        "line": f"{card.title}: {line}; {each}",
    }


def _matches(base: Path, pattern: str) -> list[Path]:
    found = sorted(Path("/").glob(pattern.lstrip("/"))) if pattern.startswith("/") else sorted(base.glob(pattern))
    if not found:
        raise DataError(f"no file matches '{pattern}' (relative to {base})")
    return found


def _as_card_says(clouds: PointClouds, card: DatasetCard, path: Path) -> PointClouds:
    """The clouds with the card's features and order of points; refuse other units, classes or conditions."""
    for name, unit in zip(card.feature_names, card.feature_units, strict=True):
        if name in clouds.features and (found := clouds.units[clouds.features.index(name)]) != unit:
            raise DataError(f"{path}: feature '{name}' is in {found}, but the card says {unit}")
    if len(clouds) and clouds.labels.max() >= len(card.classes):
        raise DataError(f"{path}: label {clouds.labels.max()} is not one of the card's {len(card.classes)} classes")
    columns = {name: clouds.feature(name) for name in clouds.features}
    conditions = {name: clouds.condition(name) for name in clouds.condition_names}
    try:
        ordered = clouds_of_card(card, columns, clouds.owners, clouds.labels, conditions)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    same = np.stack([columns[name] for name in card.feature_names], axis=1) == ordered.points
    moved = len(np.unique(clouds.owners[~same.all(axis=1)]))
    if moved:
        say(f"  {path.name}: the points of {moved} objects were put into the card's order ({', '.join(card.order)})")
    empty = int((clouds.counts == 0).sum())
    if empty:
        say(f"  {path.name}: {empty} objects have no points; they are kept")
    return ordered
