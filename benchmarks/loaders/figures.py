"""What the platform's stream needs besides time for its rows: start, resume, memory, fill, and what a thread hides.

Each figure is taken in a process of its own:   python -m loaders.figures NAME FOLDER ROW_TOKENS
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from foundation.data.cards import load_card
from foundation.stream.prefetch import Prefetcher
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import TokenStream
from foundation.stream.writing import write_shards
from foundation.tokens.layout import Layout
from loaders import ours
from loaders.contender import ROW_TOKENS_PER_BATCH
from loaders.samples import RowPacker, load_samples, make_samples

RESUMED_STEP = 1_000_000
STEP_SECONDS = 0.005
STEPS = 400
REPEAT = 5
BLOCKS_PER_SHARD = 12
JETS_PER_SHARD = BLOCKS_PER_SHARD * 8192


def report(home: Path, row_tokens: int, shards: int) -> str:
    """Markdown of all figures; `home` holds the folder `ours` that the benchmark wrote."""
    ours_folder, many = home / "ours", home / f"shards_{shards}"
    if not ours_folder.exists():
        ours.write(load_samples(home / "samples"), ours_folder)
    facts = make_many_shards(many, shards)
    first = measure("start", many, row_tokens)
    again, resumed = ([measure(name, many, row_tokens) for _ in range(REPEAT)] for name in ("start", "resume"))
    mixed = [measure("resume_mixture", ours_folder, row_tokens) for _ in range(REPEAT)]
    plain, ahead = (statistics.median(measure(name, ours_folder, row_tokens)["seconds"] for _ in range(REPEAT))
                    for name in ("steps", "steps_ahead"))  # fmt: skip
    fill = measure("fill", ours_folder, row_tokens)

    def middle(found: list[dict], key: str = "seconds") -> float:
        return statistics.median(f[key] for f in found)

    target = "< 2 s", "< 1 s", "< 300 MB besides the page cache", ">= 97 %"
    rows = [
        (f"start-up with {facts}: without imports", f"{middle(again):.2f} s", target[0]),
        ("the same with imports", f"{middle(again, 'with_imports'):.2f} s", ""),
        ("the same the first time, when the rows of every block are counted", f"{first['seconds']:.1f} s", ""),
        (f"first batch at step {RESUMED_STEP:,}, start-up included", f"{middle(resumed):.2f} s", target[1]),
        (f"the same on the mixture (epoch {mixed[0]['epoch']:.0f})", f"{middle(mixed):.2f} s", target[1]),
        (f"own memory after {STEPS} steps", f"{middle(resumed, 'memory') / 2**20:.0f} MiB", target[2]),
        ("of which the interpreter and imports", f"{middle(resumed, 'imported') / 2**20:.0f} MiB", ""),
        (f"fill of the mixture's rows at {row_tokens} tokens", f"{100 * fill['fill']:.2f} %", target[3]),
        (f"steps of {1e3 * STEP_SECONDS:.0f} ms, reading in between", f"{1e3 * plain / STEPS:.2f} ms", ""),
        ("the same, a thread reading ahead", f"{1e3 * ahead / STEPS:.2f} ms", ""),
    ]  # fmt: skip
    return "\n".join(["\n| figure | measured | target |", "|---|---|---|", *(f"| {' | '.join(r)} |" for r in rows)])


def make_many_shards(folder: Path, shards: int) -> str:
    """So many shards, all links to one: the index, the lengths and the manifest are as large as real ones."""
    one = folder.with_name("one_shard")
    if not folder.exists():
        samples = make_samples(JETS_PER_SHARD * 21 // 20)
        lengths = np.diff(samples.offsets)
        chosen = np.flatnonzero(~samples.shower)[:JETS_PER_SHARD]
        tokens = samples.tokens[np.repeat(np.isin(np.arange(len(samples)), chosen), lengths)]
        counts, card = lengths[chosen], load_card(ours.CARDS[0])
        write_shards(one, card.tag, tokens[:, None], np.concatenate([[0], np.cumsum(counts)]),
                     np.zeros(len(counts), np.int64), np.zeros((len(counts), len(card.conditions)), np.float32),
                     largest_code=65_535, seed=1,
                     identity={"card": card.name, "vocabulary": ours.vocabulary().digest, "tokenizer": ""})  # fmt: skip
        _multiply(one, folder, shards)
    manifest = json.loads((folder / "manifest.json").read_text())
    blocks = sum(shard["blocks"] for shard in manifest["shards"])
    return f"{shards:,} shards, {blocks:,} blocks, {manifest['sequences'] / 1e6:,.0f} million jets"


def _multiply(one: Path, folder: Path, shards: int) -> None:
    folder.mkdir()
    manifest = json.loads((one / "manifest.json").read_text())
    (shard,) = manifest["shards"]
    names = [f"{number:06d}.tar" for number in range(shards)]
    for name in names:
        os.symlink((one / shard["name"]).absolute(), folder / name)
    index = np.tile(np.load(one / "index.npy"), shards)
    index["shard"] = np.repeat(np.arange(shards), shard["blocks"])
    np.save(folder / "index.npy", index)
    lengths = np.load(one / "lengths.npy")
    all_lengths = np.lib.format.open_memmap(folder / "lengths.npy", "w+", lengths.dtype, (shards * len(lengths),))
    all_lengths.reshape(shards, -1)[:] = lengths
    all_lengths.flush()
    manifest["shards"] = [{**shard, "name": name} for name in names]
    manifest["sequences"] *= shards
    manifest["points"] *= shards
    for name in manifest["files"]:
        with (folder / name).open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        manifest["files"][name] |= {"bytes": (folder / name).stat().st_size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def measure(name: str, folder: Path, row_tokens: int) -> dict[str, float]:
    """The figures of a fresh process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "loaders.figures", name, str(folder.absolute()), str(row_tokens)]
    answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer.splitlines()[-1])


# What the processes do


def _open_jets(folder: Path, packer: RowPacker) -> TokenStream:
    dataset = ShardedDataset(folder, ours.vocabulary().digest)
    return TokenStream([dataset], [1.0], Layout(ours.vocabulary()), ours.config(packer))


def start(folder: Path, packer: RowPacker) -> dict[str, float]:
    """Open the dataset and be ready for the first step."""
    ours.vocabulary()
    began = time.perf_counter()
    _open_jets(folder, packer)
    return {"seconds": time.perf_counter() - began, "with_imports": _age()}


def resume(folder: Path, packer: RowPacker) -> dict[str, float]:
    """Open the dataset, get the batch of a late step, then go on for a while and look at the memory."""
    ours.vocabulary()
    imported, began = _own_memory(), time.perf_counter()
    stream = _open_jets(folder, packer)
    stream.batches(RESUMED_STEP)
    seconds = time.perf_counter() - began
    for step in range(RESUMED_STEP + 1, RESUMED_STEP + STEPS):
        stream.batches(step)
    return {"seconds": seconds, "memory": _own_memory(), "imported": imported}


def resume_mixture(folder: Path, packer: RowPacker) -> dict[str, float]:
    """The same for jets and showers, many epochs on."""
    ours.vocabulary()
    began = time.perf_counter()
    stream = ours.token_stream(folder, packer.row_tokens, packer.rows)
    stream.batches(RESUMED_STEP)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "epoch": RESUMED_STEP // len(ours.steps_of_epoch(stream, packer.rows, 0))}


def fill(folder: Path, packer: RowPacker) -> dict[str, float]:
    """Tokens of an epoch in places of its rows."""
    stream = ours.token_stream(folder, packer.row_tokens, packer.rows)
    steps = ours.steps_of_epoch(stream, packer.rows, 0)
    tokens = sum(len(stream.batches(step)[0].ids) for step in steps)
    return {"fill": tokens / (len(steps) * packer.rows * packer.row_tokens)}


def steps(folder: Path, packer: RowPacker, depth: int = 0) -> dict[str, float]:
    """Steps that wait as if a GPU worked, each after its batch was read; `depth` steps are read ahead by a thread."""
    stream = ours.token_stream(folder, packer.row_tokens, packer.rows)
    stream.batches(0)
    began = time.perf_counter()
    with Prefetcher(stream.batches, 1, STEPS + 1, depth) as batches:
        for _ in batches:
            time.sleep(STEP_SECONDS)
    return {"seconds": time.perf_counter() - began}


def steps_ahead(folder: Path, packer: RowPacker) -> dict[str, float]:
    """The same with a thread."""
    return steps(folder, packer, depth=2)


def _own_memory() -> float:
    """Bytes that are this process's alone: pages of files, which are memory-mapped, do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _age() -> float:
    """Seconds since this process began."""
    ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    now = float(Path("/proc/uptime").read_text().split()[0])
    return now - ticks / os.sysconf("SC_CLK_TCK")


FIGURES: dict[str, Callable[[Path, RowPacker], dict[str, float]]] = {
    f.__name__: f for f in (start, resume, resume_mixture, fill, steps, steps_ahead)
}


if __name__ == "__main__":
    tokens = int(sys.argv[3])
    print(json.dumps(FIGURES[sys.argv[1]](Path(sys.argv[2]), RowPacker(tokens, ROW_TOKENS_PER_BATCH // tokens))))
