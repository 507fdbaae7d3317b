"""Figures of tokenizers: residuals on top of each other, usage of the codes, rate against distortion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Feature
from foundation.evaluate.figures import SERIES, Picture, finish, new_figure, place, style
from foundation.evaluate.metrics import Floats, Measurement
from foundation.evaluate.observables import Observable
from foundation.evaluate.residuals import NAN
from foundation.evaluate.tokenizers import RELATIVE, Quality, object_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS, REACH = 80, 6.0
"""Bins of a histogram of residuals, which reaches so many typical widths to each side."""
COLUMNS = 3
WIDTH, HEIGHT = 4.3, 3.5
"""Inches of a panel with its margins."""
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Distortion:
    """What an object costs in a tokenizer and what is lost: one point of a rate-distortion curve.

    bits, entropy_bits: per object, see `codes.Rate`
    losses: panel -> what is lost, in per cent
    """

    tokenizer: str
    bits: float
    entropy_bits: float
    losses: Mapping[str, Measurement]


def look(number: int) -> dict[str, Any]:
    """Colour and line of the tokenizer of this number, the same in all figures."""
    return {"color": SERIES[number % len(SERIES)], "ls": LINES[number // len(SERIES) % len(LINES)]}


def feature_picture(
    qualities: Sequence[Quality], features: Sequence[Feature], folder: Path | None = None, pdf: bool = False
) -> Picture | None:
    """Residuals of the features of points, a panel each, all tokenizers in it. None where no points correspond."""
    panels = {f.name: _feature_axis(f) for f in features}
    caption = "Residuals of the features of all points; every tokenizer is normalised to one."
    return _residual_picture(qualities, panels, "tokenizer_features", caption, folder, pdf)


def object_picture(
    qualities: Sequence[Quality], observables: Sequence[Observable], folder: Path | None = None, pdf: bool = False
) -> Picture | None:
    """Residuals of quantities of whole objects, a panel each. None where no tokenizer has any."""
    panels = {object_key(o.name): _object_axis(o) for o in observables}
    caption = "Residuals of quantities of whole objects, object by object; every tokenizer is normalised to one."
    return _residual_picture(qualities, panels, "tokenizer_objects", caption, folder, pdf)


def _feature_axis(feature: Feature) -> str:
    if feature.log:
        return f"{feature.name}: decoded / truth - 1"
    unit = "" if feature.unit in ("1", "index") else f" [{feature.unit}]"
    return f"{feature.name}: decoded - truth{unit}"


def _object_axis(observable: Observable) -> str:
    if observable.name in RELATIVE:
        return f"{observable.label}: decoded / truth - 1"
    unit = "" if observable.unit == "1" else f" [{observable.unit}]"
    return f"{observable.label}: decoded - truth{unit}"


def _residual_picture(
    qualities: Sequence[Quality], panels: Mapping[str, str], name: str, caption: str, folder: Path | None, pdf: bool
) -> Picture | None:
    drawn = {key: label for key, label in panels.items() if _reach(qualities, key) > 0}
    if not drawn:
        return None
    with style():
        figure, axes = _grid(len(drawn) + 1)
        for axis, (key, label) in zip(axes, drawn.items(), strict=False):
            _draw_residuals(axis, qualities, key, label)
        _draw_legend(axes[-1], [quality.name for quality in qualities])
        note = " Those without any residual are not drawn."
        return finish(figure, name, caption + note, folder, pdf, wide=True)


def _draw_legend(axes: Axes, names: Sequence[str]) -> None:
    """All tokenizers in a place of their own: there may be too many for a panel."""
    for number, name in enumerate(names):
        axes.plot([], [], label=name, **look(number))
    axes.axis("off")
    axes.legend(loc="upper left", labelspacing=0.3, borderaxespad=0)


def _reach(qualities: Sequence[Quality], key: str) -> float:
    """How far an axis goes to both sides: some typical widths; 0 where every tokenizer is exact."""
    widths = [_width(q.residuals[key]) for q in qualities if key in q.residuals]
    widths = [w for w in widths if w > 0]
    return REACH * float(np.median(widths)) if widths else 0.0


def _width(residuals: NDArray[np.float32]) -> float:
    """Half of the central 68 %; of residuals that mostly are zero, whole numbers say, their standard deviation."""
    if not len(residuals):
        return 0.0
    low, high = np.quantile(residuals, [0.16, 0.84])
    return float(high - low) / 2 or float(residuals.std())


def _draw_residuals(axes: Axes, qualities: Sequence[Quality], key: str, label: str) -> None:
    reach = _reach(qualities, key)
    edges = np.linspace(-reach, reach, BINS + 1)
    for number, quality in enumerate(qualities):
        values = quality.residuals.get(key)
        if values is None or not np.any(values):
            continue
        density = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
        axes.stairs(density, edges, baseline=None, **look(number))
    axes.set(xlabel=label, ylabel="normalised to one", yscale="log", xlim=(-reach, reach))
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, top * 1e-6), top)


def usage_picture(qualities: Sequence[Quality], folder: Path | None = None, pdf: bool = False) -> Picture:
    """How often the codes of each stream occur, the most frequent first, a line per stream of each tokenizer."""
    with style():
        figure, (axes, legend) = _grid(2)
        for number, quality in enumerate(qualities):
            for counts in quality.code_counts.values():
                share = np.sort(counts)[::-1] / max(1, counts.sum())
                share = share[share > 0]
                kept = _thinned(len(share))
                axes.plot(kept + 1, share[kept], lw=1.0, **look(number))
        axes.set(xlabel="rank of the code", ylabel="share of the tokens", xscale="log", yscale="log")
        _draw_legend(legend, [quality.name for quality in qualities])
        caption = (
            "How often codes occur, the most frequent first, a line per stream; codes that never occur are left out."
        )
        return finish(figure, "tokenizer_usage", caption, folder, pdf, wide=True)


def _thinned(n: int, points: int = 400) -> NDArray[np.int64]:
    """Positions that lie evenly on a logarithmic axis, so that a figure does not draw a million points."""
    if n <= points:
        return np.arange(n)
    return np.unique(np.geomspace(1, n, points).astype(np.int64)) - 1


def distortion_picture(points: Sequence[Distortion], folder: Path | None = None, pdf: bool = False) -> Picture | None:
    """What is lost against bits per object: a panel per loss. None where nothing is known."""
    names = list(dict.fromkeys(name for point in points for name in point.losses))
    if not names:
        return None
    with style():
        figure, axes = _grid(len(names) + 1)
        for axis, name in zip(axes, names, strict=False):
            _draw_distortion(axis, name, points)
        for number, point in enumerate(points):
            axes[-1].plot([], [], label=point.tokenizer, lw=0.8, **_marker(number))
        axes[-1].axis("off")
        axes[-1].legend(loc="upper left", labelspacing=0.3, borderaxespad=0)
        caption = (
            "What is lost against the bits of an object: entropy of single codes (marker) and log2 of their numbers "
            "(end of the line)."
        )
        return finish(figure, "tokenizer_rates", caption, folder, pdf, wide=True)


def _marker(number: int) -> dict[str, Any]:
    return {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)], "ms": 5}


def _draw_distortion(axes: Axes, name: str, points: Sequence[Distortion]) -> None:
    values: Floats = np.array([p.losses[name].value if name in p.losses else NAN for p in points])
    for number, (point, value) in enumerate(zip(points, values, strict=True)):
        if not np.isfinite(value):
            continue
        error = point.losses[name].error
        axes.plot([point.entropy_bits, point.bits], [value, value], color=look(number)["color"], lw=0.8, alpha=0.6)
        axes.errorbar(
            [point.entropy_bits], [value], yerr=[error] if np.isfinite(error) else None, ls="", **_marker(number)
        )
    axes.set(xlabel="bits per object", ylabel=name)
    if _wants_decades(values, np.array([p.losses[name].error if name in p.losses else NAN for p in points])):
        from matplotlib.ticker import FuncFormatter, LogLocator

        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _wants_decades(values: Floats, errors: Floats) -> bool:
    """Values that differ much and are all clearly above zero."""
    known = np.isfinite(values)
    if not known.any():
        return False
    low, high = values[known].min(), values[known].max()
    return bool((values[known] > 2 * np.nan_to_num(errors[known])).all() and low > 0 and high > 5 * low)


def _grid(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in rows."""
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    figure = new_figure(WIDTH * columns, HEIGHT * rows)
    axes = []
    for k in range(panels):
        down, across = divmod(k, columns)
        axes.append(place(figure, WIDTH * across + 0.75, HEIGHT * (rows - 1 - down) + 0.55, WIDTH - 0.9, HEIGHT - 0.7))
    return figure, axes
