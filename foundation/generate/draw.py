"""Drawing an id from the legal ones: exact, without sorting where nothing is left out, and the end apart.

Probabilities are added up in blocks, and the blocks in double precision: a cumulative sum of 65,536 numbers of single
precision would be wrong in the fourth digit of what the last codes get.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foundation.generate.products import Product
from foundation.generate.randomness import BITS
from foundation.generate.sampling_config import StreamSampling
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Slot
from foundation.tokens.vocabulary import EOS

BLOCK = 64
"""Codes whose probabilities are added up first."""
CHUNK = 1024
"""Columns of the logits that a CPU computes at a time: weights and logits of a chunk stay in its cache."""


AT_ONCE = 2**18
"""Logits that are computed at once: below this, calls cost more than what they do."""


class Head:
    """The output matrix over one slot: logits of codes, and of the end."""

    def __init__(self, model: Transformer, slot: Slot) -> None:
        weight, bias = model.output_weight, model.output_bias
        codes = slice(slot.start, slot.start + slot.size)
        chunk = CHUNK if weight.device.type == "cpu" else slot.size
        self.size, self.ends, self.even = slot.size, slot.ends, slot.size % chunk == 0
        weights = weight[codes].split(chunk)
        biases = [None] * len(weights) if bias is None else bias[codes].split(chunk)
        self.products = [Product(*part) for part in zip(weights, biases, strict=True)]
        self.end = weight[EOS].detach().float()
        self.end_bias = 0.0 if bias is None else bias[EOS].detach().float()

    def chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits of the codes, [n, c, chunk] each, of hidden states [n, D]: chunk by chunk, or few rows at once."""
        if self.even and len(hidden) * self.size <= AT_ONCE:
            whole = torch.cat([product(hidden) for product in self.products], dim=1)
            yield whole.float().unflatten(1, (len(self.products), -1))
        else:
            yield from (product(hidden).float()[:, None] for product in self.products)

    def end_logit(self, hidden: Tensor) -> Tensor:
        """Logit of the end, [n]."""
        return (hidden.float() * self.end).sum(1) + self.end_bias


@dataclass(frozen=True)
class Masses:
    """Unnormalised probabilities of the codes, in blocks.

    values: float32 [n, blocks, BLOCK], comparable inside a block; 0 behind the last code
    cumulative: float64 [n, blocks], sum of the probabilities up to the end of each block
    log_total: float32 [n], log of the sum of exp(logit) over the codes at temperature 1; None where not asked for
    """

    values: Tensor
    cumulative: Tensor
    log_total: Tensor | None


def masses(logits: Iterable[Tensor], size: int, settings: StreamSampling, with_total: bool) -> Masses:
    """Masses of `size` codes from logits float32 [n, c, chunk], which it overwrites.

    All chunks but the last are multiples of BLOCK wide. They are taken one by one, while a cache still holds them.
    """
    as_they_are = settings.keeps_all and settings.temperature == 1.0
    log_total = None
    if not as_they_are:
        whole = torch.cat([part.flatten(1) for part in logits], dim=1)
        log_total = whole.logsumexp(1) if with_total else None
        logits = [truncated(whole.div_(settings.temperature), settings)[:, None]]
    values, tops, chunk = _exponentials(logits, size)
    top = tops.amax(1, keepdim=True)
    sums = values.sum(2).double()
    if tops.shape[1] > 1:
        scales = (tops - top).double().exp()
        sums *= scales.repeat_interleave(chunk // BLOCK, dim=1)[:, : sums.shape[1]]
    cumulative = sums.cumsum(1)
    if as_they_are and with_total:
        log_total = (top[:, 0].double() + cumulative[:, -1].log()).float()
    return Masses(values, cumulative, log_total)


def _exponentials(logits: Iterable[Tensor], size: int) -> tuple[Tensor, Tensor, int]:
    """exp(logit - top of its chunk) in blocks [n, blocks, BLOCK]; the tops [n, chunks]; the width of the first."""
    values, tops, first, widest = torch.empty(0), list[Tensor](), 0, 0
    for part in logits:
        if not tops:
            widest = part.shape[2]
            values = part.new_empty(len(part), -(-size // BLOCK) * BLOCK)
        tops.append(part.amax(2))
        last = first + part.shape[1] * part.shape[2]
        torch.exp(part.sub_(tops[-1][:, :, None]), out=values[:, first:last].view(part.shape))
        first = last
    if first < values.shape[1]:
        values[:, first:] = 0.0
    return values.unflatten(1, (-1, BLOCK)), tops[0] if len(tops) == 1 else torch.cat(tops, dim=1), widest


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
    """One code per row, int64 [n], by the inverse cumulative distribution at uniform, float64 [n] in [0, 1)."""
    cumulative = masses.cumulative
    wanted = uniform[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, wanted, right=True).clamp_(max=cumulative.shape[1] - 1)
    upper = cumulative.gather(1, block)
    lower = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp_min(0)), 0.0)
    share = ((wanted - lower) / (upper - lower)).clamp(max=1.0 - 2.0**-BITS)
    inside = masses.values.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].double().cumsum(1)
    place = torch.searchsorted(inside, share * inside[:, -1:], right=True).clamp_(max=BLOCK - 1)
    return BLOCK * block[:, 0] + place[:, 0]


def ends(end_logit: Tensor, masses: Masses, temperature: float, uniform: Tensor) -> Tensor:
    """Whether each object ends, bool [n]: with the model's probability of that where the temperature is 1."""
    assert masses.log_total is not None
    odds = (end_logit.double() - masses.log_total.double()) / temperature
    return uniform < torch.sigmoid(odds)
