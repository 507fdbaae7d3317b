"""Autoregressive sampling with a key/value cache, over the legal ids only.

Object `index` of a campaign is drawn with random numbers of (seed, index) alone, so it does not depend on the batch it
is sampled in. All sequences of a batch are equally far; finished ones leave it, so that time goes to real tokens.
Where every object has the same number of tokens (patches), that many are drawn, and no end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.model.loss import slot_logits
from foundation.model.transformer import Cache, Transformer
from foundation.tokens.layout import Layout, Slot
from foundation.tokens.vocabulary import EOS, NONE


@dataclass(frozen=True)
class SamplingConfig:
    """How ids are drawn, and the longest object."""

    max_points: int
    """Most points of an object; of no meaning where every object has the same number of tokens."""
    temperature: float = 1.0
    top_p: float = 1.0
    """Keep the most probable ids that add up to this probability."""


@dataclass(frozen=True)
class SampledCodes:
    """Codes int64 [N, K] of B sampled objects, offsets [B + 1], and which objects were cut at max_points, bool [B]."""

    codes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    cut: NDArray[np.bool_]


@torch.no_grad()
def sample(
    model: Transformer,
    layout: Layout,
    tag: str,
    prefix: NDArray[np.int64],
    indices: NDArray[np.int64],
    seed: int,
    config: SamplingConfig,
) -> SampledCodes:
    """Sample one object after each prefix [B, P]; `indices` [B] number the objects inside their campaign."""
    if model.config.features:
        raise DataError(
            f"the model reads the continuous features {', '.join(model.config.features)}, which are not known before "
            "their codes are drawn: to generate, pretrain a model without features"
        )
    walk = _Interleaved if layout.mode == "interleaved" else _Delayed
    return walk(model, layout, tag, prefix, indices, seed, config).run()


class _Delayed:
    """Sampling of one batch in the delayed layout: K streams share a step, stream k lags k steps behind."""

    def __init__(
        self,
        model: Transformer,
        layout: Layout,
        tag: str,
        prefix: NDArray[np.int64],
        indices: NDArray[np.int64],
        seed: int,
        config: SamplingConfig,
    ) -> None:
        self.model, self.layout, self.config = model.eval(), layout, config
        self.device = next(model.parameters()).device
        self.streams = len(layout.entry(tag).streams)
        self.fixed = layout.entry(tag).tokens_per_object
        self.cap = config.max_points if self.fixed is None else self.fixed
        first = layout.first_slot[tag]
        self.slots = layout.slots[first : first + self.streams]
        self.prefix = torch.from_numpy(prefix).to(self.device)
        self.objects = len(prefix)
        steps = self._body_steps(self.cap)
        # all random numbers of an object come from (seed, its index); drawn step by step they would depend on the batch
        self.random = [np.random.default_rng([seed, int(i)]) for i in indices]
        self.uniform = torch.empty(self.objects, 0, self.streams, dtype=torch.float64)
        self.max_steps = self.prefix.shape[1] + steps

    def _body_steps(self, points: int) -> int:
        return points + max(1, self.streams - 1)

    def _uniform(self, step: int, rows: Tensor) -> Tensor:
        """Random numbers [b, K] of body step `step` for the objects `rows`, drawn 32 steps at a time."""
        while step >= self.uniform.shape[1]:
            more = (
                np.stack([r.random((32, self.streams)) for r in self.random]) if self.random else np.zeros((0, 32, 1))
            )
            self.uniform = torch.cat([self.uniform, torch.from_numpy(more)], dim=1)
        return self.uniform[rows.cpu(), step].to(self.device)

    def _logits(self, hidden: Tensor, slot: Slot) -> Tensor:
        return slot_logits(hidden, self.model.output_weight, slot, self.model.output_bias)

    def _enter_prefix(self, cache: Cache) -> Tensor:
        hidden = torch.empty(0)
        for step in range(self.prefix.shape[1]):
            ids = torch.full((self.objects, self.layout.columns), NONE, device=self.device)
            ids[:, 0] = self.prefix[:, step]
            hidden = self.model.decode(ids, step, cache)
        return hidden

    def _known_counts(self) -> Tensor:
        """Points of each object [B]; -1 where eos is still to come."""
        known = -1 if self.fixed is None else self.fixed
        return torch.full((self.objects,), known, dtype=torch.int64, device=self.device)

    def run(self) -> SampledCodes:
        """Sample all objects of the batch."""
        cap, k = self.cap, self.streams
        cache = Cache(self.model.config, self.objects, self.max_steps, self.device)
        hidden = self._enter_prefix(cache)
        codes = torch.zeros(self.objects, cap, k, dtype=torch.int64, device=self.device)
        counts = self._known_counts()
        rows = torch.arange(self.objects, device=self.device)
        cut = torch.zeros(self.objects, dtype=torch.bool, device=self.device)
        body, at = 0, self.prefix.shape[1]
        while len(rows):
            uniform = self._uniform(body, rows)
            ids = torch.full((len(rows), self.layout.columns), NONE, device=self.device)
            if body == self.fixed:
                ids[:, 0] = EOS
            for stream, slot in enumerate(self.slots):
                point = body - stream
                wanted = self._wanted(counts[rows], point)
                if not wanted.any():
                    continue
                drawn = draw(self._logits(hidden[wanted], slot), uniform[wanted, stream], self.config)
                if stream == 0:
                    ended = drawn == slot.size
                    over = ~ended & (point >= cap)
                    cut[rows[wanted][over]] = True
                    stop = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
                    stop[wanted] = ended | over
                    counts[rows[stop]] = point
                    ids[wanted, 0] = torch.where(ended | over, EOS, slot.start + drawn)
                    going = rows[wanted][~(ended | over)]
                    if point < cap:
                        codes[going, point, 0] = drawn[~(ended | over)]
                else:
                    ids[wanted, stream] = slot.start + drawn
                    codes[rows[wanted], point, stream] = drawn
            body, at = body + 1, at + 1
            done = (counts[rows] >= 0) & (body >= counts[rows] + max(1, k - 1))
            if bool(done.all()):
                break
            if int(done.sum()) * 4 >= len(rows):
                keep = torch.nonzero(~done)[:, 0]
                rows, ids = rows[keep], ids[keep]
                cache.keep(keep, at - 1)
            hidden = self.model.decode(ids, at - 1, cache)
        return collect(codes, counts, cut)

    def _wanted(self, counts: Tensor, point: int) -> Tensor:
        """Which sequences predict `point` in this step: those not ended, and those that ended after it."""
        if point < 0:
            return torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
        return (counts < 0) | (counts > point)


class _Interleaved(_Delayed):
    """Sampling in the interleaved layout: the K codes of a point follow each other in one column."""

    def _body_steps(self, points: int) -> int:
        return points * self.streams + 1

    def run(self) -> SampledCodes:
        """Sample all objects of the batch."""
        cap, k = self.cap, self.streams
        cache = Cache(self.model.config, self.objects, self.max_steps, self.device)
        hidden = self._enter_prefix(cache)
        codes = torch.zeros(self.objects, cap, k, dtype=torch.int64, device=self.device)
        counts = self._known_counts()
        cut = torch.zeros(self.objects, dtype=torch.bool, device=self.device)
        rows = torch.arange(self.objects, device=self.device)
        body, at = 0, self.prefix.shape[1]
        while self.fixed is None or body < k * self.fixed:
            point, stream = divmod(body, k)
            slot = self.slots[stream]
            uniform = self._uniform(point, rows)[:, stream]
            drawn = draw(self._logits(hidden, slot), uniform, self.config)
            if stream == 0:
                ended = drawn == slot.size
                over = ~ended & (point >= cap)
                cut[rows[over]] = True
                counts[rows[ended | over]] = point
                keep = torch.nonzero(~(ended | over))[:, 0]
                if len(keep) == 0:
                    break
                if len(keep) < len(rows):
                    rows, drawn = rows[keep], drawn[keep]
                    cache.keep(keep, at)
            codes[rows, point, stream] = drawn
            hidden = self.model.decode((slot.start + drawn)[:, None], at, cache)
            body, at = body + 1, at + 1
        return collect(codes, counts, cut)


def draw(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """One id per row, int64 [b], by the inverse cumulative distribution; logits [b, n], uniform [b] in [0, 1)."""
    p = torch.softmax(logits.double() / config.temperature, dim=-1)
    if config.top_p < 1.0:
        ordered, order = p.sort(dim=-1, descending=True)
        # an id stays when the more probable ones do not reach top_p yet: the first always does
        ordered = torch.where(ordered.cumsum(dim=-1) - ordered < config.top_p, ordered, 0.0)
        p = torch.zeros_like(p).scatter(-1, order, ordered)
    cumulative = p.cumsum(dim=-1)
    # scaled by the total, so that rounding can never point behind the last id
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    return drawn.clamp(max=logits.shape[-1] - 1)


def collect(codes: Tensor, counts: Tensor, cut: Tensor) -> SampledCodes:
    """Padded codes [B, cap, K] and counts [B] to ragged codes."""
    real = torch.arange(codes.shape[1], device=codes.device)[None] < counts[:, None]
    return SampledCodes(codes[real].cpu().numpy(), to_offsets(counts.cpu().numpy()), cut.cpu().numpy())
