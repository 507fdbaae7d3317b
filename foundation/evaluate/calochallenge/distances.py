"""Frechet and kernel physics distance of showers, on the high-level features; and the Frechet distance trimmed.

FPD and KPD are those of `evaluate.frechet` with the settings of the CaloChallenge's evaluate.py (commit 9b41df7):
10,000 instead of 20,000 showers in the smallest drawn sample of the FPD, 10,000 instead of 5,000 in a sample of the
KPD. The features have the incident energy among them. The challenge's tables list 1000 times the value.

The trimmed FPD leaves out, of every drawn sample, the 1 % of showers with the largest Mahalanobis distance from the
sample's mean, truth and generated on their own. It agrees with fpd_trimmed_intercept of
github.com/OzAmram/CMSHGCaloChallenge (commit 28d61fc), where a handful of diverged showers alone had decided the FPD.
"""

from __future__ import annotations

import numpy as np

from foundation.errors import DataError
from foundation.evaluate.calochallenge.features import HighLevelFeatures
from foundation.evaluate.frechet import fpd, frechet_distance, kpd
from foundation.evaluate.metrics import Floats, Measurement

TRIM = 0.01
MINIMUM = 100
"""Showers of each sample below which no trimmed distance is quoted."""
SMALLEST_SAMPLE = 10_000


def shower_fpd(truth: HighLevelFeatures, generated: HighLevelFeatures, seed: int = 42) -> Measurement:
    """FPD with the challenge's settings; samples of less than 10,000 showers are drawn from more than once."""
    return fpd(truth.vector(), generated.vector(), seed=seed, smallest=SMALLEST_SAMPLE)


def shower_kpd(truth: HighLevelFeatures, generated: HighLevelFeatures, seed: int = 42) -> Measurement:
    """KPD with the challenge's settings; samples of less than 10,000 showers are drawn from more than once."""
    return kpd(truth.vector(), generated.vector(), seed=seed, size=SMALLEST_SAMPLE)


def shower_fpd_trimmed(truth: HighLevelFeatures, generated: HighLevelFeatures, seed: int = 42) -> Measurement:
    """Trimmed FPD with the challenge's settings, to be read beside the FPD."""
    return fpd_trimmed(truth.vector(), generated.vector(), seed=seed, smallest=SMALLEST_SAMPLE)


def fpd_trimmed(
    truth: Floats,
    generated: Floats,
    *,
    seed: int = 42,
    trim: float = TRIM,
    smallest: int = 20_000,
    largest: int = 50_000,
    sizes: int = 10,
    draws: int = 20,
) -> Measurement:
    """Trimmed FPD of features [B, d] and [C, d]: the intercept of a line in 1/n, bounded to be >= 0, as of the FPD.

    The error is that of the fit. Raises DataError where features are not finite (a diverged shower is trimmed, one
    that is infinite or NaN is not a shower) or a sample has fewer than 100 showers.
    """
    from scipy.optimize import curve_fit

    for name, features in (("truth", truth), ("generated", generated)):
        if len(features) < MINIMUM:
            raise DataError(f"the trimmed FPD needs {MINIMUM} showers of each sample; {name} has {len(features)}")
        if not np.isfinite(features).all():
            raise DataError(f"the trimmed FPD needs finite features, and some of {name} are not")
    scale = np.abs(truth).max(0)
    scale[scale == 0] = 1.0
    samples = truth / scale, generated / scale
    numbers = (1 / np.linspace(1 / smallest, 1 / largest, sizes)).astype(np.int32)
    rng = np.random.default_rng(seed)
    distances = np.empty((sizes, draws))
    for place in np.ndindex(sizes, draws):
        drawn = [features[rng.choice(len(features), numbers[place[0]])] for features in samples]
        (mean_a, covariance_a), (mean_b, covariance_b) = (_moments(_trimmed(features, trim)) for features in drawn)
        distances[place] = frechet_distance(mean_a, covariance_a, mean_b, covariance_b)

    def line(x: Floats, intercept: float, slope: float) -> Floats:
        return intercept + slope * x

    found, covariance = curve_fit(line, 1 / numbers, distances.mean(1), bounds=([0, 0], [np.inf, np.inf]))
    return Measurement(float(found[0]), float(np.sqrt(covariance[0, 0])))


def _trimmed(features: Floats, trim: float) -> Floats:
    """All but the share `trim` of the rows, those furthest from the mean in units of the covariance."""
    if trim <= 0:
        return features
    mean, covariance = _moments(features)
    d = len(covariance)
    # a small ridge, relative to the mean variance: features that never vary have no inverse covariance
    inverse = np.linalg.inv(covariance + 1e-10 * np.trace(covariance) / d * np.eye(d))
    delta = features - mean
    distance = ((delta @ inverse) * delta).sum(1)
    kept = round(len(features) * (1 - trim))
    return features[np.argpartition(distance, kept)[:kept]]


def _moments(features: Floats) -> tuple[Floats, Floats]:
    return features.mean(0), np.cov(features, rowvar=False)
