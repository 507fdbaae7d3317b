"""Lines of a table: what a side generates in each turn, and the Markdown of it."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stream import load
from training.processes import Side, start

CLOCKS = ("wall", "cpu")


@dataclass
class Line:
    """A way to generate objects of one sample: `size` of them in a turn, by `task` of a side."""

    name: str
    sample: str
    variant: str
    side: Side
    size: int
    task: str = "generate"
    turns: list[dict[str, float]] = field(default_factory=list)
    problem: str = ""

    def ask(self, task: str, size: int) -> dict[str, float]:
        """What one call took and made; empty where it failed."""
        if self.problem:
            return {}
        answer = self.side.ask({"task": task, "sample": self.sample, "variant": self.variant, "size": size})
        if "problem" in answer:
            self.problem = str(answer["problem"])
            return {}
        return {name: float(x) for name, x in answer.items()}

    def warm_up(self) -> None:
        """A smaller call, not timed: it compiles and allocates."""
        self.ask(self.task, max(1, self.size // 16))

    def turn(self) -> None:
        """One turn."""
        if made := self.ask(self.task, self.size):
            self.turns.append(made)

    def forget(self) -> None:
        """Free the memory that it holds."""
        self.side.ask({"task": "forget", "sample": self.sample, "variant": self.variant})

    @property
    def measured(self) -> bool:
        return bool(self.turns) and not self.problem

    def rates(self, what: str = "objects", clock: str = "wall") -> list[float]:
        """Objects or points per second in each turn."""
        return [turn[what] / turn[clock] for turn in self.turns]

    def rate(self, what: str = "objects", clock: str = "wall") -> float:
        """In the median turn."""
        return statistics.median(self.rates(what, clock))


class Sides:
    """The processes of all sides for one sample, started when they are first needed: `with Sides(...) as sides`."""

    def __init__(self, sample: str, threads: int, home: Path, peers: Path | None) -> None:
        self.sample, self.threads, self.home, self.peers = sample, threads, home, peers
        self.started: dict[str, Side] = {}

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *error: object) -> None:
        for side in self.started.values():
            side.stop()

    def line(self, name: str, side: str, variant: str, size: int, task: str = "generate") -> Line:
        """A way of one side to generate."""
        if side not in self.started:
            self.started[side] = start(side, self.sample, self.threads, self.home, self.peers, "generation")
        return Line(name, self.sample, variant, self.started[side], size, task)


def take_turns(lines: Sequence[Line], turns: int, title: str, work: Callable[[Line], None] = Line.turn) -> None:
    """All lines one after the other, several times; then their models and caches are forgotten."""
    for line in lines:
        line.warm_up()
    for turn in range(turns):
        for line in lines:
            work(line)
        if turn in (0, turns // 2, turns - 1):
            print(f"{title}: turn {turn + 1} of {turns}; {load()}", file=sys.stderr, flush=True)
    for line in lines:
        line.forget()


def table(lines: Sequence[Line], objects: str, points: str, reference: Line | None) -> str:
    """Markdown: rates, and ratios to one of the lines."""
    head = f"| {objects} | {objects}/s | {points}/s | us of CPU per {points[:-1]} | {points} each | ratio | by CPU |"
    made = ["", head, "|---|---|---|---|---|---|---|"]
    for line in lines:
        if not line.measured:
            made.append(f"| {line.name} | not available: {line.problem} | | | | | |")
            continue
        each = sum(t["points"] for t in line.turns) / sum(t["objects"] for t in line.turns)
        known = reference if reference and reference.measured else None
        ratios = [f"{line.rate(clock=c) / known.rate(clock=c):.3g}" if known else "" for c in CLOCKS]
        cells = [f"{line.rate():,.3g}", f"{line.rate('points'):,.4g}", f"{1e6 / line.rate('points', 'cpu'):,.0f}"]
        made.append(f"| {line.name} | {' | '.join(cells)} | {each:,.0f} | {' | '.join(ratios)} |")
    return "\n".join(made)


def beside(own: Line, other: Line, target: float | None = None) -> str:
    """Ratio of two lines, and its range over the turns."""
    if not own.measured or not other.measured:
        return ""
    turns = sorted(a / b for a, b in zip(own.rates(), other.rates(), strict=True))
    wanted = f"; target {target:g}" if target else ""
    return (f"- {own.name}: {own.rate() / other.rate():.3g} times {other.name} ({turns[0]:.3g} to {turns[-1]:.3g} by "
            f"turn{wanted})")  # fmt: skip
