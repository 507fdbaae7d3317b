"""Objects from a model, as fast as the device allows, and each the same whatever it is drawn together with.

Object `index` of a campaign depends on the model, the seed and the index alone: not on the number of slots, the order
of the requests, on what else is drawn, or on the rank (foundation/generate/randomness.py has the random numbers, and
foundation/generate/products.py what it takes for the rounding).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.generate.draw import Head
from foundation.generate.products import Product, steady_sizes, with_products
from foundation.generate.runs import CapturedRun, Request, Sampled, WavesRun
from foundation.generate.sampling_config import SamplingConfig, StreamSampling
from foundation.generate.walk import most_points
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout

__all__ = ["Request", "Sampled", "SampledCodes", "Sampler", "SamplingConfig", "StreamSampling", "sample"]

FEWEST_SLOTS, MOST_SLOTS, CACHE_BYTES = 16, 512, 2 * 2**30
"""Slots where nothing is said, and what their keys and values may take."""


@dataclass(frozen=True)
class SampledCodes:
    """Codes int64 [N, K] of B sampled objects, offsets [B + 1], and which objects were cut at max_points, bool [B]."""

    codes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    cut: NDArray[np.bool_]


class Sampler:
    """Draws objects of one dataset."""

    def __init__(
        self,
        model: Transformer,
        layout: Layout,
        tag: str,
        *,
        seed: int,
        config: SamplingConfig,
        slots: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """slots: how many objects are under way at a time; 0 finds a number. dtype: of weights, keys and values; those
        of the model where it is not given. Raises DataError for a model or for settings that do not fit."""
        self.layout, self.tag, self.seed, self.config = layout, tag, seed, config
        self._require_model(model)
        self.streams = layout.entry(tag).streams
        for name in config.streams:
            if name not in self.streams:
                raise DataError(f"sampling has settings of the stream '{name}', but '{tag}' has {_words(self.streams)}")
        self.most = most_points(layout, tag, config)
        self.steps = int(layout.lengths(tag, np.array([self.most]))[0])
        model.positions.require(self.steps)
        self.model = with_products(model, dtype or model.embedding.weight.dtype)
        first = layout.first_slot[tag]
        self.own_slots = layout.slots[first : first + len(self.streams)]
        apart = layout.mode == "interleaved"
        self.heads = [Head(self.model, own) for own in ([[s] for s in self.own_slots] if apart else [self.own_slots])]
        blocks = [module for module in self.model.blocks.modules() if isinstance(module, Product)]
        self.sizes = steady_sizes([*blocks, *(product for head in self.heads for product in head.products)])
        self.slots = slots or self._fitting_slots()

    def _require_model(self, model: Transformer) -> None:
        if model.config.features:
            raise DataError(
                f"the model reads the continuous features {', '.join(model.config.features)}, which are not known "
                "before their codes are drawn: to generate, pretrain a model without features"
            )

    def _fitting_slots(self) -> int:
        c = self.model.config
        places, itemsize = c.registers + self.steps, self.model.embedding.weight.element_size()
        return max(
            FEWEST_SLOTS, min(MOST_SLOTS, CACHE_BYTES // (2 * c.layers * c.groups * places * c.head_width * itemsize))
        )

    def objects(self, requests: Iterable[Request]) -> Iterator[Sampled]:
        """Draw the requested objects; they come as they are finished. Requests are taken when there is room for them.

        Raises DataError for codes that are given and do not fit.
        """
        run = CapturedRun(self) if self.model.embedding.weight.is_cuda else WavesRun(self)
        source = iter(requests)
        while True:
            wanted = run.wanted()
            new = list(islice(source, wanted))
            for request in new:
                self._require_given(request)
            finished = run.step(new)
            yield from finished
            if wanted and not new and not run.busy:
                return

    def _require_given(self, request: Request) -> None:
        given = request.given
        if given is None:
            return
        sizes = [slot.size for slot in self.own_slots]
        name = f"object {request.index} of '{self.tag}' begins with codes"
        if given.ndim != 2 or given.shape[1] != len(sizes):
            raise DataError(f"{name} of shape {given.shape}, but its points have {len(sizes)} streams")
        if len(given) > self.most:
            raise DataError(f"{name} of {len(given)} points, which is more than the {self.most} it may have")
        if len(given) and ((given < 0) | (given >= np.array(sizes))).any():
            raise DataError(f"{name} that its tokenizer does not have: they must be below {_words(map(str, sizes))}")


def sample(
    model: Transformer,
    layout: Layout,
    tag: str,
    prefix: NDArray[np.int64],
    indices: NDArray[np.int64],
    seed: int,
    config: SamplingConfig,
) -> SampledCodes:
    """Sample one object after each prefix [B, P]; `indices` [B] number the objects inside their campaign.

    Raises DataError where two objects have one number.
    """
    if len(np.unique(indices)) < len(indices):
        raise DataError("two objects of a campaign have the same number: they would be drawn with the same numbers")
    sampler = Sampler(model, layout, tag, seed=seed, config=config)
    requests = (Request(int(i), p) for i, p in zip(indices, prefix, strict=True))
    found: dict[int, Sampled] = {one.index: one for one in sampler.objects(requests)}
    objects = [found[int(i)] for i in indices]
    codes = [np.zeros((0, len(sampler.streams)), np.int64), *(one.codes for one in objects)]
    counts = np.array([len(one.codes) for one in objects], np.int64)
    return SampledCodes(np.concatenate(codes), to_offsets(counts), np.array([one.cut for one in objects], np.bool_))


def _words(names: Iterable[str]) -> str:
    return ", ".join(names)
