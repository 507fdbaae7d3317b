"""Writing checkpoints while training goes on.

The state is copied to the host's memory, a thread writes it, and the next agreement of all processes after the last one
is done makes the checkpoint count. Only one is written at a time. What fails on one process is an error on all, at the
step where it is known; the checkpoint before is not touched until the new one counts.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundation.errors import TrainingError
from foundation.train.checkpoint import (
    FORMAT,
    best_of,
    commit,
    committed,
    remove_all_but,
    sha256,
    step_folder,
)
from foundation.train.engine import Engine
from foundation.train.state import state_files, write_state


class _Writing:
    """One process's file of a checkpoint, written by a thread, or at once where it may not take a copy."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], in_background: bool) -> None:
        self.path = path
        self.problem: Exception | None = None
        self.digest, self.bytes = "", 0
        self._tensors = tensors
        self._thread: threading.Thread | None = None
        if in_background:
            # a copy also of what is on the host already: it changes with the next step
            self._tensors = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
            self._thread = threading.Thread(target=self._work, name=f"checkpoint-{path.stem}", daemon=True)
            self._thread.start()
        else:
            self._work()

    def _work(self) -> None:
        try:
            write_state(self.path, self._tensors)
            self.digest, self.bytes = sha256(self.path), self.path.stat().st_size
        except Exception as error:  # told to all processes at their next agreement
            self.problem = error
        self._tensors = {}

    def finished(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()


class CheckpointWriter:
    """Writes the checkpoints of one training, at most one at a time. All processes call its methods alike.

    root: folder of the checkpoints; keep: how many of the newest stay, besides the best of those that were validated.
    """

    def __init__(self, root: Path, engine: Engine, keep: int, keep_best: bool = False, background: bool = True) -> None:
        self.root, self.engine, self.keep, self.keep_best, self.background = root, engine, keep, keep_best, background
        self._writing: _Writing | None = None
        self._about: dict[str, Any] = {}
        self._best: float | None = None
        if engine.rank == 0:
            root.mkdir(parents=True, exist_ok=True)
            self._best = (best_of(committed(root)) or (None, None))[1]

    def improves(self, validation_loss: float | None) -> bool:
        """Whether the best checkpoint is to be kept and this loss is smaller than all before; rank 0 knows."""
        if not self.keep_best or validation_loss is None:
            return False
        return self._best is None or validation_loss < self._best

    @property
    def signs(self) -> tuple[bool, bool]:
        """What this process has to say at the next agreement: its file is written, or it could not be."""
        writing = self._writing
        if writing is None or not writing.finished():
            return False, False
        return writing.problem is None, writing.problem is not None

    def settle(self, written: int, failed: int) -> None:
        """After an agreement on everybody's signs: make the checkpoint count once all have written it.

        Raises TrainingError on all processes when one of them failed.
        """
        if failed:
            self.wait()
        elif self._writing is not None and written == self.engine.world:
            self._commit()

    def begin(self, step: int, validation_loss: float | None, facts: Mapping[str, Any]) -> None:
        """Write everything that is needed to go on at `step`, in the background; waits for an earlier one first.

        validation_loss: measured with these weights, or None.
        """
        self.wait()
        if self.improves(validation_loss):
            self._best = validation_loss
        folder = step_folder(self.root, step)
        self._together(lambda: self._make_room(folder), folder)
        engine, known = self.engine, self.engine.task.state_dict().keys()
        self._about = {
            "format": FORMAT,
            "step": step,
            "world": engine.world,
            "zero_stage": engine.config.zero_stage if engine.world > 1 else None,
            "shapes": engine.shapes(),
            "buffers": {name: list(b.shape) for name, b in engine.task.named_buffers() if name in known},
            "validation_loss": validation_loss,
        } | dict(facts)
        self._writing = _Writing(state_files(folder, engine.world)[engine.rank], engine.state(), self.background)
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint that is being written counts. Raises TrainingError on all processes if it cannot."""
        if self._writing is None:
            return
        self._writing.wait()
        problem = self._writing.problem

        def fail() -> None:
            if problem is not None:
                self._writing = None
                raise problem

        self._together(fail, step_folder(self.root, self._about["step"]))
        self._commit()

    def abandon(self) -> None:
        """After an error of any kind: leave no thread. A process alone still makes a written checkpoint count."""
        if self._writing is None:
            return
        self._writing.wait()
        if self.engine.world == 1 and self._writing.problem is None:
            with suppress(TrainingError):  # the first error is the one to tell
                self._commit()
        self._writing = None

    def _commit(self) -> None:
        assert self._writing is not None
        folder = step_folder(self.root, self._about["step"])
        about = self._about | {"files": self._files(self._writing)}
        self._writing = None

        def conclude() -> None:
            if self.engine.rank == 0:
                commit(folder, about)
                self._remove_old()

        self._together(conclude, folder)

    def _files(self, mine: _Writing) -> dict[str, dict[str, Any]]:
        """Name, size and sha256 of the files of all processes."""
        engine = self.engine
        table = torch.zeros(engine.world, 5, dtype=torch.int64, device=engine.device)
        numbers = [mine.bytes, *np.frombuffer(bytes.fromhex(mine.digest), np.int64).tolist()]
        table[engine.rank] = torch.tensor(numbers, device=engine.device)
        rows = engine.sum_over_ranks(table).cpu().numpy()
        return {
            path.name: {"bytes": int(row[0]), "sha256": row[1:].tobytes().hex()}
            for path, row in zip(state_files(Path(), engine.world), rows, strict=True)
        }

    def _make_room(self, folder: Path) -> None:
        if self.engine.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()  # without its parents: where they are gone, so is the disk, and the checkpoints with it

    def _remove_old(self) -> None:
        found = committed(self.root)
        kept = found[-self.keep :]
        if self.keep_best and (best := best_of(found)) is not None:
            kept.append(best[0])
        remove_all_but(kept, self.root)

    def _together(self, work: Callable[[], None], folder: Path) -> None:
        """Do `work` on every process, and wait for all: nobody waits for one that gave up."""
        problem: Exception | None = None
        try:
            work()
        except Exception as error:
            problem = error
        failed = self.engine.sum_over_ranks(torch.tensor([float(problem is not None)], device=self.engine.device))
        if failed.item():
            self._writing = None
            if self.engine.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            why = problem or f"{failed.item():.0f} other process(es) could not"
            raise TrainingError(f"{folder}: cannot write the checkpoint ({why}); {self._what_is_left()}")

    def _what_is_left(self) -> str:
        if not self.root.is_dir():
            return f"{self.root} is gone with all checkpoints: is its file system still there? Start again when it is"
        return "the previous one is intact" if committed(self.root) else "there is no earlier one"
