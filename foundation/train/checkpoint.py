"""Checkpoints: a folder per step that counts only with its COMMITTED marker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foundation.errors import TrainingError
from foundation.train.engine import Engine

MARKER = "COMMITTED"
FORMAT = "foundation/checkpoint/2"


def save_checkpoint(root: Path, engine: Engine, step: int, facts: dict[str, object], keep: int) -> None:
    """Write everything that is needed to go on at `step`; called by all ranks. Older ones beyond `keep` are removed."""
    folder = root / f"step_{step:08d}"

    def make_room() -> None:
        if engine.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def commit() -> None:
        if engine.rank == 0:
            about = {
                "format": FORMAT,
                "step": step,
                "world": engine.world,
                "zero_stage": engine.config.zero_stage if engine.world > 1 else None,
                "shapes": engine.shapes(),
            }
            (folder / "about.json").write_text(json.dumps(about | facts))
            (folder / MARKER).touch()
            _remove_all_but(committed(root)[-keep:], root)

    for work in (make_room, lambda: engine.save(folder), commit):
        _together(engine, work, folder)


def _together(engine: Engine, work: Callable[[], None], folder: Path) -> None:
    """Do `work` on every rank, and wait for all. What fails on one fails on all: nobody waits for one that gave up."""
    problem = None
    try:
        work()
    except OSError as error:
        problem = error
    failed = engine.sum_over_ranks(torch.tensor([float(problem is not None)], device=engine.device))
    if failed.item():
        if engine.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        why = problem or f"{failed.item():.0f} other process(es) could not"
        raise TrainingError(f"{folder}: cannot write the checkpoint ({why}); the previous one is intact")


def _remove_all_but(kept: list[Path], root: Path) -> None:
    """Remove older checkpoints, and what a kill left half-written."""
    for old in set(root.glob("step_*")) - set(kept):
        # without its marker first, so that a kill in between leaves no half a checkpoint that counts
        (old / MARKER).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def committed(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in root.glob("step_*") if (p / MARKER).is_file())


def resume(root: Path, engine: Engine) -> dict[str, Any] | None:
    """Load the newest complete checkpoint into the engine and return its facts, or None when there is none.

    Any number of processes, with any ZeRO stage, may have written it.
    """
    found = committed(root) if engine.rank == 0 else []
    # rank 0's view holds for all: on a network file system others may see an older state of the folder
    newest = torch.tensor([int(found[-1].name.removeprefix("step_")) if found else -1], device=engine.device)
    step = int(engine.sum_over_ranks(newest if engine.rank == 0 else torch.zeros_like(newest)).item())
    if step < 0:
        return None
    folder = root / f"step_{step:08d}"
    about = json.loads((folder / "about.json").read_text())
    if about.get("format") != FORMAT:
        raise TrainingError(f"{folder}: not in the format {FORMAT}; remove {root} to start the stage again")
    shapes = engine.shapes()
    differing = sorted(n for n in about["shapes"].keys() | shapes if about["shapes"].get(n) != shapes.get(n))
    if differing:
        name = differing[0]
        raise TrainingError(
            f"{folder}: written for another model: {name} is {about['shapes'].get(name, 'not there')}, now it is "
            f"{shapes.get(name, 'not there')}; remove {root} to start the stage again"
        )
    engine.load(folder, about["world"])
    return about


def how_resumed(about: dict[str, Any], engine: Engine, steps: int) -> str:
    """One line that says where training goes on, and what is not as it was when the checkpoint was written."""
    line = f"resumed at step {about['step']} of {steps}"
    if about["world"] != engine.world:
        line += f", written by {_processes(about['world'])}, now {engine.world}"
    elif engine.world > 1 and about["zero_stage"] != engine.config.zero_stage:
        line += f", written with zero_stage {about['zero_stage']}, now {engine.config.zero_stage}"
    return line


def _processes(n: int) -> str:
    return "1 process" if n == 1 else f"{n} processes"
