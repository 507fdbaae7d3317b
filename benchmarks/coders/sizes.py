"""Sizes of OmniJet-alpha's published tokenizer (arXiv:2403.05618), and what its layers cost. No imports: both sides."""

from __future__ import annotations

from collections.abc import Sequence

FEATURES = 3
WIDTH = 128
LATENT = 4
BLOCKS = 4
"""Of the encoder, and of the decoder."""
HEADS = 8
CODEBOOK = 8192
LONGEST = 128
"""Constituents to which it pads, and after which it cuts."""


def network_flops(lengths: Sequence[int]) -> float:
    """Multiplications and additions that the encoder, or the decoder, needs for jets of these lengths, unpadded.

    Per constituent and block: projections to query, key, value and back, a perceptron of expansion 1, and the products
    with all constituents of its jet.
    """
    points, pairs = sum(lengths), sum(n * n for n in lengths)
    blocks = BLOCKS * (points * 6 * WIDTH**2 + pairs * 2 * WIDTH)
    return 2.0 * (blocks + points * WIDTH * (FEATURES + LATENT))
