"""Our tokenizers as users call them: point clouds in physical units in, codes out, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from coders.samples import JETS_CARD, SHOWERS_CARD, kinematics
from coders.sizes import BLOCKS, CODEBOOK, HEADS, LATENT, WIDTH
from foundation.data.cards import load_card
from foundation.data.files import read_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.tokens.config import TokenizerConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.kinds import fit_tokenizer, load_tokenizer
from foundation.tokens.tokenizer import Codes

SAME_SIZES = "vqvae, OmniJet-alpha's sizes"
SIZES = {
    "codebook": CODEBOOK,
    "latent": LATENT,
    "width": WIDTH,
    "heads": HEADS,
    "encoder_blocks": BLOCKS,
    "decoder_blocks": BLOCKS,
}
OF_JETS: dict[str, dict[str, object]] = {
    SAME_SIZES: {"type": "vqvae", **SIZES, "architecture": "normformer"},
    "vqvae, pre-norm blocks of these sizes": {"type": "vqvae", **SIZES},
    "vqvae, defaults": {"type": "vqvae"},
    "vqvae, two residual codes": {"type": "vqvae", "codebook": 512, "quantisers": 2},
    # the published one: three layers of 128
    "vqvae, unconditional": {"type": "vqvae", **SIZES, "architecture": "mlp", "encoder_blocks": 3, "decoder_blocks": 3},
    "kmeans": {"type": "kmeans"},
    "binning": {"type": "binning"},
    "per_feature": {"type": "per_feature"},
}
OF_SHOWERS: dict[str, dict[str, object]] = {
    "patches": {"type": "patches", "patch": {"layer": 3, "alpha": 4, "r": 9}},
    "per_feature, showers": {"type": "per_feature"},
}


def fit_all(home: Path, names: Sequence[str], samples: Mapping[str, PointClouds], steps: int) -> dict[str, str]:
    """Fit and save the tokenizers of these names, just long enough that they have codes; why some are missing."""
    problems = {}
    for name in names:
        of_jets = name in OF_JETS
        card, clouds = load_card(JETS_CARD if of_jets else SHOWERS_CARD), samples["ragged" if of_jets else "showers"]
        inputs = Inputs.fit(card.tag, [card.tag], kinematics(card) if of_jets else card.features, clouds)
        try:
            config: TokenizerConfig = TypeAdapter(TokenizerConfig).validate_python((OF_JETS | OF_SHOWERS)[name])
            if "steps" in type(config).model_fields:
                config = config.model_copy(update={"steps": steps})
            fit_tokenizer(config, inputs, clouds, seed=1).save(home / folder_of(name))
        except Exception as error:  # one that cannot be fitted is a row of the table
            problems[name] = f"{type(error).__name__}: {error}".replace("\n", " ")[:160]
    return problems


def folder_of(name: str) -> Path:
    """Of a tokenizer that was fitted here; a trained one's name is its folder."""
    return Path(name.replace(" ", "_").replace(",", ""))


class Ours:
    """One of our tokenizers at work on one sample."""

    def __init__(self, home: Path, sample: str, name: str) -> None:
        fitted = home / folder_of(name)
        self.tokenizer = load_tokenizer(fitted if fitted.exists() else Path(name))
        self.clouds = read_point_clouds(home / f"{sample}.h5")
        self.conditions = {c: self.clouds.condition(c) for c in self.tokenizer.conditions}
        self.codes: Codes | None = None

    def encode(self) -> int:
        """Returns how many tokens that made: one for each point of a jet."""
        self.codes = self.tokenizer.encode(self.clouds)
        return len(self.codes.values)

    def decode(self) -> int:
        """Returns how many points were decoded."""
        assert self.codes is not None
        uniform = np.random.default_rng(1).random(self.codes.values.shape)
        return len(self.tokenizer.decode(self.codes, uniform, self.conditions).values)


OPEN = Ours
