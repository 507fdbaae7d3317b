"""Tracking and registry against a real MLflow on sqlite, one database for the whole module."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from foundation.errors import RegistryError
from foundation.registry import NoTracker, Tracker, list_models, open_tracker, register_model, resolve_model
from foundation.registry import tracking as tracking_module
from foundation.registry.models import PICKLED
from foundation.registry.store import PREPARING, Store, connect
from foundation.registry.tracking import MAX_VALUE, RUNS_FILE, UNSENT_FILE, _cut, _flatten, _key


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all runs, with a space in its path; its database is created by the first test that tracks."""
    return tmp_path_factory.mktemp("all runs")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "FOUNDATION_RUNS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking_module, "_warned", set())


@pytest.fixture
def client(runs: Path) -> Any:
    return connect(Store.of(runs))


def make_model(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    weights = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    save_file({"embedding.weight": weights}, folder / "model.safetensors")
    (folder / "model.json").write_text('{"d_model": 64}')
    (folder / "vocabulary.json").write_text('{"size": 64}')
    (folder / "tokenizers").mkdir()
    (folder / "tokenizers" / "jets.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def register(runs: Path, folder: Path, name: str, **more: Any) -> Any:
    arguments: dict[str, Any] = {"run_id": None, "tags": {"task": "generation"}, "metrics": {}, **more}
    return register_model(folder, name, run_folder=runs / "job", **arguments)


# ---- tracking -------------------------------------------------------------------------------------------------------


def test_stage_is_a_nested_run_with_params_metrics_data_and_artifacts(runs: Path, client: Any, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>tops</p>")
    with open_tracker(runs / "job", "jets", "pretrain", tags={"git commit!": "abc"}) as tracker:
        tracker.log_params({"model": {"d_model": 64, "layers": [1, 2]}, "note": "x" * 9000})
        for step in range(120):
            tracker.log_metrics({"loss": 2.0 / (step + 1), "lr": 0.1}, step=step)
        tracker.log_dataset("jets-train", "0123456789abcdef" * 4, "train")
        tracker.log_artifact(report)
        tracker.set_tags({"domain": "jet"})
    assert tracker.failure is None
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.d_model"] == "64" and run.data.params["model.layers"] == "[1, 2]"
    assert run.data.params["note"].endswith("[cut: 9000 characters]")
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_run_id
    assert run.data.tags["git commit_"] == "abc" and run.data.tags["domain"] == "jet"
    history = client.get_metric_history(tracker.run_id, "loss")
    assert {m.step: m.value for m in history} == {step: 2.0 / (step + 1) for step in range(120)}
    dataset = run.inputs.dataset_inputs[0]
    assert dataset.dataset.name == "jets-train" and "0123456789abcdef" * 4 in dataset.dataset.source
    assert [tag.value for tag in dataset.tags] == ["train"]
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["report.html"]
    assert (runs / "mlartifacts").is_dir() and not Path("mlruns").exists()
    parent = client.get_run(tracker.parent_run_id)
    assert parent.data.tags["foundation.recipe"] == "jets" and "mlflow.parentRunId" not in parent.data.tags
    assert tracker.ui_command == f"mlflow ui --backend-store-uri sqlite:///{runs}/mlflow.db"


def test_resume_continues_the_same_runs_and_keeps_their_params(runs: Path, client: Any) -> None:
    folder = runs / "resumed"
    with pytest.raises(KeyboardInterrupt), open_tracker(folder, "jets", "pretrain") as first:
        first.log_params({"steps": 10, "seed": 1})
        first.log_metrics({"loss": 3.0}, step=1)
        raise KeyboardInterrupt
    assert client.get_run(first.run_id).info.status == "KILLED"
    with open_tracker(folder, "jets", "pretrain") as again:
        again.log_params({"steps": 20, "seed": 1, "new": True})
        again.log_metrics({"loss": 2.0}, step=2)
    with open_tracker(folder, "jets", "finetune") as other:
        pass
    assert (again.run_id, again.parent_run_id) == (first.run_id, first.parent_run_id)
    assert other.run_id != first.run_id and other.parent_run_id == first.parent_run_id
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "10", "seed": "1", "new": "true"}
    assert run.data.tags["resumed.steps"] == "20" and "resumed.seed" not in run.data.tags
    assert [m.step for m in client.get_metric_history(first.run_id, "loss")] == [1, 2]
    saved = json.loads((folder / RUNS_FILE).read_text())
    assert list(saved.values())[0]["stages"] == {"pretrain": first.run_id, "finetune": other.run_id}


def test_load_and_memory_of_the_machine_are_metrics_too(
    runs: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = open_tracker(runs / "watched", "watched", "pretrain")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(0.1)
        if tracker.run_id and any(k.startswith("system/") for k in client.get_run(tracker.run_id).data.metrics):
            break
    tracker.close()
    assert "system/cpu_utilization_percentage" in client.get_run(tracker.run_id).data.metrics
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with open_tracker(runs / "watched", "watched", "finetune") as unwatched:
        unwatched.log_metrics({"loss": 1.0})
        time.sleep(0.3)
    assert set(client.get_run(unwatched.run_id).data.metrics) == {"loss"}


def test_a_deleted_run_is_replaced(runs: Path, client: Any) -> None:
    with open_tracker(runs / "deleted", "jets", "pretrain") as first:
        pass
    client.delete_run(first.run_id)
    with open_tracker(runs / "deleted", "jets", "pretrain") as again:
        pass
    assert again.failure is None
    assert again.run_id != first.run_id and again.parent_run_id == first.parent_run_id


@pytest.mark.parametrize(
    "uri", ["http://somebody:secret@127.0.0.1:9", "sqlite:////proc/no/such/mlflow.db", "nonsense://x"]
)
def test_unreachable_mlflow_neither_raises_nor_loses_what_was_logged(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for stage in ("pretrain", "finetune"):
        with open_tracker(tmp_path / "job", "jets", stage) as tracker:
            tracker.log_params({"seed": 1})
            tracker.log_metrics({"loss": 1.5}, step=7)
        assert isinstance(tracker, Tracker) and tracker.failure
    lines = [json.loads(line) for line in (tmp_path / "job" / UNSENT_FILE).read_text().splitlines()]
    assert [(line["stage"], line["kind"]) for line in lines] == [
        (stage, kind) for stage in ("pretrain", "finetune") for kind in ("params", "metrics", "close")
    ]
    assert lines[1]["values"] == {"loss": 1.5} and lines[1]["step"] == 7
    output = capsys.readouterr()
    assert output.err.count("warning:") == 1 and "the run goes on without it" in output.err
    assert "secret" not in output.err + output.out
    if not uri.startswith("sqlite"):  # a database that is not there is an empty registry
        with pytest.raises(RegistryError):
            list_models(tmp_path)


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking_module, "CLOSE_SECONDS_SERVER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, says nothing
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with open_tracker(tmp_path / "job", "jets", "pretrain") as tracker:
            tracker.log_metrics({"loss": 1.5}, step=7)
        assert tracker.failure and "no answer" in tracker.failure
        with open_tracker(tmp_path / "job", "jets", "finetune") as later:
            later.log_metrics({"loss": 1.0}, step=1)
        assert later.failure and "before" in later.failure
    lines = [json.loads(line) for line in (tmp_path / "job" / UNSENT_FILE).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["metrics", "close"] * 2
    assert capsys.readouterr().err.count("warning:") == 1


def test_a_fork_waits_until_mlflow_is_imported() -> None:
    held, finished = threading.Event(), threading.Event()

    def prepare() -> None:
        with PREPARING:
            held.set()
            time.sleep(0.2)
            finished.set()

    thread = threading.Thread(target=prepare)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if finished.is_set() and PREPARING.acquire(blocking=False) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


def test_only_rank_0_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    before = threading.active_count()
    with open_tracker(tmp_path / "job", "jets", "pretrain") as tracker:
        tracker.log_metrics({"loss": 1.0}, step=1)
    assert not isinstance(tracker, Tracker) and threading.active_count() == before
    assert not (tmp_path / "job").exists()


def test_both_trackers_have_the_same_methods() -> None:
    names = {name for name in vars(Tracker) if not name.startswith("_")}
    assert names == {name for name in vars(NoTracker) if not name.startswith("_")} - {
        "run_id",
        "parent_run_id",
        "failure",
    }


@given(st.recursive(st.integers() | st.text(), lambda v: st.dictionaries(st.text(min_size=1), v, max_size=3)))
def test_flattened_params_are_text_within_mlflows_limits(value: Any) -> None:
    for key, text in _flatten({"stage": value}):
        assert key.startswith("stage") and len(_cut(text)) <= MAX_VALUE
        assert 0 < len(_key(key)) <= 250


# ---- registry -------------------------------------------------------------------------------------------------------


def test_registered_model_resolves_to_equal_files_with_tags_card_and_lineage(
    runs: Path, client: Any, tmp_path: Path
) -> None:
    base, tuned = make_model(tmp_path / "base", 1), make_model(tmp_path / "tuned", 2)
    before = contents(base)
    with open_tracker(runs / "job", "jets", "register") as tracker:
        pass
    tags = {"task": "generation", "datasets": "pythia-jets, gflash-photons"}
    first = register(runs, base, "jets-base", tags=tags, metrics={"w1_mass": 1.25}, aliases=("latest", "champion"))
    second = register(
        runs, tuned, "top-tagger", tags={"task": "classification"}, parent="models:/jets-base", run_id=tracker.run_id
    )
    assert (first.version, first.uri, first.source) == (1, "models:/jets-base/1", base)
    assert contents(base) == before
    for uri in ("models:/jets-base", "models:/jets-base/1", "models:/jets-base@champion", "models:/jets-base@latest"):
        found = contents(resolve_model(uri, runs))
        card = found.pop("model_card.md").decode()
        assert found == before
    assert "jets-base, version 1" in card and "w1_mass | 1.25" in card and "gflash-photons" in card
    version = client.get_model_version("top-tagger", "1")
    assert version.tags["parent"] == "models:/jets-base/1" and len(version.tags["vocabulary_hash"]) == 64
    assert version.tags["platform_version"] and version.run_id == tracker.run_id
    run = client.get_run(tracker.run_id)
    assert len(run.inputs.model_inputs) == 1 and len(run.outputs.model_outputs) == 1
    rows = {row["name"]: row for row in list_models(runs)}
    assert rows["jets-base"]["scores"] == {"w1_mass": 1.25} and rows["jets-base"]["aliases"] == ["latest", "champion"]
    assert rows["top-tagger"]["parent"] == "models:/jets-base/1" and rows["top-tagger"]["task"] == "classification"
    assert second.uri == "models:/top-tagger/1" and resolve_model(str(base), runs) == base
    stored = {p.suffix for p in (runs / "mlartifacts").rglob("*")}
    assert ".safetensors" in stored and not stored & PICKLED
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_same_content_is_not_registered_twice(runs: Path, tmp_path: Path) -> None:
    old, new = make_model(tmp_path / "old", 3), make_model(tmp_path / "new", 4)
    assert register(runs, old, "twins", metrics={"auc": 0.8}).version == 1
    assert register(runs, new, "twins").version == 2
    assert register(runs, old, "twins", metrics={"auc": 0.9}, aliases=("champion",)).version == 1
    rows = [row for row in list_models(runs) if row["name"] == "twins"]
    assert [(row["version"], row["aliases"]) for row in rows] == [(2, ["latest"]), (1, ["champion"])]
    assert rows[1]["scores"] == {"auc": 0.9}
    assert "auc | 0.9" in (resolve_model("models:/twins@champion", runs) / "model_card.md").read_text()
    assert contents(resolve_model("models:/twins", runs))["model.json"] == (new / "model.json").read_bytes()


def test_what_is_not_there_is_named_with_what_is(runs: Path, tmp_path: Path) -> None:
    register(runs, make_model(tmp_path / "m", 5), "calo-photons", aliases=("champion",))
    for uri, message in {
        "models:/calo-photon": "did you mean 'calo-photons'",
        "models:/calo-photons/7": "no version 7 .known: 1",
        "models:/calo-photons@champoin": "did you mean 'champion'",
        "models:/": "write models:/NAME",
        str(tmp_path / "nowhere"): "no such model folder",
    }.items():
        with pytest.raises(RegistryError, match=message):
            resolve_model(uri, runs)


def test_folders_that_are_no_model_or_not_safe_are_refused(runs: Path, tmp_path: Path) -> None:
    unsafe = make_model(tmp_path / "unsafe")
    (unsafe / "optimizer.pt").write_bytes(b"\x80\x04N.")
    with pytest.raises(RegistryError, match="optimizer.pt may be a pickle"):
        register(runs, unsafe, "unsafe")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="model.safetensors and model.json missing"):
        register(runs, tmp_path / "empty", "empty")
    with pytest.raises(RegistryError, match="model name 'a/b'"):
        register(runs, make_model(tmp_path / "fine"), "a/b")


def test_changed_lost_and_moved_files_are_noticed(runs: Path, tmp_path: Path) -> None:
    register(runs, make_model(tmp_path / "m", 6), "fragile")
    folder = resolve_model("models:/fragile", runs)
    hidden = folder.rename(folder.with_name("hidden"))
    with pytest.raises(RegistryError, match="files are gone"):
        resolve_model("models:/fragile", runs)
    hidden.rename(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RegistryError, match="not the ones that were registered"):
        resolve_model("models:/fragile", runs)


def test_a_moved_runs_folder_still_gives_its_models(runs: Path, tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", 7)
    register(runs, source, "mover")
    moved = tmp_path / "moved"
    runs.rename(moved)
    try:
        found = resolve_model("models:/mover", moved)
        assert found.is_relative_to(moved) and contents(source).items() <= contents(found).items()
    finally:
        moved.rename(runs)


def test_without_a_registry_nothing_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOUNDATION_RUNS", str(tmp_path / "none"))
    assert list_models() == []
    with pytest.raises(RegistryError, match="no model registry yet"):
        resolve_model("models:/jets", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_damaged_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(RegistryError, match="cannot be used .file is not a database"):
        list_models(tmp_path)
