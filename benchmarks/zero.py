"""What ZeRO 0 to 3 cost and save beside plain data parallelism: losses, memory and time on two processes.

    foundation run quickstart --until tokens
    OMP_NUM_THREADS=1 python benchmarks/zero.py runs/quickstart/tokens [--width 384] [--steps 12] [--ranks 2]

Each contender trains the same model on the same batches in processes of its own, by gloo on CPU: one process without
DeepSpeed, torch's DistributedDataParallel, and DeepSpeed at every ZeRO stage, also with the optimiser's state in the
host's memory (which on a CPU is the same memory). Bytes are those of the tensors that a process holds after the last
step; time is the median step's, on the slower process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from learning_rate import new_task, open_stream, steps
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from foundation.tasks.base import TensorBatch
from foundation.train.config import TrainConfig
from foundation.train.engine import Engine, StepResult, make_engine

CONTENDERS: dict[str, dict[str, Any]] = {
    "1 process": {},
    "DDP": {},
    "ZeRO 0": {"zero_stage": 0},
    "ZeRO 1": {"zero_stage": 1},
    "ZeRO 2": {"zero_stage": 2},
    "ZeRO 3": {"zero_stage": 3},
    "ZeRO 2, offload": {"zero_stage": 2, "offload": "optimizer"},
    "ZeRO 3, offload": {"zero_stage": 3, "offload": "parameters"},
}
MEGABYTE = 1e6


class PlainDDP(Engine):
    """The same step by torch's DistributedDataParallel: what there is to compare with."""

    def __init__(self, engine: Engine) -> None:
        self.__dict__ |= engine.__dict__
        torch.distributed.init_process_group("gloo")
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.model = DistributedDataParallel(self.task)

    def step(self, micro_batches: list[TensorBatch], targets: int, accept: None = None) -> StepResult:
        counts = torch.tensor([float(targets)])
        torch.distributed.all_reduce(counts)
        self.optimizer.zero_grad()
        total = torch.zeros(1)
        for batch in micro_batches:
            loss = self.model(batch)
            total += loss.detach()
            (loss * self.world / counts.item()).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.config.clip))
        self.optimizer.step()
        torch.distributed.all_reduce(total)
        return StepResult(total.item() / counts.item(), 0, norm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path, help="folder of a `tokenize` stage")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--row-tokens", type=int, default=256)
    options = parser.parse_args()
    _import_once()
    results = {}
    for name in CONTENDERS:
        with tempfile.TemporaryDirectory() as folder:
            ranks = 1 if name == "1 process" else options.ranks
            mp.start_processes(_work, (name, ranks, _free_port(), options, Path(folder)), ranks, start_method="fork")
            results[name] = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
        print(name, [round(r["peak"] / MEGABYTE) for r in results[name]], "MB more at the peak", flush=True)
    _print_table(results)


def _import_once() -> None:
    """Before the processes fork, which so have their imports at once."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import accelerate  # noqa: F401
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import torch._dynamo  # noqa: F401


def _work(rank: int, name: str, ranks: int, port: int, options: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    stream, layout = open_stream(options.tokens, options.row_tokens, options.ranks)
    config = TrainConfig(steps=options.steps, warmup_steps=2, rows_per_step=options.ranks, **CONTENDERS[name])
    before = _resident()
    task = new_task(layout, options.width, options.layers)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if name == "DDP":  # a single process's engine, then a process group
        engine: Engine = make_engine(task, config)
        os.environ |= {key: str(value) for key, value in place.items()}
        engine = PlainDDP(engine)
    else:
        os.environ |= {key: str(value) for key, value in place.items()} if ranks > 1 else {}
        engine = make_engine(task, config)
    losses, seconds, started = [], [], time.perf_counter()
    for result in steps(engine, stream, config.steps):
        losses.append(result.loss)
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    figures = {
        "losses": losses,
        "seconds": statistics.median(seconds[2:]),
        "state": _bytes(_optimizer_state(engine)),
        "weights": _bytes([*_model_weights(engine), *engine._owners]),
        "peak": _peak() - before,
        "parameters": sum(torch.Size(shape).numel() for shape in engine.shapes().values()),
    }
    (folder / f"{rank}.json").write_text(json.dumps(figures))


def _optimizer_state(engine: Engine) -> Iterable[Tensor]:
    states = engine._updater().state.values()
    return (value for state in states for value in state.values() if isinstance(value, Tensor))


def _model_weights(engine: Engine) -> Iterable[Tensor]:
    """What the model computes with, as far as this process keeps it between steps."""
    for parameter in engine.task.parameters():
        yield parameter.data
        if hasattr(parameter, "ds_tensor"):
            yield parameter.ds_tensor.data


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Memory of these tensors; what several of them share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return sum(storages.values())


def _resident() -> int:
    gc.collect()
    return _peak()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    reference, plain = results["1 process"][0], results["DDP"]
    baseline = max(r["seconds"] for r in plain)
    print(f"\n{reference['parameters']:,} parameters, AdamW, fp32")
    print("| | loss differs by | weights, MB | optimiser state, MB | peak above start, MB | step, ms | time / DDP |")
    print("|---|---|---|---|---|---|---|")
    for name, ranks in results.items():
        pairs = zip(ranks[0]["losses"], reference["losses"], strict=True)
        difference = max(abs(a - b) / b for a, b in pairs)
        step = max(r["seconds"] for r in ranks)
        memory = [f"{max(r[kind] for r in ranks) / MEGABYTE:.1f}" for kind in ("weights", "state")]
        peak = f"{max(r['peak'] for r in ranks) / MEGABYTE:.0f}"
        cells = [f"{difference:.1e}", *memory, peak, f"{1e3 * step:.0f}", f"{step / baseline:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
