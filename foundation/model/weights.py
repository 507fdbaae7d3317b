"""A model on disk: `model.safetensors` and `model.json` beside `vocabulary.json`. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from foundation.errors import DataError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout, Mode
from foundation.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class ModelFolder:
    """What `model.json` says: architecture, sequence mode, task and the task's own settings."""

    transformer: TransformerConfig
    mode: Mode
    task: str
    settings: dict[str, object]
    vocabulary: Vocabulary

    @property
    def layout(self) -> Layout:
        """The layout of the sequences that the model was trained on."""
        return Layout(self.vocabulary, self.mode)


def describe_model(folder: Path, model: ModelFolder) -> None:
    """Write what a model folder has besides the weights: architecture and vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    model.vocabulary.save(folder / "vocabulary.json")
    head = {
        "transformer": model.transformer.model_dump(),
        "mode": model.mode,
        "task": model.task,
        "settings": model.settings,
        "vocabulary": model.vocabulary.digest,
    }
    (folder / "model.json").write_text(json.dumps(head, indent=1))


def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write the weights of a folder with a description, under their final name only when whole."""
    from safetensors.torch import save_file

    part = folder / "model.safetensors.part"
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, part)
    # safetensors writes for the owner alone; colleagues may read what the folder lets them
    part.chmod((folder / "model.json").stat().st_mode)
    os.replace(part, folder / "model.safetensors")


def save_model(folder: Path, state: dict[str, Tensor], model: ModelFolder) -> None:
    """Write weights, architecture and vocabulary; the weights come last."""
    describe_model(folder, model)
    write_weights(folder, state)


def read_model(folder: Path) -> tuple[ModelFolder, dict[str, Tensor]]:
    """Read a folder written by `save_model`: its description and all its weights."""
    from safetensors.torch import load_file

    try:
        head = json.loads((folder / "model.json").read_text())
        state = load_file(folder / "model.safetensors")
    except Exception as error:  # safetensors raises its own error type for a damaged file
        raise DataError(f"{folder}: not a model folder, or a damaged one ({error})") from None
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    if vocabulary.digest != head["vocabulary"]:
        raise DataError(f"{folder}: vocabulary.json is not the one that the model was trained with")
    config = TransformerConfig(**head["transformer"])
    return ModelFolder(config, head["mode"], head["task"], head["settings"], vocabulary), state


def load_strictly(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load all weights of `module` from `state`; a missing, foreign or misshapen one is an error that names it."""
    own = module.state_dict()
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or foreign or shapes:
        raise DataError(
            f"{where}: the weights do not fit the model (missing: {missing[:3]}, not of this model: {foreign[:3]}, "
            f"other shape: {sorted(shapes)[:3]})"
        )
    module.load_state_dict(state)


def load_backbone(folder: Path, device: torch.device | None = None) -> tuple[Transformer, ModelFolder]:
    """The backbone of any model folder, whatever head it carries."""
    model, state = read_model(folder)
    backbone = Transformer(model.transformer, model.vocabulary.size)
    own = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    load_strictly(backbone, own, str(folder))
    return backbone.to(device) if device else backbone, model
