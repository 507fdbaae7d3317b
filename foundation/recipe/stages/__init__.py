"""What each kind of stage does. Imported only when a stage has to run."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from foundation.recipe.running import StageContext
from foundation.recipe.schema import StageSpec

MODULES = {
    "simulate": "datasets",
    "import": "datasets",
    "tokenizer": "tokenization",
    "tokenize": "tokenization",
    "pretrain": "training",
    "finetune": "training",
    "generate": "generation",
    "evaluate": "evaluation",
    "evaluate_tokenizers": "tokenizer_evaluation",
    "register": "registration",
}


def run_stage(spec: StageSpec, context: StageContext) -> dict[str, Any]:
    """Do the work of a stage in its folder and return its summary."""
    kind: str = spec.kind  # type: ignore[attr-defined]
    module = import_module(f"foundation.recipe.stages.{MODULES[kind]}")
    function = "import_files" if kind == "import" else kind
    return getattr(module, function)(spec, context)
