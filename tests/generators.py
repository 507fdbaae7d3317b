"""Small model folders as a pretrain stage leaves them, with random weights, for the tests of generation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.model.weights import ModelFolder, save_model
from foundation.tasks.generation import Generation
from foundation.tokens.config import PerFeatureConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.kinds import fit_tokenizer
from foundation.tokens.layout import Mode
from foundation.tokens.tokenizer import Tokenizer, tokenizer_digest
from foundation.tokens.vocabulary import Addition, Vocabulary

CONFIG = TransformerConfig(width=16, layers=2, heads=2)
LONGEST = 10


def per_feature(card: DatasetCard, clouds: PointClouds, bins: int = 8) -> Tokenizer:
    """A tokenizer with few bins of each feature of the card."""
    inputs = Inputs.fit(card.tag, (card.tag,), card.features, clouds)
    return fit_tokenizer(PerFeatureConfig(type="per_feature", bins=bins), inputs, clouds, 1)


def model_folder(
    home: Path, datasets: Mapping[str, tuple[DatasetCard, Tokenizer]], mode: Mode = "delayed", sharp: float = 8.0
) -> Path:
    """A folder with a model of these datasets. Its embeddings are large, so that classes and conditions matter."""
    additions = []
    (home / "cards").mkdir(parents=True)
    for tag, (card, tokenizer) in datasets.items():
        tokenizer.save(home / "tokenizers" / tag)
        additions.append(Addition.of(card, tokenizer, tokenizer_digest(home / "tokenizers" / tag)))
        (home / "cards" / f"{tag}.json").write_text(card.model_dump_json())
        (home / "cards" / f"{tag}.longest.json").write_text(str(LONGEST))
    vocabulary = Vocabulary.build(additions)
    torch.manual_seed(1)
    backbone = Transformer(CONFIG, vocabulary.size)
    with torch.no_grad():
        backbone.embedding.weight.mul_(sharp)
    about = ModelFolder(CONFIG, mode, Generation.name, {}, vocabulary)
    save_model(home, {f"backbone.{k}": v for k, v in backbone.state_dict().items()}, about)
    return home
