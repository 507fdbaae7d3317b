"""Runs of the sampler: objects come and go, each in a slot, by waves or in steps of one shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.generate.captured import SPAN, Captured
from foundation.generate.draw import Head
from foundation.generate.sampling_config import SamplingConfig
from foundation.generate.walk import Walk
from foundation.generate.waves import Waves
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout

WAVES, WAVE = 8, 16
"""New objects begin when this part of the slots is free; but not so few together."""


@dataclass(frozen=True)
class Request:
    """An object to draw: its number in the campaign, the ids of its prefix int64 [P], and codes int64 [n, K] that it
    begins with, if any."""

    index: int
    prefix: NDArray[np.int64]
    given: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Sampled:
    """Codes int64 [n, K] of a drawn object, those given included, and whether it was cut at max_points."""

    index: int
    codes: NDArray[np.int64]
    cut: bool


class Settings(Protocol):
    """What a run needs to know: what `Sampler` has."""

    model: Transformer
    layout: Layout
    tag: str
    seed: int
    config: SamplingConfig
    heads: list[Head]
    sizes: tuple[int, ...]
    steps: int
    slots: int


class _Run:
    """Slots, free ones and taken ones."""

    def __init__(self, settings: Settings) -> None:
        self.settings, layout = settings, settings.layout
        self.phases = len(settings.heads)
        self.free = list(range(settings.slots))
        self.indices = np.zeros(settings.slots, np.int64)
        with torch.inference_mode():
            self.walk = Walk(layout, settings.tag, settings.config, settings.heads, settings.slots, settings.sizes)

    @property
    def busy(self) -> int:
        """Number of objects that are under way."""
        return self.settings.slots - len(self.free)

    def _begin(self, new: list[Request]) -> tuple[NDArray[np.int64], Tensor]:
        """Prefixes [n, P] of new objects, and the slots [n] that they get."""
        slots, self.free = self.free[: len(new)], self.free[len(new) :]
        self.indices[slots] = [request.index for request in new]
        places = torch.tensor(slots, device=self.walk.device)
        self.walk.begin(places, self.settings.seed, self.indices[slots], [request.given for request in new])
        return np.stack([request.prefix for request in new]), places

    def _taken(self, slots: Tensor) -> list[Sampled]:
        if not len(slots):
            return []
        taken, numbers = self.walk.take(slots), slots.tolist()
        self.free += numbers
        return [Sampled(int(self.indices[s]), *found) for s, found in zip(numbers, taken, strict=True)]


class WavesRun(_Run):
    """By waves: work for the objects that go on, and no other."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        model = settings.model
        with torch.inference_mode():
            self.waves = Waves(model, settings.layout, settings.steps, settings.sizes, model.embedding.weight.dtype)
        self.phase = 0

    def wanted(self) -> int:
        """How many new objects there is room for, when it is time for new ones."""
        slots = self.settings.slots
        enough = min(max(slots // WAVES, WAVE), max(1, slots // 2))
        return len(self.free) if self.phase == 0 and (len(self.free) >= enough or not self.busy) else 0

    @torch.inference_mode()
    def step(self, new: list[Request]) -> list[Sampled]:
        """Let new objects begin, and draw the next step of all; returns those that are finished."""
        if new:
            self.waves.begin(*self._begin(new))
        if not self.busy:
            return []
        rows = self.waves.rows
        ids = self.walk.step(self.waves.hidden, rows, self.phase)
        done = self.walk.done[rows]
        finished = self._taken(rows[done])
        self.waves.advance(ids, done)
        self.phase = (self.phase + 1) % self.phases if self.busy else 0
        return finished


class CapturedRun(_Run):
    """In steps of one shape, several of them before anyone looks: for GPUs."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.span = -(-SPAN // self.phases) * self.phases
        with torch.inference_mode():
            self.captured = Captured(settings.model, settings.layout, self.walk, settings.steps, self.phases)

    def wanted(self) -> int:
        """How many new objects there is room for."""
        return len(self.free)

    @torch.inference_mode()
    def step(self, new: list[Request]) -> list[Sampled]:
        """Let new objects begin, and draw the next steps of all; returns those that are finished."""
        if new:
            self.captured.begin(*self._begin(new))
        if not self.busy:
            return []
        self.captured.advance(self.span)
        under_way = torch.ones(self.settings.slots, dtype=torch.bool)
        under_way[self.free] = False
        return self._taken(torch.nonzero(self.walk.done.cpu() & under_way)[:, 0].to(self.walk.device))
