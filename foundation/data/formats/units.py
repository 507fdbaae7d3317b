"""Units of files and cards, and the factor between two of the same dimension."""

from __future__ import annotations

from foundation.errors import DataError, did_you_mean

# Unit -> dimension, and its size in the dimension's base.
UNITS: dict[str, tuple[str, float]] = {
    "eV": ("energy", 1e-9),
    "keV": ("energy", 1e-6),
    "MeV": ("energy", 1e-3),
    "GeV": ("energy", 1.0),
    "TeV": ("energy", 1e3),
    "um": ("length", 1e-3),
    "mm": ("length", 1.0),
    "cm": ("length", 10.0),
    "m": ("length", 1000.0),
    "ns": ("time", 1.0),
    "ps": ("time", 1e-3),
    "rad": ("angle", 1.0),
    "mrad": ("angle", 1e-3),
    "deg": ("angle", 0.017453292519943295),
    "1": ("none", 1.0),
    "index": ("index", 1.0),
}


def unit_factor(from_unit: str, to_unit: str) -> float:
    """What a number in `from_unit` is multiplied with to be in `to_unit`.

    Raises DataError for an unknown unit, or units of different dimensions.
    """
    if from_unit == to_unit:
        return 1.0
    for unit in (from_unit, to_unit):
        if unit not in UNITS:
            raise DataError(f"unknown unit '{unit}'{did_you_mean(unit, UNITS)}")
    (dimension, size), (other, other_size) = UNITS[from_unit], UNITS[to_unit]
    if dimension != other:
        raise DataError(f"'{from_unit}' is a unit of {dimension}, '{to_unit}' of {other}: neither becomes the other")
    # Powers of ten are exact as quotients only when divided the right way round: 1/1000 is not a binary number.
    return size / other_size if size >= other_size else 1.0 / (other_size / size)
