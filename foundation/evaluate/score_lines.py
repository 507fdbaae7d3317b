"""Scores as lines of text: traffic lights of every panel, the headline numbers, and what was not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from foundation.evaluate.scores import Score
from foundation.evaluate.traffic_lights import Light, light, ratio

HEADLINES = (
    "w1.mass", "w1.multiplicity", "w1.response", "w1.energy_sum", "w1.hits", "w1m", "fpd", "kpd", "coverage",
    "separation.energy_layer.mean", "separation.voxel", "auc.high", "auc.low", "auc.deep_sets", "auc.transformer",
)  # fmt: skip
LIGHTS: tuple[Light, ...] = ("good", "fair", "poor")
MOST = 12
"""Lines of what was not measured."""


def score_lines(scores: Sequence[Score]) -> list[str]:
    """A few dozen lines that say how good the models are; a column per model."""
    models = list(dict.fromkeys(score.model for score in scores))
    panels = list(dict.fromkeys(score.panel for score in scores))
    rows = [("panel", "", "", *models)]
    rows += [
        (panel, "", "", *(_counts([s for s in scores if (s.panel, s.model) == (panel, m)]) for m in models))
        for panel in panels
    ]
    lines = _columns(rows)
    headlines = [s for s in scores if s.name in HEADLINES and not s.problem and not _is_part(s)]
    keys = list(dict.fromkeys((s.panel, s.group, s.name) for s in headlines))
    if keys:
        found = {(s.model, s.panel, s.group, s.name): s for s in headlines}
        table = [("group", "number", "floor", *models)]
        for key in keys:
            scored = [found.get((model, *key)) for model in models]
            floor = next((s.floor for s in scored if s is not None), float("nan"))
            table.append((key[1], key[2], _number(floor), *(_cell(s) for s in scored)))
        lines += ["", *_columns(table)]
    return lines + _worst(scores) + _not_measured(scores)


def _is_part(score: Score) -> bool:
    """Layers, bins of incident energy, and what another panel has as well: too much for a short table."""
    return score.group.endswith(" GeV") or score.group.startswith("layer") or score.panel in ("ild", "conditional")


def _counts(scores: Sequence[Score]) -> str:
    lights = Counter(light(score) for score in scores if not score.problem)
    words = [f"{lights[level]} {level}" for level in LIGHTS if lights[level]]
    if lights[""]:
        words.append(f"{lights['']} without a floor")
    failed = sum(bool(score.problem) for score in scores)
    return ", ".join([*words, f"{failed} not measured"] if failed else words) or "-"


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    error = f" +- {score.error:.1g}" if np.isfinite(score.error) else ""
    return f"{_number(score.value)}{error} {light(score)}".rstrip()


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "-"


def _worst(scores: Sequence[Score]) -> list[str]:
    """The number of each model that is furthest above its floor."""
    lines = []
    for model in dict.fromkeys(score.model for score in scores):
        graded = [s for s in scores if s.model == model and light(s) == "poor" and np.isfinite(ratio(s))]
        if graded:
            worst = max(graded, key=ratio)
            words = f"{worst.group} {worst.name}, {ratio(worst):.3g} times its floor"
            lines.append(f"furthest from truth, {model}: {words}")
    return ["", *lines] if lines else []


def _not_measured(scores: Sequence[Score]) -> list[str]:
    names: dict[tuple[str, str, str], list[str]] = {}
    for s in scores:
        if s.problem:
            names.setdefault((s.model, s.problem, s.panel), []).append(f"{s.group} {s.name}")
    reasons = [
        f"{model}, {of[0]}{f' and {len(of) - 1} more' if of[1:] else ''}: {problem}"
        for (model, problem, _), of in names.items()
    ]
    more = [f"... and {len(reasons) - MOST} more, in metrics.json"] if len(reasons) > MOST else []
    return ["", *(f"not measured: {reason}" for reason in reasons[:MOST]), *more] if reasons else []


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True) if w).rstrip() for row in rows]
    return lines
