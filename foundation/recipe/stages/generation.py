"""Stage generate: point clouds from a pre-trained model, in the layout of the dataset they imitate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.data.cards import DatasetCard
from foundation.errors import DataError, RecipeError, did_you_mean
from foundation.generate.campaign import Outputs, run_campaign
from foundation.generate.opening import card_of_model, usual_max_points
from foundation.generate.own_format import own_places, own_suffix
from foundation.generate.request_config import Asked, Calibrate, CampaignSettings, Complete, FromFile
from foundation.generate.sampling_config import SamplingConfig
from foundation.recipe.running import StageContext
from foundation.recipe.samples import Sample
from foundation.recipe.schema import Generate
from foundation.recipe.stages.models import model_folder

TIMING = "timing.json"
"""How long each sample took, for the evaluation: tag -> objects, seconds, batch, device."""


def generate(spec: Generate, context: StageContext) -> dict[str, Any]:
    """Generate every sample of the recipe into `TAG.h5`, all ranks together; the summary is that of rank 0."""
    home = model_folder(spec.source, context)
    tags = [str(context.artifact(sample.truth).summary["tag"]) for sample in spec.samples]
    if len(set(tags)) < len(tags):
        twice = next(tag for tag in tags if tags.count(tag) > 1)
        raise RecipeError(f"two samples of '{twice}' would be one file: put one of them into a stage of its own")
    reports: dict[str, dict[str, Any]] = {}
    for tag, sample in zip(tags, spec.samples, strict=True):
        card = card_of_model(home, tag)
        own = context.folder / f"{tag}.own{own_suffix(card)}" if sample.format == "own" else None
        report = run_campaign(
            home,
            _settings(spec, sample, context, home, card),
            Outputs(context.folder / f"{tag}.h5", own, sample.assume),
            source=spec.source,
            slots=spec.batch,
            workers=spec.workers,
            scheduler=spec.scheduler,
        )
        reports[tag] = {} if report is None else report
    if context.is_main:
        (context.folder / TIMING).write_text(json.dumps({t: _timing(r) for t, r in reports.items()}, indent=1) + "\n")
    counts = {tag: report.get("counts", {}) for tag, report in reports.items()}
    return {
        "samples": {tag: sample.truth for tag, sample in zip(tags, spec.samples, strict=True)},
        "reports": counts,
        "line": "; ".join(f"{tag}: " + _words(counts[tag], report) for tag, report in reports.items()),
    }


def _timing(report: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of one process for all objects of a sample, as the evaluation's panel of speed takes them."""
    return {
        "objects": report["counts"]["objects"],
        "seconds": report["process_seconds"],
        "batch": report["at_once"],
        "device": report["device"],
    }


def _settings(spec: Generate, sample: Sample, context: StageContext, home: Path, card: DatasetCard) -> CampaignSettings:
    """What the recipe says of one dataset, as a campaign takes it."""
    most = sample.max_points or usual_max_points(home, card.tag)
    if sample.format == "own" and not sample.max_points:
        most = min(most, own_places(card) or most)
    sampling = SamplingConfig(
        max_points=most,
        min_points=sample.min_points,
        end_temperature=spec.end_temperature,
        streams=sample.streams,
        **{name: getattr(spec, name) for name in ("temperature", "top_k", "top_p", "min_p")},
    )
    calibrate = None
    if sample.calibrate is not None:
        calibrate = Calibrate(
            truth=_split(sample, context, sample.calibrate.split),
            bins=sample.calibrate.bins,
            objects=sample.calibrate.objects,
        )
    asked = _asked(sample, context, card)
    return CampaignSettings(
        dataset=card.tag,
        objects=sample.objects * (1 if sample.complete else max(1, len(asked.classes))),
        seed=context.seed,
        sampling=sampling,
        asked=asked,
        complete=_complete(sample, context),
        reject=sample.reject,
        calibrate=calibrate,
    )


def _asked(sample: Sample, context: StageContext, card: DatasetCard) -> Asked:
    """Classes and conditions. Partial objects keep their own where the recipe names none."""
    for name in sample.classes:
        if name not in card.classes:
            raise RecipeError(f"dataset '{card.tag}' has no class '{name}'{did_you_mean(name, card.classes)}")
    if sample.complete is not None and sample.conditions == "truth":
        return Asked(classes=sample.classes, outside=True)
    classes = sample.classes or card.classes
    if sample.conditions == "truth":
        source = FromFile(file=_split(sample, context, "test"), take="shuffled")
        # the truth's values outside the range were in the first or last bin in the training too
        return Asked(classes=classes, source=source, outside=True)
    if sample.conditions == "any":
        return Asked(classes=classes)
    if isinstance(sample.conditions, FromFile):
        source = sample.conditions.model_copy(update={"file": _path(sample.conditions.file, context)})
        return Asked(classes=classes, source=source, outside=sample.outside)
    return Asked(classes=classes, conditions=sample.conditions, outside=sample.outside)


def _complete(sample: Sample, context: StageContext) -> Complete | None:
    if sample.complete is None:
        return None
    file = sample.complete.file
    path = _split(sample, context, "test") if file is None else _path(file, context)
    return Complete(file=path, keep=sample.complete.keep)


def _path(file: str, context: StageContext) -> str:
    return str((context.recipe_folder / file).resolve())


def _split(sample: Sample, context: StageContext, split: str) -> str:
    """Folder of a split of the truth."""
    folder = context.artifact(sample.truth).folder
    if not (folder / split).is_dir():
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise DataError(f"stage '{sample.truth}' has no split '{split}'{did_you_mean(split, splits)}")
    return str((folder / split).resolve())


def _words(counts: Mapping[str, int], report: Mapping[str, Any]) -> str:
    said = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if name != "tokens"]
    return ", ".join([*said, f"{report.get('objects_per_process_second', 0):.3g}/s"])
