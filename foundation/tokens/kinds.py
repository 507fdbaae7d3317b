"""All kinds of tokenizers: fit one as a recipe says, or load one from its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from foundation.data.cards import Feature
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean
from foundation.tokens.config import (
    BinningConfig,
    KMeansConfig,
    PatchesConfig,
    PerFeatureConfig,
    TokenizerConfig,
    VqVaeConfig,
)
from foundation.tokens.inputs import Inputs, Spread
from foundation.tokens.tokenizer import FORMAT, Tokenizer, tokenizer_digest

CLASSES = {
    "per_feature": "foundation.tokens.per_feature.PerFeatureTokenizer",
    "binning": "foundation.tokens.binning.BinningTokenizer",
    "kmeans": "foundation.tokens.vq.kmeans.KMeansTokenizer",
    "vqvae": "foundation.tokens.vq.vqvae.VqVaeTokenizer",
    "patches": "foundation.tokens.patches.tokenizer.PatchesTokenizer",
}
OnStep = Callable[[int, Mapping[str, float]], None]


def fit_tokenizer(
    config: TokenizerConfig,
    inputs: Inputs,
    clouds: PointClouds,
    seed: int,
    on_step: OnStep = lambda step, metrics: None,
) -> Tokenizer:
    """Fit a tokenizer on `clouds`. `on_step` is called after every step of a training, with its number and metrics."""
    if isinstance(config, PerFeatureConfig):
        from foundation.tokens.per_feature import PerFeatureTokenizer

        return PerFeatureTokenizer.fit(inputs, clouds, config)
    if isinstance(config, BinningConfig):
        from foundation.tokens.binning import BinningTokenizer

        return BinningTokenizer.fit(inputs, clouds, config)
    if isinstance(config, KMeansConfig):
        from foundation.tokens.vq.kmeans import KMeansTokenizer

        return KMeansTokenizer.fit(inputs, clouds, config, seed)
    if isinstance(config, VqVaeConfig):
        from foundation.tokens.vq.vqvae import VqVaeTokenizer

        return VqVaeTokenizer.fit(inputs, clouds, config, seed, on_step)
    if isinstance(config, PatchesConfig):
        from foundation.tokens.patches.tokenizer import PatchesTokenizer

        return PatchesTokenizer.fit(inputs, clouds, config, seed, on_step)
    raise AssertionError(f"no tokenizer for {type(config).__name__}")


def load_tokenizer(folder: Path, digest: str | None = None) -> Tokenizer:
    """Load a tokenizer of any kind from its folder.

    digest: sha256 that a vocabulary or a model names. Raises DataError where the folder holds another tokenizer, a
    damaged one, or one that a newer version of this package wrote.
    """
    from safetensors.numpy import load_file

    try:
        head = json.loads((folder / "tokenizer.json").read_text())
        weights = folder / "tokenizer.safetensors"
        _check(folder, head, weights, digest)
        arrays = load_file(weights)
        kind, inputs = _class_of(folder, head["kind"]), _inputs(head)
        return kind.from_state(inputs, head["settings"], arrays)
    except DataError:
        raise
    except Exception as error:  # whatever the layers below say of damaged bytes
        raise DataError(f"{folder}: not a tokenizer, or a damaged one ({error})") from None


def _check(folder: Path, head: dict, weights: Path, digest: str | None) -> None:
    if head.get("format", FORMAT) != FORMAT:
        raise DataError(
            f"{folder}: a tokenizer in the format '{head['format']}', which this version cannot read (it reads "
            f"'{FORMAT}'): install the version that wrote it, or fit it again"
        )
    said = head.get("arrays_sha256")
    if said is not None and hashlib.sha256(weights.read_bytes()).hexdigest() != said:
        raise DataError(f"{weights}: does not belong to tokenizer.json beside it (sha256 differs): copy both again")
    if digest is not None and tokenizer_digest(folder) != digest:
        raise DataError(
            f"{folder}: another tokenizer than the one of the vocabulary (sha256 {tokenizer_digest(folder)[:12]}, "
            f"expected {digest[:12]}): its codes would mean something else"
        )


def _inputs(head: dict) -> Inputs:
    features = tuple(Feature.model_validate(f) for f in head["features"])
    if "format" not in head:  # the first version: one dataset, no spread
        return Inputs(head["dataset"], (head["dataset"],), features)
    spread = {name: Spread(**values) for name, values in head["spread"].items()}
    return Inputs(head["name"], tuple(head["datasets"]), features, spread)


def _class_of(folder: Path, kind: str) -> type[Tokenizer]:
    """The class of a kind. Only its own module is imported: bins need no torch, and workers start sooner without."""
    if kind not in CLASSES:
        raise DataError(f"{folder}: unknown tokenizer kind '{kind}'{did_you_mean(kind, CLASSES)}")
    module, _, name = CLASSES[kind].rpartition(".")
    return getattr(import_module(module), name)
