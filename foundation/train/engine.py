"""One optimiser step, on one process or many. Every trap of accelerate and DeepSpeed is met here, with its reason.

One process uses accelerate alone; several use DeepSpeed ZeRO through accelerate. The loss of a step is the sum over all
targets of all ranks divided by their number, so it does not depend on how the rows are split.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundation.errors import TrainingError
from foundation.tasks.base import Task, TensorBatch
from foundation.train.config import TrainConfig
from foundation.train.state import Piece, read_state, state_files, write_state
from foundation.train.zero import partitioned_piece, sharded_piece, weights_follow

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: longer than a cold compile or a slow shard takes."""


@dataclass(frozen=True)
class StepResult:
    """Of all ranks: loss per target, tokens, gradient norm before clipping; and whether the update was skipped."""

    loss: float
    tokens: int
    gradient_norm: float
    skipped: bool


def world_size() -> int:
    """Number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Turn the error of a collective whose other processes died or hang into one that says what to do."""
    try:
        yield
    except RuntimeError as error:  # gloo has no class of its own for it
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            f"lost the other processes: one of them died, or did nothing for {TIMEOUT.total_seconds():.0f} s. Look for "
            f"its message, then start the same command again: it goes on at the last checkpoint ({error})"
        ) from None


def parameter_groups(task: Task, config: TrainConfig) -> list[dict]:
    """Optimiser groups: matrices with weight decay, the rest without; each knows its peak learning rate."""
    head = {id(p) for p in task.head_parameters()}
    backbone_rate = config.learning_rate if config.backbone_learning_rate is None else config.backbone_learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in task.parameters():
        rate = config.learning_rate if id(parameter) in head else backbone_rate
        if rate == 0:
            parameter.requires_grad_(False)
            continue
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "peak": rate, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


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
    groups = parameter_groups(task, config)
    optimizer = torch.optim.AdamW(groups, betas=config.betas, fused=True)
    if world_size() == 1:
        return Engine(task, optimizer, config)
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

    def set_learning_rate(self, fraction: float) -> None:
        """Learning rate of every group as a fraction of its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * fraction

    def step(self, micro_batches: list[TensorBatch], targets: int) -> StepResult:
        """Forward and backward of the rank's micro-batches, then the update. targets: how many of this rank."""
        total = 0.0
        self.optimizer.zero_grad()
        for batch in micro_batches:
            loss = self.model(batch) / targets
            self.accelerator.backward(loss)
            total += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self.task.parameters(), self.config.clip))
        skipped = not (math.isfinite(norm) and math.isfinite(total))
        if not skipped:
            self.optimizer.step()
        return StepResult(total, _tokens(micro_batches), norm, skipped)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum of `values` over all ranks."""
        return values

    def all_agree(self, wish: bool) -> bool:
        """Rank 0's wish, told to all: decisions that depend on a clock must be the same everywhere."""
        return wish

    def shapes(self) -> dict[str, list[int]]:
        """Shape of every parameter."""
        return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in self.task.named_parameters()}

    def save(self, folder: Path) -> None:
        """Write this process's part of weights and optimiser state into `folder`. Raises OSError."""
        write_state(state_files(folder, self.world)[self.rank], self._pieces(), self._updater())

    def load(self, folder: Path, world: int) -> None:
        """Read what `world` processes saved, with any engine and ZeRO stage."""
        read_state(state_files(folder, world), self._pieces(), self._updater(), self.rank, self.world)

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

    def weights(self) -> dict[str, Tensor]:
        """All weights; on other ranks than 0 possibly empty."""
        return self.task.state_dict()

    def close(self) -> None:
        """Free what accelerate holds."""
        self.accelerator.free_memory()
        _forget_engine()


class DeepSpeedEngine(Engine):
    """Several processes: DeepSpeed ZeRO 0-3 through accelerate."""

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        self.config = config
        # naming the backend is what makes accelerate use all processes on CPU: without it each trains alone as a world
        # of one; `cpu=True` would do so too, but drops DeepSpeed.
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        self.accelerator = Accelerator(
            deepspeed_plugin=_plugin(config),
            gradient_accumulation_steps=config.accumulation,
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=TIMEOUT)],
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if self.world != world_size():
            raise TrainingError(
                f"the launcher started {world_size()} processes but the process group has {self.world}: "
                "check --num_machines, --machine_rank and --deepspeed_multinode_launcher standard"
            )
        # never the loader (it would be sharded a second time), never a scheduler (it would step once per process)
        self.model, self.optimizer = self.accelerator.prepare(task, optimizer)
        self.task = task
        self.device = self.accelerator.device

    def set_learning_rate(self, fraction: float) -> None:
        # before the last backward, because that one steps
        for group in self.model.optimizer.param_groups:
            group["lr"] = group["peak"] * fraction

    def step(self, micro_batches: list[TensorBatch], targets: int) -> StepResult:
        counts = torch.tensor([targets, _tokens(micro_batches)], dtype=torch.float64, device=self.device)
        everywhere, tokens = self.sum_over_ranks(counts).tolist()
        # DeepSpeed averages over ranks and micro-batches; the factors turn that into the sum over all targets
        scale = self.world * len(micro_batches) / everywhere
        total = torch.zeros(1, device=self.device)
        skipped_before = self.model.skipped_steps
        for batch in micro_batches:
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch)
                self.accelerator.backward(loss * scale)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.detach()
        mean = float(self.sum_over_ranks(total)) / everywhere
        norm = float(self.model.get_global_grad_norm() or 0.0)
        skipped = self.model.skipped_steps > skipped_before or not (math.isfinite(mean) and math.isfinite(norm))
        if skipped and self.model.skipped_steps == skipped_before:
            raise TrainingError("the loss is not finite and this ZeRO stage updates all the same: use zero_stage 1-3")
        return StepResult(mean, int(tokens), norm, skipped)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        torch.distributed.all_reduce(values)
        return values

    def all_agree(self, wish: bool) -> bool:
        flag = torch.tensor([float(wish)], device=self.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    def load(self, folder: Path, world: int) -> None:
        super().load(folder, world)
        if self.config.zero_stage:
            weights_follow(self.task, self._pieces(), self.model.optimizer, self.config.zero_stage)

    def _updater(self) -> torch.optim.Optimizer:
        return self.model.optimizer.optimizer if self.config.zero_stage else self.model.optimizer

    def _pieces(self) -> list[Piece]:
        stage, zero, pieces = self.config.zero_stage, self.model.optimizer, super()._pieces()
        if not stage:
            return pieces
        spread = {name: p for name, p in self.task.named_parameters() if p.requires_grad or stage == 3}
        held = [
            partitioned_piece(name, p, zero, self.rank) if stage == 3 else sharded_piece(name, p, zero)
            for name, p in spread.items()
        ]
        return [p for p in pieces if p.name not in spread] + [p for p in held if p is not None]

    def weights(self) -> dict[str, Tensor]:
        return self.accelerator.get_state_dict(self.model)


def _tokens(micro_batches: list[TensorBatch]) -> int:
    return sum(len(batch.ids) for batch in micro_batches)


def _plugin(config: TrainConfig) -> Any:
    """DeepSpeed settings from the recipe alone: launch files hold only the topology."""
    from accelerate.utils import DeepSpeedPlugin

    class Plugin(DeepSpeedPlugin):
        def set_deepspeed_weakref(self) -> None:
            """accelerate imports transformers here so that its models can see a ZeRO-3 config; ours need not."""

    settings: dict[str, object] = {
        # no loader is prepared, so DeepSpeed must be told a size; it is used for its bookkeeping only
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": config.zero_stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if config.precision == "bf16":
        # without fp32 here the micro-batches of a step would be added up in bf16
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return Plugin(hf_ds_config=settings, zero3_init_flag=False)
