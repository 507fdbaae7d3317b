"""The stage evaluate: several generate stages side by side, timings, training samples, and what goes to MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from foundation.data.files import write_point_clouds
from foundation.evaluate.metrics_file import read_metrics
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Evaluate
from foundation.recipe.stages.evaluation import evaluate

from evaluate_samples import SHOWER_CARD, toy_showers


class Log:
    """What was logged."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.artifacts: list[str] = []

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        self.metrics |= metrics

    def log_artifact(self, path: Path) -> None:
        assert path.exists()
        self.artifacts.append(path.name)


def finished(folder: Path, kind: str, spec: dict[str, Any], summary: dict[str, Any]) -> Artifact:
    line = {"line": "made for a test", **summary}
    return Artifact(folder, kind, folder.name, "key", spec, 1, {}, line, {}, {"numpy": np.__version__}, "", "", 1.0)


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    """A simulate stage and two generate stages, of which the older one left no timing."""
    for split, n, seed in (("train", 80, 1), ("test", 120, 2)):
        write_point_clouds(tmp_path / "showers" / split / "a.h5", toy_showers(n, seed))
    (tmp_path / "showers" / "card.json").write_text(SHOWER_CARD.model_dump_json())
    tag = SHOWER_CARD.tag
    stages = [finished(tmp_path / "showers", "simulate", {}, {"tag": tag})]
    for k, name in enumerate(("cold", "warm")):
        write_point_clouds(tmp_path / name / f"{tag}.h5", toy_showers(60, 3 + k, scale=1 + 0.3 * k))
        stages.append(finished(tmp_path / name, "generate", {"from": f"train_{name}"}, {"samples": {tag: "showers"}}))
    timing = {tag: {"objects": 60, "seconds": 3.0, "batch": 60, "device": "cpu"}}
    (tmp_path / "warm" / "timing.json").write_text(json.dumps(timing))
    folder = tmp_path / "report"
    folder.mkdir()
    recipe = SimpleNamespace(name="test", description="", seed=1)
    artifacts = {stage.name: stage for stage in stages}
    return StageContext(folder, tmp_path, tmp_path, recipe, 1, 0, 1, Log(), artifacts)  # type: ignore[arg-type]


def test_generate_stages_side_by_side(context: StageContext) -> None:
    spec = Evaluate(
        kind="evaluate", name="report", generated=("cold", "warm"), metrics=("quick", "memorisation"), train_objects=60
    )
    assert spec.references() == {"generated.0": "cold", "generated.1": "warm"}
    summary = evaluate(spec, context)
    assert summary["line"] == "1 datasets, 2 models, 0 classifiers"
    assert set(summary["scores"]) == {"train_cold", "train_warm"}
    ratio = "gflash_siw.all.response.ratio"
    assert summary["scores"]["train_warm"][ratio] > summary["scores"]["train_cold"][ratio]
    assert any(line.startswith("warm: gflash_siw all: median response") for line in summary["headline"])
    log: Any = context.tracker
    assert log.artifacts == ["report.html", "metrics.json", "figures"] and f"warm.{ratio}" in log.metrics
    saved = read_metrics(context.folder / "metrics.json")
    assert saved.models == ("cold", "warm")
    speeds = [(s.model, s.value) for s in saved.scores if s.panel == "speed"]
    assert speeds == [("warm", 20.0)]
    assert {s.model for s in saved.scores if s.panel == "memorisation" and not s.problem} == {"cold", "warm"}


def test_one_generate_stage_has_scores_without_its_name(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundation.evaluate.evaluation.dataset_pictures", lambda *_: [])
    spec = Evaluate(kind="evaluate", name="report", generated="cold", metrics=("distributions",))
    assert spec.references() == {"generated": "cold"}
    summary = evaluate(spec, context)
    log: Any = context.tracker
    assert "gflash_siw.all.response.ratio" in log.metrics and summary["line"].startswith("1 datasets, 1 models")
    assert "figures" in log.artifacts and not list((context.folder / "figures").glob("*.pdf"))


def test_metrics_of_a_recipe_are_checked() -> None:
    for wrong in ("fpd", ("quick", "fpd"), ()):
        with pytest.raises(ValidationError):
            Evaluate(kind="evaluate", name="report", generated="cold", metrics=wrong)  # type: ignore[arg-type]
