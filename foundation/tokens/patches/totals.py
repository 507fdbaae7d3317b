"""The leading tokens of the patches tokenizer: visible energy and number of hits, as digits.

The codes of a VQ-VAE keep the shape of a shower, but let its energy and its number of hits drift. Coded apart they are
right by construction. Calo-VQ (arXiv:2405.06605) codes the visible share of the energy so, in fixed point, the most
significant digit first; here the base is the size of the codebook, so that every token has the same range of codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FINEST = 2**48
"""Levels of the visible share, at most: finer ones are below the rounding of the arithmetic."""


@dataclass(frozen=True)
class TotalsCode:
    """Digits of the totals of an object.

    base:   number of digits
    energy: places of the visible share; 0 where it is not coded
    hits:   places of the number of hits; 0 where it is not coded
    top:    share at which the levels of the visible share end
    most:   largest number of hits
    """

    base: int
    energy: int
    hits: int
    top: float
    most: int

    @property
    def levels(self) -> int:
        """Levels of the visible share between 0 and `top`."""
        return min(self.base**self.energy, FINEST)

    def encode(self, shares: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Digits [B, energy + hits] of visible shares [B] and numbers of hits [B]; a share above `top` is cut there."""
        level = np.floor(shares / self.top * self.levels).astype(np.int64).clip(0, self.levels - 1)
        return np.concatenate([self._digits(level, self.energy), self._digits(counts, self.hits)], axis=1)

    def shares(self, digits: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """Visible shares [B] of digits [B, energy + hits], placed inside their level by `uniform` [B]."""
        level = self._number(digits[:, : self.energy]).clip(0, self.levels - 1)
        return (level + uniform) / self.levels * self.top

    def counts(self, digits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of hits [B] of digits [B, energy + hits]."""
        return self._number(digits[:, self.energy :]).clip(0, self.most)

    def _digits(self, numbers: NDArray[np.int64], places: int) -> NDArray[np.int64]:
        power = np.array([self.base ** (places - 1 - i) for i in range(places)], np.int64)
        return numbers[:, None] // power % self.base

    def _number(self, digits: NDArray[np.int64]) -> NDArray[np.int64]:
        # a model may give digits of a number too large for any shower; wrapping round must not make it small
        number = np.zeros(len(digits), np.int64)
        for digit in digits.T:
            number = np.minimum(number * self.base + digit, FINEST)
        return number


def places_for(largest: int, base: int) -> int:
    """Digits that it takes to write the numbers 0 .. `largest`."""
    places = 1
    while base**places <= largest:
        places += 1
    return places
