"""What the user sees while something runs: headings, lines, progress. Plain lines when the output is not a terminal."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

PLAIN_INTERVAL_SECONDS = 5.0


def is_main_process() -> bool:
    """True on global rank 0, and without a launcher. Only that process talks."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str = "") -> None:
    """Print a line on the main process, at once."""
    if is_main_process():
        print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning on standard error, on every rank: a warning of one rank must not be lost."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Progress:
    """Progress of one piece of work: a tqdm bar on a terminal, a line every few seconds elsewhere.

    Used as a context manager; `advance` counts units done, `note` is shown after the count. `done` units were done
    earlier: they say nothing about the speed.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.earlier = done
        self.started = self.printed = time.monotonic()
        self.bar = None
        if is_main_process() and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, initial=done, desc=f"  {title}", unit=f" {unit}", leave=False, dynamic_ncols=True
            )

    def __enter__(self) -> Progress:
        return self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units as done."""
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            return
        now = time.monotonic()
        if now - self.printed >= PLAIN_INTERVAL_SECONDS:
            self.printed = now
            rate = (self.done - self.earlier) / max(now - self.started, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            count = f"{self.done}/{self.total} {self.unit} ({rate:.3g}/s, {left:.0f} s left)"
            say(f"  {self.title}: {count} {note}".rstrip())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
