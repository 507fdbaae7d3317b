"""How far the probabilities of a classifier can be taken at their word.

Reliability diagram and expected calibration error of the most probable class (Guo et al., arXiv:1706.04599), Brier
score and negative log-likelihood of the whole vector of probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.evaluate.classification import checked_probabilities
from foundation.evaluate.metrics import RESAMPLINGS, Floats, Measurement

DEFINITIONS = {
    "ece": "ece-15-bins/arxiv-1706.04599",
    "mce": "mce-15-bins/arxiv-1706.04599",
    "brier": "brier-sum-over-classes/scikit-learn-1.9",
    "nll": "negative-log-likelihood/scikit-learn-1.9",
    "confidence": "mean-confidence/argmax-1",
}
"""Name and version of the definition of every number (docs/reference/metrics.md)."""
BINS = 15
SMALLEST = float(np.finfo(np.float64).eps)
"""A probability of 0 counts as this under the logarithm, as in scikit-learn."""


@dataclass(frozen=True)
class Reliability:
    """Calibration of a classifier on B objects, with bootstrap errors over them.

    edges:      of n bins of confidence, the probability of the most probable class; a bin has its upper edge, [n + 1]
    objects:    in each bin, int64 [n]
    confidence, accuracy: mean confidence and share of right answers in each bin, NaN where it is empty, [n]
    error:      binomial error of the accuracy, [n]
    ece:        sum over the bins of share of objects times |accuracy - confidence|. Of a perfectly calibrated
                classifier it is not 0 but about sqrt(bins / objects) / 2: `ece_floor` is what calibrated answers of
                just these confidences give
    mce:        the largest |accuracy - confidence| of a bin; of bins of few objects it says little
    brier:      mean over objects of sum_k (p_k - y_k)^2, from 0 to 2; for two classes twice the original one
    nll:        mean of -ln p of the true class, in nats
    """

    edges: Floats
    objects: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats
    error: Floats
    ece: Measurement
    ece_floor: Measurement
    mce: float
    brier: Measurement
    nll: Measurement


def reliability(
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    *,
    bins: int = BINS,
    seed: int = 0,
    resamplings: int = RESAMPLINGS,
) -> Reliability:
    """Labels 0 .. K - 1 [B] and probabilities [B, K], or [B] those of class 1 of two."""
    labels, p = checked_probabilities(labels, probabilities)
    confidence, right = p.max(1), (p.argmax(1) == labels).astype(np.float64)
    edges: Floats = np.linspace(0.0, 1.0, bins + 1)
    which = np.searchsorted(edges[1:-1], confidence)
    objects = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean, accuracy = (np.bincount(which, x, bins) / objects for x in (confidence, right))
        error = np.sqrt(accuracy * (1 - accuracy) / objects)
    truth = np.arange(p.shape[1])[None, :] == labels[:, None]
    likelihood = -np.log(np.clip(p[np.arange(len(p)), labels], SMALLEST, 1 - SMALLEST))
    rng = np.random.default_rng(seed)
    floors = [_ece(which, confidence, rng.random(len(p)) < confidence, bins) for _ in range(max(resamplings, 2))]
    drawn = []
    for _ in range(resamplings):
        rows = rng.integers(0, len(p), len(p))
        drawn.append(_ece(which[rows], confidence[rows], right[rows], bins))
    spread = float(np.std(drawn, ddof=1)) if resamplings > 1 else float("nan")
    return Reliability(
        edges,
        objects,
        mean,
        accuracy,
        error,
        Measurement(_ece(which, confidence, right, bins), spread),
        Measurement(float(np.mean(floors)), float(np.std(floors, ddof=1))),
        float(np.nanmax(np.abs(accuracy - mean))),
        _mean(((p - truth) ** 2).sum(1)),
        _mean(likelihood),
    )


def _ece(which: NDArray[np.int64], confidence: Floats, right: NDArray[np.floating | np.bool_], bins: int) -> float:
    """|sum over a bin of (right - confidence)|, added up and per object: the weights of the bins cancel."""
    return float(np.abs(np.bincount(which, right - confidence, bins)).sum() / len(which))


def _mean(values: Floats) -> Measurement:
    """Mean and its standard error: what a bootstrap gives for a mean, without drawing."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Measurement(float(values.mean()), float(error))
