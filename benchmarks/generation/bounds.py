"""What a token of ours costs beside what the machine could do, and how long one object takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from training.processes import Side

from generation import ours
from generation.lines import Sides, take_turns
from generation.sizes import Cost

LARGEST_BUFFER = 1_000_000_000
FEWEST_TOKENS = 1000
MEMORY_SHARE = 0.4
"""Of the memory that is free, for the cache."""
LEGEND = """
Every object of a line has the same number of points, and all slots are taken. The bound of a step is the larger of two
times: for its floating-point operations (products with the parameters of the blocks and with the output rows of the
legal ids, attention) at the rate of torch.mm on 1024 x 1024 matrices, and for reading all weights and what is in the
cache on average, at the rate at which torch.mv reads a matrix of as many bytes: weights that fit the processor's own
cache are read from there."""


@dataclass(frozen=True)
class Machine:
    """Floating-point operations per second by type, and bytes per second of weights and of the cache."""

    flops: float
    weights: float
    cache: float

    def seconds(self, cost: Cost) -> float:
        """Least time of a step."""
        return max(cost.flops / self.flops, cost.weights / self.weights + cost.cache / self.cache)

    def limit(self, cost: Cost) -> str:
        """What sets it."""
        return "FLOPs" if cost.flops / self.flops >= self.seconds(cost) else "reading"


def free_memory() -> float:
    """Bytes that a process may take without harm; endless where the system does not say."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable"):
            return 1024.0 * int(line.split()[1])
    return float("inf")


def slots_that_fit(sample: str, precision: str, wanted: int, points: int, memory: float) -> int:
    """As many as wanted, or as the memory has room for."""
    return max(1, min(wanted, int(MEMORY_SHARE * memory / ours.cache_bytes(sample, precision, points))))


def machine(side: Side, precision: str, cost: Cost) -> Machine:
    """Measured for the sizes of this step."""
    sizes = [min(LARGEST_BUFFER, max(4096, int(x))) for x in (cost.weights, cost.cache)]
    found = side.ask({"task": "peak", "sizes": sizes})
    return Machine(float(found[precision]), *(float(found[str(size)]) for size in sizes))


def per_token(sample: str, points: int, wanted: list[int], tokens: int, threads: int, home: Path) -> str:
    """Markdown: slots against the bound. points: of an object, fewer where this makes more than so many tokens."""
    lines = [f"| {sample} at once | points each | tokens/s | us per token | bound, us | set by | share |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    with Sides(sample, threads, home, None) as sides:
        for precision in ours.TYPES:
            for slots in wanted:
                each = max(2, min(points, tokens // slots))
                slots = slots_that_fit(sample, precision, slots, each, free_memory())
                line = sides.line(f"{slots:,}, {precision}", "ours", f"{precision} {slots} {each}", slots)
                line.ask("generate", 1)
                made = line.ask("generate", max(slots, min(FEWEST_TOKENS, tokens) // each))
                line.forget()
                if line.problem:
                    lines.append(f"| {line.name} | not available: {line.problem} | | | | | |")
                    continue
                cost = ours.cost_of(sample, precision, slots, each / 2)
                best = machine(line.side, precision, cost)
                least, took = 1e6 * best.seconds(cost) / slots, 1e6 * made["wall"] / made["points"]
                lines.append(f"| {line.name} | {each:,} | {1e6 / took:,.4g} | {took:,.4g} | {least:,.4g} | "
                             f"{best.limit(cost)} | {100 * least / took:.0f} % |")  # fmt: skip
    return "\n".join(["", *lines])


def latency(sample: str, number: int, threads: int, home: Path) -> str:
    """Markdown: percentiles of the time of one object, alone."""
    lines = [f"| one of {number} {sample} | points | p50, ms | p90, ms | p99, ms | mean, ms | us per token |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    with Sides(sample, threads, home, None) as sides:
        alone = [sides.line(precision, "ours", f"{precision} 1 ends", 1) for precision in ours.TYPES]
        take_turns(alone, number, f"latency, {sample}")
    for line in alone:
        if not line.measured:
            lines.append(f"| {line.name} | not available: {line.problem} | | | | | |")
            continue
        walls = 1e3 * np.array([turn["wall"] for turn in line.turns])
        points = sum(turn["points"] for turn in line.turns)
        cells = [f"{x:,.3g}" for x in (*np.quantile(walls, [0.5, 0.9, 0.99]), walls.mean())]
        lines.append(f"| {line.name} | {points / number:,.0f} | {' | '.join(cells)} | "
                     f"{1e3 * walls.sum() / max(points, 1):,.0f} |")  # fmt: skip
    return "\n".join(["", *lines])
