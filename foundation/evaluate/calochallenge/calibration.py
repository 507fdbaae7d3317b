"""Isotonic calibration of a classifier's scores, and the scores of the CaloChallenge's classifier tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.evaluate.metrics import Floats, Measurement, classification_scores

FLOOR = 1e-6
"""Calibrated probabilities stay in FLOOR .. 1 - FLOOR, so that one wrong sure answer does not make the JSD infinite."""
SAME_SCORE = 1e-15
"""Scores closer than this are one score: the resolution of float64, as scikit-learn takes it."""


@dataclass(frozen=True)
class Isotonic:
    """A rising, piecewise linear map from scores to probabilities; constant outside of the scores it was fitted to."""

    scores: Floats
    probabilities: Floats

    @staticmethod
    def fit(scores: Floats, labels: NDArray[np.integer]) -> Isotonic:
        """Least squares under the condition that it rises (pool adjacent violators), equal scores averaged.

        Agrees with sklearn.isotonic.IsotonicRegression(out_of_bounds="clip", y_min=1e-6, y_max=1 - 1e-6).
        """
        from scipy.optimize import isotonic_regression

        if not len(scores):
            raise DataError("isotonic calibration: there are no scores to calibrate with")
        order = np.argsort(scores, kind="stable")
        x, y = np.asarray(scores, np.float64)[order], np.asarray(labels, np.float64)[order]
        first = np.flatnonzero(np.append(True, np.diff(x) >= SAME_SCORE))
        weights = np.diff(np.append(first, len(x))).astype(np.float64)
        means = np.add.reduceat(y, first) / weights
        rising = isotonic_regression(means, weights=weights).x
        return Isotonic(x[first], np.clip(rising, FLOOR, 1 - FLOOR))

    def __call__(self, scores: Floats) -> Floats:
        """Probabilities of these scores."""
        return np.interp(scores, self.scores, self.probabilities)


@dataclass(frozen=True)
class Scores:
    """How well a classifier tells truth (label 1) from generated (label 0) on showers it has not seen.

    auc: 0.5 where it cannot, error of Hanley and McNeil
    jsd: Jensen-Shannon divergence in bits that the classifier finds, (ln 2 - BCE) / ln 2; a lower limit of the true
         one up to fluctuations, 0 where it finds nothing; its error is that of the mean of the cross entropies
    accuracy: at a probability of 0.5
    """

    auc: Measurement
    jsd: Measurement
    accuracy: Measurement


def scores_of(labels: NDArray[np.integer], probabilities: Floats) -> Scores:
    """Scores of probabilities [B] of label 1. Equal scores count half in the AUC."""
    found = classification_scores(labels, probabilities)
    of_label = np.where(labels == 1, probabilities, 1 - probabilities)
    # -100 is where torch.nn.BCELoss cuts the logarithm
    entropies = -np.maximum(np.log(of_label, out=np.full(len(labels), -np.inf), where=of_label > 0), -100.0)
    jsd = (np.log(2) - entropies.mean()) / np.log(2)
    error = entropies.std(ddof=1) / np.sqrt(len(labels)) / np.log(2)
    return Scores(found.auc, Measurement(float(jsd), float(error)), found.accuracy)


def calibrated_scores(
    selection_labels: NDArray[np.integer], selection: Floats, labels: NDArray[np.integer], scores: Floats
) -> Scores:
    """Scores after isotonic calibration on the selection set, as evaluate.py of the CaloChallenge quotes them.

    Calibration makes ties, so the AUC after it is not the AUC before it.
    """
    return scores_of(labels, Isotonic.fit(selection, selection_labels)(scores))
