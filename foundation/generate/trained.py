"""A model folder with all that generating and scoring need: weights, layout, and each dataset's card and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from foundation.data.by_card import clouds_of_card
from foundation.data.cards import Condition, DatasetCard, Feature
from foundation.data.formats.reading import with_features
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean
from foundation.generate.sampling_config import SamplingConfig
from foundation.model.weights import load_backbone
from foundation.tasks.generation import Generation
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.tokenizer import Tokenizer

LONGER = 1.2
"""How much longer than the longest object of the training data an object may become, unless it is said."""


@dataclass(frozen=True)
class KnownDataset:
    """A dataset that a model was trained on."""

    card: DatasetCard
    longest: int
    """Tokens of the longest object of the training data; tokens are points, or patches."""

    @property
    def tag(self) -> str:
        """Its name in calls."""
        return self.card.tag

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        return self.card.classes

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Conditions: name, unit, range of the training."""
        return self.card.conditions

    @property
    def features(self) -> tuple[Feature, ...]:
        """Features of a point as the card has them: name, unit; the tokenizer may code fewer."""
        return self.card.features

    def __str__(self) -> str:
        asked = [f"{c.name} {c.range[0]:g} to {c.range[1]:g} {c.unit}" for c in self.conditions]
        parts = [f"classes {', '.join(self.classes)}" if self.classes else "", "; ".join(asked)]
        return f"{self.tag} ({self.card.title}): " + ("; ".join(part for part in parts if part) or "no conditions")


class TrainedModel:
    """A trained model and what it knows.

    folder: where it was read from; device: where it computes; backbone: the transformer, a torch module
    about:  what the folder says of it: architecture, layout, task; vocabulary: its ids
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.backbone, self.about = load_backbone(folder, device)
        self.backbone.eval()
        self.layout, self.vocabulary = self.about.layout, self.about.vocabulary
        self._tokenizers: dict[str, Tokenizer] = {}

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}({str(self.folder)!r}, {self.about.task}, {self.device})"]
        return "\n".join([*lines, *(f"  {dataset}" for dataset in self.datasets.values())])

    @cached_property
    def datasets(self) -> dict[str, KnownDataset]:
        """Datasets whose card is in the folder, by tag."""
        cards = self.folder / "cards"
        return {tag: _known(cards, tag) for tag in self.vocabulary.datasets if (cards / f"{tag}.json").is_file()}

    def tokenizer(self, dataset: str | None = None) -> Tokenizer:
        """The tokenizer of a dataset."""
        tag = self.tag(dataset)
        if tag not in self._tokenizers:
            digest = self.vocabulary.dataset(tag).tokenizer
            self._tokenizers[tag] = load_tokenizer(self.folder / "tokenizers" / tag, digest)
        return self._tokenizers[tag]

    def tag(self, dataset: str | None = None, clouds: PointClouds | None = None) -> str:
        """The dataset that is meant: the one named, that of the clouds, or the only one."""
        if not self.datasets:
            raise DataError(f"{self.folder}: holds no cards of datasets: make the model folder with this package again")
        if dataset is not None:
            if dataset not in self.datasets:
                raise DataError(f"the model knows no dataset '{dataset}'{did_you_mean(dataset, self.datasets)}")
            return dataset
        if clouds is not None and clouds.tag in self.datasets:
            return clouds.tag
        if len(self.datasets) > 1:
            raise DataError(f"the model knows several datasets, name one: {', '.join(self.datasets)}")
        return next(iter(self.datasets))

    def require_generator(self) -> None:
        """Raise DataError for a model that was trained for another task: its backbone no longer predicts codes."""
        if self.about.task != Generation.name:
            raise DataError(
                f"{self.folder}: a model for {self.about.task}, which has unlearnt to generate: load the one "
                "that it was made from"
            )

    def sampling(self, tag: str, settings: Mapping[str, Any]) -> SamplingConfig:
        """Settings of sampling objects of a dataset, with a default of `max_points`; DataError names a wrong one."""
        for name in settings:
            if name not in SamplingConfig.model_fields:
                raise DataError(f"sampling has no setting '{name}'{did_you_mean(name, SamplingConfig.model_fields)}")
        longest = int(np.ceil(LONGER * self.datasets[tag].longest))
        try:
            return SamplingConfig.model_validate({"max_points": longest, **settings})
        except ValidationError as error:
            wrong = error.errors()[0]
            raise DataError(f"sampling setting '{'.'.join(map(str, wrong['loc']))}': {wrong['msg']}") from None


def _known(cards: Path, tag: str) -> KnownDataset:
    card = DatasetCard.model_validate_json((cards / f"{tag}.json").read_text())
    return KnownDataset(card, int(json.loads((cards / f"{tag}.longest.json").read_text())))


def as_trained(card: DatasetCard, tokenizer: Tokenizer, clouds: PointClouds, leave_open: bool = False) -> PointClouds:
    """The clouds with the tokenizer's features, the card's conditions and the card's order of points.

    leave_open: with all conditions unknown. Raises DataError where the clouds lack something.
    """
    tokenizer.inputs.require(clouds)
    names = tuple(feature.name for feature in tokenizer.features)
    own = with_features(card.model_copy(update={"attributes": ()}), names, ordered=False)
    of_objects = {c.name: _condition(clouds, c.name, leave_open) for c in card.conditions}
    columns = {name: clouds.feature(name) for name in names}
    return clouds_of_card(own, columns, clouds.owners, clouds.labels, of_objects)


def _condition(clouds: PointClouds, name: str, leave_open: bool) -> NDArray[np.float32]:
    if leave_open:
        return np.full(len(clouds), np.nan, np.float32)
    if name not in clouds.condition_names:
        raise DataError(f"the model was trained with the condition '{name}', which these point clouds do not have")
    return clouds.condition(name)
