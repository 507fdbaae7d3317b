"""Figures of distributions, profiles, response, ROC and training curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foundation.evaluate.comparison import Comparison, Group
from foundation.evaluate.figures import FLOOR, SERIES, TRUTH, Picture, finish, model_look, new_figure, place, style
from foundation.evaluate.metrics import ClassifierScores, Floats
from foundation.evaluate.observables import Observable
from foundation.evaluate.showers import MEV_PER_GEV

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FLOOR_LABEL = "truth vs truth"
BAND = (
    "The blue band is where the ratio of two samples of truth of this size lies in 68 % of the bins; the dotted line "
    "is such a second sample."
)


@dataclass(frozen=True)
class Curve:
    """Bin contents with standard errors, float64 [n] each."""

    values: Floats
    errors: Floats


@dataclass(frozen=True)
class Panel:
    """One distribution: truth, the other half of the truth (floor), and what every model generated."""

    title: str
    x_label: str
    y_label: str
    edges: Floats
    truth: Curve
    floor: Curve
    generated: Mapping[str, Curve]
    log_x: bool = False
    log_y: bool = False
    outside: Mapping[str, float] = field(default_factory=dict)
    """Share of the objects of a model outside of the bins drawn."""


def observable_panel(groups: Mapping[str, Group], observable: Observable) -> Panel:
    """Normalised distribution of one observable in one group; what is outside the bins stays in the normalisation.

    groups: of every model, the first one's truth and bins are drawn
    """
    name, group = observable.name, next(iter(groups.values()))
    edges, truth = group.edges[name], group.truth[name]
    kept = {model: other.generated[name][other.split.generated] for model, other in groups.items()}
    kept = {model: values[np.isfinite(values)] for model, values in kept.items()}
    return Panel(
        group.name,
        observable.axis,
        "normalised to one",
        edges,
        _density(truth[group.split.a], edges),
        _density(truth[group.split.b], edges),
        {model: _density(values, edges) for model, values in kept.items()},
        outside={model: _outside(values, edges) for model, values in kept.items()},
    )


def _outside(values: Floats, edges: Floats) -> float:
    return float(((values < edges[0]) | (values > edges[-1])).mean()) if len(values) else 0.0


def profile_panel(groups: Mapping[str, Group], name: str) -> Panel:
    """Mean of a profile over the showers of a group, with the error of the mean."""
    group = next(iter(groups.values()))
    truth = group.truth_profiles[name]
    a, b = truth.per_shower[group.split.a], truth.per_shower[group.split.b]
    made = {m: other.generated_profiles[name].per_shower[other.split.generated] for m, other in groups.items()}
    used = np.flatnonzero(sum((g.sum(0) for g in made.values()), a.sum(0)) > 0)
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, len(truth.edges) - 1)
    unit = "" if truth.axis_unit == truth.axis_label else f" [{truth.axis_unit}]"
    return Panel(
        group.name,
        truth.axis_label + unit,
        truth.label,
        truth.edges[first : last + 1],
        _mean(a[:, first:last]),
        _mean(b[:, first:last]),
        {model: _mean(g[:, first:last]) for model, g in made.items()},
        log_x=truth.log_axis,
        log_y=truth.log_values,
    )


def _density(values: Floats, edges: Floats) -> Curve:
    import hist

    known = values[np.isfinite(values)]
    filled = hist.Hist(hist.axis.Variable(edges), storage=hist.storage.Weight()).fill(known)
    scale = 1 / (max(len(known), 1) * np.diff(edges))
    return Curve(filled.values() * scale, np.sqrt(filled.variances()) * scale)


def _mean(per_object: Floats) -> Curve:
    return Curve(per_object.mean(0), per_object.std(0, ddof=1) / np.sqrt(len(per_object)))


def draw_panels(panels: Sequence[Panel], models: Sequence[str]) -> Figure:
    """Panels side by side, each with the ratio to truth below; `models` gives the colours. Call inside `style()`."""
    figure = new_figure(3.9 * len(panels), 4.3)
    for k, panel in enumerate(panels):
        main = place(figure, 3.9 * k + 0.72, 1.4, 3.05, 2.6)
        ratio = place(figure, 3.9 * k + 0.72, 0.5, 3.05, 0.8)
        _draw_panel(main, ratio, panel, models)
        main.set_xlim(ratio.get_xlim())
        main.tick_params(labelbottom=False)
    return figure


def _draw_panel(main: Axes, ratio: Axes, panel: Panel, models: Sequence[str]) -> None:
    import mplhep
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    edges, truth, floor = panel.edges, panel.truth, panel.floor
    main.stairs(truth.values, edges, fill=True, color=TRUTH, alpha=0.18, lw=0)
    mplhep.histplot(truth.values, edges, ax=main, color=TRUTH, label="truth", yerr=False)
    _band(main, edges, truth.values - truth.errors, truth.values + truth.errors)

    def relative(values: Floats) -> Floats:
        return np.divide(values, truth.values, out=np.full_like(values, np.nan), where=truth.values > 0)

    spread = relative(np.hypot(truth.errors, floor.errors))
    ratio.stairs(1 + spread, edges, baseline=1 - spread, fill=True, color=FLOOR, alpha=0.25, lw=0)
    ratio.axhline(1.0, color=TRUTH, lw=0.8)
    ratio.stairs(relative(floor.values), edges, color=FLOOR, ls=":", baseline=None, label=FLOOR_LABEL)
    centres = np.sqrt(edges[1:] * edges[:-1]) if panel.log_x else (edges[1:] + edges[:-1]) / 2
    for model, curve in panel.generated.items():
        colour, marker = model_look(models.index(model))
        mplhep.histplot(curve.values, edges, ax=main, color=colour, label=model, yerr=curve.errors)
        values, errors = relative(curve.values), relative(curve.errors)
        ratio.errorbar(centres, values, errors, fmt=marker, ms=2.5, lw=1, color=colour)
    ratio.set(ylim=(0.4, 1.6), xlabel=panel.x_label, ylabel="ratio", xlim=(edges[0], edges[-1]))
    main.set_ylabel(panel.y_label)
    main.set_title(panel.title, loc="left")
    curves = [truth, *panel.generated.values()]
    if panel.log_x:
        main.set_xscale("log")
        ratio.set_xscale("log")
    if panel.log_y:
        positive = np.concatenate([c.values[c.values > 0] for c in curves])
        main.set_yscale("log")
        if len(positive):
            main.set_ylim(max(positive.min(), positive.max() * 1e-5) / 2, positive.max() * 12)
    else:
        main.set_ylim(0, 1.45 * max(float(c.values.max()) for c in curves) or 1)
    handles, labels = main.get_legend_handles_labels()
    band = (Patch(facecolor=FLOOR, alpha=0.25, lw=0), Line2D([], [], color=FLOOR, ls=":"))
    main.legend([*handles, band], [*labels, FLOOR_LABEL], loc="upper right", labelspacing=0.2)
    notes = [f"outside: {share:.0%} of {model}" for model, share in panel.outside.items() if share > 0.01]
    main.text(0.03, 0.97, "\n".join(notes), transform=main.transAxes, va="top", fontsize=8)


def _band(axes: Axes, edges: Floats, low: Floats, high: Floats) -> None:
    axes.stairs(
        high, edges, baseline=low, fill=True, facecolor="none", edgecolor=TRUTH, hatch="//////", lw=0, alpha=0.45
    )


def distribution_pictures(
    models: Mapping[str, Comparison], folder: Path | None = None, pdf: bool = False
) -> list[Picture]:
    """Jets: a figure per observable with a panel per class. Showers: observables, centre of gravity, profiles."""
    with style():
        pictures = (_jet_figures if next(iter(models.values())).domain == "jet" else _shower_figures)(models)
        return [
            finish(draw_panels(panels, list(models)), n, words, folder, pdf, len(panels) > 1)
            for n, words, panels in pictures
        ]


def _jet_figures(models: Mapping[str, Comparison]) -> Iterator[tuple[str, str, list[Panel]]]:
    """Name, caption and panels of each figure."""
    first = next(iter(models.values()))
    for o in first.observables:
        groups = [_same_group(models, group.name, o.name) for group in first.groups]
        panels = [observable_panel(same, o) for same in groups if same]
        if panels:
            words = f"{o.name} per class: truth with its statistical uncertainty, generated, and their ratio. {BAND}"
            yield f"{first.dataset}_{o.name}", words, panels


def _shower_figures(models: Mapping[str, Comparison]) -> Iterator[tuple[str, str, list[Panel]]]:
    """Name, caption and panels of each figure."""
    first = next(iter(models.values()))
    by_name = {o.name: o for o in first.observables}
    group = first.groups[0]
    sets = {
        "energy": (("energy_sum", "hits", "response"), "Visible energy, number of hits, and response"),
        "gravity": (("cog_layer", "cog_x", "cog_y"), "Energy-weighted centre of gravity"),
    }
    for name, (names, caption) in sets.items():
        chosen = {n: _same_group(models, group.name, n) for n in names if n in by_name}
        panels = [observable_panel(same, by_name[n]) for n, same in chosen.items() if same]
        if panels:
            yield f"{first.dataset}_{name}", f"{caption}; showers: {group.name}. {BAND}", panels
    same = {model: c.groups[0] for model, c in models.items() if c.groups[0].name == group.name}
    profiles = [profile_panel(same, name) for name in group.truth_profiles]
    caption = f"Energy per layer and per ring around the axis, spectrum of hit energies; showers: {group.name}. {BAND}"
    yield f"{first.dataset}_profiles", caption, profiles


def _same_group(models: Mapping[str, Comparison], name: str, observable: str) -> dict[str, Group]:
    """Every model's group of this name; those without a single value of the observable are left out."""
    found = {model: group for model, c in models.items() for group in c.groups if group.name == name}
    return {model: group for model, group in found.items() if _has(group, observable)}


def _has(group: Group, name: str) -> bool:
    known = (group.truth.get(name), group.generated.get(name))
    return all(values is not None and bool(np.isfinite(values).any()) for values in known)


def response_picture(models: Mapping[str, Comparison], folder: Path | None = None, pdf: bool = False) -> Picture | None:
    """Visible against incident energy: objects, and medians with the central 68 % in bins. None without a condition."""
    first = next(iter(models.values()))
    sides = [("truth", first.truth, first.groups[0].truth_index, first.groups[0].truth, TRUTH, "s")]
    for k, (model, c) in enumerate(models.items()):
        inclusive = c.groups[0]
        sides.append((model, c.generated, inclusive.generated_index, inclusive.generated, *model_look(k)))
    if any("incident_energy" not in clouds.condition_names for _, clouds, *_ in sides):
        return None
    with style():
        figure = new_figure(4.8, 4.0)
        axes = place(figure, 0.72, 0.55, 3.95, 3.3)
        known = first.truth.condition("incident_energy")
        edges = np.linspace(float(np.nanmin(known)), float(np.nanmax(known)), 9)
        for number, (label, clouds, index, values, colour, marker) in enumerate(sides):
            energy = clouds.condition("incident_energy")[index].astype(np.float64)
            visible = values["energy_sum"]
            axes.plot(energy[:800], visible[:800] / MEV_PER_GEV, ".", ms=1.5, color=colour, alpha=0.5, rasterized=True)
            x, middle, low, high = _binned_medians(energy, visible / MEV_PER_GEV, edges)
            shift = (number - (len(sides) - 1) / 2) * 0.12 * (edges[1] - edges[0])
            axes.errorbar(
                x + shift, middle, np.stack([middle - low, high - middle]), fmt=marker, ms=4, color=colour, label=label
            )
        axes.set(xlabel="incident energy [GeV]", ylabel="visible energy [GeV]", xlim=(0, edges[-1] * 1.05))
        axes.set_ylim(0)
        axes.legend(loc="upper left")
        caption = "Visible against incident energy: showers (dots), medians with the central 68 % per bin."
        return finish(figure, f"{first.dataset}_response", caption, folder, pdf, panel="response")


def _binned_medians(x: Floats, y: Floats, edges: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    rows = []
    for low, high in pairwise(edges):
        inside = y[(x >= low) & (x <= high) & np.isfinite(y)]
        if len(inside) >= 5:
            rows.append(((low + high) / 2, *np.percentile(inside, [50, 16, 84])))
    middle, median, lower, upper = np.array(rows, np.float64).reshape(-1, 4).T
    return middle, median, lower, upper


def roc_picture(arms: Mapping[str, ClassifierScores], folder: Path | None = None, pdf: bool = False) -> Picture:
    """Background rejection against signal efficiency, one line per arm."""
    with style():
        figure = new_figure(4.8, 4.0)
        axes = place(figure, 0.72, 0.55, 3.95, 3.3)
        for k, (name, scores) in enumerate(arms.items()):
            kept = scores.background_efficiency > 0
            axes.plot(
                scores.signal_efficiency[kept],
                1 / scores.background_efficiency[kept],
                color=SERIES[k % len(SERIES)],
                ls=("-", "--", "-.", ":")[k % 4],
                label=f"{name} (AUC {scores.auc.value:.3f})",
            )
        efficiency = np.linspace(0.02, 1, 200)
        axes.plot(efficiency, 1 / efficiency, color="0.6", lw=0.8, ls=":", label="no separation")
        axes.set(xlabel="signal efficiency", ylabel="background rejection", yscale="log", xlim=(0, 1))
        best = max(scores.n_background for scores in arms.values())
        axes.set_ylim(1, 10 * best)
        axes.legend(loc="upper right")
        return finish(figure, "roc", "Background rejection (1 / efficiency) against signal efficiency.", folder, pdf)


def training_picture(
    curves: Mapping[str, Sequence[Mapping[str, float]]], folder: Path | None = None, pdf: bool = False
) -> Picture | None:
    """A panel per run: every key ending in `loss` against `step`. None when there is nothing to draw.

    Long runs are drawn as a running mean over 2 % of their steps, with the raw values behind.
    """
    runs = {name: _loss_series(history) for name, history in curves.items()}
    runs = {name: series for name, series in runs.items() if series}
    if not runs:
        return None
    columns = min(2, len(runs))
    rows = -(-len(runs) // columns)
    with style():
        figure = new_figure(4.2 * columns, 3.1 * rows)
        for number, (name, series) in enumerate(runs.items()):
            down, across = divmod(number, columns)
            axes = place(figure, 4.2 * across + 0.7, 3.1 * (rows - 1 - down) + 0.55, 3.35, 2.25)
            for k, (key, (steps, values)) in enumerate(series.items()):
                colour, width = SERIES[k % len(SERIES)], max(1, len(values) // 50)
                if width > 1:
                    axes.plot(steps, values, color=colour, alpha=0.25, lw=0.7)
                smooth = np.convolve(values, np.ones(width) / width, mode="valid")
                marker = "." if len(values) < 30 else ""
                axes.plot(steps[width - 1 :], smooth, color=colour, marker=marker, label=key.replace("_", " "))
            axes.set(xlabel="step", ylabel="loss")
            axes.set_title(name, loc="left")
            axes.legend(loc="upper right")
        return finish(figure, "training", "Loss during training.", folder, pdf, wide=columns > 1)


def _loss_series(history: Sequence[Mapping[str, float]]) -> dict[str, tuple[Floats, Floats]]:
    """Steps and values of every key that ends in `loss`."""
    series = {}
    for key in dict.fromkeys(key for entry in history for key in entry if key.endswith("loss")):
        known = [(entry["step"], entry[key]) for entry in history if key in entry and "step" in entry]
        steps, values = np.array(known, np.float64).reshape(-1, 2).T
        if len(steps):
            series[key] = (steps, values)
    return series
