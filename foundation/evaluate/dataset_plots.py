"""A first look at a dataset: histograms of features and objects per class, and pictures of a few objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.figures import SERIES, finish, new_figure, place, style
from foundation.evaluate.showers import cell_positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

CLASSES = 10
"""Classes drawn: the most frequent ones of datasets with more."""
COLUMNS = 3
TAIL = 0.0005
"""Share of values that a histogram leaves out on each side, and says so."""
DISPLAYS = 6
"""Single objects drawn."""
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Quantity:
    """Something to fill a histogram with: n values and the class of each, -1 where it is not known."""

    label: str
    values: NDArray[np.floating]
    labels: NDArray[np.int64]
    log: bool = False
    whole: bool = False
    """Integers: bins are centred on them."""
    names: tuple[str, ...] = ()
    """Names of the values of a category."""
    window: tuple[float, float] | None = None
    """The card's range."""


def plot_dataset(card: DatasetCard, clouds: PointClouds, folder: Path) -> list[Path]:
    """Draw `clouds` and write features.png, objects.png and displays.png to `folder`.

    Raises DataError when there are no objects to draw.
    """
    if not len(clouds) or not len(clouds.points):
        raise DataError(f"there is nothing to plot: {len(clouds)} objects with {len(clouds.points)} points")
    with style():
        drawn: dict[str, tuple[str, Figure | None]] = {
            "features": ("Features of the points, per class.", _histograms(card, feature_quantities(card, clouds))),
            "objects": ("Quantities of the objects, per class.", _histograms(card, object_quantities(card, clouds))),
            "displays": ("Single objects.", displays(card, clouds)),
        }
        for name, (caption, figure) in drawn.items():
            if figure is not None:
                finish(figure, name, caption, folder)
    return [folder / f"{name}.png" for name, (_, figure) in drawn.items() if figure is not None]


def feature_quantities(card: DatasetCard, clouds: PointClouds) -> list[Quantity]:
    """The features of the card, with the class of each point's object."""
    labels = clouds.labels[clouds.owners]
    return [
        Quantity(
            f.name if f.unit in ("1", "index") else f"{f.name} [{f.unit}]",
            clouds.feature(f.name), labels, f.log, f.kind == "integer", f.categories, f.range,
        )
        for f in card.features
        if f.name in clouds.features
    ]  # fmt: skip


def object_quantities(card: DatasetCard, clouds: PointClouds) -> list[Quantity]:
    """Points per object, the sum of their pT or energy, and every condition and attribute."""
    what = "constituents" if card.domain == "jet" else "hits"
    found = [Quantity(what, clouds.counts.astype(np.float64), clouds.labels, whole=True)]
    for name in ("pt", "energy"):
        if name in clouds.features:
            unit = clouds.units[clouds.features.index(name)]
            sums = np.bincount(clouds.owners, clouds.feature(name).astype(np.float64), len(clouds)).astype(np.float64)
            found.append(Quantity(f"sum of {name} [{unit}]", sums, clouds.labels, log=card.domain == "shower"))
            break
    logarithmic = {c.name for c in card.conditions if c.scale == "log"}
    windows = {c.name: c.range for c in card.conditions}
    for name, unit in zip(clouds.condition_names, clouds.condition_units, strict=True):
        label = name if unit == "1" else f"{name} [{unit}]"
        log = name in logarithmic
        found.append(Quantity(label, clouds.condition(name), clouds.labels, log, window=windows.get(name)))
    return found


def classes_drawn(card: DatasetCard, labels: NDArray[np.int64]) -> dict[int, str]:
    """Label and name of the classes that are there, the most frequent CLASSES of them, in the order of the labels."""
    present, counts = np.unique(labels, return_counts=True)
    kept = np.sort(present[np.argsort(-counts, kind="stable")][:CLASSES])
    return {int(k): card.classes[k] if 0 <= k < len(card.classes) else "no label" for k in kept}


def _histograms(card: DatasetCard, quantities: list[Quantity]) -> Figure | None:
    if not quantities:
        return None
    rows = -(-len(quantities) // COLUMNS)
    classes = classes_drawn(card, quantities[0].labels)
    across = min(len(quantities), COLUMNS)
    figure = new_figure(4.1 * across, 3.4 * rows + (0.7 if len(classes) > 1 else 0.0))
    for number, quantity in enumerate(quantities):
        down, column = divmod(number, COLUMNS)
        axes = place(figure, 4.1 * column + 0.75, 3.4 * (rows - 1 - down) + 0.6, 3.15, 2.5)
        _draw(axes, quantity, classes)
    if len(classes) > 1:
        figure.legend(*_lines(classes), loc="upper center", ncols=min(len(classes), 2 * across), fontsize=9)
    return figure


def _lines(classes: Mapping[int, str]) -> tuple[list[Line2D], list[str]]:
    """A line in the style of each class, and its name."""
    from matplotlib.lines import Line2D

    styles = (_line_style(k) for k in range(len(classes)))
    return [Line2D([], [], color=colour, ls=line) for colour, line in styles], list(classes.values())


def _line_style(k: int) -> tuple[str, str]:
    """Colour and dashes of the k-th class."""
    return SERIES[k % len(SERIES)], LINES[k // len(SERIES) % len(LINES)]


def _draw(axes: Axes, quantity: Quantity, classes: Mapping[int, str]) -> None:
    values = quantity.values.astype(np.float64)
    usable = np.isfinite(values) & ((values > 0) | (not quantity.log))
    axes.set_xlabel(quantity.label)
    if not usable.any():
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center")
        return
    edges = bin_edges(quantity, values[usable])
    drawn = False
    for k, label in enumerate(classes):
        mine = values[usable & (quantity.labels == label)]
        if len(mine):
            share = np.histogram(mine, edges)[0] / len(mine)
            drawn |= bool(share.any())
            colour, line = _line_style(k)
            axes.stairs(share, edges, color=colour, ls=line)
    outside = float(((values < edges[0]) | (values > edges[-1]) | ~usable).mean())
    if outside > 0:
        axes.text(0.97, 0.97, f"{outside:.2%} not drawn", transform=axes.transAxes, ha="right", va="top", fontsize=8)
    for limit in quantity.window or ():
        if edges[0] < limit < edges[-1]:
            axes.axvline(limit, color="0.5", lw=0.8, ls=":")
    if quantity.names:
        axes.set_xticks(range(len(quantity.names)), quantity.names, rotation=20, ha="right", fontsize=7)
    axes.minorticks_off()
    axes.set(ylabel="share per bin", xlim=(edges[0], edges[-1]))
    if quantity.names:
        axes.set_ylim(0)
    elif drawn:
        axes.set_yscale("log")
    if quantity.log:
        axes.set_xscale("log")


def bin_edges(quantity: Quantity, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of about 60 bins from the TAIL quantile to that of 1 - TAIL; logarithmic, or centred on whole numbers."""
    if quantity.names:
        return np.arange(len(quantity.names) + 1, dtype=np.float64) - 0.5
    low, high = (float(v) for v in np.quantile(values, [TAIL, 1 - TAIL]))
    if quantity.whole:
        step = max(1, int(np.ceil((high - low + 1) / 60)))
        return np.asarray(np.arange(np.floor(low), np.ceil(high) + step + 1, step) - 0.5, np.float64)
    if low == high:
        low, high = (low / 2, high * 2) if quantity.log else (low - 0.5, high + 0.5)
    edges = np.geomspace(low, high, 61) if quantity.log else np.linspace(low, high, 61)
    return np.asarray(edges, np.float64)


def displays(card: DatasetCard, clouds: PointClouds) -> Figure | None:
    """A few objects, of each class in turn: jets in eta and phi, showers in space. None where positions are missing."""
    chosen = _chosen(clouds)
    if card.domain == "jet":
        return _jets(card, clouds, chosen)
    positions = hit_positions(card, clouds)
    return None if positions is None else _showers(card, clouds, chosen, positions)


def _chosen(clouds: PointClouds) -> NDArray[np.int64]:
    """The first objects with points, of the classes in turn."""
    filled = np.flatnonzero(clouds.counts > 0)
    turn = np.zeros(len(filled), np.int64)
    for label in np.unique(clouds.labels[filled]):
        mine = clouds.labels[filled] == label
        turn[mine] = np.arange(int(mine.sum()))
    return np.sort(filled[np.argsort(turn, kind="stable")][:DISPLAYS])


def _title(card: DatasetCard, clouds: PointClouds, index: int) -> str:
    label = int(clouds.labels[index])
    name = f"{card.classes[label]}, " if 0 <= label < len(card.classes) else ""
    energy = ""
    if "incident_energy" in clouds.condition_names:
        unit = clouds.condition_units[clouds.condition_names.index("incident_energy")]
        energy = f"{clouds.condition('incident_energy')[index]:.4g} {unit}, "
    return f"{name}{energy}{clouds.counts[index]} {'constituents' if card.domain == 'jet' else 'hits'}"


def _jets(card: DatasetCard, clouds: PointClouds, chosen: NDArray[np.int64]) -> Figure | None:
    across = next(
        (pair for pair in (("eta_rel", "phi_rel"), ("eta", "phi")) if set(pair) <= set(clouds.features)), None
    )
    weight = next((name for name in ("pt", "pt_rel", "energy") if name in clouds.features), None)
    if across is None or weight is None:
        return None
    rows = -(-len(chosen) // COLUMNS)
    figure = new_figure(3.4 * COLUMNS, 3.4 * rows)
    for number, index in enumerate(chosen):
        down, column = divmod(number, COLUMNS)
        axes = place(figure, 3.4 * column + 0.65, 3.4 * (rows - 1 - down) + 0.55, 2.6, 2.5)
        jet = clouds.select(np.array([index]))
        share = jet.feature(weight) / max(float(jet.feature(weight).max()), 1e-30)
        axes.scatter(
            jet.feature(across[0]), jet.feature(across[1]), s=4 + 400 * share, alpha=0.5, color=SERIES[0], lw=0
        )
        if across[0] == "eta_rel":
            reach = max(0.8, float(np.nanmax(np.abs([jet.feature(name) for name in across]))) * 1.05)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
        axes.set(xlabel=across[0], ylabel=across[1])
        axes.set_title(_title(card, clouds, int(index)), loc="left", fontsize=9)
    return figure


def hit_positions(card: DatasetCard, clouds: PointClouds) -> dict[str, NDArray] | None:
    """Coordinates of the hits to draw, the depth first; None where the features give none."""
    names = set(clouds.features)
    if card.geometry is not None and set(card.geometry.axes) <= names:
        x, y = cell_positions(clouds, card.geometry)
        return {"layer": clouds.feature("layer"), "x [mm]": x, "y [mm]": y}
    for axes in (("layer", "x", "y"), ("z", "x", "y")):
        if set(axes) <= names:
            return {name: clouds.feature(name) for name in axes}
    return None


def _showers(
    card: DatasetCard, clouds: PointClouds, chosen: NDArray[np.int64], positions: Mapping[str, NDArray]
) -> Figure:
    from matplotlib.colors import LogNorm

    rows = -(-len(chosen) // COLUMNS)
    figure = new_figure(3.4 * COLUMNS + 1.0, 3.2 * rows)
    drawn = np.concatenate([np.arange(clouds.offsets[i], clouds.offsets[i + 1]) for i in chosen])
    energy = clouds.feature("energy") if "energy" in clouds.features else np.ones(len(clouds.points), np.float32)
    brightest = max(float(np.nanmax(energy[drawn])), 1e-30)
    norm = LogNorm(brightest * 1e-4, brightest)
    for number, index in enumerate(chosen):
        down, column = divmod(number, COLUMNS)
        axes = place(figure, 3.4 * column, 3.2 * (rows - 1 - down), 3.3, 2.9, projection="3d")
        hits = slice(clouds.offsets[index], clouds.offsets[index + 1])
        colour = np.maximum(energy[hits], brightest * 1e-4)
        x, y, z = (values[hits] for values in positions.values())
        marks = axes.scatter(
            x, y, z, c=colour, s=3 + 4 * np.log10(colour / (brightest * 1e-4)), norm=norm, cmap="plasma",
            depthshade=False, lw=0,
        )  # fmt: skip
        for axis, name in zip((axes.set_xlabel, axes.set_ylabel, axes.set_zlabel), positions, strict=True):
            axis(name, fontsize=8, labelpad=-5)
        axes.set_box_aspect((1.6, 1, 1))
        axes.tick_params(labelsize=6, pad=-2)
        axes.minorticks_off()
        axes.grid(False)
        axes.set_title(_title(card, clouds, int(index)), fontsize=9)
    if "energy" in clouds.features:
        unit = clouds.units[clouds.features.index("energy")]
        bar = place(figure, 3.4 * COLUMNS + 0.1, 0.6, 0.15, 3.2 * rows - 1.2)
        figure.colorbar(marks, cax=bar, label=f"hit energy [{unit}]")
    return figure
