"""Where MLflow keeps runs and models, and how to reach it without waiting for ever, noise or a call home."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from foundation.errors import RegistryError

PROBE_SECONDS = 3.0
FORK_WAIT_SECONDS = 20.0

# Set before MLflow is imported, and only where the user has not: no telemetry, no notes on the console, and a server
# that is away is noticed in seconds (MLflow's own settings retry for four minutes).
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

# Held while a thread imports MLflow and opens its database. A process forked in that moment would inherit import locks
# that nobody will ever release, and hang at its first import; so a fork waits until the preparation is over.
PREPARING = threading.RLock()
_held_for_fork = threading.local()


def _before_fork() -> None:
    _held_for_fork.yes = PREPARING.acquire(timeout=FORK_WAIT_SECONDS)


def _after_fork() -> None:
    if getattr(_held_for_fork, "yes", False):
        PREPARING.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def runs_base(runs_folder: Path | None = None) -> Path:
    """The folder of all runs, absolute: the one given, else $FOUNDATION_RUNS, else ./runs."""
    return (runs_folder or Path(os.environ.get("FOUNDATION_RUNS") or "runs")).absolute()


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store with its model registry.

    `database` is the file of a sqlite store, else None. A local store keeps its artifacts in `mlartifacts` beside it;
    a server decides itself.
    """

    uri: str
    registry_uri: str
    database: Path | None

    @classmethod
    def of(cls, runs_folder: Path) -> Store:
        """$MLFLOW_TRACKING_URI (and $MLFLOW_REGISTRY_URI) when set, else `mlflow.db` in the folder of all runs."""
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_folder.absolute() / 'mlflow.db'}"
        path = uri.removeprefix("sqlite:///").split("?")[0] if uri.startswith("sqlite:///") else None
        return cls(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri, Path(path).absolute() if path else None)

    @property
    def public_uri(self) -> str:
        """The URI without user name and password: what may be printed and written to files."""
        return re.sub(r"(://)[^/@]*@", r"\1", self.uri)

    @property
    def artifacts(self) -> Path | None:
        return None if self.database is None else self.database.parent / "mlartifacts"

    @property
    def ui_command(self) -> str:
        """What to type to look at the runs; for a server its address."""
        if self.database is None:
            return self.public_uri
        return f"mlflow ui --backend-store-uri sqlite:///{self.database}"

    def exists(self) -> bool:
        """False only for a local store that nobody has written to yet."""
        return self.database is None or (self.database.is_file() and self.database.stat().st_size > 0)

    def experiment(self, client: Any, name: str) -> str:
        """The id of the experiment `name`, created when missing."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, self.artifacts.as_uri() if self.artifacts else None))
            except MlflowException:  # another process was faster
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def connect(store: Store, *, read_only: bool = False) -> Any:
    """An `MlflowClient` of the store. The first one imports MLflow (seconds) and creates a missing database.

    Raises RegistryError when a server does not listen or a database cannot be used. MLflow alone would try again for
    minutes (a server) or nearly an hour (a database), so this is found out before MLflow is asked.
    """
    if store.database is not None:
        _check_database(store.database, read_only)
    else:
        _check_server(store)
    with PREPARING:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger(noisy).level))
        try:
            return MlflowClient(tracking_uri=store.uri, registry_uri=store.registry_uri)
        except Exception as error:  # MLflow, SQLAlchemy and alembic each have their own
            reason = " ".join(str(error).split())[:300].replace(store.uri, store.public_uri)
            raise RegistryError(f"MLflow cannot open {store.public_uri}: {reason}") from error


@contextmanager
def as_default(store: Store) -> Iterator[None]:
    """Make `store` MLflow's process-wide default for a moment: registering a version looks its model up there."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(store.uri)
    try:
        yield
    finally:
        # MLflow exports its default to child processes; without this the next run folder would inherit this store.
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None is MLflow's own "not set"


def _check_database(path: Path, read_only: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=PROBE_SECONDS)
        try:
            database.execute("PRAGMA schema_version" if read_only else "BEGIN IMMEDIATE")
            database.rollback()
        finally:
            database.close()
    except (OSError, sqlite3.Error) as error:
        raise RegistryError(f"{path}: MLflow's database cannot be used ({error}); mend it or move it away") from error


def _check_server(store: Store) -> None:
    address = urlsplit(store.uri)
    if address.scheme not in ("http", "https") or not address.hostname:
        return
    if address.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(address.hostname):
        return  # reached through a proxy, which a direct connection would say nothing about
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise RegistryError(
            f"no MLflow server answers at {store.public_uri} ({error}); start it or unset MLFLOW_TRACKING_URI"
        ) from error
