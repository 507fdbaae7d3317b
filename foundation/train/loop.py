"""The training loop of every task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from foundation.console import Progress, say
from foundation.stream.prefetch import Prefetcher
from foundation.stream.token_stream import Batch, TokenStream
from foundation.tasks.base import Task, to_device
from foundation.train import engine as engines
from foundation.train.checkpoint import how_resumed, resume
from foundation.train.config import TrainConfig
from foundation.train.engine import Engine, make_engine
from foundation.train.faults import ERRORS, EndRequests, Preempted, lost_processes_named
from foundation.train.interface import Extras, MetricLogger, Trained, Validate
from foundation.train.metric_lines import MetricLines
from foundation.train.progress import Speedometer
from foundation.train.saving import CheckpointWriter
from foundation.train.schedules import learning_rate
from foundation.train.spikes import FILE, SkippedSequences, SpikeGuard

__all__ = ["Extras", "MetricLogger", "Trained", "train"]

NO_EXTRAS = Extras()


def train(
    task: Task,
    stream: TokenStream,
    config: TrainConfig,
    folder: Path,
    logger: MetricLogger,
    seed: int,
    title: str,
    validate: Validate,
    prefetch: int = 0,
    extras: Extras = NO_EXTRAS,
) -> Trained:
    """Train `task` on `stream` for config.steps steps, from the newest checkpoint in `folder` if there is one.

    The checkpoint may be of another number of processes. validate is called by all ranks alike, so that it may contain
    collectives (ZeRO-3 gathers weights). A thread prepares `prefetch` steps ahead; 0 means no thread. Raises Preempted
    after a checkpoint when a signal asks for the end.
    """
    with lost_processes_named(folder / ERRORS, engines.TIMEOUT.total_seconds):
        training = _Training(task, stream, config, folder, logger, seed, validate, extras)
        try:
            return training.run(title, prefetch)
        finally:
            training.writer.abandon()


class _Training:
    """One training, on one process of perhaps many; all call everything alike."""

    def __init__(
        self,
        task: Task,
        stream: TokenStream,
        config: TrainConfig,
        folder: Path,
        logger: MetricLogger,
        seed: int,
        validate: Validate,
        extras: Extras,
    ) -> None:
        self.task, self.stream, self.config, self.logger, self.seed = task, stream, config, logger, seed
        self.validate, self.extras = validate, extras
        root = folder / "checkpoints"
        self.engine = engine = make_engine(task, config)
        about = resume(root, engine) or {}
        if about:
            say(f"  {how_resumed(about, engine, config.steps)}")
        self.first, self.tokens = int(about.get("step", 0)), int(about.get("tokens", 0))
        self.writer = CheckpointWriter(
            root, engine, config.keep_checkpoints, config.keep_best, config.background_checkpoints
        )
        self.guard = SpikeGuard(config, about)
        self.lines = MetricLines(folder / "metrics.jsonl", self.first)
        tags = [data.tag for data in stream.datasets]
        self.skipped = SkippedSequences(folder / FILE, tags, engine.rank, self.first)
        self.speedometer = Speedometer(task, engine.shapes(), engine.device, config.precision)
        self.saved = time.monotonic()

    def run(self, title: str, prefetch: int) -> Trained:
        """All steps that are left, and the last validation."""
        config, started = self.config, time.monotonic()
        ahead = Prefetcher(self._prepare, self.first, config.steps, prefetch)
        # before and after the steps there is nothing to save, and a signal ends the process as it always does
        with Progress(title, config.steps, "steps", self.first) as progress, ahead, EndRequests() as requests:
            for batches in ahead:
                step = batches[-1].cursor - 1
                metrics = self._step(step, batches)
                validation = self._validated() if self._due(config.validate_every, step) else {}
                self._record(step, metrics, validation)
                progress.advance(1, f"loss {metrics['loss']:.3f}, {self.speedometer.speed()}")
                if self._due(config.sample_every, step):
                    self._sample(step + 1)
                self._save_if_wanted(step + 1, validation, requests)
        return self._finish(time.monotonic() - started)

    def _prepare(self, step: int) -> list[Batch]:
        return self.stream.batches(step, self.engine.rank, self.engine.world, self.config.accumulation)

    def _due(self, every: int, step: int) -> bool:
        return every > 0 and (step + 1) % every == 0 and step + 1 < self.config.steps

    def _step(self, step: int, batches: list[Batch]) -> dict[str, float]:
        engine = self.engine
        # one stream of random numbers per step and rank, so that dropout resumes exactly
        torch.manual_seed((self.seed * 1_000_003 + step) * 4_096 + engine.rank)
        engine.set_learning_rate(learning_rate(step, self.config))
        self.task.train()
        on_device = [to_device(batch, engine.device) for batch in batches]
        result = engine.step(on_device, sum(map(self.task.count, batches)), self.guard.accept)
        self.tokens += result.tokens
        self.speedometer.count(result.tokens, batches)
        if reason := self.guard.why_skipped(result):
            self.skipped.add(step, result.loss, reason, batches)
        self.guard.after_step(step, result.loss, reason)
        return {"loss": result.loss, "gradient_norm": result.gradient_norm}

    def _record(self, step: int, metrics: dict[str, float], validation: dict[str, float]) -> None:
        self.lines.add(step, metrics | validation)
        if step % self.config.log_every == 0 or validation:
            state = {"tokens": float(self.tokens), "skipped_steps": float(self.guard.skipped)}
            self.logger.log_metrics(metrics | validation | state | self.speedometer.speed().metrics, step)

    def _validated(self) -> dict[str, float]:
        self.task.eval()
        with torch.no_grad(), self.engine.exported_weights():
            metrics = self.validate(self.task, self.engine.device)
        self.speedometer.pause()
        return metrics

    def _sample(self, step: int) -> None:
        with self.engine.exported_weights():
            weights = self.engine.weights()
            if self.extras.sample is not None and self.engine.rank == 0:
                self.extras.sample(weights, step)
        self.speedometer.pause()

    def _save_if_wanted(self, cursor: int, validation: dict[str, float], requests: EndRequests) -> None:
        """The one agreement of a step: what a clock, a signal or a thread says must be the same for all processes."""
        engine, loss = self.engine, _mean_loss(validation)
        due = time.monotonic() - self.saved > self.config.checkpoint_seconds and cursor < self.config.steps
        wanted = engine.rank == 0 and (due or self.writer.improves(loss))
        signs = torch.tensor([wanted, bool(requests.asked), *self.writer.signs], dtype=torch.int32)
        save, end, written, failed = engine.sum_over_ranks(signs.to(engine.device)).tolist()
        self.writer.settle(written, failed)
        if save or end:
            self.lines.flush()
            facts = {**self.extras.facts(), **self.guard.state, "tokens": self.tokens}
            self.writer.begin(cursor, loss, facts)
            self.saved = time.monotonic()
        if end:
            self.writer.wait()
            say(f"  {requests.asked or 'a signal'}: checkpoint at step {cursor}; the same command goes on from there")
            raise Preempted

    def _finish(self, seconds: float) -> Trained:
        engine, config = self.engine, self.config
        self.writer.wait()
        validation = self._validated()
        self.lines.add(config.steps, validation)
        self.lines.flush()
        self.logger.log_metrics(validation, config.steps)
        summary: dict[str, object] = {
            "steps": config.steps,
            "tokens": self.tokens,
            "resumed_at": self.first,
            "seconds_per_step": seconds / max(1, config.steps - self.first),
            "skipped_steps": self.guard.skipped,
            "processes": engine.world,
            "left_out": self.stream.left_out,
            "bad_blocks": _bad_blocks(self.stream, engine),
        }
        weights, average = engine.weights(), engine.average()
        engine.close()
        return Trained(weights, validation, summary, average)


def _mean_loss(validation: Mapping[str, float]) -> float | None:
    """Over the datasets; None where nothing was validated."""
    losses = [value for key, value in validation.items() if key.endswith("/loss")]
    return sum(losses) / len(losses) if losses else None


def _bad_blocks(stream: TokenStream, engine: Engine) -> dict[str, int]:
    """Blocks of each dataset that any rank skipped, since the start or the last resume."""
    counts = {}
    for data in stream.datasets:
        if data.on_bad_block == "skip":
            seen = torch.zeros(data.n_blocks, device=engine.device)
            seen[list(data.bad_blocks)] = 1.0
            counts[data.tag] = int((engine.sum_over_ranks(seen) > 0).sum())
    return counts
