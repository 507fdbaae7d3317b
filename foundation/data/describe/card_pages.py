"""Cards as pages: Markdown for the documentation, aligned text for a terminal.

python -m foundation.data.describe.card_pages docs/reference/datasets
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from foundation.data.cards import DatasetCard, card_paths, load_card
from foundation.data.describe.card_content import Block, Chapter, Commands, Items, Table, chapters
from foundation.data.describe.text_table import WIDTH, table_lines
from foundation.errors import DataError

NOTE = "<!-- made from the card by: python -m foundation.data.describe.card_pages docs/reference/datasets -->"


def card_page(card: DatasetCard) -> str:
    """The page of one card, Markdown."""
    parts = [f"# {card.title}", NOTE, f"Card `{card.name}` ({card.domain}s), tag `{card.tag}`."]
    if card.description:
        parts.append(" ".join(card.description.split()))
    for chapter in chapters(card):
        parts += [f"## {chapter.title}", *(_markdown(block) for block in chapter.blocks)]
    return "\n\n".join(parts) + "\n"


def index_page(cards: Sequence[DatasetCard]) -> str:
    """The list of all cards, Markdown."""
    intro = (
        "One page per dataset card in `datasets/`. `foundation data show CARD` prints the same in a terminal; "
        "[Your own data](../../how-to/own-data.md) says how to read files that are not listed here."
    )
    parts = ["# Datasets", NOTE, intro]
    for domain, title in (("jet", "Jets"), ("shower", "Showers")):
        rows = tuple(
            (f"[{card.name}]({card.name}.md)", card.title, _container(card), card.licence)
            for card in cards
            if card.domain == domain
        )
        if rows:
            parts += [f"## {title}", _markdown(Table(("card", "dataset", "files", "licence"), rows))]
    return "\n\n".join(parts) + "\n"


def write_pages(folder: Path, cards: Sequence[DatasetCard] | None = None) -> list[Path]:
    """Write NAME.md for every card (by default those that ship) and index.md; pages of cards that are gone go too."""
    cards = [load_card(name) for name in card_paths()] if cards is None else cards
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{card.name}.md": card_page(card) for card in cards} | {"index.md": index_page(cards)}
    for old in folder.glob("*.md"):
        if old.name not in pages and NOTE in old.read_text(encoding="utf-8"):
            old.unlink()
    for name, text in pages.items():
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, folder / name)
    return [folder / name for name in pages]


def card_lines(card: DatasetCard) -> list[str]:
    """The card for a terminal: the content of its page as aligned text."""
    lines = [card.title, "=" * len(card.title), f"card {card.name} ({card.domain}s), tag {card.tag}"]
    if card.description:
        lines += ["", *textwrap.wrap(" ".join(card.description.split()), WIDTH)]
    for chapter in chapters(card):
        lines += ["", chapter.title, "-" * len(chapter.title), *_plain(chapter)]
    return lines


def _container(card: DatasetCard) -> str:
    return "simulated" if card.format is None else card.format.container


def _markdown(block: Block) -> str:
    match block:
        case Items(items):
            return "\n".join(f"- {' '.join(item.split())}" for item in items)
        case Commands(lines):
            return "\n".join(f"    {line}" for line in lines)
        case Table(header, rows):
            cells = [header, tuple("---" for _ in header), *rows]
            return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells)
    return block


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _plain(chapter: Chapter) -> list[str]:
    lines: list[str] = []
    for block in chapter.blocks:
        if lines:
            lines.append("")
        match block:
            case Items(items):
                for item in items:
                    text = " ".join(item.split())
                    lines += textwrap.wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")
            case Commands(commands):
                lines += commands
            case Table(header, rows):
                lines += table_lines(header, [[cell.replace("`", "") for cell in row] for row in rows])
            case _:
                lines += textwrap.wrap(block, WIDTH)
    return [line.replace("`", "") for line in lines]


def main(arguments: Sequence[str]) -> int:
    """`python -m foundation.data.describe.card_pages FOLDER`."""
    if len(arguments) != 1:
        print("usage: python -m foundation.data.describe.card_pages FOLDER", file=sys.stderr)
        return 2
    try:
        pages = write_pages(Path(arguments[0]))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(pages)} pages written to {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
