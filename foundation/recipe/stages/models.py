"""Where the model is that a stage starts from: an earlier stage's, or one of the registry."""

from __future__ import annotations

from pathlib import Path

from foundation.errors import RecipeError
from foundation.recipe.running import StageContext
from foundation.registry.models import resolve_model


def model_folder(source: str, context: StageContext) -> Path:
    """Folder of the model that `from:` names: a pretrain or finetune stage, or `models:/name@alias`."""
    if source.startswith("models:/"):
        return resolve_model(source, context.run_folder.parent)
    folder = context.artifact(source).folder / "model"
    if not folder.is_dir():
        raise RecipeError(f"stage '{source}' leaves no model: name a pretrain or finetune stage, or models:/name@alias")
    return folder
