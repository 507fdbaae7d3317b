"""How fast training is: tokens per second, the share of what the machine's matrix products reach, and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
import torch
from torch import nn

from foundation.stream.token_stream import Batch
from foundation.tasks.base import Task

WINDOW_STEPS = 50
"""Steps that a speed is the mean of."""
PEAK_SECONDS = 0.1


@dataclass(frozen=True)
class Speed:
    """Of the last steps.

    tokens_per_second: of all processes
    share:  of the measured peak of matrix products of this process's device, in the model's precision
    memory: most bytes so far, of the GPU or else of the process
    """

    tokens_per_second: float
    share: float
    memory: int
    on_gpu: bool

    @property
    def metrics(self) -> dict[str, float]:
        """For MLflow."""
        memory = "gpu_memory_gb" if self.on_gpu else "memory_gb"
        share = "mfu" if self.on_gpu else "matmul_peak_share"
        return {"tokens_per_second": self.tokens_per_second, share: self.share, memory: self.memory / 1e9}

    def __str__(self) -> str:
        share = f"MFU {self.share:.0%}" if self.on_gpu else f"{self.share:.0%} of the matmul peak"
        return f"{_short(self.tokens_per_second)} tokens/s, {share}, {self.memory / 1e9:.1f} GB"


def _short(number: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


class Speedometer:
    """Speed over the last steps; `shapes` are those of all parameters, whole ones also under ZeRO 3."""

    def __init__(self, task: Task, shapes: Mapping[str, Sequence[int]], device: torch.device, precision: str) -> None:
        self.task, self.device = task, device
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.weights = matrix_weights(task, shapes)
        self._steps: deque[tuple[float, int, float]] = deque(maxlen=WINDOW_STEPS)
        self.pause()

    def pause(self) -> None:
        """Begin anew, after something that is no step."""
        self._steps.clear()
        self._steps.append((time.monotonic(), 0, 0.0))

    def count(self, tokens: int, batches: Sequence[Batch]) -> None:
        """A step is done. tokens: of all processes; batches: of this one."""
        flops = sum(batch_flops(self.task, self.weights, batch) for batch in batches)
        self._steps.append((time.monotonic(), tokens, flops))

    def speed(self) -> Speed:
        """Now."""
        seconds = max(self._steps[-1][0] - self._steps[0][0], 1e-9)
        tokens, flops = (sum(step[k] for step in list(self._steps)[1:]) for k in (1, 2))
        share = flops / seconds / matmul_peak(self.device, self.dtype)
        on_gpu = self.device.type == "cuda"
        return Speed(tokens / seconds, share, _memory(self.device), on_gpu)


def matrix_weights(task: Task, shapes: Mapping[str, Sequence[int]]) -> int:
    """Weights that every step is multiplied with: matrices, without the vectors of ids that are only looked up."""
    apart = {id(p) for module in task.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    apart.add(id(task.backbone.output_weight))
    names = [name for name, p in task.named_parameters() if id(p) not in apart]
    return sum(prod(shapes[name]) for name in names if len(shapes[name]) > 1)


def batch_flops(task: Task, weights: int, batch: Batch) -> float:
    """Floating-point operations that forward and backward of a batch need, whatever the program does.

    6 per weight and step (arXiv:2001.08361), where of the output matrix only the legal ids of each target count; and
    attention to the steps before only, 6 * width * length**2 per block and sequence.
    """
    config, lengths = task.backbone.config, np.diff(batch.offsets)
    slots = getattr(task, "slots", ())
    widths = np.array([slot.width for slot in slots], np.float64)
    targets = np.bincount(batch.slots[batch.slots >= 0], minlength=len(widths)) if len(widths) else np.zeros(0)
    outputs = config.width * float(targets @ widths)
    attention = config.layers * config.width * float(lengths @ lengths)
    return 6.0 * (weights * len(batch.ids) + outputs + attention)


@cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product on this device, measured once."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def seconds() -> float:
        begin = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    first, best, until = seconds(), float("inf"), time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < until:
        best = min(best, seconds())
    return 2.0 * n**3 / min(first, best)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # kilobytes, but on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
