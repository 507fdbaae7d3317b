"""The model registry: a model is a folder of safetensors and JSON, registered under a name with its lineage and scores.

Nothing is pickled: the folder's files are logged as they are (no MLflow "flavour"), so loading one never runs code.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import foundation
from foundation.errors import RegistryError, did_you_mean
from foundation.registry.store import Store, as_default, connect, runs_base

REQUIRED_FILES = ("model.safetensors", "model.json")
PICKLED = frozenset({".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".dill"})
CARD = "model_card.md"
SCORE = "score."
# MLflow reserves this alias; here and there it means the highest version.
LATEST = "latest"


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry. `uri` loads it anywhere a model is asked for; `source` is the folder it came from."""

    name: str
    version: int
    uri: str
    source: Path


def register_model(
    folder: Path,
    name: str,
    *,
    run_folder: Path,
    run_id: str | None,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    aliases: Sequence[str] = (LATEST,),
    parent: str | None = None,
) -> RegisteredModel:
    """Register every file of `folder` (weights, configuration, vocabulary, tokenizers) as a new version of `name`.

    `tags` say what it is (`task`, `datasets`, `vocabulary_hash`, ...), `metrics` how good it is, `parent` what it was
    made from: `models:/name/version` or the parent stage's content hash. A model card is added. The same content under
    the same name is not registered twice: its version is returned, with tags, scores, aliases and card brought up to
    date. Raises RegistryError when the folder is not a model, holds a pickle, or the registry does not work.
    """
    digests = _model_files(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, flags=re.ASCII):
        raise RegistryError(f"model name '{name}': use letters, digits, '-', '_' and '.', a letter or digit first")
    store = Store.of(run_folder.absolute().parent)
    content = _content_hash(digests)
    with _registry(store) as client:
        version = next((v for v in _versions(client, name) if v.tags.get("content_hash") == content), None)
        if version is None:
            version = _new_version(client, store, folder, name, run_folder, run_id, content)
        parent = _pinned(client, parent)
        tags = {**_own_tags(digests), **tags, "content_hash": content, **({"parent": parent} if parent else {})}
        scores = {f"{SCORE}{key}": f"{value:.6g}" for key, value in metrics.items()}
        _describe(client, version, {**tags, **scores}, model_card(name, int(version.version), tags, metrics, digests))
        _link_parent(client, version.run_id, parent)
        for alias in aliases:
            if alias != LATEST:
                client.set_registered_model_alias(name, alias, version.version)
        return RegisteredModel(name, int(version.version), f"models:/{name}/{version.version}", folder)


def resolve_model(uri: str, runs_folder: Path) -> Path:
    """The local folder of a model: `models:/name`, `models:/name/3`, `models:/name@alias`, or a plain directory.

    A folder inside the registry is to be read, not changed. A server's model is downloaded once into
    `runs_folder/.models`. Files are checked against the hash they were registered with. Raises RegistryError.
    """
    if not uri.startswith("models:/"):
        if not Path(uri).is_dir():
            raise RegistryError(f"{uri}: no such model folder (a registered model is written models:/NAME)")
        return Path(uri)
    store = Store.of(runs_base(runs_folder))
    if not store.exists():
        raise RegistryError(f"{uri}: there is no model registry yet ({store.database} does not exist)")
    with _registry(store, read_only=True) as client:
        version = _find(client, uri)
        content = version.tags.get("content_hash")
        if content is None:
            raise RegistryError(f"{uri}: this version was not registered by foundation, so it cannot be loaded here")
        folder = _local_files(client, store, version, runs_base(runs_folder) / ".models" / content[:16])
    if _content_hash(_digests(folder)) != content:
        raise RegistryError(f"{uri}: the files in {folder} are not the ones that were registered; register it again")
    return folder


def list_models(runs_folder: Path | None = None) -> list[dict[str, Any]]:
    """One row per registered version, newest version of each name first; an empty list when there is no registry.

    Keys: name, version, aliases (list), created (ISO time, UTC), task, datasets, parent (text, empty when not known),
    scores (name -> float).
    """
    store = Store.of(runs_base(runs_folder))
    if not store.exists():
        return []
    with _registry(store, read_only=True) as client:
        rows = []
        for name in _names(client):
            versions = _versions(client, name)
            aliases = client.get_registered_model(name).aliases
            rows += [_row(v, aliases, newest=i == 0) for i, v in enumerate(versions)]
        return rows


def model_card(
    name: str, version: int, tags: Mapping[str, str], metrics: Mapping[str, float], files: Mapping[str, str]
) -> str:
    """A Markdown page: what the model is, its parent, data and scores, how to load it, its files with their hashes."""
    uri = f"models:/{name}/{version}"
    head = {"task": "Task", "datasets": "Data", "parent": "Parent", "vocabulary_hash": "Vocabulary (SHA-256)"}
    facts = [(title, tags.get(key, "not stated")) for key, title in head.items()]
    facts += [(key, value) for key, value in sorted(tags.items()) if key not in head]
    scores = [(key, f"{value:.4g}") for key, value in sorted(metrics.items())]
    sizes = [(path, digest[:16]) for path, digest in sorted(files.items())]
    return "\n".join(
        [
            f"# {name}, version {version}",
            "",
            "A particle-physics model trained with the `foundation` platform.",
            *_table("What it is", ("", ""), facts),
            *_table("Scores", ("score", "value"), scores or [("none given", "")]),
            "",
            "## How to load it",
            "",
            f"In a recipe: `from: {uri}`. In Python:",
            "",
            "    import foundation",
            f'    model = foundation.load("{uri}")',
            "",
            "The folder holds safetensors and JSON only: it can be copied and used without a registry.",
            *_table("Files", ("file", "SHA-256 (first 16 digits)"), sizes),
            "",
        ]
    )


def _table(title: str, head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"| {key} | {value} |".replace("\n", " ") for key, value in (head, ("---", "---"), *rows)]
    return ["", f"## {title}", "", *lines]


# ---- the files ------------------------------------------------------------------------------------------------------


def _model_files(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of the files to register; raises RegistryError when this is no model, or is not safe."""
    if not folder.is_dir():
        raise RegistryError(f"{folder}: no such model folder to register")
    missing = [file for file in REQUIRED_FILES if not (folder / file).is_file()]
    if missing:
        raise RegistryError(f"{folder}: not a model folder, {' and '.join(missing)} missing")
    pickled = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix.lower() in PICKLED)
    if pickled:
        raise RegistryError(f"{folder}: {pickled[0]} may be a pickle, which is not registered; use safetensors")
    return _digests(folder)


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative != CARD:
            with path.open("rb") as f:
                digests[relative] = hashlib.file_digest(f, "sha256").hexdigest()
    return digests


def _content_hash(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _own_tags(digests: Mapping[str, str]) -> dict[str, str]:
    """What the registry can tell itself: version of the platform, git commit, hash of the vocabulary file."""
    tags = {"platform_version": foundation.__version__}
    if "vocabulary.json" in digests:
        tags["vocabulary_hash"] = digests["vocabulary.json"]
    commit = _git_commit()
    return {**tags, "git_commit": commit} if commit else tags


def _git_commit() -> str | None:
    """The commit of this source tree, `+changes` when files differ from it; None when not run from a git checkout."""
    package = Path(foundation.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != package.resolve().parent:
            return None  # installed somewhere below another repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


# ---- the registry ---------------------------------------------------------------------------------------------------


@contextmanager
def _registry(store: Store, *, read_only: bool = False) -> Iterator[Any]:
    """The store's client; whatever MLflow or the network raise inside becomes one sentence."""
    client = connect(store, read_only=read_only)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with as_default(store):
            yield client
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RegistryError(f"the model registry at {store.public_uri} does not work: {reason}") from error


def _new_version(
    client: Any, store: Store, folder: Path, name: str, run_folder: Path, run_id: str | None, content: str
) -> Any:
    """Copy the files to the store as a logged model of the run, and make a version of it."""
    from mlflow.exceptions import MlflowException

    run_id, experiment_id = _run(client, store, run_id, run_folder)
    label = re.sub(r"[^\w-]", "-", name)
    logged = client.create_logged_model(experiment_id, label, source_run_id=run_id, model_type="foundation")
    try:
        client.log_model_artifacts(logged.model_id, str(folder))
    except Exception:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id is not None:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(
        name, logged.model_uri, run_id, tags={"content_hash": content}, model_id=logged.model_id
    )


def _run(client: Any, store: Store, run_id: str | None, run_folder: Path) -> tuple[str | None, str]:
    """Run id and experiment id to register under. A run the store does not have (its tracking failed) is left out."""
    from mlflow.exceptions import MlflowException

    if run_id is not None:
        try:
            return run_id, client.get_run(run_id).info.experiment_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None, store.experiment(client, run_folder.name)


def _describe(client: Any, version: Any, tags: Mapping[str, str], card: str) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, re.sub(r"[^\w\-. /]", "_", key), str(value))
    client.update_model_version(version.name, version.version, card)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CARD
        path.write_text(card, encoding="utf-8")
        client.log_model_artifact(_model_id(version), str(path))


def _link_parent(client: Any, run_id: str | None, parent: str | None) -> None:
    """Show a registered parent as model input of the run, so that MLflow draws the lineage."""
    from mlflow.entities import LoggedModelInput

    if run_id is None or parent is None or not parent.startswith("models:/"):
        return
    model_id = _model_id(_find(client, parent))
    inputs = client.get_run(run_id).inputs.model_inputs
    if model_id not in [known.model_id for known in inputs]:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])


def _pinned(client: Any, parent: str | None) -> str | None:
    """A parent named by alias or name alone, pinned to the version it is now; a content hash as it is."""
    if parent is None or not parent.startswith("models:/"):
        return parent
    version = _find(client, parent)
    return f"models:/{version.name}/{version.version}"


def _model_id(version: Any) -> str:
    return str(version.model_id or version.source.removeprefix("models:/"))


def _find(client: Any, uri: str) -> Any:
    """The version that a `models:/` URI names; raises RegistryError with what there is instead."""
    match = re.fullmatch(r"models:/([^/@]+)(?:/([^/@]+)|@([^/@]+))?", uri)
    if match is None:
        raise RegistryError(f"{uri}: write models:/NAME, models:/NAME/VERSION or models:/NAME@ALIAS")
    name, number, alias = match.groups()
    versions = _versions(client, name)
    if not versions:
        raise RegistryError(f"{uri}: no registered model '{name}'{did_you_mean(name, _names(client))}")
    if (number or alias or LATEST) == LATEST:
        return versions[0]
    if alias is not None:
        aliases = client.get_registered_model(name).aliases
        if alias not in aliases:
            raise RegistryError(f"{uri}: '{name}' has no alias '{alias}'{did_you_mean(alias, [*aliases, LATEST])}")
        number = str(aliases[alias])
    for version in versions:
        if str(version.version) == number:
            return version
    known = ", ".join(str(version.version) for version in versions)
    raise RegistryError(f"{uri}: '{name}' has no version {number} (known: {known})")


def _versions(client: Any, name: str) -> list[Any]:
    """All versions of `name`, newest first; empty when there is no such model."""
    quoted = name.replace("'", "")
    found = _all_pages(client.search_model_versions, f"name = '{quoted}'")
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def _names(client: Any) -> list[str]:
    return sorted(model.name for model in _all_pages(client.search_registered_models, None))


def _all_pages(search: Any, condition: str | None) -> list[Any]:
    found, token = [], None
    while True:
        page = search(condition, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return found


def _local_files(client: Any, store: Store, version: Any, cache: Path) -> Path:
    """The folder of a version: where a local store has it, else downloaded to `cache`."""
    location = client.get_model_version_download_uri(version.name, str(version.version))
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        return _moved(Path(unquote(parts.path) if parts.scheme else location), store)
    import mlflow.artifacts

    if not cache.is_dir():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as part:
            mlflow.artifacts.download_artifacts(location, dst_path=part, tracking_uri=store.uri)
            holder = next(path.parent for path in Path(part).rglob(REQUIRED_FILES[0]))
            holder.rename(cache)
    return cache


def _moved(folder: Path, store: Store) -> Path:
    """`folder`, or the same folder beside the database: MLflow keeps absolute paths, and users move their runs."""
    if not folder.is_dir() and store.artifacts is not None and store.artifacts.name in folder.parts:
        start = folder.parts.index(store.artifacts.name) + 1
        here = store.artifacts.joinpath(*folder.parts[start:])
        folder = here if here.is_dir() else folder
    if not folder.is_dir():
        raise RegistryError(f"{folder}: the registered model's files are gone; register the model again")
    return folder


def _row(version: Any, aliases: Mapping[str, Any], *, newest: bool) -> dict[str, Any]:
    tags = version.tags
    own = sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": [*([LATEST] if newest else []), *own],
        "created": created.isoformat(timespec="seconds"),
        **{key: tags.get(key, "") for key in ("task", "datasets", "parent")},
        "scores": {key.removeprefix(SCORE): float(tags[key]) for key in sorted(tags) if key.startswith(SCORE)},
    }
