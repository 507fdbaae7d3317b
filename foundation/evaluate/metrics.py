"""Distances between samples, and scores of classifiers, with errors.

Errors of distances are bootstrap errors (Efron 1979): the standard deviation over resamplings of both samples. A
distance between finite samples of one distribution is never zero, so every distance is to be read beside that of truth
against truth at the same sample size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError

Floats = NDArray[np.float64]

RESAMPLINGS = 40


@dataclass(frozen=True)
class Measurement:
    """A value and its standard error, in the unit of what was measured; `limit` where it is a lower limit."""

    value: float
    error: float
    limit: bool = False


def finite(values: NDArray[np.floating], what: str, minimum: int = 2) -> Floats:
    """The finite ones of `values`; DataError in a sentence when there are fewer than `minimum`."""
    kept = np.asarray(values, np.float64)
    kept = kept[np.isfinite(kept)]
    if len(values) == 0:
        raise DataError(f"{what}: the sample is empty")
    if len(kept) < minimum:
        raise DataError(f"{what}: only {len(kept)} of {len(values)} values are finite, at least {minimum} are needed")
    return kept


def wasserstein(a: Floats, b: Floats, seed: int = 0, resamplings: int = RESAMPLINGS) -> Measurement:
    """Wasserstein-1 distance, the integral of |F_a - F_b|, in the unit of the values (scipy.stats)."""
    from scipy.stats import wasserstein_distance

    a, b = finite(a, "first sample"), finite(b, "second sample")
    rng = np.random.default_rng(seed)
    drawn = [wasserstein_distance(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(resamplings)]
    return Measurement(float(wasserstein_distance(a, b)), _spread(drawn))


def binned_wasserstein(
    a: Floats, b: Floats, edges: Floats, seed: int = 0, resamplings: int = RESAMPLINGS
) -> Measurement:
    """Wasserstein-1 distance of two mean profiles [B, n] of unit area, in the unit of `edges` [n + 1].

    Everything in a bin sits at its centre: W1 = sum_i |F_a,i - F_b,i| (c_i+1 - c_i). Whole objects are resampled.
    """
    centres = (edges[1:] + edges[:-1]) / 2

    def distance(mean_a: Floats, mean_b: Floats) -> Floats:
        gap = np.cumsum(_unit(mean_a) - _unit(mean_b), axis=-1)[..., :-1]
        return (np.abs(gap) * np.diff(centres)).sum(-1)

    value = float(distance(a.mean(0), b.mean(0)))
    rng = np.random.default_rng(seed)
    drawn = distance(_resampled_means(a, rng, resamplings), _resampled_means(b, rng, resamplings))
    return Measurement(value, _spread(drawn))


def separation_power(a: Floats, b: Floats, edges: Floats, seed: int = 0, resamplings: int = RESAMPLINGS) -> Measurement:
    """S = 1/2 sum_i (a_i - b_i)^2 / (a_i + b_i) of unit histograms: 0 equal, 1 disjoint (arXiv:2009.03796, eq. 15).

    Values outside of `edges` are counted in two more bins, below and above.
    """
    return _histogram_distance(separation_of_histograms, a, b, edges, seed, resamplings)


def jensen_shannon(a: Floats, b: Floats, edges: Floats, seed: int = 0, resamplings: int = RESAMPLINGS) -> Measurement:
    """Jensen-Shannon divergence of unit histograms, in nats: 0 equal, ln 2 disjoint (Lin 1991, eq. 4.1)."""
    return _histogram_distance(jensen_shannon_of_histograms, a, b, edges, seed, resamplings)


def separation_of_histograms(a: Floats, b: Floats) -> Floats:
    """Separation power along the last axis; the histograms need not be normalised."""
    a, b = _unit(a), _unit(b)
    both = a + b
    return 0.5 * np.divide((a - b) ** 2, both, out=np.zeros_like(both), where=both > 0).sum(-1)


def jensen_shannon_of_histograms(a: Floats, b: Floats) -> Floats:
    """Jensen-Shannon divergence along the last axis; the histograms need not be normalised."""
    a, b = _unit(a), _unit(b)
    middle = (a + b) / 2

    def relative_entropy(p: Floats) -> Floats:
        ratio = np.divide(p, middle, out=np.ones_like(p), where=p > 0)
        return (p * np.log(ratio)).sum(-1)

    return (relative_entropy(a) + relative_entropy(b)) / 2


def mass_peak(mass: Floats, low: float = 120.0, high: float = 230.0, seed: int = 0) -> Measurement:
    """Position of the peak of a mass spectrum [GeV] between `low` and `high`, with its bootstrap error.

    Mode of a histogram in 1 GeV bins, smoothed by a Gaussian of 5 GeV. A spectrum whose highest point in the window is
    at its edge has no peak there: NaN.
    """
    from scipy.ndimage import gaussian_filter1d

    values = finite(mass, "jet mass", minimum=10)
    margin = 20  # bins beyond the window, so that smoothing does not bend the spectrum at its edges
    counts, edges = np.histogram(values, np.arange(low - margin, high + margin + 1.0, 1.0))
    centres = (edges[1:] + edges[:-1]) / 2

    def mode(spectra: Floats) -> Floats:
        smooth = gaussian_filter1d(spectra, 5.0, axis=-1, mode="nearest")[..., margin:-margin]
        top = smooth.argmax(-1)
        at_edge = (top == 0) | (top == smooth.shape[-1] - 1) | (smooth.max(-1) == 0)
        return np.where(at_edge, np.nan, centres[margin + top])

    drawn = mode(np.random.default_rng(seed).poisson(counts, (200, len(counts))).astype(np.float64))
    drawn = drawn[np.isfinite(drawn)]
    value = float(mode(counts.astype(np.float64)))
    return Measurement(value, _spread(drawn) if np.isfinite(value) else float("nan"))


@dataclass(frozen=True)
class ClassifierScores:
    """How well scores tell signal (label 1) from background (label 0).

    accuracy:       at a score of 0.5, binomial error
    auc:            area under the ROC curve, error of Hanley and McNeil, Radiology 143 (1982) 29
    rejection_30, rejection_50: 1 / background efficiency at 30 % and 50 % signal efficiency, binomial error; a lower
                    limit, the number of background objects, where no background is left
    signal_efficiency, background_efficiency: the ROC curve, one point per distinct score
    """

    n_signal: int
    n_background: int
    accuracy: Measurement
    auc: Measurement
    rejection_30: Measurement
    rejection_50: Measurement
    signal_efficiency: Floats
    background_efficiency: Floats


def classification_scores(labels: NDArray[np.integer], scores: NDArray[np.floating]) -> ClassifierScores:
    """Score B objects: labels 0 or 1 [B], scores [B] = probabilities of class 1. Equal scores count half in the AUC."""
    labels = np.asarray(labels)
    scores = np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise DataError(f"classifier: labels {labels.shape} and scores {scores.shape} must be two equally long lists")
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"classifier: labels must be 0 or 1, found {np.unique(labels)[:5].tolist()}")
    if not np.isfinite(scores).all() or scores.min(initial=0) < 0 or scores.max(initial=0) > 1:
        raise DataError("classifier: scores must be probabilities between 0 and 1; apply a softmax or sigmoid first")
    n_signal, n_background = int((labels == 1).sum()), int((labels == 0).sum())
    if min(n_signal, n_background) == 0:
        raise DataError(f"classifier: need both classes, got {n_signal} signal and {n_background} background objects")
    accuracy = float(np.mean((scores > 0.5) == (labels == 1)))
    signal, background = _roc(labels, scores)
    auc = float(np.trapezoid(signal, background))
    return ClassifierScores(
        n_signal,
        n_background,
        Measurement(accuracy, float(np.sqrt(accuracy * (1 - accuracy) / len(labels)))),
        Measurement(auc, _auc_error(auc, n_signal, n_background)),
        _rejection(signal, background, 0.3, n_background),
        _rejection(signal, background, 0.5, n_background),
        signal,
        background,
    )


def _roc(labels: NDArray[np.integer], scores: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Signal and background efficiency above each distinct score, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    last_of_equal = np.append(np.diff(scores[order]) != 0, True)
    signal = np.cumsum(labels[order] == 1)[last_of_equal] / (labels == 1).sum()
    background = np.cumsum(labels[order] == 0)[last_of_equal] / (labels == 0).sum()
    return np.append(0.0, signal), np.append(0.0, background)


def _auc_error(auc: float, n_signal: int, n_background: int) -> float:
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n_signal - 1) * (q1 - auc**2) + (n_background - 1) * (q2 - auc**2)
    return float(np.sqrt(max(variance, 0.0) / (n_signal * n_background)))


def background_at(signal: Floats, background: Floats, efficiency: float) -> float:
    """Background efficiency at this signal efficiency above 0: along a ROC curve from (0, 0), straight between points.

    Where the background grows at the wanted signal efficiency, the least background counts: the first point at it.
    """
    above = int(np.searchsorted(signal, efficiency))
    share = (efficiency - signal[above - 1]) / (signal[above] - signal[above - 1])
    return float(background[above - 1] + share * (background[above] - background[above - 1]))


def _rejection(signal: Floats, background: Floats, efficiency: float, n_background: int) -> Measurement:
    kept = background_at(signal, background, efficiency)
    if kept * n_background < 1e-9:
        return Measurement(float(n_background), float("nan"), limit=True)
    return Measurement(1 / kept, float(np.sqrt((1 - kept) / (n_background * kept)) / kept))


def _unit(histogram: Floats) -> Floats:
    total = histogram.sum(-1, keepdims=True)
    return np.divide(histogram, total, out=np.zeros_like(histogram, dtype=np.float64), where=total > 0)


def _histogram_distance(
    distance: Callable[[Floats, Floats], Floats], a: Floats, b: Floats, edges: Floats, seed: int, resamplings: int
) -> Measurement:
    counts_a = flow_histogram(finite(a, "first sample"), edges)
    counts_b = flow_histogram(finite(b, "second sample"), edges)
    rng = np.random.default_rng(seed)
    drawn = [
        rng.multinomial(int(c.sum()), c / c.sum(), size=resamplings).astype(np.float64) for c in (counts_a, counts_b)
    ]
    return Measurement(float(distance(counts_a, counts_b)), _spread(distance(*drawn)))


def flow_histogram(values: Floats, edges: Floats) -> Floats:
    """Counts in n bins with one more below and one above; float64 [n + 2]."""
    return np.histogram(values, np.concatenate([[-np.inf], edges, [np.inf]]))[0].astype(np.float64)


def _resampled_means(per_object: Floats, rng: np.random.Generator, resamplings: int) -> Floats:
    n = len(per_object)
    return rng.multinomial(n, np.full(n, 1 / n), size=resamplings) @ per_object / n


def _spread(values: object) -> float:
    drawn = np.asarray(values, np.float64)
    return float(drawn.std(ddof=1)) if drawn.size > 1 else float("nan")
