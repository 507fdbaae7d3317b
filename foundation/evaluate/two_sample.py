"""Classifier two-sample test on point clouds: can a network on sets tell generated objects from true ones?

Lopez-Paz and Oquab, arXiv:1610.06545, for any domain: a network on sets (set_networks.py) is trained on one part of
both samples, stopped by a second, and asked about a third. Truth has label 1. If the samples are of one distribution,
the AUC on the third part is 0.5 within its error, whatever the network: its floor is known, and `two_sample_floor`
measures it. An AUC near 0.5 says that this network found nothing in that many objects, not that there is nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean
from foundation.evaluate.metrics import Floats, Measurement, classification_scores
from foundation.evaluate.set_inputs import PointSets, Scale, SetInputs

if TYPE_CHECKING:
    from torch import nn

Indices = NDArray[np.int64]

NETWORKS = ("deep_sets", "transformer")
MINIMUM = 100
"""Objects of each sample below which no result is quoted."""
SHARES = (0.6, 0.8)
"""Where training ends and testing begins, as shares of each sample."""
TRUTH, GENERATED = 1, 0


@dataclass(frozen=True)
class Mode:
    """How much a network gets to see; work is limited by objects, never by a clock, so that results repeat.

    objects, points: of each sample, at most
    epochs:   at most
    patience: epochs without a better validation loss after which training stops
    """

    name: str
    objects: int
    points: int
    epochs: int
    patience: int
    batch_points: int = 8192
    learning_rate: float = 2e-3


FULL = Mode("full", 100_000, 20_000_000, 50, 8)
FAST = Mode("fast", 5_000, 250_000, 12, 3)
"""Quick to say that samples differ; its AUC is lower than that of the full one, and has another name."""
MODES = {mode.name: mode for mode in (FULL, FAST)}

DEFINITIONS = {
    f"{network}.{mode}": f"classifier-two-sample-{network.replace('_', '-')}-{mode}/foundation-1"
    for network in NETWORKS
    for mode in MODES
} | {"p_value": "mann-whitney-p-value/one-sided-1"}
"""Name and version of the definition of each network's AUC, and of its p-value (docs/reference/metrics.md)."""


@dataclass(frozen=True)
class TwoSampleTest:
    """What a network reached on the test objects.

    auc:      error of Hanley and McNeil; 0.5 where nothing was found
    accuracy: at a probability of 0.5, of as many true as generated objects
    p_value:  of an AUC this high if the samples were of one distribution (Mann-Whitney, one-sided, ties counted);
              z: the same in standard deviations. Small p: the samples differ
    n_train, n_test: objects of both samples together
    epochs:   trained; best_epoch: whose weights were tested, counted from 1
    """

    network: str
    mode: str
    auc: Measurement
    accuracy: Measurement
    p_value: float
    z: float
    n_train: int
    n_test: int
    epochs: int
    best_epoch: int
    seconds: float

    @property
    def definition(self) -> str:
        """Name and version of the definition of the AUC."""
        return DEFINITIONS[f"{self.network}.{self.mode}"]


def two_sample_test(
    card: DatasetCard,
    truth: PointClouds,
    generated: PointClouds,
    *,
    network: str = "deep_sets",
    mode: Mode = FAST,
    conditions: Sequence[str] = (),
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda line: None,
) -> TwoSampleTest:
    """Train a network to tell the samples and test it on objects it has not seen.

    As many objects of either sample take part, drawn with `seed`: what the smaller one has, or what the mode allows.
    60, 20 and 20 % train, stop and test. Inputs are the card's features, scaled as the truth of the training part is.
    conditions: shown to the network beside every point, so that objects that do not fit their condition are found; only
    where both samples have them from one and the same distribution.
    """
    started = time.monotonic()
    _require_sense(network, truth, generated)
    rng = np.random.default_rng(seed)
    samples = _drawn(truth, generated, mode, rng)
    n = len(samples[0])
    ends = np.floor(np.array(SHARES) * n).astype(np.int64)
    parts = [[s.select(part) for s in samples] for part in (slice(0, ends[0]), slice(*ends), slice(ends[1], n))]
    inputs = SetInputs.fit(card, _common_features(card, *samples), parts[0][0])
    scales = [Scale.fit(parts[0][0].condition(name).astype(np.float64), "plain") for name in conditions]
    sets = [_side_by_side(pair, inputs, conditions, scales) for pair in parts]
    trained = _train(network, sets[0], sets[1], mode, seed, on_progress)
    scores, labels = _probabilities(trained.network, sets[2]), _labels(sets[2])
    found = classification_scores(labels, scores)
    z, p_value = _mann_whitney(scores[labels == TRUTH], scores[labels == GENERATED])
    return TwoSampleTest(
        network, mode.name, found.auc, found.accuracy, p_value, z, len(sets[0]), len(sets[2]),
        trained.epochs, trained.best_epoch, time.monotonic() - started,
    )  # fmt: skip


def two_sample_floor(
    card: DatasetCard,
    truth: PointClouds,
    *,
    network: str = "deep_sets",
    mode: Mode = FAST,
    conditions: Sequence[str] = (),
    seed: int = 0,
) -> TwoSampleTest:
    """The same test between random halves of the truth: an AUC of 0.5 within its error, or something is wrong."""
    order = np.random.default_rng([seed, 1]).permutation(len(truth))
    halves = [truth.select(np.sort(half)) for half in np.array_split(order, 2)]
    return two_sample_test(card, *halves, network=network, mode=mode, conditions=conditions, seed=seed)


def _require_sense(network: str, truth: PointClouds, generated: PointClouds) -> None:
    if network not in NETWORKS:
        raise DataError(f"two-sample test: there is no network '{network}'{did_you_mean(network, NETWORKS)}")
    for side, clouds in (("truth", truth), ("generated sample", generated)):
        if len(clouds) < MINIMUM:
            raise DataError(f"two-sample test: the {side} has {len(clouds)} objects, at least {MINIMUM} are needed")


def _common_features(card: DatasetCard, truth: PointClouds, generated: PointClouds) -> list[str]:
    common = [f.name for f in card.features if f.name in truth.features and f.name in generated.features]
    if not common:
        raise DataError(f"two-sample test: the samples share none of the features of dataset '{card.name}'")
    return common


def _drawn(truth: PointClouds, generated: PointClouds, mode: Mode, rng: np.random.Generator) -> list[PointClouds]:
    """Equally many objects of both in random order, within the mode's limits."""
    n = min(len(truth), len(generated), mode.objects)
    for clouds in (truth, generated):
        mean = len(clouds.points) / len(clouds)
        n = min(n, max(MINIMUM, int(mode.points / max(mean, 1.0))))
    return [clouds.select(rng.permutation(len(clouds))[:n]) for clouds in (truth, generated)]


def _side_by_side(
    pair: Sequence[PointClouds], inputs: SetInputs, conditions: Sequence[str], scales: Sequence[Scale]
) -> PointSets:
    """Inputs of the true objects, and after them those of as many generated ones."""
    tables = []
    for clouds in pair:
        columns = [
            scale.apply(clouds.condition(name).astype(np.float64))[clouds.owners, None].astype(np.float32)
            for name, scale in zip(conditions, scales, strict=True)
        ]
        tables.append(np.concatenate([inputs.of(clouds).values, *columns], axis=1))
    first, second = (clouds.offsets for clouds in pair)
    return PointSets(np.concatenate(tables), np.concatenate([first, second[1:] + first[-1]]))


def _labels(sets: PointSets) -> Indices:
    return np.repeat(np.array([TRUTH, GENERATED]), len(sets) // 2)


@dataclass(frozen=True)
class _Trained:
    network: nn.Module
    epochs: int
    best_epoch: int


def _train(
    kind: str, train: PointSets, validation: PointSets, mode: Mode, seed: int, on_progress: Callable[[str], None]
) -> _Trained:
    """AdamW with a rate that falls with the epochs; the weights of the epoch with the lowest validation loss."""
    import torch
    import torch.nn.functional as F

    from foundation.data.ragged import rows_of
    from foundation.evaluate.set_networks import NETWORKS as KINDS
    from foundation.evaluate.set_networks import Fitting

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = KINDS[kind](train.values.shape[1], 1, max(1.0, len(train.values) / len(train)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=mode.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, mode.epochs, mode.learning_rate / 20)
    fitting = Fitting(epochs=1, batch_points=mode.batch_points)
    labels, wanted = torch.from_numpy(_labels(train).astype(np.float32)), _labels(validation)
    best, best_epoch, best_weights = np.inf, 0, {k: v.clone() for k, v in network.state_dict().items()}
    for epoch in range(1, mode.epochs + 1):
        network.train()
        for batch in fitting.batches(np.diff(train.offsets), seed * 1000 + epoch):
            rows, offsets = rows_of(train.offsets, batch)
            outputs = network(torch.from_numpy(train.values[rows]), offsets)[:, 0]
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(outputs, labels[batch]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        schedule.step()
        loss = _cross_entropy(_probabilities(network, validation), wanted)
        on_progress(f"two-sample test, {kind}: epoch {epoch} of {mode.epochs}, validation loss {loss:.4f}")
        if loss < best:
            best, best_epoch = loss, epoch
            best_weights = {k: v.clone() for k, v in network.state_dict().items()}
        elif epoch - best_epoch >= mode.patience:
            break
    network.load_state_dict(best_weights)
    return _Trained(network, epoch, best_epoch)


def _probabilities(network: nn.Module, sets: PointSets) -> Floats:
    """Probability of truth of each object."""
    from foundation.evaluate.set_networks import predict

    outputs = predict(network.eval(), sets)[:, 0].astype(np.float64)
    if not np.isfinite(outputs).all():
        raise DataError("two-sample test: the training diverged; try another seed, or leave out extreme objects")
    return 1 / (1 + np.exp(-outputs.clip(-500, 500)))


def _cross_entropy(probabilities: Floats, labels: Indices) -> float:
    p = np.where(labels == TRUTH, probabilities, 1 - probabilities)
    return float(-np.log(np.maximum(p, 1e-12)).mean())


def _mann_whitney(truth: Floats, generated: Floats) -> tuple[float, float]:
    """z and one-sided p of "true objects have higher scores" (Mann and Whitney 1947), corrected for ties."""
    from scipy.stats import norm, rankdata

    n, m = len(truth), len(generated)
    ranks = rankdata(np.concatenate([truth, generated]))
    _, ties = np.unique(ranks, return_counts=True)
    u = ranks[:n].sum() - n * (n + 1) / 2
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties.astype(np.float64) ** 3 - ties).sum()) / (total * (total - 1)))
    z = (u - n * m / 2) / np.sqrt(variance) if variance > 0 else 0.0
    return float(z), float(norm.sf(z))
