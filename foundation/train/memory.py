"""How much memory a step of training takes, counted from what the program keeps: nothing is run.

The parts are those of arXiv:1910.02054 (weights, gradients, optimiser state, each shared or not by a ZeRO stage) and of
arXiv:2205.05198 (activations kept for the backward pass), for this transformer, its loss and DeepSpeed 0.19.
`benchmarks/plan_memory.py` compares the sums with what small runs really allocate.
"""

from __future__ import annotations

from dataclasses import dataclass

from foundation.model.config import TransformerConfig
from foundation.model.loss import CHUNK_LOGITS
from foundation.train.config import TrainConfig

FLOAT, HALF = 4, 2
BUCKET_ELEMENTS = 500_000_000
"""Elements of the buffers in which DeepSpeed exchanges gradients, where its file says nothing else."""
LIVE_ELEMENTS = 1_000_000_000
"""Elements of weights that ZeRO 3 keeps collected at a time, at most."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of trainable parameters; hidden: those in matrices of the blocks, embeddings: ids times width."""

    total: int
    hidden: int
    embeddings: int


@dataclass(frozen=True)
class MicroBatch:
    """What one process computes at a time.

    steps:   tokens, all columns of a step being one
    columns: ids of a step
    padding: places over steps in attention that pads, 1 where it does not
    legal:   how many ids are legal in each kind of place that is predicted
    """

    steps: int
    columns: int
    padding: float
    legal: tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    weights:     that the model computes with
    gradients:   between backward pass and update
    optimizer:   its state, master weights where the model computes with others, the average of the weights
    buffers:     in which DeepSpeed exchanges gradients
    activations: kept from the forward to the backward pass
    loss:        logits of a chunk, and gradients that the loss computes in the forward pass
    host:        what is offloaded, in the memory of the machine
    peak:        all but `host` at the moment of a step that takes most
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    loss: float
    host: float
    peak: float


@dataclass(frozen=True)
class _Types:
    """Bytes per element of matrix products and of the residual stream, and where the model runs."""

    product: int
    residual: int
    on_gpu: bool


@dataclass(frozen=True)
class _State:
    """Bytes of what does not depend on the batch.

    early, late: buffers that are there while activations are, and those that are used when they are gone
    standing: gradients and early buffers are there in the forward pass too
    """

    weights: float
    gradients: float
    standing: bool
    optimizer: float
    early: float
    late: float
    host: float


def memory_of(
    model: TransformerConfig,
    parameters: Parameters,
    train: TrainConfig,
    batch: MicroBatch,
    processes: int,
    on_gpu: bool = True,
    bucket: int = BUCKET_ELEMENTS,
) -> Memory:
    """Memory of one of so many processes. bucket: elements of DeepSpeed's buffers, as its file says."""
    sharing = processes > 1 or train.offload != "none"
    half = train.precision == "bf16"
    # DeepSpeed keeps weights in half precision; else autocast makes them from those in fp32
    in_half = half and sharing and train.zero_stage > 0
    types = _Types(HALF if half else FLOAT, HALF if in_half else FLOAT, on_gpu)
    state = _shared_state(parameters, train, processes, in_half, bucket) if sharing else _own_state(parameters, train)
    block = batch.steps * _block_bytes(model, types, batch.padding)
    kept = _kept_bytes(model, batch, types, block, train.recompute)
    kept += HALF * parameters.hidden if half and not in_half else 0.0
    loss = _loss_bytes(model, batch, types)
    at_work = _at_work_bytes(model, batch, types)
    again, buffers = block if train.recompute else 0.0, state.early + state.late
    moments = (
        kept + loss + (state.gradients + state.early if state.standing else 0.0),
        kept + at_work + (state.gradients if state.standing else 0.0) + state.early + again,
        block + at_work + state.gradients + buffers,
        state.gradients + buffers + (FLOAT * parameters.total if train.optimizer == "lion" else 0.0),
    )
    peak = state.weights + state.optimizer + max(moments)
    return Memory(state.weights, state.gradients, state.optimizer, buffers, kept, loss, state.host, peak)


def _own_state(parameters: Parameters, train: TrainConfig) -> _State:
    whole = float(FLOAT * parameters.total)
    return _State(whole, whole, train.accumulation > 1, _optimizer_bytes(parameters, train), 0.0, 0.0, 0.0)


def _shared_state(parameters: Parameters, train: TrainConfig, processes: int, in_half: bool, bucket: int) -> _State:
    """As DeepSpeed 0.19 allocates it, which is more than the paper has: read there, and measured."""
    total, stage, size = float(parameters.total), train.zero_stage, HALF if in_half else FLOAT
    share, standing = total / processes, train.accumulation > 1
    moments, together = _optimizer_bytes(parameters, train), FLOAT * min(total, BUCKET_ELEMENTS)
    if stage == 0:
        # gradients are copied end to end to be exchanged
        return _State(FLOAT * total, FLOAT * total, standing, moments, 0.0, together, 0.0)
    updated = moments / processes + FLOAT * share  # with the fp32 weights that are updated
    weights, gradients, early, late = size * total, FLOAT * total, float(size * bucket), 0.0
    if stage == 1 and in_half and train.offload == "none":
        # another optimiser of DeepSpeed: gradients in fp32 always, and two copies of them when they are exchanged
        standing, early, late = True, 0.0, 2 * together
    elif stage == 2:
        gradients = 2 * FLOAT * share
    elif stage == 3:
        # its part of the weights, and those that are collected at a time
        weights, gradients, standing = size * (share + min(total, LIVE_ELEMENTS)), FLOAT * share, True
        # gradients before they are shared out, and the copy that is updated with
        late = size * min(total, bucket) + FLOAT * share
    if train.offload == "none":
        return _State(weights, gradients, standing, updated, early, late, 0.0)
    host = updated + FLOAT * share
    if train.offload == "parameters":
        host, weights = host + size * share, weights - size * share
    return _State(weights, gradients, standing, 0.0, early, late, host)


def _optimizer_bytes(parameters: Parameters, train: TrainConfig) -> float:
    """Of the optimiser's state and the average of the weights, not shared."""
    # of Ranger: two moments and the slow weights
    tensors = {"adamw": 2, "muon": 2, "lion": 1, "ranger": 3}[train.optimizer] + bool(train.average_decay)
    saved = parameters.hidden if train.optimizer == "muon" else 0
    return FLOAT * (tensors * parameters.total - saved)


def _block_bytes(model: TransformerConfig, types: _Types, padding: float) -> float:
    """What a step of a block keeps for its backward pass, as `benchmarks/plan_memory.py` lists it."""
    a, width = types.product, model.width
    linear_inputs = 3 * a * width + model.mlp_width * a
    mlp = {"swiglu": 3, "gelu": 1, "relu": 0}[model.activation] * model.mlp_width * a
    dropout = 2 * width * (1 if types.on_gpu else a) if model.dropout else 0
    return 2 * _norm_bytes(model, types) + linear_inputs + _attention_bytes(model, types, padding) + mlp + dropout


def _norm_bytes(model: TransformerConfig, types: _Types) -> float:
    """RMSNorm is one operation on GPUs only; elsewhere it keeps what it divides and the quotient, in fp32."""
    return model.width * (2 * FLOAT if model.norm == "rms" and not types.on_gpu else types.residual)


def _attention_bytes(model: TransformerConfig, types: _Types, padding: float) -> float:
    """Queries, keys, values and outputs, padded or (half precision on a GPU) as they come out of projections."""
    a, width, group = types.product, model.width, model.groups * model.head_width
    projected = width + 2 * group
    if types.on_gpu and a == HALF:
        # values are views of the projection; keys and values of groups are repeated for every head
        kept = 3 * width if group < width else projected
        turned = width + group if model.positions == "rope" or model.qk_norm else 0
        return a * (kept + turned) + FLOAT * model.heads + (a * projected if model.qk_norm and group < width else 0)
    normed = a * projected + (FLOAT * (width + group) if not types.on_gpu else 0) if model.qk_norm else 0
    return padding * (a * (projected + width) + FLOAT * model.heads) + normed


def _kept_bytes(model: TransformerConfig, batch: MicroBatch, types: _Types, block: float, recompute: bool) -> float:
    """Of all blocks, and of the last norm and its output; phases of rotary positions are shared by the blocks."""
    blocks = model.layers * (batch.steps * model.width * types.residual if recompute else block)
    turn = FLOAT * model.head_width if model.positions == "rope" else 0
    return blocks + batch.steps * (_norm_bytes(model, types) + model.width * types.residual + turn)


def _loss_bytes(model: TransformerConfig, batch: MicroBatch, types: _Types) -> float:
    """Logits of a chunk of the widest kind, rounded too in half precision; gradients of hidden states and outputs."""
    widest = max(batch.legal, default=0)
    rows = min(batch.steps, max(1, CHUNK_LOGITS // max(1, widest)))
    logits = rows * widest * (FLOAT + (HALF if types.product == HALF else 0))
    gradients = FLOAT * model.width * (batch.steps + sum(batch.legal))
    return logits + gradients + types.product * model.width * (widest + 4 * rows)


def _at_work_bytes(model: TransformerConfig, batch: MicroBatch, types: _Types) -> float:
    """Gradients on the way through a block, of its hidden states, and of the outputs.

    Those inside the MLP take the places of activations that are done with.
    """
    return batch.steps * model.width * (2 * types.residual + FLOAT) + FLOAT * model.width * sum(batch.legal)
