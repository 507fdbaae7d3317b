"""How figures look and become bytes. No pyplot: nothing global is opened, so nothing has to be closed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUTH, FLOOR, GENERATED = "#4d4d4d", "#0072b2", "#d55e00"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette: told apart by readers with any colour vision."""


MODELS = (GENERATED, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "o^vDP*"


@dataclass(frozen=True)
class Picture:
    """A finished figure. `wide` ones have panels side by side and scroll on a narrow screen.

    panel: the tab of a report that it belongs to, named as in `scores.Score`
    """

    name: str
    caption: str
    png: bytes
    wide: bool = False
    panel: str = "distributions"


@contextmanager
def style() -> Iterator[None]:
    """The mplhep look of ROOT's publications at the size of a report; draw and render inside."""
    import matplotlib
    import mplhep

    ours = {
        "font.size": 11.0,
        "axes.labelsize": 11.0,
        "axes.titlesize": 11.0,
        "axes.linewidth": 1.0,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "xtick.major.size": 6.0,
        "xtick.minor.size": 3.0,
        "ytick.major.size": 6.0,
        "ytick.minor.size": 3.0,
        "xtick.minor.ndivs": 2,
        "ytick.minor.ndivs": 2,
        "legend.fontsize": 9.0,
        "legend.frameon": False,
        "figure.dpi": 120.0,
        "savefig.dpi": 120.0,
        "savefig.bbox": None,
        "pdf.fonttype": 42,  # TrueType inside the file: editors and journals take it, unlike Type 3
        "lines.linewidth": 1.4,
    }
    look: dict[str, Any] = {**mplhep.style.ROOT, **ours}
    with matplotlib.rc_context(look):  # type: ignore[arg-type,unused-ignore]
        yield


def model_look(number: int) -> tuple[str, str]:
    """Colour and marker of the model of this number, the same in all figures."""
    return MODELS[number % len(MODELS)], MARKERS[number % len(MARKERS)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches that belongs to nobody but the caller."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, bottom: float, width: float, height: float, **options: Any) -> Any:
    """Axes at a place given in inches: automatic layouts take longer than all drawing."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **options)


def finish(
    figure: Figure,
    name: str,
    caption: str,
    folder: Path | None = None,
    pdf: bool = False,
    wide: bool = False,
    panel: str = "distributions",
) -> Picture:
    """The figure as PNG bytes; with a folder also as NAME.png there, and NAME.pdf if asked for."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    picture = Picture(name, caption, buffer.getvalue(), wide, panel)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        contents = {"png": picture.png}
        if pdf:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
            contents["pdf"] = buffer.getvalue()
        for ending, content in contents.items():
            part = folder / f"{name}.{ending}.part"
            part.write_bytes(content)
            os.replace(part, folder / f"{name}.{ending}")
    return picture
