"""Memory that `foundation plan` predicts, beside what a step of training really allocates, on this machine's CPU.

    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py [--sizes 1m 6m 25m] [--zero] [--tokens 4096]

Every allocation of torch's CPU allocator in the third step is counted by torch's profiler: the most that is there at a
time, with the tensors that were there before. --zero adds two processes with ZeRO 0 to 3. What a GPU needs differs in
the activations: attention does not pad there, and RMSNorm is one operation.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from foundation.data.cards import load_card
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.stream.batches import Batch, lay_out
from foundation.stream.row_stream import Rows
from foundation.tasks.base import to_device
from foundation.tasks.generation import Generation
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Stream
from foundation.tokens.vocabulary import Addition, Vocabulary
from foundation.train.config import TrainConfig
from foundation.train.engine import make_engine
from foundation.train.memory import BUCKET_ELEMENTS, Memory, MicroBatch, memory_of
from foundation.train.planning import count_on_meta

CARD = "jetclass"
BUCKET = 4_000_000
"""Elements of DeepSpeed's buffers in this benchmark: the usual 500 million would be most of what is measured."""
HEADER = "| case | processes | parameters | tokens | predicted MB | measured MB | ratio |\n" + 7 * "|---" + "|"
ONE: Sequence[tuple[dict[str, Any], dict[str, Any]]] = (
    ({}, {}),
    ({}, {"recompute": True}),
    ({}, {"precision": "bf16"}),
    ({}, {"accumulation": 2, "average_decay": 0.99}),
    ({"norm": "layer", "norm_place": "post", "activation": "relu", "positions": "none", "bias": True}, {}),
    ({"kv_heads": 2, "activation": "gelu", "qk_norm": True, "dropout": 0.1}, {}),
)


def layout_of(codes: int) -> Layout:
    """Jets of one code per constituent."""
    card = load_card(CARD)
    return Layout(Vocabulary.build([Addition(card, card.tag, (Stream("code", codes),), "")]))


def batch_of(layout: Layout, tokens: int, seed: int) -> Batch:
    """Random jets of 20 to 60 constituents, at most so many tokens."""
    rng = np.random.default_rng(seed)
    points = rng.integers(20, 60, max(1, tokens // 40))
    points = points[: max(1, int(np.searchsorted(np.cumsum(points + 3), tokens)))]
    labels = np.zeros(len(points), np.int64)
    codes = rng.integers(0, layout.slots[0].size, (points.sum(), 1)).astype(np.uint32)
    nothing, ids = np.zeros((len(points), 0), np.float32), np.arange(len(points), dtype=np.uint64)
    return lay_out(layout, [CARD], [Rows(0, codes, 0, points, labels, labels, nothing, ids)])


def live_bytes() -> int:
    """Of the storages of all tensors that Python knows."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    tensors += [x.grad for x in tensors if x.is_leaf and x.grad is not None]
    return sum({s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in tensors)}.values())


def most_bytes(work: Callable[[], object]) -> int:
    """The most that is allocated at a time while `work` runs, with what was there before."""
    before = live_bytes()
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True, acc_events=True) as profile:
        work()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = profile.profiler.kineto_results.events()
    sizes = [size for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")]
    return before + max(0, int(np.cumsum(sizes).max(initial=0)))


def compare(model: TransformerConfig, train: TrainConfig, codes: int, tokens: int) -> tuple[Memory, int, int, int]:
    """What is predicted, what was measured on this rank, parameters, and tokens of a micro-batch."""
    torch.manual_seed(0)
    layout = layout_of(codes)
    task = Generation(Transformer(model, layout.vocabulary.size), layout)
    engine = make_engine(task, train)
    batches = [batch_of(layout, tokens, seed) for seed in range(train.accumulation)]
    tensors = [to_device(batch, engine.device) for batch in batches]
    targets = sum(map(task.count, batches))
    for _ in range(2):
        engine.step(tensors, targets)
    if engine.world == 1:
        # as the step does first; what was allocated before the profiler began is not seen to go
        engine.optimizer.zero_grad()
    measured = most_bytes(lambda: engine.step(tensors, targets))
    parameters, steps = count_on_meta(model, layout.vocabulary.size), max(len(batch.ids) for batch in batches)
    padding = max(batch.packing.padded / len(batch.ids) for batch in tensors)
    micro = MicroBatch(steps, 1, padding, tuple(slot.width for slot in layout.slots))
    bucket = BUCKET if train.deepspeed else BUCKET_ELEMENTS
    predicted = memory_of(model, parameters, train, micro, engine.world, on_gpu=False, bucket=bucket)
    engine.close()
    return predicted, measured, parameters.total, steps


def line(name: str, model: TransformerConfig, train: TrainConfig, codes: int, tokens: int, world: int = 1) -> None:
    """One line of the table, by rank 0."""
    predicted, measured, parameters, steps = compare(model, train, codes, tokens)
    if int(os.environ.get("RANK", "0")) == 0:
        ratio = predicted.peak / measured
        print(
            f"| {name} | {world} | {parameters:,} | {steps:,} | {predicted.peak / 1e6:,.1f} | {measured / 1e6:,.1f} "
            f"| {ratio:.3f} |",
            flush=True,
        )


def on_two_ranks(*arguments: Any) -> None:
    """`line` on two processes that are forked off, so that nothing is imported anew."""
    import torch.multiprocessing as mp

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(_rank, args=(port, arguments), nprocs=2, start_method="fork")


def _rank(rank: int, port: int, arguments: tuple[Any, ...]) -> None:
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in here.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    line(*arguments, 2)
    torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1m", "6m", "25m"])
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--zero", action="store_true", help="also ZeRO 0 to 3 on two processes")
    options = parser.parse_args()
    common = {"rows_per_step": 4}
    print(HEADER, flush=True)
    for size in options.sizes:
        for model, train in ONE if size == options.sizes[0] else ONE[:3]:
            words = ", ".join(f"{k} {v}" for k, v in (model | train).items())
            config = TransformerConfig(size=size, **model)
            line(f"{size} {words}".strip(), config, TrainConfig(**common, **train), options.codes, options.tokens)
    if options.zero:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "small_buckets.json"
            file.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": BUCKET}}))
            for stage in (0, 1, 2, 3):
                for precision in ("fp32", "bf16"):
                    name = f"{options.sizes[-1]}, ZeRO {stage}, {precision}"
                    train = TrainConfig(**common, zero_stage=stage, precision=precision, deepspeed=str(file))
                    on_two_ranks(name, TransformerConfig(size=options.sizes[-1]), train, options.codes, options.tokens)


if __name__ == "__main__":
    main()
