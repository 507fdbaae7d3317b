"""Pictures of objects: jet images and three-dimensional shower displays, truth beside generated."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foundation.data.cards import Geometry
from foundation.data.geometry import CartesianGeometry
from foundation.data.point_clouds import PointClouds
from foundation.evaluate.comparison import Comparison
from foundation.evaluate.figures import Picture, finish, new_figure, place, style
from foundation.evaluate.metrics import Floats
from foundation.evaluate.showers import cell_positions, positions_in_mm

IMAGE_EDGES = np.linspace(-1.0, 1.0, 41)
"""Pixels of 0.05 x 0.05 in eta_rel and phi_rel."""


def jet_image(clouds: PointClouds) -> Floats:
    """Mean pT per pixel and jet [GeV], float64 [eta_rel, phi_rel]; what is beyond |1| is outside of the picture."""
    eta, phi, pt = (clouds.feature(name) for name in ("eta_rel", "phi_rel", "pt"))
    image, _, _ = np.histogram2d(eta, phi, bins=(IMAGE_EDGES, IMAGE_EDGES), weights=pt)
    return image / max(len(clouds), 1)


def jet_pictures(
    comparison: Comparison, folder: Path | None = None, pdf: bool = False, singles: int = 2
) -> list[Picture]:
    """The mean image of each class, and the first few single jets, truth beside generated."""
    mean = {
        (group.name, f"{side}, mean of {len(index)}"): jet_image(clouds.select(index))
        for group in comparison.groups
        for side, clouds, index in (
            ("truth", comparison.truth, group.truth_index[group.split.a]),
            ("generated", comparison.generated, group.generated_index[group.split.generated]),
        )
    }
    single = {
        (group.name, f"{side} {k + 1}"): jet_image(clouds.select(index[k : k + 1]))
        for group in comparison.groups
        for side, clouds, index in (
            ("truth", comparison.truth, group.truth_index[group.split.a]),
            ("generated", comparison.generated, group.generated_index[group.split.generated]),
        )
        for k in range(singles)
    }
    rows = len(comparison.groups)
    return [
        _image_grid(mean, rows, f"{comparison.dataset}_images", "Mean jet images: pT per pixel.", folder, pdf),
        _image_grid(single, rows, f"{comparison.dataset}_single", "Single jets, taken at random.", folder, pdf),
    ]


def _image_grid(
    images: dict[tuple[str, str], Floats], rows: int, name: str, caption: str, folder: Path | None, pdf: bool
) -> Picture:
    from matplotlib.colors import LogNorm

    columns = len(images) // rows
    brightest = max(float(image.max()) for image in images.values()) or 1.0
    norm = LogNorm(brightest * 1e-4, brightest)
    with style():
        figure = new_figure(2.3 * columns + 1.5, 2.4 * rows + 0.5)
        for number, ((group, side), image) in enumerate(images.items()):
            row, column = divmod(number, columns)
            axes = place(figure, 2.3 * column + 0.65, 2.4 * (rows - 1 - row) + 0.6, 2.0, 2.0)
            pixels = np.where(image > 0, image, np.nan).T
            mesh = axes.pcolormesh(IMAGE_EDGES, IMAGE_EDGES, pixels, norm=norm, cmap="viridis", rasterized=True)
            axes.set_title(f"{group}: {side}", loc="left", fontsize=9)
            axes.set_xticks((-0.5, 0.0, 0.5))
            axes.set_yticks((-0.5, 0.0, 0.5))
            axes.tick_params(labelbottom=row == rows - 1, labelleft=column == 0)
            axes.set_xlabel(r"$\eta_\mathrm{rel}$" if row == rows - 1 else "")
            axes.set_ylabel(r"$\phi_\mathrm{rel}$" if column == 0 else "")
        bar = place(figure, 2.3 * columns + 0.6, 0.6, 0.15, 2.4 * rows - 0.4)
        figure.colorbar(mesh, cax=bar, label=r"$p_\mathrm{T}$ [GeV]")
        return finish(figure, name, caption, folder, pdf, wide=columns > 2)


def shower_picture(comparison: Comparison, folder: Path | None = None, pdf: bool = False, pairs: int = 3) -> Picture:
    """A few truth showers from low to high energy, each above the generated shower of the nearest incident energy."""
    from matplotlib.colors import LogNorm

    truth, generated, geometry = comparison.truth, comparison.generated, comparison.geometry
    assert geometry is not None  # compare() refuses showers without
    energies = [_scale(clouds) for clouds in (truth, generated)]
    wanted = np.nanquantile(energies[0], np.linspace(0.15, 0.85, pairs))
    hits = truth.feature("energy")
    faintest = max(float(hits.min()), float(hits.max()) * 1e-4)
    norm = LogNorm(faintest, float(hits.max()))
    unit, limits = _transverse_axes(truth, geometry)
    known = "incident_energy" in truth.condition_names and "incident_energy" in generated.condition_names
    with style():
        figure = new_figure(3.2 * pairs + 0.9, 6.0)
        for row, (side, clouds) in enumerate((("truth", truth), ("generated", generated))):
            for column in range(pairs):
                axes = place(figure, 3.2 * column, 3.0 * (1 - row), 3.1, 2.75, projection="3d")
                chosen = int(np.nanargmin(np.abs(energies[row] - wanted[column])))
                shower = clouds.select(np.array([chosen]))
                energy = shower.feature("energy")
                size = 4 + 10 * np.clip(np.log10(np.maximum(energy, faintest) / faintest), 0, None)
                marks = axes.scatter(
                    shower.feature("layer"), *_transverse(shower, geometry, unit),
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
                quantity = f"{energies[row][chosen]:.1f} GeV, " if known else ""
                axes.set_title(f"{side}: {quantity}{len(energy)} hits", fontsize=9)
        bar = place(figure, 3.2 * pairs + 0.1, 1.5, 0.15, 3.0)
        figure.colorbar(marks, cax=bar, label="hit energy [MeV]")
        caption = f"Showers of truth (above) and generated at the nearest incident energy (below); x, y in {unit}."
        return finish(figure, f"{comparison.dataset}_showers", caption, folder, pdf, wide=True)


def _transverse_axes(clouds: PointClouds, geometry: Geometry) -> tuple[str, tuple[float, float]]:
    """Unit of x and y in a display, and their limits: cells where they are square, else mm."""
    if not positions_in_mm(clouds) and isinstance(geometry, CartesianGeometry):
        return "cells", (0, geometry.cells)
    far = float(np.nanmax(np.abs(cell_positions(clouds, geometry)), initial=1.0))
    return "mm", (-far, far)


def _transverse(clouds: PointClouds, geometry: Geometry, unit: str) -> tuple[Floats, Floats]:
    """x and y of the hits in this unit, float64 [N] each."""
    if unit == "mm":
        return cell_positions(clouds, geometry)
    return clouds.feature("x").astype(np.float64), clouds.feature("y").astype(np.float64)


def _scale(clouds: PointClouds) -> Floats:
    """What pairs showers: the incident energy [GeV], or the number of hits where it is not known; float64 [B]."""
    if "incident_energy" in clouds.condition_names and np.isfinite(clouds.condition("incident_energy")).any():
        return clouds.condition("incident_energy").astype(np.float64)
    return clouds.counts.astype(np.float64)
