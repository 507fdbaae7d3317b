"""Scores as HTML: traffic lights of every panel and model, tables with the models beside each other, leaderboards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from foundation.evaluate.html.parts import Cell, badge, escaped, measured, number, table, table_row
from foundation.evaluate.metrics import Measurement
from foundation.evaluate.scores import Published, Score
from foundation.evaluate.traffic_lights import Light, distance_from_ideal, light, ratio

PANELS: Mapping[str, str] = {
    "distributions": "Distributions",
    "jets": "Jet metrics",
    "calochallenge": "CaloChallenge",
    "ild": "ILD observables",
    "response": "Response",
    "two-sample": "Two-sample test",
    "memorisation": "Memorisation",
    "conditional": "Conditions",
    "likelihood": "Likelihood",
    "classification": "Classification",
    "speed": "Speed",
    "events": "Events",
}
"""Titles of the tabs in their order; a panel that is not among them comes last, under its own name."""
LIGHTS: tuple[Light, ...] = ("good", "fair", "poor")
Key = tuple[str, str, str]


def panels_of(names: Sequence[str]) -> list[str]:
    """The panels among `names`, in the order of the tabs."""
    order = list(PANELS)
    return sorted(dict.fromkeys(names), key=lambda name: order.index(name) if name in order else len(order))


def anchor(dataset: str, panel: str) -> str:
    """Anchor of a panel's tab."""
    return f"{dataset}-{panel}"


def lights_table(scores: Sequence[Score], models: Sequence[str]) -> str:
    """A line per dataset and panel, a column per model: how many numbers are green, amber and red."""
    lines = []
    for dataset in dict.fromkeys(score.dataset for score in scores):
        of_dataset = [score for score in scores if score.dataset == dataset]
        for panel in panels_of([score.panel for score in of_dataset]):
            link = f'<a href="#{escaped(anchor(dataset, panel))}">{escaped(PANELS.get(panel, panel))}</a>'
            cells: list[str] = [dataset, Cell(f"<td>{link}</td>")]
            cells += [_counts([s for s in of_dataset if s.panel == panel and s.model == model]) for model in models]
            lines.append(table_row(cells))
    return table(["dataset", "panel", *map(escaped, models)], lines, left=2, label="Traffic lights of all panels")


def _counts(scores: Sequence[Score]) -> Cell:
    counts = Counter(light(score) for score in scores)
    badges = "".join(f' <span class="badge {level}">{counts[level]}</span>' for level in LIGHTS if counts[level])
    missing = sum(bool(score.problem) for score in scores)
    rest = counts[""] - missing
    words = [f"{rest} without a floor"] if rest else []
    words += [f"{missing} not measured"] if missing else []
    small = f"<small>{', '.join(words)}</small>" if words else ""
    return Cell(f"<td>{badges}{small}</td>" if badges or small else "<td>–</td>")


def furthest(scores: Sequence[Score], most: int = 5) -> list[Score]:
    """The numbers of red and amber light that are furthest from their floor, the worst first and each of one model."""
    graded = [score for score in scores if light(score) in ("fair", "poor") and np.isfinite(ratio(score))]
    worst: dict[tuple[str, Key], Score] = {}
    for score in sorted(graded, key=ratio, reverse=True):
        worst.setdefault((score.dataset, _key(score)), score)
    return list(worst.values())[:most]


def furthest_table(scores: Sequence[Score]) -> str:
    """Where a reader should look first; empty where everything is green."""
    lines = [
        table_row([s.model, s.dataset, s.group, s.name, _value(s), number(s.floor), badge(number(ratio(s)), light(s))])
        for s in furthest(scores)
    ]
    heads = ["model", "dataset", "group", "number", "value", "floor", "times the floor"]
    return table(heads, lines, left=4, label="Furthest from truth") if lines else ""


def score_table(scores: Sequence[Score], models: Sequence[str], label: str) -> str:
    """A line per number, a column per model; the best one and those that agree with it within the error get a star."""
    rows: dict[Key, dict[str, Score]] = {}
    for score in scores:
        rows.setdefault(_key(score), {})[score.model] = score
    lines = []
    for (group, name, definition), by_model in rows.items():
        any_one = next(iter(by_model.values()))
        floor = next((s for s in by_model.values() if np.isfinite(s.floor)), any_one)
        best = best_models(by_model)
        cells: list[str] = [group, name, _unit(any_one), _aim(any_one)]
        cells.append(measured(Measurement(floor.floor, floor.floor_error)))
        cells += [_cell(by_model.get(model), model in best) for model in models]
        cells += [_sizes(by_model), definition]
        lines.append(table_row(cells))
    columns = [escaped(model) for model in models]
    heads = ["group", "number", "unit", "good", "floor", *columns, "n per side", "definition"]
    return table(heads, lines, left=3, label=label)


def _key(score: Score) -> Key:
    return score.group, score.name, score.definition


def _unit(score: Score) -> str:
    return "" if score.unit == "1" else score.unit


def _aim(score: Score) -> str:
    """Where a good generator is."""
    if score.better == "nearest":
        return f"→ {number(score.ideal)}" if np.isfinite(score.ideal) else "→ truth"
    return "low" if score.better == "lower" else "high"


def _value(score: Score) -> str:
    return measured(Measurement(score.value, score.error))


def _cell(score: Score | None, best: bool) -> Cell:
    if score is None:
        return Cell("<td>–</td>")
    if score.problem:
        return Cell(f'<td class="t w">{escaped(score.problem)}</td>')
    times = ratio(score)
    below = f"{number(times)} × floor" if np.isfinite(times) and score.better != "higher" else ""
    return badge(_value(score), light(score), below, best)


def _sizes(by_model: Mapping[str, Score]) -> str:
    sizes = sorted({score.n for score in by_model.values() if score.n})
    return " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1])))) if sizes else ""


def best_models(by_model: Mapping[str, Score]) -> set[str]:
    """The best of several models and those that agree with it within one standard error; none of a single one."""
    known = {m: s for m, s in by_model.items() if not s.problem and np.isfinite(s.value)}
    if len(known) < 2 or all(s.better == "nearest" and not np.isfinite(s.ideal) for s in known.values()):
        return set()
    distance = {model: distance_from_ideal(score) for model, score in known.items()}
    first = min(distance, key=lambda model: distance[model])
    error = {model: np.nan_to_num(score.error) for model, score in known.items()}
    same = {m for m in known if distance[m] - distance[first] <= np.hypot(error[m], error[first])}
    return same if len(same) < len(known) else set()


def leaderboards(scores: Sequence[Score], published: Sequence[Published]) -> str:
    """A ranking for every number that others have published on this very dataset under the same definition."""
    parts = []
    for key in dict.fromkeys((p.group, p.name, p.definition) for p in published):
        own = [s for s in scores if _key(s) == key and not s.problem and np.isfinite(s.value)]
        if own:
            others = [p for p in published if (p.group, p.name, p.definition) == key]
            parts.append(f"<h4>{escaped(key[1])}, {escaped(key[0])}</h4>{_ranking(own, others)}")
    words = (
        "<p>Published numbers are on this dataset and under the same definition. Lines of this report are marked; "
        "the sizes of samples may differ, which matters where a number has a floor.</p>"
    )
    return words + "".join(parts) if parts else ""


def _ranking(own: Sequence[Score], others: Sequence[Published]) -> str:
    like = own[0]
    entries = [(_like(like, p.value), p.system, p.value, p.error, p.source, "") for p in others]
    sizes = [f"this report, {s.n} per side, floor {number(s.floor)}" for s in own]
    entries += [(distance_from_ideal(s), s.model, s.value, s.error, n, "own") for s, n in zip(own, sizes, strict=True)]
    entries.sort(key=lambda entry: entry[0])
    lines = [
        table_row(
            [str(place), system, measured(Measurement(value, error)), Cell(f'<td class="t w">{escaped(source)}</td>')],
            kind,
        )
        for place, (_, system, value, error, source, kind) in enumerate(entries, 1)
    ]
    heads = ["place", "system", f"value{f' [{escaped(_unit(like))}]' if _unit(like) else ''}", "source"]
    return table(heads, lines, left=2, label=f"Leaderboard of {like.name}")


def _like(score: Score, value: float) -> float:
    """How far a published value is from where it should be, by the rule of our own score."""
    return {"lower": value, "higher": -value}.get(score.better, abs(value - score.ideal))
