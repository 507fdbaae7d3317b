"""Panel `distributions`: every observable's Wasserstein-1 distance and separation power, with their floors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from foundation.errors import DataError
from foundation.evaluate.comparison import Row
from foundation.evaluate.metrics import Measurement
from foundation.evaluate.panels.samples import Made, Sheet, Truth
from foundation.evaluate.scores import Score

DEFINITIONS = {
    "w1": "wasserstein/1",
    "separation": "separation-power/1",
    "mass_peak": "mass-peak/1",
}


def distributions(truth: Truth, made: Made) -> Iterator[Score]:
    """The rows of the comparison, and the position of the peaks of the mass spectra."""
    comparison = made.comparison
    if comparison is None:
        raise DataError("the samples could not be compared")
    sheet = Sheet(made.model, truth.card.name, "distributions")
    for row in comparison.rows:
        yield from _of_row(sheet, row)
    for group, (true_peak, peak) in comparison.peaks.items():
        known = Measurement(peak.value, float(np.hypot(peak.error, true_peak.error)))
        yield sheet.score(
            group, "mass_peak", DEFINITIONS["mass_peak"], known, unit="GeV", better="nearest", ideal=true_peak.value,
            n=sum(row.n for row in comparison.rows if (row.group, row.observable) == (group, "mass")),
        )  # fmt: skip


def _of_row(sheet: Sheet, row: Row) -> Iterator[Score]:
    names = f"w1.{row.observable}", f"separation.{row.observable}"
    if row.problem:
        yield sheet.problem(row.group, names[0], DEFINITIONS["w1"], row.problem, row.n)
        return
    w1, floor = Measurement(row.w1, row.w1_error), Measurement(row.floor, row.floor_error)
    yield sheet.score(row.group, names[0], DEFINITIONS["w1"], w1, floor, unit=row.unit, n=row.n)
    separation = Measurement(row.separation, row.separation_error)
    floor = Measurement(row.separation_floor, row.separation_floor_error)
    yield sheet.score(row.group, names[1], DEFINITIONS["separation"], separation, floor, n=row.n)
