"""`metrics.jsonl` of a stage: what each step gave, whatever becomes of MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from foundation.console import is_main_process


class MetricLines:
    """Written by rank 0, whenever a checkpoint is. After a resume, lines of steps that are trained again go."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.new: list[str] = []
        if not is_main_process():
            return
        # a kill may have left the last line without its end
        old = path.read_text().split("\n")[:-1] if path.is_file() else []
        kept = [line for line in old if json.loads(line)["step"] < first]
        path.write_text("".join(line + "\n" for line in kept))

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember the metrics of a step."""
        self.new.append(json.dumps({"step": step, **metrics}))

    def flush(self) -> None:
        """Write what is new."""
        if is_main_process():
            with self.path.open("a") as f:
                f.writelines(line + "\n" for line in self.new)
        self.new = []
