"""One loader in a process of its own: writes its files, or runs an epoch whenever a line comes in.

python -m loaders.contender write NAME FOLDER
python -m loaders.contender read NAME FOLDER ROW_TOKENS      one JSON line of figures for every line read
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.samples import RowPacker, Rows, Samples, load_samples, permuted, permuted_by_arrow

ROW_TOKENS_PER_BATCH = 32_768
Blocks = Iterable[tuple[NDArray, NDArray]]
Read = Callable[[Path, int, RowPacker], Iterator[Rows]]


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    read(folder, epoch, packer) gives the batches of one epoch. guarantees: of the library, whether this row uses it: a
    letter each of Order is a function of the seed alone, Resumes exactly, Elastic (the same order on any number of
    ranks), Checks its bytes, Mixes by weight, keeps Whole sequences in its rows, Shuffles all sequences in this row.
    """

    name: str
    files: str
    read: Read
    guarantees: str = ""
    write: Callable[[Samples, Path], None] | None = None
    package: str = ""
    environment: str = ""
    per_sample: bool = False
    """Slow: gets the first few thousand sequences only, and fewer epochs."""
    whole: bool = True
    """An epoch gives every token once; checked by their sum."""


def each(read: Callable[[Path, int], Iterable[NDArray]]) -> Read:
    """Rows out of single sequences."""
    return lambda folder, epoch, packer: packer.each(read(folder, epoch))


def blocks(read: Callable[[Path, int], Blocks]) -> Read:
    """Rows out of blocks."""
    return lambda folder, epoch, packer: packer.blocks(read(folder, epoch))


def permuted_blocks(read: Callable[[Path, int], Blocks], by_arrow: bool = False) -> Read:
    """Rows out of blocks whose sequences are shuffled, by an index of tokens or by Arrow."""
    permute = permuted_by_arrow if by_arrow else permuted
    return lambda folder, epoch, packer: packer.blocks(permute(read(folder, epoch), np.random.default_rng(epoch)))


def find(name: str) -> Contender:
    """The contender of that name; its libraries are imported when it works."""
    for module in ("loaders.bounds", "loaders.peers", "loaders.ours"):
        for contender in importlib.import_module(module).CONTENDERS:
            if contender.name == name:
                return contender
    raise SystemExit(f"no contender '{name}'")


def cpu_seconds() -> float:
    """Of this process, all its threads and its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def epoch(contender: Contender, folder: Path, number: int, packer: RowPacker, add_up: bool) -> dict[str, float]:
    """Seconds and tokens of one epoch; the sum of all tokens where asked."""
    tokens = total = 0
    wall, cpu = time.perf_counter(), cpu_seconds()
    for batch, count in contender.read(folder, number, packer):
        tokens += count
        if add_up:
            total += int(batch.sum())
    return {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu, "tokens": tokens, "sum": total}


def main() -> None:
    task, name, home = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    contender = find(name)
    folder = home / contender.files
    if task == "write":
        assert contender.write is not None
        folder.mkdir(parents=True)
        contender.write(load_samples(home / "samples"), folder)
        return
    row_tokens = int(sys.argv[4])
    packer = RowPacker(row_tokens, max(1, ROW_TOKENS_PER_BATCH // row_tokens))
    # Libraries print to stdout as they like; only this stream carries figures.
    answers, sys.stdout = sys.stdout, sys.stderr
    for number, line in enumerate(sys.stdin):
        figures = epoch(contender, folder, number, packer, add_up=line.strip() == "check")
        print(json.dumps(figures), file=answers, flush=True)


if __name__ == "__main__":
    main()
