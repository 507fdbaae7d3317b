"""What a run will need: parameters, memory, work, time, and what its processes send to one another. Nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer, count_parameters
from foundation.stream.reading import ShardedDataset
from foundation.stream.rows import LengthRule
from foundation.tokens.layout import Layout
from foundation.train.config import TrainConfig
from foundation.train.deepspeed_settings import deepspeed_settings
from foundation.train.hardware import Gpu
from foundation.train.memory import BUCKET_ELEMENTS, Memory, MicroBatch, Parameters, memory_of

STAGES = (0, 1, 2, 3)
RESERVE = 0.10
"""Share of a GPU's memory that is not counted on: CUDA's context, NCCL's buffers, gaps between allocations."""
LOOKED_AT = 1000
"""Blocks of a dataset whose sequences are looked at."""
PADDING = 1.08
"""Places over tokens where attention pads: buckets of similar lengths allow up to 15 %, and have half of that."""


@dataclass(frozen=True)
class Work:
    """What the sequences of a stage ask of a model.

    vocabulary: ids
    columns: ids of a token
    legal:   how many ids are legal in each kind of place that is predicted
    tokens:  of a step, over all processes
    length:  tokens of the sequence that a token is in, on average over tokens
    outputs: legal ids of all that a token predicts, on average over tokens
    """

    vocabulary: int
    columns: int
    legal: tuple[int, ...]
    tokens: float
    length: float
    outputs: float


@dataclass(frozen=True)
class Machines:
    """What a run is planned on.

    gpus:       in all; nodes: machines
    network:    bytes per second that a machine sends to others, and receives at the same time
    efficiency: share of the peak that training reaches; None where tokens_per_second of a GPU was measured
    """

    gpu: Gpu
    gpus: int
    nodes: int
    network: float
    efficiency: float | None = 0.4
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Exchange:
    """What a process sends (and receives) in a step, and the seconds that it takes by the slowest way."""

    bytes: float
    seconds: float
    between_machines: bool


@dataclass(frozen=True)
class TrainingPlan:
    """A planned run.

    flops: floating-point operations of a token, forward and backward; of_output and of_attention are shares of it
    memory, exchange: by ZeRO stage
    """

    parameters: Parameters
    machines: Machines
    steps: int
    zero_stage: int
    tokens: float
    rows_of_process: int
    flops: float
    of_output: float
    of_attention: float
    tokens_per_second: float
    memory: dict[int, Memory]
    exchange: dict[int, Exchange]

    @property
    def seconds(self) -> float:
        """Of the whole run, at the speed of a GPU alone."""
        return self.tokens * self.steps / (self.tokens_per_second * self.machines.gpus)

    @property
    def step_seconds(self) -> float:
        """Of a step, in which nothing waits for others."""
        return self.seconds / self.steps

    @property
    def gpu_hours(self) -> float:
        """Of the whole run."""
        return self.seconds * self.machines.gpus / 3600

    @property
    def usable(self) -> float:
        """Bytes of a GPU that are counted on."""
        return self.machines.gpu.memory * (1.0 - RESERVE)

    def fits(self, stage: int) -> bool:
        """Whether a process of this ZeRO stage has room on a GPU."""
        return self.memory[stage].peak <= self.usable

    def as_json(self) -> dict[str, Any]:
        """Plain data: bytes, seconds, operations."""
        data = asdict(self) | {"seconds": self.seconds, "gpu_hours": self.gpu_hours}
        for stage in self.memory:
            data["memory"][stage]["fits"] = self.fits(stage)
        return data


def count_on_meta(model: TransformerConfig, vocabulary: int) -> Parameters:
    """Parameters of a backbone of any size, without making it."""
    with torch.device("meta"):
        backbone = Transformer(model, vocabulary)
    hidden = sum(p.numel() for p in backbone.blocks.parameters() if p.ndim == 2)
    embeddings = backbone.embedding.weight.numel() * (1 if model.tied else 2)
    return Parameters(count_parameters(backbone), hidden, embeddings)


def lengths_in(data: ShardedDataset, rule: LengthRule, row_tokens: int) -> NDArray[np.int64]:
    """Points of the sequences that fit into a row; of blocks all over the dataset, where it has many."""
    chosen = np.unique(np.linspace(0, data.n_blocks - 1, min(data.n_blocks, LOOKED_AT)).astype(int))
    points = np.concatenate([data.lengths_of(int(block)) for block in chosen])
    return points[rule.tokens(points) <= row_tokens]


def work_of(
    layout: Layout, tags: Sequence[str], points: Sequence[NDArray[np.int64]], shares: Sequence[float], tokens: float
) -> Work:
    """Work of datasets; points: of sequences of each, or of a fair sample; shares: of the tokens; tokens: of a step."""
    lengths, outputs = [], []
    for tag, counts in zip(tags, points, strict=True):
        steps = layout.lengths(tag, counts) - 1.0
        slots = layout.slots[layout.first_slot[tag] :][: len(layout.entry(tag).streams)]
        targets = counts.sum() * sum(slot.size for slot in slots) + len(counts) * slots[0].ends * slots[0].width
        # with eos legal, a place of the first stream is one wider
        targets += counts.sum() * slots[0].ends
        lengths.append(float(steps @ steps / steps.sum()))
        outputs.append(float(targets / steps.sum()))
    mean = np.asarray(shares) / np.sum(shares)
    return Work(
        vocabulary=layout.vocabulary.size,
        columns=layout.columns,
        legal=tuple(slot.width for slot in layout.slots),
        tokens=tokens,
        length=float(mean @ lengths),
        outputs=float(mean @ outputs),
    )


def plan_training(model: TransformerConfig, train: TrainConfig, work: Work, machines: Machines) -> TrainingPlan:
    """Plan a run. Raises DataError where the rows of a step cannot be divided over the processes."""
    gpus = machines.gpus
    rows = _rows_of_process(train, gpus)
    parameters = count_on_meta(model, work.vocabulary)
    output, attention = model.width * work.outputs, model.layers * model.width * work.length
    flops = 6.0 * (parameters.hidden + output + attention)
    speed = machines.tokens_per_second or machines.gpu.peak * (machines.efficiency or 0.0) / flops
    padding = 1.0 if train.precision == "bf16" else PADDING
    batch = MicroBatch(rows * train.row_tokens, work.columns, padding, work.legal)
    bucket = _bucket(train) if gpus > 1 else BUCKET_ELEMENTS
    stages = STAGES if gpus > 1 else (train.zero_stage,)
    return TrainingPlan(
        parameters=parameters,
        machines=machines,
        steps=train.steps,
        zero_stage=train.zero_stage,
        tokens=work.tokens,
        rows_of_process=rows,
        flops=flops,
        of_output=6.0 * output / flops,
        of_attention=6.0 * attention / flops,
        tokens_per_second=speed,
        memory={s: memory_of(model, parameters, _with_stage(train, s), batch, gpus, bucket=bucket) for s in stages},
        exchange={s: exchange_of(parameters.total, _with_stage(train, s), machines) for s in stages},
    )


def exchange_of(parameters: int, train: TrainConfig, machines: Machines) -> Exchange:
    """What processes send in a step, as DeepSpeed 0.19 does it (volumes: arXiv:1910.02054, section 7).

    ZeRO 0 and 1 add up gradients once a step, 2 and 3 in every micro-batch; all of the gradients go round even where a
    process keeps a part of them. 1 and 2 then collect the updated weights; 3 collects them twice in every micro-batch.
    """
    stage, half = train.zero_stage, train.precision == "bf16"
    weight = 2 if half and stage else 4
    gradient = 2 if half and stage >= 2 else 4
    parts = train.accumulation
    volume = {
        0: 2.0 * gradient,
        1: 2.0 * gradient + weight,
        2: 2.0 * gradient * parts + weight,
        3: (2.0 * weight + gradient) * parts,
    }[stage]
    sent = volume * parameters * (machines.gpus - 1) / machines.gpus
    inside = sent / machines.gpu.link if machines.gpus > machines.nodes else 0.0
    # rings over all processes cross each machine's border once, whatever the number of its GPUs
    between = sent / machines.network if machines.nodes > 1 else 0.0
    return Exchange(sent, max(inside, between), between > inside)


def _bucket(train: TrainConfig) -> int:
    """Elements of DeepSpeed's buffers. Raises TrainingError for a file of the recipe that cannot be."""
    zero = deepspeed_settings(train)["zero_optimization"]
    return int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))


def _with_stage(train: TrainConfig, stage: int) -> TrainConfig:
    """The recipe with another ZeRO stage, and what it offloads as far as that stage can."""
    possible = {"parameters": stage == 3, "optimizer": stage > 0, "none": True}
    offload = train.offload if possible[train.offload] else "none"
    return train.model_copy(update={"zero_stage": stage, "offload": offload})


def _rows_of_process(train: TrainConfig, processes: int) -> int:
    """Rows of a micro-batch."""
    rows, parts = train.rows_per_step, train.accumulation * processes
    if rows % parts:
        raise DataError(
            f"rows_per_step {rows} with accumulation {train.accumulation} cannot be divided over {processes} "
            f"processes: set rows_per_step to a multiple of {parts}"
        )
    return rows // parts
