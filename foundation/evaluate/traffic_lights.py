"""Green, amber or red: a number against its floor, with the uncertainties of both."""

from __future__ import annotations

from typing import Literal

import numpy as np

from foundation.evaluate.scores import Score

Light = Literal["good", "fair", "poor", ""]

GOOD_RATIO, FAIR_RATIO = 1.5, 3.0
"""A distance over its floor: up to the first green, up to the second amber, beyond red."""
GOOD_DIFFERENCE, FAIR_DIFFERENCE = 0.05, 0.20
"""Relative differences, the same way."""
GOOD_SIGMAS, FAIR_SIGMAS = 2.0, 5.0
"""What is so many standard errors from where it should be is never worse than green, or amber."""
RULE = (
    f"Green: up to {GOOD_RATIO:g} times the floor, or within {GOOD_SIGMAS:g} standard errors of it; amber: up to "
    f"{FAIR_RATIO:g} times or {FAIR_SIGMAS:g} standard errors; red: beyond. Numbers with an ideal value: their "
    "distance from it instead. Numbers of which higher is better, and those with an ideal value and no floor: up to "
    f"{GOOD_DIFFERENCE:.0%} off green, up to {FAIR_DIFFERENCE:.0%} amber, or as many standard errors."
)


def grade(value: float, good: float, fair: float) -> Light:
    """`good`, `fair` or `poor` by size, empty for what is not a number."""
    if not np.isfinite(value):
        return ""
    return "good" if abs(value) <= good else "fair" if abs(value) <= fair else "poor"


def light(score: Score) -> Light:
    """The light of a score by `RULE`; empty where there is nothing that it could be held against."""
    if score.problem or not np.isfinite(score.value):
        return ""
    by_size = _by_size(score)
    if by_size == "":
        return ""
    return min(by_size, _by_error(score), key=("good", "fair", "poor", "").index)


def distance_from_ideal(score: Score) -> float:
    """How far a score is from where it should be; of those of which higher is better its negative: small is good."""
    if score.better == "nearest":
        return abs(score.value - score.ideal)
    return score.value if score.better == "lower" else -score.value


def ratio(score: Score) -> float:
    """How far a score is from where it should be, over the same for truth against truth; NaN where that is zero.

    Truth that happens to be at an ideal value counts as its standard error away, or everything would be far from it.
    """
    value, floor = score.value, score.floor
    if score.better == "nearest":
        value, floor = abs(value - score.ideal), max(abs(floor - score.ideal), np.nan_to_num(score.floor_error))
    elif score.better == "higher":
        value, floor = floor, value
    return value / floor if floor > 0 else float("nan")


def _by_size(score: Score) -> Light:
    if score.better == "higher":
        below = np.maximum(0.0, 1 - score.value / score.floor) if score.floor else np.nan  # NaN without a floor
        return grade(float(below), GOOD_DIFFERENCE, FAIR_DIFFERENCE)
    if np.isfinite(score.floor):
        known = ratio(score)
        return grade(known, GOOD_RATIO, FAIR_RATIO) if np.isfinite(known) else "poor"
    if score.better == "nearest" and np.isfinite(score.ideal) and score.ideal != 0:
        return grade(score.value / score.ideal - 1, GOOD_DIFFERENCE, FAIR_DIFFERENCE)
    return ""


def _by_error(score: Score) -> Light:
    """By the excess over the floor (or the ideal, where there is no floor) in standard errors."""
    floor = score.floor if np.isfinite(score.floor) else score.ideal
    if score.better == "nearest" and np.isfinite(score.floor):
        excess = abs(score.value - score.ideal) - abs(score.floor - score.ideal)
    elif score.better == "nearest":
        excess = abs(score.value - floor)
    else:
        excess = score.value - floor if score.better == "lower" else floor - score.value
    error = float(np.hypot(np.nan_to_num(score.error), np.nan_to_num(score.floor_error)))
    if excess <= 0:
        return "good"
    return grade(excess / error, GOOD_SIGMAS, FAIR_SIGMAS) if error > 0 else ""
