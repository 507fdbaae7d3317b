"""Which weights a mixture needs for wanted shares of tokens, for a temperature, or for a number of epochs.

A weight is a share of rows. Rows are equally long but not equally full, so shares of tokens are not quite weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.stream.mixture import temperature_weights
from foundation.stream.reading import ShardedDataset
from foundation.stream.rows import length_rule, row_table
from foundation.tokens.layout import Layout

DIGITS = 6
"""Decimal places of a weight; the stream keeps weights with few decimals exactly."""


@dataclass(frozen=True)
class EpochSize:
    """One pass over a dataset, packed into rows of `row_tokens`."""

    tag: str
    sequences: int
    """Those that fit into a row."""
    too_long: int
    tokens: int
    rows: int
    row_tokens: int

    @property
    def fill(self) -> float:
        """Share of the places in the rows that hold a token."""
        return self.tokens / max(1, self.rows * self.row_tokens)


def epoch_size(dataset: ShardedDataset, layout: Layout, row_tokens: int) -> EpochSize:
    """What one pass over a dataset takes, from its lengths alone."""
    table = row_table(dataset, length_rule(layout, dataset.tag), row_tokens)
    too_long = int(table["left_out"].sum())
    return EpochSize(
        tag=dataset.tag,
        sequences=len(dataset) - too_long,
        too_long=too_long,
        tokens=int(table["tokens"].sum()),
        rows=int(table["rows"].sum()),
        row_tokens=row_tokens,
    )


def weights_for_epochs(sizes: Sequence[EpochSize], epochs: Sequence[float]) -> tuple[list[float], int]:
    """Weights with which the datasets reach the end of these numbers of epochs together, and after how many rows."""
    _check("epochs", sizes, epochs)
    rows = [size.rows * n for size, n in zip(sizes, epochs, strict=True)]
    return _normalised(rows), math.ceil(sum(rows))


def weights_for_shares(sizes: Sequence[EpochSize], shares: Sequence[float]) -> list[float]:
    """Weights with which the datasets give these shares of the tokens."""
    _check("shares", sizes, shares)
    return _normalised([share / size.fill for size, share in zip(sizes, shares, strict=True)])


def weights_for_temperature(sizes: Sequence[EpochSize], temperature: float) -> list[float]:
    """Weights with which the shares of tokens go as (tokens of a dataset) ** (1 / temperature).

    1 mixes by size; the higher, the more even.
    """
    return weights_for_shares(sizes, temperature_weights([size.tokens for size in sizes], temperature))


def epochs_after(sizes: Sequence[EpochSize], weights: Sequence[float], rows: int) -> list[float]:
    """How many epochs of each dataset lie in the first `rows` rows of the stream."""
    return [weight * rows / size.rows for size, weight in zip(sizes, weights, strict=True)]


def _check(what: str, sizes: Sequence[EpochSize], values: Sequence[float]) -> None:
    if len(values) != len(sizes):
        raise DataError(f"--{what}: {len(values)} numbers for {len(sizes)} datasets; give one for each folder")
    if not all(np.isfinite(values)) or min(values) < 0 or max(values) == 0:
        raise DataError(f"--{what}: the numbers must not be negative, and not all zero: {list(values)}")


def _normalised(values: Sequence[float]) -> list[float]:
    """Decimal fractions that add up to exactly 1 after rounding (largest remainders)."""
    exact: NDArray[np.float64] = np.array(values, float)
    exact *= 10**DIGITS / exact.sum()
    whole = np.floor(exact).astype(np.int64)
    missing = 10**DIGITS - int(whole.sum())
    whole[np.argsort(-(exact - whole), kind="stable")[:missing]] += 1
    return [int(n) / 10**DIGITS for n in whole]
