"""How far decoded values lie from the true ones: bias, width and tails of residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.evaluate.metrics import Floats, Measurement

NAN = float("nan")
RESAMPLINGS = 40
FAR = 3.0
"""Residuals beyond so many widths are in the tails."""


@dataclass(frozen=True)
class Residuals:
    """Statistics of residuals (decoded - truth, or decoded / truth - 1), in their unit.

    n, missing: residuals, and how many more have no value (NaN) and enter nothing
    bias:       mean
    median:     robust against the tails
    width:      half of the central 68 %: (84 % quantile - 16 % quantile) / 2
    rms:        standard deviation, tails included
    tail:       share further from the median than three times the width
    far:        99 % quantile of the absolute residual

    Errors are bootstrap errors (Efron 1979), NaN where none were asked for.
    """

    n: int
    missing: int
    bias: Measurement
    median: float
    width: Measurement
    rms: float
    tail: float
    far: float


def residual_statistics(values: NDArray[np.floating], seed: int = 0, resamplings: int = RESAMPLINGS) -> Residuals:
    """Statistics of residuals [n]. All NaN where there is no finite one; no errors with fewer than two resamplings."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    missing = len(values) - len(known)
    if not len(known):
        nothing = Measurement(NAN, NAN)
        return Residuals(0, missing, nothing, NAN, nothing, NAN, NAN, NAN)
    low, median, high = np.quantile(known, [0.16, 0.5, 0.84])
    width = float(high - low) / 2
    bias_error, width_error = _errors(known, seed, resamplings)
    return Residuals(
        n=len(known),
        missing=missing,
        bias=Measurement(float(known.mean()), bias_error),
        median=float(median),
        width=Measurement(width, width_error),
        rms=float(known.std()),
        tail=float((np.abs(known - median) > FAR * width).mean()),
        far=float(np.quantile(np.abs(known), 0.99)),
    )


def _errors(known: Floats, seed: int, resamplings: int) -> tuple[float, float]:
    """Bootstrap errors of mean and width."""
    if resamplings < 2:
        return NAN, NAN
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamplings):
        sample = rng.choice(known, len(known))
        low, high = np.quantile(sample, [0.16, 0.84])
        drawn.append((sample.mean(), (high - low) / 2))
    errors = np.std(drawn, axis=0, ddof=1)
    return float(errors[0]), float(errors[1])


def relative_residuals(decoded: NDArray[np.floating], truth: NDArray[np.floating]) -> Floats:
    """decoded / truth - 1, float64; NaN where the truth is zero."""
    above, below = decoded.astype(np.float64), truth.astype(np.float64)
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0) - 1
