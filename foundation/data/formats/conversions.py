"""From a file's numbers and conventions to ours, as the card declares, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.card_format import (
    ByValue,
    Conversion,
    FileFormat,
    Label,
    LabelConstant,
    LabelFile,
    LabelNumber,
    LabelOneHot,
    OneHot,
)
from foundation.data.cards import DatasetCard, Feature
from foundation.data.formats.quantities import Quantities
from foundation.data.formats.units import unit_factor
from foundation.errors import DataError

Function = Callable[[NDArray], NDArray]
UNDO: dict[str, tuple[Function, Function]] = {
    "log": (np.exp, np.log),
    "log1p": (np.expm1, np.log1p),
    "tanh": (np.arctanh, np.tanh),
}
"""Function that the file's number is of ours -> (its inverse, itself)."""
# Units in which formulas work, for quantities that are no feature of the card.
JET_UNITS = dict.fromkeys(("px", "py", "pz", "energy", "pt", "mass"), "GeV") | dict.fromkeys(("phi", "phi_rel"), "rad")


@dataclass(frozen=True)
class Step:
    """One number of a conversion, resolved: ours = file * factor + offset, after `undo`, before `times` and sign."""

    missing: float | None
    undo: str | None
    factor: float
    offset: float
    sign_of: str | None
    times: str | None

    def forward(self, values: NDArray, of_object: Callable[[str], NDArray]) -> NDArray:
        """Our numbers of the file's. `of_object` gives a quantity of the object for each of the values."""
        out = values
        if self.undo is not None:
            out = UNDO[self.undo][0](np.asarray(out, np.float64))
        if self.factor != 1.0:
            out = np.asarray(out, np.float64) * self.factor if abs(self.factor) != 1 else -out
        if self.offset:
            out = np.asarray(out, np.float64) + self.offset
        if self.sign_of is not None:
            out = np.where(of_object(self.sign_of) < 0, -out, out)
        if self.times is not None:
            out = np.asarray(out, np.float64) * np.asarray(of_object(self.times), np.float64)
        if self.missing is not None:
            out = np.where(values == self.missing, 0, out)
        return out

    def backward(self, values: NDArray, of_object: Callable[[str], NDArray]) -> NDArray:
        """The file's numbers, such that `forward` gives exactly `values` (float32) again.

        A division rounds; one of the neighbouring numbers then is the one that was multiplied. In single precision
        where that can be, in double precision otherwise.
        """
        exact = np.asarray(values, np.float64)
        if self.times is not None:
            exact = exact / np.asarray(of_object(self.times), np.float64)
        if self.sign_of is not None:
            exact = np.where(of_object(self.sign_of) < 0, -exact, exact)
        exact = (exact - self.offset) / self.factor
        if self.undo is not None:
            exact = UNDO[self.undo][1](exact)
        guess = exact.astype(np.float32)
        wanted = np.asarray(values, np.float32)
        best = guess.copy()
        wrong = self.forward(guess, of_object).astype(np.float32) != wanted
        for neighbour in _neighbours(guess) if wrong.any() else ():
            fits = wrong & (self.forward(neighbour, of_object).astype(np.float32) == wanted)
            best[fits] = neighbour[fits]
            wrong &= ~fits
        return exact if wrong.any() else best


def _neighbours(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    found, up, down = [], values, values
    for _ in range(4):
        up, down = np.nextafter(up, np.float32(np.inf)), np.nextafter(down, np.float32(-np.inf))
        found += [up, down]
    return found


def steps_of(card: DatasetCard, form: FileFormat) -> dict[str, Step]:
    """The card's conversions with their factors of units."""
    ours = card.units
    defaults = JET_UNITS if card.domain == "jet" else {}
    return {name: _step(c, ours.get(name, defaults.get(name, c.unit or "1"))) for name, c in form.conversions.items()}


def _step(conversion: Conversion, unit: str) -> Step:
    factor = conversion.factor * (unit_factor(conversion.unit, unit) if conversion.unit else 1.0)
    return Step(conversion.missing, conversion.undo, factor, conversion.offset, conversion.sign_of, conversion.times)


def convert(card: DatasetCard, form: FileFormat, quantities: Quantities) -> dict[str, int]:
    """Bring quantities in the file's conventions into ours, in place; how often each had the file's value for "none".

    Raises DataError when a category is none of those that the card names.
    """
    missing: dict[str, int] = {}
    steps = steps_of(card, form)
    # Objects first: points may be relative to them.
    for of_points in (False, True):
        table = quantities.points if of_points else quantities.objects
        for name, step in steps.items():
            if name not in table:
                continue
            values = table[name]
            if step.missing is not None and (count := int((values == step.missing).sum())):
                missing[name] = count
            table[name] = step.forward(values, _of_object(quantities, of_points))
    for name, rule in form.categories.items():
        quantities.points[name] = _category(card, _feature(card, name), rule, quantities)
    return missing


def _of_object(quantities: Quantities, of_points: bool) -> Callable[[str], NDArray]:
    def get(name: str) -> NDArray:
        values = quantities.object(name)
        return values[quantities.owners] if of_points else values

    return get


def _feature(card: DatasetCard, name: str) -> Feature:
    found = next((f for f in card.features if f.name == name), None)
    if found is None or found.kind != "category":
        raise DataError(f"card '{card.name}': categories name '{name}', which is not a feature of kind category")
    return found


def _category(card: DatasetCard, feature: Feature, rule: OneHot | ByValue, quantities: Quantities) -> NDArray:
    index = {category: i for i, category in enumerate(feature.categories)}
    other = -1 if rule.other is None else index[rule.other]
    if isinstance(rule, OneHot):
        number = np.zeros(len(quantities.owners), np.uint8)
        which = np.zeros(len(quantities.owners), np.uint8)
        for category, q in rule.one_hot.items():
            flag = np.asarray(quantities.point(q)) != 0
            number += flag
            which += flag * np.uint8(index[category])
        bad = (number > 1) if rule.other is not None else (number != 1)
        if bad.any():
            raise DataError(
                f"{int(bad.sum())} points have {int(number[bad][0])} of the flags of '{feature.name}' set "
                f"({', '.join(rule.one_hot.values())}), where exactly one is expected"
            )
        return which.astype(np.float32) if other < 0 else np.where(number == 1, which, np.float32(other))
    values = np.asarray(quantities.point(rule.of))
    found = np.full(len(values), other, np.float32)
    known = np.zeros(len(values), bool)
    for number_of, category in rule.values.items():
        here = values == number_of
        found[here] = index[category]
        known |= here
    if other < 0 and not known.all():
        raise DataError(
            f"'{rule.of}' of {int((~known).sum())} points is none of the card's, {values[~known][0]} for example: "
            f"add it to the values of '{feature.name}', or give it an `other`"
        )
    return found


def labels_of(
    card: DatasetCard, label: Label | None, arrays: Mapping[str, NDArray], count: int, path: Path
) -> NDArray[np.int64]:
    """Index into the card's classes of each object, [count]; -1 where the files do not say.

    Raises DataError when a label is none of the card's classes.
    """
    index = {name: i for i, name in enumerate(card.classes)}
    if label is None:
        return np.full(count, -1, np.int64)
    if isinstance(label, LabelConstant):
        return np.full(count, index[label.constant], np.int64)
    if isinstance(label, LabelFile):
        name = next((c for pattern, c in label.file.items() if fnmatch(path.name, pattern)), None)
        if name is None:
            raise DataError(
                f"the class follows from the name of the file, and '{path.name}' is like none of "
                f"{', '.join(label.file)}"
            )
        return np.full(count, index[name], np.int64)
    if isinstance(label, LabelOneHot):
        flags = np.stack([np.asarray(arrays[key]) != 0 for key in label.one_hot.values()])
        bad = flags.sum(axis=0) != 1
        if bad.any():
            raise DataError(f"{int(bad.sum())} objects do not have exactly one of the flags {', '.join(arrays)} set")
        return np.array([index[name] for name in label.one_hot], np.int64)[flags.argmax(axis=0)]
    numbers = np.asarray(arrays[label.key])
    values = label.values or dict(enumerate(card.classes))
    out = np.full(count, -1, np.int64)
    for number, name in values.items():
        out[numbers == number] = index[name]
    if (out < 0).any():
        raise DataError(
            f"'{label.key}' is {numbers[out < 0][0]} in {int((out < 0).sum())} objects: no class of the card"
        )
    return out


def label_arrays(card: DatasetCard, label: Label | None, labels: NDArray[np.int64]) -> dict[str, NDArray]:
    """The file's arrays of labels, by key; the inverse of `labels_of`. Unknown labels (-1) cannot be written."""
    if isinstance(label, LabelOneHot | LabelNumber) and (labels < 0).any():
        raise DataError(f"{int((labels < 0).sum())} objects have no class, but files of '{card.name}' state it")
    if isinstance(label, LabelOneHot):
        return {key: labels == card.classes.index(name) for name, key in label.one_hot.items()}
    if isinstance(label, LabelNumber):
        values = label.values or dict(enumerate(card.classes))
        number = {name: n for n, name in reversed(values.items())}
        return {label.key: np.array([number.get(name, -1) for name in card.classes], np.int32)[labels]}
    return {}


def category_arrays(feature: Feature, rule: OneHot | ByValue, values: NDArray) -> dict[str, NDArray]:
    """Quantities of the file, by our name, that say a category; the inverse of the reading."""
    index = np.asarray(values).astype(np.int64)
    if isinstance(rule, OneHot):
        return {q: index == feature.categories.index(c) for c, q in rule.one_hot.items()}
    number: dict[str, int] = {}
    for n, category in rule.values.items():
        number.setdefault(category, n)
    return {rule.of: np.array([number.get(c, 0) for c in feature.categories], np.int32)[index]}
