"""Log-likelihood of given objects under a model: density estimation, anomaly scores, classification without a head.

What has a probability is the sequence of an object's codes, in their order, after its prefix (dataset, class,
conditions); all logarithms are natural ones. Whether an object ends is counted apart from its codes, as the sampler
decides it: p(object) = prod_j p(goes on before j) p(codes of j | goes on) * p(ends). Softmaxes are over legal ids only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.errors import DataError
from foundation.model.loss import local_targets, slot_logits
from foundation.model.transformer import Transformer
from foundation.stream.batches import Batch, lay_out
from foundation.stream.row_stream import Rows
from foundation.tasks.base import to_device
from foundation.tokens.layout import Layout, Slot
from foundation.tokens.tokenizer import Codes
from foundation.tokens.vocabulary import EOS

BATCH_STEPS = 16_384
"""Steps of the sequences that are computed together."""
CHUNK_LOGITS, SLICE_LOGITS = 8 * 2**20, 2**19
"""Logits that exist at a time, and those of which the softmax is taken at a time: they stay in a core's cache."""


@dataclass(frozen=True)
class Likelihoods:
    """Log probabilities of everything in B objects with N tokens (points, or patches) of K codes.

    codes:   float64 [N, K]; of each code, given all before it, and that the object goes on
    goes_on: float64 [N]; that the object has this token, given that it has those before it
    ends:    float64 [B]; that it has no more; this and `goes_on` are 0 where the number of tokens is fixed
    offsets: int64 [B + 1]; object i owns tokens offsets[i]:offsets[i + 1]
    """

    codes: NDArray[np.float64]
    goes_on: NDArray[np.float64]
    ends: NDArray[np.float64]
    offsets: NDArray[np.int64]

    @property
    def objects(self) -> NDArray[np.float64]:
        """Log-likelihood of each object, float64 [B]: `counts` and all `streams` together."""
        return self.counts + self.streams.sum(axis=1)

    @property
    def counts(self) -> NDArray[np.float64]:
        """The part of each object's log-likelihood that comes from its number of tokens, float64 [B]."""
        return self._of_objects(self.goes_on) + self.ends

    @property
    def streams(self) -> NDArray[np.float64]:
        """The part that comes from each stream of codes, float64 [B, K]."""
        return np.stack([self._of_objects(column) for column in self.codes.T], axis=1)

    def _of_objects(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        objects = len(self.offsets) - 1
        owners = np.repeat(np.arange(objects), np.diff(self.offsets))
        return np.bincount(owners, values, minlength=objects).astype(np.float64)


def log_likelihood(
    model: Transformer,
    layout: Layout,
    tag: str,
    codes: Codes,
    labels: NDArray[np.int64],
    conditions: NDArray[np.floating],
    *,
    batch_steps: int = BATCH_STEPS,
) -> NDArray[np.float64]:
    """Log-likelihood of B objects of a dataset, float64 [B], in nats.

    labels [B], -1 for any; conditions [B, C], NaN for any: given to the model, so they have no probability themselves.
    batch_steps: most steps of the sequences that are computed together, which decides memory and speed, not the result
    """
    return log_probabilities(model, layout, tag, codes, labels, conditions, batch_steps=batch_steps).objects


def class_log_likelihoods(
    model: Transformer,
    layout: Layout,
    tag: str,
    codes: Codes,
    conditions: NDArray[np.floating],
    *,
    batch_steps: int = BATCH_STEPS,
) -> NDArray[np.float64]:
    """Log-likelihood of each object for every class of the dataset, float64 [B, classes]."""
    classes = len(layout.entry(tag).classes)
    if classes == 0:
        raise DataError(f"dataset '{tag}' has no classes")
    columns = [
        log_likelihood(model, layout, tag, codes, np.full(len(codes), c), conditions, batch_steps=batch_steps)
        for c in range(classes)
    ]
    return np.stack(columns, axis=1)


def over_classes(of_classes: NDArray[np.float64], prior: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
    """log sum_c p(c) p(object | c), float64 [B], of `class_log_likelihoods` [B, classes].

    prior: probabilities p(c) [classes], all equal where not given; they are scaled to a sum of 1.
    """
    classes = of_classes.shape[1]
    weights = np.ones(classes) if prior is None else np.asarray(prior, np.float64)
    if weights.shape != (classes,) or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
        raise DataError(f"the prior needs a number per class, {classes} in all: not negative, and not all zero")
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(of_classes + np.log(weights / weights.sum()), axis=1)


@torch.no_grad()
def log_probabilities(
    model: Transformer,
    layout: Layout,
    tag: str,
    codes: Codes,
    labels: NDArray[np.int64],
    conditions: NDArray[np.floating],
    *,
    batch_steps: int = BATCH_STEPS,
) -> Likelihoods:
    """Log probabilities of all codes of B objects, and of their ends; arguments as those of `log_likelihood`.

    Raises DataError for codes of another tokenizer, sequences too long for the model, and models that read continuous
    features beside the codes.
    """
    _require(model, layout, tag, codes)
    tokens, streams = codes.values.shape
    of_codes, goes_on, ends = np.zeros((tokens, streams)), np.zeros(tokens), np.zeros(len(codes))
    training = model.training
    model.eval()
    try:
        for first, last in _parts(layout, tag, codes, batch_steps):
            rows = slice(int(codes.offsets[first]), int(codes.offsets[last]))
            batch = _batch(layout, tag, codes, labels, conditions, first, last)
            of_codes[rows], goes_on[rows], ends[first:last] = _of_batch(model, layout, tag, batch, streams)
    finally:
        model.train(training)
    return Likelihoods(of_codes, goes_on, ends, codes.offsets)


def _require(model: Transformer, layout: Layout, tag: str, codes: Codes) -> None:
    if model.config.features:
        raise DataError(
            f"the model reads the continuous features {', '.join(model.config.features)} beside the codes, so it gives "
            "no likelihood of codes: pretrain a model without features"
        )
    sizes = [r.size for r in layout.vocabulary.stream_ranges(tag)]
    if codes.values.ndim != 2 or codes.values.shape[1] != len(sizes):
        raise DataError(f"codes of '{tag}' have {len(sizes)} streams, but these have the shape {codes.values.shape}")
    if len(codes.values) and (codes.values.min() < 0 or (codes.values.max(axis=0) >= sizes).any()):
        raise DataError(f"some codes of '{tag}' are outside of their streams' {sizes} values: another tokenizer's?")


def _parts(layout: Layout, tag: str, codes: Codes, batch_steps: int) -> Iterator[tuple[int, int]]:
    """First and last object of batches with at most so many steps, or a single object."""
    ends = np.cumsum(layout.lengths(tag, np.diff(codes.offsets)) - 1)
    first = 0
    while first < len(codes):
        spent = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, spent + batch_steps, side="right")))
        yield first, last
        first = last


def _batch(
    layout: Layout,
    tag: str,
    codes: Codes,
    labels: NDArray[np.int64],
    conditions: NDArray[np.floating],
    first: int,
    last: int,
) -> Batch:
    rows = Rows(
        dataset=0,
        codes=codes.values[codes.offsets[first] : codes.offsets[last]],
        gap=0,
        points=np.diff(codes.offsets[first : last + 1]),
        labels=labels[first:last],
        shown=labels[first:last],
        conditions=np.asarray(conditions[first:last], np.float32),
        ids=np.arange(first, last, dtype=np.uint64),
    )
    return lay_out(layout, [tag], [rows])


def _of_batch(
    model: Transformer, layout: Layout, tag: str, batch: Batch, streams: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """`codes`, `goes_on` and `ends` of Likelihoods for the objects of a batch."""
    on_device = to_device(batch, next(model.parameters()).device)
    hidden = model(on_device.ids, on_device.positions, on_device.packing)
    first = layout.first_slot[tag]
    columns, goes_on, ends = [], np.zeros(0), np.zeros(len(batch.labels))
    for number in range(first, first + streams):
        # steps that predict this stream, those of an object in the order of its tokens
        steps, column = torch.nonzero(on_device.slots == number, as_tuple=True)
        targets = on_device.targets[steps, column]
        of_code, of_end = _of_targets(model, layout.slots[number], hidden, steps, targets)
        ending = (targets == EOS).cpu().numpy()
        columns.append(of_code[~ending])
        if number == first:
            goes_on = of_end[~ending]
            if layout.slots[number].ends:
                ends = of_end[ending]
    return np.stack(columns, axis=1), goes_on, ends


def _of_targets(
    model: Transformer, slot: Slot, hidden: Tensor, steps: Tensor, targets: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log probabilities [m] of the targets [m] of some steps [m], as codes and as objects that go on or end there."""
    chunk, few = (max(1, logits // slot.width) for logits in (CHUNK_LOGITS, SLICE_LOGITS))
    pairs = []
    for some, right in zip(steps.split(chunk), local_targets(targets, slot).split(chunk), strict=True):
        logits = _logits(model, hidden.index_select(0, some), slot)
        pairs += [_of_slice(*part, slot) for part in zip(logits.split(few), right.split(few), strict=True)]
    of_code, of_end = (torch.cat(part).cpu().numpy() for part in zip(*pairs, strict=True))
    return of_code, of_end


def _logits(model: Transformer, hidden: Tensor, slot: Slot) -> Tensor:
    """Logits [m, slot.width] in float32 at least."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    bias = None if model.output_bias is None else model.output_bias.to(exact)
    return slot_logits(hidden.to(exact), model.output_weight.to(exact), slot, bias)


def _of_slice(logits: Tensor, right: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
    logits = logits.double()
    of_codes = torch.logsumexp(logits[:, : slot.size], dim=1)
    chosen = logits.gather(1, right[:, None])[:, 0]
    if not slot.ends:
        return chosen - of_codes, torch.zeros_like(of_codes)
    of_all = torch.logaddexp(of_codes, logits[:, slot.size])
    ended = right == slot.size
    return torch.where(ended, 0.0, chosen - of_codes), torch.where(ended, chosen, of_codes) - of_all
