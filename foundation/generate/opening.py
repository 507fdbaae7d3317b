"""A model folder made ready to generate what a campaign asks for, and what that campaign's objects follow from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foundation import __version__
from foundation.data.cards import DatasetCard
from foundation.errors import DataError, did_you_mean
from foundation.generate.beginnings import Beginnings, read_beginnings
from foundation.generate.campaign_folder import SCHEMA, Part
from foundation.generate.conditions import Asking
from foundation.generate.corrections import require_shower_energies
from foundation.generate.decoding import decoded, require_known
from foundation.generate.generator import Generator, Wanted
from foundation.generate.request_config import CampaignSettings
from foundation.generate.sampler import Sampler
from foundation.generate.sampling_config import SamplingConfig
from foundation.generate.trained import LONGER, TrainedModel
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Codes, Tokenizer

CARDS = "cards"


def datasets_of(home: Path) -> list[str]:
    """Tags of the datasets that a model folder can generate."""
    return sorted(path.stem for path in (home / CARDS).glob("*.json") if not path.stem.endswith(".longest"))


def card_of_model(home: Path, tag: str) -> DatasetCard:
    """The card of a dataset as the model was trained on it. Raises DataError where it was not."""
    path = home / CARDS / f"{tag}.json"
    if not path.is_file():
        raise DataError(f"the model in {home} was not trained on '{tag}'{did_you_mean(tag, datasets_of(home))}")
    return DatasetCard.model_validate_json(path.read_text())


def usual_max_points(home: Path, tag: str) -> int:
    """Most points of an object where a user does not say: somewhat more than the longest that was trained on."""
    path = home / CARDS / f"{tag}.longest.json"
    try:
        return max(1, int(np.ceil(LONGER * json.loads(path.read_text()))))
    except (OSError, ValueError, TypeError):
        raise DataError(f"{path}: missing or damaged; say how long objects may be (max_points)") from None


def generator_of(
    model: Transformer,
    layout: Layout,
    tokenizer: Tokenizer,
    card: DatasetCard,
    seed: int,
    config: SamplingConfig,
    slots: int = 0,
) -> Generator:
    """A generator of one dataset of a model that is in memory."""
    sampler = Sampler(model, layout, card.tag, seed=seed, config=config, slots=slots)

    def prefix(labels: NDArray[np.int64], conditions: NDArray[np.float32]) -> NDArray[np.int64]:
        return layout.prefix(card.tag, labels, conditions)

    return Generator(sampler, prefix, tokenizer, card, seed)


@dataclass(frozen=True)
class Opened:
    """A campaign that can be begun: its generator, without rejection and calibration, and its objects by number."""

    settings: CampaignSettings
    generator: Generator
    asking: Asking
    beginnings: Beginnings | None

    @property
    def card(self) -> DatasetCard:
        """The dataset as the model was trained on it."""
        return self.generator.card

    def wanted(self, part: Part) -> Wanted:
        """The objects of a part."""
        begun = None if self.beginnings is None else self.beginnings.of(part.index)
        return Wanted(part.index, *self.asking(part.index), begun)

    def require_possible(self) -> None:
        """Raise DataError where it would end in an error later: lengths, quantities that are needed."""
        settings, tokenizer, tag = self.settings, self.generator.tokenizer, self.card.tag
        if settings.complete is not None and settings.complete.keep >= settings.sampling.max_points:
            raise DataError(
                f"of partial objects {settings.complete.keep} points are kept, but objects end at "
                f"{settings.sampling.max_points}: keep fewer, or raise max_points"
            )
        conditions = self.wanted(Part(0, min(settings.objects, 1000))).conditions
        given = dict(zip((c.name for c in self.card.conditions), conditions.T, strict=True))
        require_known(tokenizer, given, tag)
        if settings.calibrate is not None:
            require_shower_energies(self.card, "a calibration of the energy")
        if settings.reject is not None and settings.reject.energy_sum is not None:
            require_shower_energies(self.card, "an envelope of the energy sum")
            if np.isnan(given["incident_energy"]).any():
                raise DataError("an envelope of the energy sum needs the incident energy of every shower: give it")

    def example(self) -> Any:
        """A few objects of one token each, of the first classes and conditions, to try a format with."""
        index = np.arange(min(self.settings.objects, 2 + len(self.card.classes)))
        labels, conditions = self.asking(index)
        tokenizer = self.generator.tokenizer
        each = tokenizer.tokens_per_object or 1
        codes = Codes(np.zeros((each * len(index), len(tokenizer.streams)), np.int64), each * np.arange(len(index) + 1))
        return decoded(tokenizer, self.card, codes, labels, conditions, self.settings.seed)


@lru_cache(maxsize=2)
def open_campaign(home: str, settings: str, slots: int) -> Opened:
    """What `settings` (CampaignSettings as JSON) ask of the model in the folder `home`; kept for the next call.

    slots: objects that are sampled at the same time, 0 for as many as suit the sampler
    """
    asked_for, folder = CampaignSettings.model_validate_json(settings), Path(home)
    card = card_of_model(folder, asked_for.dataset)
    model = TrainedModel(folder, _device())
    model.require_generator()
    tokenizer = model.tokenizer(card.tag)
    generator = generator_of(model.backbone, model.layout, tokenizer, card, asked_for.seed, asked_for.sampling, slots)
    asked, beginnings, begun = asked_for.asked, None, None
    if asked_for.complete is not None:
        beginnings, begun = read_beginnings(card, tokenizer, asked_for.complete, asked_for.objects)
    asking = Asking.of(card, asked, asked_for.seed, begun if asked.source is None else None)
    opened = Opened(asked_for, generator, asking, beginnings)
    opened.require_possible()
    return opened


def identity_of(home: Path, opened: Opened, part_objects: int) -> dict[str, Any]:
    """All that the result of a campaign follows from. Files count by their content, not by their names."""
    settings = opened.settings.model_dump(mode="json", exclude_none=True)
    if opened.beginnings is not None:
        settings["complete"]["file"] = opened.beginnings.digest
    if "source" in settings["asked"] and opened.asking.found is not None:
        settings["asked"]["source"]["file"] = opened.asking.found.digest
    return {
        "schema": SCHEMA,
        "software": __version__,
        "weights": sha256_of(home / "model.safetensors"),
        "vocabulary": sha256_of(home / "vocabulary.json"),
        "card": hashlib.sha256(opened.card.model_dump_json().encode()).hexdigest(),
        "part_objects": part_objects,
        "settings": settings,
    }


def sha256_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def device_name() -> str:
    """Name of what objects are generated on: of the GPU, or cpu."""
    device = _device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
