"""Samples while a pretrain stage trains: is what the model generates on its way to the truth?"""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

from foundation.console import warn
from foundation.data.cards import DatasetCard
from foundation.evaluate.sample_plots import plot_sample
from foundation.generate.campaign import decoded, generate
from foundation.generate.sampler import SamplingConfig
from foundation.model.transformer import Transformer
from foundation.model.weights import ModelFolder
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.stream.reading import ShardedDataset
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.tokenizer import Codes
from foundation.train.interface import Sample

OBJECTS = 64
"""Of each dataset: enough to see that something is wrong, few enough not to be noticed in the time."""


def sampler(context: StageContext, model: ModelFolder, tokens: Artifact, held_out: dict[str, ShardedDataset]) -> Sample:
    """sample(weights, step): generates as many objects as it takes of each validation split, with their classes and
    conditions, and leaves `samples/TAG_STEP.png`, which goes to MLflow too. A sample that fails is only a warning."""

    def sample(weights: dict[str, Tensor], step: int) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backbone = Transformer(model.transformer, model.vocabulary.size)
        backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in weights.items()})
        backbone.to(device)
        for tag, data in held_out.items():
            try:
                _draw(backbone, context, model, tokens, data, f"{tag}_{step:08d}")
            except Exception as error:  # whatever it is, training is worth more
                warn(f"no sample of {tag} at step {step}: {error}")

    return sample


def _draw(
    backbone: Transformer,
    context: StageContext,
    model: ModelFolder,
    tokens: Artifact,
    data: ShardedDataset,
    name: str,
) -> None:
    home = tokens.folder / data.tag
    card = DatasetCard.model_validate_json((home / "card.json").read_text())
    tokenizer = load_tokenizer(home / "tokenizer", model.vocabulary.dataset(data.tag).tokenizer)
    longest = int(np.ceil(1.2 * json.loads((home / "longest.json").read_text())))
    block = data.block(0).first(OBJECTS)
    codes = Codes(block.codes.astype(np.int64), block.offsets)
    truth = decoded(tokenizer, card, codes, block.labels, block.conditions, context.seed)
    config = SamplingConfig(max_points=longest)
    made = generate(
        backbone, model.layout, tokenizer, card, block.labels, block.conditions, seed=context.seed, config=config
    )
    context.tracker.log_artifact(plot_sample(card, truth, made.clouds, name, context.folder / "samples"))
