"""The jets that both sides encode and decode, and showers for the tokenizers that take only such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from coders.sizes import LONGEST
from foundation.data.cards import DatasetCard, Feature, load_card
from foundation.data.files import read_many, write_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import ragged_arange, to_offsets
from foundation.data.simulate.gflash import simulate_showers

JETS_CARD, SHOWERS_CARD = "pythia_jetclass", "gflash_par04"
KINEMATICS = ("pt", "eta_rel", "phi_rel")
WIDEST = 0.8
"""OmniJet-alpha drops constituents further away from the axis in eta or phi."""
MEAN_LENGTH, LENGTH_WIDTH = 50.9, 18.0
"""Of 1,500 jets of the card pythia_jetclass: QCD, Hbb and Hgg, 500 each."""


def kinematics(card: DatasetCard) -> tuple[Feature, ...]:
    """The three features that OmniJet-alpha's tokenizer codes."""
    return tuple(f for f in card.features if f.name in KINEMATICS)


def random_jets(count: int, seed: int = 1) -> PointClouds:
    """Independent constituents in jets of realistic lengths: the time does not depend on the values."""
    rng = np.random.default_rng(seed)
    counts = np.clip(rng.normal(MEAN_LENGTH, LENGTH_WIDTH, count), 2, LONGEST).astype(np.int64)
    n = int(counts.sum())
    columns = [rng.lognormal(1.5, 1.3, n).clip(0.1, 999.0), *rng.normal(0.0, 0.2, (2, n)).clip(-0.79, 0.79)]
    features = kinematics(load_card(JETS_CARD))
    return PointClouds(
        points=np.stack(columns, axis=1).astype(np.float32),
        offsets=to_offsets(counts),
        features=tuple(f.name for f in features),
        units=tuple(f.unit for f in features),
        conventions=tuple(f.convention for f in features),
        labels=np.zeros(count, np.int64),
        conditions=np.zeros((count, 0), np.float32),
    )


def real_jets(files: Sequence[Path], count: int, seed: int = 1) -> PointClouds:
    """`count` jets at random out of files of the card, as OmniJet-alpha would take them."""
    clouds = read_many(files)
    chosen = np.random.default_rng(seed).permutation(len(clouds))[:count]
    return as_the_peer_takes(clouds.select(chosen))


def as_the_peer_takes(clouds: PointClouds) -> PointClouds:
    """Only what OmniJet-alpha codes, so that both sides code the same: near the axis, and the first 128."""
    near = (np.abs(clouds.feature("eta_rel")) < WIDEST) & (np.abs(clouds.feature("phi_rel")) < WIDEST)
    points, owners = clouds.points[near], clouds.owners[near]
    counts = np.bincount(owners, minlength=len(clouds))
    kept = ragged_arange(counts) < LONGEST
    return replace(clouds, points=points[kept], offsets=to_offsets(np.minimum(counts, LONGEST)))


def filled(clouds: PointClouds) -> PointClouds:
    """The same constituents in jets of 128 each, of which nothing must be padded; what is left over is dropped."""
    count = len(clouds.points) // LONGEST
    return replace(
        clouds.select(slice(count)),
        points=clouds.points[: count * LONGEST],
        offsets=np.arange(count + 1) * LONGEST,
    )


def make_samples(home: Path, files: Sequence[Path], jets: int, few: int, showers: int) -> dict[str, PointClouds]:
    """The samples, by name, and as files in `home`: HDF5 for ours, NumPy's for the peer, which gets the first `few`."""
    ragged = real_jets(files, jets) if files else random_jets(jets)
    samples = {"ragged": ragged, "full": filled(ragged)}
    for name, clouds in samples.items():
        part = clouds.select(slice(few))
        columns = np.stack([part.feature(f) for f in KINEMATICS], axis=1)
        np.savez(home / f"{name}.npz", points=columns, offsets=part.offsets)
    if showers:
        samples["showers"] = simulate_showers(load_card(SHOWERS_CARD), showers, seed=1)
    for name, clouds in samples.items():
        write_point_clouds(home / f"{name}.h5", clouds)
    return samples
