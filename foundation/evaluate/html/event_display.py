"""Single objects that readers can turn and zoom in a report: showers in three dimensions, jets in eta and phi.

The objects are in the page as numbers of 16 bits: positions within the box that is drawn, and the logarithm of the
energy between the faintest and the brightest hit. event_display.js draws them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foundation.data.point_clouds import PointClouds
from foundation.evaluate.comparison import Comparison
from foundation.evaluate.displays import Match, matched_jets, matched_showers, transverse, transverse_axes
from foundation.evaluate.html.parts import escaped
from foundation.evaluate.metrics import Floats

SCRIPT = "event_display.js"
EVENTS, MOST_POINTS = 6, 4000
"""Objects per side, and hits of one that are drawn, the brightest ones."""
DECADES = 4.0
"""Most that the colours reach below the brightest hit; what is fainter has the faintest colour."""
STEPS = 65535


@dataclass(frozen=True)
class Box:
    """What is drawn: limits per axis, labels that say them, and relative lengths of the sides."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    labels: tuple[str, ...]
    aspect: tuple[float, ...]


def event_display(models: Mapping[str, Comparison]) -> str:
    """A box with truth and every model beside each other and a few objects to step through, as HTML."""
    first = next(iter(models.values()))
    jets = first.domain == "jet"
    matches = (matched_jets if jets else matched_showers)(models, EVENTS)
    if not matches:
        return ""
    box, energy = (_jet_box(), "pt") if jets else (_shower_box(first), "energy")
    sides = {"truth": first.truth} | {name: c.generated for name, c in models.items()}
    shown = [_points(clouds, match.of(side), first, energy) for match in matches for side, clouds in sides.items()]
    brightest = max((float(points[:, -1].max(initial=0)) for points in shown), default=0.0) or 1.0
    dimmest = min((float(points[:, -1].min()) for points in shown if len(points)), default=brightest)
    faintest = min(max(brightest / 10**DECADES, dimmest), brightest / 2)
    content = {
        "flat": jets,
        "box": {"labels": box.labels, "aspect": box.aspect},
        "energy": {"low": faintest, "high": brightest, "label": "pT [GeV]" if jets else "hit energy [MeV]"},
        "colours": _colours(),
        "events": [_event(match, sides, first, box, energy, faintest, brightest) for match in matches],
    }
    what = "jets in eta and phi" if jets else "showers in three dimensions"
    views = "".join(_view(side, what) for side in sides)
    data = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="events" data-what="{escaped(what)}"><div class="bar"></div><div class="views">{views}</div>'
        f'<script type="application/json">{data}</script><noscript><p>The display needs scripts; '
        "the pictures of single objects on this page do not.</p></noscript></div>"
    )


def _view(side: str, what: str) -> str:
    label = f"{side}: {what}; arrow keys, + and - move the picture"
    return (
        f'<div class="view"><p><strong>{escaped(side)}</strong> <span class="facts soft"></span></p>'
        f'<canvas tabindex="0" role="img" aria-label="{escaped(label)}"></canvas></div>'
    )


def _event(
    match: Match, sides: Mapping[str, PointClouds], first: Comparison, box: Box, energy: str, low: float, high: float
) -> dict[str, object]:
    return {
        "name": match.name,
        "sides": [
            {
                "facts": _facts(clouds, match.of(side), first),
                "points": _packed(_points(clouds, match.of(side), first, energy), box, low, high),
            }
            for side, clouds in sides.items()
        ],
    }


def _facts(clouds: PointClouds, index: int, comparison: Comparison) -> str:
    """One line on an object."""
    one = clouds.select(np.array([index]))
    if comparison.domain == "jet":
        return f"{len(one.points)} constituents, sum of pT {one.feature('pt').sum():.0f} GeV"
    incident = "incident_energy" in one.condition_names and np.isfinite(one.condition("incident_energy")[0])
    start = f"{one.condition('incident_energy')[0]:.3g} GeV incident, " if incident else ""
    return f"{start}{one.feature('energy').sum() / 1000:.3g} GeV visible, {len(one.points)} hits"


def _points(clouds: PointClouds, index: int, comparison: Comparison, energy: str) -> Floats:
    """Positions as they are drawn and energies of the brightest hits of one object, float64 [n, 3 or 4]."""
    one = clouds.select(np.array([index]))
    if comparison.domain == "jet":
        columns: Sequence[Floats] = [one.feature(name).astype(np.float64) for name in ("eta_rel", "phi_rel")]
    else:
        assert comparison.geometry is not None  # compare() refuses showers without
        unit, _ = transverse_axes(comparison.truth, comparison.geometry)
        columns = [one.feature("layer").astype(np.float64), *transverse(one, comparison.geometry, unit)]
    points = np.column_stack([*columns, one.feature(energy).astype(np.float64)])
    points = points[np.isfinite(points).all(1) & (points[:, -1] > 0)]
    return points[np.argsort(points[:, -1])[::-1][:MOST_POINTS]]


def _packed(points: Floats, box: Box, faintest: float, brightest: float) -> str:
    """base64 of uint16 [n, 3 or 4], little-endian; points outside of the box are left out."""
    low, high = np.array(box.low), np.array(box.high)
    place = (points[:, :-1] - low) / (high - low)
    inside = ((place >= 0) & (place <= 1)).all(1)
    shade = np.log(np.maximum(points[:, -1], faintest) / faintest) / np.log(brightest / faintest)
    table = np.column_stack([place, shade])[inside]
    return base64.b64encode(np.round(table * STEPS).astype("<u2").tobytes()).decode("ascii")


def _jet_box() -> Box:
    return Box((-1.0, -1.0), (1.0, 1.0), ("eta_rel, -1 to 1", "phi_rel, -1 to 1"), (1.0, 1.0))


def _shower_box(comparison: Comparison) -> Box:
    assert comparison.geometry is not None  # compare() refuses showers without
    unit, (low, high) = transverse_axes(comparison.truth, comparison.geometry)
    layers = comparison.geometry.n_layers
    reach = f"{low:.0f} to {high:.0f} mm"
    if unit == "cells":
        low, high, reach = low - 0.5, high - 0.5, f"cells 0 to {high - 1:.0f}"
    labels = (f"layers 0 to {layers - 1}", f"x, {reach}", f"y, {reach}")
    return Box((-0.5, low, low), (layers - 0.5, high, high), labels, (1.5, 1.0, 1.0))


def _colours() -> list[str]:
    """Plasma without its darkest part, which would drown in the black."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["plasma"](x)) for x in np.linspace(0.28, 1.0, 48)]
