"""Stages that make or take point clouds: simulate, import. They leave `card.json` and `SPLIT/*.h5`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from foundation.console import say
from foundation.data.cards import DatasetCard, load_card
from foundation.data.files import point_cloud_file_size, read_many
from foundation.data.formats.reading import with_features
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
    run_campaign(card, spec.objects, context.seed, context.folder, workers, spec.shard_size, spec.classes)
    return _summary(card, context.folder, spec.objects)


def import_files(spec: Import, context: StageContext) -> dict[str, Any]:
    """Read files in the card's format, or point clouds of this platform, into the platform's own files."""
    from foundation.data.importing import import_dataset

    card = with_features(load_card(spec.dataset, context.recipe_folder), spec.features)
    files = {
        split: sorted({path for pattern in patterns for path in _matches(context.recipe_folder, pattern)})
        for split, patterns in spec.files.items()
    }
    done = import_dataset(
        card,
        files,
        context.folder,
        workers=spec.workers,
        scheduler=spec.scheduler,
        skip_bad=spec.skip_bad,
    )
    for line in done.lines():
        say(f"  {line}")
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
        sizes = [point_cloud_file_size(path) for path in sorted((folder / split).glob("*.h5"))]
        counts[split] = sum(size.clouds for size in sizes)
        points[split] = round(sum(size.points for size in sizes) / max(1, counts[split]), 1)
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
