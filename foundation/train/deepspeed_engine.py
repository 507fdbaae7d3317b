"""One optimiser step by DeepSpeed. Its traps, and accelerate's around it, are met here, each with its reason."""

from __future__ import annotations

import math
import os
import socket
from typing import Any

import torch
from torch import Tensor, nn

from foundation.errors import TrainingError
from foundation.tasks.base import Task, TensorBatch
from foundation.train import engine as engines
from foundation.train.config import TrainConfig
from foundation.train.deepspeed_settings import deepspeed_settings
from foundation.train.engine import (
    NOT_FINITE,
    Accept,
    Engine,
    StepResult,
    averages_of,
    refusal,
    tokens_of,
    world_size,
)
from foundation.train.optimizers import largest_norm
from foundation.train.process_groups import wait_at_most
from foundation.train.state import Piece
from foundation.train.zero import partitioned_piece, sharded_piece, weights_follow


class DeepSpeedEngine(Engine):
    """Several processes, or one that asks for more than torch has: DeepSpeed ZeRO 0-3 through accelerate."""

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        self.config = config
        _name_process()
        # naming the backend is what makes accelerate use all processes on CPU: without it each trains alone as a world
        # of one; `cpu=True` would do so too, but drops DeepSpeed.
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        self.accelerator = Accelerator(
            deepspeed_plugin=_plugin(config),
            gradient_accumulation_steps=config.accumulation,
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=engines.TIMEOUT)],
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if self.world != world_size():
            raise TrainingError(
                f"the launcher started {world_size()} processes but the process group has {self.world}: "
                "check --num_machines, --machine_rank and --deepspeed_multinode_launcher standard"
            )
        # never the loader (it would be sharded a second time), never a scheduler (it would step once per process)
        self.model, self.optimizer = self.accelerator.prepare(task, optimizer)
        wait_at_most(engines.TIMEOUT)  # DeepSpeed has made process groups of its own by now
        self.task = task
        self.device = self.accelerator.device
        self.averages = averages_of(config)
        if not config.zero_stage:
            self._watch_updates()

    def set_learning_rate(self, fraction: float) -> None:
        # before the last backward, because that one steps
        for group in self.model.optimizer.param_groups:
            group["lr"] = group["peak"] * fraction

    def step(self, micro_batches: list[TensorBatch], targets: int, accept: Accept | None = None) -> StepResult:
        counts = torch.tensor([targets, tokens_of(micro_batches)], dtype=torch.float64, device=self.device)
        everywhere, tokens = self.sum_over_ranks(counts).tolist()
        # DeepSpeed averages over ranks and micro-batches; the factors turn that into the sum over all targets
        scale = self.world * len(micro_batches) / everywhere
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        skipped_before, mean, reason = self._skipped_steps(), math.nan, ""
        for i, batch in enumerate(micro_batches, start=1):
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch)
                total += loss.detach()
                if accept is not None and i == len(micro_batches):
                    mean = float(self.sum_over_ranks(total)) / everywhere
                    reason = refusal(mean, accept)
                # the last backward is the update; DeepSpeed gives one up, and all that was added up for it, where the
                # gradient is not finite
                self.accelerator.backward(loss * (math.nan if reason else scale))
                self.optimizer.step()
                self.optimizer.zero_grad()
        if accept is None:
            mean = float(self.sum_over_ranks(total)) / everywhere
        if self._skipped_steps() > skipped_before:
            return StepResult(mean, int(tokens), math.nan if reason else math.inf, reason or NOT_FINITE)
        self._take_average()
        return StepResult(mean, int(tokens), self._norm(), "")

    def _watch_updates(self) -> None:
        """ZeRO 0 leaves the update to the optimiser alone, even with a gradient that is not finite: see to it here."""
        updater, self._norm_seen, self._skipped_here = self.model.optimizer, 0.0, 0
        update = updater.step

        def step() -> None:
            self._norm_seen = float(nn.utils.clip_grad_norm_(self.task.parameters(), largest_norm(self.config)))
            if math.isfinite(self._norm_seen):
                update()
            else:
                self._skipped_here += 1

        updater.step = step  # type: ignore[method-assign, assignment]

    def _skipped_steps(self) -> int:
        return self.model.skipped_steps if self.config.zero_stage else self._skipped_here

    def _norm(self) -> float:
        return float(self.model.get_global_grad_norm()) if self.config.zero_stage else self._norm_seen

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        torch.distributed.all_reduce(values)
        return values

    def _weights_follow(self) -> None:
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
        return self.accelerator.get_state_dict(self.model) or {}  # under ZeRO 3, None on other ranks than 0


def _name_process() -> None:
    """DeepSpeed needs a process group, also of one process that no launcher started."""
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(port)


def _plugin(config: TrainConfig) -> Any:
    """DeepSpeed's settings from the recipe, and a file that it names: launch files hold only the topology."""
    from accelerate.utils import DeepSpeedPlugin

    class Plugin(DeepSpeedPlugin):
        def set_deepspeed_weakref(self) -> None:
            """accelerate imports transformers here so that its models can see a ZeRO-3 config; ours need not."""

    return Plugin(hf_ds_config=deepspeed_settings(config), zero3_init_flag=False)
