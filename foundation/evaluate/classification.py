"""How well a network tells K classes: accuracy, areas under ROC curves, background rejection, confusion.

Areas and rejections have bootstrap errors from the same resamplings of the objects (Efron 1979), the accuracy has a
binomial one. For two classes, `metrics.classification_scores` has errors in closed form. How far probabilities can be
taken at their word is in reliability.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.evaluate.metrics import RESAMPLINGS, Floats, Measurement, background_at

Labels = NDArray[np.int64]
Weights = NDArray[np.uint8]
"""How many times each object was drawn, [B]."""
Draws = dict[tuple[str, ...], Floats]
"""What each curve gives: first of the sample itself, then of its resamplings, [1 + resamplings]."""

DEFINITIONS = {
    "accuracy": "accuracy/argmax-1",
    "auc_rest": "auc-one-vs-rest/scikit-learn-1.9",
    "auc_ovr": "auc-one-vs-rest-macro/scikit-learn-1.9",
    "auc_pair": "auc-one-vs-one/hand-till-2001",
    "auc_ovo": "auc-one-vs-one-macro/hand-till-2001",
    "rejection": "background-rejection/class-vs-rest-1",
    "rejection_background": "background-rejection/class-vs-background-1",
    "confusion": "confusion-matrix/argmax-1",
}
"""Name and version of the definition of every number (docs/reference/metrics.md)."""
EFFICIENCIES = (0.3, 0.5)
"""Of the signal, at which the background rejection is quoted."""


@dataclass(frozen=True)
class Multiclass:
    """Scores of a classifier of K classes, named as `classes` says.

    accuracy:    share of objects whose most probable class is theirs; the first of equally probable ones counts
    auc_rest:    class -> AUC of it against all others, by its probability
    auc_ovr:     mean of `auc_rest` over the classes
    auc_pair:    two classes -> mean of the AUC by the probability of one and of that by the probability of the other
    auc_ovo:     mean of `auc_pair` over all pairs: Hand and Till, Machine Learning 45 (2001) 171, eq. 7
    rejection:   class, signal efficiency -> 1 / efficiency of all other classes, at a cut on the class's probability
    rejection_background: the same of one background class only, at a cut on p_signal / (p_signal + p_background), as
                 JetClass is scored (arXiv:2202.03772); empty where no background class is named
    confusion:   objects of class i that were called class j, int64 [K, K]
    problems:    why a number is not there: one sentence per class without objects

    A rejection without any background left is a lower limit: the number of background objects.
    """

    classes: tuple[str, ...]
    objects: int
    accuracy: Measurement
    auc_ovr: Measurement | None
    auc_ovo: Measurement | None
    auc_rest: Mapping[str, Measurement]
    auc_pair: Mapping[tuple[str, str], Measurement]
    rejection: Mapping[tuple[str, float], Measurement]
    rejection_background: Mapping[tuple[str, float], Measurement]
    confusion: NDArray[np.int64]
    problems: tuple[str, ...]


def multiclass_scores(
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    *,
    classes: Sequence[str] = (),
    background: str | None = None,
    efficiencies: Sequence[float] = EFFICIENCIES,
    seed: int = 0,
    resamplings: int = RESAMPLINGS,
) -> Multiclass:
    """Score B objects: labels 0 .. K - 1 [B], probabilities [B, K]; classes: K names, else their numbers.

    background: the class that `rejection_background` is about. Classes without objects have no numbers and cause a
    sentence in `problems`; means over classes are then left out, for they would be those of another question.
    """
    labels, p = checked_probabilities(labels, probabilities)
    names = _names(classes, p.shape[1], background)
    there = [k for k in range(len(names)) if (labels == k).any()]
    whole = len(there) == len(names) > 1
    guessed = p.argmax(1)
    curves = _curves(labels, p, names, there, background)
    drawn = [_weights(len(labels), seed, i) for i in range(resamplings)]
    areas = {key: curve.drawn_areas(drawn) for key, curve in curves.items() if key[0] != "background"}
    pairs = _pair_means(areas)
    return Multiclass(
        classes=names,
        objects=len(labels),
        accuracy=_binomial((guessed == labels).mean(), len(labels)),
        auc_ovr=_measurement(np.mean([v for k, v in areas.items() if k[0] == "rest"], axis=0)) if whole else None,
        auc_ovo=_measurement(np.mean(list(pairs.values()), axis=0)) if whole else None,
        auc_rest={k[1]: _measurement(v) for k, v in areas.items() if k[0] == "rest"},
        auc_pair={pair: _measurement(v) for pair, v in pairs.items()},
        rejection=_rejections(curves, "rest", efficiencies, drawn),
        rejection_background=_rejections(curves, "background", efficiencies, drawn),
        confusion=np.bincount(labels * len(names) + guessed, minlength=len(names) ** 2).reshape(len(names), -1),
        problems=tuple(
            f"class '{names[k]}' has no objects in the sample: no AUC and no rejection of it, and no mean over classes"
            for k in range(len(names))
            if k not in there
        ),
    )


def checked_probabilities(
    labels: NDArray[np.integer], probabilities: NDArray[np.floating]
) -> tuple[NDArray[np.int64], Floats]:
    """Labels int64 [B] and probabilities float64 [B, K] that fit together; a list [B] is the probability of class 1."""
    labels, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    if p.ndim == 1:
        p = np.stack([1 - p, p], axis=1)
    if labels.ndim != 1 or p.ndim != 2 or len(labels) != len(p):
        raise DataError(
            f"classification: labels {labels.shape} and probabilities {p.shape} must have one line per object"
        )
    if len(labels) == 0:
        raise DataError("classification: the sample is empty")
    if not np.isfinite(p).all() or p.min() < 0 or np.abs(p.sum(1) - 1).max() > 1e-3:
        raise DataError(
            "classification: the probabilities of an object must be 0 or more and add up to 1; apply a softmax first"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= p.shape[1]:
        raise DataError(
            f"classification: labels must be whole numbers from 0 to {p.shape[1] - 1}, found "
            f"{np.unique(labels)[:5].tolist()}; leave out objects without a class"
        )
    return labels.astype(np.int64), p


@dataclass(frozen=True)
class Curve:
    """A ROC curve of any resampling of the sample: objects in groups of equal score, from the highest on.

    rows: of the sample, [n]; signal: of these, bool [n]; groups: where each begins, [g]
    """

    rows: NDArray[np.int64]
    signal: NDArray[np.bool_]
    groups: NDArray[np.int64]

    @staticmethod
    def of(rows: NDArray[np.int64], signal: NDArray[np.bool_], scores: Floats) -> Curve:
        """The curve of these rows of the sample; signal and scores: [n]."""
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        return Curve(rows[order], signal[order], np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])))

    def sums(self, weights: Weights | None = None) -> tuple[Floats, Floats]:
        """Signal and background in each group, [g] each; weights [B]: how often each object counts."""
        w = np.ones(len(self.rows)) if weights is None else weights[self.rows].astype(np.float64)
        signal = np.add.reduceat(np.where(self.signal, w, 0.0), self.groups)
        return signal, np.add.reduceat(w, self.groups) - signal

    def auc(self, weights: Weights | None = None) -> float:
        """Area under the curve: signal scores higher than background, equal scores count half; NaN without either."""
        signal, background = self.sums(weights)
        pairs = signal.sum() * background.sum()
        above = np.cumsum(signal) - signal / 2
        return float(background @ above / pairs) if pairs > 0 else float("nan")

    def kept(self, efficiency: float, weights: Weights | None = None) -> float:
        """Background efficiency at this signal efficiency."""
        signal, background = (np.append(0.0, np.cumsum(x)) for x in self.sums(weights))
        if signal[-1] == 0 or background[-1] == 0:
            return float("nan")
        return background_at(signal / signal[-1], background / background[-1], efficiency)

    def drawn_areas(self, drawn: Sequence[Weights]) -> Floats:
        """AUC of the sample, and of each of its resamplings."""
        return np.array([self.auc(), *(self.auc(weights) for weights in drawn)])

    def rejection(self, efficiency: float, drawn: Sequence[Weights]) -> Measurement:
        """1 / background efficiency; where no background is left, a limit: the number of background objects."""
        kept = self.kept(efficiency)
        if kept * self.n_background < 1e-9:
            return Measurement(float(self.n_background), float("nan"), limit=True)
        spread = _spread(np.array([self.kept(efficiency, weights) for weights in drawn]))
        return Measurement(1 / kept, spread / kept**2)

    @property
    def n_background(self) -> int:
        """Background objects of the sample."""
        return int((~self.signal).sum())


def _curves(
    labels: Labels, p: Floats, names: tuple[str, ...], there: Sequence[int], background: str | None
) -> dict[tuple[str, ...], Curve]:
    """("rest", class), ("pair", a, b) by the probability of a, ("background", class): all that there are."""
    if len(there) < 2:
        return {}
    everything = np.arange(len(labels))
    members = {k: np.flatnonzero(labels == k) for k in there}
    found: dict[tuple[str, ...], Curve] = {
        ("rest", names[k]): Curve.of(everything, labels == k, p[:, k]) for k in there
    }
    for a in there:
        for b in there:
            if a == b:
                continue
            rows = np.concatenate([members[a], members[b]])
            signal = labels[rows] == a
            found["pair", names[a], names[b]] = Curve.of(rows, signal, p[rows, a])
            if names[b] == background:
                both = p[rows, a] + p[rows, b]
                share = np.divide(p[rows, a], both, out=np.full(len(rows), 0.5), where=both > 0)
                found["background", names[a]] = Curve.of(rows, signal, share)
    return found


def _weights(objects: int, seed: int, i: int) -> Weights:
    """How often each object is drawn in resampling i."""
    chosen = np.random.default_rng([seed, i]).integers(0, objects, objects)
    return np.bincount(chosen, minlength=objects).astype(np.uint8)


def _pair_means(areas: Draws) -> dict[tuple[str, str], Floats]:
    """Pairs of classes, each once: the mean of the AUC by the probability of the one and by that of the other."""
    found = {}
    for key, values in areas.items():
        if key[0] == "pair" and (key[2], key[1]) not in found:
            found[key[1], key[2]] = (values + areas["pair", key[2], key[1]]) / 2
    return found


def _rejections(
    curves: Mapping[tuple[str, ...], Curve], kind: str, efficiencies: Sequence[float], drawn: Sequence[Weights]
) -> dict[tuple[str, float], Measurement]:
    return {
        (key[1], efficiency): curve.rejection(efficiency, drawn)
        for key, curve in curves.items()
        if key[0] == kind
        for efficiency in efficiencies
    }


def _measurement(values: Floats) -> Measurement:
    return Measurement(float(values[0]), _spread(values[1:]))


def _spread(values: Floats) -> float:
    """Standard deviation of those that exist: a resampling of few objects may miss a class."""
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def _binomial(share: float, objects: int) -> Measurement:
    return Measurement(float(share), float(np.sqrt(share * (1 - share) / objects)))


def _names(classes: Sequence[str], k: int, background: str | None) -> tuple[str, ...]:
    names = tuple(classes) or tuple(str(i) for i in range(k))
    if len(names) != k:
        raise DataError(f"classification: {len(names)} names were given for {k} classes")
    if background is not None and background not in names:
        raise DataError(f"classification: the background class '{background}' is none of {', '.join(names)}")
    return names
