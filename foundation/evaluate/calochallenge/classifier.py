"""Classifier tests of the CaloChallenge: can a network tell generated showers from true ones?

As evaluate.py of github.com/CaloChallenge/homepage (commit 9b41df7) does it: the showers of both samples are split into
those to train on, those to select with and those to quote from; Adam on batches of 1000 for 50 epochs; the epoch with
the highest accuracy on the selection set counts (the first of equal ones), and an accuracy of 1 ends the training; the
scores are calibrated on the selection set; AUC and JSD are quoted on the rest, with truth as label 1. All in float64.

What the official code does otherwise, and what we do:
- It asserts samples of equal size. Here as many as the smaller one has are drawn of the larger one.
- It splits by fixed numbers, which leaves nothing to select with in a smaller file. Here they hold for files of exactly
  the challenge's size, and 60, 20 and 20 % for all others.
- Its low-level-normed mode forgets the threshold for the voxels, not for the layer energies they are divided by: one
  voxel below the threshold in an otherwise empty layer becomes 1e13. Here the threshold holds for both. The same for
  samples without voxels below the threshold.
- Its high-level features of the truth come from a cache beside the file, which survives a change of the threshold.
- It has no seed. Here everything random follows from one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation.console import Progress
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.calochallenge.calibration import Scores, calibrated_scores, scores_of
from foundation.evaluate.calochallenge.classifier_inputs import Kind, ShowerInputs, inputs_of
from foundation.evaluate.calochallenge.networks import ShowerResNet, plain_network
from foundation.evaluate.calochallenge.settings import Settings

Indices = NDArray[np.int64]

MINIMUM = 50
"""Showers of each sample below which no result is quoted."""
TRUTH, GENERATED = 1, 0


@dataclass(frozen=True)
class Mode:
    """How a classifier is trained; `hidden` is the width of the plain network."""

    name: str
    epochs: int
    batch: int
    learning_rate: float
    hidden: int
    dtype: torch.dtype


OFFICIAL = Mode("official", 50, 1000, 2e-4, 2048, torch.float64)
FAST = Mode("fast", 20, 128, 1e-3, 256, torch.float32)
"""A smaller network, trained for less: quick to say that samples differ, and not the number of the challenge."""


@dataclass(frozen=True)
class ClassifierTest:
    """Result of one classifier test.

    calibrated:   the scores to quote; as_trained: those before calibration
    train, select, test: showers of each sample in each part
    best_epoch:   the epoch that was chosen, from 1; epochs: how many were trained
    """

    kind: Kind
    mode: str
    calibrated: Scores
    as_trained: Scores
    train: int
    select: int
    test: int
    best_epoch: int
    epochs: int
    seconds: float


def classifier_test(
    truth: PointClouds,
    generated: PointClouds,
    settings: Settings,
    kind: Kind = "high",
    mode: Mode = OFFICIAL,
    seed: int = 0,
    device: str = "cpu",
) -> ClassifierTest:
    """Train a classifier of this kind (low, low_normed, high, resnet) and quote how well it tells the samples apart.

    The same seed gives the same numbers on one machine with one number of threads. Raises DataError where a sample has
    fewer than 50 showers, or where the inputs cannot be made.
    """
    started = time.monotonic()
    smaller = min(len(truth), len(generated))
    if smaller < MINIMUM:
        raise DataError(f"a classifier test needs {MINIMUM} showers of truth and of the generated; one has {smaller}")
    samples = _Samples(inputs_of(kind, truth, settings), inputs_of(kind, generated, settings), mode.dtype, device)
    rng = np.random.default_rng(seed)
    train, select, test = _split(rng, (len(generated), len(truth)), _sizes(settings, smaller))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(kind, samples.width, settings, mode).to(device, mode.dtype)
    best_epoch, epochs = _train(network, samples, train, select, mode, rng, kind)
    selection, scores = (_probabilities(network, samples, part, mode) for part in (select, test))
    labels = test[:, 0]
    calibrated = calibrated_scores(select[:, 0], selection, labels, scores)
    return ClassifierTest(
        kind, mode.name, calibrated, scores_of(labels, scores), len(train) // 2, len(select) // 2, len(test) // 2,
        best_epoch, epochs, time.monotonic() - started,
    )  # fmt: skip


class _Samples:
    """Both samples, addressed by label and position [n, 2]."""

    def __init__(self, truth: ShowerInputs, generated: ShowerInputs, dtype: torch.dtype, device: str) -> None:
        self.of_label = {GENERATED: generated, TRUTH: truth}
        self.width, self.dtype, self.device = truth.width, dtype, device

    def batch(self, members: Indices) -> tuple[Tensor, Tensor]:
        """Inputs [n, width] and labels [n, 1]."""
        rows = np.empty((len(members), self.width))
        for label, inputs in self.of_label.items():
            chosen = members[:, 0] == label
            rows[chosen] = inputs.rows(members[chosen, 1])
        labels = torch.from_numpy(members[:, :1]).to(self.device, self.dtype)
        return torch.from_numpy(rows).to(self.device, self.dtype), labels


def _sizes(settings: Settings, showers: int) -> tuple[int, int]:
    """Showers of each sample to train on and to select with; the others are for the test."""
    if settings.split is not None and sum(settings.split) == showers:
        return settings.split[0], settings.split[1]
    return int(showers * 0.6), int(showers * 0.2)


def _split(rng: np.random.Generator, available: tuple[int, int], sizes: tuple[int, int]) -> list[Indices]:
    """Members (label, position) of the three parts, the same number of both labels in each."""
    used = min(available)
    ends = np.cumsum(sizes)
    drawn = [np.split(rng.permutation(n)[:used], ends) for n in available]
    return [
        np.concatenate([np.stack([np.full(len(part), label), part], axis=1) for label, part in enumerate(parts)])
        for parts in zip(*drawn, strict=True)
    ]


def _network(kind: Kind, width: int, settings: Settings, mode: Mode) -> nn.Module:
    if kind != "resnet":
        return plain_network(width, mode.hidden)
    assert settings.geometry.regular_shape is not None  # inputs_of refuses the others
    return ShowerResNet(settings.geometry.regular_shape)


def _train(
    network: nn.Module,
    samples: _Samples,
    train: Indices,
    select: Indices,
    mode: Mode,
    rng: np.random.Generator,
    kind: Kind,
) -> tuple[int, int]:
    """Train, and leave the network with the weights of the best epoch; which one that is, and how many there were."""
    optimizer = torch.optim.Adam(network.parameters(), lr=mode.learning_rate)
    criterion = nn.BCEWithLogitsLoss()
    best, best_epoch, epoch, weights = -1.0, 0, 0, {}
    with Progress(f"classifier {kind} ({mode.name})", mode.epochs, "epochs") as progress:
        for epoch in range(1, mode.epochs + 1):
            network.train()
            for members in _batches(rng.permutation(train), mode.batch):
                if kind == "resnet" and len(members) == 1:
                    continue  # batch normalisation of one shower has no width
                inputs, labels = samples.batch(members)
                optimizer.zero_grad()
                criterion(network(inputs), labels).backward()
                optimizer.step()
            accuracy = float(np.mean((_probabilities(network, samples, select, mode) > 0.5) == (select[:, 0] == TRUTH)))
            if accuracy > best:
                best, best_epoch = accuracy, epoch
                weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
            progress.advance(note=f"accuracy {accuracy:.3f}")
            if accuracy == 1.0:
                break
    network.load_state_dict(weights)
    return best_epoch, epoch


@torch.no_grad()
def _probabilities(network: nn.Module, samples: _Samples, members: Indices, mode: Mode) -> NDArray[np.float64]:
    """Probability to be true of each member, float64 [n]."""
    network.eval()
    parts = [torch.sigmoid(network(samples.batch(batch)[0])).double() for batch in _batches(members, mode.batch)]
    return torch.cat(parts)[:, 0].cpu().numpy()


def _batches(members: Indices, size: int) -> Iterator[Indices]:
    return (members[start : start + size] for start in range(0, len(members), size))
