"""How many jets per second our tokenizers encode and decode, beside OmniJet-alpha's public code, in one run.

    python benchmarks/tokenizers.py [--peers FOLDER] [--files jets/*.h5] [--jets 4096] [--threads 1,2] [--turns 5]

Both sides get the same constituents, in memory, in physical units: once in jets as they come, once in jets of 128,
where the peer pads nothing. Each side runs in processes of its own, one for each number of cores; tokenizers take
turns, and the median turn counts. `sh benchmarks/peers.sh FOLDER` makes the peer's environment (ONLY=omnijet: no
other); it gets the first --few jets, because its speed does not depend on their number. Our tokenizers are fitted for
--steps steps, which gives codes but no quality, and these lie otherwise than after a training: --trained adds others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from coders import ours
from coders.samples import JETS_CARD, SHOWERS_CARD, make_samples
from coders.sizes import network_flops
from stream import last_line, load, machine

from foundation.data.point_clouds import PointClouds

TASKS, CLOCKS = ("encode", "decode"), ("wall", "cpu")
TARGETS = {"encode": 5, "decode": 3}
"""For jets as they come."""
PEER_ENVIRONMENT = "omnijet"
KINDS = {"ragged": "jets as they come", "full": "full jets", "showers": "showers"}
LEGEND = """
The ratios are to the fastest line of OmniJet-alpha's code in each column, by wall time and by CPU time. Its encoding
runs the decoder too (it calls the whole model), and pads every jet to 128; 256 is its functions' default; "plain" has
torch's fast path of attention switched off.
Only the tokenizer of its sizes does the same work; the others show what another choice costs. Its tokenizer codes the
three kinematic features of jets: for showers there is nothing to compare with."""


@dataclass
class Worker:
    """A process that works for one side."""

    side: str
    threads: int
    process: subprocess.Popen[str] | None = None
    log: Path = Path()
    problem: str = ""

    def ask(self, question: Mapping[str, str]) -> dict[str, float | str]:
        """One line there and back."""
        if self.process is None or self.problem:
            return {"problem": self.problem}
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.problem = last_line(self.log)
            return {"problem": self.problem}
        return json.loads(answer)


@dataclass
class Entry:
    """A line of a table: a coder of one side, on one sample and some cores."""

    name: str
    coder: str
    sample: str
    clouds: PointClouds
    worker: Worker
    problem: str = ""
    passes: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {task: [] for task in TASKS})

    @property
    def peer(self) -> bool:
        return self.worker.side == PEER_ENVIRONMENT

    def rates(self, task: str, clock: str) -> list[float]:
        """Clouds per second in each turn."""
        return [len(self.clouds) / p[clock] for p in self.passes[task]]

    def rate(self, task: str, clock: str) -> float:
        """In the median turn."""
        return statistics.median(self.rates(task, clock))

    def work(self, task: str, keep: bool) -> None:
        """One pass over the sample; the number of points is checked."""
        if self.problem:
            return
        answer = self.worker.ask({"task": task, "coder": self.coder, "sample": self.sample})
        if "problem" in answer:
            self.problem = str(answer["problem"])
        # patches are fewer than points, and decode to as many hits as they find
        elif self.sample != "showers" and answer["points"] != len(self.clouds.points):
            self.problem = f"{task}: {answer['points']} points of {len(self.clouds.points)}"
        elif keep:
            self.passes[task].append({clock: float(answer[clock]) for clock in CLOCKS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="*", default=[], help=f"of jets of the card {JETS_CARD}")
    parser.add_argument("--jets", type=int, default=4096)
    parser.add_argument("--few", type=int, default=512, help="jets for the peer")
    parser.add_argument("--showers", type=int, default=200, help=f"of the card {SHOWERS_CARD}")
    parser.add_argument("--threads", default="1,2", help="numbers of cores, with commas between them")
    parser.add_argument("--batches", default="16,64,256", help="the peer's, with commas between them")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="of the training of ours")
    parser.add_argument("--only", default="", help="parts of names of ours, with commas between them")
    parser.add_argument("--trained", type=Path, nargs="*", default=[], help="folders of our tokenizers of jets")
    parser.add_argument("--peers", type=Path, help="folder that peers.sh filled")
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder by default")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        print(f"{machine()}; torch {torch.__version__}", flush=True)
        compare(options, folder)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def compare(options: argparse.Namespace, home: Path) -> None:
    """Make the samples, fit ours, run all turns, print the tables."""
    samples = make_samples(home, options.files, options.jets, options.few, options.showers)
    coders = chosen(options, "showers" in samples)
    fitted = [name for name in coders["ours"] if name in ours.OF_JETS | ours.OF_SHOWERS]
    problems = ours.fit_all(home, fitted, samples, options.steps)
    all_threads = [int(n) for n in options.threads.split(",")]
    workers = [start(side, n, home, options.peers) for n in all_threads for side in coders]
    entries = [entry for worker in workers for entry in lines_of(worker, coders[worker.side], samples, options.few)]
    for entry in entries:
        entry.problem = problems.get(entry.name, "")
    try:
        bounds = dict.fromkeys(all_threads, 0.0)
        for turn in range(-1, options.turns):  # the first turn is not timed: it warms up, and checks the numbers
            for worker in (w for w in workers if w.side == "ours"):
                bounds[worker.threads] = max(
                    bounds[worker.threads], float(worker.ask({"task": "peak"}).get("flops", 0.0))
                )
            take_turn(entries, keep=turn >= 0)
            print(f"turn {turn + 1} of {options.turns}: {load()}", file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            if worker.process:
                worker.process.kill()
                worker.process.wait()
    for threads in all_threads:
        for sample, clouds in samples.items():
            print(table([e for e in entries if e.worker.threads == threads and e.sample == sample], sample, clouds,
                        threads, bounds[threads]), flush=True)  # fmt: skip
    print(LEGEND)


def lines_of(worker: Worker, coders: Mapping[str, str], samples: Mapping[str, PointClouds], few: int) -> list[Entry]:
    """Each coder of a worker on each sample that it can take."""
    entries = []
    for name, coder in coders.items():
        for sample in ("showers",) if name in ours.OF_SHOWERS else ("ragged", "full"):
            clouds = samples[sample] if worker.side == "ours" else samples[sample].select(slice(few))
            entries.append(Entry(name, coder, sample, clouds, worker))
    return entries


def chosen(options: argparse.Namespace, showers: bool) -> dict[str, dict[str, str]]:
    """Names in the tables -> coders, of each side."""
    words = [word for word in options.only.split(",") if word]
    names = [*ours.OF_JETS, *(ours.OF_SHOWERS if showers else ())]
    own = {name: name for name in names if not words or any(word in name for word in words)}
    trained = {f"{path.name}, trained": str(path.absolute()) for path in options.trained}
    batches = [f"{n}{plain}" for plain in ("", " plain") for n in options.batches.split(",")]
    return {"ours": own | trained, PEER_ENVIRONMENT: {f"OmniJet-alpha, batches of {b}": b for b in batches}}


def start(side: str, threads: int, home: Path, peers: Path | None) -> Worker:
    """Start the process of one side."""
    worker, python = Worker(side, threads), Path(sys.executable)
    if side == PEER_ENVIRONMENT:
        if peers is None:
            worker.problem = "--peers not given"
            return worker
        python = peers.absolute() / PEER_ENVIRONMENT / "bin" / "python"
        if not python.exists():
            worker.problem = f"no environment {python}"
            return worker
    worker.log = home / f"{side}_{threads}.log"
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    environment = os.environ | limits | {"PYTHONPATH": str(Path(__file__).parent.absolute())}
    with worker.log.open("w") as log:
        worker.process = subprocess.Popen(
            [str(python), "-m", "coders.worker", side, str(home.absolute()), str(threads)],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    return worker


def take_turn(entries: Sequence[Entry], keep: bool) -> None:
    """All tokenizers, one after the other, on the same sample and the same cores, then on the next ones."""
    groups: dict[tuple[int, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.worker.threads, entry.sample), []).append(entry)
    for group in groups.values():
        for task in TASKS:
            for entry in group:
                entry.work(task, keep)


def table(entries: Sequence[Entry], sample: str, clouds: PointClouds, threads: int, bound: float) -> str:
    """Markdown."""
    cores = "one core" if threads == 1 else f"{threads} cores"
    lines = [f"\n{KINDS[sample].capitalize()}, {cores}: {len(clouds):,} with {clouds.counts.mean():.1f} points each; "
             f"{load()} at the end.\n",
             "| tokenizer | encode/s | decode/s | encode, ratio | decode, ratio | encode, by CPU | decode, by CPU |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    best = {(task, clock): fastest(entries, task, clock) for clock in CLOCKS for task in TASKS}
    for entry in entries:
        if entry.problem:
            cells = [f"not available: {entry.problem}", *[""] * 5]
        else:
            cells = [f"{entry.rate(task, 'wall'):,.0f}" for task in TASKS]
            cells += [f"{entry.rate(*key) / other.rate(*key):.3g}" if other else "" for key, other in best.items()]
        lines.append(f"| {'' if entry.peer else 'ours: '}{entry.name} | " + " | ".join(cells) + " |")
    own = next((e for e in entries if e.name == ours.SAME_SIZES and not e.problem), None)
    if own is not None:
        lines += ["", f"- the compute bound: {bound / 1e9:.0f} GFLOP/s in torch.mm"]
        lines += [finding(own, best[task, "wall"], task, bound) for task in TASKS]
    return "\n".join(lines)


def fastest(entries: Sequence[Entry], task: str, clock: str) -> Entry | None:
    """The peer's best line."""
    done = [e for e in entries if e.peer and not e.problem]
    return max(done, key=lambda e: e.rate(task, clock), default=None)


def finding(own: Entry, other: Entry | None, task: str, bound: float) -> str:
    """The tokenizer of the peer's sizes beside what the cores can do, and beside its target."""
    lengths = own.clouds.counts.tolist()
    per_jet = network_flops(lengths) / len(lengths)
    share = per_jet * own.rate(task, "wall") / bound
    line = f"- {task}: {100 * share:.0f} % of the compute bound (the network takes {per_jet / 1e6:.0f} MFLOP per jet)"
    if other is None:
        return line
    pairs = zip(own.rates(task, "wall"), other.rates(task, "wall"), strict=True)
    turns = sorted(mine / theirs for mine, theirs in pairs)
    ratio = own.rate(task, "wall") / other.rate(task, "wall")
    wanted = f"; target {TARGETS[task]}" if own.sample == "ragged" else ""
    return f"{line}; {ratio:.3g} times {other.name} ({turns[0]:.3g} to {turns[-1]:.3g} by turn{wanted})"


if __name__ == "__main__":
    main()
