"""How sequences go from point to point: what each object draws in a step, when it ends, what it has so far.

State is kept in tensors with a row per slot, and changed without asking the device what it holds, so that a step can be
captured as one CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
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
ENDLESS = 2**40
"""Points of an object of which nobody knows yet how many it will have."""


def most_points(layout: Layout, tag: str, config: SamplingConfig) -> int:
    """Most points (or patches) of an object."""
    fixed = layout.entry(tag).tokens_per_object
    return config.max_points if fixed is None else fixed


class Walk:
    """The objects of S slots; point j of an object is drawn when `layout.place` says, with numbers of its own."""

    def __init__(
        self, layout: Layout, tag: str, config: SamplingConfig, heads: Sequence[Head], slots: int, sizes: Sequence[int]
    ) -> None:
        """heads: of the streams, one for each step of a turn through them; sizes: numbers of rows at which a matrix
        product gives every row the same bits."""
        entry, first = layout.entry(tag), layout.first_slot[tag]
        self.layout, self.config, self.sizes, self.fixed = layout, config, sizes, entry.tokens_per_object
        self.streams = len(entry.streams)
        self.heads, self.device = heads, heads[0].end.device
        self.most = most_points(layout, tag, config)
        self.skips = self.device.type == "cpu"
        each, settings = self.streams // len(heads), [config.stream(name) for name in entry.streams]
        self.settings = [settings[k : k + each] for k in range(0, self.streams, each)]
        starts = torch.tensor([slot.start for slot in layout.slots[first : first + self.streams]], device=self.device)
        self.starts = starts.split(each)
        self.drawn_streams = torch.arange(self.streams, device=self.device).split(each)
        self.given, self.body, self.counts = (self._zeros(slots) for _ in range(3))
        self.cut, self.done = self._zeros(slots).bool(), self._zeros(slots).bool()
        self.codes = torch.zeros(slots, self.most, self.streams, dtype=torch.int32, device=self.device)
        # for every point the numbers of its streams and of the end; an end is drawn behind the last point, too
        shape = self.most + 1, self.streams + 1
        self.places = torch.arange(math.prod(shape), device=self.device).view(shape)
        self.numbers = torch.zeros(slots, *shape, dtype=torch.float64, device=self.device)
        self.all_free = self.skips

    def _zeros(self, slots: int) -> Tensor:
        return torch.zeros(slots, dtype=torch.int64, device=self.device)

    def begin(self, slots: Tensor, seed: int, indices: NDArray[np.int64], given: Sequence[NDArray | None]) -> None:
        """New objects in these slots [n], with their indices [n] and the codes that they begin with."""
        keys = object_keys(seed, torch.from_numpy(indices).to(self.device))
        self.numbers[slots] = uniform(keys[:, None, None], self.places)
        self.body[slots] = 0
        self.counts[slots] = ENDLESS if self.fixed is None else self.fixed
        self.cut[slots], self.done[slots] = False, False
        self.given[slots] = torch.tensor([0 if g is None else len(g) for g in given], device=self.device)
        for slot, known in zip(slots.tolist(), given, strict=True):
            if known is not None and len(known):
                self.codes[slot, : len(known)] = torch.from_numpy(np.ascontiguousarray(known)).int().to(self.device)
                self.all_free = False

    def step(self, hidden: Tensor, rows: Tensor, phase: int = 0) -> Tensor:
        """Draw the next step of the objects in slots `rows` [n]: hidden [at least n, D] -> ids [n, columns].

        phase: in the interleaved mode, the stream that all of them have reached.
        """
        body, streams = self.body[rows], self.drawn_streams[phase]
        if self.layout.mode == "interleaved":
            point, scale, tail = (body // self.streams)[:, None], self.streams, 0
        else:
            point, scale, tail = body[:, None] - streams, 1, max(1, self.streams - 1)
        ids, counts = self._draw(phase, point, hidden, rows)
        if self.fixed is not None and tail:
            ids[:, 0] = torch.where(body == self.fixed, EOS, ids[:, 0])
        self.body[rows] = body + 1
        self.done[rows] = body + 1 >= scale * counts + tail
        return F.pad(ids, (0, self.layout.columns - ids.shape[1]), value=NONE)

    def _draw(self, phase: int, point: Tensor, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Draw streams of these points [n, k] where they have them, or take them from what is given: ids [n, k], and
        the number of points of every object [n], as far as it is known."""
        head, streams, counts = self.heads[phase], self.drawn_streams[phase], self.counts[rows]
        inside = rows[:, None], point.clamp(0, self.most - 1), streams
        wanted, known = (point >= 0) & (point < counts[:, None]), self.codes[inside]
        free = wanted if self.all_free else wanted & (point >= self.given[rows][:, None])
        drawn, ended = self._drawn(phase, hidden, rows, point, free)
        codes = drawn if self.all_free else torch.where(free, drawn, known)
        ids = torch.where(wanted, self.starts[phase] + codes, NONE)
        if head.ends:
            first = point[:, 0]
            stop = free[:, 0] & (ended | (first >= self.most))
            self.cut[rows] |= stop & ~ended
            self.counts[rows] = counts = torch.where(stop, first, counts)
            wanted[:, 0] &= ~stop
            ids[:, 0] = torch.where(stop, EOS, ids[:, 0])
        self.codes[inside] = torch.where(wanted, codes, known).to(self.codes.dtype)
        return ids, counts

    def _drawn(self, phase: int, hidden: Tensor, rows: Tensor, point: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 [n, k], and whether the object ends instead, bool [n]; of meaning where `free` [n, k] says so."""
        if self.all_free or not self.skips:
            return self._of_all(phase, hidden, rows, point)
        chosen = torch.nonzero(free.any(1))[:, 0]
        codes, ended = torch.zeros_like(point), torch.zeros_like(rows, dtype=torch.bool)
        if len(chosen):
            codes[chosen], ended[chosen] = self._of_all(phase, hidden[chosen], rows[chosen], point[chosen])
        return codes, ended

    def _of_all(self, phase: int, hidden: Tensor, rows: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        sizes = pieces(len(rows), self.sizes, LOGITS // self.heads[phase].width)
        if len(sizes) == 1 and sizes[0] == len(rows):
            return self._of_piece(phase, hidden[: len(rows)], rows, point)
        hidden, padded, points = (filled_up(x[: len(rows)], sum(sizes)) for x in (hidden, rows, point))
        parts = zip(hidden.split(sizes), padded.split(sizes), points.split(sizes), strict=True)
        codes, ended = zip(*(self._of_piece(phase, *part) for part in parts), strict=True)
        return torch.cat(codes)[: len(rows)], torch.cat(ended)[: len(rows)]

    def _of_piece(self, phase: int, hidden: Tensor, rows: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        head, streams, inside = self.heads[phase], self.drawn_streams[phase], point.clamp(0, self.most)
        found = masses(head.parts(hidden), head.sizes, self.settings[phase], head.ends)
        if self.skips and not math.isfinite(float(found.cumulative[:, :, -1].sum())):
            raise DataError("the model's logits are not finite: its weights are damaged, or its training diverged")
        codes = choose(found, self.numbers[rows[:, None], inside, streams])
        if not head.ends:
            return codes, torch.zeros_like(rows, dtype=torch.bool)
        first = inside[:, 0]
        numbers = self.numbers[rows, first, self.streams]
        end = ends(head.end_logit(hidden), found, self.config.end_temperature, numbers)
        return codes, end & (first >= self.config.min_points)

    def state(self) -> list[Tensor]:
        """All tensors that a step changes."""
        return [self.body, self.counts, self.cut, self.done, self.codes]

    def take(self, slots: Tensor) -> list[tuple[NDArray[np.int64], bool]]:
        """Codes [n, K] of the objects in these slots, and whether they were cut at max_points."""
        counts, cut = self.counts[slots].tolist(), self.cut[slots].tolist()
        codes = self.codes[slots].cpu().numpy().astype(np.int64)
        return [(own[:n].copy(), was) for own, n, was in zip(codes, counts, cut, strict=True)]
