"""Stage generate: point clouds from a pre-trained model, in the layout of the dataset they imitate."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from foundation.data.cards import DatasetCard
from foundation.data.files import write_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.errors import RecipeError, did_you_mean
from foundation.generate.campaign import generate as generate_clouds
from foundation.generate.sampler import SamplingConfig
from foundation.model.weights import ModelFolder, load_backbone
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Generate, Sample
from foundation.recipe.stages.datasets import read_split
from foundation.recipe.stages.models import model_folder
from foundation.tokens.kinds import load_tokenizer

TIMING = "timing.json"
"""How long each sample took, for the evaluation: tag -> objects, seconds, batch, device."""


def generate(spec: Generate, context: StageContext) -> dict[str, Any]:
    """Generate every sample of the recipe into `TAG.h5`."""
    import torch

    home = model_folder(spec.source, context)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone, model = load_backbone(home, device)
    reports: dict[str, dict[str, int]] = {}
    timings: dict[str, dict[str, Any]] = {}
    for sample in spec.samples:
        tag = context.artifact(sample.truth).summary["tag"]
        if not (home / "cards" / f"{tag}.json").is_file():
            raise RecipeError(f"model '{spec.source}' was not trained on '{tag}'")
        card = DatasetCard.model_validate_json((home / "cards" / f"{tag}.json").read_text())
        truth = read_split(context.artifact(sample.truth), "test")
        labels, conditions = _requests(sample, card, model, truth, context.seed)
        longest = json.loads((home / "cards" / f"{tag}.longest.json").read_text())
        config = SamplingConfig(sample.max_points or int(np.ceil(1.2 * longest)), spec.temperature, spec.top_p)
        started = time.monotonic()
        made = generate_clouds(
            backbone,
            model.layout,
            load_tokenizer(home / "tokenizers" / tag, model.vocabulary.dataset(tag).tokenizer),
            card,
            labels,
            conditions,
            seed=context.seed,
            config=config,
            batch=spec.batch,
        )
        timings[tag] = {
            "objects": len(labels), "seconds": time.monotonic() - started, "batch": min(spec.batch, len(labels)),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        }  # fmt: skip
        provenance = {
            "generated_by": spec.source,
            "weights": _sha256(home / "model.safetensors"),
            "seed": context.seed,
            **made.report,
        }
        write_point_clouds(context.folder / f"{tag}.h5", made.clouds, provenance)
        reports[tag] = made.report
    (context.folder / TIMING).write_text(json.dumps(timings, indent=1) + "\n")
    return {
        "samples": {tag: sample.truth for tag, sample in zip(reports, spec.samples, strict=True)},
        "reports": reports,
        "line": "; ".join(f"{tag}: " + _words(report) for tag, report in reports.items()),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _requests(
    sample: Sample, card: DatasetCard, model: ModelFolder, truth: PointClouds, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels [B] and conditions [B, C] of the objects to generate, `objects` of each class."""
    for name in sample.classes:
        if name not in card.classes:
            raise RecipeError(f"dataset '{card.tag}' has no class '{name}'{did_you_mean(name, card.classes)}")
    wanted = [card.classes.index(name) for name in sample.classes or card.classes] or [-1]
    labels = np.repeat(np.array(wanted, np.int64), sample.objects)
    conditions = np.full((len(labels), len(card.conditions)), np.nan, np.float32)
    if sample.conditions == "truth":
        rng = np.random.default_rng([seed, 2])
        for label in wanted:
            own = truth.conditions_named([c.name for c in card.conditions])[truth.labels == label]
            if len(own) == 0:
                raise RecipeError(
                    f"the test split of '{card.tag}' has no objects of class {label} to take conditions of"
                )
            # each truth object once before any is taken again, so that the generated spectrum is the truth's
            chosen = rng.permutation(np.arange(sample.objects) % len(own))
            conditions[labels == label] = own[chosen]
    elif isinstance(sample.conditions, dict):
        names = [c.name for c in card.conditions]
        for name, values in sample.conditions.items():
            if name not in names:
                raise RecipeError(f"dataset '{card.tag}' has no condition '{name}'{did_you_mean(name, names)}")
            conditions[:, names.index(name)] = np.resize(np.asarray(values, np.float32), len(labels))
    return labels, conditions


def _words(report: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.items())
