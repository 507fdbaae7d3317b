"""The page itself: tabs that work by mouse and keyboard, and show everything on paper and without script."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from foundation.evaluate.html.parts import escaped

HERE = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a browser may load for this page: what is written in it, and nothing from anywhere else."""


@dataclass(frozen=True)
class Tab:
    """A tab: HTML, and tabs within it. key: its anchor; label: what its button says, where the title is too long."""

    key: str
    title: str
    content: str
    tabs: Sequence[Tab] = ()
    label: str = ""


def write_page(path: Path, title: str, summary: str, tabs: Sequence[Tab], scripts: Sequence[str] = ()) -> Path:
    """Write a page of tabs to `path`, whole or not at all. scripts: files of this package beside page.js."""
    tabs = _unique(tabs, set())
    links = " ".join(f'<a href="#{escaped(tab.key)}">{escaped(tab.label or tab.title)}</a>' for tab in tabs)
    code = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("page.js", *scripts))
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escaped(title)}</title><style>
{(HERE / "page.css").read_text(encoding="utf-8")}</style></head><body>
<header><div><h1>{escaped(title)}</h1><p class="soft">{escaped(summary)}</p></div>
<button type="button" id="theme" hidden aria-label="Light or dark">◐ Theme</button></header>
<nav class="contents" aria-label="Contents">{links}</nav>
<main class="tabs" data-label="Parts of the report">
{"".join(_section(tab, 2) for tab in tabs)}
</main>
<script>
{code}</script>
</body></html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def _unique(tabs: Sequence[Tab], taken: set[str]) -> list[Tab]:
    """The same tabs, a number behind every anchor that another one has."""
    done = []
    for tab in tabs:
        key = next(k for k in chain([tab.key], (f"{tab.key}-{n}" for n in count(2))) if k not in taken)
        taken.add(key)
        done.append(replace(tab, key=key, tabs=_unique(tab.tabs, taken)))
    return done


def _section(tab: Tab, level: int) -> str:
    inner = "".join(_section(child, level + 1) for child in tab.tabs)
    if inner:
        inner = f'<div class="tabs" data-label="{escaped(tab.title)}">{inner}</div>'
    return (
        f'<section class="tab" id="{escaped(tab.key)}" data-title="{escaped(tab.label or tab.title)}">'
        f"<h{level}>{escaped(tab.title)}</h{level}>{tab.content}{inner}</section>\n"
    )
