"""Everything in one go: compare, score, draw, and write metrics.json, the figures and report.html."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.comparison import Comparison, compare
from foundation.evaluate.displays import jet_pictures, shower_picture
from foundation.evaluate.figures import Picture
from foundation.evaluate.metrics import Measurement, classification_scores
from foundation.evaluate.plots import distribution_pictures, response_picture, roc_picture, training_picture
from foundation.evaluate.report import ArmResult, RunDescription, Section, write_report

SCHEMA = "foundation/metrics/1"


@dataclass(frozen=True)
class Sample:
    """Held-out truth and generated objects of one dataset."""

    card: DatasetCard
    truth: PointClouds
    generated: PointClouds


@dataclass(frozen=True)
class ClassifierArm:
    """A classifier on its test set: labels 0 or 1 [B], scores [B] = probability of class 1.

    task: what is signal and what is background; n_train: number of labelled objects it was trained on
    """

    name: str
    task: str
    n_train: int
    labels: NDArray[np.integer]
    scores: NDArray[np.floating]


@dataclass(frozen=True)
class Evaluation:
    """What was found, and the files that say so."""

    comparisons: tuple[Comparison, ...]
    arms: tuple[ArmResult, ...]
    problems: tuple[str, ...]
    report: Path
    metrics: Path

    @property
    def scores(self) -> dict[str, float]:
        """The headline numbers, flat, for the registry and the last lines on the screen; only finite ones.

        `<dataset>.<group>.<observable>.{difference,ratio}`, `<dataset>.<group>.mass_peak_shift` [GeV],
        `<arm>.{accuracy,auc,rejection_30,rejection_50}`; lower limits of rejections are left out.
        """
        found: dict[str, float] = {}
        for c in self.comparisons:
            for row in c.rows:
                name = f"{c.dataset}.{row.group}.{row.observable}"
                found[f"{name}.difference"], found[f"{name}.ratio"] = row.relative_difference, row.ratio
            for group, (truth, generated) in c.peaks.items():
                found[f"{c.dataset}.{group}.mass_peak_shift"] = generated.value - truth.value
        for arm in self.arms:
            for name in ("accuracy", "auc", "rejection_30", "rejection_50"):
                measured: Measurement | None = getattr(arm.scores, name, None)
                if measured is not None and not measured.limit:
                    found[f"{arm.name}.{name}"] = measured.value
        return {name: value for name, value in found.items() if np.isfinite(value)}


def evaluate(
    folder: Path,
    run: RunDescription,
    samples: Sequence[Sample],
    classifiers: Sequence[ClassifierArm] = (),
    training: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    *,
    seed: int = 0,
    pdf: bool = False,
) -> Evaluation:
    """Write `metrics.json`, `figures/*.png` (and PDF) and `report.html` into `folder`.

    training: run name -> list of {"step": ..., "loss": ..., ...}
    A sample or a classifier that cannot be evaluated becomes a sentence in `problems` and in the report. DataError when
    there is nothing at all that could be evaluated.
    """
    problems: list[str] = []
    comparisons: list[Comparison] = []
    for sample in samples:
        try:
            comparisons.append(compare(sample.truth, sample.generated, sample.card, seed=seed))
        except DataError as error:
            problems.append(str(error))
    arms = [_score(arm, problems) for arm in classifiers]
    if not comparisons and not any(arm.scores for arm in arms):
        raise DataError("nothing could be evaluated: " + (" ".join(problems) or "no samples and no classifiers given"))

    figures = folder / "figures"
    sections = [Section(c, comparison_pictures(c, figures, pdf)) for c in comparisons]
    scored = {f"{arm.name}, {arm.n_train} labels": arm.scores for arm in arms if arm.scores is not None}
    roc = [roc_picture(scored, figures, pdf)] if scored else []
    curves = training_picture(training or {}, figures, pdf)
    metrics = write_metrics(folder / "metrics.json", comparisons, arms, problems, seed)
    report = write_report(folder / "report.html", run, sections, arms, roc, [curves] if curves else [], problems)
    return Evaluation(tuple(comparisons), tuple(arms), tuple(problems), report, metrics)


def comparison_pictures(comparison: Comparison, folder: Path | None = None, pdf: bool = False) -> list[Picture]:
    """All figures of one dataset: distributions, then jet images, or response and shower displays."""
    pictures = distribution_pictures(comparison, folder, pdf)
    if comparison.domain == "jet":
        return pictures + jet_pictures(comparison, folder, pdf)
    response = response_picture(comparison, folder, pdf)
    return pictures + ([response] if response else []) + [shower_picture(comparison, folder, pdf)]


def _score(arm: ClassifierArm, problems: list[str]) -> ArmResult:
    try:
        return ArmResult(arm.name, arm.task, arm.n_train, classification_scores(arm.labels, arm.scores))
    except DataError as error:
        problems.append(f"{arm.name}: {error}")
        return ArmResult(arm.name, arm.task, arm.n_train, None, str(error))


def write_metrics(
    path: Path, comparisons: Sequence[Comparison], arms: Sequence[ArmResult], problems: Sequence[str], seed: int
) -> Path:
    """All numbers as JSON, written whole or not at all; what is not finite becomes null."""
    content = {
        "schema": SCHEMA,
        "seed": seed,
        "datasets": {
            c.dataset: {
                "title": c.title,
                "domain": c.domain,
                "truth_objects": len(c.truth),
                "generated_objects": len(c.generated),
                "rows": [asdict(row) for row in c.rows],
                "mass_peaks": {g: {"truth": asdict(t), "generated": asdict(m)} for g, (t, m) in c.peaks.items()},
                "notes": list(c.notes),
            }
            for c in comparisons
        },
        "classifiers": [
            {"name": arm.name, "task": arm.task, "n_train": arm.n_train, "problem": arm.problem} | _arm_numbers(arm)
            for arm in arms
        ],
        "problems": list(problems),
    }
    return write_json(path, content)


def write_json(path: Path, content: Mapping[str, object]) -> Path:
    """Write JSON to `path`, whole or not at all; what is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
    os.replace(part, path)
    return path


def _arm_numbers(arm: ArmResult) -> dict[str, object]:
    if arm.scores is None:
        return {}
    curves = ("signal_efficiency", "background_efficiency")
    return {name: value for name, value in asdict(arm.scores).items() if name not in curves}


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
