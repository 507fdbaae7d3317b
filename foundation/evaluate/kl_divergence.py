"""Kullback-Leibler divergence in quantiles of the truth: the score of OmniJet-alpha (arXiv:2403.05618)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.evaluate.metrics import RESAMPLINGS, Floats, Measurement, finite

DEFINITIONS = {"quantiled_kld": "quantiled-kld/omnijet-alpha-1c8d442"}
FLOOR = 1e-8
"""Added to every density, so that an empty bin of the generated sample costs much, but not everything."""


def quantiled_kld(
    truth: NDArray[np.floating],
    generated: NDArray[np.floating],
    *,
    quantiles: int = 30,
    seed: int = 0,
    resamplings: int = RESAMPLINGS,
) -> Measurement:
    """KL(truth || generated) in nats of histograms between `quantiles` quantiles of the truth, with a bootstrap error.

    Edges are np.quantile(truth, np.linspace(0.001, 0.999, quantiles)), so there is one bin less than quantiles; p and q
    are the densities plus 1e-8, made to sum to 1 over the bins (densities, not shares: narrow bins weigh more):
    sum p ln(p / q). What lies beyond the edges does not count. Equal edges, which the reference answers with NaN, are
    taken once: values that are whole numbers then have fewer bins. Error: standard deviation over resamplings of both
    samples at these edges. OmniJet-alpha takes 30 in its tables and 50 while it trains. Values that are not finite are
    left out.
    """
    a, b = finite(truth, "first sample", quantiles), finite(generated, "second sample")
    edges = np.unique(np.quantile(a, np.linspace(0.001, 0.999, quantiles)))
    if len(edges) < 2:
        raise DataError(
            "quantiled KLD: practically all values of the truth are equal, there are no quantiles to bin in"
        )
    counts = [np.histogram(values, edges)[0].astype(np.float64) for values in (a, b)]
    if counts[1].sum() == 0:
        raise DataError("quantiled KLD: no value of the second sample lies between the outer quantiles of the first")
    value = float(_divergence(counts[0], counts[1], edges))
    rng = np.random.default_rng(seed)
    drawn = [
        rng.multinomial(len(x), np.append(c, len(x) - c.sum()) / len(x), resamplings)[:, :-1].astype(np.float64)
        for x, c in zip((a, b), counts, strict=True)
    ]
    spread = _divergence(drawn[0], drawn[1], edges)
    return Measurement(value, float(spread.std(ddof=1)) if resamplings > 1 else float("nan"))


def _divergence(counts_a: Floats, counts_b: Floats, edges: Floats) -> Floats:
    p, q = (_shares(counts, edges) for counts in (counts_a, counts_b))
    return (p * np.log(p / q)).sum(-1)


def _shares(counts: Floats, edges: Floats) -> Floats:
    density = counts / np.maximum(counts.sum(-1, keepdims=True), 1) / np.diff(edges) + FLOOR
    return density / density.sum(-1, keepdims=True)
