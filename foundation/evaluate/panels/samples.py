"""What a panel gets: the truth of a dataset and what a model made, and a sheet that its numbers are written on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.evaluate.comparison import Comparison
from foundation.evaluate.metrics import Measurement
from foundation.evaluate.scores import NAN, Score

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """How long a model took for so many objects in batches of this size, where."""

    objects: int
    seconds: float
    batch: int
    device: str = ""


@dataclass(frozen=True)
class Kept:
    """Keeps what several panels, or the panels of several models, need."""

    kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made when it is asked for first."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Truth(Kept):
    """Held-out objects of a dataset; everything random follows from the seed."""

    card: DatasetCard
    clouds: PointClouds
    seed: int = 0


@dataclass(frozen=True)
class Made(Kept):
    """What a model made.

    comparison:    with the truth, observable by observable; None where that failed
    train:         objects that the model was trained on, where they are known
    timings:       how long generating took
    likelihoods:   log-likelihoods of truth and of generated objects under the model, float64 [B] each, in nats;
                   None where they are not known
    """

    model: str
    clouds: PointClouds
    comparison: Comparison | None = None
    train: PointClouds | None = None
    timings: Sequence[Timing] = ()
    likelihoods: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None


@dataclass(frozen=True)
class Sheet:
    """Makes the scores of one panel for one model on one dataset."""

    model: str
    dataset: str
    panel: str

    def score(
        self,
        group: str,
        name: str,
        definition: str,
        value: Measurement,
        floor: Measurement | None = None,
        *,
        unit: str = "1",
        n: int = 0,
        better: Literal["lower", "higher", "nearest"] = "lower",
        ideal: float = NAN,
    ) -> Score:
        """A number with its floor."""
        beside = floor or Measurement(NAN, NAN)
        return Score(
            self.model, self.dataset, self.panel, group, name, unit, definition, better,
            value.value, value.error, beside.value, beside.error, n, ideal,
        )  # fmt: skip

    def problem(self, group: str, name: str, definition: str, problem: str, n: int = 0) -> Score:
        """Why there is no number."""
        return Score(self.model, self.dataset, self.panel, group, name, "1", definition, n=n, problem=problem)
