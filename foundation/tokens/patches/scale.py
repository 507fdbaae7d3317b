"""How the patches tokenizer sees the energy of a voxel: what enters the network, what comes out, and the loss.

All work on the share x of the incident energy that a voxel shows: most are zero, the others span many decades.

    hits  x is a hit or not (binary cross-entropy), and log x of a hit is normally distributed (likelihood): the chance,
          the mean and the width are outputs of their own, so that neither the zeros nor the few large energies drown
          the rest, and decoded energies can spread as those of showers do
    bce   x itself, as a share of the largest one, by binary cross-entropy: the CERN generalised shower transformer
    mse   log(1 + x / x0) by squared error, x0 below the energies of most hits: the scale of Calo-VQ (arXiv:2405.06605)

Losses are given in units of the best constant guess, so that the weight of the commitment loss means the same in all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["hits", "bce", "mse"]


class Voxel(NamedTuple):
    """What the network says of voxels, [..., V] each.

    scores:  log odds that the voxel is hit, or a number that rises with its energy
    shares:  energy, if hit, as a share of the incident energy; its median, where it has a spread
    spreads: standard deviation of the logarithm of the share
    """

    scores: Tensor
    shares: Tensor
    spreads: Tensor


@dataclass(frozen=True)
class VoxelScale(ABC):
    """Scale of the shares of the voxels.

    centre, width: two numbers of the scale, fitted
    guess:         loss of the best constant guess
    """

    channels_in: ClassVar[int] = 1
    """Numbers per voxel that enter the network."""
    channels_out: ClassVar[int] = 1
    """Numbers per voxel that come out."""
    gives_chances: ClassVar[bool] = False
    """True where scores are log odds that a voxel is hit."""

    centre: float
    width: float
    guess: float

    @abstractmethod
    def enter(self, x: Tensor) -> Tensor:
        """Numbers [..., V * channels_in] that enter the network, from the shares x [..., V] of the voxels."""

    @abstractmethod
    def loss(self, out: Tensor, x: Tensor, real: Tensor) -> Tensor:
        """Loss of the outputs [B, P, V * channels_out] for shares x [B, P, V]; only the `real` [P, V] voxels count."""

    @abstractmethod
    def leave(self, out: Tensor) -> Voxel:
        """What the outputs [..., V * channels_out] say of the voxels."""


@dataclass(frozen=True)
class HitScale(VoxelScale):
    """centre, width: mean and standard deviation of the log share of a hit."""

    channels_in, channels_out = 2, 3
    gives_chances = True

    def _standard(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, (x.clamp_min(1e-30).log() - self.centre) / self.width, 0.0)

    def enter(self, x: Tensor) -> Tensor:
        return torch.cat([(x > 0).to(x.dtype), self._standard(x)], dim=-1)

    def loss(self, out: Tensor, x: Tensor, real: Tensor) -> Tensor:
        odds, mean, log_std = _three(out)
        hit = (x > 0).to(x.dtype)
        missed = F.binary_cross_entropy_with_logits(odds, hit, reduction="none")
        wrong = hit * (0.5 * ((mean - self._standard(x)) / log_std.exp()).square() + log_std)
        return ((missed + wrong) * real).sum() / (len(x) * real.sum() * self.guess)

    def leave(self, out: Tensor) -> Voxel:
        odds, mean, log_std = _three(out)
        return Voxel(odds, (mean * self.width + self.centre).exp(), log_std.exp() * self.width)


def _three(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log odds, mean and log width; the width within bounds, so that no hit can have an endless likelihood."""
    odds, mean, log_std = out.chunk(3, dim=-1)
    return odds, mean, 2.5 * ((log_std + 1.5) / 2.5).tanh() - 1.5


@dataclass(frozen=True)
class ShareScale(VoxelScale):
    """width: the largest share of a voxel in the fit."""

    def enter(self, x: Tensor) -> Tensor:
        return x / self.width

    def loss(self, out: Tensor, x: Tensor, real: Tensor) -> Tensor:
        target = (x / self.width).clamp_max(1.0)
        error = F.binary_cross_entropy_with_logits(out, target, reduction="none") * real
        return error.sum() / (len(x) * real.sum() * self.guess)

    def leave(self, out: Tensor) -> Voxel:
        return Voxel(out, out.sigmoid() * self.width, torch.zeros_like(out))


@dataclass(frozen=True)
class LogScale(VoxelScale):
    """centre: the share x0 below those of most hits; width: log(1 + x / x0) of the largest one."""

    def enter(self, x: Tensor) -> Tensor:
        return (x / self.centre).log1p() / self.width

    def loss(self, out: Tensor, x: Tensor, real: Tensor) -> Tensor:
        error = (out - self.enter(x)).square() * real
        return error.sum() / (len(x) * real.sum() * self.guess)

    def leave(self, out: Tensor) -> Voxel:
        return Voxel(out, (out * self.width).expm1().clamp_min(0.0) * self.centre, torch.zeros_like(out))


SCALES: dict[str, type[VoxelScale]] = {"hits": HitScale, "bce": ShareScale, "mse": LogScale}


def fit_scale(kind: Kind, shares: NDArray[np.float64], hit: float) -> VoxelScale:
    """The scale for hits with these shares [N], all above 0, when a share `hit` of all voxels is hit."""
    logs = np.log(shares)
    if kind == "hits":
        return HitScale(float(logs.mean()), float(max(logs.std(), 1e-3)), _entropy(hit) + 0.5 * hit)
    if kind == "bce":
        top = float(shares.max())
        return ShareScale(0.0, top, _entropy(hit * float(shares.mean()) / top))
    low = float(np.exp(np.quantile(logs, 0.1)))
    top = float(np.log1p(shares.max() / low))
    y = np.log1p(shares / low) / top
    return LogScale(low, top, float(hit * np.square(y).mean() - (hit * y.mean()) ** 2))


def _entropy(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return float(-p * np.log(p) - (1 - p) * np.log(1 - p))
