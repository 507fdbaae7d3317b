"""What is generated, how long it is, and what a token must cost. No imports beyond NumPy: all sides read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPADE_BINS = {"z": 30, "x": 30, "y": 30, "energy": 62}
"""Codes of SPADE's four streams (arXiv:2606.11304); its own ranges have two more each, for padding and for no hit."""
SPADE_PREFIX = 4
"""Places that its sampler needs beyond those of the hits: its last stream lags so far behind."""
REGISTERS = 2


@dataclass(frozen=True)
class Lengths:
    """How many points an object has: `shortest` at least, after that each may be the last one with probability `stop`,
    and where `longest` is reached it is cut. A network whose weights are random can be made to end so."""

    shortest: int
    stop: float
    longest: int

    @staticmethod
    def like(counts: NDArray[np.integer], longest: int) -> Lengths:
        """With the mean of these counts, none below all but 5 % of them."""
        shortest, mean = int(np.quantile(counts, 0.05)), float(counts.mean())
        low, high = 1e-9, 0.5
        for _ in range(100):
            stop = (low + high) / 2
            low, high = (stop, high) if Lengths(shortest, stop, longest).mean > mean else (low, stop)
        return Lengths(shortest, (low + high) / 2, longest)

    @property
    def mean(self) -> float:
        """Average number of points."""
        return self.shortest + float(((1 - self.stop) ** np.arange(1, self.longest - self.shortest + 1)).sum())

    def draw(self, number: int, seed: int = 1) -> NDArray[np.int64]:
        """Points of so many objects."""
        more = np.random.default_rng(seed).geometric(self.stop, number) - 1
        return np.minimum(self.shortest + more, self.longest)

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Lengths:
        """What `save` wrote."""
        return Lengths(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Cost:
    """What one step of so many sequences has to do: floating-point operations, bytes of weights and caches."""

    flops: float
    weights: float
    cache: float

    @property
    def read(self) -> float:
        """Bytes."""
        return self.weights + self.cache


def step_cost(
    rows: int, context: float, width: int, layers: int, kv_width: int, blocks: int, legal: Sequence[int], size: int
) -> Cost:
    """Of `rows` sequences with `context` places each: their products with the blocks' parameters and with the output
    rows of the legal ids, and attention. `kv_width`: of keys; `size`: bytes of a number."""
    parameters = blocks + sum(legal) * width
    flops = rows * (2.0 * parameters + 4.0 * width * context * layers)
    return Cost(flops, float(parameters * size), rows * 2.0 * kv_width * context * layers * size)
