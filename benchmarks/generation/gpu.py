"""Our sampler on a GPU: objects per second, beside the targets and the bound."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from training.gpu import matmul_peak

from generation import ours
from generation.bounds import Machine, slots_that_fit
from generation.sizes import Lengths

SLOTS = (1, 100, 10_000)
TARGETS = {"jets": 100_000, "showers": 500}
SHOWER_HITS = 1000
PRECISION = "bf16"
BUFFER = 4_000_000_000
ROUNDS, FEWEST = 3, 20
"""So many objects per slot where they end at different times, else one, and so many at least."""


def report(home: Path) -> str:
    """Markdown, or why there is nothing to report."""
    if not torch.cuda.is_available():
        return "\nGPU: left out, torch sees no CUDA device here"
    bytes_per_second = read_peak()
    best = Machine(matmul_peak(), bytes_per_second, bytes_per_second)
    lines = [f"\n{torch.cuda.get_device_name()}, {PRECISION}: {best.flops / 1e12:.0f} TFLOP/s in torch.mm, "
             f"{best.cache / 1e12:.2f} TB/s read in a sum.\n",
             "| objects at once | objects/s | target | tokens/s | us per step | share of the bound |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for sample, points in (("jets", "ends"), ("showers", str(SHOWER_HITS))):
        mean = Lengths.load(home / f"{sample}.json").mean if points == "ends" else float(points)
        for wanted in SLOTS:
            free = torch.cuda.mem_get_info()[0] / 2
            slots = slots_that_fit(sample, PRECISION, wanted, int(2 * mean), free)
            name = f"{slots:,} {sample}"
            try:
                objects, made, seconds = measure(home, sample, slots, points)
            except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                lines.append(f"| {name} | not available: {str(error).splitlines()[0][:100]} | | | | |")
                continue
            per_step = seconds * slots / made
            share = best.seconds(ours.cost_of(sample, PRECISION, slots, mean / 2)) / per_step
            target = f"{TARGETS[sample]:,}" if wanted == SLOTS[-1] else ""
            lines.append(f"| {name} | {objects / seconds:,.4g} | {target} | {made / seconds:,.4g} | "
                         f"{1e6 * per_step:,.4g} | {100 * share:.0f} % |")  # fmt: skip
            torch.cuda.empty_cache()
    return "\n".join(lines)


def measure(home: Path, sample: str, slots: int, points: str, device: str = "cuda") -> tuple[int, int, float]:
    """Objects, their points, and seconds, up to the codes in the memory of the host."""
    side = ours.Ours(home, sample, f"{PRECISION} {slots} {points}", device)
    side.generate(min(slots, 64))  # compiles
    start = time.perf_counter()
    objects, made = side.generate(max(FEWEST, (ROUNDS if points == "ends" else 1) * slots))
    return objects, made, time.perf_counter() - start


def read_peak() -> float:
    """Bytes per second at which a sum reads a large buffer, the best of ten."""
    buffer, best = torch.ones(BUFFER // 4, device="cuda"), float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        buffer.sum()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return buffer.nbytes / best
