"""Batches and the training step of code that pads, in whichever environment it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.sizes import WORKLOADS

IGNORED = -100


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences side by side: inputs, targets and mask, where a token is real, [B, L] each."""

    inputs: Tensor
    targets: Tensor
    mask: Tensor


class PaddedTraining(ABC):
    """A model of other people with its optimiser; subclasses say how it computes a batch's mean loss.

    precision: fp32, or bf16 by autocast; few: sequences of a micro-batch, where a whole batch needs too much memory
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, home: Path, sample: str, precision: str, few: int) -> None:
        with np.load(home / f"{sample}.npz") as found:
            self.codes, self.offsets, self.batch = found["codes"], found["offsets"], int(found["batch"])
        self.workload, self.precision = WORKLOADS[sample], precision
        self.few = min(few, self.batch)
        self.batches = len(self.offsets[1:]) // self.batch

    @abstractmethod
    def loss(self, batch: PaddedBatch) -> Tensor:
        """Mean loss of a batch."""

    @abstractmethod
    def places(self, longest: int) -> int:
        """Length to which a batch is padded whose longest sequence has so many inputs."""

    def micro_batches(self, number: int) -> list[PaddedBatch]:
        """The batch of this number, in parts of `few` sequences: start, codes, and as targets codes, stop."""
        first = (number % self.batches) * self.batch
        parts = np.arange(first, first + self.batch + 1, self.few)
        return [self._padded(a, min(a + self.few, first + self.batch)) for a in parts if a < first + self.batch]

    def _padded(self, first: int, last: int) -> PaddedBatch:
        lengths = np.diff(self.offsets[first : last + 1]) + 1
        inputs = np.zeros((last - first, self.places(int(lengths.max()))), np.int64)
        targets, mask = np.zeros_like(inputs), np.arange(inputs.shape[1]) < lengths[:, None]
        for row, n in enumerate(lengths):
            start = self.offsets[first + row]
            inputs[row, 1:n] = targets[row, : n - 1] = self.codes[start : start + n - 1] + 1
            targets[row, n - 1] = self.workload.codes + 1
        return PaddedBatch(*(torch.from_numpy(x) for x in (inputs, targets, mask)))

    def prepare(self, number: int) -> None:
        """Lay out a batch, as their data loaders do in processes of their own: not timed."""
        self.ready = self.micro_batches(number)

    def step(self) -> int:
        """Forward, backward, clipping, update. Returns the number of real tokens."""
        self.optimizer.zero_grad()
        tokens = int(sum(batch.mask.sum() for batch in self.ready))
        for batch in self.ready:
            rounded = torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext()
            with rounded:
                loss = self.loss(batch) * self.share(batch, tokens)
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.workload.clip)
        self.optimizer.step()
        return tokens

    def share(self, batch: PaddedBatch, tokens: int) -> float:
        """Weight of a micro-batch's mean loss in that of the step."""
        return float(batch.mask.sum()) / tokens
