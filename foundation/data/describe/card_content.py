"""What there is to say about a dataset card, as headings, text, lists, tables and commands; no layout yet."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.data.card_format import Download, Files
from foundation.data.cards import DatasetCard, Feature, GFlashShowers, PythiaJets
from foundation.data.describe.format_words import (
    conversion_words,
    feature_source,
    label_words,
    layout_words,
    object_source,
    point_sources,
)
from foundation.data.geometry import CartesianGeometry, CylindricalGeometry, RingLayers, n_voxels

LISTED_FILES = 24
"""Files to download that are named one by one; of longer lists the first few are, and the number of the others."""

LISTED_CLASSES = 40
"""More classes than that are named in a paragraph and not in a table."""


@dataclass(frozen=True)
class Items:
    """A bullet list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Commands:
    """Lines to type."""

    lines: tuple[str, ...]


Block = str | Items | Table | Commands


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


def chapters(card: DatasetCard) -> tuple[Chapter, ...]:
    """All that a card says, in the order of a page; chapters without content are left out."""
    parts = (
        Chapter("Provenance", _provenance(card)),
        Chapter("Files", _files(card)),
        Chapter("Points", _points(card)),
        Chapter("Objects", _objects(card)),
        Chapter("Geometry", () if card.geometry is None else _geometry(card.geometry)),
        Chapter("Simulation", _simulation(card)),
        Chapter("Traps", (Items(card.traps),) if card.traps else ()),
        Chapter("Commands", (Commands(_commands(card)),)),
    )
    return tuple(part for part in parts if part.blocks)


def _provenance(card: DatasetCard) -> tuple[Block, ...]:
    doi = [f"data: https://doi.org/{card.doi}"] if card.doi else []
    return (Items((*(f"cite: {text}" for text in card.citation), *doi, f"licence: {card.licence}")),)


def _files(card: DatasetCard) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if card.format is not None:
        blocks.append(layout_words(card.format))
    if card.files is None:
        return tuple(blocks)
    files = card.files
    blocks.append(f"File names: `{files.pattern}`.")
    if files.splits:
        blocks.append(Table(("split", "files"), tuple((name, f"`{glob}`") for name, glob in files.splits.items())))
    if files.random_split is not None:
        shares = ", ".join(f"{name} {share:.4g}" for name, share in files.random_split.shares.items())
        blocks.append(
            f"The files are not split; objects are dealt out at random (seed {files.random_split.seed}): {shares}."
        )
    return (*blocks, *_download(files))


def _download(files: Files) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if files.manual:
        blocks.append(f"To be fetched by hand: {files.manual.strip()}")
    if files.download:
        shown = files.download[: LISTED_FILES if len(files.download) <= LISTED_FILES else LISTED_FILES // 4]
        rows = tuple(
            (f"`{d.name}`", _size(d), f"`{d.checksum}`" if d.checksum else "asked of the archive") for d in shown
        )
        blocks.append(Table(("to download", "size", "checksum"), rows))
        if len(shown) < len(files.download):
            blocks.append(f"and {len(files.download) - len(shown)} more files.")
    return tuple(blocks)


def _size(download: Download) -> str:
    if download.bytes is None:
        return ""
    return f"{download.bytes / 1e9:.2f} GB" if download.bytes >= 1e9 else f"{download.bytes / 1e6:.1f} MB"


def _points(card: DatasetCard) -> tuple[Block, ...]:
    header = ["feature", "unit", "range", "meaning", "tokenizer sees"]
    if card.format is not None:
        header.insert(4, "in the file")
    rows = []
    for feature in card.features:
        row = [feature.name, feature.unit, _range(feature), feature.description, transform_words(feature)]
        if card.format is not None:
            row.insert(4, feature_source(card, feature.name, feature.unit))
        rows.append(tuple(row))
    blocks: list[Block] = [Table(tuple(header), tuple(rows))]
    if card.order:
        named = [f"{key.lstrip('-')} ({'falling' if key.startswith('-') else 'rising'})" for key in card.order]
        blocks.append(f"Order of the points: {', then '.join(named)}.")
    others = _other_quantities(card)
    if others:
        blocks += ["Also read from the file, for what is computed:", Table(("quantity", "in the file"), others)]
    return tuple(blocks)


def _other_quantities(card: DatasetCard) -> tuple[tuple[str, ...], ...]:
    """Quantities of points that are read but are not features as they stand."""
    if card.format is None:
        return ()
    categories = card.format.categories
    rows = []
    for name, source in point_sources(card).items():
        if name not in card.feature_names or name in categories:
            words = conversion_words(card.format.conversions.get(name), None)
            rows.append((name, "; ".join([source, *words])))
    return tuple(rows)


def _range(feature: Feature) -> str:
    if feature.kind == "category":
        return ", ".join(feature.categories)
    return "" if feature.range is None else f"{feature.range[0]:g} to {feature.range[1]:g}"


def transform_words(feature: Feature) -> str:
    """The transform of a feature as a formula of x."""
    if feature.kind != "continuous":
        return "one code per " + ("category" if feature.kind == "category" else "number")
    formula = "log(x)" if feature.log else "x"
    if feature.shift:
        formula = f"{formula} {'-' if feature.shift > 0 else '+'} {abs(feature.shift):g}"
    if feature.scale == 1:
        return formula
    return f"({formula}) * {feature.scale:g}" if feature.shift else f"{formula} * {feature.scale:g}"


def _objects(card: DatasetCard) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if card.classes:
        blocks.append(_classes(card))
    read = card.format is not None
    if card.conditions:
        rows = []
        for c in card.conditions:
            bins = f"{c.bins} {'logarithmic' if c.scale == 'log' else 'equal'}"
            source = (object_source(card, c.name, c.unit),) if read else ()
            rows.append((c.name, c.unit, f"{c.range[0]:g} to {c.range[1]:g}", bins, *source))
        header = ("condition", "unit", "range", "bins", *(("in the file",) if read else ()))
        blocks.append(Table(header, tuple(rows)))
    if card.attributes:
        rows = []
        for a in card.attributes:
            source = (object_source(card, a.name, a.unit),) if read else ()
            rows.append((a.name, a.unit, a.description, *source))
        header = ("attribute", "unit", "meaning", *(("in the file",) if read else ()))
        blocks.append(Table(header, tuple(rows)))
    if card.selection:
        windows = [f"{name} from {low:g} to {high:g}" for name, (low, high) in card.selection.items()]
        blocks.append(f"Objects outside of {', '.join(windows)} are left out, counted and reported.")
    if card.format is not None and card.domain == "jet":
        axis = "the file's own jet" if card.format.axis == "file" else "the sum of the constituents"
        blocks.append(f"What is relative to the jet is relative to {axis}.")
    return tuple(blocks)


def _classes(card: DatasetCard) -> Block:
    if len(card.classes) > LISTED_CLASSES:
        named = ", ".join(f"{number} {name}" for number, name in enumerate(card.classes))
        key = label_words(card.format).get("") if card.format is not None else None
        return f"{len(card.classes)} classes{f' by the number {key}' if key else ''}: {named}."
    how = {} if card.format is None else label_words(card.format)
    header = ("label", "class") + (("in the file",) if how else ())
    rows = []
    for number, name in enumerate(card.classes):
        said = how.get(name, f"{how['']} is {number}" if "" in how else "")
        source = (said,) if how else ()
        rows.append((str(number), name, *source))
    return Table(header, tuple(rows))


def _geometry(geometry: CartesianGeometry | CylindricalGeometry) -> tuple[Block, ...]:
    total = f"{geometry.n_layers} layers, {n_voxels(geometry)} voxels in all"
    if isinstance(geometry, CartesianGeometry):
        cells = f"{geometry.cells} x {geometry.cells} cells of {geometry.cell_mm:g} mm in each layer"
        return (f"Cartesian: {total}; {cells}.",)
    rows, first = [], 0
    for group in geometry.layers:
        last = first + group.repeat - 1
        layers = str(first) if first == last else f"{first} to {last}"
        rows.append((layers, *_rings(group)))
        first = last + 1
    header = ("layer", "number in the experiment", "sectors", "rings", "edges of the rings [mm]")
    return (
        f"Cylindrical: {total}; voxels are numbered layer, alpha, r with r the fastest.",
        Table(header, tuple(rows)),
    )


def _rings(group: RingLayers) -> tuple[str, str, str, str]:
    edges = ", ".join(f"{edge:g}" for edge in group.r_edges_mm)
    number = "" if group.id is None else str(group.id)
    return number, str(group.alpha_bins), str(len(group.r_edges_mm) - 1), edges


def _simulation(card: DatasetCard) -> tuple[Block, ...]:
    simulator = card.simulator
    if isinstance(simulator, PythiaJets):
        low, high = simulator.pt_gev
        jets = f"anti-kT R={simulator.radius:g}, {low:g} < pT < {high:g} GeV, |eta| < {simulator.eta_max:g}"
        detector = "with a parametrised detector" if simulator.detector else "without a detector"
        return (f"Made by a recipe's stage `simulate`: Pythia 8, {jets}, {detector}.",)
    if isinstance(simulator, GFlashShowers):
        low, high = simulator.energy_gev
        return (f"Made by a recipe's stage `simulate`: GFlash, {simulator.particle}s of {low:g} to {high:g} GeV.",)
    if simulator is not None:
        return (f"Made by a recipe's stage `simulate`: {simulator.kind}.",)
    return ()


def _commands(card: DatasetCard) -> tuple[str, ...]:
    if card.format is None:
        return ("foundation run RECIPE.yaml   # with a stage {kind: simulate, dataset: " + card.name + "}",)
    folder = f"data/{card.name}"
    lines = [f"foundation data download {card.name} --to {folder}"] if card.files and card.files.download else []
    source = folder if card.files is not None else "FILES"
    return (
        *lines,
        f"foundation data check {card.name} {source}",
        f"foundation data plot {card.name} {source} --to plots",
        f"foundation data import {card.name} {source} --to imported/{card.name}",
    )
