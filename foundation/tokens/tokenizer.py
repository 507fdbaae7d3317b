"""What every tokenizer is: a reversible map from point clouds to codes, K of them (its streams) per token.

A tokenizer is fitted once, saved as a folder of `tokenizer.json` and `tokenizer.safetensors`, and holds its own
preprocessing: it takes physical values with named features and refuses others, so nobody can feed it the wrong scale.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import Feature
from foundation.data.point_clouds import PointClouds
from foundation.tokens.inputs import Inputs

FORMAT = "foundation/tokenizer/2"
NOTHING: Mapping[str, NDArray] = MappingProxyType({})


@dataclass(frozen=True)
class Stream:
    """One code per token: its name and how many values it takes."""

    name: str
    size: int


@dataclass(frozen=True)
class Codes:
    """Codes of B objects: values int64 [N, K] of N tokens (points, or patches) in all, offsets int64 [B + 1]."""

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Points:
    """Decoded points of B objects: values float32 [N, F] in physical units, offsets int64 [B + 1]."""

    values: NDArray[np.float32]
    offsets: NDArray[np.int64]


class Tokenizer(ABC):
    """Base of the tokenizers."""

    kind: ClassVar[str]

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    @property
    def name(self) -> str:
        """Name of the tokenizer, and of its ranges in a vocabulary."""
        return self.inputs.name

    @property
    def features(self) -> tuple[Feature, ...]:
        """Features of a point, in the order in which `decode` returns them."""
        return self.inputs.features

    @property
    @abstractmethod
    def streams(self) -> tuple[Stream, ...]:
        """The K streams, in the order of the columns of the codes."""

    @property
    def tokens_per_object(self) -> int | None:
        """How many tokens every object has; None where each point of an object is a token."""
        return None

    @property
    def conditions(self) -> tuple[str, ...]:
        """Object-level quantities that are needed to encode and to decode."""
        return ()

    def encode(self, clouds: PointClouds, first: int | None = None) -> Codes:
        """Codes of all clouds; each column is in 0 .. stream.size - 1. Which clouds come together does not matter.

        first: encode this many points of each cloud only, as if it had no others; scales are those of all its points

        Raises DataError for clouds with other features, units, conventions or scales than those of the fit.
        """
        self.inputs.require(clouds)
        return self._encode(clouds if first is None else clouds.first_points(first))

    @abstractmethod
    def _encode(self, clouds: PointClouds) -> Codes:
        """Codes of clouds that are known to be the right ones."""

    @abstractmethod
    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        """Points of all objects, in physical units.

        uniform:    float64 [N, K], numbers in [0, 1) that place a value inside its bin. They come from the caller so
                    that an object does not depend on what it is decoded together with.
        conditions: an array [B] for each of `self.conditions`
        """

    def reconstruct(self, clouds: PointClouds, seed: int = 0) -> PointClouds:
        """The clouds after encoding and decoding, with this tokenizer's features only."""
        codes = self.encode(clouds)
        uniform = np.random.default_rng(seed).random(codes.values.shape)
        points = self.decode(codes, uniform, {name: clouds.condition(name) for name in self.conditions})
        return replace(
            clouds,
            points=points.values,
            offsets=points.offsets,
            features=tuple(f.name for f in self.features),
            units=tuple(f.unit for f in self.features),
            conventions=tuple(f.convention for f in self.features),
        )

    def code_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Stream name -> vectors [size, dim] of its codes, near where codes mean alike; only streams that have such."""
        return {}

    @abstractmethod
    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        """Settings (JSON) and arrays (safetensors) from which `from_state` builds an equal tokenizer."""

    @classmethod
    @abstractmethod
    def from_state(cls, inputs: Inputs, settings: dict, arrays: dict[str, NDArray]) -> Tokenizer:
        """Rebuild a tokenizer from what `state` returned."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer to `folder`."""
        from safetensors.numpy import save_file

        settings, arrays = self.state()
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "tokenizer.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, weights)
        head = {
            "format": FORMAT,
            "kind": self.kind,
            "name": self.name,
            "datasets": list(self.inputs.datasets),
            "features": [f.model_dump(mode="json") for f in self.features],
            "spread": {name: asdict(spread) for name, spread in self.inputs.spread.items()},
            "streams": [[s.name, s.size] for s in self.streams],
            "settings": settings,
            "arrays_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        }
        (folder / "tokenizer.json").write_text(json.dumps(head, indent=1, sort_keys=True))
        # safetensors writes for the owner alone; colleagues may read what the folder lets them
        weights.chmod((folder / "tokenizer.json").stat().st_mode)


def tokenizer_digest(folder: Path) -> str:
    """sha256 of a saved tokenizer: shards and vocabularies carry it and refuse another."""
    digest = hashlib.sha256()
    for name in ("tokenizer.json", "tokenizer.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
