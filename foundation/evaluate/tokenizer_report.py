"""Tables and the report of tokenizers: tokenizers.html, and Markdown that can be pasted into a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.data.cards import DatasetCard
from foundation.evaluate.figures import Picture
from foundation.evaluate.html.page import Tab, write_page
from foundation.evaluate.html.parts import details, escaped, figures, measured, number, table, table_row
from foundation.evaluate.information import ORIGINAL, InformationLoss
from foundation.evaluate.metrics import Measurement
from foundation.evaluate.report import RunDescription, run_section
from foundation.evaluate.residuals import Residuals
from foundation.evaluate.tokenizer_plots import Distortion
from foundation.evaluate.tokenizers import Quality


@dataclass(frozen=True)
class Column:
    """A residual of whole objects in the table: which statistic, and whether it is given in per cent."""

    observable: str
    statistic: str
    heading: str
    percent: bool = False


COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "jet": (
        Column("mass", "width", "mass width [%]", percent=True),
        Column("mass", "bias", "mass bias [%]", percent=True),
        Column("pt", "width", "pT width [%]", percent=True),
        Column("tau32", "width", "tau32 width"),
    ),
    "shower": (
        Column("energy_sum", "width", "energy width [%]", percent=True),
        Column("energy_sum", "bias", "energy bias [%]", percent=True),
        Column("hits", "bias", "hits bias"),
        Column("cog_layer", "width", "depth width [layer]"),
    ),
}
"""By domain; the first is the distortion of the rate-distortion figure."""


def distortions(qualities: Sequence[Quality], losses: Sequence[InformationLoss], domain: str) -> tuple[Distortion, ...]:
    """A point for each tokenizer: the first column of `COLUMNS`, and the gap of each network."""
    points = []
    for quality in qualities:
        first = COLUMNS[domain][0]
        row = quality.of_objects(first.observable)
        lost = {} if row is None else {first.heading: _scaled(row.residuals.width, 100)}
        lost |= {_gap_heading(x): _scaled(x.gap, 100) for x in losses if x.tokenizer == quality.name}
        points.append(Distortion(quality.name, quality.rate.bits, quality.rate.entropy_bits, lost))
    return tuple(points)


def _gap_heading(loss: InformationLoss) -> str:
    what = "accuracy" if loss.task == "classification" else "resolution"
    return f"{what} gap {loss.network.replace('_', ' ')} [pp]"


def rate_table(
    qualities: Sequence[Quality], losses: Sequence[InformationLoss], domain: str
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the rate-distortion table, a line per tokenizer."""
    gaps = list(dict.fromkeys(_gap_heading(x) for x in losses if x.tokenizer != ORIGINAL))
    heads = ["tokenizer", "kind", "features", "codes", "tokens", "steps", "bits", "entropy [bits]", "used"]
    heads += [column.heading for column in COLUMNS[domain]] + gaps + ["encode/s", "decode/s"]
    rows = []
    for quality in qualities:
        found = {_gap_heading(x): measured(_scaled(x.gap, 100)) for x in losses if x.tokenizer == quality.name}
        rows.append(
            [
                *_of_codes(quality),
                *(_of_object(quality, column) for column in COLUMNS[domain]),
                *(found.get(gap, "–") for gap in gaps),
                number(quality.encode_per_second),
                number(quality.decode_per_second),
            ]
        )
    return heads, rows


def _of_codes(quality: Quality) -> list[str]:
    rate, sizes = quality.rate, [stream.size for stream in quality.streams]
    same = len(sizes) > 1 and len(set(sizes)) == 1
    return [
        quality.name,
        quality.kind,
        str(len(quality.features)),
        f"{len(sizes)} of {sizes[0]}" if same else " x ".join(map(str, sizes)),
        number(rate.tokens),
        f"{number(rate.delayed)} / {number(rate.interleaved)}",
        number(rate.bits),
        number(rate.entropy_bits),
        f"{min(stream.used for stream in quality.streams):.0%}",
    ]


def _of_object(quality: Quality, column: Column) -> str:
    row = quality.of_objects(column.observable)
    if row is None:
        return "–"
    value: Measurement = getattr(row.residuals, column.statistic)
    return measured(_scaled(value, 100 if column.percent else 1))


def _scaled(value: Measurement, factor: float) -> Measurement:
    return Measurement(value.value * factor, value.error * factor, value.limit)


def information_table(losses: Sequence[InformationLoss]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: what networks reach on the original and on decoded objects."""
    heads = ["trained and tested on", "network", "task", "score", "AUC", "gap [pp]", "seconds"]
    rows = []
    for x in losses:
        auc = "–" if x.auc is None else measured(x.auc)
        gap = "–" if x.tokenizer == ORIGINAL else measured(_scaled(x.gap, 100))
        rows.append([x.tokenizer, x.network.replace("_", " "), x.task, measured(x.score), auc, gap, f"{x.seconds:.0f}"])
    return heads, rows


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with aligned columns, the first one to the left."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return [line(heads), line(rule), *(line(row) for row in rows)]


def write_tokenizer_report(
    path: Path,
    run: RunDescription,
    card: DatasetCard,
    qualities: Sequence[Quality],
    losses: Sequence[InformationLoss],
    pictures: Mapping[str, Sequence[Picture]],
    problems: Sequence[str],
) -> Path:
    """Write the report to `path`, whole or not at all. pictures: of the sections rates, features, objects, codes."""
    parts = [("rates", "Rate and distortion", _rates(card, qualities, losses, problems) + figures(pictures["rates"]))]
    if losses:
        heads, rows = information_table(losses)
        parts.append(("information", "Loss of information", _information_words() + _html(heads, rows, left=3)))
    parts.append(
        ("objects", "Whole objects", figures(pictures["objects"]) + details("All numbers", _objects(qualities)))
    )
    if any(quality.feature_rows for quality in qualities):
        content = figures(pictures["features"]) + details("All numbers", _features(qualities))
        parts.append(("features", "Features of the points", content))
    if any(quality.voxels for quality in qualities):
        parts.append(("voxels", "Voxels", _voxels(qualities)))
    parts.append(("codes", "Codes", figures(pictures["codes"]) + details("All streams", _codes(qualities))))
    notes = [f"{q.name}: {note}" for q in qualities for note in (*q.notes, *_outside(q))]
    if notes:
        parts.append(("notes", "Notes", "<ul>" + "".join(f"<li>{escaped(note)}</li>" for note in notes) + "</ul>"))
    parts.append(("run", "What was run", run_section(run)))
    if run.reproduce:
        parts.append(("reproduce", "How to reproduce", f"<pre>{escaped(chr(10).join(run.reproduce))}</pre>"))
    return write_page(path, run.title, run.summary, [Tab(*part) for part in parts])


def _html(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    return table([escaped(head) for head in heads], [table_row(row) for row in rows], left)


def _rates(
    card: DatasetCard, qualities: Sequence[Quality], losses: Sequence[InformationLoss], problems: Sequence[str]
) -> str:
    words = (
        f"<p>{qualities[0].objects} held-out objects of {escaped(card.title)} were encoded and decoded. Widths are "
        "half of the central 68 % of the residuals, object by object; biases are means. <em>tokens</em>, "
        "<em>steps</em> (delayed / interleaved streams) and bits are means per object: log2 of the numbers of codes, "
        "and the entropy of the histogram of single codes. <em>used</em> is the share of codes that occur, of the "
        "stream with the least. Speeds are objects per second of processor time of one thread.</p>"
    )
    failed = "".join(f'<p class="poor">Not measured: {escaped(problem)}</p>' for problem in problems)
    return words + failed + _html(*rate_table(qualities, losses, card.domain), left=3)


def _information_words() -> str:
    return (
        "<p>The same network is trained and tested on original and on decoded objects. The score is the accuracy of a "
        "classification, or the resolution of a regression of the energy; the gap is how much worse it gets, on the "
        "same test objects, in percentage points.</p>"
    )


def _objects(qualities: Sequence[Quality]) -> str:
    heads = ["quantity", "group", "tokenizer", "unit", "n", "truth", "decoded", *RESIDUALS, "W1", "floor"]
    rows = [
        [
            r.observable, r.group, q.name, "relative" if r.relative else r.unit, str(r.residuals.n), number(r.truth),
            number(r.decoded), *_statistics(r.residuals), measured(r.w1), number(r.floor),
        ]
        for q in qualities
        for r in q.object_rows
    ]  # fmt: skip
    return _html(heads, _grouped(rows), left=4)


def _features(qualities: Sequence[Quality]) -> str:
    heads = ["feature", "group", "tokenizer", "unit", "exact", *RESIDUALS]
    rows = [
        [
            r.feature, r.group, q.name, "relative" if r.relative else r.unit,
            f"{r.exact:.2%}" if np.isfinite(r.exact) else "–", *_statistics(r.residuals),
        ]
        for q in qualities
        for r in q.feature_rows
    ]  # fmt: skip
    return _html(heads, _grouped(rows), left=4)


def _grouped(rows: list[list[str]]) -> list[list[str]]:
    """Rows that differ in the tokenizer only come together, everything else in the order in which it first comes."""
    first = {key: k for k, key in reversed(list(enumerate((row[0], row[1]) for row in rows)))}
    return sorted(rows, key=lambda row: first[(row[0], row[1])])


RESIDUALS = ("bias", "median", "width", "rms", "tail", "99 % below")


def _statistics(r: Residuals) -> list[str]:
    tail = f"{r.tail:.2%}" if np.isfinite(r.tail) else "–"
    return [measured(r.bias), number(r.median), measured(r.width), number(r.rms), tail, number(r.far)]


def _codes(qualities: Sequence[Quality]) -> str:
    rows = [
        [q.name, s.name, str(s.size), f"{s.used:.1%}", number(s.perplexity), f"{s.entropy_bits:.2f}"]
        for q in qualities
        for s in q.streams
    ]
    return _html(["tokenizer", "stream", "codes", "used", "perplexity", "entropy [bits]"], rows, left=2)


def _voxels(qualities: Sequence[Quality]) -> str:
    parts = ["<p>Response is the decoded over the true energy of the voxels of a bin; empty ones count as zero.</p>"]
    rows = []
    for q in qualities:
        if q.voxels is None:
            continue
        parts.append(
            f"<p>{escaped(q.name)}: {q.voxels.found:.1%} of the true voxels are hit after decoding; "
            f"{q.voxels.made_up:.1%} of the decoded ones are empty in truth, with {q.voxels.made_up_energy:.1%} of the "
            "energy.</p>"
        )
        for b in q.voxels.bins:
            bounds = f"{number(b.low)} - {number(b.high)}"
            rows.append([q.name, bounds, str(b.voxels), f"{b.found:.1%}", number(b.response), number(b.width)])
    heads = ["tokenizer", "true energy [MeV]", "voxels", "found", "response", "width of those found"]
    return "".join(parts) + _html(heads, rows, left=2)


def _outside(quality: Quality) -> list[str]:
    return [
        f"{count} points have '{feature}' outside of the window that it was fitted for"
        for feature, count in quality.outside.items()
    ]
