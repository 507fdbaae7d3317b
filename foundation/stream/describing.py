"""What is in a sharded dataset, in words: its manifest, and its first sequences token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from foundation.data.describe.text_table import table_lines
from foundation.stream.packing import pack
from foundation.stream.reading import Block, ShardedDataset
from foundation.stream.rows import length_rule
from foundation.tokens.id_names import IdNames
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Codes, Tokenizer
from foundation.tokens.vocabulary import EOS

ROW_TOKENS = (1024, 2048, 4096)
SAMPLED_BLOCKS = 200
"""So many blocks say how full rows are."""


def info_rows(dataset: ShardedDataset, layout: Layout | None) -> list[tuple[str, str]]:
    """(name, value) of what the manifest and the index say, and of the fill of rows where the layout is known."""
    manifest, shards = dataset.manifest, dataset.manifest["shards"]
    total = sum(shard["bytes"] for shard in shards)
    rows = [
        ("tag", manifest["tag"]),
        ("card", str(manifest.get("card", "not given"))),
        ("vocabulary", str(manifest["vocabulary"])),
        ("tokenizer", str(manifest.get("tokenizer", "not given"))),
        ("members", ", ".join(_member(name, about) for name, about in manifest["members"].items())),
        ("features", ", ".join(manifest.get("features", ())) or "none, codes only"),
        ("sequences", f"{manifest['sequences']:,}"),
        ("points", f"{manifest['points']:,}, of {manifest['streams']} codes each"),
        ("points of a sequence", _lengths_in_words(dataset)),
        ("shards", f"{len(shards):,} of {_size(total / max(1, len(shards)))} on average, together {_size(total)}"),
        ("blocks", _blocks_in_words(dataset)),
        ("written with seed", _seeds(manifest)),
        *((f"counted: {name}", f"{count:,}") for name, count in manifest.get("counted", {}).items()),
    ]
    if layout is not None:
        points = manifest["points"]
        rule = length_rule(layout, dataset.tag)
        tokens = points * rule.scale + rule.extra * manifest["sequences"]
        rows.append(("tokens", f"{tokens:,} with streams {layout.mode}: {rule.scale} x points + {rule.extra}"))
        rows += [(f"rows of {n:,} tokens", _fill(dataset, layout, n)) for n in ROW_TOKENS]
    return rows


def _member(name: str, about: Mapping[str, Any]) -> str:
    columns = f" x {about['columns']}" if about["columns"] is not None else ""
    return f"{name} {np.dtype(about['dtype']).name}{columns}"


def _lengths_in_words(dataset: ShardedDataset) -> str:
    lengths = np.sort(np.concatenate([np.zeros(0, np.int64), *(dataset.lengths_of(b) for b in _sampled(dataset))]))
    if not len(lengths):
        return "no sequences"
    half, most = (int(lengths[int(q * (len(lengths) - 1))]) for q in (0.5, 0.95))
    longest = dataset.manifest.get("longest", int(lengths[-1]))
    mean = dataset.points.sum() / len(dataset)
    return f"mean {mean:.1f}, half up to {half}, 95 % up to {most}, longest {longest}"


def _blocks_in_words(dataset: ShardedDataset) -> str:
    if not dataset.n_blocks:
        return "0"
    sequences = len(dataset) / dataset.n_blocks
    size = sum(shard["bytes"] for shard in dataset.manifest["shards"]) / dataset.n_blocks
    return f"{dataset.n_blocks:,} of {sequences:,.0f} sequences and {_size(size)} on average"


def _seeds(manifest: Mapping[str, Any]) -> str:
    if not manifest.get("merged"):
        return str(manifest["seed"])
    return (
        ", ".join(str(part["seed"]) for part in manifest["merged"]) + f" (merged of {len(manifest['merged'])} folders)"
    )


def _fill(dataset: ShardedDataset, layout: Layout, row_tokens: int) -> str:
    """How full rows of this length are and what does not fit, from a sample of the blocks."""
    rule = length_rule(layout, dataset.tag)
    chosen = _sampled(dataset)
    tokens = [rule.tokens(dataset.lengths_of(block)) for block in chosen]
    packings = [pack(t, row_tokens) for t in tokens]
    rows, too_long = sum(p.rows for p in packings), sum(p.left_out for p in packings)
    used = sum(int(t[t <= row_tokens].sum()) for t in tokens)
    sample = "" if len(chosen) == dataset.n_blocks else f" (of {len(chosen)} blocks)"
    lost = f"; {too_long:,} sequences are longer and left out" if too_long else ""
    if not rows:
        return f"no sequence fits{sample}"
    return f"{100.0 * used / (rows * row_tokens):.1f} % full{sample}{lost}"


def _sampled(dataset: ShardedDataset) -> list[int]:
    """Numbers of blocks, evenly over the dataset."""
    wanted = min(dataset.n_blocks, SAMPLED_BLOCKS)
    return [number * dataset.n_blocks // wanted for number in range(wanted)]


def _size(n: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} TB"


def head_lines(
    dataset: ShardedDataset, layout: Layout, tokenizer: Tokenizer | None, sequences: int, points: int
) -> Iterator[str]:
    """The first sequences of a dataset as text: ids with their names, and `points` points of each decoded.

    tokenizer: the dataset's own; None leaves the physical values out
    """
    left, number = min(sequences, len(dataset)), 0
    for block_number in range(dataset.n_blocks):
        if left <= 0:
            return
        block = dataset.block(block_number).first(left)
        left -= len(block)
        shard, key = dataset.name_of(block_number)
        for place in range(len(block)):
            yield f"sequence {number}: {shard}, block {key}, place {place}, id {block.ids[place]}"
            yield from _sequence_lines(dataset.tag, block, place, layout, points)
            if tokenizer is not None:
                yield from _point_lines(block, place, tokenizer, points)
            yield ""
            number += 1


def _sequence_lines(tag: str, block: Block, place: int, layout: Layout, points: int) -> Iterator[str]:
    """The facts of one sequence and a table of its steps."""
    entry = layout.entry(tag)
    start, stop = int(block.offsets[place]), int(block.offsets[place + 1])
    label = int(block.labels[place])
    facts = [f"class {entry.classes[label] if 0 <= label < len(entry.classes) else 'not given'}"]
    values = zip(entry.conditions, block.conditions[place].tolist(), strict=True)
    facts += [f"{c.name} {value:.6g} {c.unit}" for c, value in values]
    one = slice(place, place + 1)
    offsets = np.array([0, stop - start])
    made = layout.sequences(tag, block.codes[start:stop], offsets, block.labels[one], block.conditions[one])
    yield f"  {', '.join(facts)}; {stop - start} points, {len(made.ids)} steps"
    shown = layout.prefix_length(tag) + points * (len(entry.streams) if layout.mode == "interleaved" else 1)
    names = IdNames(layout.vocabulary)
    rows = [(str(step), *(names.of(int(i)) for i in ids)) for step, ids in enumerate(made.ids[:shown])]
    end = max(shown, int(np.flatnonzero(made.ids[:, 0] == EOS)[0]))
    if shown < end:
        rows.append(("...", *("" for _ in range(made.ids.shape[1]))))
    rows += [(str(step), *(names.of(int(i)) for i in made.ids[step])) for step in range(end, len(made.ids))]
    header = ("step", *(f"column {c}" for c in range(made.ids.shape[1])))
    yield from (f"  {line}" for line in table_lines(header, rows))


def _point_lines(block: Block, place: int, tokenizer: Tokenizer, points: int) -> Iterator[str]:
    """Points of one sequence in physical units, each value in the middle of its bin."""
    start, stop = int(block.offsets[place]), int(block.offsets[place + 1])
    codes = block.codes[start:stop].astype(np.int64)
    values = tokenizer.decode(Codes(codes, np.array([0, len(codes)])), np.full(codes.shape, 0.5)).values
    header = ("point", *(f"{f.name} [{f.unit}]" for f in tokenizer.features))
    rows = [(str(i), *(f"{v:.5g}" for v in row)) for i, row in enumerate(values[:points].tolist())]
    yield from (f"  {line}" for line in table_lines(header, rows))
    if len(values) > points:
        yield f"  ... {len(values) - points} more points"
