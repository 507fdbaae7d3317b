"""Patches of a voxel grid: a shower becomes a fixed number of codes, one for each patch.

The tokenizer of the CERN generalised shower transformer (P. Raikwar et al., Transformers for Generalized Fast Shower
Simulation): voxel energies as shares of the incident energy, patches as the tokens of a VQ-VAE with a transformer on
both sides. Ours differs from it where showers suffer most: the chance of a hit and its energy are learnt apart (see
`scale`), and visible energy and number of hits have tokens of their own (see `totals`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.tokens.config import PatchesConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.patches.grid import PatchGrid
from foundation.tokens.patches.hits import brightest, chances_of, drawn, many, scaled, spread
from foundation.tokens.patches.net import PatchNet
from foundation.tokens.patches.scale import SCALES, fit_scale
from foundation.tokens.patches.totals import TotalsCode, places_for
from foundation.tokens.patches.training import train
from foundation.tokens.patches.voxels import Hits, Voxels, unit_of
from foundation.tokens.tokenizer import NOTHING, Codes, Points, Stream, Tokenizer

PLACES_PER_PASS = 1 << 21
"""Voxels that are dense at the same time."""
MOST_PER_PASS = 256
"""Showers that are dense at the same time."""
CALIBRATE = 512
"""Showers of the fit that tell the threshold."""
ROOM = 1.3
"""The levels of the visible share reach this much above the largest share of the fit."""


@dataclass(frozen=True)
class Fitted:
    """Numbers that the fit found, apart from the weights.

    centre, width, guess:     of the voxel scale
    top:                      visible share where its levels end
    totals_mean, totals_std:  of the totals that the network sees
    threshold:                score above which a voxel is a hit, where neither chances nor a number of hits say so
    """

    centre: float
    width: float
    guess: float
    top: float
    totals_mean: tuple[float, ...]
    totals_std: tuple[float, ...]
    threshold: float = 0.0


class PatchesTokenizer(Tokenizer):
    """K = quantisers streams of one size; leading tokens hold the totals of a shower, then one token per patch.

    Every shower has the same number of tokens. Hits come back in the order of the axes, each voxel at most once.
    """

    kind = "patches"

    def __init__(self, inputs: Inputs, config: PatchesConfig, unit: str, fitted: Fitted, net: PatchNet) -> None:
        super().__init__(inputs)
        self.config, self.fitted, self.net = config, fitted, net.eval()
        self.voxels = Voxels.of(inputs, config, unit)
        self.grid = self.voxels.grid
        self.scale = SCALES[config.loss](fitted.centre, fitted.width, fitted.guess)
        self.totals = _totals_code(self.grid, config, fitted.top)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(Stream(f"code{q}", self.config.codebook) for q in range(self.config.quantisers))

    @property
    def leading(self) -> int:
        """Number of tokens before those of the patches."""
        return (self.totals.energy + self.totals.hits) // self.config.quantisers

    @property
    def tokens_per_object(self) -> int:
        return self.leading + self.grid.patches

    @property
    def conditions(self) -> tuple[str, ...]:
        return (self.config.condition,)

    @staticmethod
    def fit(
        inputs: Inputs,
        clouds: PointClouds,
        config: PatchesConfig,
        seed: int,
        on_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
    ) -> PatchesTokenizer:
        """Train on `clouds`. `on_step` is called after every step with its number and metrics.

        Raises DataError where the features are no grid of voxels, or the incident energies are missing.
        """
        unit = unit_of(clouds, inputs.name, config.condition)
        voxels = Voxels.of(inputs, config, unit)
        hits = voxels.hits(clouds)
        fitted = _statistics(voxels.grid, config, hits)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = PatchesTokenizer(inputs, config, unit, fitted, _net(voxels, config))
            net = tokenizer.net.train()
            train(net, tokenizer.scale, tokenizer.grid.real, tokenizer._dense, hits, config, seed, on_step)
        net.eval()
        return tokenizer._with_threshold(hits.select(np.arange(min(len(hits), CALIBRATE))))

    def _encode(self, clouds: PointClouds) -> Codes:
        hits = self.voxels.hits(clouds)
        shape = (len(clouds), self.tokens_per_object, self.config.quantisers)
        parts = [self._codes(part) for part in hits.parts(self._per_pass)]
        values = np.concatenate([np.zeros((0, *shape[1:]), np.int64), *parts]).reshape(-1, self.config.quantisers)
        return Codes(values, np.arange(len(clouds) + 1) * self.tokens_per_object)

    @torch.inference_mode()
    def _codes(self, hits: Hits) -> NDArray[np.int64]:
        """Codes [B, T, K] of a few showers."""
        shares, totals = self._dense(hits)
        codes = self.net.codes(self.net.latents(self.scale.enter(shares), totals)).numpy()
        leading = self.totals.encode(*_sums(shares))
        return np.concatenate([leading.reshape(len(hits), self.leading, self.config.quantisers), codes], axis=1)

    def decode(self, codes: Codes, uniform: NDArray[np.float64], conditions: Mapping[str, NDArray] = NOTHING) -> Points:
        self._require_whole(codes)
        incident = self.voxels.incident(conditions.get(self.config.condition))
        shape = (len(codes), self.tokens_per_object, self.config.quantisers)
        tokens, numbers = codes.values.reshape(shape), uniform.reshape(shape)
        values, counts = [np.zeros((0, len(self.features)), np.float32)], [np.zeros(0, np.int64)]
        for first in range(0, len(codes), self._per_pass):
            part = slice(first, first + self._per_pass)
            points, count = self._points(tokens[part], numbers[part], incident[part])
            values.append(points)
            counts.append(count)
        return Points(np.concatenate(values), to_offsets(np.concatenate(counts)))

    def _points(
        self, tokens: NDArray[np.int64], uniform: NDArray[np.float64], incident: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Points [n, F] of a few showers and their numbers [B], from tokens [B, T, K]."""
        digits = tokens[:, : self.leading].reshape(len(tokens), -1)
        visible = self.totals.shares(digits, uniform[:, -1, -1])
        counts = self.totals.counts(digits)
        said = self._voxels(tokens[:, self.leading :], self._totals(incident, visible, counts))
        owners, numbers = np.nonzero(self._chosen(said[0], counts, uniform[:, 0, 0]))
        shares, widths = (values[owners, numbers].astype(np.float64) for values in said[1:])
        if self.config.spread:
            patch, inside = np.divmod(self.grid.places[numbers], self.grid.volume)
            chance = many(uniform[owners, self.leading + patch, 0], inside)
            shares = spread(shares, widths, owners * self.grid.patches + patch, chance)
        lowest, _ = self.inputs.window(self.voxels.energy)
        unit = incident / self.voxels.per_incident
        energies = shares * unit[owners]
        energies = scaled(energies, owners, visible * unit, lowest) if self.totals.energy else energies.clip(lowest)
        columns = self.voxels.values(numbers, energies)
        points = np.stack([columns[f.name] for f in self.features], axis=1).astype(np.float32)
        return points, np.bincount(owners, minlength=len(tokens))

    @torch.inference_mode()
    def _voxels(self, codes: NDArray[np.int64], totals: Tensor) -> tuple[NDArray[np.float32], ...]:
        """Scores, shares and spreads of the voxels, each [B, V], from codes of patches [B, P, K]."""
        out = self.net.outputs(self.net.vectors(torch.from_numpy(codes)), totals)
        return tuple(self.grid.joined(values.numpy()) for values in self.scale.leave(out))

    def _chosen(self, scores: NDArray, counts: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which voxels [B, V] are hits."""
        if self.scale.gives_chances:
            return drawn(chances_of(scores, counts if self.totals.hits else None), uniform)
        return brightest(scores, counts) if self.totals.hits else scores > self.fitted.threshold

    def _dense(self, hits: Hits) -> tuple[Tensor, Tensor]:
        """Shares [B, P, V] of the voxels and totals [B, T] of a few showers."""
        owners = np.repeat(np.arange(len(hits)), np.diff(hits.offsets))
        shares = torch.from_numpy(self.grid.cut(hits.voxels, owners, hits.shares, len(hits)).astype(np.float32))
        return shares, self._totals(hits.incident, *_sums(shares))

    def _totals(self, incident: NDArray, visible: NDArray, counts: NDArray[np.int64]) -> Tensor:
        """What the network knows of the showers, [B, T], each of unit size."""
        columns = _known(self.config, incident, visible, counts)
        return torch.from_numpy(((columns - self.fitted.totals_mean) / self.fitted.totals_std).astype(np.float32))

    @property
    def _per_pass(self) -> int:
        return max(1, min(MOST_PER_PASS, PLACES_PER_PASS // (self.grid.patches * self.grid.volume)))

    def _require_whole(self, codes: Codes) -> None:
        wrong = np.flatnonzero(np.diff(codes.offsets) != self.tokens_per_object)
        if len(wrong):
            found = int(np.diff(codes.offsets)[wrong[0]])
            raise DataError(
                f"shower {wrong[0]} has {found} codes, but tokenizer '{self.name}' gives every shower "
                f"{self.tokens_per_object}: decode whole showers"
            )

    def _with_threshold(self, hits: Hits) -> PatchesTokenizer:
        """The same tokenizer with a threshold that keeps the mean number of hits of these showers."""
        if self.scale.gives_chances or self.totals.hits:
            return self
        scores, found = [], 0
        for part in hits.parts(self._per_pass):
            shares, totals = self._dense(part)
            found += int(_sums(shares)[1].sum())
            scores.append(self._voxels(self._codes(part)[:, self.leading :], totals)[0].ravel())
        every = np.concatenate(scores)
        fitted = replace(self.fitted, threshold=float(np.quantile(every, 1 - found / len(every))))
        return PatchesTokenizer(self.inputs, self.config, self.voxels.unit, fitted, self.net)

    def code_vectors(self) -> dict[str, NDArray[np.float32]]:
        books = self.net.quantise.codebooks.detach().numpy()
        return {f"code{q}": books[q] for q in range(self.config.quantisers)}

    def state(self) -> tuple[dict[str, object], dict[str, NDArray]]:
        settings = {"config": self.config.model_dump(mode="json"), "unit": self.voxels.unit}
        arrays = {f"net.{k}": v.numpy() for k, v in self.net.state_dict().items()}
        return settings | {"fitted": asdict(self.fitted)}, arrays

    @classmethod
    def from_state(cls, inputs: Inputs, settings: dict, arrays: dict[str, NDArray]) -> PatchesTokenizer:
        config, unit = PatchesConfig(**settings["config"]), settings["unit"]
        net = _net(Voxels.of(inputs, config, unit), config)
        net.load_state_dict({k.removeprefix("net."): torch.from_numpy(v) for k, v in arrays.items()})
        return PatchesTokenizer(inputs, config, unit, Fitted(**settings["fitted"]), net)


def _net(voxels: Voxels, config: PatchesConfig) -> PatchNet:
    scale, volume = SCALES[config.loss], voxels.grid.volume
    totals = _known(config, np.ones(1), np.ones(1), np.ones(1, np.int64)).shape[1]
    return PatchNet(
        voxels.grid, voxels.periodic, volume * scale.channels_in, volume * scale.channels_out, totals, config
    )


def _totals_code(grid: PatchGrid, config: PatchesConfig, top: float) -> TotalsCode:
    """Places of the totals, rounded up to whole tokens."""
    k = config.quantisers
    hits = -(-places_for(grid.voxels, config.codebook) // k) * k if config.count_hits else 0
    return TotalsCode(config.codebook, config.energy_tokens * k, hits, top, grid.voxels)


def _known(config: PatchesConfig, incident: NDArray, visible: NDArray, counts: NDArray[np.int64]) -> NDArray:
    """Quantities of the showers that are known on both sides, [B, T]."""
    columns = [np.log(incident)]
    if config.energy_tokens:
        columns.append(visible)
    if config.count_hits:
        columns.append(np.log1p(counts))
    return np.stack(columns, axis=1)


def _sums(shares: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Visible shares [B] and numbers of hits [B] of dense patches [B, P, V]."""
    return shares.sum(dim=(1, 2), dtype=torch.float64).numpy(), (shares > 0).sum(dim=(1, 2)).numpy()


def _statistics(grid: PatchGrid, config: PatchesConfig, hits: Hits) -> Fitted:
    counts = np.diff(hits.offsets)
    visible = np.bincount(np.repeat(np.arange(len(hits)), counts), hits.shares, len(hits))
    scale = fit_scale(config.loss, hits.shares, len(hits.shares) / (len(hits) * grid.voxels))
    known = _known(config, hits.incident, visible, counts)
    return Fitted(
        centre=scale.centre,
        width=scale.width,
        guess=scale.guess,
        top=ROOM * float(visible.max()),
        totals_mean=tuple(known.mean(axis=0).tolist()),
        totals_std=tuple(known.std(axis=0).clip(1e-6).tolist()),
    )
