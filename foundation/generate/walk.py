"""How sequences go from point to point: what each object draws in a step, when it ends, what it has so far.

State is kept in tensors with a row per slot, and changed without asking the device what it holds, so that a step can be
captured as one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.errors import DataError
from foundation.generate.draw import Head, choose, ends, masses
from foundation.generate.products import filled_up, pieces
from foundation.generate.randomness import object_keys, uniform
from foundation.generate.sampling_config import SamplingConfig
from foundation.tokens.layout import Layout
from foundation.tokens.vocabulary import EOS, NONE

LOGITS = 2**22
"""Logits that exist at a time, if those of a few rows are not more."""


def most_points(layout: Layout, tag: str, config: SamplingConfig) -> int:
    """Most points (or patches) of an object."""
    fixed = layout.entry(tag).tokens_per_object
    return config.max_points if fixed is None else fixed


class Walk:
    """The objects of S slots; point j of an object is drawn when `layout.place` says, with numbers of its own."""

    def __init__(
        self, layout: Layout, tag: str, config: SamplingConfig, heads: Sequence[Head], slots: int, sizes: Sequence[int]
    ) -> None:
        """heads: of the streams; sizes: numbers of rows at which a matrix product gives every row the same bits."""
        entry, first = layout.entry(tag), layout.first_slot[tag]
        self.layout, self.config, self.sizes, self.fixed = layout, config, sizes, entry.tokens_per_object
        self.streams = len(entry.streams)
        self.settings = [config.stream(name) for name in entry.streams]
        self.slots = layout.slots[first : first + self.streams]
        self.heads = heads
        self.most = most_points(layout, tag, config)
        self.device = heads[0].end.device
        self.skips = self.device.type == "cpu"
        self.keys, self.given, self.body, self.counts = (self._zeros(slots) for _ in range(4))
        self.cut, self.done = self._zeros(slots).bool(), self._zeros(slots).bool()
        self.codes = torch.zeros(slots, self.most, self.streams, dtype=torch.int32, device=self.device)

    def _zeros(self, slots: int) -> Tensor:
        return torch.zeros(slots, dtype=torch.int64, device=self.device)

    def begin(self, slots: Tensor, seed: int, indices: NDArray[np.int64], given: Sequence[NDArray | None]) -> None:
        """New objects in these slots [n], with their indices [n] and the codes that they begin with."""
        self.keys[slots] = object_keys(seed, torch.from_numpy(indices).to(self.device))
        self.body[slots] = 0
        self.counts[slots] = -1 if self.fixed is None else self.fixed
        self.cut[slots], self.done[slots] = False, False
        self.given[slots] = torch.tensor([0 if g is None else len(g) for g in given], device=self.device)
        for slot, known in zip(slots.tolist(), given, strict=True):
            if known is not None and len(known):
                self.codes[slot, : len(known)] = torch.from_numpy(np.ascontiguousarray(known)).int().to(self.device)

    def step(self, hidden: Tensor, rows: Tensor, stream: int = 0) -> Tensor:
        """Draw the next step of the objects in slots `rows` [n]: hidden [at least n, D] -> ids [n, columns].

        stream: in the interleaved mode, the one that all of them have reached.
        """
        body, most = self.body[rows], max(1, self.streams - 1)
        ids = torch.full((len(rows), self.layout.columns), NONE, device=self.device)
        if self.layout.mode == "interleaved":
            self._draw(stream, 0, body // self.streams, hidden, rows, ids)
            last = self.streams * self.counts[rows]
        else:
            if self.fixed is not None:
                ids[:, 0] = torch.where(body == self.fixed, EOS, NONE)
            for column in range(self.streams):
                self._draw(column, column, body - column, hidden, rows, ids)
            last = self.counts[rows] + most
        self.body[rows] = body + 1
        self.done[rows] = (self.counts[rows] >= 0) & (body + 1 >= last)
        return ids

    def _draw(self, stream: int, column: int, point: Tensor, hidden: Tensor, rows: Tensor, ids: Tensor) -> None:
        """Draw a stream of these points [n] where they have it, or take it from what is given, and put it into ids."""
        counts, slot, inside = self.counts[rows], self.slots[stream], point.clamp(0, self.most - 1)
        wanted = (point >= 0) & ((counts < 0) | (point < counts))
        known = self.codes[rows, inside, stream]
        free = wanted & (point >= self.given[rows])
        drawn, ended = self._drawn(stream, hidden, rows, point, free)
        code = torch.where(free, drawn, known)
        if slot.ends:
            stop = free & (ended | (point >= self.most))
            self.cut[rows] |= stop & ~ended
            self.counts[rows] = torch.where(stop, point, counts)
            wanted &= ~stop
            ids[:, column] = torch.where(stop, EOS, ids[:, column])
        self.codes[rows, inside, stream] = torch.where(wanted, code, known).to(self.codes.dtype)
        ids[:, column] = torch.where(wanted, slot.start + code, ids[:, column])

    def _drawn(self, stream: int, hidden: Tensor, rows: Tensor, point: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 [n], and whether the object ends instead, bool [n]; of meaning where `free` says so."""
        chosen = torch.nonzero(free)[:, 0] if self.skips else torch.arange(len(rows), device=self.device)
        codes, ended = torch.zeros_like(rows), torch.zeros_like(free)
        if len(chosen) == 0:
            return codes, ended
        sizes, keys = pieces(len(chosen), self.sizes, LOGITS // self.heads[stream].size), self.keys[rows]
        state = hidden[: len(rows)]
        if len(chosen) < len(rows):
            state, keys, point = state[chosen], keys[chosen], point[chosen]
        state, keys, points = (filled_up(x, sum(sizes)) for x in (state, keys, point))
        parts = zip(state.split(sizes), keys.split(sizes), points.split(sizes), strict=True)
        found, ends_found = zip(*(self._draw_piece(stream, *part) for part in parts), strict=True)
        codes[chosen], ended[chosen] = torch.cat(found)[: len(chosen)], torch.cat(ends_found)[: len(chosen)]
        return codes, ended

    def _draw_piece(self, stream: int, hidden: Tensor, keys: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        head, settings = self.heads[stream], self.settings[stream]
        found = masses(head.chunks(hidden), head.size, settings, head.ends)
        if self.skips and not bool(found.cumulative[:, -1].isfinite().all()):
            raise DataError("the model's logits are not finite: its weights are damaged, or its training diverged")
        places = 2 * (points * self.streams + stream)
        if not head.ends:
            return choose(found, uniform(keys, places)), torch.zeros_like(points, dtype=torch.bool)
        numbers = uniform(keys[:, None], torch.stack([places, places + 1], dim=1))
        end = ends(head.end_logit(hidden), found, self.config.end_temperature, numbers[:, 1])
        return choose(found, numbers[:, 0]), end & (points >= self.config.min_points)

    def state(self) -> list[Tensor]:
        """All tensors that a step changes."""
        return [self.body, self.counts, self.cut, self.done, self.codes]

    def take(self, slots: Tensor) -> list[tuple[NDArray[np.int64], bool]]:
        """Codes [n, K] of the objects in these slots, and whether they were cut at max_points."""
        counts, cut = self.counts[slots].tolist(), self.cut[slots].tolist()
        codes = self.codes[slots].cpu().numpy().astype(np.int64)
        return [(own[:n].copy(), was) for own, n, was in zip(codes, counts, cut, strict=True)]
