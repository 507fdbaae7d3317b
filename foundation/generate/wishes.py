"""What a caller in Python asks for, object by object: labels and conditions of the objects first .. first + n - 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from foundation.data.cards import DatasetCard
from foundation.errors import DataError, did_you_mean
from foundation.generate.conditions import ANY, ANY_CLASS, Asking
from foundation.generate.request_config import Asked

Label = str | int | Sequence[str] | Sequence[int] | NDArray[np.integer] | None
"""Name or index of a class, "any", or one of these for each object; None for all classes in turn."""


@dataclass(frozen=True)
class Wishes:
    """Labels and conditions by the numbers of objects: those of `asking`, and before them what is given per object.

    labels: int64 [n], or None; columns: float64 [n] by the column of the condition
    """

    asking: Asking
    first: int
    labels: NDArray[np.int64] | None
    columns: Mapping[int, NDArray[np.float64]]

    @staticmethod
    def of(
        card: DatasetCard,
        label: Label,
        condition: Mapping[str, Any] | None,
        seed: int,
        first: int,
        n: int | None,
        outside: bool = False,
    ) -> Wishes:
        """Checked and ready. Raises DataError for names, values and numbers of values that cannot be."""
        classes, labels = _classes(card, label, n)
        names = [c.name for c in card.conditions]
        values, columns = {}, {}
        for name, value in (condition or {}).items():
            if name not in names:
                raise DataError(f"dataset '{card.tag}' has no condition '{name}'{did_you_mean(name, names)}")
            values[name] = value
            if not isinstance(value, (str, Real, Mapping)):
                column = _column(name, value, n)
                columns[names.index(name)] = column
                known = column[~np.isnan(column)]
                values[name] = (float(known.min()), float(known.max())) if len(known) else ANY
        try:
            asked = Asked.model_validate({"classes": classes, "conditions": values, "outside": outside})
        except ValidationError as error:
            raise DataError(_first_mistake(error)) from None
        return Wishes(Asking.of(card, asked, seed), first, labels, columns)

    def __call__(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Labels int64 [b] and conditions float32 [b, C] (NaN: left open) of the objects with these numbers [b]."""
        labels, conditions = self.asking(index)
        for column, values in self.columns.items():
            conditions[:, column] = values[index - self.first]
        return labels if self.labels is None else self.labels[index - self.first], conditions


def _classes(card: DatasetCard, label: Label, n: int | None) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Classes that all objects have in turn, or the label of each object."""
    if label is None:
        return (), None
    if isinstance(label, str | int | np.integer):
        index = _index(card, label)
        return (ANY if index == ANY_CLASS else card.classes[index],), None
    labels = np.array([_index(card, one) for one in label], np.int64)
    _require_one_each("label", len(labels), n)
    return (ANY,), labels


def _index(card: DatasetCard, label: Any) -> int:
    if isinstance(label, str) and (label == ANY or label in card.classes):
        return ANY_CLASS if label == ANY else card.classes.index(label)
    if isinstance(label, Integral) and ANY_CLASS <= int(label) < len(card.classes):
        return int(label)
    hint = did_you_mean(label, card.classes) if isinstance(label, str) else f" (0 to {len(card.classes) - 1})"
    raise DataError(f"dataset '{card.tag}' has no class '{label}'{hint if card.classes else ': it has no classes'}")


def _column(name: str, value: Any, n: int | None) -> NDArray[np.float64]:
    try:
        column = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"condition '{name}': give a number, one number per object, or a distribution") from None
    if column.ndim != 1 or np.isinf(column).any():
        raise DataError(f"condition '{name}': give finite numbers [n], one per object, not the shape {column.shape}")
    _require_one_each(f"condition '{name}'", len(column), n)
    return column


def _require_one_each(what: str, found: int, n: int | None) -> None:
    if n is None:
        raise DataError(f"{what}: values for each object need n, the number of objects")
    if found != n:
        raise DataError(f"{what}: there are {found} values for {n} objects: give one value, or one for each object")


def _first_mistake(error: ValidationError) -> str:
    """`condition 'x': what is wrong`, of what pydantic says; names of types are no help to the user."""
    first = error.errors()[0]
    name = first["loc"][1] if len(first["loc"]) > 1 else first["loc"][0]
    return f"condition '{name}': {first['msg'].removeprefix('Value error, ')}"
