"""What `launch/` promises: every way of starting a recipe really starts one, as far as this machine can."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from foundation.cli import main
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import StreamConfig, TokenStream
from foundation.tasks.base import to_device
from foundation.tasks.generation import Generation
from foundation.train.config import TrainConfig
from foundation.train.engine import make_engine

from conftest import ToyTokens
from gloo_ranks import run_distributed
from local_slurm import local_slurm, why_not

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
STEPS = 60
RECIPE = f"""\
name: tiny
description: A small model of a few showers
stages:
  - {{kind: simulate, name: showers, dataset: gflash_siw, objects: {{train: 100, validation: 9, test: 9}}, workers: 1}}
  - {{kind: tokenizer, name: codes, from: showers, method: {{type: per_feature, bins: 16}}}}
  - {{kind: tokenize, name: tokens, datasets: [{{from: showers, tokenizer: codes}}]}}
  - kind: pretrain
    name: backbone
    data: tokens
    mixture: {{gflash_siw: 1.0}}
    model: {{width: 32, layers: 1, heads: 2}}
    train: {{steps: {STEPS}, row_tokens: 512, rows_per_step: 2, checkpoint_seconds: 0.2, log_every: 1}}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and beside it the runs folder with all its stages but the last."""
    home = tmp_path_factory.mktemp("prepared")
    (home / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOUNDATION_RUNS", str(home / "runs"))
        assert main(["run", str(home / "tiny.yaml"), "--until", "tokens"]) == 0
    return home


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return shutil.copytree(prepared, tmp_path / "home")


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of two processes that nobody disturbs."""
    copy = shutil.copytree(prepared, tmp_path_factory.mktemp("undisturbed") / "home")
    run_distributed(_run_recipe, 2, copy)
    return losses(copy)


def _run_recipe(home: Path) -> None:
    os.environ["FOUNDATION_RUNS"] = str(home / "runs")
    assert main(["run", str(home / "tiny.yaml")]) == 0


def losses(home: Path) -> list[float]:
    lines = (home / "runs" / "tiny" / "backbone" / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def environment(home: Path, **more: str) -> dict[str, str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"PYTHONPATH": str(ROOT), "FOUNDATION_RUNS": str(home / "runs"), "OMP_NUM_THREADS": "1", "PATH": programs}
    return {**os.environ, **ours, "CUDA_VISIBLE_DEVICES": "", **more}


def processes(home: Path) -> int:
    return json.loads((home / "runs" / "tiny" / "backbone" / "artifact.json").read_text())["summary"]["processes"]


def start(command: list[str], home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(home, **more), cwd=ROOT, capture_output=True, text=True, timeout=600
    )  # fmt: skip


# Starters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("starter", "world"),
    [
        (["accelerate", "launch", "--config_file", str(LAUNCH / "one_gpu.yaml"), "-m"], 1),
        (["accelerate", "launch", "--config_file", str(LAUNCH / "one_node.yaml"), "--num_processes", "2", "-m"], 2),
        (["torchrun", "--standalone", "--nproc-per-node", "2", "-m"], 2),
    ],
    ids=["one_gpu", "one_node", "torchrun"],
)
def test_a_starter_trains_with_all_its_processes(
    home: Path, starter: list[str], world: int, undisturbed: list[float]
) -> None:
    done = start([*starter, "foundation", "run", str(home / "tiny.yaml")], home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert processes(home) == world
    assert losses(home) == (undisturbed if world == 2 else pytest.approx(undisturbed, rel=1e-3))


# Two machines


def namespaces_forbidden() -> str | None:
    """Why there are no network namespaces here, or None."""
    if shutil.which("ip") is None:
        return "no program ip (package iproute2)"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return made.stderr.strip() or None


def namespaces() -> set[str]:
    return set(subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.splitlines())


@pytest.mark.slow
def test_two_hosts_train_together_and_go_on_after_one_was_cut_off(home: Path, undisturbed: list[float]) -> None:
    if why := namespaces_forbidden():
        pytest.skip(f"network namespaces: {why}")
    before = namespaces()
    command = ["bash", str(LAUNCH / "two_nodes_local.sh"), "--cut", str(home / "tiny.yaml")]
    done = start(command, home, FOUNDATION_TIMEOUT_SECONDS="20", PORT=str(20_000 + os.getpid() % 20_000))
    assert done.returncode == 0, done.stdout + done.stderr
    assert processes(home) == 2
    assert "both hosts have ended, with the codes 1 1" in done.stdout
    assert done.stderr.count("lost the other processes") == 2
    resumed = re.search(r"resumed at step (\d+) of", done.stdout)
    assert resumed and 0 < int(resumed[1]) < STEPS
    carried = re.search(r"over the cable came (\d+) bytes", done.stdout)
    parameters = sum(p.numel() for p in Transformer(TransformerConfig(width=32, layers=1, heads=2), 90).parameters())
    assert carried and int(carried[1]) > 4 * parameters * STEPS
    assert losses(home) == undisturbed
    assert namespaces() == before


# Slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if why := why_not():
        pytest.skip(why)
    with local_slurm(tmp_path_factory.mktemp("slurm") / "cluster") as settings:
        yield settings


def job(settings: Path, number: str, key: str) -> str:
    """What `scontrol show job` says of a key."""
    command = ["scontrol", "show", "job", number]
    said = subprocess.run(command, env={**os.environ, "SLURM_CONF": str(settings)}, capture_output=True, text=True)
    found = re.search(rf"\b{key}=(\S*)", said.stdout)
    assert found, said
    return found[1]


@pytest.mark.slow
def test_a_slurm_job_whose_time_is_up_is_queued_again_and_goes_on(
    home: Path, slurm: Path, undisturbed: list[float]
) -> None:
    extra = {"SLURM_CONF": str(slurm), "HEAD": "127.0.0.1", "PROCESSES_PER_NODE": "1"}
    submit = ["sbatch", "--parsable", "--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={home}/log"]
    number = start([*submit, str(LAUNCH / "slurm.sbatch"), str(home / "tiny.yaml")], home, **extra).stdout.strip()
    checkpoints = home / "runs" / "tiny" / "backbone" / "checkpoints"
    waited = time.monotonic()
    while not list(checkpoints.glob("step_*/COMMITTED")):
        assert time.monotonic() - waited < 300 and job(slurm, number, "JobState") != "FAILED", log(home)
        time.sleep(0.05)
    # what `--signal=B:USR1@180` does three minutes before the end
    start(["scancel", "--batch", "--signal=USR1", number], home, **extra)
    while (state := job(slurm, number, "JobState")) not in ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL"):
        assert time.monotonic() - waited < 600, log(home)
        time.sleep(0.5)
    assert state == "COMPLETED" and job(slurm, number, "Restarts") == "1", log(home)
    assert "SIGUSR1: checkpoint at step" in log(home) and "resumed at step" in log(home)
    assert processes(home) == 2
    assert losses(home) == undisturbed


@pytest.mark.slow
def test_an_import_takes_its_workers_out_of_the_queue(home: Path, slurm: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    settings = yaml.safe_load((LAUNCH / "dask" / "jobqueue.yaml").read_text())
    settings["jobqueue"]["slurm"] |= {"cores": 1, "processes": 1, "memory": "500MB", "log-directory": str(home)}
    (home / "dask").mkdir()
    (home / "dask" / "jobqueue.yaml").write_text(yaml.safe_dump(settings))
    extra = {"SLURM_CONF": str(slurm), "DASK_CONFIG": str(home / "dask"), "JOBS": "2"}
    files = sorted(map(str, (home / "runs" / "tiny" / "showers" / "train").glob("*.h5")))
    command = ["bash", str(LAUNCH / "dask_jobqueue.sh"), "gflash_siw", *files, "--to", str(home / "imported")]
    done = start(command, home, **extra)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((home / "imported").rglob("*.h5"))


def log(home: Path) -> str:
    path = home / "log"
    return path.read_text() if path.is_file() else "no log"


# Files


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "offload"])
def test_deepspeed_files_go_with_the_recipe_they_are_for(toy: ToyTokens, name: str, tmp_path: Path) -> None:
    path = LAUNCH / "deepspeed" / f"{name}.json"
    stage = json.loads(path.read_text())["zero_optimization"]["stage"]
    offload = "optimizer" if name == "offload" else "none"
    config = TrainConfig(rows_per_step=2, row_tokens=64, zero_stage=stage, offload=offload)
    run_distributed(_two_steps, 2, toy, config, tmp_path / "without")
    run_distributed(_two_steps, 2, toy, config.model_copy(update={"deepspeed": str(path)}), tmp_path / "with")
    assert (tmp_path / "with").read_text() == (tmp_path / "without").read_text()


def _two_steps(toy: ToyTokens, config: TrainConfig, out: Path) -> None:
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in toy.clouds]
    layout, rank = toy.layout(), int(os.environ["RANK"])
    stream = TokenStream(data, [0.5, 0.5], layout, StreamConfig(config.row_tokens, config.rows_per_step, 1))
    torch.manual_seed(0)
    task = Generation(Transformer(TransformerConfig(width=32, layers=1, heads=2), toy.vocabulary.size), layout)
    engine = make_engine(task, config)
    found = []
    for step in range(2):
        batches = stream.batches(step, rank, 2)
        tensors = [to_device(batch, engine.device) for batch in batches]
        found.append(engine.step(tensors, sum(map(task.count, batches))).loss)
    if rank == 0:
        out.write_text(repr(found))


def test_the_job_for_kubernetes_has_fields_that_the_trainer_knows() -> None:
    # CustomResourceDefinition trainjobs.trainer.kubeflow.org, v1alpha1, as of Kubeflow Trainer 2.2
    job = yaml.safe_load((LAUNCH / "kubernetes" / "trainjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    spec = job["spec"]
    assert set(spec) <= {"runtimeRef", "trainer", "runtimePatches", "initializer", "suspend", "managedBy",
                         "activeDeadlineSeconds"}  # fmt: skip
    assert set(spec["trainer"]) <= {"image", "command", "args", "env", "numNodes", "numProcPerNode", "resourcesPerNode"}
    assert spec["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == str(spec["trainer"]["numProcPerNode"])
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    # `node` is what the runtime torch-distributed calls both the job and its container
    assert node["name"] == pod["containers"][0]["name"] == "node"
    assert set(pod["containers"][0]) <= {"name", "env", "volumeMounts", "securityContext"}
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_the_job_of_dask_workers_is_written_as_the_file_says() -> None:
    dask_jobqueue = pytest.importorskip("dask_jobqueue")
    import dask

    ours = yaml.safe_load((LAUNCH / "dask" / "jobqueue.yaml").read_text())["jobqueue"]["slurm"]
    with dask.config.set({f"jobqueue.slurm.{key}": value for key, value in ours.items()}):
        with dask_jobqueue.SLURMCluster() as cluster:
            script = cluster.job_script()
    for line in ("#SBATCH -J foundation-import", "#SBATCH --cpus-per-task=16", "export OMP_NUM_THREADS=1"):
        assert line in script
    assert "--nthreads 1" in script and "--nworkers 16" in script
