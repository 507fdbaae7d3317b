"""One side at work in a process of its own, on a given number of cores: main(SIDE, HOME, THREADS).

For each JSON line {task, sample, variant, size} it answers one of {wall, cpu, objects, points}, what `task` of that
side made and how long it took, or of {problem}. Task "peak" measures what the cores can do at all, and "forget" drops a
variant.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PEAK_SIZE = 1024
TYPES = {"fp32": "float32", "bf16": "bfloat16"}


def peak(sizes: list[int]) -> dict[str, float]:
    """Floating-point operations per second of a product of matrices, and bytes per second at which the product of a
    matrix with a vector reads the matrix, for matrices of so many bytes."""
    import torch

    best = {}
    for name, dtype in ((name, getattr(torch, dtype)) for name, dtype in TYPES.items()):
        a = torch.rand(PEAK_SIZE, PEAK_SIZE).to(dtype)
        best[name] = 2.0 * PEAK_SIZE**3 / shortest(torch.mm, a, a)
    for size in sizes:
        matrix = torch.rand(max(1, size // 4096), 1024)
        best[str(size)] = matrix.nbytes / shortest(torch.mv, matrix, torch.rand(1024))
    return best


def shortest(work: Any, *arguments: Any) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        work(*arguments)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def timed(side: Any, task: str, size: int) -> dict[str, float]:
    """Seconds of one call, by both clocks, and what it made."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    objects, points = getattr(side, task)(size)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "objects": objects, "points": points}


def main(side: str, home: str, threads: str) -> None:
    """Answer the lines of standard input."""
    if hasattr(os, "sched_setaffinity"):  # before anything starts threads: they inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    # Libraries print to stdout as they like; only this stream carries figures.
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch

    torch.set_num_threads(int(threads))
    opened: dict[tuple[str, str], Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["task"] == "peak":
                answer = peak(asked["sizes"])
            elif asked["task"] == "forget":
                opened.pop((asked["sample"], asked["variant"]), None)
                answer = {}
            else:
                key = asked["sample"], asked["variant"]
                if key not in opened:
                    opened[key] = importlib.import_module(f"generation.{side}").OPEN(Path(home), *key)
                answer = timed(opened[key], asked["task"], int(asked["size"]))
        except Exception as error:  # costs a row of the table only
            answer = {"problem": f"{type(error).__name__}: {error}".replace("\n", " ")[:160]}
        print(json.dumps(answer), file=answers, flush=True)
