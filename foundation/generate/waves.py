"""Continuous batching: objects that begin together are a wave, which shares a position; finished ones leave it.

All waves go through the matrix products as one batch of exactly the objects that go on. Attention is per wave: its keys
and values are one contiguous block, filled up to one place, so that it reads what there is and nothing else, and needs
no mask. New objects wait until there are enough of them for a wave; meanwhile only the batch is a little smaller.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.generate.products import filled_up, pieces
from foundation.model.cache import Cache
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout
from foundation.tokens.vocabulary import NONE

PREFIXES = 512
"""How many prefixes are remembered."""


class Prefixes:
    """Keys, values and the last hidden state of prefixes: many objects share one, which is computed once."""

    def __init__(self, model: Transformer, layout: Layout, sizes: Sequence[int]) -> None:
        self.model, self.layout, self.sizes = model, layout, sizes
        self.known: OrderedDict[bytes, tuple[Tensor, Tensor]] = OrderedDict()

    def find(self, prefixes: NDArray[np.int64], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [n, 2, layers, G, R + P, d] of prefixes [n, P], and the last step's hidden states [n, D]."""
        names = [row.tobytes() for row in prefixes]
        new = {name: row for name, row in zip(names, prefixes, strict=True) if name not in self.known}
        if new:
            self._compute(list(new), np.stack(list(new.values())), dtype)
        for name in names:
            self.known.move_to_end(name)
        beginnings, hidden = zip(*(self.known[name] for name in names), strict=True)
        while len(self.known) > PREFIXES:
            self.known.popitem(last=False)
        return torch.stack(beginnings), torch.stack(hidden)

    def _compute(self, names: list[bytes], prefixes: NDArray[np.int64], dtype: torch.dtype) -> None:
        device = self.model.embedding.weight.device
        sizes = pieces(len(prefixes), self.sizes)
        ids = filled_up(torch.from_numpy(prefixes).to(device), sum(sizes))
        cache = self.model.open_cache(len(ids), ids.shape[1], dtype)
        hidden = torch.empty(0)
        for step in range(ids.shape[1]):
            columns = torch.full((len(ids), self.layout.columns), NONE, device=device)
            columns[:, 0] = ids[:, step]
            hidden = self.model.decode(columns, [cache], sizes)
        for row, name in enumerate(names):
            self.known[name] = cache.copied(row), hidden[row].clone()


class Waves:
    """The caches of all objects that are under way, and the slots in which the rest of their state is."""

    def __init__(
        self, model: Transformer, layout: Layout, steps: int, sizes: Sequence[int], dtype: torch.dtype
    ) -> None:
        """steps: of the longest sequence; dtype: of keys and values."""
        self.model, self.steps, self.sizes, self.dtype = model, steps, sizes, dtype
        self.prefixes = Prefixes(model, layout, sizes)
        self.device = model.embedding.weight.device
        self.caches: list[Cache] = []
        self.rows = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.hidden = torch.zeros(0, model.config.width, device=self.device, dtype=model.embedding.weight.dtype)

    def __len__(self) -> int:
        return len(self.rows)

    def begin(self, prefixes: NDArray[np.int64], slots: Tensor) -> None:
        """A new wave of objects in these slots [n] with these prefixes [n, P]."""
        cache = Cache(self.model.config, len(slots), self.steps, self.device, self.dtype)
        beginnings, hidden = self.prefixes.find(prefixes, self.dtype)
        cache.begin_with(beginnings)
        self.caches.append(cache)
        self.hidden = torch.cat([self.hidden[: len(self.rows)], hidden])
        self.rows = torch.cat([self.rows, slots])

    def advance(self, ids: Tensor, done: Tensor) -> None:
        """The step of ids [n, columns] is known: rows that are done [n] leave, and the others take it."""
        if bool(done.any()):
            order = self._drop(done)
            ids, self.rows = ids[order], self.rows[order]
        if len(ids):
            sizes = pieces(len(ids), self.sizes)
            self.hidden = self.model.decode(filled_up(ids, sum(sizes)), self.caches, sizes)

    def _drop(self, done: Tensor) -> Tensor:
        """Drop rows; returns which are left, in their new order."""
        orders, first = [], 0
        for cache in self.caches:
            last = first + cache.rows
            orders.append(first + cache.keep(torch.nonzero(~done[first:last])[:, 0]))
            first = last
        self.caches = [cache for cache in self.caches if cache.rows]
        return torch.cat(orders)
