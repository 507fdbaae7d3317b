"""Building blocks of reports: pages of HTML that hold everything inside, with tables, numbers and figures."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import numpy as np

from foundation.evaluate.figures import Picture
from foundation.evaluate.metrics import Measurement

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


def write_page(path: Path, title: str, summary: str, parts: Sequence[tuple[str, str, str]]) -> Path:
    """Write a page of (anchor, heading, HTML) to `path`, whole or not at all."""
    page = PAGE.substitute(
        title=escaped(title),
        summary=escaped(summary),
        links=" ".join(f'<a href="#{escaped(key)}">{escaped(heading)}</a>' for key, heading, _ in parts),
        body="\n".join(
            f'<section id="{escaped(k)}"><h2>{escaped(t)}</h2>{content}</section>' for k, t, content in parts
        ),
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


def figures(pictures: Iterable[Picture]) -> str:
    """Figures with their captions, side by side where the screen is wide enough."""
    shown = []
    for picture in pictures:
        data = base64.b64encode(picture.png).decode("ascii")
        shown.append(
            f'<figure class="{"wide" if picture.wide else "single"}"><img alt="{escaped(picture.name)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{escaped(picture.caption)}</figcaption></figure>'
        )
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


class Cell(str):
    """A table cell that is HTML already."""


def table_row(cells: Sequence[str]) -> str:
    """A row of a table; text is escaped, a Cell is taken as it is."""
    return "<tr>" + "".join(c if isinstance(c, Cell) else f"<td>{escaped(c)}</td>" for c in cells) + "</tr>"


def badge(words: str, level: str) -> Cell:
    """A cell with a coloured badge of `level` as `grade` gives it; a plain one where that is empty."""
    inside = f'<span class="badge {level}">{escaped(words)}</span>' if level else escaped(words)
    return Cell(f"<td>{inside}</td>")


def table(heads: Sequence[str], lines: Sequence[str], left: int) -> str:
    """A table of rows made by `table_row`; its first `left` columns are aligned to the left."""
    head = "".join(f'<th class="t">{h}</th>' if k < left else f"<th>{h}</th>" for k, h in enumerate(heads))
    aligned = [line.replace("<td>", '<td class="t">', left) for line in lines]
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(aligned)}</table></div>'


def measured(m: Measurement) -> str:
    """`12.3 ± 0.4`, rounded to two digits of the error; `> 500` for a lower limit."""
    if m.limit:
        return f"> {number(m.value)}"
    if not np.isfinite(m.value) or not np.isfinite(m.error) or m.error <= 0:
        return number(m.value)
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
