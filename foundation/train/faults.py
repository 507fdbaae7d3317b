"""Faults from outside: signals that ask for an end, and processes that died.

A batch system that takes a machine away sends SIGTERM or SIGUSR1 some time before. The step is finished, all processes
write a checkpoint, and the program ends with a code of its own, by which a job script knows that the same command goes
on from there.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from foundation.errors import TrainingError

PREEMPTED = 85
"""Exit code of a training that was asked to end and left a checkpoint: the same command goes on there.

Free of other meanings: 1 and 2 are errors, 64 to 78 those of sysexits.h, 126 and above those of shells and signals.
torchrun and `accelerate launch` print it, and turn any code but 0 into 1 themselves.
"""
ONE_REQUEST_SECONDS = 2.0
"""Signals this close together are one request: a launcher passes on what the batch system sent to every process."""
ERRORS = ".errors"
"""Folder of a stage for what processes leave one another; hidden, as it is not a result: files come and go in it."""
LOOK_SECONDS = 2.0
"""How long a process looks for who died: the system closes the connections of a dying one before it frees its lock."""


class Preempted(SystemExit):
    """Ends the program with the code PREEMPTED."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class EndRequests:
    """Within it, SIGTERM and SIGUSR1 only ask for the end; a second one, later, ends the process at once.

    `asked` is the name of the first signal, or "". Works in the main thread only, as Python's signals do.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked = ""
        self._since = 0.0
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> EndRequests:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        second = self.asked and now - self._since > ONE_REQUEST_SECONDS
        if second or os.getpid() != self._owner:  # a forked worker is ended by its pool
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.asked:
            self.asked, self._since = signal.Signals(number).name, now


@contextmanager
def lost_processes_named(folder: Path, seconds: Callable[[], float]) -> Iterator[None]:
    """Turn the error of a collective whose other processes died or hang into one that says which, and of what.

    folder: of a few small files while training runs, shared by all processes: a process that fails leaves its error
    there, and each holds a lock, which goes with it however it ends. seconds(): how long collectives wait.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield
        return
    roll = _Roll(folder, rank, world)
    try:
        yield
    except RuntimeError as error:
        if not _from_collective(error):
            roll.leave_error(error)
            raise
        roll.leave_loss()
        raise TrainingError(f"lost the other processes: {roll.who_is_lost(seconds())} ({error})") from None
    except Preempted:
        raise
    except BaseException as error:
        roll.leave_error(error)
        raise
    finally:
        roll.go()


def _from_collective(error: RuntimeError) -> bool:
    import torch

    # gloo has no class of its own for it
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


class _Roll:
    """Who of the processes of a training is there, in a folder that all of them see."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self.folder, self.rank, self.world = folder, rank, world
        self._lock: IO[str] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("rank_*"):
                # of the last run; each process removes its own, and the first one those of processes that are no more
                number = int(path.stem.removeprefix("rank_"))
                if number == rank or (rank == 0 and number >= world):
                    path.unlink(missing_ok=True)
            self._lock = _locked(self._path(rank, "lock"))
        except OSError:  # only the names of lost processes depend on it
            pass

    def _path(self, rank: int, kind: str) -> Path:
        return self.folder / f"rank_{rank:05d}.{kind}"

    def leave_error(self, error: BaseException) -> None:
        """For the others, before this process ends."""
        text = " ".join(str(error).split())
        self._leave("txt", f"{type(error).__name__}: {text}" if text else type(error).__name__)

    def leave_loss(self) -> None:
        """That this process ends only because others did."""
        self._leave("lost", "")

    def _leave(self, kind: str, text: str) -> None:
        try:
            self._path(self.rank, kind).write_text(text + "\n")
        except OSError:
            pass

    def go(self) -> None:
        """Free the lock, and leave nothing behind but an error."""
        if self._lock is not None:
            self._path(self.rank, "lock").unlink(missing_ok=True)
            self._lock.close()
        try:
            self.folder.rmdir()
        except OSError:  # others are still there, or an error
            pass

    def who_is_lost(self, seconds: float) -> str:
        """Which ranks are lost, why, and what to do."""
        again = "then start the same command again: it goes on at the last checkpoint"
        until = time.monotonic() + LOOK_SECONDS
        while True:
            others = [rank for rank in range(self.world) if rank != self.rank]
            errors = {rank: text for rank in others if (text := self._error(rank))}
            if errors:
                told = "; ".join(f"rank {rank} failed with {text}" for rank, text in errors.items())
                return f"{told}. Mend that, {again}"
            gone = [rank for rank in others if self._vanished(rank)]
            if gone:
                return (
                    f"rank {', '.join(map(str, gone))} vanished without a message, as after kill -9, for want of "
                    f"memory, or with its machine. Look at the log of that machine's system, {again}"
                )
            if time.monotonic() > until:
                return f"one of them died, or did nothing for {seconds:.0f} s. Look for its message, {again}"
            time.sleep(0.05)

    def _error(self, rank: int) -> str:
        try:
            return self._path(rank, "txt").read_text().strip()
        except OSError:
            return ""

    def _vanished(self, rank: int) -> bool:
        """Its lock is free, and it left neither an error nor word that it lost others itself."""
        if not self._path(rank, "lock").is_file() or self._path(rank, "lost").exists():
            return False
        try:
            _locked(self._path(rank, "lock")).close()
        except OSError:  # held, or a file system without locks
            return False
        return not self._error(rank)


def _locked(path: Path) -> IO[str]:
    """Open the file and lock it for as long as it is open. Raises OSError when another process holds it."""
    import fcntl  # not on Windows, where recipes can still be validated

    f = path.open("a+")
    try:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        f.close()
        raise
    return f
