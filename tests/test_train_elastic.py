"""Checkpoints on any number of processes: kills at any moment, other ranks and ZeRO stages, faults of one rank."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType

import pytest
import torch

from foundation.errors import TrainingError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import Batch, StreamConfig, TokenStream
from foundation.tasks.classification import Classification
from foundation.tasks.generation import Generation
from foundation.train import deepspeed_engine, engine
from foundation.train.checkpoint import MARKER, READABLE, commit, committed, resume
from foundation.train.config import TrainConfig
from foundation.train.engine import make_engine
from foundation.train.loop import train
from foundation.train.saving import CheckpointWriter

from conftest import ToyTokens
from gloo_ranks import exit_codes, run_distributed

CONFIG = TrainConfig(steps=6, row_tokens=64, rows_per_step=6, learning_rate=3e-3, warmup_steps=2)
OFTEN = {"checkpoint_seconds": 1e-9, "background_checkpoints": False}
"""A checkpoint that counts after every step."""
KILLED = -signal.SIGKILL
OLD = READABLE[1]


class Watched(TokenStream):
    """A stream that writes down what it hands out: `record` gets a line per step with a digest of every sequence."""

    record: Path

    def batches(self, step: int, rank: int = 0, world: int = 1, accumulation: int = 1) -> list[Batch]:
        batches = super().batches(step, rank, world, accumulation)
        with self.record.open("a") as f:
            f.write(json.dumps({"step": step, "seen": [d for batch in batches for d in digests(batch)]}) + "\n")
        return batches


def digests(batch: Batch) -> list[str]:
    """One digest per sequence of the batch."""
    parts = zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    return [hashlib.blake2b(batch.ids[a:b].tobytes(), digest_size=8).hexdigest() for a, b in parts]


class Silent:
    """A metric logger that calls `at_step`, if there is one, after every step."""

    def __init__(self, at_step=None) -> None:
        self.at_step = at_step

    def log_metrics(self, metrics, step: int) -> None:
        if self.at_step and "loss" in metrics:
            self.at_step(step)


class Stopped(Exception):
    """Stands for an orderly stop after a step."""


def run(toy: ToyTokens, folder: Path, config: TrainConfig, attempt: int = 0, at_step=None) -> None:
    """Train a small generator on the toy mixture; leaves metrics, what was seen, and the final weights."""
    rank = os.environ.get("RANK", "0")
    folder.mkdir(parents=True, exist_ok=True)
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in toy.clouds]
    layout = toy.layout()
    stream = Watched(data, [0.5, 0.5], layout, StreamConfig(config.row_tokens, config.rows_per_step, 1, 0.3))
    stream.record = folder / f"seen_{attempt}_{rank}.jsonl"
    torch.manual_seed(0)
    task = Generation(Transformer(TransformerConfig(width=32, layers=1, heads=2), toy.vocabulary.size), layout)
    logger = Silent(at_step)
    trained = train(task, stream, config.model_copy(update={"log_every": 1}), folder, logger, 1, "toy", lambda t, d: {})
    if rank == "0":
        torch.save(trained.weights, folder / "weights.pt")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def seen(folder: Path, attempt: int) -> dict[int, Counter[str]]:
    """What all ranks of an attempt saw together, by step. A kill may have left a line without its end."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for path in folder.glob(f"seen_{attempt}_*.jsonl"):
        for line in path.read_text().split("\n")[:-1]:
            entry = json.loads(line)
            found[entry["step"]].update(entry["seen"])
    return found


def weights_agree(a: Path, b: Path, tolerance: float) -> bool:
    first, second = (torch.load(folder / "weights.pt", weights_only=True) for folder in (a, b))
    return all(torch.allclose(first[k], v, rtol=0, atol=tolerance) for k, v in second.items())


class KillAtCall:
    """A profiler that kills its process at the n-th call of a function of foundation/train."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and "/foundation/train/" in frame.f_code.co_filename:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def errors_written(folder: Path) -> Iterator[None]:
    """Leave the text of this rank's TrainingError where the test can read it."""
    try:
        yield
    except TrainingError as error:
        (folder / f"error_{os.environ['RANK']}").write_text(str(error))
        raise


def run_and_die(toy: ToyTokens, folder: Path, config: TrainConfig, victim: int, last: int, calls: int) -> None:
    """`run`, killed with -9 at some call after a step, and so after the first checkpoint."""

    def arm(step: int) -> None:
        if step == last and os.environ["RANK"] == str(victim):
            sys.setprofile(KillAtCall(calls))

    with errors_written(folder):
        run(toy, folder, config, 0, arm)


@pytest.fixture(scope="module")
def whole(toy: ToyTokens, tmp_path_factory: pytest.TempPathFactory):
    """Folder of the uninterrupted run with some settings on so many ranks, trained when it is first asked for."""
    made: dict[tuple[int, str, int], Path] = {}

    def get(config: TrainConfig, world: int) -> Path:
        key = config.zero_stage, config.precision, world
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            run_distributed(run, world, toy, made[key], config)
        return made[key]

    return get


def settings(stage: int, precision: str = "fp32") -> TrainConfig:
    return CONFIG.model_copy(update={"zero_stage": stage, "precision": precision})


@pytest.mark.parametrize(
    ("stage", "precision", "before", "after"),
    [
        (1, "fp32", 2, 2),
        (1, "fp32", 2, 1),
        (1, "fp32", 1, 2),
        pytest.param(2, "fp32", 2, 1, marks=pytest.mark.slow),
        pytest.param(3, "fp32", 2, 3, marks=pytest.mark.slow),
        pytest.param(0, "fp32", 2, 2, marks=pytest.mark.slow),
        pytest.param(2, "fp32", 2, 2, marks=pytest.mark.slow),
        pytest.param(3, "fp32", 2, 2, marks=pytest.mark.slow),
        # another optimiser of DeepSpeed: weights in bf16 beside those in fp32 that are updated
        pytest.param(1, "bf16", 2, 2, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_losses(
    toy: ToyTokens, tmp_path: Path, whole, stage: int, precision: str, before: int, after: int
) -> None:
    config = settings(stage, precision)
    often = config.model_copy(update=OFTEN)
    draw = random.Random(f"{stage} {precision} {before} {after}")
    victim, last, calls = draw.randrange(before), draw.randrange(1, 4), draw.randrange(1, 40)
    codes = exit_codes(run_and_die, before, toy, tmp_path, often, victim, last, calls)
    # the other rank ended by itself, with an error
    assert codes == [KILLED if rank == victim else 1 for rank in range(before)], (victim, last, calls)
    assert all("lost the other processes" in path.read_text() for path in tmp_path.glob("error_*"))
    cut = int(committed(tmp_path / "checkpoints")[-1].name[5:])
    assert last <= cut < CONFIG.steps

    run_distributed(run, after, toy, tmp_path, often, 1)
    uninterrupted = whole(config, before)
    expected = seen(uninterrupted, 0)
    assert list(expected) == list(range(CONFIG.steps)) and all(expected.values())
    first, second = seen(tmp_path, 0), seen(tmp_path, 1)
    assert list(second) == list(range(cut, CONFIG.steps))
    assert all(second[step] == expected[step] for step in second)
    assert all(first[step] == expected[step] for step in range(cut))
    assert all(first[step] <= expected[step] for step in first)  # of the last ones perhaps not by all ranks
    if before == after:
        assert losses(tmp_path) == losses(uninterrupted)
        assert weights_agree(tmp_path, uninterrupted, 0.0)
    else:
        assert losses(tmp_path) == pytest.approx(losses(uninterrupted), rel=1e-4)
        assert weights_agree(tmp_path, uninterrupted, 2e-4)


def test_from_two_ranks_to_three_to_one_and_from_zero_stage_to_zero_stage(
    toy: ToyTokens,
    tmp_path: Path,
    whole,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plugin = deepspeed_engine._plugin

    def spread(config: TrainConfig) -> object:
        """By default ZeRO-3 keeps small weights whole; here every weight is cut into parts."""
        made = plugin(config)
        made.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return made

    monkeypatch.setattr(deepspeed_engine, "_plugin", spread)

    def part(attempt: int, stage: int) -> None:
        def stop(step: int) -> None:  # before the checkpoint of this step is written
            if step == attempt + 1:
                raise Stopped

        with pytest.raises(Stopped):
            run(toy, tmp_path, settings(stage).model_copy(update=OFTEN), attempt, stop)

    for attempt, (world, stage) in enumerate([(2, 3), (3, 2), (2, 0), (2, 1), (1, 1)]):
        run_distributed(part, world, attempt, stage)
    run_distributed(run, 3, toy, tmp_path, settings(3), 5)
    told = capfd.readouterr().out
    for line in (
        "resumed at step 1 of 6, written by 2 processes, now 3",
        "resumed at step 3 of 6, written with zero_stage 0, now 1",
        "resumed at step 5 of 6, written by 1 process, now 3",
    ):
        assert line in told
    assert losses(tmp_path) == pytest.approx(losses(whole(settings(1), 2)), rel=1e-4)
    assert weights_agree(tmp_path, whole(settings(1), 2), 2e-4)


def test_other_ranks_load_every_weight_and_moment_exactly(toy: ToyTokens, tmp_path: Path) -> None:
    """A fine-tuning with a frozen backbone, in bf16, and sizes that three ranks cannot share evenly."""
    config = CONFIG.model_copy(update={"backbone_learning_rate": 0.0, "precision": "bf16"})

    def make(stage: int) -> engine.Engine:
        task = Classification(Transformer(TransformerConfig(width=16, layers=1, heads=2), 51), 5)
        return make_engine(task, config.model_copy(update={"zero_stage": stage}))

    def fill(made: engine.Engine) -> None:
        """Known numbers in all that is trained: element i of the parameter is i, its moments -i and i / 2."""
        for piece in made._pieces():
            if piece.owner is not None:
                numbers = torch.arange(piece.start, piece.start + len(piece.values), dtype=torch.float32)
                piece.values.copy_(numbers)
                piece.state(made._updater().state, "exp_avg").copy_(-numbers)
                piece.state(made._updater().state, "exp_avg_sq").copy_(numbers / 2)
                made._updater().state[piece.owner]["step"] = torch.tensor(7.0)

    def check(made: engine.Engine) -> None:
        sizes: Counter[str] = Counter()
        for piece in made._pieces():
            if piece.owner is not None:
                sizes[piece.name] += len(piece.values)
                numbers = torch.arange(piece.start, piece.start + len(piece.values), dtype=torch.float32)
                assert torch.equal(piece.values, numbers)
                assert torch.equal(piece.state(made._updater().state, "exp_avg"), -numbers)
                assert torch.equal(piece.state(made._updater().state, "exp_avg_sq"), numbers / 2)
                assert made._updater().state[piece.owner]["step"] == 7.0
        total = made.sum_over_ranks(torch.tensor(float(sum(sizes.values()))))
        trained = [name for name, p in made.task.named_parameters() if p.requires_grad]
        count = sum(torch.Size(made.shapes()[name]).numel() for name in trained)
        assert total == count * (1 if made.config.zero_stage else made.world)
        weights = made.weights()
        if made.rank == 0:
            for name in trained:
                numbers = torch.arange(weights[name].numel(), dtype=torch.float32)
                assert torch.equal(weights[name].flatten(), numbers.to(weights[name].dtype))

    def save(folder: Path, stage: int) -> None:
        made = make(stage)
        fill(made)
        CheckpointWriter(folder, made, keep=1, background=False).begin(1, None, {})
        made.close()

    def load(folder: Path, stage: int) -> None:
        made = make(stage)
        about = resume(folder, made)
        assert about is not None and about["world"] != made.world
        check(made)
        made.close()

    def load_and_save() -> None:
        load(tmp_path / "three", 1)
        save(tmp_path / "two", 2)

    run_distributed(save, 3, tmp_path / "three", 3)
    run_distributed(load_and_save, 2)
    load(tmp_path / "three", 1)
    run_distributed(load, 3, tmp_path / "two", 3)


def test_rows_that_cannot_be_divided_are_an_error_with_the_numbers_that_can(
    toy: ToyTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(TrainingError, match="over 4 processes: possible numbers of processes: 1, 2, 3, 6"):
        run(toy, tmp_path, CONFIG)
    with pytest.raises(TrainingError, match="possible numbers of processes: 1, 3"):
        run(toy, tmp_path, CONFIG.model_copy(update={"accumulation": 2}))
    with pytest.raises(TrainingError, match="change accumulation"):
        run(toy, tmp_path, CONFIG.model_copy(update={"accumulation": 4}))


@pytest.mark.slow
def test_a_rank_that_hangs_is_an_error_for_the_others(
    toy: ToyTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TIMEOUT", timedelta(seconds=8))

    def hang() -> None:
        def fall_asleep(step: int) -> None:
            while step == 2 and os.environ["RANK"] == "1" and not (tmp_path / "error_0").exists():
                time.sleep(0.1)

        with errors_written(tmp_path):
            run(toy, tmp_path, CONFIG, at_step=fall_asleep)

    assert exit_codes(hang, 2) == [1, 1]
    told = (tmp_path / "error_0").read_text()
    assert "did nothing for 8 s" in told and "start the same command again" in told


def test_a_full_disk_of_one_rank_is_an_error_on_all_and_the_checkpoint_before_is_intact(
    toy: ToyTokens, tmp_path: Path
) -> None:
    def fill_the_disk() -> None:
        def limit(step: int) -> None:
            if step == 2 and os.environ["RANK"] == "1":
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        with errors_written(tmp_path):
            run(toy, tmp_path, CONFIG.model_copy(update=OFTEN), at_step=limit)

    assert exit_codes(fill_the_disk, 2) == [1, 1]
    for rank, why in enumerate(("1 other process", "File too large")):
        told = (tmp_path / f"error_{rank}").read_text()
        assert "step_00000003: cannot write the checkpoint" in told and why in told and "is intact" in told
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001", "step_00000002"]
    assert len(committed(tmp_path / "checkpoints")) == 2


def test_checkpoints_that_cannot_be_loaded_are_named(toy: ToyTokens, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 3, **OFTEN})
    run(toy, tmp_path, config)
    newest = committed(tmp_path / "checkpoints")[-1]
    # a kill that left half a folder: it does not count, and goes with the next checkpoint
    (tmp_path / "checkpoints" / "step_00000009").mkdir()
    run(toy, tmp_path, config.model_copy(update={"steps": 5}))
    assert [p.name for p in committed(tmp_path / "checkpoints")] == ["step_00000003", "step_00000004"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2 and not newest.exists()

    newest = committed(tmp_path / "checkpoints")[-1]
    about = json.loads((newest / "about.json").read_text())
    name = next(iter(about["shapes"]))
    commit(newest, about | {"shapes": about["shapes"] | {name: [1, 2]}})
    with pytest.raises(TrainingError, match=rf"written for another model: {name} is \[1, 2\], now it is"):
        run(toy, tmp_path, config)
    commit(newest, about | {"format": "other"})
    with pytest.raises(TrainingError, match="not in the format"):
        run(toy, tmp_path, config)
    # format 2 has no sha256
    commit(newest, {key: about[key] for key in ("step", "world", "zero_stage", "shapes", "tokens")} | {"format": OLD})
    (newest / MARKER).write_text("")
    state = newest / "state_00000.safetensors"
    state.write_bytes(state.read_bytes()[:-8])
    with pytest.raises(TrainingError, match=r"state_00000.safetensors: missing or damaged .* remove .*step_00000004"):
        run(toy, tmp_path, config)
