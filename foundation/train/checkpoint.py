"""Checkpoints on disk: a folder per step that counts only with its marker, COMMITTED, which is written last.

A folder `step_00000120` has a file of weights and optimiser state per process, `about.json` with everything else and
the sha256 of each of these files, and the marker, which holds the sha256 of `about.json`. Random numbers are not there:
they are drawn from the seed, the step and the rank, so the step says them all, and so it does where the stream is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foundation.console import warn
from foundation.errors import TrainingError
from foundation.train.engine import Engine

MARKER = "COMMITTED"
FORMAT = "foundation/checkpoint/3"
READABLE = (FORMAT, "foundation/checkpoint/2")
"""Format 2 had no sha256 and no facts but tokens."""
DAMAGED = "damaged_"
"""Before the name of a checkpoint that was found damaged: it does not count and is left for its owner to look at."""


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint that goes on at `step` is."""
    return root / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step at which a checkpoint goes on."""
    return int(folder.name.removeprefix("step_"))


def committed(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in root.glob("step_*") if (p / MARKER).is_file())


def best_of(found: Sequence[Path]) -> tuple[Path, float] | None:
    """The checkpoint with the smallest validation loss, and that loss; None where none was validated."""
    losses = {folder: json.loads((folder / "about.json").read_text()).get("validation_loss") for folder in found}
    known = {folder: loss for folder, loss in losses.items() if loss is not None}
    return min(known.items(), key=lambda item: item[1]) if known else None


def commit(folder: Path, about: dict[str, Any]) -> None:
    """Make a written checkpoint count. Raises OSError."""
    text = json.dumps(about)
    _write_durably(folder / "about.json", text)
    _write_durably(folder / MARKER, hashlib.sha256(text.encode()).hexdigest())


def _write_durably(path: Path, text: str) -> None:
    """The marker must not reach the disk before what it vouches for."""
    with path.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def remove_all_but(kept: Sequence[Path], root: Path) -> None:
    """Remove older checkpoints, and what a kill left half-written."""
    for old in set(root.glob("step_*")) - set(kept):
        # without its marker first, so that a kill in between leaves no half a checkpoint that counts
        (old / MARKER).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_about(folder: Path) -> dict[str, Any]:
    """`about.json` of a checkpoint. Raises ValueError or OSError where it is damaged."""
    text = (folder / "about.json").read_text()
    expected = (folder / MARKER).read_text().strip()
    if expected and hashlib.sha256(text.encode()).hexdigest() != expected:
        raise ValueError("about.json is not as it was written")
    return dict(json.loads(text))


def damage(folder: Path, rank: int = 0, world: int = 1) -> str:
    """What is wrong with the files of a checkpoint, or "". Each of `world` ranks reads its share of them."""
    try:
        about = read_about(folder)
        for name, written in sorted(about.get("files", {}).items())[rank::world]:
            if (folder / name).stat().st_size != written["bytes"] or sha256(folder / name) != written["sha256"]:
                return f"{folder / name} is not as it was written"
    except (OSError, ValueError) as error:
        return f"{folder}: {error}"
    return ""


def resume(root: Path, engine: Engine) -> dict[str, Any] | None:
    """Load the newest undamaged checkpoint into the engine and return its facts, or None when there is none.

    Any number of processes, with any ZeRO stage, may have written it. A damaged one is named in a warning and set
    aside, and the one before it is taken; where all are damaged, TrainingError says so: nothing begins anew unasked.
    """
    set_aside = []
    while (folder := _newest(root, engine)) is not None:
        problem = damage(folder, engine.rank, engine.world)
        if problem:
            warn(f"{problem}: this checkpoint is damaged, the one before it is taken")
        if not engine.sum_over_ranks(torch.tensor([float(bool(problem))], device=engine.device)).item():
            about = read_about(folder)
            _check_fits(folder, about, engine, root)
            engine.load(folder, about["world"])
            return about
        set_aside.append(folder.name)
        if engine.rank == 0:
            _set_aside(folder)
    if set_aside:
        raise TrainingError(
            f"{root}: all checkpoints are damaged ({', '.join(set_aside)}): remove this folder to start the stage again"
        )
    return None


def _newest(root: Path, engine: Engine) -> Path | None:
    """Rank 0's view holds for all: on a network file system others may see an older state of the folder."""
    found = committed(root) if engine.rank == 0 else []
    step = torch.tensor([step_of(found[-1]) if found else -1], device=engine.device)
    newest = int(engine.sum_over_ranks(step if engine.rank == 0 else torch.zeros_like(step)).item())
    return None if newest < 0 else step_folder(root, newest)


def _set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint, so that it neither counts nor is in the way when its step comes again."""
    target = folder.with_name(DAMAGED + folder.name)
    shutil.rmtree(target, ignore_errors=True)
    try:
        folder.rename(target)
    except OSError as error:
        raise TrainingError(f"{folder} is damaged and cannot be renamed ({error}): remove it") from None


def _check_fits(folder: Path, about: dict[str, Any], engine: Engine, root: Path) -> None:
    """Raise TrainingError for a checkpoint of another program version or another model."""
    if about.get("format") not in READABLE:
        raise TrainingError(f"{folder}: not in the format {FORMAT}; remove {root} to start the stage again")
    shapes = engine.shapes()
    differing = sorted(n for n in about["shapes"].keys() | shapes if about["shapes"].get(n) != shapes.get(n))
    if differing:
        name = differing[0]
        raise TrainingError(
            f"{folder}: written for another model: {name} is {about['shapes'].get(name, 'not there')}, now it is "
            f"{shapes.get(name, 'not there')}; remove {root} to start the stage again"
        )


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
