"""The training loop: exact resume, ranks and ZeRO stages that change nothing, faults that are named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from foundation.errors import TrainingError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import StreamConfig, TokenStream
from foundation.tasks.base import Task
from foundation.tasks.classification import Classification
from foundation.tasks.generation import Generation
from foundation.train import deepspeed_engine
from foundation.train.checkpoint import MARKER, committed
from foundation.train.config import TrainConfig
from foundation.train.loop import Trained, train
from foundation.train.optimizers import parameter_groups
from foundation.train.schedules import learning_rate

from conftest import ToyTokens
from gloo_ranks import run_distributed

CONFIG = TrainConfig(
    steps=8, row_tokens=64, rows_per_step=4, learning_rate=3e-3, warmup_steps=2, log_every=1, checkpoint_seconds=1e9
)


class Recorder:
    """A metric logger that remembers."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if "loss" in metrics:
            self.losses[step] = metrics["loss"]


class Stopped(Exception):
    """Stands for a kill in the middle of training."""


class StopAt(Recorder):
    """Stops training after a step was logged."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        super().log_metrics(metrics, step)
        if step == self.step:
            raise Stopped


def run(toy: ToyTokens, folder: Path, logger: Recorder, config: TrainConfig = CONFIG, dropout: float = 0.1) -> Trained:
    """Train the same small generator on the toy mixture."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in toy.clouds]
    layout = toy.layout()
    stream = TokenStream(data, [0.5, 0.5], layout, StreamConfig(config.row_tokens, config.rows_per_step, 1, 0.3))
    torch.manual_seed(0)
    model = TransformerConfig(width=32, layers=1, heads=2, dropout=dropout)
    task = Generation(Transformer(model, toy.vocabulary.size), layout)
    return train(task, stream, config, folder, logger, 1, "toy", lambda task, device: {})


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("stop", [0, 3, 6])
def test_resume_is_bit_exact_wherever_it_was_killed(toy: ToyTokens, tmp_path: Path, stop: int) -> None:
    whole = run(toy, tmp_path / "whole", Recorder())
    often = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9})
    for attempt in (stop, stop + 1):
        with pytest.raises(Stopped):
            run(toy, tmp_path / "cut", StopAt(attempt), often)
    resumed = run(toy, tmp_path / "cut", Recorder(), often)
    assert resumed.summary["resumed_at"] == stop + 1
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert all(torch.equal(resumed.weights[k], v) for k, v in whole.weights.items())
    assert resumed.summary["tokens"] == whole.summary["tokens"]


def test_an_uncommitted_checkpoint_does_not_count(toy: ToyTokens, tmp_path: Path) -> None:
    often = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9, "keep_checkpoints": 2})
    with pytest.raises(Stopped):
        run(toy, tmp_path / "cut", StopAt(5), often)
    found = committed(tmp_path / "cut" / "checkpoints")
    assert [p.name for p in found] == ["step_00000004", "step_00000005"]
    (found[-1] / MARKER).unlink()
    (found[-1] / "state_00000.safetensors").write_bytes(b"half")
    run(toy, tmp_path / "cut", Recorder(), often)
    run(toy, tmp_path / "whole", Recorder())
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_accumulation_gives_the_loss_and_weights_of_one_batch(toy: ToyTokens, tmp_path: Path) -> None:
    plain = CONFIG.model_copy(update={"steps": 3})
    a = run_without_dropout(toy, tmp_path / "a", plain)
    b = run_without_dropout(toy, tmp_path / "b", plain.model_copy(update={"accumulation": 4}))
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-5)
    assert all(torch.allclose(a.weights[k], v, atol=2e-5) for k, v in b.weights.items())


def run_without_dropout(toy: ToyTokens, folder: Path, config: TrainConfig) -> Trained:
    """As `run`, without dropout, whose random numbers depend on how rows are split."""
    return run(toy, folder, Recorder(), config, dropout=0.0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_with_deepspeed_train_like_one_process(toy: ToyTokens, tmp_path: Path, stage: int) -> None:
    config = CONFIG.model_copy(update={"steps": 4, "accumulation": 2, "zero_stage": stage})
    one = run_without_dropout(toy, tmp_path / "one", config)

    def two() -> None:
        trained = run_without_dropout(toy, tmp_path / "two", config)
        if torch.distributed.get_rank() == 0:
            torch.save(trained.weights, tmp_path / "two.pt")

    run_distributed(two, 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    weights = torch.load(tmp_path / "two.pt", weights_only=True)
    assert all(torch.allclose(weights[k], v, atol=2e-4) for k, v in one.weights.items())


def test_zero_3_with_every_weight_spread_over_the_ranks(toy: ToyTokens, tmp_path: Path) -> None:
    """By default DeepSpeed keeps small weights whole, which would hide one that is used while it is not gathered."""
    config = CONFIG.model_copy(update={"steps": 3, "zero_stage": 3})
    run_without_dropout(toy, tmp_path / "one", config)

    def two() -> None:
        plugin = deepspeed_engine._plugin

        def spread(settings: TrainConfig) -> object:
            made = plugin(settings)
            made.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
            return made

        deepspeed_engine._plugin = spread
        run_without_dropout(toy, tmp_path / "two", config)

    run_distributed(two, 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_two_ranks_resume_exactly(toy: ToyTokens, tmp_path: Path) -> None:
    # not in the background: there a checkpoint counts from a later step on
    often = CONFIG.model_copy(update={"steps": 6, "checkpoint_seconds": 1e-9, "background_checkpoints": False})

    def whole() -> None:
        run(toy, tmp_path / "whole", Recorder(), often)

    def cut() -> None:
        with pytest.raises(Stopped):
            run(toy, tmp_path / "cut", StopAt(3), often)

    def rest() -> None:
        assert run(toy, tmp_path / "cut", Recorder(), often).summary["resumed_at"] == 3

    run_distributed(whole, 2)
    run_distributed(cut, 2)
    run_distributed(rest, 2)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_loss_that_is_not_finite_is_skipped_then_stops(toy: ToyTokens, tmp_path: Path, capfd) -> None:
    class Broken(Generation):
        def forward(self, batch) -> torch.Tensor:
            return super().forward(batch) * float("nan")

    layout = toy.layout()
    data = [ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest)]
    stream = TokenStream(data, [1.0], layout, StreamConfig(64, 2, 1))
    task = Broken(Transformer(TransformerConfig(width=16, layers=1, heads=2), toy.vocabulary.size), layout)
    before = {k: v.clone() for k, v in task.state_dict().items()}
    config = CONFIG.model_copy(update={"rows_per_step": 2, "max_skipped": 3})
    with pytest.raises(TrainingError, match="3 steps in a row were skipped, the last one step 2 because"):
        train(task, stream, config, tmp_path, Recorder(), 1, "toy", lambda t, d: {})
    assert all(torch.equal(before[k], v) for k, v in task.state_dict().items())
    assert capfd.readouterr().err.count("the update was skipped") == 3


def test_learning_rate_rises_then_falls_without_state() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, final_learning_rate=0.1)
    rates = [learning_rate(s, config) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.001)


def test_a_frozen_backbone_is_not_trained(toy: ToyTokens) -> None:
    task: Task = Classification(Transformer(TransformerConfig(width=16, layers=1, heads=2), 50), 2)
    groups = parameter_groups(task, CONFIG.model_copy(update={"backbone_learning_rate": 0.0}))
    trained = {id(p) for g in groups for p in g["params"]}
    assert trained == {id(p) for p in task.head_parameters()}
    assert not any(p.requires_grad for p in task.backbone.parameters())
