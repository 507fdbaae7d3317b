"""Small real datasets that many tests use: made once per session with numpy, tokenised for real."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes on two cores must not fight
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so it is in a background job of a shell; the programs that the tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path

import hypothesis
import numpy as np
import pytest

from foundation.data.cards import Condition, DatasetCard, Feature
from foundation.data.geometry import CartesianGeometry, LayerGroup
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.stream.writing import write_shards
from foundation.tokens.config import PerFeatureConfig, VqVaeConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.kinds import fit_tokenizer
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Tokenizer
from foundation.tokens.vocabulary import Addition, Vocabulary

# how long an example takes depends on what else the machine does
hypothesis.settings.register_profile("here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("here")

JETS = DatasetCard(
    name="toy_jets",
    title="Toy jets",
    domain="jet",
    tag="toy_jets",
    licence="none",
    features=(
        Feature(name="pt", unit="GeV", range=(0.1, 1000.0), log=True, shift=1.8),
        Feature(name="eta_rel", range=(-1.6, 1.6), scale=3.0),
        Feature(name="phi_rel", unit="rad", range=(-1.6, 1.6), scale=3.0),
        Feature(name="charge", unit="index", kind="category", categories=("negative", "neutral", "positive")),
    ),
    order=("-pt",),
    classes=("narrow", "wide"),
)
SHOWERS = DatasetCard(
    name="toy_showers",
    title="Toy showers",
    domain="shower",
    tag="toy_showers",
    licence="none",
    features=(
        Feature(name="layer", unit="index", kind="integer", range=(0, 4)),
        Feature(name="x", unit="index", kind="integer", range=(0, 5)),
        Feature(name="y", unit="index", kind="integer", range=(0, 5)),
        Feature(name="energy", unit="MeV", range=(0.1, 1000.0), log=True),
    ),
    order=("layer", "-energy"),
    classes=("photon",),
    conditions=(Condition(name="incident_energy", unit="GeV", range=(5.0, 50.0), bins=8, scale="log"),),
    geometry=CartesianGeometry(
        cells=6,
        cell_mm=10.0,
        layers=(LayerGroup(repeat=5, absorber="W", absorber_mm=5.0, active="Si", active_mm=0.5),),
    ),
)


def toy_jets(n: int, seed: int) -> PointClouds:
    """Jets of two classes that differ in width and multiplicity."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    counts = rng.integers(3, 12, n) + 4 * labels
    owner = np.repeat(labels, counts)
    pt = rng.gamma(2.0, 20.0, counts.sum()) + 0.5
    width = 0.05 + 0.2 * owner
    points = np.stack(
        [pt, rng.normal(0, width), rng.normal(0, width), rng.integers(0, 3, counts.sum())], axis=1
    ).astype(np.float32)
    points[:, 1:3] = points[:, 1:3].clip(-1.5, 1.5)
    order = np.lexsort([-points[:, 0], np.repeat(np.arange(n), counts)])
    return _clouds(JETS, points[order], counts, labels, np.zeros((n, 0), np.float32))


def toy_showers(n: int, seed: int) -> PointClouds:
    """Showers whose number of hits rises with the incident energy."""
    rng = np.random.default_rng(seed)
    energy = rng.uniform(5, 50, n)
    counts = (3 + energy / 4 + rng.integers(0, 3, n)).astype(np.int64)
    total = int(counts.sum())
    points = np.column_stack(
        [
            rng.integers(0, 5, total),
            rng.integers(0, 6, total),
            rng.integers(0, 6, total),
            rng.gamma(1.0, 5.0, total) + 0.11,
        ]
    ).astype(np.float32)
    order = np.lexsort([-points[:, 3], points[:, 0], np.repeat(np.arange(n), counts)])
    return _clouds(SHOWERS, points[order], counts, np.zeros(n, np.int64), energy[:, None].astype(np.float32))


def _clouds(
    card: DatasetCard, points: np.ndarray, counts: np.ndarray, labels: np.ndarray, conditions: np.ndarray
) -> PointClouds:
    return PointClouds(
        points=points,
        offsets=to_offsets(counts),
        features=card.feature_names,
        units=card.feature_units,
        labels=labels.astype(np.int64),
        conditions=conditions,
        condition_names=tuple(c.name for c in card.conditions),
        condition_units=tuple(c.unit for c in card.conditions),
        tag=card.tag,
    )


def inputs_of(card: DatasetCard, clouds: PointClouds) -> Inputs:
    """Inputs of a tokenizer of all features of a card."""
    return Inputs.fit(card.tag, (card.tag,), card.features, clouds)


class ToyTokens:
    """Both toy datasets with fitted tokenizers, one vocabulary, and shards of several blocks."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clouds = {"toy_jets": toy_jets(260, 1), "toy_showers": toy_showers(170, 2)}
        cards = {"toy_jets": JETS, "toy_showers": SHOWERS}
        vqvae = VqVaeConfig(codebook=32, quantisers=2, width=16, latent=3, attention=False, steps=200, batch_points=512)
        self.tokenizers: dict[str, Tokenizer] = {
            tag: fit_tokenizer(config, inputs_of(card, self.clouds[tag]), self.clouds[tag], 1)
            for (tag, card), config in zip(
                cards.items(), (vqvae, PerFeatureConfig(type="per_feature", bins=16)), strict=True
            )
        }
        self.vocabulary = Vocabulary.build([Addition.of(cards[t], tok, "0" * 64) for t, tok in self.tokenizers.items()])
        self.codes = {tag: tok.encode(self.clouds[tag]).values for tag, tok in self.tokenizers.items()}
        for tag, clouds in self.clouds.items():
            write_shards(
                home / tag,
                tag,
                self.codes[tag],
                clouds.offsets,
                clouds.labels,
                clouds.conditions,
                largest_code=100,
                identity={"card": tag, "vocabulary": self.vocabulary.digest, "tokenizer": "0" * 64},
                seed=5,
                block_sequences=50,
                shard_bytes=6_000,
            )

    def layout(self, mode: str = "delayed") -> Layout:
        """Layout of both datasets."""
        return Layout(self.vocabulary, mode)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyTokens:
    """Tokenised toy datasets, read-only."""
    return ToyTokens(tmp_path_factory.mktemp("toy"))
