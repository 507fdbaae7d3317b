"""Pictures of objects: jet images with their differences, single jets, and showers in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Geometry
from foundation.data.geometry import CartesianGeometry
from foundation.data.point_clouds import PointClouds
from foundation.evaluate.comparison import Comparison, Group
from foundation.evaluate.figures import Picture, finish, new_figure, place, style
from foundation.evaluate.metrics import Floats
from foundation.evaluate.showers import cell_positions, positions_in_mm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

IMAGE_EDGES = np.linspace(-1.0, 1.0, 41)
"""Pixels of 0.05 x 0.05 in eta_rel and phi_rel."""
TRUTH_SIDE = "truth"
PANEL = "events"


@dataclass(frozen=True)
class Match:
    """A truth object and the most similar generated one of every model, as indices of the datasets."""

    name: str
    truth: int
    generated: Mapping[str, int]

    def of(self, side: str) -> int:
        """Index of the object of `truth` or of a model."""
        return self.generated[side] if side in self.generated else self.truth


def matched_showers(models: Mapping[str, Comparison], number: int) -> list[Match]:
    """Truth showers from low to high incident energy (or number of hits), with the nearest generated ones."""
    first = next(iter(models.values()))
    unit = " GeV" if _has_incident_energy(first.truth) else " hits"
    truth = shower_scale(first.truth)
    everyone = np.arange(len(truth))
    sides = {name: (shower_scale(c.generated), np.arange(len(c.generated))) for name, c in models.items()}
    return _nearest(truth, everyone, sides, number, 0.08, unit)


def matched_jets(models: Mapping[str, Comparison], number: int) -> list[Match]:
    """Truth jets of every class from low to high pT, with the generated ones of the nearest pT."""
    first = next(iter(models.values()))
    matches = []
    for group in first.groups:
        sides = {
            name: (other.generated["pt"], other.generated_index)
            for name, comparison in models.items()
            for other in comparison.groups
            if other.name == group.name
        }
        if len(sides) == len(models):
            per_class = max(2, number // len(first.groups))
            found = _nearest(group.truth["pt"], group.truth_index, sides, per_class, 0.15, " GeV")
            matches += [Match(f"{group.name}, {m.name}", m.truth, m.generated) for m in found]
    return matches


def _nearest(
    truth: Floats,
    truth_index: NDArray[np.int64],
    sides: Mapping[str, tuple[Floats, NDArray[np.int64]]],
    number: int,
    margin: float,
    unit: str,
) -> list[Match]:
    if not np.isfinite(truth).any() or not all(np.isfinite(values).any() for values, _ in sides.values()):
        return []
    matches: dict[int, Match] = {}
    for wanted in np.nanquantile(truth, np.linspace(margin, 1 - margin, number)):
        own = int(np.nanargmin(np.abs(truth - wanted)))
        near = {name: int(index[np.nanargmin(np.abs(v - truth[own]))]) for name, (v, index) in sides.items()}
        matches[own] = Match(f"{truth[own]:.3g}{unit}", int(truth_index[own]), near)
    return list(matches.values())


def jet_image(clouds: PointClouds) -> Floats:
    """Mean pT per pixel and jet [GeV], float64 [eta_rel, phi_rel]; what is beyond |1| is outside of the picture."""
    eta, phi, pt = (clouds.feature(name) for name in ("eta_rel", "phi_rel", "pt"))
    image, _, _ = np.histogram2d(eta, phi, bins=(IMAGE_EDGES, IMAGE_EDGES), weights=pt)
    return image / max(len(clouds), 1)


def jet_pictures(
    models: Mapping[str, Comparison], folder: Path | None = None, pdf: bool = False, singles: int = 2
) -> list[Picture]:
    """The mean image of each class with the difference of each model from truth, and a few single jets."""
    first = next(iter(models.values()))
    means: list[list[tuple[str, Floats]]] = []
    single: list[list[tuple[str, Floats]]] = []
    for group in first.groups:
        truth = jet_image(first.truth.select(group.truth_index[group.split.a]))
        row = [(f"{group.name}: truth, mean of {len(group.split.a)}", truth)]
        few = [
            (f"{group.name}: truth {k + 1}", _one(first.truth, group.truth_index[group.split.a], k))
            for k in range(singles)
        ]
        for name, comparison, other in _same_groups(models, group.name):
            index = other.generated_index[other.split.generated]
            row.append((f"{name}, mean of {len(index)}", jet_image(comparison.generated.select(index))))
            few += [(f"{name} {k + 1}", _one(comparison.generated, index, k)) for k in range(singles)]
        means.append(row)
        single.append(few)
    caption = "Mean jet images, pT per pixel; beside them generated minus truth on a scale of its own."
    pictures = [_image_grid(means, True, f"{first.dataset}_images", caption, folder, pdf)]
    caption = "Single jets, taken at random."
    return [*pictures, _image_grid(single, False, f"{first.dataset}_single", caption, folder, pdf)]


def _one(clouds: PointClouds, index: NDArray[np.int64], k: int) -> Floats:
    return jet_image(clouds.select(index[k : k + 1]))


def _same_groups(models: Mapping[str, Comparison], name: str) -> list[tuple[str, Comparison, Group]]:
    """Every model's group of this name, where it has one."""
    return [(model, c, group) for model, c in models.items() for group in c.groups if group.name == name]


def _image_grid(
    rows: Sequence[Sequence[tuple[str, Floats]]],
    differences: bool,
    name: str,
    caption: str,
    folder: Path | None,
    pdf: bool,
) -> Picture:
    """A row per class: images, and with `differences` each one after the first minus the first."""
    from matplotlib.colors import LogNorm, SymLogNorm

    brightest = max(float(image.max()) for row in rows for _, image in row) or 1.0
    images = max(len(row) for row in rows)
    columns = images + (images - 1 if differences else 0)
    norm, bars = LogNorm(brightest * 1e-4, brightest), 1.2 if differences else 0.0
    width = 2.3 * columns + 1.5 + bars
    with style():
        figure = new_figure(width, 2.4 * len(rows) + 0.5)
        wide = [image - row[0][1] for row in rows for _, image in row[1:]]
        reach = max((float(np.abs(d).max()) for d in wide), default=1.0) or 1.0
        signed = SymLogNorm(reach * 1e-2, vmin=-reach, vmax=reach)
        height = 2.4 * len(rows) - 0.4
        for down, row in enumerate(rows):
            last = down == len(rows) - 1
            bottom = 2.4 * (len(rows) - 1 - down) + 0.6
            for across, (title, image) in enumerate(row):
                axes = place(figure, 2.3 * across + 0.65, bottom, 2.0, 2.0)
                mesh = _draw_image(axes, np.where(image > 0, image, np.nan), title, norm, "viridis", last, across == 0)
                if differences and across:
                    axes = place(figure, 2.3 * (images + across - 1) + 0.65 + bars, bottom, 2.0, 2.0)
                    title = f"{title.partition(',')[0]} - truth"
                    change = _draw_image(axes, image - row[0][1], title, signed, "RdBu_r", last, False)
        figure.colorbar(mesh, cax=place(figure, 2.3 * images + 0.6, 0.6, 0.15, height), label=r"$p_\mathrm{T}$ [GeV]")
        if wide and differences:
            bar = place(figure, width - 0.9, 0.6, 0.15, height)
            figure.colorbar(change, cax=bar, label=r"$\Delta p_\mathrm{T}$ [GeV]")
        return finish(figure, name, caption, folder, pdf, wide=columns > 2, panel=PANEL)


def _draw_image(axes: Axes, image: Floats, title: str, norm: object, colours: str, last: bool, first: bool) -> QuadMesh:
    mesh = axes.pcolormesh(IMAGE_EDGES, IMAGE_EDGES, image.T, norm=norm, cmap=colours, rasterized=True)  # type: ignore[arg-type]
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xticks((-0.5, 0.0, 0.5))
    axes.set_yticks((-0.5, 0.0, 0.5))
    axes.tick_params(labelbottom=last, labelleft=first)
    axes.set_xlabel(r"$\eta_\mathrm{rel}$" if last else "")
    axes.set_ylabel(r"$\phi_\mathrm{rel}$" if first else "")
    return mesh


def shower_picture(
    models: Mapping[str, Comparison], folder: Path | None = None, pdf: bool = False, pairs: int = 3
) -> Picture:
    """A few truth showers from low to high energy, above the generated showers of the nearest incident energy."""
    from matplotlib.colors import LogNorm

    first = next(iter(models.values()))
    truth, geometry = first.truth, first.geometry
    assert geometry is not None  # compare() refuses showers without
    matches = matched_showers(models, pairs)
    hits = truth.feature("energy")
    faintest = max(float(hits.min()), float(hits.max()) * 1e-4)
    norm = LogNorm(faintest, float(hits.max()))
    unit, limits = transverse_axes(truth, geometry)
    sides = {TRUTH_SIDE: truth} | {name: c.generated for name, c in models.items()}
    with style():
        figure = new_figure(3.2 * pairs + 0.9, 3.0 * len(sides))
        for row, (side, clouds) in enumerate(sides.items()):
            for column, match in enumerate(matches):
                axes = place(figure, 3.2 * column, 3.0 * (len(sides) - 1 - row), 3.1, 2.75, projection="3d")
                chosen = match.of(side)
                shower = clouds.select(np.array([chosen]))
                energy = shower.feature("energy")
                size = 4 + 10 * np.clip(np.log10(np.maximum(energy, faintest) / faintest), 0, None)
                marks = axes.scatter(
                    shower.feature("layer"), *transverse(shower, geometry, unit),
                    c=np.maximum(energy, faintest), s=size, norm=norm, cmap="plasma", depthshade=False, lw=0,
                )  # fmt: skip
                axes.set(xlim=(0, geometry.n_layers), ylim=limits, zlim=limits)
                axes.set_box_aspect((1.6, 1, 1))
                axes.set_xlabel("layer", fontsize=8, labelpad=-4)
                axes.set_ylabel("x", fontsize=8, labelpad=-6)
                axes.set_zlabel("y", fontsize=8, labelpad=-6)
                axes.tick_params(labelsize=7, pad=-2)
                axes.minorticks_off()
                axes.grid(False)
                known = f"{shower_scale(shower)[0]:.1f} GeV, " if _has_incident_energy(shower) else ""
                axes.set_title(f"{side}: {known}{len(energy)} hits", fontsize=9)
        bar = place(figure, 3.2 * pairs + 0.1, 1.5 * len(sides) - 1.5, 0.15, 3.0)
        figure.colorbar(marks, cax=bar, label="hit energy [MeV]")
        caption = f"Showers of truth (above) and generated at the nearest incident energy (below); x, y in {unit}."
        return finish(figure, f"{first.dataset}_showers", caption, folder, pdf, wide=True, panel=PANEL)


def transverse_axes(clouds: PointClouds, geometry: Geometry) -> tuple[str, tuple[float, float]]:
    """Unit of x and y in a display, and their limits: cells where they are square, else mm."""
    if not positions_in_mm(clouds) and isinstance(geometry, CartesianGeometry):
        return "cells", (0, geometry.cells)
    far = float(np.nanmax(np.abs(cell_positions(clouds, geometry)), initial=1.0))
    return "mm", (-far, far)


def transverse(clouds: PointClouds, geometry: Geometry, unit: str) -> tuple[Floats, Floats]:
    """x and y of the hits in this unit, float64 [N] each."""
    if unit == "mm":
        return cell_positions(clouds, geometry)
    return clouds.feature("x").astype(np.float64), clouds.feature("y").astype(np.float64)


def _has_incident_energy(clouds: PointClouds) -> bool:
    return "incident_energy" in clouds.condition_names and bool(np.isfinite(clouds.condition("incident_energy")).any())


def shower_scale(clouds: PointClouds) -> Floats:
    """What pairs showers: the incident energy [GeV], or the number of hits where it is not known; float64 [B]."""
    if _has_incident_energy(clouds):
        return clouds.condition("incident_energy").astype(np.float64)
    return clouds.counts.astype(np.float64)
