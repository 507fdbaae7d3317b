"""The whole chain through the real command line: run, skip, kill and continue, two processes with DeepSpeed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from foundation.data.files import read_point_clouds
from foundation.model.weights import load_backbone
from foundation.registry.models import list_models, resolve_model
from foundation.train.faults import PREEMPTED

RECIPE = Path(__file__).parent / "data" / "tiny.yaml"
LAUNCH = Path(__file__).parent.parent / "launch"


def environment(runs: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    return inherited | {"FOUNDATION_RUNS": str(runs), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def foundation(runs: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "foundation", *arguments],
        env=environment(runs), capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    if check and done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs folder and output of one complete run."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, foundation(runs, "run", str(RECIPE)).stdout


def copy_until_tokens(runs: Path, to: Path) -> Path:
    """A runs folder in which everything before training is finished."""
    for stage in ("jets", "showers", "jet_tokenizer", "shower_tokenizer", "tokens"):
        shutil.copytree(runs / "tiny" / stage, to / "tiny" / stage)
    return to


@pytest.mark.slow
def test_the_chain_leaves_report_scores_and_registered_models(finished: tuple[Path, str]) -> None:
    runs, output = finished
    report = runs / "tiny" / "report" / "report.html"
    assert str(report) in output and "mlflow ui --backend-store-uri" in output
    assert "accuracy" in output and "response" in output
    html = report.read_text()
    assert "data:image/png;base64" in html and "tagger_from_scratch" in html
    metrics = json.loads((report.parent / "metrics.json").read_text())
    assert set(metrics["datasets"]) == {"pythia_jets", "gflash_siw"}
    for name, count in (("pythia_jets", 50), ("gflash_siw", 40)):
        clouds = read_point_clouds(runs / "tiny" / "generated" / f"{name}.h5")
        assert len(clouds) == count and np.isfinite(clouds.points).all()
    models = {row["name"]: row for row in list_models(runs)}
    assert set(models) == {"tiny-backbone", "tiny-tagger"}
    assert models["tiny-tagger"]["parent"] == "models:/tiny-backbone/1"
    assert "pythia_jets.qg.mass.ratio" in models["tiny-backbone"]["scores"]
    assert "test_accuracy" in models["tiny-tagger"]["scores"]
    folder = resolve_model("models:/tiny-tagger@candidate", runs)
    assert (folder / "model.safetensors").is_file() and (folder / "tokenizers" / "pythia_jets").is_dir()


@pytest.mark.slow
def test_a_second_run_skips_everything(finished: tuple[Path, str]) -> None:
    runs, _ = finished
    before = {p: p.stat().st_mtime_ns for p in (runs / "tiny").rglob("*") if p.is_file() and ".lock" not in p.name}
    again = foundation(runs, "run", str(RECIPE)).stdout
    assert again.count("(finished, skipped)") == 11
    for path, stamp in before.items():
        if path.name != "recipe.yaml":
            assert path.stat().st_mtime_ns == stamp, path


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_losses(finished: tuple[Path, str], tmp_path: Path) -> None:
    runs = copy_until_tokens(finished[0], tmp_path)
    often = ["--set", "pretrain.train.checkpoint_seconds=0.01", "--until", "pretrain"]
    process = subprocess.Popen(
        [sys.executable, "-m", "foundation", "run", str(RECIPE), *often],
        env=environment(runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = runs / "tiny" / "pretrain" / "checkpoints"
    while process.poll() is None and len(list(checkpoints.glob("step_*/COMMITTED"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (runs / "tiny" / "pretrain" / "artifact.json").exists()
    output = foundation(runs, "run", str(RECIPE), *often).stdout
    assert "(continuing)" in output and "resumed at step" in output
    assert losses(runs / "tiny" / "pretrain") == losses(finished[0] / "tiny" / "pretrain")
    ours = (runs / "tiny" / "pretrain" / "model" / "model.safetensors").read_bytes()
    assert ours == (finished[0] / "tiny" / "pretrain" / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_terminated_training_leaves_samples_and_a_checkpoint_that_becomes_a_model(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    runs = copy_until_tokens(finished[0], tmp_path)
    often = ["--set", "pretrain.train.sample_every=4", "pretrain.train.checkpoint_seconds=0.01"]
    command = [sys.executable, "-m", "foundation", "run", str(RECIPE), *often, "--until", "pretrain"]
    process = subprocess.Popen(command, env=environment(runs), stdout=subprocess.PIPE, text=True)
    folder = runs / "tiny" / "pretrain"
    while process.poll() is None and not list(folder.glob("samples/gflash_siw_*.png")):
        time.sleep(0.01)
    process.terminate()
    output = process.communicate()[0]
    assert process.returncode == PREEMPTED, output
    assert "SIGTERM: checkpoint at step" in output
    assert {p.name.rsplit("_", 1)[0] for p in folder.glob("samples/*.png")} == {"pythia_jets", "gflash_siw"}
    foundation(runs, "checkpoint", "export", str(folder), "--to", str(tmp_path / "model"))
    backbone, model = load_backbone(tmp_path / "model")
    assert set(model.vocabulary.datasets) == {"pythia_jets", "gflash_siw"} and sum(1 for _ in backbone.parameters())
    assert (tmp_path / "model" / "tokenizers" / "pythia_jets").is_dir()
    foundation(runs, *command[3:])
    assert losses(folder) == losses(finished[0] / "tiny" / "pretrain")


@pytest.mark.slow
def test_a_registered_model_is_fine_tuned_by_its_name(finished: tuple[Path, str], tmp_path: Path) -> None:
    runs = tmp_path / "moved"
    shutil.copytree(finished[0], runs)
    by_name = ["--set", "tagger.from=models:/tiny-backbone@candidate", "--only", "tagger"]
    output = foundation(runs, "run", str(RECIPE), *by_name).stdout
    assert "test accuracy" in output
    assert losses(runs / "tiny" / "tagger") == losses(finished[0] / "tiny" / "tagger")
    unknown = foundation(
        runs, "run", str(RECIPE), "--set", "tagger.from=models:/tiny-backbon", "--only", "tagger", check=False
    )
    assert unknown.returncode == 2 and "tiny-backbone" in unknown.stderr and "Traceback" not in unknown.stderr


@pytest.mark.slow
def test_accelerate_launch_with_deepspeed_on_two_processes_gives_the_same_loss(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    runs = copy_until_tokens(finished[0], tmp_path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "cpu.yaml")]
    command += ["--num_processes", "2", "--main_process_port", "0", "-m", "foundation", "run", str(RECIPE)]
    done = subprocess.run(
        [*command, "--until", "tagger"],
        env=environment(runs), capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for stage, steps in (("pretrain", 30), ("tagger", 10)):
        artifact = json.loads((runs / "tiny" / stage / "artifact.json").read_text())
        assert artifact["summary"]["processes"] == 2
        two, one = losses(runs / "tiny" / stage), losses(finished[0] / "tiny" / stage)
        assert len(two) == steps
        assert two == pytest.approx(one, rel=2e-3)
    # exact to rounding before it can build up
    two = losses(runs / "tiny" / "pretrain")
    assert two[:5] == pytest.approx(losses(finished[0] / "tiny" / "pretrain")[:5], rel=1e-5)


def test_an_invalid_recipe_is_told_with_line_and_nearest_key(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        RECIPE.read_text().replace("row_tokens: 256, rows_per_step: 2", "row_token: 256, rows_per_step: 2")
    )
    done = foundation(tmp_path, "run", str(broken), check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = next(i for i, text in enumerate(broken.read_text().splitlines(), 1) if "row_token:" in text)
    assert f"broken.yaml:{line}" in done.stderr and "did you mean 'row_tokens'?" in done.stderr


def test_a_mistake_that_shows_in_a_stage_is_one_sentence(tmp_path: Path) -> None:
    done = foundation(
        tmp_path, "run", str(RECIPE), "--only", "showers", "--set", "showers.simulator.nonsense=1", check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error in stage showers: simulator of 'gflash_siw' has no setting 'nonsense'" in done.stderr
