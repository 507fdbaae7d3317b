"""How fast training data is read, beside other loaders and two bounds, in one run on one machine.

    python benchmarks/stream.py [--peers FOLDER] [--sequences 200000] [--epochs 7] [--only ours,bounds] [--folder DIR]

Jets (95 % of the sequences) and showers are read into batches of packed rows of int64. Each loader runs in a process of
its own, on one core, with a warm page cache; they take turns, an epoch each, and the median epoch counts, by CPU time
and by wall time. `sh benchmarks/peers.sh FOLDER` installs the other loaders. --only takes groups (ours, bounds, peers,
figures) and parts of names. A loader that works sequence by sequence gets only the first --few sequences and 3 epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from loaders import bounds, figures, ours, peers
from loaders.contender import ROW_TOKENS_PER_BATCH, Contender
from loaders.samples import LONGEST, Samples, load_samples, make_samples, save_samples

GROUPS = {"bounds": bounds.CONTENDERS, "ours": ours.CONTENDERS, "peers": peers.CONTENDERS}
SLOW_EPOCHS = 3
GUARANTEES = {
    "O": "order",
    "R": "resume",
    "E": "elastic",
    "C": "checked",
    "M": "mixing",
    "W": "whole",
    "S": "shuffled",
}
LEGEND = """
order: the same in every run with the same seed; resume: exact inside an epoch; elastic: the same order on any number of
ranks; checked: a flipped byte is noticed; mixing: of datasets by weight; whole: rows of whole sequences, packed by the
library itself. These are what a library can do, used here or not: the other loaders read one dataset that was mixed
when it was written, and 20 lines of NumPy pack its rows, one sequence after the other. shuffled: this line of the table
draws the order of the sequences anew in every epoch; with blocks, inside each of them: by an index of tokens in NumPy,
as one would write it, or "by our gather", which is Arrow's and which no loader brings."""


@dataclass
class Entry:
    """A contender at work."""

    contender: Contender
    home: Path
    python: Path = Path(sys.executable)
    process: subprocess.Popen[str] | None = None
    problem: str = ""
    log: Path = Path()
    epochs: list[dict[str, float]] = field(default_factory=list)

    def rate(self, clock: str) -> float:
        """Median tokens per second by this clock, in millions."""
        return statistics.median(e["tokens"] / e[clock] for e in self.epochs) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=200_000)
    parser.add_argument("--few", type=int, default=10_000, help="sequences for loaders of single sequences")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--row-tokens", type=int, default=2048, help="no sequence is longer than 1,700")
    parser.add_argument("--shards", type=int, default=10_000, help="of the simulated large dataset")
    parser.add_argument("--only", default="", help="groups and parts of names, with commas between them")
    parser.add_argument("--peers", type=Path, help="folder that peers.sh filled")
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder by default")
    options = parser.parse_args()
    if options.row_tokens < LONGEST:
        parser.error(f"--row-tokens: the longest sequence has {LONGEST} tokens, and none is cut")
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        print(machine(), flush=True)
        homes = make_homes(folder, options.sequences, options.few)
        entries = [Entry(c, homes[c.per_sample]) for c in chosen(options.only)]
        compare(entries, options)
        if not options.only or "figures" in options.only.split(","):
            print(figures.report(folder / "all", options.row_tokens, options.shards), flush=True)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def machine() -> str:
    """What this runs on, and how busy it is."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), model)
    cores, loads = len(os.sched_getaffinity(0)), ", ".join(f"{x:.2f}" for x in os.getloadavg())
    return f"{model}, {cores} cores; Python {platform.python_version()}, NumPy {np.__version__}; load average {loads}"


def make_homes(folder: Path, sequences: int, few: int) -> dict[bool, Path]:
    """A folder for each size of the data, by whether it is the small one."""
    samples = make_samples(sequences)
    homes = {False: folder / "all", True: folder / "few"}
    for home, part in ((homes[False], samples), (homes[True], samples.first(few))):
        if not (home / "samples").exists():
            (home / "samples").mkdir(parents=True)
            save_samples(home / "samples", part)
        lengths = np.diff(part.offsets)
        print(f"{home.name}: {len(part):,} sequences, {len(part.tokens):,} tokens; mean length of jets "
              f"{lengths[~part.shower].mean():.1f}, of showers {lengths[part.shower].mean():.0f}")  # fmt: skip
    return homes


def chosen(only: str) -> list[Contender]:
    """Contenders of the groups, or whose names have the words; all without `only`."""
    words = [word for word in only.split(",") if word]
    return [c for group, found in GROUPS.items() for c in found
            if not words or group in words or any(word in c.name for word in words)]  # fmt: skip


def compare(entries: list[Entry], options: argparse.Namespace) -> None:
    """Write the files, run all epochs in turns, print the table."""
    if not entries:
        return
    for entry in entries:
        prepare(entry, options.peers, options.row_tokens)
    try:
        for turn in range(-1, options.epochs):  # the first turn is not timed: it warms up, and checks the sums
            for entry in entries:
                if not entry.problem and turn < (SLOW_EPOCHS if entry.contender.per_sample else options.epochs):
                    run_epoch(entry, check=turn < 0)
            print(f"turn {turn + 1} of {options.epochs}: {load()}", file=sys.stderr, flush=True)
    finally:
        for entry in entries:
            if entry.process:
                entry.process.kill()
                entry.process.wait()
    print(table(entries, options.row_tokens), flush=True)
    print(targets(entries), flush=True)


def load() -> str:
    return f"load average {os.getloadavg()[0]:.2f}"


def prepare(entry: Entry, peers_folder: Path | None, row_tokens: int) -> None:
    """Write the contender's files, unless another one left them, and start its process."""
    contender, home = entry.contender, entry.home
    if contender.environment:
        if peers_folder is None:
            entry.problem = "--peers not given"
            return
        entry.python = peers_folder.absolute() / contender.environment / "bin" / "python"
        if not entry.python.exists():
            entry.problem = f"no environment {entry.python}"
            return
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.absolute()), "OMP_NUM_THREADS": "1"}
    command = [str(entry.python), "-m", "loaders.contender"]
    arguments = [contender.name, str(home.absolute())]
    written = home / f"{contender.files}.written"
    entry.log = home / f"{contender.name.replace(' ', '_')}.log"
    log = entry.log.open("w")
    if contender.write and not written.exists():
        shutil.rmtree(home / contender.files, ignore_errors=True)
        if subprocess.run([*command, "write", *arguments], env=environment, stdout=log, stderr=log).returncode:
            entry.problem = last_line(entry.log)
            return
        written.touch()
    entry.process = subprocess.Popen([*command, "read", *arguments, str(row_tokens)], env=environment, text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)  # fmt: skip


def last_line(log: Path) -> str:
    """What a process said last, which is its error as a rule."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:160] if lines else "ended without a word"


def run_epoch(entry: Entry, check: bool) -> None:
    """One epoch of one contender; the first is compared with the data and not kept."""
    process, samples = entry.process, load_samples(entry.home / "samples")
    assert process is not None and process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write("check\n" if check else "run\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        process.wait()
        entry.problem = last_line(entry.log)
        return
    figures_ = json.loads(answer)
    if not check:
        entry.epochs.append(figures_)
    elif problem := wrong(entry.contender, figures_, samples):
        entry.problem = problem
        process.kill()


def wrong(contender: Contender, found: dict[str, float], samples: Samples) -> str:
    """Why this was not an epoch of the data, or nothing."""
    if contender.whole and found["sum"] != int(samples.tokens.sum(dtype=np.int64)):
        return f"delivered other tokens than were written ({found['tokens']:,.0f} of {len(samples.tokens):,})"
    # a stream without ends has whole batches only, so its epoch is longer by a part of one
    if not -0.01 * len(samples.tokens) <= found["tokens"] - len(samples.tokens):
        return f"delivered {found['tokens']:,.0f} tokens of {len(samples.tokens):,}"
    return ""


def table(entries: list[Entry], row_tokens: int) -> str:
    """Markdown."""
    done = {e.contender.name: e for e in entries if e.epochs}
    packing, own = (done[n].rate("cpu") if n in done else None for n in (bounds.PACKING, ours.ROWS))
    rows = max(1, ROW_TOKENS_PER_BATCH // row_tokens)
    lines = [f"\nBatches of {rows} rows of {row_tokens} tokens; {load()} at the end.\n",
             "| loader | Mtoken/s CPU | Mtoken/s wall | of the packing bound | of ours | "
             + " | ".join(GUARANTEES.values()) + " |", "|---|---|---|---|---|" + "---|" * len(GUARANTEES)]  # fmt: skip
    for entry in sorted(entries, key=lambda e: -e.rate("cpu") if e.epochs else 1.0):
        name, has = entry.contender.name, [("x" if g in entry.contender.guarantees else "") for g in GUARANTEES]
        if not entry.epochs:
            cells = [f"not available: {entry.problem}", "", "", ""]
        else:
            rate = entry.rate("cpu")
            cells = [digits(rate), digits(entry.rate("wall"))]
            cells += [f"{digits(100 * rate / other)} %" if other else "" for other in (packing, own)]
        lines.append("| " + " | ".join([name, *cells, *has]) + " |")
    return "\n".join([*lines, LEGEND])


def targets(entries: list[Entry]) -> str:
    """What our rows of codes are measured by, as far as it was run; and whose versions these were."""
    done = {e.contender.name: e for e in entries if e.epochs}
    of_packages = {e.contender.package: version(e) for e in done.values() if e.contender.package}
    lines = [""]
    if of_packages:
        lines.append("Versions: " + ", ".join(f"{name} {number}" for name, number in of_packages.items()) + ".\n")
    if ours.ROWS in done:
        comparable = [e for e in done.values() if e.contender.package and {*"ORS"} <= {*e.contender.guarantees}]
        others = [(bounds.PACKING, "target 0.6"), (bounds.PACKING_NUMPY, "no target")]
        for ours_too in (False, True):
            found = [e for e in comparable if e.contender.name.endswith(peers.BY_ARROW) == ours_too]
            fastest = max(found, key=lambda e: e.rate("cpu"), default=None)
            others += [(fastest.contender.name, "target 2")] if fastest else []
        for name, wanted in [*others, (peers.PER_SAMPLE, "target 100")]:
            if name in done:
                low, middle, high = times(done[ours.ROWS], done[name])
                lines.append(f"- {ours.ROWS}: {middle:.3g} times {name} ({low:.3g} to {high:.3g} by epoch; {wanted})")
        if comparable:
            lines.append(
                "\nThe libraries are the fastest with order, resume and shuffled, without and with our gather."
            )
    return "\n".join(lines)


def times(one: Entry, other: Entry) -> tuple[float, float, float]:
    """How many times faster one is by CPU time: smallest, middle and largest, epochs of the same turn compared."""
    pairs = zip(one.epochs, other.epochs, strict=False)
    found = sorted(a["tokens"] / a["cpu"] / (b["tokens"] / b["cpu"]) for a, b in pairs)
    return found[0], one.rate("cpu") / other.rate("cpu"), found[-1]


def version(entry: Entry) -> str:
    code = f"import importlib.metadata as m; print(m.version({entry.contender.package!r}))"
    return subprocess.run([entry.python, "-c", code], stdout=subprocess.PIPE, text=True).stdout.strip()


def digits(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


if __name__ == "__main__":
    main()
