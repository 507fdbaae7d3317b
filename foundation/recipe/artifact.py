"""What a stage leaves: its outputs and, written last, an `artifact.json` that says what they are and how made.

A stage is known by its key, a hash of everything that decides its result: kind and version of the stage, its settings,
the seed, the keys of its inputs and the content of its dataset cards. Equal key, equal result: a re-run is skipped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import foundation
from foundation.data.cards import load_card
from foundation.errors import RecipeError

FILE, KEY_FILE, FORMAT = "artifact.json", ".stage-key", 1
PACKAGES = (
    "torch numpy accelerate deepspeed webdataset mlflow safetensors vector-quantize-pytorch h5py hist mplhep "
    "matplotlib scipy pydantic pyyaml pythia8mc fastjet awkward"
).split()
# Checkpoints are large and carry their own markers: their sizes are recorded, their content is not hashed.
UNHASHED = "checkpoints"


class StageSpec(Protocol):
    """What the runner needs to know of a stage of a recipe (`foundation.recipe.schema.StageSpec`)."""

    version: ClassVar[int]

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def needs_all_ranks(self) -> bool: ...

    def references(self) -> Mapping[str, str]: ...

    def card_names(self) -> Iterable[str]: ...

    def execution_only(self) -> Iterable[str]: ...

    def model_dump(self, *, mode: str = ..., by_alias: bool | None = ...) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Artifact:
    """A finished stage."""

    folder: Path
    kind: str
    name: str
    key: str
    spec: dict[str, Any]
    """The resolved settings of the stage."""
    seed: int
    inputs: dict[str, str]
    """Name and key of each stage that it used."""
    summary: dict[str, Any]
    """What the stage returned."""
    outputs: dict[str, tuple[int, str | None]]
    """Path relative to the folder: size in bytes and SHA-256 (None below checkpoints/)."""
    versions: dict[str, str]
    started: str
    finished: str
    """UTC, ISO 8601."""
    seconds: float


def card_digest(name: str, base: Path) -> str:
    """Hash of what a dataset card says; comments and layout of its file do not count."""
    card = load_card(name, base)
    return hashlib.sha256(json.dumps(card.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def stage_key(spec: StageSpec, seed: int, inputs: Mapping[str, str], recipe_folder: Path) -> str:
    """The key (64 hex digits) of a stage whose input stages have these keys."""
    settings = spec.model_dump(mode="json", by_alias=True)
    for field in spec.execution_only():
        *parents, last = field.split(".")
        section: Any = settings
        for part in parents:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(last, None)
    facts = {
        "kind": spec.kind,
        "version": spec.version,
        "settings": settings,
        "seed": seed,
        "inputs": dict(inputs),
        "cards": {name: card_digest(name, recipe_folder) for name in spec.card_names()},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recipe_keys(stages: Iterable[StageSpec], seed: int, recipe_folder: Path) -> dict[str, str]:
    """The keys of all stages by name. They depend on the recipe and its cards only, never on the files of a run."""
    keys: dict[str, str] = {}
    for spec in stages:
        keys[spec.name] = stage_key(spec, seed, input_keys(spec, keys), recipe_folder)
    return keys


def input_keys(spec: StageSpec, keys: Mapping[str, str]) -> dict[str, str]:
    """Name and key of the stages that this one uses; models of the registry are named in its settings."""
    return {name: keys[name] for name in sorted(set(spec.references().values())) if name in keys}


def write_artifact(
    folder: Path,
    spec: StageSpec,
    key: str,
    seed: int,
    inputs: Mapping[str, str],
    summary: dict[str, Any],
    started: float,
) -> Artifact:
    """Record a finished stage; `started` is its time.time(). Only after this does the stage count as finished."""
    now = time.time()
    artifact = Artifact(
        folder=folder,
        kind=spec.kind,
        name=spec.name,
        key=key,
        spec=spec.model_dump(mode="json", by_alias=True),
        seed=seed,
        inputs=dict(inputs),
        summary=json.loads(json.dumps(summary, default=_number)),
        outputs=_outputs(folder),
        versions=_versions(),
        started=_iso(started),
        finished=_iso(now),
        seconds=round(now - started, 3),
    )
    record = {"format": FORMAT, **asdict(artifact)}
    del record["folder"]
    write_atomically(folder / FILE, json.dumps(record, indent=1) + "\n")
    return artifact


def load_artifact(folder: Path) -> Artifact:
    """The artifact in a stage folder."""
    path = folder / FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("format") != FORMAT:
            raise RecipeError(f"{path}: written by another version of the platform: remove the folder and run again")
        record["outputs"] = {name: (size, digest) for name, (size, digest) in record["outputs"].items()}
        return Artifact(folder=folder, **record)
    except FileNotFoundError:
        raise RecipeError(f"{folder}: not a finished stage (there is no {FILE})") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(f"{path}: not readable ({error}): remove the folder and run again") from None


def finished_artifact(folder: Path, key: str) -> Artifact | None:
    """The artifact in a folder if it has this key and all its outputs are there with their sizes."""
    try:
        artifact = load_artifact(folder)
    except RecipeError:
        return None
    if artifact.key != key:
        return None
    complete = all(_size(folder / path) == size for path, (size, _) in artifact.outputs.items())
    return artifact if complete else None


def is_finished(folder: Path, key: str) -> bool:
    """True if the folder holds the whole result of the stage with this key."""
    return finished_artifact(folder, key) is not None


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees all of it or none of it, also after a power cut."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)


def _outputs(folder: Path) -> dict[str, tuple[int, str | None]]:
    outputs: dict[str, tuple[int, str | None]] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or str(relative) == FILE or any(part.startswith(".") for part in relative.parts):
            continue
        outputs[relative.as_posix()] = (path.stat().st_size, None if UNHASHED in relative.parts else _sha256(path))
    return outputs


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _number(value: Any) -> Any:
    """NumPy scalars in a summary become Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"the summary of a stage must be JSON, not {type(value).__name__}")


def _versions() -> dict[str, str]:
    versions = {"foundation": foundation.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
