"""Which learning rate is best at each width: one rate for all parameters against the rule of `learning_rate_width`.

    foundation run quickstart --until tokens
    python benchmarks/learning_rate.py runs/quickstart/tokens [--widths 64,128,256] [--rates 1e-3,3e-3,1e-2,3e-2]

Every training sees the same batches of the quickstart's jets and showers; its figure is the mean loss per target over
the last --last steps. Results go to --record, line by line, and trainings found there are not done again, so that the
sweep may be stopped at any time. The table holds what is in --record.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import StreamConfig, TokenStream
from foundation.tasks.base import to_device
from foundation.tasks.generation import Generation
from foundation.tokens.layout import Layout
from foundation.tokens.vocabulary import Vocabulary
from foundation.train.config import TrainConfig
from foundation.train.engine import Engine, StepResult, make_engine
from foundation.train.schedules import learning_rate

LAYERS, HEAD = 2, 32
RULES = ("same", "width")
"""One rate for all; the rate of the blocks' matrices times the smallest width over the width."""


def open_stream(tokens: Path, row_tokens: int, rows: int) -> tuple[TokenStream, Layout]:
    """Rows of all datasets of a `tokenize` stage, in equal parts."""
    vocabulary = Vocabulary.load(tokens / "vocabulary.json")
    layout = Layout(vocabulary, json.loads((tokens / "artifact.json").read_text())["summary"]["streams"])
    data = [ShardedDataset(tokens / tag / "train", vocabulary.digest) for tag in vocabulary.datasets]
    weights = [1.0 / len(data)] * len(data)
    return TokenStream(data, weights, layout, StreamConfig(row_tokens, rows, 1, 0.3, 0.1)), layout


def new_task(layout: Layout, width: int, layers: int = LAYERS) -> Generation:
    """An untrained generator, always the same."""
    torch.manual_seed(0)
    model = TransformerConfig(width=width, layers=layers, heads=width // HEAD)
    return Generation(Transformer(model, layout.vocabulary.size), layout)


def steps(engine: Engine, stream: TokenStream, count: int) -> Iterator[StepResult]:
    """Train for so many steps."""
    for step in range(count):
        engine.set_learning_rate(learning_rate(step, engine.config))
        batches = stream.batches(step, engine.rank, engine.world, engine.config.accumulation)
        targets = sum(map(engine.task.count, batches))
        yield engine.step([to_device(batch, engine.device) for batch in batches], targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path, help="folder of a `tokenize` stage")
    parser.add_argument("--widths", default="64,128,256")
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2,3e-2")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--last", type=int, default=30)
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--record", type=Path, default=Path("learning_rate.jsonl"))
    options = parser.parse_args()
    widths = [int(width) for width in options.widths.split(",")]
    rates = [float(rate) for rate in options.rates.split(",")]
    for width in widths:
        for rate in rates:
            for rule in RULES:
                # at the smallest width both rules are one
                if (rule, width, rate) not in _done(options.record) and (rule == "same" or width != widths[0]):
                    _train(options, rule, width, rate, widths[0])
    _print_table(_done(options.record), widths, rates)


def _train(options: argparse.Namespace, rule: str, width: int, rate: float, reference: int) -> None:
    started = time.monotonic()
    config = TrainConfig(
        optimizer=options.optimizer,
        steps=options.steps,
        learning_rate=rate,
        learning_rate_width=reference if rule == "width" else None,
        warmup_steps=options.steps // 10,
        rows_per_step=1,
    )
    stream, layout = open_stream(options.tokens, options.row_tokens, config.rows_per_step)
    engine = make_engine(new_task(layout, width), config)
    losses = [result.loss for result in steps(engine, stream, config.steps)]
    engine.close()
    line = {
        "rule": rule,
        "width": width,
        "rate": rate,
        "loss": statistics.mean(losses[-options.last :]),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(line), flush=True)
    with options.record.open("a") as f:
        f.write(json.dumps(line) + "\n")


def _done(record: Path) -> dict[tuple[str, int, float], float]:
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    return {(line["rule"], line["width"], line["rate"]): line["loss"] for line in lines}


def _print_table(done: dict[tuple[str, int, float], float], widths: list[int], rates: list[float]) -> None:
    print("\n| rule | width | " + " | ".join(f"{rate:g}" for rate in rates) + " | best |")
    print("|---|---|" + "---|" * (len(rates) + 1))
    for rule in RULES:
        for width in widths:
            losses = {rate: done[rule, width, rate] for rate in rates if (rule, width, rate) in done}
            if losses:
                cells = [f"{losses[rate]:.3f}" if rate in losses else "" for rate in rates]
                print(f"| {rule} | {width} | " + " | ".join(cells) + f" | {min(losses, key=losses.__getitem__):g} |")


if __name__ == "__main__":
    main()
