"""Stage evaluate: generated against held-out truth, classifier arms, one report."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

import foundation
from foundation.data.files import read_point_clouds
from foundation.errors import RecipeError
from foundation.evaluate.evaluation import ClassifierArm, Evaluation, Sample
from foundation.evaluate.evaluation import evaluate as evaluate_samples
from foundation.evaluate.report import RunDescription
from foundation.evaluate.report import Stage as ReportStage
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Evaluate
from foundation.recipe.stages.datasets import card_of, read_split


def evaluate(spec: Evaluate, context: StageContext) -> dict[str, Any]:
    """Write metrics.json, figures and report.html, and return the headline numbers."""
    generated = context.artifact(spec.generated)
    samples = []
    for tag, stage in generated.summary["samples"].items():
        source = context.artifact(stage)
        samples.append(
            Sample(card_of(source), read_split(source, "test"), read_point_clouds(generated.folder / f"{tag}.h5"))
        )
    arms = [_arm(context.artifact(name)) for name in spec.classifiers]
    trained = [a for a in context.artifacts.values() if (a.folder / "metrics.jsonl").is_file()]
    curves = {a.name: _curve(a.folder / "metrics.jsonl") for a in trained}
    result = evaluate_samples(context.folder, describe_run(context), samples, arms, curves, seed=context.seed)
    context.tracker.log_metrics(result.scores, 0)
    context.tracker.log_artifact(result.report)
    by_stage = {generated.spec["from"]: {k: v for k, v in result.scores.items() if not _is_of_arm(k, spec)}}
    for name in spec.classifiers:
        by_stage[name] = {k.removeprefix(f"{name}."): v for k, v in result.scores.items() if k.startswith(f"{name}.")}
    return {
        "report": "report.html",
        "metrics": "metrics.json",
        "scores": by_stage,
        "headline": headline(result),
        "line": f"{len(result.comparisons)} datasets, {len(result.arms)} classifiers"
        + (f", {len(result.problems)} problems: {result.problems[0]}" if result.problems else ""),
    }


def headline(result: Evaluation) -> list[str]:
    """A few lines that say how good the models are."""
    lines = []
    for comparison in result.comparisons:
        wanted = ("mass", "multiplicity") if comparison.domain == "jet" else ("response", "hits")
        for row in comparison.rows:
            if row.observable in wanted and not row.problem and (comparison.domain == "jet" or row.group == "all"):
                unit = "" if row.unit == "1" else f" {row.unit}"
                lines.append(
                    f"{comparison.dataset} {row.group}: median {row.observable} {row.generated_median:.4g}{unit} "
                    f"(truth {row.truth_median:.4g}), W1 {row.w1:.3g} (truth against truth {row.floor:.3g})"
                )
        for group, (truth, made) in comparison.peaks.items():
            lines.append(f"{comparison.dataset} {group}: mass peak {made.value:.0f} GeV (truth {truth.value:.0f})")
    for arm in result.arms:
        if arm.scores is not None:
            lines.append(
                f"{arm.name} ({arm.n_train} labels): accuracy {arm.scores.accuracy.value:.4f} "
                f"+- {arm.scores.accuracy.error:.4f}, AUC {arm.scores.auc.value:.4f}"
            )
    return lines


def _is_of_arm(name: str, spec: Evaluate) -> bool:
    return any(name.startswith(f"{arm}.") for arm in spec.classifiers)


def _arm(artifact: Artifact) -> ClassifierArm:
    path = artifact.folder / "test_scores.npz"
    if not path.is_file():
        raise RecipeError(f"stage '{artifact.name}' ({artifact.kind}) leaves no test scores: name a finetune stage")
    with np.load(path, allow_pickle=False) as found:
        labels, scores = found["labels"], found["scores"]
    classes = artifact.summary["classes"]
    task = f"{classes[-1]} against {', '.join(classes[:-1])}"
    return ClassifierArm(artifact.name, task, artifact.summary["labels"], labels == len(classes) - 1, scores[:, -1])


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
