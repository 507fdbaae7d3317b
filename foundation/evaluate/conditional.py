"""Scores per class or bin of a condition, and how well generated objects obey the condition they were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean
from foundation.evaluate.metrics import Floats, Measurement

DEFINITIONS = {
    "deviation": "mean-relative-deviation-of-medians/truth-quantile-bins-1",
    "width": "mean-relative-deviation-of-widths/truth-quantile-bins-1",
    "correlation": "rank-correlation/spearman-1904",
}
"""Name and version of the definition of every number (docs/reference/metrics.md)."""
BINS = 5
MINIMUM = 50
"""Objects of each sample below which a bin has no numbers."""
MOST_VALUES = 20
"""Conditions of no more distinct values than this have a group for each of them."""
RESAMPLINGS = 100
T = TypeVar("T")


@dataclass(frozen=True)
class ConditionGroup:
    """Objects of one class, or in one bin of a condition: their numbers in both samples.

    low, high: of the bin, which has its lower edge (the last one both); equal where the condition has this one value
    """

    name: str
    low: float
    high: float
    truth: NDArray[np.int64]
    generated: NDArray[np.int64]


@dataclass(frozen=True)
class PerGroup(Generic[T]):
    """What a measurement gave by group name, and why other groups have none."""

    values: Mapping[str, T]
    problems: Mapping[str, str]


def classes_of(truth: PointClouds, generated: PointClouds, names: Sequence[str]) -> tuple[ConditionGroup, ...]:
    """A group for every class that the truth has; names: of the card's classes."""
    found = []
    for label in np.unique(truth.labels[truth.labels >= 0]).tolist():
        name = names[label] if label < len(names) else str(label)
        members = [np.flatnonzero(clouds.labels == label) for clouds in (truth, generated)]
        found.append(ConditionGroup(name, float(label), float(label), members[0], members[1]))
    if not found:
        raise DataError("conditional metrics: no object of the truth has a class")
    return tuple(found)


def bins_of(
    truth: PointClouds, generated: PointClouds, condition: str, *, bins: int = BINS, edges: Sequence[float] = ()
) -> tuple[ConditionGroup, ...]:
    """Groups by a condition: between the truth's quantiles, of its few distinct values, or between given edges.

    Generated objects beyond the truth's lowest and highest value are in no group.
    """
    unit = truth.condition_units[truth.condition_names.index(condition)] if condition in truth.condition_names else ""
    a, b = (condition_values(c, condition, s) for c, s in ((truth, "truth"), (generated, "generated sample")))
    distinct = np.unique(a)
    suffix = "" if unit in ("", "1") else f" {unit}"
    if not edges and len(distinct) <= max(bins, MOST_VALUES):
        return tuple(
            ConditionGroup(
                f"{condition} {v:g}{suffix}", v, v, np.flatnonzero(a == v), np.flatnonzero(np.isclose(b, v, rtol=1e-5))
            )
            for v in distinct.tolist()
        )
    cuts = np.unique(np.asarray(edges, np.float64) if edges else np.quantile(a, np.linspace(0, 1, bins + 1)))
    if len(cuts) < 2:
        raise DataError(f"conditional metrics: the edges of '{condition}' must be at least two different values")
    inside = [_bins(values, cuts) for values in (a, b)]
    return tuple(
        ConditionGroup(
            f"{condition} {low:.4g}-{high:.4g}{suffix}", low, high, *(np.flatnonzero(x == k) for x in inside)
        )
        for k, (low, high) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
    )


def per_group(
    groups: Sequence[ConditionGroup],
    measure: Callable[[NDArray[np.int64], NDArray[np.int64]], T],
    *,
    minimum: int = MINIMUM,
) -> PerGroup[T]:
    """`measure(truth's objects, generated objects)` in every group that has enough of both.

    What fails in one group is a problem of that group alone.
    """
    values: dict[str, T] = {}
    problems: dict[str, str] = {}
    for group in groups:
        if min(len(group.truth), len(group.generated)) < minimum:
            problems[group.name] = (
                f"{group.name}: {len(group.truth)} true and {len(group.generated)} generated objects, at least "
                f"{minimum} of each are needed"
            )
            continue
        try:
            values[group.name] = measure(group.truth, group.generated)
        except DataError as error:
            problems[group.name] = f"{group.name}: {error}"
    return PerGroup(values, problems)


@dataclass(frozen=True)
class ObedienceBin:
    """A quantity in one bin of the condition: medians and 68 % half widths, with bootstrap errors.

    difference: of the medians, generated / truth - 1 (generated - truth where the truth's medians are not above zero)
    """

    group: ConditionGroup
    truth: Measurement
    generated: Measurement
    truth_width: Measurement
    generated_width: Measurement
    difference: Measurement


@dataclass(frozen=True)
class Obedience:
    """How a quantity follows a condition: visible energy an incident energy, jet pT of points the pT asked for.

    deviation: mean over bins of |median of generated / median of truth - 1|, not 0 for finite samples: see its floor
    width:     the same of the 68 % half widths
    relative:  False where medians are not above zero: deviations are then in units of the truth's width in the bin
    truth_correlation, generated_correlation: rank correlation of quantity and condition (Spearman)
    problems:  bins with too few objects
    """

    bins: tuple[ObedienceBin, ...]
    deviation: Measurement
    width: Measurement
    relative: bool
    truth_correlation: Measurement
    generated_correlation: Measurement
    problems: Mapping[str, str]


def obedience(
    truth: PointClouds,
    generated: PointClouds,
    condition: str,
    truth_values: Floats,
    generated_values: Floats,
    *,
    bins: int = BINS,
    seed: int = 0,
    resamplings: int = RESAMPLINGS,
) -> Obedience:
    """How a quantity with these values, one per object, follows the condition.

    Values that are not finite do not count.
    """
    for side, clouds, values in (("truth", truth, truth_values), ("generated sample", generated, generated_values)):
        if len(values) != len(clouds):
            raise DataError(f"obedience to '{condition}': {len(values)} values for {len(clouds)} objects of the {side}")
    groups = bins_of(truth, generated, condition, bins=bins)
    sides = np.asarray(truth_values, np.float64), np.asarray(generated_values, np.float64)
    rng = np.random.default_rng(seed)

    def measure(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[Floats, Floats]:
        return _quantiles(_finite(sides[0][a]), resamplings, rng), _quantiles(_finite(sides[1][b]), resamplings, rng)

    found = per_group(groups, measure)
    if not found.values:
        raise DataError(f"obedience to '{condition}': " + "; ".join(found.problems.values()))
    relative = all((a[:, 1] > 0).all() for a, _ in found.values.values())
    drawn = {name: _Drawn.of(a, b, relative) for name, (a, b) in found.values.items()}
    truth_correlation, generated_correlation = (
        _correlation(condition_values(clouds, condition, "sample"), values, rng, resamplings)
        for clouds, values in zip((truth, generated), sides, strict=True)
    )
    return Obedience(
        tuple(drawn[group.name].bin(group) for group in groups if group.name in drawn),
        _measured(np.mean([np.abs(d.difference) for d in drawn.values()], axis=0)),
        _measured(np.mean([np.abs(d.width_difference) for d in drawn.values()], axis=0)),
        relative,
        truth_correlation,
        generated_correlation,
        found.problems,
    )


def condition_values(clouds: PointClouds, condition: str, side: str) -> Floats:
    """A condition of all clouds, float64 [B]; a sentence where it is missing or not finite."""
    if condition not in clouds.condition_names:
        raise DataError(
            f"conditional metrics: the {side} has no condition '{condition}'"
            f"{did_you_mean(condition, clouds.condition_names)}; store it with the objects"
        )
    values = clouds.condition(condition).astype(np.float64)
    if len(values) == 0:
        raise DataError(f"conditional metrics: the {side} is empty")
    if not np.isfinite(values).all():
        raise DataError(
            f"conditional metrics: condition '{condition}' of {int((~np.isfinite(values)).sum())} objects of the "
            f"{side} is not finite; leave them out"
        )
    return values


@dataclass(frozen=True)
class _Drawn:
    """Quantiles 16, 50 and 84 % of both samples, [1 + resamplings, 3], and what follows from them."""

    truth: Floats
    generated: Floats
    difference: Floats
    width_difference: Floats

    @staticmethod
    def of(truth: Floats, generated: Floats, relative: bool) -> _Drawn:
        widths = _width(truth), _width(generated)
        # a sample without spread: both widths 0 are equal, one of them is as different as can be
        safe = np.where(widths[0] > 0, widths[0], np.where(widths[1] > 0, widths[1], 1.0))
        scale = truth[:, 1] if relative else safe
        return _Drawn(truth, generated, (generated[:, 1] - truth[:, 1]) / scale, (widths[1] - widths[0]) / safe)

    def bin(self, group: ConditionGroup) -> ObedienceBin:
        return ObedienceBin(
            group,
            _measured(self.truth[:, 1]),
            _measured(self.generated[:, 1]),
            _measured(_width(self.truth)),
            _measured(_width(self.generated)),
            _measured(self.difference),
        )


def _bins(values: Floats, cuts: Floats) -> NDArray[np.int64]:
    which = np.searchsorted(cuts, values, side="right") - 1
    which[values == cuts[-1]] = len(cuts) - 2
    return np.where((values < cuts[0]) | (values > cuts[-1]), -1, which)


def _finite(values: Floats) -> Floats:
    kept = values[np.isfinite(values)]
    if len(kept) < 2:
        raise DataError(f"only {len(kept)} of {len(values)} values are finite, at least 2 are needed")
    return kept


def _quantiles(values: Floats, resamplings: int, rng: np.random.Generator) -> Floats:
    """Quantiles 16, 50 and 84 % of the sample and then of its resamplings, float64 [1 + resamplings, 3]."""
    rows = [np.arange(len(values)), *(rng.integers(0, len(values), len(values)) for _ in range(resamplings))]
    return np.array([np.quantile(values[r], (0.16, 0.5, 0.84)) for r in rows])


def _width(quantiles: Floats) -> Floats:
    return (quantiles[:, 2] - quantiles[:, 0]) / 2


def _correlation(condition: Floats, values: Floats, rng: np.random.Generator, resamplings: int) -> Measurement:
    from scipy.stats import rankdata

    known = np.isfinite(values)
    x, y = condition[known], values[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Measurement(float("nan"), float("nan"))
    ranks = np.stack([rankdata(x), rankdata(y)])
    rows = [np.arange(len(x)), *(rng.integers(0, len(x), len(x)) for _ in range(resamplings))]
    # ranks of the whole sample also in resamplings: what new ranks would change is of the order of the ties
    return _measured(np.array([np.corrcoef(ranks[:, r])[0, 1] for r in rows]))


def _measured(values: Floats) -> Measurement:
    """Value first, its resamplings after it."""
    spread = values[1:]
    return Measurement(float(values[0]), float(spread.std(ddof=1)) if len(spread) > 1 else float("nan"))
