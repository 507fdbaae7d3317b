"""The sequences that all sides train on: lengths of jets and showers, and codes at random, on which no time depends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from coders.samples import random_jets, real_jets
from numpy.typing import NDArray

from foundation.data.cards import load_card
from foundation.data.ragged import to_offsets
from foundation.data.simulate.gflash import simulate_showers
from training.sizes import WORKLOADS

SHOWERS_CARD = "gflash_ild"
"""As the data of OmniJet-alpha_C: photons of 10-100 GeV in 30 layers of 30 x 30 cells, up to 1,700 hits."""


def point_counts(sample: str, files: Sequence[Path], number: int) -> NDArray[np.int64]:
    """Points of so many jets or showers, each with room for start and stop."""
    if sample == "showers":
        counts = simulate_showers(load_card(SHOWERS_CARD), number, seed=1).counts
    else:
        counts = (real_jets(files, number) if files else random_jets(number)).counts
    return np.resize(counts, number).clip(1, WORKLOADS[sample].longest - 2)


def make_sample(home: Path, sample: str, files: Sequence[Path], batch: int, batches: int) -> NDArray[np.int64]:
    """Write {sample}.npz with codes [N], offsets and the batch size into `home`; returns the numbers of points."""
    counts = point_counts(sample, files, batch * batches)
    codes = np.random.default_rng(1).integers(0, WORKLOADS[sample].codes, int(counts.sum()), np.int32)
    np.savez(home / f"{sample}.npz", codes=codes, offsets=to_offsets(counts), batch=batch)
    return counts
