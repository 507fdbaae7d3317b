"""All numbers of a panel in one figure: how many times its floor each of them is, for every model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foundation.evaluate.figures import FLOOR, Picture, finish, model_look, new_figure, place, style
from foundation.evaluate.scores import Score
from foundation.evaluate.traffic_lights import FAIR_RATIO, GOOD_RATIO, distance_from_ideal, ratio

MOST_ROWS = 40
"""Numbers in one figure; of more, those that are furthest from their floor."""
HEIGHT, MARGIN = 0.2, 0.75
"""Inches of a row, and of all above and below."""


def score_pictures(scores: Sequence[Score], folder: Path | None = None, pdf: bool = False) -> list[Picture]:
    """A figure per dataset and panel of the numbers that have a floor and of which lower is better, or nearer."""
    models = list(dict.fromkeys(score.model for score in scores))
    usable = [s for s in scores if s.better != "higher" and not s.problem and np.isfinite(ratio(s)) and ratio(s) > 0]
    panels = dict.fromkeys((s.dataset, s.panel) for s in usable)
    with style():
        return [
            _picture([s for s in usable if (s.dataset, s.panel) == key], models, key, folder, pdf) for key in panels
        ]


def _picture(
    scores: Sequence[Score], models: Sequence[str], key: tuple[str, str], folder: Path | None, pdf: bool
) -> Picture:
    rows = _rows(scores)
    places = {row: k for k, row in enumerate(rows)}
    tall = HEIGHT * len(rows)
    figure = new_figure(7.2, tall + MARGIN + 0.35)
    axes = place(figure, 3.1, MARGIN, 3.9, tall)
    axes.axvspan(GOOD_RATIO, FAIR_RATIO, color="#e69f00", alpha=0.12, lw=0)
    axes.axvspan(1 / 3, GOOD_RATIO, color="#009e73", alpha=0.12, lw=0)
    axes.axvline(1.0, color=FLOOR, ls=":")
    largest = 2 * FAIR_RATIO
    for score in scores:
        if (row := (score.group, score.name)) not in places:
            continue
        number = models.index(score.model)
        colour, marker = model_look(number)
        times = ratio(score)
        error = times * np.nan_to_num(score.error) / max(distance_from_ideal(score), 1e-300)
        largest = max(largest, 1.5 * (times + min(error, times)))
        y = places[row] + 0.16 * (number - (len(models) - 1) / 2)
        low = min(error, 0.9 * times)  # of a logarithmic axis only what is above zero can be seen
        axes.errorbar(times, y, xerr=[[low], [error]], fmt=marker, ms=4, lw=1, color=colour, label=score.model)
    axes.set(xscale="log", xlim=(1 / 3, largest), ylim=(len(rows) - 0.5, -0.5), xlabel="times the floor")
    axes.set_yticks(range(len(rows)), [f"{name}, {group}" for group, name in rows], fontsize=8)
    axes.tick_params(axis="y", which="both", length=0, right=False)
    ticks = [tick for decade in range(5) for tick in (10**decade, 3 * 10**decade) if tick < largest]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    known = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(known.values(), known.keys(), loc="upper right", ncols=len(known), bbox_to_anchor=(0.98, 1.0))
    dataset, panel = key
    caption = (
        "How many times the floor (truth against truth of the same size) each number is, with its statistical "
        f"uncertainty; green: up to {GOOD_RATIO:g}, amber: up to {FAIR_RATIO:g}."
    )
    if len(rows) < len({(s.group, s.name) for s in scores}):
        caption += f" The {len(rows)} that are furthest from it."
    return finish(figure, f"{dataset}_{panel}_scores", caption, folder, pdf, panel=panel)


def _rows(scores: Sequence[Score]) -> list[tuple[str, str]]:
    """Group and name of the rows, in the order of the scores; of too many the largest ratios."""
    worst: dict[tuple[str, str], float] = {}
    for score in scores:
        row = (score.group, score.name)
        worst[row] = max(ratio(score), worst.get(row, 0.0))
    kept = set(sorted(worst, key=lambda row: worst[row], reverse=True)[:MOST_ROWS])
    return [row for row in worst if row in kept]
