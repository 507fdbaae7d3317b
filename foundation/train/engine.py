"""One optimiser step, on one process or many, and the state that it leaves.

One process uses accelerate alone; several use DeepSpeed ZeRO through accelerate (`deepspeed_engine`). The loss of a
step is the sum over all targets of all ranks divided by their number, so it does not depend on how rows are split.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from foundation.errors import TrainingError
from foundation.tasks.base import Task, TensorBatch
from foundation.train.averaging import Averages
from foundation.train.config import TrainConfig
from foundation.train.optimizers import largest_norm, make_optimizer
from foundation.train.state import Piece, States, read_state, state_files, state_tensors, write_state

TIMEOUT = timedelta(seconds=float(os.environ.get("FOUNDATION_TIMEOUT_SECONDS", "1800")))
"""How long a process waits for the others: longer than a cold compile or a slow shard takes."""
NOT_FINITE = "the gradient is not finite"
"""Why most skipped steps are."""
Accept = Callable[[float], bool]
"""Whether to update, given the loss of a step over all ranks; asked on every rank, and must say the same on all."""


@dataclass(frozen=True)
class StepResult:
    """Of all ranks: loss per target, tokens, gradient norm before clipping; and why the update was skipped, if it was.

    The norm is nan where a step was given up before its gradient was known; under ZeRO with Muon it is the norm of the
    orthogonalised update.
    """

    loss: float
    tokens: int
    gradient_norm: float
    reason: str = ""

    @property
    def skipped(self) -> bool:
        """Weights, optimiser and averages are as they were before the step."""
        return bool(self.reason)


def refusal(loss: float, accept: Accept) -> str:
    """Why a step of this loss is not taken, or nothing."""
    if not math.isfinite(loss):
        return "the loss is not finite"
    return "" if accept(loss) else f"the loss {loss:.4g} was not accepted"


def world_size() -> int:
    """Number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_processes(config: TrainConfig, processes: int) -> None:
    """Raise TrainingError unless the rows of a step can be divided evenly over so many processes."""
    rows, parts = config.rows_per_step, config.accumulation
    if rows % (processes * parts) == 0:
        return
    possible = [str(n) for n in range(1, rows // parts + 1) if rows % (n * parts) == 0]
    remedy = f"possible numbers of processes: {', '.join(possible)}" if possible else "change accumulation"
    raise TrainingError(
        f"rows_per_step {rows} with accumulation {parts} cannot be divided over {processes} processes: {remedy}"
    )


def make_engine(task: Task, config: TrainConfig) -> Engine:
    """The engine for the processes that were launched."""
    _check_processes(config, world_size())
    _forget_engine()
    task.backbone.prepare(config.compile, config.recompute)  # before accelerate and DeepSpeed lay hands on the model
    optimizer = make_optimizer(task, config)
    if world_size() == 1 and config.offload == "none" and config.deepspeed is None:
        return Engine(task, optimizer, config)
    from foundation.train.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(task, optimizer, config)


def _forget_engine() -> None:
    """accelerate keeps its state in the process; the next stage, or one after an error, must not get it."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Engine:
    """One process: accelerate places the model; no process group, no DeepSpeed."""

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        from accelerate import Accelerator

        self.config = config
        # one process under a launch file for DeepSpeed: accelerate would make its own plugin, which needs transformers
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        self.accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no")
        self.rank, self.world = 0, 1
        self.task: Task = task
        self.model, self.optimizer = self.accelerator.prepare(task, optimizer)
        self.device = self.accelerator.device
        self.averages = averages_of(config)

    def set_learning_rate(self, fraction: float) -> None:
        """Learning rate of every group as a fraction of its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * fraction

    def step(self, micro_batches: list[TensorBatch], targets: int, accept: Accept | None = None) -> StepResult:
        """Forward and backward of the rank's micro-batches, then the update. targets: how many of this rank.

        accept is asked when the loss of the whole step is known and before anything has changed; where it says no, or
        the loss is not finite, the update is skipped. A gradient that is not finite skips it too.
        """
        tokens = tokens_of(micro_batches)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.optimizer.zero_grad()
        for i, batch in enumerate(micro_batches, start=1):
            loss = self.model(batch) / targets
            total += loss.detach()
            if accept is not None and i == len(micro_batches) and (reason := refusal(float(total), accept)):
                self.optimizer.zero_grad()
                return StepResult(float(total), tokens, math.nan, reason)
            self.accelerator.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(self.task.parameters(), largest_norm(self.config)))
        if not (math.isfinite(norm) and math.isfinite(float(total))):
            return StepResult(float(total), tokens, norm, NOT_FINITE)
        self.optimizer.step()
        self._take_average()
        return StepResult(float(total), tokens, norm)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum of `values` over all ranks."""
        return values

    def shapes(self) -> dict[str, list[int]]:
        """Shape of every parameter."""
        return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in self.task.named_parameters()}

    def state(self) -> dict[str, Tensor]:
        """This process's part of weights, optimiser state and averages by name, as a checkpoint has them: views."""
        return state_tensors(self._pieces(), self._stores())

    def save(self, folder: Path) -> None:
        """Write this process's part of the state into `folder`. Raises OSError."""
        write_state(state_files(folder, self.world)[self.rank], self.state())

    def load(self, folder: Path, world: int) -> None:
        """Read what `world` processes saved, with any engine and ZeRO stage."""
        read_state(state_files(folder, world), self._pieces(), self._stores(), self.rank, self.world)
        self._weights_follow()

    @contextmanager
    def exported_weights(self) -> Iterator[None]:
        """Within, the task computes with the weights that `export` names; called by all ranks."""
        with self._averaged() if self.config.export == "average" else nullcontext():
            yield

    def weights(self) -> dict[str, Tensor]:
        """All weights; on other ranks than 0 possibly empty. Not to be changed, and stale after the next step."""
        return self.task.state_dict()

    def average(self) -> dict[str, Tensor] | None:
        """All averaged weights, on other ranks than 0 possibly empty; None where no average is taken."""
        if self.averages is None:
            return None
        with self._averaged():
            return {name: tensor.clone() for name, tensor in self.weights().items()}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        assert self.averages is not None
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Weights for averages, and back."""
        assert self.averages is not None
        self.averages.swap(self._owners)
        self._weights_follow()

    def _weights_follow(self) -> None:
        """Nothing to do where the model computes with the very weights that are updated."""

    def _take_average(self) -> None:
        """After an update."""
        if self.averages is not None:
            self.averages.update(self._owners)

    @cached_property
    def _owners(self) -> list[Tensor]:
        """The tensors that the optimiser updates, of which a piece is held here."""
        return list({id(p.owner): p.owner for p in self._pieces() if p.owner is not None}.values())

    def _stores(self) -> dict[str, States]:
        return {"": self._updater().state} | ({"average": self.averages.states} if self.averages else {})

    def _updater(self) -> torch.optim.Optimizer:
        """The optimiser without its wrappers."""
        return self.optimizer.optimizer

    def _pieces(self) -> list[Piece]:
        """What this process holds, whole; each parameter is written by one process."""
        pieces = []
        for i, (name, tensor) in enumerate([*self.task.named_parameters(), *self.task.named_buffers()]):
            owner = tensor if tensor.requires_grad else None
            written = i % self.world == self.rank
            pieces.append(Piece(name, 0, tensor.data.view(-1), owner, written=written))
        return pieces

    def close(self) -> None:
        """Free what accelerate holds."""
        self.accelerator.free_memory()
        _forget_engine()


def averages_of(config: TrainConfig) -> Averages | None:
    """None where the recipe wants no average."""
    return Averages(config.average_decay) if config.average_decay else None


def tokens_of(micro_batches: list[TensorBatch]) -> int:
    """Real tokens of this rank."""
    return sum(len(batch.ids) for batch in micro_batches)
