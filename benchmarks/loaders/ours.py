"""The platform's own stream: CRC of every block, blocks and sequences shuffled, two datasets mixed, rows packed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from foundation.data.cards import load_card
from foundation.stream.reading import ShardedDataset
from foundation.stream.row_stream import RowStream, StreamConfig
from foundation.stream.rows import LengthRule
from foundation.stream.token_stream import TokenStream
from foundation.stream.writing import write_shards
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Stream
from foundation.tokens.vocabulary import Addition, Vocabulary
from loaders.contender import Contender
from loaders.samples import CODES, RowPacker, Rows, Samples

CARDS = ("jetclass", "calochallenge_ds2")
SEED = 7
ROWS, BATCHES = "ours: rows of codes", "ours: training batches"


@cache
def vocabulary() -> Vocabulary:
    """Jets with ten classes, showers with a condition; one code per point for both."""
    return Vocabulary.build([Addition(card, card.tag, (Stream("code", CODES),), "") for card in map(load_card, CARDS)])


def write(samples: Samples, folder: Path) -> None:
    """Jets and showers as a dataset each."""
    rng = np.random.default_rng(2)
    for card, of_shower in zip(map(load_card, CARDS), (False, True), strict=True):
        lengths = np.diff(samples.offsets)
        tokens = samples.tokens[np.repeat(samples.shower, lengths) == of_shower]
        counts = lengths[samples.shower == of_shower]
        write_shards(
            folder / card.tag,
            card.tag,
            tokens[:, None],
            np.concatenate([[0], np.cumsum(counts)]),
            rng.integers(0, len(card.classes), len(counts)) if card.classes else np.full(len(counts), -1),
            np.exp(rng.uniform(np.log(1e3), np.log(1e6), (len(counts), len(card.conditions)))).astype(np.float32),
            largest_code=CODES - 1,
            identity={"card": card.name, "vocabulary": vocabulary().digest, "tokenizer": ""},
            seed=SEED,
        )


def open_datasets(folder: Path) -> list[ShardedDataset]:
    """The two datasets that `write` left in this folder."""
    return [ShardedDataset(folder / load_card(name).tag, vocabulary().digest) for name in CARDS]


def config(packer: RowPacker) -> StreamConfig:
    """Rows and steps of the same size as everybody's batches."""
    return StreamConfig(packer.row_tokens, packer.rows, SEED)


def proportional(datasets: list[ShardedDataset], rules: list[LengthRule]) -> list[float]:
    """Weights with which the datasets end their epochs at about the same time."""
    return [float(rule.tokens(d.points).sum()) for d, rule in zip(datasets, rules, strict=True)]


@cache
def row_stream(folder: Path, row_tokens: int, rows: int) -> RowStream:
    """Codes alone: what the other loaders deliver."""
    datasets, rules = open_datasets(folder), [LengthRule(1, 0)] * len(CARDS)
    # once for the number of rows, which are the weights that end both epochs together
    counted = RowStream(datasets, [1.0] * len(CARDS), rules, config(RowPacker(row_tokens, rows)))
    weights = [float(counted.rows_per_epoch(d)) for d in range(len(CARDS))]
    return RowStream(datasets, weights, rules, config(RowPacker(row_tokens, rows)))


@cache
def token_stream(folder: Path, row_tokens: int, rows: int) -> TokenStream:
    """Everything that a training step needs."""
    datasets, settings = open_datasets(folder), config(RowPacker(row_tokens, rows))
    counted = TokenStream(datasets, [1.0] * len(CARDS), Layout(vocabulary()), settings)
    weights = [float(counted.rows_per_epoch(d)) for d in range(len(CARDS))]
    return TokenStream(datasets, weights, Layout(vocabulary()), settings)


def steps_of_epoch(stream: RowStream | TokenStream, rows: int, epoch: int) -> range:
    """Steps in which each dataset is read once."""
    steps = -(-sum(stream.rows_per_epoch(d) for d in range(len(CARDS))) // rows)
    return range(epoch * steps, (epoch + 1) * steps)


def rows_of_codes(folder: Path, epoch: int, packer: RowPacker) -> Iterator[Rows]:
    stream = row_stream(folder, packer.row_tokens, packer.rows)
    for step in steps_of_epoch(stream, packer.rows, epoch):
        codes = stream.packed_codes(step).codes
        yield codes, len(codes)


def training_batches(folder: Path, epoch: int, packer: RowPacker) -> Iterator[Rows]:
    stream = token_stream(folder, packer.row_tokens, packer.rows)
    for step in steps_of_epoch(stream, packer.rows, epoch):
        (batch,) = stream.batches(step)
        yield batch.ids, len(batch.ids)


CONTENDERS = [
    Contender(ROWS, "ours", rows_of_codes, "ORECMWS", write, whole=False),
    Contender(BATCHES, "ours", training_batches, "ORECMWS", write, whole=False),
]
