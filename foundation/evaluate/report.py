"""The report: one HTML file with everything inside, for a screen, a phone or paper, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foundation.evaluate.comparison import Comparison, Row
from foundation.evaluate.figures import Picture
from foundation.evaluate.html.event_display import SCRIPT, event_display
from foundation.evaluate.html.page import Tab, write_page
from foundation.evaluate.html.parts import (
    Cell,
    badge,
    details,
    escaped,
    figures,
    items,
    measured,
    number,
    pairs_table,
    table,
    table_row,
)
from foundation.evaluate.html.score_tables import (
    PANELS,
    anchor,
    furthest_table,
    leaderboards,
    lights_table,
    panels_of,
    score_table,
)
from foundation.evaluate.metrics import ClassifierScores, Measurement
from foundation.evaluate.scores import Published, Score
from foundation.evaluate.traffic_lights import FAIR_DIFFERENCE, FAIR_RATIO, GOOD_DIFFERENCE, GOOD_RATIO, RULE, grade


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
class DatasetView:
    """All that the report shows of one dataset.

    comparisons: by model, in the order of the columns; the first model's truth is the one that is drawn
    scores:      of all models, in the order of the rows
    pictures:    of all models together, see `pictures.dataset_pictures`
    published:   for the leaderboard; numbers of other systems on this very dataset
    notes:       what a reader must know of the files, beside the notes of the comparisons
    """

    comparisons: Mapping[str, Comparison]
    scores: Sequence[Score] = ()
    pictures: Sequence[Picture] = ()
    published: Sequence[Published] = ()
    notes: Sequence[str] = ()

    @property
    def dataset(self) -> str:
        """Name of the dataset's card."""
        names = [c.dataset for c in self.comparisons.values()] + [s.dataset for s in self.scores]
        return names[0] if names else "dataset"

    @property
    def title(self) -> str:
        """What the tab is called."""
        return next((c.title for c in self.comparisons.values()), self.dataset)

    @property
    def models(self) -> list[str]:
        """The columns: models in the order of the comparisons, then those that only have scores."""
        return list(dict.fromkeys([*self.comparisons, *(score.model for score in self.scores)]))


def write_report(
    path: Path,
    run: RunDescription,
    views: Sequence[DatasetView],
    arms: Sequence[ArmResult] = (),
    classifier_pictures: Sequence[Picture] = (),
    training_pictures: Sequence[Picture] = (),
    problems: Sequence[str] = (),
    classifier_scores: Sequence[Score] = (),
) -> Path:
    """Write the report to `path`, whole or not at all; nothing in it refers to another file or address."""
    tabs = [Tab("summary", "Summary", _summary(views, arms, problems))]
    tabs += [_dataset(view) for view in views]
    if arms:
        tabs.append(Tab("classifiers", "Classifiers", _classifiers(arms, classifier_scores, classifier_pictures)))
    if training_pictures:
        tabs.append(Tab("training", "Training", figures(training_pictures)))
    tabs.append(Tab("run", "What was run", run_section(run)))
    if run.reproduce:
        tabs.append(Tab("reproduce", "How to reproduce", f"<pre>{escaped(chr(10).join(run.reproduce))}</pre>"))
    return write_page(path, run.title, run.summary, tabs, scripts=(SCRIPT,))


def _summary(views: Sequence[DatasetView], arms: Sequence[ArmResult], problems: Sequence[str]) -> str:
    failed = "".join(f'<p class="poor">Not evaluated: {escaped(problem)}</p>' for problem in problems)
    return failed + _lights(views) + _medians(views) + ("<h3>Classifiers</h3>" + _arms(arms) if arms else "")


def _lights(views: Sequence[DatasetView]) -> str:
    """Traffic lights of all panels and models, and where to look first."""
    scores = [score for view in views for score in view.scores]
    if not scores:
        return ""
    models = list(dict.fromkeys(model for view in views for model in view.models))
    worst = furthest_table(scores)
    return (
        "<p>How many numbers of each panel are green, amber and red. Every number stands beside its <em>floor</em>: "
        "the same number for truth against other truth at the same sample size, so that 1 × floor means "
        "indistinguishable at this size.</p>"
        + lights_table(scores, models)
        + details("How the lights are set", f"<p>{escaped(RULE)}</p>")
        + (f"<h3>Furthest from truth</h3>{worst}" if worst else "<p>No number is amber or red.</p>")
    )


def _medians(views: Sequence[DatasetView]) -> str:
    """Per dataset a table of medians; of several models each opens on demand."""
    parts = []
    for view in views:
        if view.comparisons:
            parts.append(f"<h3>{escaped(view.title)}</h3>")
        for model, comparison in view.comparisons.items():
            rows = _rows(_main_rows(comparison), short=True)
            parts.append(rows if len(view.comparisons) == 1 else details(f"Medians: {model}", rows))
    return "".join(parts) + ROW_WORDS if parts else ""


ROW_WORDS = (
    '<p class="soft">Medians of truth and of generated objects; W1 is the Wasserstein-1 distance. Colours: ratio of W1 '
    f"to its floor up to {GOOD_RATIO:g} green, up to {FAIR_RATIO:g} amber; difference of medians up to "
    f"{GOOD_DIFFERENCE:.0%} green, up to {FAIR_DIFFERENCE:.0%} amber.</p>"
)


def _main_rows(comparison: Comparison) -> list[Row]:
    """All classes of jets; of showers the inclusive group."""
    first = comparison.rows[0].group if comparison.rows else ""
    return [row for row in comparison.rows if comparison.domain == "jet" or row.group == first]


def _dataset(view: DatasetView) -> Tab:
    names = [score.panel for score in view.scores] + [picture.panel for picture in view.pictures]
    names += ["distributions", "events"] if view.comparisons else []
    tabs = [Tab(anchor(view.dataset, n), PANELS.get(n, n), _panel(view, n)) for n in panels_of(names)]
    board = leaderboards(view.scores, view.published)
    if board:
        tabs.append(Tab(anchor(view.dataset, "leaderboard"), "Leaderboard", board))
    return Tab(view.dataset, view.title, _about(view), tabs, label=view.dataset)


def _about(view: DatasetView) -> str:
    """Numbers of objects and mass peaks; what else a reader must know opens on demand."""
    lines, notes = [], list(view.notes)
    for model, c in view.comparisons.items():
        lines.append(f"{model}: {len(c.generated)} objects against {len(c.truth)} of held-out truth, seed {c.seed}")
        lines += [
            f"{model}: mass peak of {name} jets (mode in 120-230 GeV) {measured(peak)} GeV, truth {measured(true)} GeV"
            for name, (true, peak) in c.peaks.items()
        ]
        notes += [f"{model}: {note}" for note in c.notes]
    words = "1 note" if len(notes) == 1 else f"{len(notes)} notes"
    known = details(f"{words} on missing values, conditions and files", items(notes)) if notes else ""
    return items(lines) + known


def _panel(view: DatasetView, panel: str) -> str:
    """One tab of a dataset: its scores, its figures, and what else belongs to it."""
    scores = [score for score in view.scores if score.panel == panel]
    pictures = [picture for picture in view.pictures if picture.panel == panel]
    parts = []
    if panel == "events" and view.comparisons:
        parts.append(
            "<p>Drag to turn, pinch, + and - or the wheel to zoom, after a click into the picture; a double click goes "
            "back. Beside each object of truth: the generated one that is nearest in incident energy, or in pT.</p>"
            + event_display(view.comparisons)
        )
    parts.append(figures(pictures))
    if scores:
        label = f"{PANELS.get(panel, panel)} of {view.title}"
        parts.append(score_table(scores, view.models, label))
    if panel == "distributions":
        for model, comparison in view.comparisons.items():
            parts.append(details(f"All numbers of the distributions: {model}", _rows(comparison.rows)))
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
    heads = heads if short else [*heads, "separation", "its floor", "n per side"]
    return table(heads, lines, left=3, label="Medians and Wasserstein distances")


def _classifiers(arms: Sequence[ArmResult], scores: Sequence[Score], pictures: Sequence[Picture]) -> str:
    """All of the classifiers' tab: the table of the arms, curves, and every other number, a column per classifier."""
    rest = score_table(scores, list(dict.fromkeys(s.model for s in scores)), "Scores of classifiers") if scores else ""
    return _arms(arms) + figures(pictures) + rest


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
    return table(heads, lines, left=2, label="Classifiers")


def run_section(run: RunDescription) -> str:
    """What was run, as tables."""
    parts = []
    if run.stages:
        lines = [
            table_row([s.name, s.kind, "–" if s.wall_seconds is None else f"{s.wall_seconds:.1f}", s.note])
            for s in run.stages
        ]
        parts.append("<h3>Stages</h3>" + table(["stage", "kind", "wall time [s]", "note"], lines, 2, "Stages"))
    blocks = {"Datasets": run.datasets, "Models": run.models, "Settings": run.facts, "Versions": run.versions}
    parts += [f"<h3>{title}</h3>{pairs_table(pairs.items(), title)}" for title, pairs in blocks.items() if pairs]
    return "".join(parts) or "<p>Nothing is known about the run.</p>"
