"""A checkpoint of any number of processes as one model folder, without the processes that wrote it."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.errors import TrainingError
from foundation.model.weights import write_weights
from foundation.train.checkpoint import MARKER, READABLE, best_of, committed, damage, read_about, step_folder
from foundation.train.state import state_files

DESCRIPTION = "model"
"""Folder beside the checkpoints with what a model folder has besides weights; written when training begins."""


def checkpoints_in(folder: Path) -> Path:
    """The folder of checkpoints that a user names: itself, or that of a stage. Raises TrainingError for any other."""
    for root in (folder / "checkpoints", folder):
        if committed(root):
            return root
    raise TrainingError(f"{folder}: no complete checkpoint here; name the folder of a stage, or one step_... of it")


def chosen_checkpoint(folder: Path, step: int | None = None, best: bool = False) -> Path:
    """The checkpoint that a user means: `folder` itself, or in it the newest, the best, or the one of a step."""
    if (folder / MARKER).is_file():
        return folder
    found = committed(root := checkpoints_in(folder))
    if best:
        known = best_of(found)
        if known is None:
            raise TrainingError(f"{root}: no checkpoint was validated: set keep_best and validate_every in the recipe")
        return known[0]
    if step is None:
        return found[-1]
    if step_folder(root, step) not in found:
        raise TrainingError(f"{root}: no checkpoint of step {step}; there is {', '.join(p.name for p in found)}")
    return step_folder(root, step)


def export_checkpoint(checkpoint: Path, to: Path, average: bool = False) -> dict[str, Any]:
    """Write the model of a checkpoint to the new folder `to` and return the facts of the checkpoint.

    average: the moving average of the weights instead of the last ones. Raises TrainingError for a damaged checkpoint,
    one that has no average, or a folder with something in it.
    """
    description = checkpoint.parent / DESCRIPTION
    if not (description / "model.json").is_file():
        raise TrainingError(f"{description}: not there; without it nobody knows what the weights are")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise TrainingError(f"{to}: there is something already; name a new folder")
    if problem := damage(checkpoint):
        raise TrainingError(f"{problem}: the checkpoint is damaged; try another one")
    about = read_about(checkpoint)
    if about["format"] not in READABLE:
        raise TrainingError(f"{checkpoint}: of the format {about['format']}, which this version cannot read")
    weights = read_weights(checkpoint, about, average)
    shutil.copytree(description, to, dirs_exist_ok=True)
    write_weights(to, weights)
    return about


def read_weights(checkpoint: Path, about: dict[str, Any], average: bool = False) -> dict[str, Tensor]:
    """All weights of a checkpoint by name, put together from the files of all its processes, one after the other."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = about["shapes"] | about.get("buffers", {})
    weights: dict[str, Tensor] = {}
    missing = {name: prod(shape) for name, shape in shapes.items()}
    averaged = 0
    for path in state_files(checkpoint, about["world"]):
        with safe_open(path, framework="pt") as saved:
            keys = set(saved.keys())
            for key in sorted(key for key in keys if key.startswith("weights/")):
                place = key.removeprefix("weights/")
                name, _, start = place.rpartition("/")
                if name not in shapes:  # not a part of the model, but of the program
                    continue
                other = f"average.weights/{place}"
                averaged += other in keys
                # what is not trained has no average
                values = saved.get_tensor(other if average and other in keys else key)
                if name not in weights:
                    weights[name] = torch.empty(prod(shapes[name]), dtype=values.dtype)
                weights[name][int(start) : int(start) + len(values)] = values
                missing[name] -= len(values)
    if lacking := sorted(name for name, n in missing.items() if n):
        raise TrainingError(f"{checkpoint}: has not all of {', '.join(lacking[:5])}")
    if average and not averaged:
        raise TrainingError(f"{checkpoint}: has no average of the weights: set average_decay in the recipe")
    return {name: tensor.view(shapes[name]) for name, tensor in weights.items()}
