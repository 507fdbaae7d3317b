"""Steps of one shape over all slots, captured as CUDA graphs: no launch costs, and no question to the device meanwhile.

Every slot has its own position. A step does all slots, also those whose objects are finished: they are looked at, and
given to new objects, every SPAN steps. Attention reads the places up to the longest sequence, in steps of PLACES.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foundation.generate.walk import Walk
from foundation.generate.waves import Prefixes
from foundation.model.cache import Cache
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout

SPAN = 16
"""Steps before finished objects are looked for."""
PLACES = 128
"""Steps of the number of places that attention reads: a graph for each."""


class SlotCache(Cache):
    """A cache whose rows are at positions of their own, `reached` int64 [rows]; reads the first `longest` places."""

    def __init__(self, model: Transformer, rows: int, steps: int) -> None:
        weight = model.embedding.weight
        super().__init__(model.config, rows, steps, weight.device, weight.dtype)
        # masked places must hold numbers, as 0 times NaN is NaN
        self.keys.zero_()
        self.values.zero_()
        self.places, self.longest = self.keys.shape[3], self.keys.shape[3]
        self.reached = torch.full((rows,), self.registers, device=weight.device)
        self.slots, self.all = (torch.arange(n, device=weight.device) for n in (rows, self.places))

    @property
    def positions(self) -> Tensor:
        return self.reached - self.registers

    def advance(self) -> None:
        # slots of finished objects stay at the last place
        self.reached.add_(1).clamp_(max=self.places - 1)

    def attend(self, layer: int, qk: Tensor, v: Tensor, heads: int) -> Tensor:
        keys, values, n = self.keys[layer], self.values[layer], self.longest
        keys[self.slots, :, self.reached], values[self.slots, :, self.reached] = qk[:, heads:], v
        q = qk[:, :heads].unflatten(1, (keys.shape[1], -1))
        seen = (self.all[:n] <= self.reached[:, None])[:, None, None]
        return F.scaled_dot_product_attention(q, keys[:, :, :n], values[:, :, :n], attn_mask=seen).flatten(1, 2)


class Captured:
    """The device's side of a run."""

    def __init__(self, model: Transformer, layout: Layout, walk: Walk, steps: int, phases: int) -> None:
        """steps: of the longest sequence; phases: steps of one turn through the streams."""
        self.model, self.walk, self.phases, slots = model, walk, phases, len(walk.body)
        self.cache, self.prefixes = SlotCache(model, slots, steps), Prefixes(model, layout, ())
        weight = model.embedding.weight
        self.hidden = torch.zeros(slots, model.config.width, device=weight.device, dtype=weight.dtype)
        self.filled = np.zeros(slots, np.int64)
        self.captures, self.graphs = weight.is_cuda, dict[int, torch.cuda.CUDAGraph]()

    def begin(self, prefixes: NDArray[np.int64], slots: Tensor) -> None:
        """New objects in these slots [n], with these prefixes [n, P]."""
        beginnings, hidden = self.prefixes.find(prefixes, self.cache.keys.dtype)
        places = beginnings.shape[4]
        self.cache.keys[:, slots, :, :places] = beginnings[:, 0].transpose(0, 1)
        self.cache.values[:, slots, :, :places] = beginnings[:, 1].transpose(0, 1)
        self.cache.reached[slots], self.hidden[slots] = places, hidden
        self.filled[slots.cpu().numpy()] = places

    def advance(self, steps: int) -> None:
        """So many steps, a multiple of the phases, for all slots."""
        self.filled += steps
        longest = min(self.cache.places, -(-int(self.filled.max()) // PLACES) * PLACES)
        # what is in slots of finished objects does not matter
        self.filled.clip(max=self.cache.places, out=self.filled)
        for _ in range(steps // self.phases):
            self._turn(longest)

    def _turn(self, longest: int) -> None:
        if self.captures and longest not in self.graphs:
            self._capture(longest)
        if longest in self.graphs:
            self.graphs[longest].replay()
        else:
            self._steps(longest)

    def _steps(self, longest: int) -> None:
        self.cache.longest = longest
        for phase in range(self.phases):
            ids = self.walk.step(self.hidden, self.cache.slots, phase)
            self.hidden.copy_(self.model.decode(ids, [self.cache]))

    def _capture(self, longest: int) -> None:
        """Capture a turn. Warming up would draw: what it changes is put back."""
        state = [*self.walk.state(), self.hidden, self.cache.reached]
        before = [tensor.clone() for tensor in state]
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._steps(longest)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._steps(longest)
            self.graphs[longest] = graph
        except RuntimeError as error:
            warnings.warn(f"sampling goes on without CUDA graphs: {error}", stacklevel=2)
            self.captures = False
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)
