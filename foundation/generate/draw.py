"""Drawing an id from the legal ones: exact, without sorting where nothing is left out, and the end apart.

Probabilities are added up in blocks, and the blocks in double precision: a cumulative sum of 65,536 numbers of single
precision would be wrong in the fourth digit of what the last codes get.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.generate.products import Product
from foundation.generate.randomness import BITS
from foundation.generate.sampling_config import StreamSampling
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Slot
from foundation.tokens.vocabulary import EOS

BLOCK = 64
"""Codes whose probabilities are added up first; the codes of every stream are filled up to whole blocks."""
CHUNK = 16384
"""Columns of the logits that a CPU computes at a time: fewer cost calls, more cost memory."""
AT_ONCE = 2**18
"""Logits that are computed at once: below this, calls cost more than what they do."""
LOWEST = torch.finfo(torch.float32).min


class Head:
    """The output matrix over the slots that are drawn in one step, side by side: logits of codes, and of the end."""

    def __init__(self, model: Transformer, slots: Sequence[Slot]) -> None:
        """slots: of the streams; where a sequence may end, the first one says so."""
        self.sizes = tuple(slot.size for slot in slots)
        self.ends = slots[0].ends
        weight, bias = (_side_by_side(x, slots, fill) for x, fill in
                        ((model.output_weight, 0.0), (_bias(model, self.sizes), -math.inf)))  # fmt: skip
        assert weight is not None
        self.width = len(weight)
        chunk = CHUNK if weight.device.type == "cpu" else self.width
        weights = weight.split(chunk)
        biases = [None] * len(weights) if bias is None else bias.split(chunk)
        self.products = [Product(*part) for part in zip(weights, biases, strict=True)]
        self.end = model.output_weight[EOS].detach().float()
        self.end_bias = 0.0 if model.output_bias is None else model.output_bias[EOS].detach().float()

    def parts(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits of the codes, float32 [n, part of the width], of hidden states [n, D]; few rows: in one part."""
        if len(self.products) > 1 and len(hidden) * self.width <= AT_ONCE:
            yield torch.cat([product(hidden) for product in self.products], dim=1).float()
        else:
            yield from (product(hidden).float() for product in self.products)

    def end_logit(self, hidden: Tensor) -> Tensor:
        """Logit of the end, [n]."""
        return (hidden.float() * self.end).sum(1) + self.end_bias


def _bias(model: Transformer, sizes: Sequence[int]) -> Tensor | None:
    """Bias of all ids; also of a model without, where columns are filled up and must never be drawn."""
    if model.output_bias is None and any(size % BLOCK for size in sizes):
        return model.output_weight.new_zeros(len(model.output_weight))
    return model.output_bias


def _side_by_side(rows: Tensor | None, slots: Sequence[Slot], fill: float) -> Tensor | None:
    """Rows of the codes of all slots, each slot filled up to whole blocks."""
    if rows is None:
        return None
    parts = [rows.detach()[slot.start : slot.start + slot.size] for slot in slots]
    filled = [torch.cat([p, p.new_full((-len(p) % BLOCK, *p.shape[1:]), fill)]) if len(p) % BLOCK else p for p in parts]
    return filled[0] if len(filled) == 1 else torch.cat(filled)


@dataclass(frozen=True)
class Masses:
    """Unnormalised probabilities of the codes of K streams, in blocks.

    values:     float32 [n, blocks, BLOCK], comparable inside a block; 0 behind the last code of a stream
    first:      number of the first block of each stream
    cumulative: float64 [n, K, most blocks of a stream], sum of the probabilities up to the end of each block
    log_total:  float32 [n], log of the sum of exp(logit) over the first stream's codes at temperature 1; None where
                not asked for
    """

    values: Tensor
    first: tuple[int, ...]
    cumulative: Tensor
    log_total: Tensor | None


def masses(
    logits: Iterable[Tensor], sizes: Sequence[int], settings: Sequence[StreamSampling], with_total: bool
) -> Masses:
    """Masses of the codes of K streams from logits float32, which it overwrites: [n, part of the width] each, every
    stream filled up to whole blocks with -inf. Parts are taken one by one, while a cache still holds them."""
    log_total = None
    counts = [-(-size // BLOCK) for size in sizes]
    as_they_are = all(one.keeps_all and one.temperature == 1.0 for one in settings)
    if not as_they_are:
        whole = torch.cat(list(logits), dim=1)
        log_total = whole[:, : sizes[0]].logsumexp(1) if with_total else None
        streams = zip(whole.split([BLOCK * count for count in counts], dim=1), settings, strict=True)
        logits = [torch.cat([truncated(part / own.temperature, own) for part, own in streams], dim=1)]
    values, tops = _exponentials(logits, sum(counts))
    tops, sums = _by_stream(tops, counts, LOWEST), _by_stream(values.sum(2).double(), counts, 0.0)
    top = tops.amax(2, keepdim=True)
    if max(counts) > 1:
        sums = sums * (tops - top).double().exp()
    cumulative = sums.cumsum(2)
    if as_they_are and with_total:
        log_total = (top[:, 0, 0].double() + cumulative[:, 0, -1].log()).float()
    first = tuple(sum(counts[:k]) for k in range(len(counts)))
    return Masses(values, first, cumulative, log_total)


def _exponentials(logits: Iterable[Tensor], blocks: int) -> tuple[Tensor, Tensor]:
    """exp(logit - top of its block), [n, blocks, BLOCK]; the tops [n, blocks]."""
    values, tops, first = torch.empty(0), list[Tensor](), 0
    for part in logits:
        part = part.unflatten(1, (-1, BLOCK))
        if not tops:
            values = part if part.shape[1] == blocks else part.new_empty(len(part), blocks, BLOCK)
        # a block of which all codes are left out has no top
        tops.append(part.amax(2).clamp_(min=LOWEST))
        last = first + part.shape[1]
        torch.exp(part.sub_(tops[-1][:, :, None]), out=values[:, first:last])
        first = last
    return values, tops[0] if len(tops) == 1 else torch.cat(tops, dim=1)


def _by_stream(blocks: Tensor, counts: Sequence[int], fill: float) -> Tensor:
    """[n, blocks] -> [n, K, most blocks of a stream]."""
    if len(set(counts)) == 1:
        return blocks.unflatten(1, (len(counts), -1))
    parts = blocks.split(list(counts), dim=1)
    return torch.stack([F.pad(part, (0, max(counts) - part.shape[1]), value=fill) for part in parts], dim=1)


def truncated(logits: Tensor, settings: StreamSampling) -> Tensor:
    """Logits [n, codes] with -inf for the codes that top_k, top_p and min_p leave out, in this order."""
    if settings.top_k and settings.top_k < logits.shape[1]:
        kept = logits.topk(settings.top_k, dim=1)
        logits = torch.full_like(logits, -torch.inf).scatter(1, kept.indices, kept.values)
    if settings.top_p < 1.0:
        ordered, order = logits.sort(dim=1, descending=True, stable=True)
        p = torch.softmax(ordered.double(), dim=1)
        # a code stays when the more probable ones do not reach top_p yet: the first always does
        ordered = torch.where(p.cumsum(1) - p < settings.top_p, ordered, -torch.inf)
        logits = torch.full_like(logits, -torch.inf).scatter(1, order, ordered)
    if settings.min_p > 0.0:
        least = logits.amax(1, keepdim=True) + math.log(settings.min_p)
        logits = torch.where(logits < least, -torch.inf, logits)
    return logits


def choose(masses: Masses, uniform: Tensor) -> Tensor:
    """One code per stream and row, int64 [n, K], by the inverse cumulative distribution at uniform, float64 [n, K] in
    [0, 1)."""
    cumulative, share, inside = masses.cumulative, uniform[:, :, None], masses.values
    first: Tensor | int = 0
    if cumulative.shape[2] > 1:
        wanted = share * cumulative[:, :, -1:]
        block = torch.searchsorted(cumulative, wanted, right=True).clamp_(max=cumulative.shape[2] - 1)
        upper = cumulative.gather(2, block)
        lower = torch.where(block > 0, cumulative.gather(2, (block - 1).clamp_min(0)), 0.0)
        share = ((wanted - lower) / (upper - lower)).clamp(max=1.0 - 2.0**-BITS)
        streams = zip(block.split(1, dim=1), masses.first, strict=True)
        chosen = torch.cat([own + start for own, start in streams], dim=1)
        inside, first = inside.gather(1, chosen.expand(-1, -1, BLOCK)), BLOCK * block[:, :, 0]
    inside = inside.double().cumsum(2)
    place = torch.searchsorted(inside, share * inside[:, :, -1:], right=True).clamp_(max=BLOCK - 1)
    return first + place[:, :, 0]


def ends(end_logit: Tensor, masses: Masses, temperature: float, uniform: Tensor) -> Tensor:
    """Whether each object ends, bool [n]: with the model's probability of that where the temperature is 1."""
    assert masses.log_total is not None
    odds = (end_logit.double() - masses.log_total.double()) / temperature
    return uniform < torch.sigmoid(odds)
