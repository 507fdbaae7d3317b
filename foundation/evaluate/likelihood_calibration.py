"""Is truth as likely under a model as what it generates? For models that know the likelihood of an object.

Log-likelihoods are in nats, one per object, of truth the model was not trained on and of objects it generated itself.
If the model is the truth, both are of one distribution; memorised or blurred data show as truth being less likely,
samples of too high a temperature as truth being more likely.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.evaluate.metrics import RESAMPLINGS, Floats, Measurement, wasserstein

DEFINITIONS = {
    "ks": "log-likelihood-ks/two-sample-1",
    "w1": "log-likelihood-w1/nats-1",
    "gap": "log-likelihood-gap/nats-1",
    "bits_per_token": "bits-per-token/ratio-of-sums-1",
    "coverage": "log-likelihood-coverage/central-interval-1",
}
"""Name and version of the definition of every number (docs/reference/metrics.md)."""
MINIMUM = 20
"""Objects of either sample below which nothing is quoted."""
LEVELS = (0.5, 0.6827, 0.9, 0.9545)


@dataclass(frozen=True)
class LikelihoodTest:
    """Distributions of the log-likelihoods of truth and of generated objects.

    ks:      largest distance of the distribution functions (Kolmogorov-Smirnov); p_value: of one as large by chance
    w1:      Wasserstein-1 distance in nats
    gap:     mean of the generated minus mean of the truth in nats; above 0: the model thinks its own objects likelier
    """

    ks: Measurement
    p_value: float
    w1: Measurement
    gap: Measurement


def likelihood_test(
    truth: Floats, generated: Floats, *, seed: int = 0, resamplings: int = RESAMPLINGS
) -> LikelihoodTest:
    """Compare log-likelihoods [B] and [C] in nats."""
    from scipy.stats import ks_2samp

    a, b = _checked(truth, "truth"), _checked(generated, "generated objects")
    found = ks_2samp(a, b)
    rng = np.random.default_rng([seed, 1])
    drawn = [_ks(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(resamplings)]
    spread = float(np.std(drawn, ddof=1)) if resamplings > 1 else float("nan")
    error = float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
    return LikelihoodTest(
        Measurement(float(found.statistic), spread),
        float(found.pvalue),
        wasserstein(a, b, seed=seed, resamplings=resamplings),
        Measurement(float(b.mean() - a.mean()), error),
    )


def bits_per_token(log_likelihoods: Floats, tokens: NDArray[np.integer]) -> Measurement:
    """- sum of log-likelihoods / (ln 2 * sum of tokens): what a token costs; error of a ratio of means over objects.

    tokens: how many of each object were predicted, [B].
    """
    values, n = _checked(log_likelihoods, "sample"), np.asarray(tokens, np.float64)
    if n.shape != values.shape:
        raise DataError(f"bits per token: {values.shape} log-likelihoods and {n.shape} numbers of tokens do not fit")
    if not (n > 0).all():
        raise DataError("bits per token: every object must have at least one token")
    bits = -values / np.log(2)
    value = bits.sum() / n.sum()
    error = np.sqrt(((bits - value * n) ** 2).sum() / (len(n) - 1) / len(n)) / n.mean()
    return Measurement(float(value), float(error))


@dataclass(frozen=True)
class RankCalibration:
    """Where the likelihood of each true object ranks among those of generated ones: uniform from 0 to 1 if all fits.

    ranks:    share of generated objects with a lower log-likelihood, equal ones half, [B]
    edges, shares, errors: histogram of the ranks with unit sum, [n + 1] and [n] each; flat at 1 / n
    coverage: level -> share of true objects in the central interval of generated ones with that content, with the
              errors of both samples
    """

    ranks: Floats
    edges: Floats
    shares: Floats
    errors: Floats
    coverage: dict[float, Measurement]


def rank_calibration(
    truth: Floats,
    generated: Floats,
    *,
    truth_groups: NDArray[np.integer] | None = None,
    generated_groups: NDArray[np.integer] | None = None,
    bins: int = 20,
) -> RankCalibration:
    """Probability integral transform of truth's log-likelihoods [B] under those of generated objects [C].

    groups: class or bin of a condition of each object; ranks are then among generated objects of the same one, as
    likelihoods given different conditions do not compare.
    """
    a, b = _checked(truth, "truth"), _checked(generated, "generated objects")
    in_a, in_b = _groups(truth_groups, len(a)), _groups(generated_groups, len(b))
    ranks = np.empty(len(a))
    for group in np.unique(in_a):
        others = np.sort(b[in_b == group])
        if len(others) < MINIMUM:
            raise DataError(
                f"rank of likelihoods: {len(others)} generated objects in group {group}, at least {MINIMUM} are needed"
            )
        here = in_a == group
        below, upto = (np.searchsorted(others, a[here], side=side) for side in ("left", "right"))
        ranks[here] = (below + upto) / 2 / len(others)
    edges = np.linspace(0, 1, bins + 1)
    shares = np.histogram(ranks, edges)[0] / len(ranks)
    coverage = {level: _coverage(ranks, level, len(b)) for level in LEVELS}
    return RankCalibration(ranks, edges, shares, np.sqrt(shares * (1 - shares) / len(ranks)), coverage)


def _coverage(ranks: Floats, level: float, generated: int) -> Measurement:
    inside = float((np.abs(ranks - 0.5) <= level / 2).mean())
    # the ends of the interval are quantiles of the generated sample, and scatter as its content does
    variance = inside * (1 - inside) / len(ranks) + level * (1 - level) / generated
    return Measurement(inside, float(np.sqrt(variance)))


def _groups(groups: NDArray[np.integer] | None, n: int) -> NDArray[np.integer]:
    if groups is None:
        return np.zeros(n, np.int64)
    if len(groups) != n:
        raise DataError(f"rank of likelihoods: {len(groups)} groups for {n} objects")
    return np.asarray(groups)


def _checked(values: Floats, side: str) -> Floats:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < MINIMUM:
        raise DataError(f"log-likelihoods of the {side}: {values.shape} values, a list of at least {MINIMUM} is needed")
    broken = int((~np.isfinite(values)).sum())
    if broken:
        raise DataError(
            f"log-likelihoods of the {side}: {broken} of {len(values)} are not finite (impossible for the model, or "
            "diverged); leave those objects out and say how many"
        )
    return values


def _ks(a: Floats, b: Floats) -> float:
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    gap = np.searchsorted(a, both, side="right") / len(a) - np.searchsorted(b, both, side="right") / len(b)
    return float(np.abs(gap).max())
