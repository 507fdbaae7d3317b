"""Stage evaluate: generated against held-out truth, classifier arms, one report."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

import foundation
from foundation.console import say
from foundation.data.cards import DatasetCard
from foundation.data.files import read_point_clouds
from foundation.data.formats.reading import read_first
from foundation.data.point_clouds import PointClouds
from foundation.errors import RecipeError
from foundation.evaluate.evaluation import ClassifierArm, Evaluation, Sample
from foundation.evaluate.evaluation import evaluate as evaluate_samples
from foundation.evaluate.panels.choice import chosen
from foundation.evaluate.panels.samples import Timing
from foundation.evaluate.report import RunDescription
from foundation.evaluate.report import Stage as ReportStage
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Evaluate
from foundation.recipe.stages.datasets import card_of, read_split


def evaluate(spec: Evaluate, context: StageContext) -> dict[str, Any]:
    """Write metrics.json, figures and report.html, and return the headline numbers."""
    arms = [_arm(context.artifact(name)) for name in spec.classifiers]
    trained = [a for a in context.artifacts.values() if (a.folder / "metrics.jsonl").is_file()]
    curves = {a.name: _curve(a.folder / "metrics.jsonl") for a in trained}
    result = evaluate_samples(
        context.folder, describe_run(context), _samples(spec, context), arms, curves,
        seed=context.seed, pdf=spec.pdf, metrics=spec.metrics, on_progress=say,
    )  # fmt: skip
    context.tracker.log_metrics(result.scores, 0)
    for path in (result.report, result.metrics, result.report.parent / "figures"):
        context.tracker.log_artifact(path)
    datasets = len({c.dataset for c in result.comparisons})
    return {
        "report": "report.html",
        "metrics": "metrics.json",
        "scores": _scores_by_stage(spec, context, result),
        "headline": headline(result),
        "line": f"{datasets} datasets, {len(spec.models)} models, {len(result.arms)} classifiers"
        + (f", {len(result.problems)} problems: {result.problems[0]}" if result.problems else ""),
    }


def _samples(spec: Evaluate, context: StageContext) -> list[Sample]:
    """What every generate stage made, with its truth: the same object for all stages, as they are compared with it."""
    wanted = {part.name for part in chosen(spec.metrics)[0]}
    sources: dict[str, tuple[DatasetCard, PointClouds, PointClouds | None]] = {}
    samples = []
    for name in spec.models:
        generated = context.artifact(name)
        timings = _timings(generated)
        for tag, stage in generated.summary["samples"].items():
            if stage not in sources:
                source = context.artifact(stage)
                train = _first_of_train(source, spec.train_objects) if "memorisation" in wanted else None
                sources[stage] = card_of(source), read_split(source, "test"), train
            card, truth, train = sources[stage]
            made = read_point_clouds(generated.folder / f"{tag}.h5")
            samples.append(Sample(card, truth, made, name, train, timings.get(tag, ())))
    return samples


def _timings(generated: Artifact) -> dict[str, tuple[Timing, ...]]:
    """How long each sample took; nothing for stages of earlier versions, which did not write it down."""
    path = generated.folder / "timing.json"
    if not path.is_file():
        return {}
    return {tag: (Timing(**found),) for tag, found in json.loads(path.read_text()).items()}


def _first_of_train(source: Artifact, most: int) -> PointClouds | None:
    """Objects that the model can have been trained on; None where there is no train split."""
    paths = sorted((source.folder / "train").glob("*.h5"))
    return read_first(card_of(source), paths, most)[0] if paths else None


def _scores_by_stage(spec: Evaluate, context: StageContext, result: Evaluation) -> dict[str, dict[str, float]]:
    """Headline numbers by the stage that trained the model; of several samples of one model those of the first."""
    found: dict[str, dict[str, float]] = {}
    for name in spec.models:
        found.setdefault(context.artifact(name).spec["from"], result.scores_of(name))
    for name in spec.classifiers:
        found[name] = {k.removeprefix(f"{name}."): v for k, v in result.scores.items() if k.startswith(f"{name}.")}
    return found


def headline(result: Evaluation) -> list[str]:
    """A few lines that say how good the models are."""
    lines = []
    several = len(set(result.models)) > 1
    for model, comparison in zip(result.models, result.comparisons, strict=True):
        of = f"{model}: {comparison.dataset}" if several else comparison.dataset
        wanted = ("mass", "multiplicity") if comparison.domain == "jet" else ("response", "hits")
        for row in comparison.rows:
            if row.observable in wanted and not row.problem and (comparison.domain == "jet" or row.group == "all"):
                unit = "" if row.unit == "1" else f" {row.unit}"
                lines.append(
                    f"{of} {row.group}: median {row.observable} {row.generated_median:.4g}{unit} "
                    f"(truth {row.truth_median:.4g}), W1 {row.w1:.3g} (truth against truth {row.floor:.3g})"
                )
        for group, (truth, made) in comparison.peaks.items():
            lines.append(f"{of} {group}: mass peak {made.value:.0f} GeV (truth {truth.value:.0f})")
    for arm in result.arms:
        if arm.scores is not None:
            lines.append(
                f"{arm.name} ({arm.n_train} labels): accuracy {arm.scores.accuracy.value:.4f} "
                f"+- {arm.scores.accuracy.error:.4f}, AUC {arm.scores.auc.value:.4f}"
            )
    return lines


def _arm(artifact: Artifact) -> ClassifierArm:
    path = artifact.folder / "test_scores.npz"
    if not path.is_file():
        raise RecipeError(f"stage '{artifact.name}' ({artifact.kind}) leaves no test scores: name a finetune stage")
    with np.load(path, allow_pickle=False) as found:
        labels, scores = found["labels"], found["scores"]
    classes = artifact.summary["classes"]
    task = f"{classes[-1]} against {', '.join(classes[:-1])}"
    return ClassifierArm(
        artifact.name, task, artifact.summary["labels"], labels == len(classes) - 1, scores[:, -1],
        ",".join(artifact.summary["datasets"]), tuple(classes), labels, scores,
    )  # fmt: skip


def _curve(path: Path) -> list[dict[str, float]]:
    """Training metrics by step, thinned to a few hundred points."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    return lines[:: max(1, len(lines) // 300)]


def describe_run(context: StageContext) -> RunDescription:
    """What the run was so far, for a report."""
    artifacts = list(context.artifacts.values())
    sources = [a for a in artifacts if a.kind in ("simulate", "import")]
    trained = [a for a in artifacts if a.kind in ("pretrain", "finetune")]
    return RunDescription(
        title=context.recipe.name,
        summary=context.recipe.description,
        stages=[ReportStage(a.name, a.kind, a.seconds, str(a.summary.get("line", ""))) for a in artifacts],
        facts={
            "seed": context.seed,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "platform version": foundation.__version__,
        },
        versions=artifacts[-1].versions if artifacts else {},
        datasets={a.summary["tag"]: str(a.summary["line"]) for a in sources},
        models={a.name: str(a.summary["line"]) for a in trained},
        reproduce=[f"foundation run {context.run_folder.name}/recipe.yaml"],
    )
