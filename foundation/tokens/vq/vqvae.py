"""VQ-VAE tokenizer: a code (or a few residual ones) per point for its continuous features, exact codes for categories.

After OmniJet-alpha (arXiv:2403.05618): points are embedded, optionally look at the other points of their cloud
(conditional tokenization), are quantised to the nearest of `codebook` latent vectors, and are decoded likewise. With
several quantisers, each codes what the ones before left over (residual quantisation, arXiv:2107.03312): fine resolution
from small codebooks. With `integers: coded` integer features go the same way, as in OmniJet-alpha_C (arXiv:2501.05534).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.data.cards import Feature
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean
from foundation.tokens.config import VqVaeConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.tokenizer import NOTHING, Codes, Points, Stream, Tokenizer
from foundation.tokens.transforms import category_size, exact_codes, inverse_transform, lowest_value
from foundation.tokens.vq.fit import POINTS_PER_GROUP, Fit
from foundation.tokens.vq.net import VqVae
from foundation.tokens.vq.point_groups import passes, single_points, whole_clouds
from foundation.tokens.vq.quantisers import all_vectors
from foundation.tokens.vq.training import Metrics

POINTS_PER_PASS = 200_000
"""Points that are encoded or decoded at once, so that memory does not grow with the file."""


class VqVaeTokenizer(Tokenizer):
    """K = quantisers + exact features: streams `code0`, `code1`, ... first, then the features that are exact."""

    kind = "vqvae"

    def __init__(
        self, inputs: Inputs, config: VqVaeConfig, net: VqVae, mean: NDArray[np.float64], std: NDArray[np.float64]
    ) -> None:
        super().__init__(inputs)
        self.config, self.net, self.mean, self.std = config, net.eval(), mean, std
        self.coded = _coded(inputs, config)
        self.exact = tuple(f for f in inputs.features if f not in self.coded)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (
            *(Stream(f"code{k}", self.config.codebook) for k in range(self.config.quantisers)),
            *(Stream(f.name, category_size(f)) for f in self.exact),
        )

    @staticmethod
    def fit(
        inputs: Inputs,
        clouds: PointClouds,
        config: VqVaeConfig,
        seed: int,
        on_step: Callable[[int, Metrics], None] = lambda step, metrics: None,
    ) -> VqVaeTokenizer:
        """Train on `clouds`. `on_step` is called after every step with its number and metrics.

        Raises DataError where there is nothing to code, a weight names no feature, or the training diverges.
        """
        coded = _coded(inputs, config)
        weights = _weights(inputs, coded, config)
        x = inputs.transformed(clouds, coded)
        mean, std = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        if config.normalise == "common":
            std = np.full_like(std, std.max())
        x = ((x - mean) / std).astype(np.float32)
        torch.manual_seed(seed)
        net = VqVae(len(coded), config)
        Fit(net, x, clouds.offsets, weights, config, seed).run(inputs.name, on_step)
        return VqVaeTokenizer(inputs, config, net, mean, std)

    @torch.inference_mode()
    def _encode(self, clouds: PointClouds) -> Codes:
        number = self.config.quantisers
        codes = np.empty((len(clouds.points), len(self.streams)), np.int64)
        for first, last in passes(clouds.offsets, POINTS_PER_PASS):
            part = clouds.select(slice(first, last))
            x = ((self.inputs.transformed(part, self.coded) - self.mean) / self.std).astype(np.float32)
            z = np.empty((len(x), self.config.latent), np.float32)
            for rows in self._groups(part.offsets):
                z[rows] = self.net.latents(torch.from_numpy(x[rows]), None).numpy()
            here = codes[clouds.offsets[first] : clouds.offsets[last]]
            here[:, :number] = self.net.quantise.codes(torch.from_numpy(z)).numpy()
            for k, feature in enumerate(self.exact):
                here[:, number + k] = exact_codes(feature, part.feature(feature.name))
        return Codes(codes, clouds.offsets)

    @torch.inference_mode()
    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        values = np.empty((len(codes.values), len(self.features)), np.float32)
        for first, last in passes(codes.offsets, POINTS_PER_PASS):
            start, end = codes.offsets[first], codes.offsets[last]
            values[start:end] = self._decode(codes.values[start:end], codes.offsets[first : last + 1] - start)
        return Points(values, codes.offsets)

    def _decode(self, codes: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        number = self.config.quantisers
        z = self.net.quantise.vectors(torch.from_numpy(codes[:, :number]))
        x = np.empty((len(codes), len(self.coded)), np.float32)
        for rows in self._groups(offsets):
            x[rows] = self.net.features(z[torch.from_numpy(rows)], None).numpy()
        physical = x * self.std + self.mean
        columns = {f.name: _value(f, physical[:, i]) for i, f in enumerate(self.coded)}
        for k, f in enumerate(self.exact):
            columns[f.name] = (codes[:, number + k] + lowest_value(f)).astype(np.float64)
        return np.stack([columns[f.name] for f in self.features], axis=1).astype(np.float32)

    def _groups(self, offsets: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Rows [b, L] of the points that the network sees at once."""
        divided = whole_clouds if self.config.sees_clouds else single_points
        return divided(offsets, POINTS_PER_GROUP)

    def code_vectors(self) -> dict[str, NDArray[np.float32]]:
        return {f"code{k}": vectors for k, vectors in enumerate(all_vectors(self.net.quantise))}

    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        arrays = {f"net.{k}": v.numpy() for k, v in self.net.state_dict().items()}
        return self.config.model_dump(), arrays | {"mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, inputs: Inputs, settings: dict, arrays: dict[str, NDArray]) -> VqVaeTokenizer:
        # the first version knew no other architecture, and did not name it
        config = VqVaeConfig(**({"architecture": "pre_norm"} | settings))
        net = VqVae(len(arrays["mean"]), config)
        net.load_state_dict({_now_called(k): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("net.")})
        return VqVaeTokenizer(inputs, config, net, arrays["mean"], arrays["std"])


def _now_called(key: str) -> str:
    """Name, in the network, of an array of a saved tokenizer; those of the first version had attention in the block."""
    name = key.removeprefix("net.")
    if ".attention." in name:
        return name
    return (
        name.replace(".norm_attention.", ".attention.norm.")
        .replace(".qkv.", ".attention.qkv.")
        .replace(".mix.", ".attention.mix.")
    )


def _coded(inputs: Inputs, config: VqVaeConfig) -> tuple[Feature, ...]:
    """The features that go through the network."""
    kinds = ("continuous", "integer") if config.integers == "coded" else ("continuous",)
    coded = tuple(f for f in inputs.features if f.kind in kinds)
    if not coded:
        raise DataError(f"tokenizer '{inputs.name}': a vqvae needs continuous features")
    return coded


def _weights(inputs: Inputs, coded: tuple[Feature, ...], config: VqVaeConfig) -> NDArray[np.float32]:
    """How much the squared error of each coded feature counts, [F]."""
    names = [f.name for f in coded]
    for name in config.weights:
        if name not in names:
            said = f"tokenizer '{inputs.name}': 'weights' names '{name}', which is no feature that it codes"
            raise DataError(said + did_you_mean(name, names))
    return np.array([config.weights.get(name, 1.0) for name in names], np.float32)


def _value(feature: Feature, x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Physical values of decoded ones; integers are rounded into their range."""
    value = inverse_transform(feature, x)
    if feature.kind == "integer":
        low = lowest_value(feature)
        value = np.clip(np.rint(value), low, low + category_size(feature) - 1)
    return value
