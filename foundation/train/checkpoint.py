"""Checkpoints: a folder per step that counts only with its COMMITTED marker."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from foundation.errors import TrainingError
from foundation.train.engine import Engine

MARKER = "COMMITTED"


def save_checkpoint(root: Path, engine: Engine, step: int, facts: dict[str, object], keep: int) -> None:
    """Write everything that is needed to go on at `step`; called by all ranks. Older ones beyond `keep` are removed."""
    folder = root / f"step_{step:08d}"
    if engine.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    engine.wait()
    try:
        engine.save(folder)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot write the checkpoint ({error}); the previous one is intact") from None
    engine.wait()
    if engine.rank == 0:
        about = {"step": step, "engine": engine.kind, "world": engine.world, "zero_stage": engine.config.zero_stage}
        (folder / "about.json").write_text(json.dumps(about | facts))
        (folder / MARKER).touch()
        for old in committed(root)[:-keep]:
            # without its marker first, so that a kill in between leaves no half a checkpoint that counts
            (old / MARKER).unlink()
            shutil.rmtree(old, ignore_errors=True)
    engine.wait()


def committed(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in root.glob("step_*") if (p / MARKER).is_file())


def resume(root: Path, engine: Engine) -> dict[str, Any] | None:
    """Load the newest complete checkpoint into the engine and return its facts, or None when there is none."""
    found = committed(root)
    engine.wait()
    if not found:
        return None
    about = json.loads((found[-1] / "about.json").read_text())
    if (about["engine"], about["world"]) != (engine.kind, engine.world):
        raise TrainingError(
            f"{found[-1]}: written by {about['world']} process(es) with engine '{about['engine']}', but now there are "
            f"{engine.world} with '{engine.kind}': launch as before, or remove {root} to start the stage again"
        )
    engine.load(found[-1])
    return about
