"""The report: one HTML file with everything inside, for a screen or a phone, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foundation.evaluate.comparison import Comparison, Row
from foundation.evaluate.figures import Picture
from foundation.evaluate.html_parts import (
    Cell,
    badge,
    escaped,
    figures,
    grade,
    measured,
    number,
    table,
    table_row,
    write_page,
)
from foundation.evaluate.metrics import ClassifierScores, Measurement

GOOD_RATIO, FAIR_RATIO = 1.5, 3.0
"""W1 over its floor: up to the first green, up to the second amber, beyond red."""
GOOD_DIFFERENCE, FAIR_DIFFERENCE = 0.05, 0.20
"""Relative difference of medians, the same way."""


@dataclass(frozen=True)
class Stage:
    """One stage of what was run: its name, kind, wall time [s] and whatever else is worth a line."""

    name: str
    kind: str
    wall_seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class RunDescription:
    """What the report says about the run that made it.

    facts:     name and value, such as seeds, numbers of objects, the machine
    versions:  package and version
    datasets:  tag and one line on it (number of objects, how it was made)
    models:    name and one line on it (parameters, layers, vocabulary)
    reproduce: the commands that make this report again
    """

    title: str
    summary: str = ""
    stages: Sequence[Stage] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    reproduce: Sequence[str] = ()


@dataclass(frozen=True)
class ArmResult:
    """One classifier: its task, how many labels it was trained on, its scores on test data (or why there are none)."""

    name: str
    task: str
    n_train: int
    scores: ClassifierScores | None
    problem: str = ""


@dataclass(frozen=True)
class Section:
    """A comparison with its pictures."""

    comparison: Comparison
    pictures: Sequence[Picture]


def write_report(
    path: Path,
    run: RunDescription,
    sections: Sequence[Section],
    arms: Sequence[ArmResult] = (),
    classifier_pictures: Sequence[Picture] = (),
    training_pictures: Sequence[Picture] = (),
    problems: Sequence[str] = (),
) -> Path:
    """Write the report to `path`, whole or not at all; nothing in it refers to another file or address."""
    parts: list[tuple[str, str, str]] = [("summary", "Summary", _summary(sections, arms, problems))]
    for section in sections:
        parts.append((section.comparison.dataset, section.comparison.title, _section(section)))
    if arms:
        parts.append(("classifiers", "Classifiers", _arms(arms) + figures(classifier_pictures)))
    if training_pictures:
        parts.append(("training", "Training", figures(training_pictures)))
    parts.append(("run", "What was run", run_section(run)))
    if run.reproduce:
        parts.append(("reproduce", "How to reproduce", f"<pre>{escaped(chr(10).join(run.reproduce))}</pre>"))
    return write_page(path, run.title, run.summary, parts)


def _summary(sections: Sequence[Section], arms: Sequence[ArmResult], problems: Sequence[str]) -> str:
    explanation = (
        "<p>Every distance is the Wasserstein-1 distance between generated objects and held-out truth, beside its "
        "<em>floor</em>: the distance between two halves of the truth of the same size. A ratio of 1 means "
        "indistinguishable at this sample size. Colours: ratio up to "
        f"{GOOD_RATIO:g} green, up to {FAIR_RATIO:g} amber; difference of medians up to {GOOD_DIFFERENCE:.0%} green, "
        f"up to {FAIR_DIFFERENCE:.0%} amber.</p>"
    )
    failed = "".join(f'<p class="poor">Not evaluated: {escaped(problem)}</p>' for problem in problems)
    tables = []
    for section in sections:
        first = section.comparison.rows[0].group
        jets = section.comparison.domain == "jet"
        rows = [row for row in section.comparison.rows if jets or row.group == first]
        tables.append(f"<h3>{escaped(section.comparison.title)}</h3>{_rows(rows, short=True)}")
    return explanation + failed + "".join(tables) + ("<h3>Classifiers</h3>" + _arms(arms) if arms else "")


def _section(section: Section) -> str:
    comparison = section.comparison
    truth, generated = len(comparison.truth), len(comparison.generated)
    parts = [f"<p>{truth} held-out truth objects, {generated} generated; seed {comparison.seed}.</p>"]
    for name, (true_peak, peak) in comparison.peaks.items():
        parts.append(
            f"<p>Mass peak of {escaped(name)} jets (mode in 120-230 GeV): truth {measured(true_peak)} GeV, "
            f"generated {measured(peak)} GeV.</p>"
        )
    parts.append(figures(section.pictures))
    parts.append(f"<details><summary>All numbers</summary>{_rows(comparison.rows)}</details>")
    if comparison.notes:
        parts.append("<h3>Notes</h3><ul>" + "".join(f"<li>{escaped(note)}</li>" for note in comparison.notes) + "</ul>")
    return "".join(parts)


def _rows(rows: Sequence[Row], short: bool = False) -> str:
    heads = ["group", "observable", "unit", "truth", "generated", "difference", "W1", "floor", "ratio"]
    lines = []
    for row in rows:
        if row.problem:
            reason = Cell(f'<td class="t w" colspan="{6 if short else 9}">{escaped(row.problem)}</td>')
            lines.append(table_row([row.group, row.observable, row.unit, reason]))
            continue
        difference = f"{row.relative_difference:+.1%}" if np.isfinite(row.relative_difference) else "–"
        cells = [
            row.group,
            row.observable,
            row.unit,
            number(row.truth_median),
            number(row.generated_median),
            badge(difference, grade(row.relative_difference, GOOD_DIFFERENCE, FAIR_DIFFERENCE)),
            measured(Measurement(row.w1, row.w1_error)),
            number(row.floor),
            badge(number(row.ratio), grade(row.ratio, GOOD_RATIO, FAIR_RATIO)),
        ]
        if not short:
            cells += [f"{row.separation:.4f}", f"{row.separation_floor:.4f}", str(row.n)]
        lines.append(table_row(cells))
    return table(heads if short else [*heads, "separation", "its floor", "n per side"], lines, left=3)


def _arms(arms: Sequence[ArmResult]) -> str:
    heads = ["classifier", "task", "labels", "tested on", "accuracy", "AUC", "rejection at 30 %", "rejection at 50 %"]
    lines = []
    for arm in arms:
        cells: list[str | Cell] = [arm.name, arm.task, str(arm.n_train)]
        if arm.scores is None:
            cells.append(Cell(f'<td class="t w" colspan="5">{escaped(arm.problem)}</td>'))
        else:
            s = arm.scores
            cells.append(str(s.n_signal + s.n_background))
            cells += [measured(m) for m in (s.accuracy, s.auc, s.rejection_30, s.rejection_50)]
        lines.append(table_row(cells))
    return table(heads, lines, left=2)


def run_section(run: RunDescription) -> str:
    """What was run, as tables."""
    parts = []
    if run.stages:
        lines = [
            table_row([s.name, s.kind, "–" if s.wall_seconds is None else f"{s.wall_seconds:.1f}", s.note])
            for s in run.stages
        ]
        parts.append("<h3>Stages</h3>" + table(["stage", "kind", "wall time [s]", "note"], lines, left=2))
    blocks = {"Datasets": run.datasets, "Models": run.models, "Settings": run.facts, "Versions": run.versions}
    for title, pairs in blocks.items():
        if pairs:
            lines = [
                f'<tr><td class="t">{escaped(k)}</td><td class="t w">{escaped(v)}</td></tr>' for k, v in pairs.items()
            ]
            parts.append(f'<h3>{title}</h3><div class="scroll"><table>{"".join(lines)}</table></div>')
    return "".join(parts) or "<p>Nothing is known about the run.</p>"
