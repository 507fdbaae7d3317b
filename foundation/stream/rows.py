"""How many rows every block of a dataset fills: known from the lengths alone, so that any row can be addressed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.console import Progress
from foundation.errors import DataError
from foundation.stream.packing import VERSION, pack
from foundation.stream.reading import ShardedDataset
from foundation.tokens.layout import Layout

ROW_TABLE = np.dtype([("rows", "<u4"), ("left_out", "<u4"), ("tokens", "<u8")])
"""A line per block: rows that it fills, sequences that are longer than a row, tokens of the others."""


@dataclass(frozen=True)
class LengthRule:
    """Input tokens of a sequence: scale * points + extra."""

    scale: int
    extra: int

    def tokens(self, points: NDArray[np.int64]) -> NDArray[np.int64]:
        """Input tokens of sequences with so many points."""
        return points * self.scale + self.extra


def length_rule(layout: Layout, tag: str) -> LengthRule:
    """The rule of a dataset in a layout. The last step of a sequence is only ever a target and takes no room."""
    empty, one = layout.lengths(tag, np.array([0, 1], np.int64)).tolist()
    return LengthRule(one - empty, empty - 1)


def row_table(dataset: ShardedDataset, rule: LengthRule, row_tokens: int) -> NDArray[np.void]:
    """ROW_TABLE [n_blocks]; computed once and kept in the folder `rows/` of the dataset where that can be written.

    Takes about 1 ms per block the first time. Raises DataError when no sequence at all fits into a row.
    """
    path = _cache_file(dataset, rule, row_tokens)
    table = _load(path, dataset.n_blocks)
    if table is None:
        table = _compute(dataset, rule, row_tokens)
        _save(path, table)
    if dataset.n_blocks and table["rows"].sum() == 0:
        raise DataError(f"{dataset.folder}: no sequence fits into {row_tokens} tokens: raise row_tokens")
    return table


def _compute(dataset: ShardedDataset, rule: LengthRule, row_tokens: int) -> NDArray[np.void]:
    table = np.zeros(dataset.n_blocks, ROW_TABLE)
    with Progress(f"pack {dataset.tag}", dataset.n_blocks, "blocks") as progress:
        for block in range(dataset.n_blocks):
            tokens = rule.tokens(dataset.lengths_of(block))
            packing = pack(tokens, row_tokens)
            table[block] = packing.rows, packing.left_out, tokens[tokens <= row_tokens].sum()
            progress.advance()
    return table


def _cache_file(dataset: ShardedDataset, rule: LengthRule, row_tokens: int) -> Path | None:
    """Where the table is kept: beside the shards, or in the dataset's cache where these are remote."""
    if "://" in str(dataset.folder) or str(dataset.folder).startswith("pipe:"):
        home = dataset.cache
    else:
        home = Path(dataset.folder)
    # the digest of the manifest stands for all lengths; `limit` takes the first sequences of them
    name = f"{dataset.digest[:16]}-{len(dataset)}-{row_tokens}-{rule.scale}n+{rule.extra}-{VERSION}.npy"
    return None if home is None else home / "rows" / name


def _load(path: Path | None, n_blocks: int) -> NDArray[np.void] | None:
    try:
        table = None if path is None else np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return table if table is not None and table.dtype == ROW_TABLE and table.shape == (n_blocks,) else None


def _save(path: Path | None, table: NDArray[np.void]) -> None:
    """Whole or not at all; several processes may do it at once. Not being able to is no error."""
    if path is None:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as f:
            np.save(f, table, allow_pickle=False)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
