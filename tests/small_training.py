"""A training of seconds on the toy mixture, and what it leaves, for tests of faults."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from foundation.errors import TrainingError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import Batch, StreamConfig, TokenStream
from foundation.tasks.base import Task, TensorBatch
from foundation.tasks.generation import Generation
from foundation.train.config import TrainConfig
from foundation.train.interface import Extras, Trained
from foundation.train.loop import train

from conftest import ToyTokens

CONFIG = TrainConfig(
    steps=8, row_tokens=64, rows_per_step=4, learning_rate=3e-3, warmup_steps=2, log_every=1, checkpoint_seconds=1e-9
)
"""A checkpoint after every step."""
MODEL = TransformerConfig(width=32, layers=1, heads=2, dropout=0.1)

Losses = Mapping[int, float]


class Scaled(Generation):
    """The loss of some steps is multiplied by a number, such as 50 or nan. Works on the sequences, as data do."""

    factors: Mapping[int, float] = {}
    step = -1

    def forward(self, batch: TensorBatch) -> torch.Tensor:
        return super().forward(batch) * self.factors.get(self.step, 1.0)


class Noting(TokenStream):
    """Tells the task which step it is at."""

    task: Scaled

    def batches(self, step: int, rank: int = 0, world: int = 1, accumulation: int = 1) -> list[Batch]:
        self.task.step = step
        return super().batches(step, rank, world, accumulation)


class AtStep:
    """A metric logger that calls `do(step)` after every step, before what is done at its end."""

    def __init__(self, do: Callable[[int], None] | None = None) -> None:
        self.do = do

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if self.do is not None and "loss" in metrics:
            self.do(step)


def run(
    toy: ToyTokens,
    folder: Path,
    config: TrainConfig = CONFIG,
    do: Callable[[int], None] | None = None,
    factors: Mapping[int, float] | None = None,
    validate: Callable[[Task, torch.device], dict[str, float]] = lambda task, device: {},
    extras: Extras | None = None,
) -> Trained:
    """Train a small generator with dropout; leaves metrics, last.pt and average.pt in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in toy.clouds]
    layout = toy.layout()
    stream = Noting(data, [0.5, 0.5], layout, StreamConfig(config.row_tokens, config.rows_per_step, 1, 0.3))
    torch.manual_seed(0)
    task = Scaled(Transformer(MODEL, toy.vocabulary.size), layout)
    task.factors, stream.task = factors or {}, task
    logger = AtStep(do)
    trained = train(task, stream, config, folder, logger, 1, "toy", validate, extras=extras or Extras())
    if os.environ.get("RANK", "0") == "0":
        torch.save(trained.weights, folder / "last.pt")
        torch.save(trained.average, folder / "average.pt")
    return trained


def losses(folder: Path) -> list[float]:
    """Of every step, from metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def same_weights(a: Path, b: Path) -> bool:
    """Bit for bit."""
    first, second = (torch.load(folder / "last.pt", weights_only=True) for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], v) for k, v in second.items())


@contextmanager
def errors_written(folder: Path) -> Iterator[None]:
    """Leave the text of this rank's TrainingError where the test can read it."""
    try:
        yield
    except TrainingError as error:
        (folder / f"error_{os.environ['RANK']}").write_text(str(error))
        raise
