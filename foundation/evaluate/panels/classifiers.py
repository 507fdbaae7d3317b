"""Panel `classification`: the numbers of classifiers on their test sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.evaluate.classification import DEFINITIONS, multiclass_scores
from foundation.evaluate.metrics import Measurement
from foundation.evaluate.panels.samples import Sheet
from foundation.evaluate.reliability import DEFINITIONS as OF_PROBABILITIES
from foundation.evaluate.reliability import reliability
from foundation.evaluate.scores import Score


class Classifier(Protocol):
    """What is asked of a classifier: its name, its dataset, and its probabilities [B, K] of the classes of objects."""

    @property
    def name(self) -> str: ...

    @property
    def dataset(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def class_labels(self) -> NDArray[np.integer] | None: ...

    @property
    def probabilities(self) -> NDArray[np.floating] | None: ...


def classifier_panel(arm: Classifier, seed: int = 0) -> Iterator[Score]:
    """Accuracy, AUC, background rejections, and how far probabilities can be taken at their word.

    Nothing of a classifier whose probabilities of all classes are not known.
    """
    if arm.probabilities is None or arm.class_labels is None:
        return
    sheet, n = Sheet(arm.name, arm.dataset, "classification"), len(arm.class_labels)
    try:
        found = multiclass_scores(arm.class_labels, arm.probabilities, classes=arm.classes, seed=seed)
        honest = reliability(arm.class_labels, arm.probabilities, seed=seed)
    except DataError as error:
        yield sheet.problem("all", "accuracy", DEFINITIONS["accuracy"], str(error), n)
        return

    def higher(group: str, name: str, kind: str, value: Measurement) -> Score:
        return sheet.score(group, name, DEFINITIONS[kind], value, n=n, better="higher")

    yield higher("all", "accuracy", "accuracy", found.accuracy)
    for name, mean in (("auc_ovr", found.auc_ovr), ("auc_ovo", found.auc_ovo)):
        if mean is not None:
            yield higher("all", name, name, mean)
    for name, value in found.auc_rest.items():
        yield higher(name, "auc_rest", "auc_rest", value)
    for (name, efficiency), value in found.rejection.items():
        if not value.limit:
            yield higher(name, f"rejection_{100 * efficiency:.0f}", "rejection", value)
    yield sheet.score("all", "ece", OF_PROBABILITIES["ece"], honest.ece, honest.ece_floor, n=n)
    for name, value in (("brier", honest.brier), ("nll", honest.nll)):
        yield sheet.score("all", name, OF_PROBABILITIES[name], value, n=n, unit="nat" if name == "nll" else "1")
    for problem in found.problems:
        yield sheet.problem("all", "auc_ovr", DEFINITIONS["auc_ovr"], problem, n)
