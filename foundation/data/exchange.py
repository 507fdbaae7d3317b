"""Point clouds as the arrays of other packages, and back: awkward, NumPy, torch, pandas.

What they are called here: object-level quantities keep their names, `label` is the class, `points` are the points of an
object, and `object` is the number of the object that a row of a table belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import ragged_arange, to_offsets
from foundation.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

POINTS, LABEL, OBJECT = "points", "label", "object"
ABOUT = "point_clouds"
"""Parameter of an awkward array that keeps what its records cannot say: units, conventions, the tag."""


def to_awkward(clouds: PointClouds) -> Any:
    """An awkward array of B records: `points`, a list of records with a field per feature; `label`; and a field per
    object-level quantity. Nothing is copied but the columns. Units and tag travel along as its parameters.
    """
    ak = _package("awkward")
    _require_free(clouds, (POINTS, LABEL))
    columns = [ak.contents.NumpyArray(np.ascontiguousarray(column)) for column in clouds.points.T]
    records = ak.contents.RecordArray(columns, list(clouds.features), length=len(clouds.points))
    points = ak.contents.ListOffsetArray(ak.index.Index64(clouds.offsets), records)
    of_objects = [ak.contents.NumpyArray(np.ascontiguousarray(c)) for c in (clouds.labels, *clouds.conditions.T)]
    about = {
        "tag": clouds.tag,
        "units": dict(zip(clouds.features, clouds.units, strict=True))
        | dict(zip(clouds.condition_names, clouds.condition_units, strict=True)),
        "conventions": dict(zip(clouds.features, clouds.conventions, strict=False)),
    }
    return ak.Array(
        ak.contents.RecordArray(
            [points, *of_objects],
            [POINTS, LABEL, *clouds.condition_names],
            length=len(clouds),
            parameters={ABOUT: about},
        )
    )


def from_awkward(array: Any, units: Mapping[str, str], tag: str) -> PointClouds:
    """Point clouds of an awkward array of records like those of `to_awkward`; a `label` may be missing (then -1).

    units: of features and object-level quantities, by name, where the array does not carry them itself; "1" for those
    that are in neither. Raises DataError where there is no `points` with named numbers inside.
    """
    ak = _package("awkward")
    if POINTS not in (names := list(ak.fields(array))) or not ak.fields(array[POINTS]):
        raise DataError(
            f"the awkward array has no field '{POINTS}' with a record of features per point (it has: "
            f"{', '.join(names) or 'no fields'}): give records like {{'points': [{{'pt': 3.0, ...}}], 'label': 0}}"
        )
    points, features = array[POINTS], tuple(ak.fields(array[POINTS]))
    others = tuple(name for name in names if name not in (POINTS, LABEL))
    carried = array.layout.purelist_parameter(ABOUT) or {"tag": "", "units": {}, "conventions": {}}
    unknown = [name for name in units if name not in (*features, *others)]
    if unknown:
        raise DataError(f"the awkward array has no field '{unknown[0]}'{did_you_mean(unknown[0], features + others)}")
    unit_of = carried["units"] | dict(units)
    conventions = tuple(carried["conventions"].get(name, "") for name in features) if carried["conventions"] else ()
    counts = np.asarray(ak.num(points, axis=1), np.int64)
    flat = ak.flatten(points, axis=1)
    return PointClouds(
        points=_columns([_numbers(ak, flat[name], name) for name in features], int(counts.sum())),
        offsets=to_offsets(counts),
        features=features,
        units=tuple(unit_of.get(name, "1") for name in features),
        labels=_numbers(ak, array[LABEL], LABEL).astype(np.int64) if LABEL in names else np.full(len(counts), -1),
        conditions=_columns([_numbers(ak, array[name], name) for name in others], len(counts)),
        condition_names=others,
        condition_units=tuple(unit_of.get(name, "1") for name in others),
        tag=tag or carried["tag"],
        conventions=conventions,
    )


def to_numpy(clouds: PointClouds, padded: bool, length: int | None) -> tuple[NDArray[np.float32], NDArray]:
    """Points [B, L, F], zero where an object has no more, and a mask bool [B, L], True for real points.

    Not padded: the points [N, F] and offsets int64 [B + 1], which are no copies. L is the most points of an object, or
    `length`; raises DataError where an object has more than that.
    """
    if not padded:
        return clouds.points, clouds.offsets
    longest = int(clouds.counts.max(initial=0))
    if length is not None and longest > length:
        raise DataError(f"an object has {longest} points, more than the length of {length}: give a larger length")
    array = np.zeros((len(clouds), longest if length is None else length, len(clouds.features)), np.float32)
    mask = np.arange(array.shape[1]) < clouds.counts[:, None]
    array[mask] = clouds.points
    return array, mask


def to_torch(clouds: PointClouds, padded: bool, length: int | None) -> tuple[Tensor, Tensor]:
    """The same as tensors on the CPU; where not padded, they share the memory of the clouds."""
    torch = _package("torch")
    first, second = to_numpy(clouds, padded, length)
    return torch.from_numpy(first), torch.from_numpy(second)


def to_pandas(clouds: PointClouds, per: Literal["point", "object"]) -> Any:
    """A DataFrame. Per point: `object`, `point` (its place in the object), a column per feature.

    Per object: `label`, `points` (how many), a column per object-level quantity; its index is the number of the object.
    """
    pd = _package("pandas")
    if per not in ("point", "object"):
        raise DataError(f"a table has a row per 'point' or per 'object', not per '{per}'")
    if per == "point":
        _require_free(clouds, (OBJECT, "point"))
        columns = {OBJECT: clouds.owners, "point": ragged_arange(clouds.counts)}
        return pd.DataFrame(columns | dict(zip(clouds.features, clouds.points.T, strict=True)))
    _require_free(clouds, (POINTS, LABEL))
    columns = {LABEL: clouds.labels, POINTS: clouds.counts}
    columns |= dict(zip(clouds.condition_names, clouds.conditions.T, strict=True))
    return pd.DataFrame(columns, index=pd.RangeIndex(len(clouds), name=OBJECT))


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise DataError(f"this needs the package {name}, which is not installed: pip install {name}") from None


def _require_free(clouds: PointClouds, taken: Sequence[str]) -> None:
    """Names with a meaning here must not be those of features or quantities."""
    for name in (*clouds.features, *clouds.condition_names):
        if name in taken:
            raise DataError(f"'{name}' has a meaning of its own in such an array: rename the column with this name")


def _numbers(ak: Any, array: Any, name: str) -> NDArray:
    try:
        numbers = np.asarray(ak.to_numpy(array, allow_missing=False))
    except ValueError:
        numbers = np.zeros(0, object)
    if numbers.ndim != 1 or numbers.dtype.kind not in "biuf":
        raise DataError(f"field '{name}' of the awkward array is not one number each: leave it out, or fill it")
    return numbers


def _columns(columns: list[NDArray], rows: int) -> NDArray[np.float32]:
    """Columns side by side, float32 [rows, C]."""
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((rows, 0), np.float32)
