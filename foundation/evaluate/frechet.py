"""Frechet and kernel physics distance of features, as jetnet 0.2.5 defines them: Kansal et al., arXiv:2211.10295.

Features [B, d] are the 36 energy flow polynomials of `energy_flow.GRAPHS` for jets; each is divided by its largest
absolute value in the first sample. That makes both distances asymmetric, and one outlier in the truth shrinks a
feature: the first sample is the truth, always. Both come with their own draws, so that truth against itself is not 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.evaluate.metrics import Measurement

Floats = NDArray[np.float64]

DEFINITIONS = {"fpd": "fpd/jetnet-0.2.5", "kpd": "kpd/jetnet-0.2.5", "kpd_threads": "kpd/jetnet-0.2.5-num_threads"}
MINIMUM = 100
"""Objects in either sample below which no distance is quoted; jetnet recommends 50,000."""
ROWS, COLUMNS = 1_024, 2_048
"""Objects and products of features per product of matrices of the moments."""
BLOCK = 32
"""Objects per product of matrices of the kernel."""


def fpd(
    truth: Floats,
    generated: Floats,
    *,
    seed: int = 42,
    smallest: int = 20_000,
    largest: int = 50_000,
    sizes: int = 10,
    draws: int = 20,
) -> Measurement:
    """Frechet physics distance of features [B, d] and [C, d], extrapolated to samples without end; dimensionless.

    FID(n) = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 sqrt(S_1 S_2)) is averaged over `draws` pairs of samples of n objects
    each, drawn with replacement, for `sizes` n between `smallest` and `largest`, equally spaced in 1/n. The value is
    the intercept of a line in 1/n, both of whose parameters are bounded to be >= 0; the error is that of the fit.
    The draws are those of jetnet, so the same seed gives the same value.
    """
    from scipy.optimize import curve_fit

    a, b = _scaled(truth, generated, "FPD")
    numbers = (1 / np.linspace(1 / smallest, 1 / largest, sizes)).astype("int32")
    rng = np.random.default_rng(seed)
    drawn: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    for number in np.repeat(numbers, draws):
        for side, features in zip(drawn, (a, b), strict=True):
            side.append(np.bincount(rng.choice(len(features), number), minlength=len(features)).astype(np.float32))
    moments = [_moments(features, np.stack(side)) for features, side in zip((a, b), drawn, strict=True)]
    of_size = (
        slice(first, first + draws) for first in range(0, sizes * draws, draws)
    )  # all at once is large at d > 300
    distances = [frechet_distance(*(m[one] for pair in moments for m in pair)).mean() for one in of_size]

    def line(x: Floats, intercept: float, slope: float) -> Floats:
        return intercept + slope * x

    found, covariance = curve_fit(line, 1 / numbers, distances, bounds=([0, 0], [np.inf, np.inf]))
    return Measurement(float(found[0]), float(np.sqrt(covariance[0, 0])))


def kpd(
    truth: Floats,
    generated: Floats,
    *,
    seed: int = 42,
    batches: int = 10,
    size: int = 5_000,
    draws: Literal["numpy", "threads"] = "numpy",
) -> Measurement:
    """Kernel physics distance of features [B, d] and [C, d]: MMD^2, unbiased and so negative at times; dimensionless.

    Kernel (x.y / d + 1)^4; median over `batches` pairs of samples of `size` objects, drawn with replacement; the error
    is half of what lies between their percentiles 16.275 and 83.725. jetnet draws from numpy's default generator with
    seed + 1000 i, or from the Mersenne twister of that seed when it is given num_threads: `draws` says which.
    """
    a, b = _scaled(truth, generated, "KPD")
    drawn = [_kernel_draws(seed + 1000 * i, (len(a), len(b)), size, draws) for i in range(batches)]
    kernels = _of_all_objects if max(len(a), len(b)) < size else _of_each_sample
    within, across = kernels(a, b, drawn)
    values = within / (size * (size - 1)) - 2 * across / size**2
    low, high = np.percentile(values, [16.275, 83.725])
    return Measurement(float(np.median(values)), float(high - low) / 2)


def frechet_distance(mean_a: Floats, covariance_a: Floats, mean_b: Floats, covariance_b: Floats) -> Floats:
    """Squared Frechet distance of Gaussians: means [..., d], covariances [..., d, d]; Dowson and Landau 1982, eq. 4.

    The trace of sqrt(S_1 S_2) is the sum of the singular values of sqrt(S_1) sqrt(S_2): no root of a matrix that is
    not symmetric, which loses digits where features are strongly correlated.
    """
    product = _symmetric_root(covariance_a) @ _symmetric_root(covariance_b)
    trace = np.linalg.svd(product, compute_uv=False).sum(-1)
    apart = ((mean_a - mean_b) ** 2).sum(-1)
    return apart + np.trace(covariance_a + covariance_b, axis1=-2, axis2=-1) - 2 * trace


def _symmetric_root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def _moments(features: Floats, times: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Mean and covariance of samples in which object j is times[k, j] times: [k, d] and [k, d, d].

    All samples share the products of features, so that it is one product of matrices and nothing is gathered.
    """
    samples, d = len(times), features.shape[1]
    middle = features.mean(0)  # taken off first, so that no digits are lost
    upper = np.triu_indices(d)
    first, second = np.zeros((samples, d)), np.zeros((samples, len(upper[0])))
    for start in range(0, len(features), ROWS):
        part = features[start : start + ROWS] - middle
        weights = times[:, start : start + ROWS].astype(np.float64)
        first += weights @ part
        for column in range(0, second.shape[1], COLUMNS):
            i, j = (index[column : column + COLUMNS] for index in upper)
            second[:, column : column + COLUMNS] += weights @ (part[:, i] * part[:, j])
    n = times.sum(1, dtype=np.float64)[:, None]
    mean = first / n
    covariance = np.zeros((samples, d, d))
    covariance[:, upper[0], upper[1]] = (second - n * mean[:, upper[0]] * mean[:, upper[1]]) / (n - 1)
    covariance[:, upper[1], upper[0]] = covariance[:, upper[0], upper[1]]
    return mean + middle, covariance


def _kernel_draws(seed: int, lengths: tuple[int, int], size: int, draws: str) -> list[NDArray[np.int64]]:
    if draws == "threads":
        twister = np.random.RandomState(seed)
        return [twister.randint(0, length, size) for length in lengths]
    rng = np.random.default_rng(seed)
    return [rng.choice(length, size) for length in lengths]


Drawn = list[list[NDArray[np.int64]]]


def _of_each_sample(a: Floats, b: Floats, drawn: Drawn) -> tuple[Floats, Floats]:
    """Sums of the kernel over the pairs within both samples, and across them: [batches] each."""
    samples = [(a[first], b[second]) for first, second in drawn]
    within = np.array([_kernel_sum_within(x) + _kernel_sum_within(y) for x, y in samples])
    return within, np.array([_kernel_sum(x, y) for x, y in samples])


def _of_all_objects(a: Floats, b: Floats, drawn: Drawn) -> tuple[Floats, Floats]:
    """The same where samples hold objects many times: the kernel of any two objects is calculated once."""
    times = [np.stack([np.bincount(one[side], minlength=len(x)) for one in drawn], 1).astype(np.float64)
             for side, x in enumerate((a, b))]  # fmt: skip
    within = sum(_weighted_kernel(x, x, w, w) - w.T @ _kernel_with_itself(x)
                 for x, w in zip((a, b), times, strict=True))  # fmt: skip
    return np.asarray(within), _weighted_kernel(a, b, *times)


def _weighted_kernel(x: Floats, y: Floats, of_x: Floats, of_y: Floats) -> Floats:
    """Sum over i, j of of_x[i] k(x_i, y_j) of_y[j], with weights [objects, batches]: [batches]."""
    scaled, total = np.ascontiguousarray(y.T) / x.shape[1], np.zeros(of_x.shape[1])
    for start in range(0, len(x), BLOCK):
        kernel = (x[start : start + BLOCK] @ scaled + 1) ** 2
        total += (of_x[start : start + BLOCK] * (kernel * kernel @ of_y)).sum(0)
    return total


def _kernel_with_itself(x: Floats) -> Floats:
    return ((x * x).sum(1) / x.shape[1] + 1) ** 4


def _kernel_sum(x: Floats, y: Floats) -> float:
    """Sum of (x_i.y_j / d + 1)^4 over all pairs, in blocks that stay in the cache."""
    scaled = np.ascontiguousarray(y.T) / x.shape[1]
    return sum(_fourth_powers(x[start : start + BLOCK] @ scaled) for start in range(0, len(x), BLOCK))


def _kernel_sum_within(x: Floats) -> float:
    """The same over all i != j of one sample: twice the blocks above the diagonal, once those on it."""
    scaled = np.ascontiguousarray(x.T) / x.shape[1]
    total = -float(_kernel_with_itself(x).sum())
    for start in range(0, len(x), BLOCK):
        stop = start + BLOCK
        total += _fourth_powers(x[start:stop] @ scaled[:, start:stop])
        total += 2 * _fourth_powers(x[start:stop] @ scaled[:, stop:])
    return total


def _fourth_powers(products: Floats) -> float:
    products += 1
    products *= products
    return float(np.vdot(products, products))


def _scaled(truth: Floats, generated: Floats, what: str) -> tuple[Floats, Floats]:
    a, b = (_checked(x, f"{what} of the {side} sample") for x, side in ((truth, "first"), (generated, "second")))
    if a.shape[1] != b.shape[1]:
        raise DataError(f"{what}: the samples have {a.shape[1]} and {b.shape[1]} features; give the same ones of both")
    largest = np.abs(a).max(0)
    largest[largest == 0] = 1
    return a / largest, b / largest


def _checked(features: Floats, what: str) -> Floats:
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise DataError(f"{what}: features must be a table [objects, features], and have shape {features.shape}")
    if len(features) < MINIMUM:
        raise DataError(f"{what}: {len(features)} objects, at least {MINIMUM} are needed (50,000 are recommended)")
    broken = int((~np.isfinite(features).all(1)).sum())
    if broken:
        raise DataError(
            f"{what}: {broken} of {len(features)} objects have a feature that is not finite; leave them out"
        )
    return features
