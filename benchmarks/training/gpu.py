"""Our training step on a GPU: tokens per second and model FLOPs utilisation of three sizes, on jets and showers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from foundation.data.cards import load_card
from foundation.data.ragged import ragged_arange, to_offsets
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer, count_parameters
from foundation.stream.batches import Batch
from foundation.tasks.base import to_device
from foundation.tasks.generation import Generation
from foundation.tokens.layout import Layout
from foundation.train.config import TrainConfig
from foundation.train.engine import make_engine
from training.ours import CARDS, batch_of, vocabulary_of
from training.samples import point_counts
from training.sizes import WORKLOADS, useful_flops

SIZES = {"6m": 262_144, "124m": 131_072, "1b": 32_768}
"""Tokens of a step."""
TARGETS = {"124m": 0.40, "1b": 0.50}
SHARES = {"jets": 0.5, "showers": 0.5}
"""Of the tokens."""
WARM_UP, STEPS, BATCHES = 6, 20, 4
PEAK_SIZE = 8192


@dataclass(frozen=True)
class Measured:
    """One size: seconds and floating-point operations of a step, tokens, memory in bytes."""

    seconds: float
    flops: float
    tokens: int
    memory: int


def report() -> str:
    """Markdown, or why there is nothing to report."""
    if not torch.cuda.is_available():
        return "\nGPU: left out, torch sees no CUDA device here"
    peak = matmul_peak()
    lines = [f"\n{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s in torch.mm of {PEAK_SIZE}^3 in bf16; MFU "
             "is the share that goes into products that the model needs (unpadded, legal ids only).\n",
             "| size | tokens of a step | tokens/s | MFU | target | memory [GB] |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for size, tokens in SIZES.items():
        try:
            m = measure(size, tokens)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            lines.append(f"| {size} | {tokens:,} | not available: {str(error).splitlines()[0][:100]} | | | |")
            continue
        target = f"{100 * TARGETS[size]:.0f} %" if size in TARGETS else ""
        used = 100 * m.flops / m.seconds / peak
        lines.append(f"| {size} | {m.tokens:,} | {m.tokens / m.seconds:,.0f} | {used:.0f} % | {target} | "
                     f"{m.memory / 1e9:.0f} |")  # fmt: skip
        torch.cuda.empty_cache()
    return "\n".join(lines)


def matmul_peak() -> float:
    """Floating-point operations per second of a large product in bf16, the best of ten."""
    a = torch.randn(PEAK_SIZE, PEAK_SIZE, device="cuda", dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(a, a)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * PEAK_SIZE**3 / best


def measure(size: str, tokens: int) -> Measured:
    """Train a model of this size for some steps."""
    config = TransformerConfig.model_validate({"size": size})
    layout = Layout(vocabulary_of(tuple(WORKLOADS)))
    torch.manual_seed(1)
    task = Generation(Transformer(config, layout.vocabulary.size), layout)
    parameters = count_parameters(task.backbone.blocks)
    settings = {"rows_per_step": 1, "precision": "bf16", "compile": True}
    engine = make_engine(task, TrainConfig.model_validate(settings))
    batches = [mixed(layout, tokens, seed) for seed in range(BATCHES)]
    ready = [(to_device(batch, engine.device), Generation.count(batch)) for batch in batches]
    torch.cuda.reset_peak_memory_stats()
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            torch.cuda.synchronize()
            start = time.perf_counter()
        batch, targets = ready[step % BATCHES]
        engine.step([batch], targets)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / STEPS
    flops = float(np.mean([flops_of(batch, layout, config, parameters) for batch in batches]))
    memory = torch.cuda.max_memory_allocated()
    engine.close()
    return Measured(seconds, flops, int(np.mean([len(batch.ids) for batch in batches])), memory)


def flops_of(batch: Batch, layout: Layout, config: TransformerConfig, block_parameters: int) -> float:
    """What the blocks and the output rows of the legal ids need."""
    blocks = useful_flops(np.diff(batch.offsets).tolist(), config.width, block_parameters, config.layers, legal=0)
    widths = np.array([slot.width for slot in layout.slots])
    return blocks + 6.0 * config.width * float(widths[batch.slots[batch.slots >= 0]].sum())


def mixed(layout: Layout, tokens: int, seed: int) -> Batch:
    """A batch of jets and showers of about so many tokens."""
    rng, parts = np.random.default_rng(seed), []
    for sample, share in SHARES.items():
        counts = rng.choice(point_counts(sample, [], 256), 65536)
        counts = counts[: int(np.searchsorted(np.cumsum(counts + 4), share * tokens)) + 1]
        codes = rng.integers(0, WORKLOADS[sample].codes, int(counts.sum()))
        parts.append(batch_of(layout, load_card(CARDS[sample]).tag, codes, counts))
    return joined(parts)


def joined(parts: list[Batch]) -> Batch:
    """Batches one after the other."""
    columns = {name: np.concatenate([getattr(p, name) for p in parts])
               for name in ("ids", "targets", "slots", "labels", "dataset", "sources")}  # fmt: skip
    lengths = np.concatenate([np.diff(p.offsets) for p in parts])
    return replace(parts[0], **columns, offsets=to_offsets(lengths), positions=ragged_arange(lengths))
