"""metrics.json: all numbers of an evaluation in tidy rows, written whole or not at all, and readable back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import foundation
from foundation.errors import DataError
from foundation.evaluate.scores import NAN, Score

SCHEMA = "foundation/metrics/2"
PACKAGES = ("numpy", "scipy", "torch", "fastjet")


@dataclass(frozen=True)
class SavedMetrics:
    """What a metrics.json says.

    scores:   the rows, one number each
    versions: of the platform and of packages that the numbers depend on
    datasets: by name of the card: title, domain, numbers of objects, rows of the comparisons, notes
    classifiers: of each arm its task, its number of labels and its scores
    """

    scores: tuple[Score, ...]
    seed: int
    versions: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, Any] = field(default_factory=dict)
    classifiers: Sequence[Mapping[str, Any]] = ()
    problems: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Models in the order of the rows."""
        return tuple(dict.fromkeys(score.model for score in self.scores))


def versions() -> dict[str, str]:
    """Versions of the platform and of the packages that numbers depend on, as far as they are installed."""
    found = {"foundation": foundation.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_metrics(path: Path, saved: SavedMetrics) -> Path:
    """Write metrics.json; what is not finite becomes null."""
    content = {
        "schema": SCHEMA,
        "versions": dict(saved.versions),
        "seed": saved.seed,
        "datasets": dict(saved.datasets),
        "scores": [asdict(score) for score in saved.scores],
        "classifiers": list(saved.classifiers),
        "problems": list(saved.problems),
    }
    return write_json(path, content)


def read_metrics(path: Path) -> SavedMetrics:
    """Read what `write_metrics` wrote; null is NaN again.

    Raises DataError where there is no such file, or it is none of this kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of metrics") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as metrics ({error})") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise DataError(f"{path}: is not a file of metrics that this version reads (schema {schema}, not {SCHEMA})")
    try:
        rows: list[dict[str, Any]] = [
            {name: NAN if value is None else value for name, value in row.items()} for row in content["scores"]
        ]
        return SavedMetrics(
            tuple(Score(**row) for row in rows), int(content["seed"]), content["versions"], content["datasets"],
            tuple(content["classifiers"]), tuple(content["problems"]),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged file of metrics ({error!r}); make it again") from None


def write_json(path: Path, content: Mapping[str, object]) -> Path:
    """Write JSON to `path`, whole or not at all; what is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
