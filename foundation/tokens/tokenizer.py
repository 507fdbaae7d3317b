"""What every tokenizer is: a reversible map from the points of one dataset to K codes per point (its streams).

A tokenizer is fitted once, saved as a folder of `tokenizer.json` and `tokenizer.safetensors`, and holds its own
preprocessing: it takes physical values with named features and refuses others, so nobody can feed it the wrong scale.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Feature
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Stream:
    """One code per point: its name and how many values it takes."""

    name: str
    size: int


class Tokenizer(ABC):
    """Base of the tokenizers. `features` are the card's, in the order in which `decode` returns them."""

    kind: ClassVar[str]

    def __init__(self, dataset: str, features: tuple[Feature, ...]) -> None:
        self.dataset = dataset
        self.features = features

    @property
    @abstractmethod
    def streams(self) -> tuple[Stream, ...]:
        """The K streams, in the order of the columns of the codes."""

    @abstractmethod
    def encode(self, clouds: PointClouds) -> NDArray[np.int64]:
        """Codes int64 [N, K] of all points; each column is in 0 .. stream.size - 1."""

    @abstractmethod
    def decode(
        self, codes: NDArray[np.int64], offsets: NDArray[np.int64], uniform: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Points float32 [N, F] in physical units.

        uniform: float64 [N, K], numbers in [0, 1) that place a value inside its bin. They come from the caller so that
        an object does not depend on what it is decoded together with.
        """

    def code_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Stream name -> vectors [size, dim] of its codes, near where codes mean alike; only streams that have such."""
        return {}

    @abstractmethod
    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        """Settings (JSON) and arrays (safetensors) from which `from_state` builds an equal tokenizer."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer to `folder`."""
        from safetensors.numpy import save_file

        settings, arrays = self.state()
        folder.mkdir(parents=True, exist_ok=True)
        head = {
            "kind": self.kind,
            "dataset": self.dataset,
            "features": [f.model_dump(mode="json") for f in self.features],
            "streams": [[s.name, s.size] for s in self.streams],
            "settings": settings,
        }
        save_file(
            {k: np.ascontiguousarray(v) for k, v in arrays.items()},
            folder / "tokenizer.safetensors",
        )
        (folder / "tokenizer.json").write_text(json.dumps(head, indent=1, sort_keys=True))
        # safetensors writes for the owner alone; colleagues may read what the folder lets them
        (folder / "tokenizer.safetensors").chmod((folder / "tokenizer.json").stat().st_mode)

    def require(self, clouds: PointClouds) -> None:
        """Refuse point clouds whose features or units are not the ones this tokenizer was fitted on."""
        for feature in self.features:
            if feature.name not in clouds.features:
                raise DataError(
                    f"the tokenizer of '{self.dataset}' needs feature '{feature.name}', which these point clouds "
                    f"do not have{did_you_mean(feature.name, clouds.features)}"
                )
            unit = clouds.units[clouds.features.index(feature.name)]
            if unit != feature.unit:
                raise DataError(
                    f"feature '{feature.name}' is in {unit}, but the tokenizer of '{self.dataset}' was fitted in "
                    f"{feature.unit}: convert it first"
                )


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a tokenizer of any kind from its folder."""
    from safetensors.numpy import load_file

    from foundation.tokens.per_feature import PerFeatureTokenizer
    from foundation.tokens.vqvae import VqVaeTokenizer

    try:
        head = json.loads((folder / "tokenizer.json").read_text())
        arrays = load_file(folder / "tokenizer.safetensors")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a tokenizer, or a damaged one ({error})") from None
    known = {t.kind: t for t in (PerFeatureTokenizer, VqVaeTokenizer)}
    if head["kind"] not in known:
        raise DataError(f"{folder}: unknown tokenizer kind '{head['kind']}'{did_you_mean(head['kind'], known)}")
    features = tuple(Feature.model_validate(f) for f in head["features"])
    return known[head["kind"]].from_state(head["dataset"], features, head["settings"], arrays)


def tokenizer_digest(folder: Path) -> str:
    """sha256 of a saved tokenizer: shards and vocabularies carry it and refuse another."""
    digest = hashlib.sha256()
    for name in ("tokenizer.json", "tokenizer.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def transform(feature: Feature, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Physical values to the space a tokenizer works in: log, shift, scale as the card declares."""
    x = values.astype(np.float64)
    if feature.log:
        x = np.log(np.maximum(x, 1e-30))
    return (x - feature.shift) * feature.scale


def inverse_transform(feature: Feature, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The exact inverse of `transform`."""
    x = values.astype(np.float64) / feature.scale + feature.shift
    return np.exp(x) if feature.log else x


def outside_window(clouds: PointClouds, features: tuple[Feature, ...]) -> Mapping[str, int]:
    """How many points lie outside each feature's declared window, by feature name; only features with any."""
    found = {}
    for feature in features:
        values = clouds.feature(feature.name)
        if feature.kind == "category":
            low, high = 0.0, float(len(feature.categories) - 1)
        elif feature.range is not None:
            low, high = feature.range
        else:
            continue
        # float32 values of a float64 border must not count as outside
        margin = 1e-6 * max(abs(low), abs(high), 1.0)
        count = int(((values < low - margin) | (values > high + margin)).sum())
        if count:
            found[feature.name] = count
    return found


def category_size(feature: Feature) -> int:
    """Number of values of an integer or category feature."""
    if feature.kind == "category":
        return len(feature.categories)
    assert feature.range is not None  # the card checks it
    return int(feature.range[1] - feature.range[0]) + 1


def exact_codes(feature: Feature, values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Codes of an integer or category feature: the value itself, counted from the lowest.

    Raises DataError for a value that is not a whole number inside the range: an exact code cannot stand for it.
    """
    low = 0 if feature.kind == "category" else int(feature.range[0]) if feature.range else 0
    codes = np.rint(values).astype(np.int64) - low
    if len(values) and (np.abs(values - np.rint(values)).max() > 1e-3 or codes.min() < 0):
        raise DataError(f"feature '{feature.name}' must be whole numbers from {low}; found {float(values.min()):g}")
    if len(values) and codes.max() >= category_size(feature):
        raise DataError(
            f"feature '{feature.name}' reaches {float(values.max()):g}, above its range "
            f"(0 .. {category_size(feature) - 1 + low}): widen the card's range"
        )
    return codes
