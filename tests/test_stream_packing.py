"""Packing: no sequence is split or lost, rows hold long and short ones, and are as full as with best fit decreasing."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foundation.stream.packing import LARGEST_LOSS, VERSION, Packing, pack
from foundation.stream.row_stream import arrange, gather

LENGTHS = st.lists(st.integers(0, 90) | st.integers(28, 36), max_size=150)
BLOCK = 4096


def jets(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Tokens of jets: 44 on average."""
    return np.clip(np.random.default_rng(seed).lognormal(np.log(41.5), 0.4, count), 6, 260).astype(np.int64) + 4


def showers(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Tokens of showers: 115 on average, up to 700."""
    return np.clip(np.random.default_rng(seed).lognormal(np.log(97), 0.51, count), 10, 700).astype(np.int64) + 5


def energy_scan(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Tokens of showers of log-uniform energies: 13 to 500."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(8), np.log(495), count)).astype(np.int64) + 5


def slow_rows(lengths: list[int], row_tokens: int) -> int:
    """Best fit decreasing, one sequence at a time."""
    rooms: list[int] = []
    for n in sorted((max(1, n) for n in lengths if n <= row_tokens), reverse=True):
        place = bisect_left(rooms, n)
        insort(rooms, (rooms.pop(place) if place < len(rooms) else row_tokens) - n)
    return len(rooms)


def contents(packing: Packing, lengths: list[int], row_tokens: int) -> list[list[int]]:
    """Lengths in every row."""
    longest_first = sorted((n for n in lengths if n <= row_tokens), reverse=True)
    rows: list[list[int]] = [[] for _ in range(packing.rows)]
    for length, row in zip(longest_first, packing.row_of_ranks.tolist(), strict=True):
        rows[row].append(length)
    return rows


def between_rows(row: NDArray[np.integer], longest_first: NDArray[np.int64]) -> float:
    """Variance of the rows' mean lengths as a share of that of all lengths: 1 where each row has one length only."""
    counts = np.bincount(row)
    means = np.bincount(row, longest_first) / counts
    return float(np.average((means - longest_first.mean()) ** 2, weights=counts) / longest_first.var())


def check_rows(lengths: list[int], row_tokens: int) -> None:
    """Each sequence that fits is in one row, no row is empty or too full, and there are not too many."""
    packing = pack(np.array(lengths, np.int64), row_tokens)
    rows = contents(packing, lengths, row_tokens)
    assert all(row and sum(max(1, n) for n in row) <= row_tokens for row in rows)
    assert packing.left_out == sum(n > row_tokens for n in lengths)
    tokens = sum(max(1, n) for row in rows for n in row)
    if tokens:
        fill = tokens / (slow_rows(lengths, row_tokens) * row_tokens)
        assert tokens / (packing.rows * row_tokens) >= fill - LARGEST_LOSS - 1e-12


@given(LENGTHS, st.sampled_from([1, 7, 64, 90, 500, 20_000]))
def test_every_sequence_that_fits_is_placed_once_and_whole(lengths: list[int], row_tokens: int) -> None:
    check_rows(lengths, row_tokens)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 2000), st.integers(0, 300), st.sampled_from([97, 512, 1024, 4096, 30_000]))
def test_also_with_a_few_very_long_sequences(seed: int, short: int, long: int, row_tokens: int) -> None:
    long_ones = np.random.default_rng(seed).integers(row_tokens // 3, row_tokens * 11 // 10, long)
    check_rows([*jets(short, seed).tolist(), *long_ones.tolist()], row_tokens)


@given(LENGTHS, st.randoms())
def test_the_order_of_the_sequences_does_not_matter(lengths: list[int], random) -> None:
    shuffled = random.sample(lengths, len(lengths))
    one, other = (pack(np.array(x, np.int64), 64) for x in (lengths, shuffled))
    assert one.rows == other.rows and np.array_equal(one.row_of_ranks, other.row_of_ranks)


def test_rows_are_the_same_on_every_machine() -> None:
    """Row tables lie beside the shards: VERSION has to be raised when this changes."""
    digest = hashlib.sha256()
    for row_tokens in (64, 1000, 9000):
        packing = pack(np.arange(3000) ** 2 % 211 + 3, row_tokens)
        digest.update(np.concatenate([[packing.rows, packing.left_out], packing.row_of_ranks]).astype("<i8").tobytes())
    assert (VERSION, digest.hexdigest()[:16]) == (2, "f81687a15c5ee99e")


@pytest.mark.parametrize("row_tokens", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("kind", [jets, showers, energy_scan])
@pytest.mark.parametrize("block", [500, 4096])
def test_rows_have_long_and_short_sequences(kind, row_tokens: int, block: int) -> None:
    """More evenly than if the sequences were dealt at random; small blocks of showers have too few per row of 512."""
    longest_first = np.sort(kind(block))[::-1]
    longest_first = longest_first[longest_first <= row_tokens]
    row = pack(longest_first, row_tokens).row_of_ranks
    rng = np.random.default_rng(1)
    by_chance = [between_rows(rng.permutation(row), longest_first) for _ in range(30)]
    if block > 500 or row_tokens > 512 or kind is jets:
        assert between_rows(row, longest_first) < min(by_chance)


def test_jets_and_showers_fill_their_rows() -> None:
    rng = np.random.default_rng(0)
    long_showers = np.clip(rng.lognormal(np.log(530), 0.5, 800), 20, 1700).astype(np.int64) + 5
    for lengths in (jets(8192), long_showers, np.concatenate([jets(8192), long_showers[:430]])):
        assert lengths.sum() / (pack(lengths, 2048).rows * 2048) > 0.985


@settings(max_examples=50)
@given(LENGTHS, st.integers(0, 2**32))
def test_a_block_is_arranged_row_by_row_and_anew_for_every_key(lengths: list[int], seed: int) -> None:
    tokens = np.array(lengths, np.int64)
    chosen, rows = arrange(tokens, 64, pack(tokens, 64), np.random.default_rng(seed))
    assert sorted(chosen.tolist()) == [i for i, n in enumerate(lengths) if n <= 64]
    assert rows[-1] == len(chosen)
    assert all(tokens[chosen[a:b]].sum() <= 64 for a, b in pairwise(rows))
    again, _ = arrange(tokens, 64, pack(tokens, 64), np.random.default_rng(seed))
    assert np.array_equal(chosen, again)


def test_equal_sequences_take_every_place() -> None:
    tokens = np.full(12, 20)
    packing = pack(tokens, 64)
    firsts = {int(arrange(tokens, 64, packing, np.random.default_rng(seed))[0][0]) for seed in range(300)}
    assert firsts == set(range(12))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(1, 3), st.integers(0, 4), st.randoms())
def test_codes_are_gathered_in_any_order_with_gaps(points: list[int], columns: int, gap: int, random) -> None:
    offsets = np.concatenate([[0], np.cumsum(points)])
    codes = np.arange(offsets[-1] * columns, dtype=np.uint16).reshape(-1, columns)
    chosen = random.sample(range(len(points)), random.randint(0, len(points)))
    found, starts = gather(codes, offsets, np.array(chosen, np.int64), gap)
    assert found.dtype == np.uint16 and found.shape == (starts[-1], columns)
    for i, a, b in zip(chosen, starts, starts[1:], strict=False):
        assert np.array_equal(found[a + gap : b], codes[offsets[i] : offsets[i + 1]])


@pytest.mark.parametrize("rows", [60_000, 70_000])
def test_many_rows_are_no_problem(rows: int) -> None:
    packing = pack(np.full(rows, 5), 8)
    assert packing.rows == rows
    chosen, offsets = arrange(np.full(rows, 5), 8, packing, np.random.default_rng(1))
    assert len(np.unique(chosen)) == rows and (np.diff(offsets) == 1).all()
