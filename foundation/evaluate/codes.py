"""What the codes of a tokenizer are like: how much of a codebook is used, how many bits and tokens an object takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Stream, Tokenizer
from foundation.tokens.vocabulary import Addition, Vocabulary


@dataclass(frozen=True)
class StreamUse:
    """How the codes of one stream are used by a sample.

    size:         number of codes
    used:         share of them that occur
    perplexity:   2 to the power of `entropy_bits`: so many equally frequent codes would carry as much
    entropy_bits: entropy of the histogram of codes in bits. With fewer tokens than some ten per code it comes out too
                  low.
    """

    name: str
    size: int
    used: float
    perplexity: float
    entropy_bits: float


@dataclass(frozen=True)
class Rate:
    """What an object costs, as means over a sample.

    tokens:      tokens per object: points, or patches; each has a code of every stream
    bits:        tokens times the sum over the streams of log2(size)
    entropy_bits: tokens times the sum of the streams' entropies: what an ideal code of single codes would take. A
                 model that knows the codes before needs fewer. Neither counts the end of a sequence.
    delayed, interleaved: steps of a sequence as a model sees it, prefix and end included (`foundation.tokens.layout`)
    """

    tokens: float
    bits: float
    entropy_bits: float
    delayed: float
    interleaved: float


def stream_use(stream: Stream, counts: NDArray[np.int64]) -> StreamUse:
    """Usage of a stream from how often each code occurs, int64 [size]."""
    total = counts.sum()
    share = counts[counts > 0] / max(1, total)
    entropy = max(0.0, float(-(share * np.log2(share)).sum()))
    used = float((counts > 0).mean())
    return StreamUse(stream.name, stream.size, used, float(2**entropy) if total else 0.0, entropy)


def rate(tokenizer: Tokenizer, card: DatasetCard, counts: NDArray[np.int64], streams: Sequence[StreamUse]) -> Rate:
    """Rate of B objects with `counts` [B] tokens each, in sequences of the dataset of this card."""
    vocabulary = Vocabulary.build([Addition.of(card, tokenizer, "0" * 64)])
    tokens = float(counts.mean()) if len(counts) else 0.0
    lengths = {
        mode: float(Layout(vocabulary, mode).lengths(card.tag, counts).mean()) if len(counts) else 0.0
        for mode in ("delayed", "interleaved")
    }
    return Rate(
        tokens=tokens,
        bits=tokens * float(sum(np.log2(s.size) for s in streams)),
        entropy_bits=tokens * sum(s.entropy_bits for s in streams),
        delayed=lengths["delayed"],
        interleaved=lengths["interleaved"],
    )
