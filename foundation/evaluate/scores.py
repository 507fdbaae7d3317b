"""One line of metrics.json, of whatever metric: the tidy table that the report, the registry and users read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NAN = float("nan")


@dataclass(frozen=True)
class Score:
    """A number about a model on a dataset, beside its floor.

    model, dataset:    who made the objects (of the model or the file), and the name of the dataset card
    panel:             the theme it belongs to, a tab of the report: distributions, jets, calochallenge, ild, response,
                       two-sample, memorisation, conditional, likelihood, classification, speed
    group:             class of jets, bin of incident energy, "all"
    name, unit:        of the number
    definition:        name and version of its definition, such as fpd/jetnet-0.2.5 (docs/reference/metrics.md)
    better:            where a good generator is: lower, higher, or nearest to `ideal`
    value, error:      the number and its uncertainty (bootstrap or over splits); NaN where there is none
    floor, floor_error: the same number of truth against truth of that size; NaN where it has no floor
    n:                 objects per side
    problem:           why there is no number, else empty
    """

    model: str
    dataset: str
    panel: str
    group: str
    name: str
    unit: str
    definition: str
    better: Literal["lower", "higher", "nearest"] = "lower"
    value: float = NAN
    error: float = NAN
    floor: float = NAN
    floor_error: float = NAN
    n: int = 0
    ideal: float = NAN
    problem: str = ""


@dataclass(frozen=True)
class Published:
    """A number that somebody published for this dataset, under the same definition as ours: a line of the leaderboard.

    system:      what made the objects, as its authors call it
    definition, name, group: of the Score that it stands beside
    value, error: NaN for an error that is not given
    source:      paper and table, such as "arXiv:2410.21611, table 12"
    """

    system: str
    definition: str
    name: str
    value: float
    source: str
    error: float = NAN
    group: str = "all"
