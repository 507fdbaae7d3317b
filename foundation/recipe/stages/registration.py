"""Stage register: models into the MLflow registry, each with its parent, its data and its scores."""

from __future__ import annotations

from typing import Any

from foundation.console import say
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Register
from foundation.recipe.stages.models import model_folder
from foundation.registry.models import register_model
from foundation.registry.tracking import run_of_stage


def register(spec: Register, context: StageContext) -> dict[str, Any]:
    """Register every model of the recipe; a fine-tuned one names the registered version of its parent."""
    scores = context.artifact(spec.scores).summary.get("scores", {}) if spec.scores else {}
    uris: dict[str, str] = {}
    for wanted in spec.models:
        artifact = context.artifact(wanted.source)
        folder = model_folder(wanted.source, context)
        parent = _parent(artifact, uris, context)
        registered = register_model(
            folder,
            wanted.name,
            run_folder=context.run_folder,
            run_id=run_of_stage(context.run_folder, artifact.name),
            tags=_tags(artifact, context),
            metrics=_scores(artifact, scores),
            aliases=wanted.aliases,
            parent=parent,
        )
        uris[artifact.name] = registered.uri
        say(f"  {registered.uri}  from {artifact.name}" + (f", parent {parent}" if parent else ""))
    return {"models": uris, "line": ", ".join(uris.values())}


def _parent(artifact: Artifact, uris: dict[str, str], context: StageContext) -> str | None:
    """The registered parent of a fine-tuned model, or the key of the stage where it is not registered."""
    if artifact.kind != "finetune" or artifact.spec["start"] == "scratch":
        return None
    source = artifact.spec["from"]
    return source if source.startswith("models:/") else uris.get(source) or context.artifact(source).key


def _tags(artifact: Artifact, context: StageContext) -> dict[str, str]:
    return {
        "task": "classification" if artifact.kind == "finetune" else "generation",
        "datasets": ",".join(artifact.summary["datasets"]),
        "vocabulary_hash": artifact.summary["vocabulary"],
        "recipe": context.recipe.name,
        "stage": artifact.name,
        "stage_key": artifact.key,
        "seed": str(artifact.seed),
    }


def _scores(artifact: Artifact, scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Validation and test numbers of training, and what the evaluation said about this stage."""
    own = dict(artifact.summary["validation"])
    if "test_accuracy" in artifact.summary:
        own["test_accuracy"] = artifact.summary["test_accuracy"]
    return own | scores.get(artifact.name, {})
