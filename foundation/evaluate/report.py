"""The report: one HTML file with everything inside, for a screen or a phone, in light and in dark."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import numpy as np

from foundation.evaluate.comparison import Comparison, Row
from foundation.evaluate.figures import Picture
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


PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
:root{color-scheme:light dark;--bg:#fdfdfc;--fg:#1c1e21;--soft:#5c6470;--line:#d9dce1;--panel:#f3f4f6;--link:#0a5fa5;
--good:#1a7f45;--fair:#9a6400;--poor:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--fg:#e4e6e9;--soft:#9aa3af;--line:#343940;--panel:#1e2125;
--link:#7ab8f0;--good:#58c785;--fair:#e0ad4a;--poor:#f28b82}}
*{box-sizing:border-box}body{margin:0 auto;max-width:76rem;padding:1.2rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;line-height:1.2;margin:.4rem 0}h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-top:.8rem;
border-top:1px solid var(--line)}h3{font-size:1rem;margin:1.2rem 0 .4rem}p,li{max-width:52rem}.soft{color:var(--soft)}
nav a{margin-right:1rem}a{color:var(--link)}.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600;background:var(--panel)}td.t,th.t{text-align:left}td.w{white-space:normal;
min-width:14rem}.badge{display:inline-block;min-width:3.6rem;padding:0 .45rem;border-radius:.7rem;text-align:center;
border:1px solid currentColor}.good{color:var(--good)}.fair{color:var(--fair)}.poor{color:var(--poor)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0;padding:.5rem;background:#fff;color:#333;border:1px solid var(--line);border-radius:.4rem;
overflow-x:auto}figure.wide{grid-column:1/-1}figure img{display:block;max-width:100%;height:auto;margin:0 auto}
figure.wide img{min-width:38rem}figcaption{font-size:.82rem;padding-top:.4rem}
pre{background:var(--panel);padding:.7rem;overflow-x:auto;border-radius:.3rem}summary{cursor:pointer;color:var(--link)}
</style></head><body>
<header><h1>$title</h1><p class="soft">$summary</p><nav>$links</nav></header>
$body
</body></html>
""")


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
        parts.append(("classifiers", "Classifiers", _arms(arms) + _figures(classifier_pictures)))
    if training_pictures:
        parts.append(("training", "Training", _figures(training_pictures)))
    parts.append(("run", "What was run", _run(run)))
    if run.reproduce:
        parts.append(("reproduce", "How to reproduce", f"<pre>{_text(chr(10).join(run.reproduce))}</pre>"))
    page = PAGE.substitute(
        title=_text(run.title),
        summary=_text(run.summary),
        links=" ".join(f'<a href="#{_text(key)}">{_text(title)}</a>' for key, title, _ in parts),
        body="\n".join(f'<section id="{_text(k)}"><h2>{_text(t)}</h2>{content}</section>' for k, t, content in parts),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def grade(value: float, good: float, fair: float) -> str:
    """`good`, `fair` or `poor` by size, empty for what is not a number."""
    if not np.isfinite(value):
        return ""
    return "good" if abs(value) <= good else "fair" if abs(value) <= fair else "poor"


def _summary(sections: Sequence[Section], arms: Sequence[ArmResult], problems: Sequence[str]) -> str:
    explanation = (
        "<p>Every distance is the Wasserstein-1 distance between generated objects and held-out truth, beside its "
        "<em>floor</em>: the distance between two halves of the truth of the same size. A ratio of 1 means "
        "indistinguishable at this sample size. Colours: ratio up to "
        f"{GOOD_RATIO:g} green, up to {FAIR_RATIO:g} amber; difference of medians up to {GOOD_DIFFERENCE:.0%} green, "
        f"up to {FAIR_DIFFERENCE:.0%} amber.</p>"
    )
    failed = "".join(f'<p class="poor">Not evaluated: {_text(problem)}</p>' for problem in problems)
    tables = []
    for section in sections:
        first = section.comparison.rows[0].group
        jets = section.comparison.domain == "jet"
        rows = [row for row in section.comparison.rows if jets or row.group == first]
        tables.append(f"<h3>{_text(section.comparison.title)}</h3>{_rows(rows, short=True)}")
    return explanation + failed + "".join(tables) + ("<h3>Classifiers</h3>" + _arms(arms) if arms else "")


def _section(section: Section) -> str:
    comparison = section.comparison
    truth, generated = len(comparison.truth), len(comparison.generated)
    parts = [f"<p>{truth} held-out truth objects, {generated} generated; seed {comparison.seed}.</p>"]
    for name, (true_peak, peak) in comparison.peaks.items():
        parts.append(
            f"<p>Mass peak of {_text(name)} jets (mode in 120-230 GeV): truth {_measured(true_peak)} GeV, "
            f"generated {_measured(peak)} GeV.</p>"
        )
    parts.append(_figures(section.pictures))
    parts.append(f"<details><summary>All numbers</summary>{_rows(comparison.rows)}</details>")
    if comparison.notes:
        parts.append("<h3>Notes</h3><ul>" + "".join(f"<li>{_text(note)}</li>" for note in comparison.notes) + "</ul>")
    return "".join(parts)


def _rows(rows: Sequence[Row], short: bool = False) -> str:
    heads = ["group", "observable", "unit", "truth", "generated", "difference", "W1", "floor", "ratio"]
    lines = []
    for row in rows:
        if row.problem:
            reason = _Cell(f'<td class="t w" colspan="{6 if short else 9}">{_text(row.problem)}</td>')
            lines.append(_line([row.group, row.observable, row.unit, reason]))
            continue
        difference = f"{row.relative_difference:+.1%}" if np.isfinite(row.relative_difference) else "–"
        cells = [
            row.group,
            row.observable,
            row.unit,
            _number(row.truth_median),
            _number(row.generated_median),
            _badge(difference, grade(row.relative_difference, GOOD_DIFFERENCE, FAIR_DIFFERENCE)),
            _measured(Measurement(row.w1, row.w1_error)),
            _number(row.floor),
            _badge(_number(row.ratio), grade(row.ratio, GOOD_RATIO, FAIR_RATIO)),
        ]
        if not short:
            cells += [f"{row.separation:.4f}", f"{row.separation_floor:.4f}", str(row.n)]
        lines.append(_line(cells))
    return _table(heads if short else [*heads, "separation", "its floor", "n per side"], lines, left=3)


def _arms(arms: Sequence[ArmResult]) -> str:
    heads = ["classifier", "task", "labels", "tested on", "accuracy", "AUC", "rejection at 30 %", "rejection at 50 %"]
    lines = []
    for arm in arms:
        cells: list[str | _Cell] = [arm.name, arm.task, str(arm.n_train)]
        if arm.scores is None:
            cells.append(_Cell(f'<td class="t w" colspan="5">{_text(arm.problem)}</td>'))
        else:
            s = arm.scores
            cells.append(str(s.n_signal + s.n_background))
            cells += [_measured(m) for m in (s.accuracy, s.auc, s.rejection_30, s.rejection_50)]
        lines.append(_line(cells))
    return _table(heads, lines, left=2)


def _run(run: RunDescription) -> str:
    parts = []
    if run.stages:
        lines = [
            _line([s.name, s.kind, "–" if s.wall_seconds is None else f"{s.wall_seconds:.1f}", s.note])
            for s in run.stages
        ]
        parts.append("<h3>Stages</h3>" + _table(["stage", "kind", "wall time [s]", "note"], lines, left=2))
    blocks = {"Datasets": run.datasets, "Models": run.models, "Settings": run.facts, "Versions": run.versions}
    for title, pairs in blocks.items():
        if pairs:
            lines = [f'<tr><td class="t">{_text(k)}</td><td class="t w">{_text(v)}</td></tr>' for k, v in pairs.items()]
            parts.append(f'<h3>{title}</h3><div class="scroll"><table>{"".join(lines)}</table></div>')
    return "".join(parts) or "<p>Nothing is known about the run.</p>"


def _figures(pictures: Iterable[Picture]) -> str:
    shown = []
    for picture in pictures:
        data = base64.b64encode(picture.png).decode("ascii")
        shown.append(
            f'<figure class="{"wide" if picture.wide else "single"}"><img alt="{_text(picture.name)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{_text(picture.caption)}</figcaption></figure>'
        )
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


class _Cell(str):
    """A table cell that is HTML already."""


def _line(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(c if isinstance(c, _Cell) else f"<td>{_text(c)}</td>" for c in cells) + "</tr>"


def _badge(text: str, level: str) -> _Cell:
    return _Cell(f'<td><span class="badge {level}">{_text(text)}</span></td>' if level else f"<td>{_text(text)}</td>")


def _table(heads: Sequence[str], lines: Sequence[str], left: int) -> str:
    head = "".join(f'<th class="t">{h}</th>' if k < left else f"<th>{h}</th>" for k, h in enumerate(heads))
    aligned = [line.replace("<td>", '<td class="t">', left) for line in lines]
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(aligned)}</table></div>'


def _measured(m: Measurement) -> str:
    """`12.3 ± 0.4`, rounded to two digits of the error; `> 500` for a lower limit."""
    if m.limit:
        return f"> {_number(m.value)}"
    if not np.isfinite(m.value) or not np.isfinite(m.error) or m.error <= 0:
        return _number(m.value)
    digits = max(0, 1 - int(np.floor(np.log10(m.error))))
    return f"{m.value:.{digits}f} ± {m.error:.{digits}f}"


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(value: object) -> str:
    return html.escape(str(value))
