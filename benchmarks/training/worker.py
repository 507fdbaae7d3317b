"""One side at work in a process of its own, on a given number of cores: main(SIDE, HOME, THREADS).

For each JSON line {task: "step", sample, variant, number, few} it answers one of {wall, cpu, tokens}, the seconds of a
training step on the batch of that number, or of {problem}. Task "peak" measures what the cores can do at all.
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


def peak() -> dict[str, float]:
    """Floating-point operations per second of a product of matrices that fit the cache, in fp32 and bf16."""
    import torch

    best = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.rand(2, PEAK_SIZE, PEAK_SIZE).to(dtype)
        seconds = []
        for _ in range(8):
            start = time.perf_counter()
            torch.mm(a, b)
            seconds.append(time.perf_counter() - start)
        best[name] = 2.0 * PEAK_SIZE**3 / min(seconds)
    return best


def timed_step(training: Any, number: int) -> dict[str, float]:
    """Seconds of one step, by both clocks."""
    training.prepare(number)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = training.step()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "tokens": tokens}


def main(side: str, home: str, threads: str) -> None:
    """Answer the lines of standard input."""
    if hasattr(os, "sched_setaffinity"):  # before anything starts threads: they inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    # Libraries print to stdout as they like; only this stream carries figures.
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch

    torch.set_num_threads(int(threads))
    trainings: dict[tuple[str, str], Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["task"] == "peak":
                answer = peak()
            else:
                key = asked["sample"], asked["variant"]
                if key not in trainings:
                    module = importlib.import_module(f"training.{side}")
                    trainings[key] = module.OPEN(Path(home), *key, int(asked["few"]))
                answer = timed_step(trainings[key], int(asked["number"]))
        except Exception as error:  # costs a row of the table only
            answer = {"problem": f"{type(error).__name__}: {error}".replace("\n", " ")[:160]}
        print(json.dumps(answer), file=answers, flush=True)
