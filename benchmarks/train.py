"""How many tokens per second a training step takes in, beside public code, in one run on one machine.

    python benchmarks/train.py [--peers FOLDER] [--files jets/*.h5] [--turns 5] [--tables published,tricks,scaling,gpu]

A step is forward, backward, clipping and update of one batch at the sizes of OmniJet-alpha (jets) and OmniJet-alpha_C
(showers); all contenders train on the same sequences, and tokens are real ones, no padding. Each side runs in a process
of its own; contenders take turns, one step each, and the median turn counts. `sh benchmarks/peers.sh FOLDER` makes the
peers' environments (ONLY=omnijet or ONLY=gpt: one of them). Tables: `published`, `tricks` (what each of ours gains),
`scaling` (time per token against length, vocabulary and width) and `gpu`, which a machine without one leaves out.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from stream import load, machine
from training import gpu, ours
from training.processes import Side, start
from training.samples import make_sample
from training.sizes import BLOCKS, WIDTH, WORKLOADS, useful_flops

TABLES = ("published", "tricks", "scaling", "gpu")
CLOCKS = ("wall", "cpu")
OURS = {
    "the published architecture": "fp32",
    "the published architecture, bf16": "bf16",
    "our default blocks": "default fp32",
    "our default blocks, bf16": "default bf16",
}
PEERS = {
    "{peer}'s public step": ("omnijet", "adamw fp32"),
    "{peer}'s public step, bf16": ("omnijet", "adamw bf16"),
    "Hugging Face GPT-2": ("gpts", "huggingface fp32"),
    "Hugging Face GPT-2, bf16": ("gpts", "huggingface bf16"),
    "nanoGPT": ("gpts", "nanogpt fp32"),
    "nanoGPT, bf16": ("gpts", "nanogpt bf16"),
}
RANGER = {
    "the published architecture, Ranger": ("ours", "ranger fp32"),
    "the published architecture, Ranger, bf16": ("ours", "ranger bf16"),
    "OmniJet-alpha_C's public step, its Ranger": ("omnijet", "ranger fp32"),
}
"""OmniJet-alpha_C's own optimiser; that of OmniJet-alpha is AdamW."""
LENGTHS, VOCABULARIES, WIDTHS = (64, 256, 1024, 4096), (1024, 8192, 65536), (128, 256, 512, 1024)
LEGEND = """
Ratios are to the public step of the same paper in fp32, which is how its authors train, by wall time and by CPU time.
Public code pads: OmniJet's to its fixed length, where it also computes the loss (alpha) or all logits (alpha_C); the
GPTs to the longest sequence of the batch (of each part of a batch, where its logits would not fit the memory). bf16 is
autocast for all; it pays on CPUs that have instructions for it (AMX)."""


@dataclass
class Entry:
    """A line of a table: a way to train on one sample."""

    name: str
    sample: str
    variant: str
    side: Side
    steps: list[dict[str, float]] = field(default_factory=list)
    problem: str = ""

    def rates(self, clock: str) -> list[float]:
        """Tokens per second in each turn."""
        return [step["tokens"] / step[clock] for step in self.steps]

    def rate(self, clock: str = "wall") -> float:
        """In the median turn."""
        return statistics.median(self.rates(clock))

    def step(self, number: int, few: int, keep: bool) -> None:
        """One training step."""
        if self.problem:
            return
        answer = self.side.ask(
            {"task": "step", "sample": self.sample, "variant": self.variant, "number": number, "few": few}
        )
        if "problem" in answer:
            self.problem = str(answer["problem"])
        elif keep:
            self.steps.append({name: float(x) for name, x in answer.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="of jets of the card pythia_jetclass")
    parser.add_argument("--jets", type=int, default=WORKLOADS["jets"].batch, help="of a batch; 0: no table of jets")
    parser.add_argument("--showers", type=int, default=WORKLOADS["showers"].batch, help="of a batch; 0: none")
    parser.add_argument("--few-jets", type=int, default=256, help="jets of a part of a batch, of which logits exist")
    parser.add_argument("--few-showers", type=int, default=2, help="the same of showers, 2 GB each")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", default=",".join(TABLES), help="with commas between them")
    parser.add_argument("--only", default="", help="parts of names of lines, with commas between them")
    parser.add_argument("--scaling-tokens", type=int, default=4096, help="of a step in the table of scaling")
    parser.add_argument("--peers", type=Path, help="folder that peers.sh filled")
    options = parser.parse_args()
    options.tables = options.tables.split(",")
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no table '{unknown.pop()}': choose from {', '.join(TABLES)}")
    print(f"{machine()}; torch {torch.__version__}", flush=True)
    home = Path(tempfile.mkdtemp())
    try:
        run(options, home)
    finally:
        shutil.rmtree(home)


def run(options: argparse.Namespace, home: Path) -> None:
    """All tables that were asked for."""
    for sample, batch in (("jets", options.jets), ("showers", options.showers)):
        if not batch or not {"published", "tricks"} & set(options.tables):
            continue
        counts = make_sample(home, sample, options.files, batch, max(1, min(options.turns, 4)))
        few = options.few_jets if sample == "jets" else options.few_showers
        print(f"\n{sample}: batches of {batch}, parts of {min(few, batch)}; {counts.mean():.0f} points on average, "
              f"at most {counts.max()}; padded to {WORKLOADS[sample].longest} by OmniJet", flush=True)  # fmt: skip
        for table in ("published", "tricks"):
            if table in options.tables:
                compare(table, sample, few, counts, options, home)
    if "scaling" in options.tables:
        scaling(options, home)
    if "gpu" in options.tables:
        print(gpu.report(), flush=True)


def lines_of(table: str, sample: str, only: str) -> dict[str, tuple[str, str]]:
    """Names in a table -> side and variant; only: parts of names, with commas between them."""
    if table == "tricks":
        lines = {without: ("ours", f"without {without}") for without in ours.WITHOUT}
    else:
        lines = {name: ("ours", variant) for name, variant in OURS.items()}
        lines |= {name.format(peer=WORKLOADS[sample].peer): at for name, at in PEERS.items()}
        lines |= RANGER if sample == "showers" else {}
        lines = {f"ours: {name}" if at[0] == "ours" else name: at for name, at in lines.items()}
    words = [word for word in only.split(",") if word]
    return {name: at for name, at in lines.items() if not words or any(word in name for word in words)}


def compare(table: str, sample: str, few: int, counts: np.ndarray, options: argparse.Namespace, home: Path) -> None:
    """All turns of one table; prints it."""
    # a process for each line: what one leaves in memory, or compiles, must not touch the next
    entries = [
        Entry(name, sample, variant, start(side, sample, options.threads, home, options.peers))
        for name, (side, variant) in lines_of(table, sample, options.only).items()
    ]
    meter = start("ours", sample, options.threads, home, None)
    peak: dict[str, float] = {"fp32": 0.0, "bf16": 0.0}
    try:
        for turn in range(-1, options.turns):  # the first turn is not timed: it warms up
            peak = {name: max(peak[name], float(x)) for name, x in meter.ask({"task": "peak"}).items()}
            for entry in entries:
                entry.step(max(turn, 0), few, keep=turn >= 0)
            print(f"{table}, {sample}: turn {turn + 1} of {options.turns}; {load()}", file=sys.stderr, flush=True)
    finally:
        for side in [meter, *(entry.side for entry in entries)]:
            side.stop()
    if table == "tricks":
        print(tricks_table(entries), flush=True)
    else:
        print(published_table(entries, sample, counts, peak), flush=True)


def published_table(entries: Sequence[Entry], sample: str, counts: np.ndarray, peak: dict[str, float]) -> str:
    """Markdown: rates and ratios, and the findings below."""
    workload = WORKLOADS[sample]
    lines = ["", "| step | tokens/s | us of CPU per token | ratio | ratio by CPU |", "|---|---|---|---|---|"]
    reference = next((e for e in entries if e.variant == "adamw fp32" and e.steps and not e.problem), None)
    for entry in entries:
        if entry.problem:
            lines.append(f"| {entry.name} | not available: {entry.problem} | | | |")
            continue
        ratios = [f"{entry.rate(c) / reference.rate(c):.3g}" if reference else "" for c in CLOCKS]
        lines.append(f"| {entry.name} | {entry.rate():,.0f} | {1e6 / entry.rate('cpu'):,.0f} | {' | '.join(ratios)} |")
    lines.append("")
    flops = useful_flops((counts + 1).tolist(), WIDTH, ours.block_parameters("published"), BLOCKS, workload.codes + 1)
    per_token = flops / int((counts + 1).sum())
    peaks = ", ".join(f"{x / 1e9:.0f} in {name}" for name, x in peak.items())
    lines.append(f"- a real token needs {per_token / 1e6:.0f} MFLOP; torch.mm gives {peaks} GFLOP/s")
    for entry in entries:
        if entry.variant in ("fp32", "bf16") and entry.steps and not entry.problem:
            bound = peak[entry.variant]
            share = f"- {entry.name}: {100 * per_token * entry.rate() / bound:.0f} % of that"
            lines.append(share + (beside(entry, reference, workload.target) if reference else ""))
    return "\n".join([*lines, LEGEND])


def beside(own: Entry, other: Entry, target: float) -> str:
    """Ratio of two lines, and its range over the turns."""
    turns = sorted(a / b for a, b in zip(own.rates("wall"), other.rates("wall"), strict=True))
    return (f"; {own.rate() / other.rate():.3g} times {other.name} ({turns[0]:.3g} to {turns[-1]:.3g} by turn; "
            f"target {target:g})")  # fmt: skip


def tricks_table(entries: Sequence[Entry]) -> str:
    """Markdown: what is lost when one thing is switched off alone."""
    lines = ["", "| switched off | tokens/s | with all tricks, times as fast | by CPU |", "|---|---|---|---|"]
    base = next((e for e in entries if e.name == "all" and e.steps and not e.problem), None)
    names = {"all": "nothing", "none": "all of these", "compiled": "nothing, and blocks compiled"}
    for entry in entries:
        name = names.get(entry.name, entry.name)
        if entry.problem:
            lines.append(f"| {name} | not available: {entry.problem} | | |")
            continue
        ratios = [f"{base.rate(c) / entry.rate(c):.3g}" if base else "" for c in CLOCKS]
        lines.append(f"| {name} | {entry.rate():,.0f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def scaling(options: argparse.Namespace, home: Path) -> None:
    """Time per token against one size at a time, in fp32 and bf16."""
    sizes = {"length": (256, LENGTHS), "ids": (8192, VOCABULARIES), "width": (WIDTH, WIDTHS)}
    usual = {name: first for name, (first, _) in sizes.items()}
    points = {(name, x): usual | {name: x} for name, (_, values) in sizes.items() for x in values}
    print(f"\nTime per token, {BLOCKS} blocks; where nothing else is said sequences of {usual['length']} steps, "
          f"{usual['ids']:,} ids, width {usual['width']}.\n")  # fmt: skip
    print("| size | us of CPU, fp32 | us of CPU, bf16 |\n|---|---|---|", flush=True)
    for (name, value), at in points.items():
        entries = []
        for precision in ("fp32", "bf16"):
            variant = f"{at['length']} {at['ids']} {at['width']} {precision} {options.scaling_tokens}"
            entries.append(Entry(name, "scaled", variant, start("ours", "scaled", options.threads, home, None)))
        for turn in range(-1, min(options.turns, 3)):
            for entry in entries:
                entry.step(0, 1, keep=turn >= 0)
        for entry in entries:
            entry.side.stop()
        cells = [e.problem or f"{1e6 / e.rate('cpu'):,.0f}" for e in entries]
        print(f"| {name} {value:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
