"""Steps that must not change the weights: losses that are not finite, or far above those before them."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from foundation.console import is_main_process, warn
from foundation.errors import TrainingError
from foundation.stream.token_stream import Batch
from foundation.train.config import TrainConfig
from foundation.train.engine import StepResult

FILE = "skipped.jsonl"
SIGMA_PER_DEVIATION = 1.4826
"""Standard deviations of a Gaussian per median absolute deviation."""


class SpikeGuard:
    """Judges the loss of every step before its update, counts what was skipped, and stops when it is too much in a row.

    A spike is a loss more than `max_spike_sigma` standard deviations above the median of the last `spike_window`
    losses, with the deviation estimated from their median absolute deviation: neither is moved by the spikes
    themselves, which do not enter the window. No loss is judged before the window is full.
    """

    def __init__(self, config: TrainConfig, state: dict[str, Any]) -> None:
        self.config = config
        self.losses: deque[float] = deque(state.get("recent_losses", ()), config.spike_window)
        self.skipped: int = state.get("skipped", 0)
        self.in_a_row: int = state.get("skipped_in_a_row", 0)
        self.objection = ""

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint must have for the same judgements after a resume."""
        return {"recent_losses": list(self.losses), "skipped": self.skipped, "skipped_in_a_row": self.in_a_row}

    @property
    def accept(self) -> Callable[[float], bool] | None:
        """What the engine is to ask before an update; None where only what is not finite is skipped, as it does itself.

        Asking costs a GPU the time between forward and backward, in which the loss is fetched.
        """
        return None if self.config.max_spike_sigma is None else self._accepts

    def _accepts(self, loss: float) -> bool:
        self.objection = self._objection(loss)
        return not self.objection

    def _objection(self, loss: float) -> str:
        sigma = self.config.max_spike_sigma
        if sigma is None or len(self.losses) < self.config.spike_window:
            return ""
        usual = median(self.losses)
        deviation = SIGMA_PER_DEVIATION * median(abs(known - usual) for known in self.losses)
        if loss <= usual + sigma * deviation:
            return ""
        return f"the loss {loss:.4g} is a spike: the median of {len(self.losses)} before is {usual:.4g}"

    def why_skipped(self, result: StepResult) -> str:
        """In the words of the user, or "" for a step that was taken."""
        if not result.skipped:
            return ""
        objection, self.objection = self.objection, ""
        return objection or (result.reason if math.isfinite(result.loss) else "the loss is not finite")

    def after_step(self, step: int, loss: float, reason: str) -> None:
        """Take note of a step; reason: why it was skipped, or "". Raises TrainingError after too many in a row."""
        if not reason:
            if math.isfinite(loss):
                self.losses.append(loss)
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if is_main_process():  # a fault of all processes together
            warn(f"step {step}: {reason}; the update was skipped ({self.in_a_row} in a row)")
        if self.in_a_row >= self.config.max_skipped:
            raise TrainingError(
                f"{self.in_a_row} steps in a row were skipped, the last one step {step} because {reason}: lower the "
                f"learning rate, or look at the sequences named in {FILE}; the last good checkpoint is kept"
            )


class SkippedSequences:
    """`skipped.jsonl`: which sequences were in the steps that were skipped, a line per step and process.

    path: in the folder of the stage; tags: of the datasets of the stream, by their number; first: steps from this one
    on are trained again, so their lines go.
    """

    def __init__(self, path: Path, tags: Sequence[str], rank: int, first: int) -> None:
        self.path, self.tags, self.rank = path, list(tags), rank
        if rank == 0 and path.is_file():
            kept = [
                line for line in path.read_text().splitlines() if (step := _step(line)) is not None and step < first
            ]
            path.write_text("".join(line + "\n" for line in kept))

    def add(self, step: int, loss: float, reason: str, batches: Sequence[Batch]) -> None:
        """Write down this process's sequences of a step; loss: of all processes."""
        sequences: dict[str, list[int]] = {}
        for batch in batches:
            for number, source in zip(batch.dataset.tolist(), batch.sources.tolist(), strict=True):
                sequences.setdefault(self.tags[number], []).append(source)
        known = loss if math.isfinite(loss) else None
        line = {"step": step, "rank": self.rank, "loss": known, "reason": reason, "sequences": sequences}
        self._append(json.dumps(line) + "\n")

    def _append(self, line: str) -> None:
        """All processes append to one file; on a network file system only a lock keeps their lines apart."""
        import fcntl  # not on Windows, where recipes can still be validated

        with self.path.open("a") as f:
            fcntl.lockf(f, fcntl.LOCK_EX)
            f.write(line)


def _step(line: str) -> float:
    """Infinity for a line that a kill left without its end."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return math.inf
