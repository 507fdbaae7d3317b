"""Packing: no sequence is split or lost, and no more rows than best fit decreasing done the slow way."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.stream.packing import Packing, pack
from foundation.stream.row_stream import arrange, gather

LENGTHS = st.lists(st.integers(0, 90) | st.integers(28, 36), max_size=150)


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
    for length, row in zip(longest_first, packing.row_of_ranks().tolist(), strict=True):
        rows[row].append(length)
    return rows


@given(LENGTHS, st.sampled_from([1, 7, 64, 90]))
def test_every_sequence_that_fits_is_placed_once_and_whole(lengths: list[int], row_tokens: int) -> None:
    packing = pack(np.array(lengths, np.int64), row_tokens)
    rows = contents(packing, lengths, row_tokens)
    assert all(row and sum(row) <= row_tokens for row in rows)
    assert packing.left_out == sum(n > row_tokens for n in lengths)


@given(LENGTHS, st.sampled_from([7, 64, 90]))
def test_as_few_rows_as_best_fit_decreasing(lengths: list[int], row_tokens: int) -> None:
    assert pack(np.array(lengths, np.int64), row_tokens).rows == slow_rows(lengths, row_tokens)


@given(LENGTHS, st.randoms())
def test_the_order_of_the_sequences_does_not_matter(lengths: list[int], random) -> None:
    shuffled = random.sample(lengths, len(lengths))
    one, other = (pack(np.array(x, np.int64), 64) for x in (lengths, shuffled))
    assert one.rows == other.rows and np.array_equal(one.placed, other.placed)


def test_jets_and_showers_fill_their_rows() -> None:
    rng = np.random.default_rng(0)
    jets = np.clip(rng.lognormal(np.log(41.5), 0.4, 8192), 6, 260).astype(np.int64) + 4
    showers = np.clip(rng.lognormal(np.log(530), 0.5, 800), 20, 1700).astype(np.int64) + 5
    for lengths in (jets, showers, np.concatenate([jets, showers[:430]])):
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
