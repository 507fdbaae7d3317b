"""Tracking in MLflow: one parent run per run folder, one nested run per stage, written in the background.

MLflow is a convenience, never a condition: importing it costs seconds, creating its database more, and a server may be
away. So a stage only puts entries in a queue; a thread imports MLflow, opens the runs and writes. When that fails the
user is told once, the work goes on, and what MLflow missed is kept in `mlflow-unsent.jsonl` in the run folder.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from foundation.console import is_main_process, warn
from foundation.registry.store import PREPARING, Store, connect

RUNS_FILE, UNSENT_FILE = "mlflow.json", "mlflow-unsent.jsonl"
FLUSH_SECONDS, FLUSH_ENTRIES = 3.0, 50
# A local database is created once (10 s on a slow disk) and then answers at once; a server may never answer.
CLOSE_SECONDS_DATABASE, CLOSE_SECONDS_SERVER = 60.0, 15.0
# MLflow's own limits.
MAX_VALUE, MAX_DIGEST, MAX_PARAMS, MAX_METRICS = 6000, 36, 100, 1000

Entry = dict[str, Any]
_warned: set[str] = set()
_hanging: set[str] = set()


class NoTracker:
    """Tracks nothing: on ranks above 0, and wherever tracking is not wanted."""

    run_id: str | None = None
    parent_run_id: str | None = None
    failure: str | None = None

    @property
    def ui_command(self) -> str:
        return ""

    def log_params(self, params: Mapping[str, Any]) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None: ...

    def log_artifact(self, path: Path) -> None: ...

    def log_dataset(self, name: str, digest: str, context: str) -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def close(self, status: str = "FINISHED") -> None: ...

    def __enter__(self) -> NoTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("FAILED" if issubclass(kind, Exception) else "KILLED")


class Tracker(NoTracker):
    """The MLflow run of one stage. Every method returns at once; only `close` waits, and not for ever.

    `run_id` and `parent_run_id` are None until the background thread has opened the runs (they are set after `close`,
    and at once when a run is resumed); `failure` is the reason when MLflow does not work.
    """

    def __init__(
        self, run_folder: Path, recipe_name: str, stage_name: str, tags: Mapping[str, str], store: Store
    ) -> None:
        self.run_folder, self.recipe_name, self.stage_name = run_folder.absolute(), recipe_name, stage_name
        self.store = store
        self.tags = {"foundation.stage": stage_name, **{_key(k): str(v) for k, v in tags.items()}}
        runs = self._read_runs()
        self.parent_run_id = runs.get("parent_run_id")
        self.run_id = runs.get("stages", {}).get(stage_name)
        self._known_params: dict[str, str] = {}
        self._client: Any = None
        self._monitor: Any = None
        self._closed = False
        self._queue: queue.Queue[Entry] = queue.Queue()
        self._in_flight: list[Entry] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"mlflow-{stage_name}", daemon=True)
        self._thread.start()

    @property
    def ui_command(self) -> str:
        """What the user types (or opens) to look at the runs."""
        return self.store.ui_command

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings, nested ones as `a.b.c`. Parameters are immutable: what a resumed run has already is left.

        A value that differs on resume becomes the tag `resumed.KEY`; one over 6000 characters is cut, with a note.
        """
        self._put("params", values={_key(key): _cut(value) for key, value in _flatten(params)})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers of one step; they are written in batches every few seconds."""
        self._put("metrics", values={_key(name): float(value) for name, value in metrics.items()}, step=int(step))

    def log_artifact(self, path: Path) -> None:
        """Copy a file or a folder to the run's artifacts. A path that does not exist is warned about and left out."""
        if not path.exists():
            warn(f"{path}: not logged to MLflow because it does not exist")
            return
        self._put("artifact", path=str(path.absolute()))

    def log_dataset(self, name: str, digest: str, context: str) -> None:
        """Record that the stage used data `name` with content hash `digest` as `context` (train, validation, ...)."""
        self._put("dataset", name=name, digest=digest, context=context)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._put("tags", values={_key(key): str(value) for key, value in tags.items()})

    def close(self, status: str = "FINISHED") -> None:
        """Write what is left and end the run with `status`: FINISHED, FAILED or KILLED.

        Waits until all is written, but no longer than MLflow may reasonably take; then gives up with a warning.
        """
        if self._closed:
            return
        self._closed = True
        self._put("close", status=status)
        seconds = CLOSE_SECONDS_DATABASE if self.store.database else CLOSE_SECONDS_SERVER
        self._thread.join(seconds)
        if self._thread.is_alive() and self.failure is None:
            _hanging.add(self.store.uri)
            self._give_up(f"no answer within {seconds:.0f} s")

    # ---- the queue --------------------------------------------------------------------------------------------------

    def _put(self, kind: str, **fields: Any) -> None:
        entry = {"kind": kind, "time_ms": int(time.time() * 1000), **fields}
        with self._lock:
            if self.failure is None:
                self._queue.put(entry)
                return
        self._keep_unsent([entry])

    def _give_up(self, reason: str) -> None:
        """Stop writing to MLflow, keep what it has not confirmed, and warn once per process and store."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = reason
            unsent = list(self._in_flight)
            while not self._queue.empty():
                unsent.append(self._queue.get_nowait())
        kept = self._keep_unsent(unsent)
        if self.store.public_uri not in _warned:
            _warned.add(self.store.public_uri)
            where = f"what it misses is kept in {self.run_folder / UNSENT_FILE}" if kept else "what it misses is lost"
            warn(f"MLflow at {self.store.public_uri} does not work ({reason}); the run goes on without it, {where}")

    def _keep_unsent(self, entries: list[Entry]) -> bool:
        origin = {"recipe": self.recipe_name, "stage": self.stage_name, "run_id": self.run_id}
        try:
            self.run_folder.mkdir(parents=True, exist_ok=True)
            with (self.run_folder / UNSENT_FILE).open("a", encoding="utf-8") as f:
                f.writelines(json.dumps({**origin, **entry}) + "\n" for entry in entries)
        except OSError:
            return False
        return True

    # ---- the background thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            if self.store.uri in _hanging:
                raise ConnectionError("it did not answer before")
            with PREPARING if self.store.database else nullcontext():  # a fork must not wait for a server
                self._client = connect(self.store)
                self._open_runs()
                self._watch_system()
            closing = False
            while not closing and self.failure is None:
                self._collect()
                closing = any(entry["kind"] == "close" for entry in self._in_flight)
                self._write_metrics()
                while self._in_flight and self.failure is None:
                    self._write(self._in_flight[0])
                    with self._lock:
                        del self._in_flight[:1]
        except Exception as error:  # whatever MLflow raises must not reach the training
            self._give_up(_one_line(error))
        finally:
            self._unwatch_system()

    def _watch_system(self) -> None:
        """Load and memory of this machine as MLflow's own `system/...` metrics, every 10 s; a run does without them."""
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in ("false", "0"):
            return
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.store.uri)
            monitor.start()
            self._monitor = monitor
        except Exception as error:
            warn(f"MLflow's system metrics do not work ({_one_line(error)}); the run goes on without them")

    def _unwatch_system(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            try:
                monitor.finish()
            except Exception:  # the last seconds of them are lost, and nothing else
                pass

    def _collect(self) -> None:
        """Move entries from the queue in flight: FLUSH_ENTRIES, or what arrives in FLUSH_SECONDS, or up to `close`."""
        deadline = None
        while len(self._in_flight) < FLUSH_ENTRIES:
            left = None if deadline is None else deadline - time.monotonic()
            try:
                entry = self._queue.get(timeout=left if left is None else max(left, 0.0))
            except queue.Empty:
                return
            with self._lock:
                self._in_flight.append(entry)
            if entry["kind"] == "close":
                return
            deadline = deadline or time.monotonic() + FLUSH_SECONDS

    def _write_metrics(self) -> None:
        """All metrics in flight in as few calls as MLflow allows: one call per step costs 47 ms on sqlite."""
        from mlflow.entities import Metric

        entries = [entry for entry in self._in_flight if entry["kind"] == "metrics"]
        metrics = [Metric(k, v, e["time_ms"], e["step"]) for e in entries for k, v in e["values"].items()]
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + MAX_METRICS])
        with self._lock:
            self._in_flight[:] = [entry for entry in self._in_flight if entry["kind"] != "metrics"]

    def _write(self, entry: Entry) -> None:
        kind = entry["kind"]
        if kind == "params":
            self._write_params(entry["values"])
        elif kind == "tags":
            self._write_tags(entry["values"])
        elif kind == "artifact":
            path = Path(entry["path"])
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), path.name)
            else:
                self._client.log_artifact(self.run_id, str(path))
        elif kind == "dataset":
            self._write_dataset(entry["name"], entry["digest"], entry["context"])
        elif kind == "close":
            self._unwatch_system()  # it writes its last metrics, which a terminated run would not get
            for run_id in (self.run_id, self.parent_run_id):
                self._client.set_terminated(run_id, entry["status"], entry["time_ms"])

    def _write_params(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        known = self._known_params
        new = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS):
            self._client.log_batch(self.run_id, params=new[start : start + MAX_PARAMS])
        self._write_tags({f"resumed.{k}": v for k, v in values.items() if k in known and known[k] != v})
        self._known_params = {**values, **known}

    def _write_tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in values.items()]
        for start in range(0, len(tags), MAX_PARAMS):
            self._client.log_batch(self.run_id, tags=tags[start : start + MAX_PARAMS])

    def _write_dataset(self, name: str, digest: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # MLflow keeps 36 characters of a digest, so the whole one goes into the source.
        source = json.dumps({"name": name, "digest": digest})
        dataset = Dataset(name, digest[:MAX_DIGEST], "foundation", source)
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    # ---- runs that survive a restart --------------------------------------------------------------------------------

    def _open_runs(self) -> None:
        """Continue the runs named in `mlflow.json`, or create them; the ids are on disk before anything is logged."""
        experiment_id = self.store.experiment(self._client, self.recipe_name)
        recipe = {"foundation.recipe": self.recipe_name, "foundation.run_folder": str(self.run_folder)}
        self.parent_run_id = self._continue(self.parent_run_id) or self._create(experiment_id, self.recipe_name, recipe)
        self._remember()
        tags = {**recipe, "mlflow.parentRunId": self.parent_run_id}
        self.run_id = self._continue(self.run_id) or self._create(experiment_id, self.stage_name, tags)
        self._remember()
        self._known_params = dict(self._client.get_run(self.run_id).data.params)
        self._write_tags(self.tags)

    def _create(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        return str(self._client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id)

    def _continue(self, run_id: str | None) -> str | None:
        """The run id, its run set to running again; None when the store does not have it (deleted, another store)."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                return None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self._client.update_run(run_id, "RUNNING")
        return run_id

    def _read_runs(self) -> dict[str, Any]:
        """The runs of this store in `mlflow.json`: `{"parent_run_id": ..., "stages": {name: run id}}`."""
        try:
            known = json.loads((self.run_folder / RUNS_FILE).read_text(encoding="utf-8"))
            return dict(known[self.store.public_uri])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _remember(self) -> None:
        path = self.run_folder / RUNS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        runs = known.setdefault(self.store.public_uri, {})
        runs["parent_run_id"] = self.parent_run_id
        if self.run_id is not None:
            runs.setdefault("stages", {})[self.stage_name] = self.run_id
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)


def open_tracker(
    run_folder: Path, recipe_name: str, stage_name: str, *, tags: Mapping[str, str] | None = None
) -> Tracker | NoTracker:
    """The tracker of one stage; returns at once and never raises for MLflow's sake. Off rank 0 it tracks nothing.

    The runs go to $MLFLOW_TRACKING_URI, else to `mlflow.db` beside the run folders.
    """
    if not is_main_process():
        return NoTracker()
    return Tracker(run_folder, recipe_name, stage_name, tags or {}, Store.of(run_folder.absolute().parent))


def run_of_stage(run_folder: Path, stage_name: str) -> str | None:
    """The MLflow run of a stage that was tracked, or None."""
    try:
        known = json.loads((run_folder / RUNS_FILE).read_text(encoding="utf-8"))
        return known[Store.of(run_folder.absolute().parent).public_uri]["stages"].get(stage_name)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{key}", text


def _cut(value: str) -> str:
    if len(value) <= MAX_VALUE:
        return value
    note = f" ... [cut: {len(value)} characters]"
    return value[: MAX_VALUE - len(note)] + note


def _key(name: str) -> str:
    """`name` with what MLflow does not allow in a key replaced by an underscore."""
    return re.sub(r"[^\w\-. /]", "_", str(name), flags=re.ASCII)[:250]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."
