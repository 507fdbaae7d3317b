"""A card's `format` in words: which key of the file a quantity comes from, and what is done to its numbers."""

from __future__ import annotations

from foundation.data.card_format import (
    ByValue,
    Conversion,
    FileFormat,
    LabelConstant,
    LabelFile,
    LabelNumber,
    LabelOneHot,
    LinkedPoints,
    OneHot,
    PaddedPoints,
    PointRows,
    RaggedPoints,
    VoxelImages,
)
from foundation.data.cards import DatasetCard
from foundation.data.formats.quantities import OBJECT_RULES, POINT_RULES, SUMS

UNDONE = {"log": "natural logarithm", "log1p": "log(1 + x)", "tanh": "tanh"}


def point_sources(card: DatasetCard) -> dict[str, str]:
    """Quantity of a point -> where it is in the file, in words, for everything the format reads."""
    assert card.format is not None
    points = card.format.points
    match points:
        case RaggedPoints():
            return {name: f"`{key}`" for name, key in points.keys.items()}
        case LinkedPoints():
            keys = {**points.keys, **points.link_keys}
            return {name: f"`{key}`" for name, key in keys.items()}
        case PaddedPoints() if points.key is None:
            return {name: f"`{key}`" for name, key in points.keys.items() if not _is_mask(points, name)}
        case PaddedPoints() | PointRows():
            named = enumerate(points.columns)
            kept = ((i, name) for i, name in named if name and not _is_mask(points, name))
            return {name: f"`{points.key}`, column {i}" for i, name in kept}
        case VoxelImages():
            axes = card.geometry.axes if card.geometry is not None else points.axes
            found = {name: f"place of the voxel in `{points.key}`" for name in axes}
            return {**found, points.value: f"value of the voxel in `{points.key}`"}


def _is_mask(points: PaddedPoints | PointRows, name: str) -> bool:
    return isinstance(points, PaddedPoints) and points.keep_mask and name == points.real


def feature_source(card: DatasetCard, name: str, unit: str) -> str:
    """Where a feature of the card comes from, with the conversions of its numbers."""
    assert card.format is not None
    category = card.format.categories.get(name)
    if category is not None:
        return _category(card, category)
    sources = point_sources(card)
    if name in sources:
        return "; ".join([sources[name], *conversion_words(card.format.conversions.get(name), unit)])
    return _computed(card, name)


def object_source(card: DatasetCard, name: str, unit: str) -> str:
    """Where a quantity of the object comes from, with the conversions of its numbers."""
    assert card.format is not None
    words = conversion_words(card.format.conversions.get(name), unit)
    if name in card.format.objects:
        return "; ".join([f"`{card.format.objects[name]}`", *words])
    if name in card.format.constants:
        return f"{card.format.constants[name]:g} for all objects"
    if f"{{{name}}}" in (card.format.from_file_name or ""):
        return "; ".join([f"name of the file, `{card.format.from_file_name}`", *words])
    points = card.format.points
    if isinstance(points, VoxelImages) and f"{{{name}}}" in points.key:
        return "; ".join([f"name of the array, `{points.key}`", *words])
    return _computed(card, name)


def _computed(card: DatasetCard, name: str) -> str:
    """What a quantity that is not in the file follows from: of the first rule that can be used."""
    inputs = _inputs(card, name, frozenset())
    if inputs is None:
        return "computed from the quantities of the file"
    own = [need.replace("sum_", "sum of ") for need in inputs if not need.startswith("@")]
    of_jet = [f"{need[1:].removeprefix('jet_')} of the jet" for need in inputs if need.startswith("@")]
    return f"computed from {', '.join([*own, *of_jet])}"


def _inputs(card: DatasetCard, name: str, pending: frozenset[str]) -> tuple[str, ...] | None:
    """Inputs of the first rule for `name` whose inputs the file gives, directly or by other rules."""
    if name == "jet_n_constituents":
        return ("the number of constituents",)
    for needs, _ in [*POINT_RULES.get(name, []), *OBJECT_RULES.get(name, [])]:
        plain = [SUMS.get(need, need.lstrip("@")) for need in needs]
        if all(_is_there(card, need, pending | {name}) for need in plain):
            return needs
    return None


def _is_there(card: DatasetCard, name: str, pending: frozenset[str]) -> bool:
    assert card.format is not None
    if name in pending:
        return False
    if name in point_sources(card) or name in card.format.objects or name in card.format.constants:
        return True
    return _inputs(card, name, pending) is not None


def conversion_words(conversion: Conversion | None, unit: str | None) -> list[str]:
    """The steps of a conversion, in the order in which they are taken; `unit` is the card's own, None if unknown."""
    if conversion is None:
        return []
    words = []
    if conversion.missing is not None:
        words.append(f"{conversion.missing:g} means none and becomes 0")
    if conversion.undo is not None:
        words.append(f"{UNDONE[conversion.undo]} in the file, undone")
    if conversion.unit is not None and conversion.unit != unit:
        words.append(f"in {conversion.unit}" if unit is None else f"{conversion.unit} to {unit}")
    if conversion.factor != 1:
        words.append(f"times {conversion.factor:.10g}")
    if conversion.offset:
        words.append(f"plus {conversion.offset:.10g}")
    if conversion.sign_of is not None:
        words.append(f"times the sign of {conversion.sign_of}")
    if conversion.times is not None:
        words.append(f"times {conversion.times}")
    return words


def _category(card: DatasetCard, category: OneHot | ByValue) -> str:
    sources = point_sources(card)
    other = [] if category.other is None else [f"else {category.other}"]
    if isinstance(category, OneHot):
        flags = [f"{name} where {sources.get(flag, flag)}" for name, flag in category.one_hot.items()]
        return "; ".join([*flags, *other])
    numbers: dict[str, list[str]] = {}
    for number, name in category.values.items():
        numbers.setdefault(name, []).append(str(number))
    named = [f"{', '.join(found)}: {name}" for name, found in numbers.items()]
    return "; ".join([f"{sources.get(category.of, category.of)}", *named, *other])


def label_words(format: FileFormat) -> dict[str, str]:
    """Class -> how the file says it; under "" the key whose number is the label. Empty without labels."""
    match format.label:
        case LabelOneHot(one_hot=flags):
            return {name: f"`{key}` is set" for name, key in flags.items()}
        case LabelNumber(key=key, values={}):
            return {"": f"`{key}`"}
        case LabelNumber(key=key, values=values):
            return {name: f"`{key}` is {number}" for number, name in values.items()}
        case LabelFile(file=patterns):
            named = {name: [p for p, n in patterns.items() if n == name] for name in patterns.values()}
            return {name: "file name " + " or ".join(f"`{p}`" for p in found) for name, found in named.items()}
        case LabelConstant(constant=name):
            return {name: "all objects"}
    return {}


def layout_words(format: FileFormat) -> str:
    """Container and layout in one sentence."""
    container = {"root": "ROOT", "parquet": "Parquet", "hdf5": "HDF5", "npz": "npz", "showerdata": "showerdata"}
    tree = f", tree `{format.tree}`" if format.tree else ""
    points = format.points
    match points:
        case RaggedPoints():
            how = "one vector per object and quantity"
        case LinkedPoints():
            how = f"objects name the particles of their event by `{points.object_index}` and `{points.point_index}`"
        case PaddedPoints():
            places = f"{points.places} places" if points.places else "a fixed number of places"
            real = f"`{points.real}` is not zero" if points.real else f"their number is `{points.count}`"
            how = f"padded to {places} per object; places with a point: {real}"
        case VoxelImages():
            axes = f", axes {', '.join(points.axes)} (the last is the fastest)" if points.axes else ""
            how = f"images of all voxels{axes}; voxels that are not empty become hits"
        case PointRows():
            how = "one vector per object that holds its points one after the other"
    return f"{container[format.container]}{tree}: {how}."
