"""One side at work in a process of its own, on a given number of cores.

    python -m coders.worker SIDE HOME THREADS        SIDE: ours, omnijet

For each JSON line {task, coder, sample} it answers one of {wall, cpu, points}, seconds of one pass over the sample, or
of {problem}. Task "peak" measures what the cores can do at all.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

LONG_ENOUGH = 0.3
"""Seconds; what takes less is repeated."""
PEAK_SIZE = 1024


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Seconds of one call, by both clocks, and what it returned."""
    calls, points = 0, 0
    wall, cpu = time.perf_counter(), time.process_time()
    while calls == 0 or time.perf_counter() - wall < LONG_ENOUGH:
        points, calls = work(), calls + 1
    return {
        "wall": (time.perf_counter() - wall) / calls,
        "cpu": (time.process_time() - cpu) / calls,
        "points": points,
    }


def peak() -> dict[str, float]:
    """Floating-point operations per second of a product of matrices that fit the cache."""
    import torch

    a, b = torch.rand(2, PEAK_SIZE, PEAK_SIZE)
    product, best = torch.empty(PEAK_SIZE, PEAK_SIZE), float("inf")
    for _ in range(5):
        best = min(best, timed(lambda: len(torch.mm(a, b, out=product)))["wall"])
    return {"flops": 2.0 * PEAK_SIZE**3 / best}


def main() -> None:
    side, home, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if hasattr(os, "sched_setaffinity"):  # before anything starts threads: they inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # Libraries print to stdout as they like; only this stream carries figures.
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch

    torch.set_num_threads(threads)
    module = importlib.import_module(f"coders.{side}")
    coders: dict[tuple[str, str], object] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["task"] == "peak":
                answer = peak()
            else:
                key = asked["sample"], asked["coder"]
                coder = coders.get(key) or coders.setdefault(key, module.OPEN(home, *key))
                answer = timed(getattr(coder, asked["task"]))
        except Exception as error:  # costs a row of the table only
            answer = {"problem": f"{type(error).__name__}: {error}".replace("\n", " ")[:160]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
