"""Building blocks of reports: tables, numbers, badges and figures as HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

import numpy as np

from foundation.evaluate.figures import Picture
from foundation.evaluate.metrics import Measurement


class Cell(str):
    """A table cell that is HTML already."""


def figures(pictures: Iterable[Picture]) -> str:
    """Figures with their captions, side by side where the screen is wide enough."""
    shown = []
    for picture in pictures:
        data = base64.b64encode(picture.png).decode("ascii")
        focus = ' tabindex="0"' if picture.wide else ""
        shown.append(
            f'<figure class="{"wide" if picture.wide else "single"}"{focus}><img alt="{escaped(picture.caption)}" '
            f'data-name="{escaped(picture.name)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{escaped(picture.caption)}</figcaption></figure>'
        )
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def table_row(cells: Sequence[str], kind: str = "") -> str:
    """A row of a table; text is escaped, a Cell is taken as it is. kind: class of the row, such as `own`."""
    inside = "".join(c if isinstance(c, Cell) else f"<td>{escaped(c)}</td>" for c in cells)
    return f'<tr class="{kind}">{inside}</tr>' if kind else f"<tr>{inside}</tr>"


def badge(words: str, level: str, below: str = "", best: bool = False) -> Cell:
    """A cell with a coloured badge of `level` as `grade` gives it; a plain one where that is empty.

    below: a second, smaller line; best: a star in front, for the best of several columns
    """
    words = f"★ {words}" if best else words
    kind = " best" if best else ""
    inside = f'<span class="badge {level}{kind}">{escaped(words)}</span>' if level else escaped(words)
    small = f"<small>{escaped(below)}</small>" if below else ""
    return Cell(f"<td>{inside}{small}</td>")


def table(heads: Sequence[str], lines: Sequence[str], left: int, label: str = "Table") -> str:
    """A table of rows made by `table_row`; its first `left` columns are aligned to the left. Scrolls in its own box."""
    head = "".join(
        f'<th scope="col" class="t">{h}</th>' if k < left else f'<th scope="col">{h}</th>' for k, h in enumerate(heads)
    )
    aligned = [line.replace("<td>", '<td class="t">', left) for line in lines]
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(label)}"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(aligned)}</tbody></table></div>"
    )


def pairs_table(pairs: Iterable[tuple[object, object]], label: str) -> str:
    """Names and values, a line each."""
    lines = [f'<tr><th scope="row" class="t">{escaped(k)}</th><td class="t w">{escaped(v)}</td></tr>' for k, v in pairs]
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(label)}"><table><tbody>'
        f"{''.join(lines)}</tbody></table></div>"
    )


def details(words: str, content: str) -> str:
    """Content that opens on demand; paper shows it."""
    return f"<details><summary>{escaped(words)}</summary>{content}</details>"


def items(lines: Iterable[str]) -> str:
    """A list; empty where there are no lines."""
    inside = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return f"<ul>{inside}</ul>" if inside else ""


def measured(m: Measurement) -> str:
    """`12.3 ± 0.4`, rounded to two digits of the error; `> 500` for a lower limit; powers of ten where it is tiny."""
    if m.limit:
        return f"> {number(m.value)}"
    if not np.isfinite(m.value) or not np.isfinite(m.error) or m.error <= 0:
        return number(m.value)
    if m.error < 1e-4 and abs(m.value) < 1e-2:
        power = int(np.floor(np.log10(max(abs(m.value), m.error))))
        scaled = Measurement(m.value / 10.0**power, m.error / 10.0**power)
        return f"({measured(scaled)})e{power}"
    digits = max(0, 1 - int(np.floor(np.log10(m.error))))
    return f"{m.value:.{digits}f} ± {m.error:.{digits}f}"


def number(value: float) -> str:
    """Three digits, whole numbers from 1000 on, a dash for what is not a number."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def escaped(value: object) -> str:
    """Text as HTML wants it."""
    return html.escape(str(value))
