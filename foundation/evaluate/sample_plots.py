"""One small figure while training: a few generated objects beside true ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.evaluate.dataset_plots import Quantity, bin_edges, feature_quantities, object_quantities
from foundation.evaluate.figures import GENERATED, TRUTH, finish, new_figure, place, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 25
"""Few: there are few objects."""


def plot_sample(card: DatasetCard, truth: PointClouds, generated: PointClouds, name: str, folder: Path) -> Path:
    """Draw every feature and quantity of objects, truth beside generated, into `folder`/NAME.png."""
    pairs = [
        (true, made)
        for of in (object_quantities, feature_quantities)
        for true, made in zip(of(card, truth), of(card, generated), strict=True)
    ]
    with style():
        figure = new_figure(3.0 * len(pairs), 2.9)
        for column, (true, made) in enumerate(pairs):
            axes = place(figure, 3.0 * column + 0.6, 0.6, 2.3, 2.0)
            _draw(axes, true, made)
            if column == 0:
                axes.legend(loc="upper right")
        finish(figure, name, "Generated objects beside true ones.", folder)
    return folder / f"{name}.png"


def _draw(axes: Axes, truth: Quantity, generated: Quantity) -> None:
    both = np.concatenate([truth.values, generated.values]).astype(np.float64)
    usable = both[np.isfinite(both) & ((both > 0) | (not truth.log))]
    axes.set_xlabel(truth.label)
    if not len(usable):
        return
    edges = bin_edges(truth, usable)
    if len(edges) > BINS and not truth.names:
        edges = edges[:: -(-len(edges) // BINS)]
    for values, colour, label in ((truth.values, TRUTH, "truth"), (generated.values, GENERATED, "generated")):
        share = np.histogram(values, edges)[0] / max(len(values), 1)
        axes.stairs(share, edges, color=colour, label=label)
    if truth.log:
        axes.set_xscale("log")
    axes.minorticks_off()
