"""Sizes of the published backbones (arXiv:2403.05618, arXiv:2501.05534) and of their batches. No imports: all sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, BLOCKS, HEADS = 256, 3, 8


@dataclass(frozen=True)
class Workload:
    """One of the published trainings: `codes` of the tokenizer, places to which sequences are padded, `batch`.

    clip: largest norm of the gradient; target: how many times as fast as the public step ours is to be
    """

    codes: int
    longest: int
    batch: int
    clip: float
    target: float
    peer: str


WORKLOADS = {
    "jets": Workload(codes=8192, longest=128, batch=256, clip=5.0, target=3.0, peer="OmniJet-alpha"),
    "showers": Workload(codes=65536, longest=1700, batch=16, clip=1.0, target=8.0, peer="OmniJet-alpha_C"),
}


def useful_flops(lengths: Sequence[int], width: int, block_parameters: int, layers: int, legal: int) -> float:
    """Multiplications and additions that a step on sequences of these lengths needs, unpadded, forward and backward.

    Six for each parameter of the blocks and of the output rows of the legal ids, and for each step six times its width
    per layer and step that it attends to, twice: for scores and for values.
    """
    tokens, pairs = sum(lengths), sum(n * (n + 1) // 2 for n in lengths)
    return 6.0 * tokens * (block_parameters + legal * width) + 12.0 * layers * width * pairs
