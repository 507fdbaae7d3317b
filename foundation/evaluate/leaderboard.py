"""Published numbers, to stand beside ours: only of the very same dataset, and under the very same definition.

One YAML file per dataset card in published/, with its source. Left out on purpose: numbers whose script we know to
differ (W1-P as a weighted mean, features clamped to the truth's range, an older version of the dataset), numbers read
off figures, and timings, which are those of other machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from foundation.evaluate.scores import Published

FOLDER = Path(__file__).with_name("published")
NOT_NUMBERS = ("system", "group", "source")


def published(card: str, definition: str | None = None) -> list[Published]:
    """What others have published on the dataset of this card: all of it, or what has this definition."""
    return [entry for entry in _of_card(card) if definition is None or entry.definition == definition]


@cache
def _of_card(card: str) -> tuple[Published, ...]:
    path = FOLDER / f"{card}.yaml"
    if not path.is_file():
        return ()
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(entry for system in content["systems"] for entry in _of_system(content, system))


def _of_system(content: Mapping[str, Any], system: Mapping[str, Any]) -> Iterator[Published]:
    """One entry per number of a system: a value, or a value and its error."""
    for name, number in system.items():
        if name not in NOT_NUMBERS:
            value, error = number if isinstance(number, list) else (number, float("nan"))
            yield Published(
                system["system"], content["definitions"][name], name, float(value),
                system.get("source", content["source"]), float(error), system.get("group", "all"),
            )  # fmt: skip
