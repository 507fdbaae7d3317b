"""Tables as aligned text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

WIDTH = 120
"""Columns of a terminal that tables are folded to."""
NARROWEST = 12
"""A column of words is not folded below this."""


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Columns two spaces apart below a header with a rule; cells of the widest columns are folded to fit `width`."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in (header, ["-" * size for size in widths], *rows):
        cells = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            lines.append("  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip())
    return lines
