"""The training loop of every task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from foundation.console import Progress, is_main_process, say, warn
from foundation.errors import TrainingError
from foundation.stream.prefetch import Prefetcher
from foundation.stream.token_stream import Batch, TokenStream
from foundation.tasks.base import Task, to_device
from foundation.train.checkpoint import how_resumed, resume, save_checkpoint
from foundation.train.config import TrainConfig, learning_rate
from foundation.train.engine import Engine, lost_processes_named, make_engine


class MetricLogger(Protocol):
    """Where metrics go besides the local file: MLflow, or nowhere."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of a step."""


@dataclass(frozen=True)
class Trained:
    """What training returns: all weights (rank 0), the last validation metrics, and what was done."""

    weights: dict[str, Tensor]
    validation: dict[str, float]
    summary: dict[str, object]


@lost_processes_named()
def train(
    task: Task,
    stream: TokenStream,
    config: TrainConfig,
    folder: Path,
    logger: MetricLogger,
    seed: int,
    title: str,
    validate: Callable[[Task, torch.device], dict[str, float]],
    prefetch: int = 0,
) -> Trained:
    """Train `task` on `stream` for config.steps steps, from the newest checkpoint in `folder` if there is one.

    The checkpoint may be of another number of processes. validate(task, device) is called by all ranks alike, so that
    it may contain collectives (ZeRO-3 gathers weights). A thread prepares `prefetch` steps ahead; 0 means no thread.
    """
    engine = make_engine(task, config)
    about = resume(folder / "checkpoints", engine) or {}
    first, tokens = int(about.get("step", 0)), int(about.get("tokens", 0))
    if about:
        say(f"  {how_resumed(about, engine, config.steps)}")
    lines = _MetricLines(folder / "metrics.jsonl", first)
    skipped_in_a_row = skipped = 0
    started = saved = time.monotonic()

    def prepare(step: int) -> list[Batch]:
        return stream.batches(step, engine.rank, engine.world, config.accumulation)

    ahead = Prefetcher(prepare, first, config.steps, prefetch)
    with Progress(title, config.steps, "steps") as progress, ahead:
        progress.done = first
        for batches in ahead:
            step = batches[-1].cursor - 1
            # one stream of random numbers per step and rank, so that dropout resumes exactly
            torch.manual_seed(_step_seed(seed, step, engine.rank))
            engine.set_learning_rate(learning_rate(step, config))
            task.train()
            result = engine.step([to_device(b, engine.device) for b in batches], sum(map(task.count, batches)))
            tokens += result.tokens
            skipped += result.skipped
            skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
            if result.skipped:
                warn(f"step {step}: the gradient is not finite; the update was skipped ({skipped_in_a_row} in a row)")
            if skipped_in_a_row >= config.max_skipped:
                raise TrainingError(
                    f"{skipped_in_a_row} steps in a row had no finite gradient, the last one step {step}: "
                    "lower the learning rate or look at the data; the last good checkpoint is kept"
                )
            metrics = {"loss": result.loss, "gradient_norm": result.gradient_norm}
            if config.validate_every and (step + 1) % config.validate_every == 0 and step + 1 < config.steps:
                metrics |= _validated(validate, task, engine)
            lines.add(step, metrics)
            if step % config.log_every == 0 or len(metrics) > 2:
                logger.log_metrics(metrics | {"tokens": float(tokens)}, step)
            progress.advance(1, f"loss {result.loss:.3f}")
            if engine.all_agree(time.monotonic() - saved > config.checkpoint_seconds) and step + 1 < config.steps:
                lines.flush()
                cursor = batches[-1].cursor
                save_checkpoint(folder / "checkpoints", engine, cursor, {"tokens": tokens}, config.keep_checkpoints)
                saved = time.monotonic()
    seconds = time.monotonic() - started
    validation = _validated(validate, task, engine)
    lines.add(config.steps, validation)
    lines.flush()
    logger.log_metrics(validation, config.steps)
    bad_blocks = _bad_blocks(stream, engine)
    weights = engine.weights()
    engine.close()
    done = max(1, config.steps - first)
    summary: dict[str, object] = {
        "steps": config.steps,
        "tokens": tokens,
        "resumed_at": first,
        "seconds_per_step": seconds / done,
        "skipped_steps": skipped,
        "processes": engine.world,
        "left_out": stream.left_out,
        "bad_blocks": bad_blocks,
    }
    return Trained(weights, validation, summary)


def _validated(
    validate: Callable[[Task, torch.device], dict[str, float]], task: Task, engine: Engine
) -> dict[str, float]:
    task.eval()
    with torch.no_grad():
        return validate(task, engine.device)


def _bad_blocks(stream: TokenStream, engine: Engine) -> dict[str, int]:
    """Blocks of each dataset that any rank skipped, since the start or the last resume."""
    counts = {}
    for data in stream.datasets:
        if data.on_bad_block == "skip":
            seen = torch.zeros(data.n_blocks, device=engine.device)
            seen[list(data.bad_blocks)] = 1.0
            counts[data.tag] = int((engine.sum_over_ranks(seen) > 0).sum())
    return counts


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4_096 + rank


class _MetricLines:
    """`metrics.jsonl` of a stage, written by rank 0. After a resume, lines of steps that are trained again go."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.new: list[str] = []
        if not is_main_process():
            return
        # a kill may have left the last line without its end
        old = path.read_text().split("\n")[:-1] if path.is_file() else []
        kept = [line for line in old if json.loads(line)["step"] < first]
        path.write_text("".join(line + "\n" for line in kept))

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        self.new.append(json.dumps({"step": step, **metrics}))

    def flush(self) -> None:
        if is_main_process():
            with self.path.open("a") as f:
                f.writelines(line + "\n" for line in self.new)
        self.new = []
