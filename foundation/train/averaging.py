"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Averages:
    """Averages, in fp32, of the tensors that an optimiser updates; under ZeRO each process averages what it holds.

    After update t, counted from 1, average += (1 - d) * (weights - average) with d = min(decay, t / (9 + t)): the
    second, as in TensorFlow's ExponentialMovingAverage, lets the untrained first weights be forgotten soon.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.states: dict[Tensor, dict[str, Any]] = {}

    @torch.no_grad()
    def update(self, tensors: Sequence[Tensor]) -> None:
        """Take in the weights after an update."""
        for tensor in tensors:
            state = self.states.setdefault(tensor, {"weights": tensor.detach().clone(), "updates": 0})
            state["updates"] += 1
            updates = state["updates"]
            state["weights"].lerp_(tensor.detach(), 1.0 - min(self.decay, updates / (9.0 + updates)))

    @torch.no_grad()
    def swap(self, tensors: Sequence[Tensor]) -> None:
        """Exchange weights and averages; doing it twice changes nothing, to the bit."""
        for tensor in tensors:
            if tensor in self.states:
                average = self.states[tensor]["weights"]
                weights = tensor.detach().clone()
                tensor.copy_(average)
                average.copy_(weights)
