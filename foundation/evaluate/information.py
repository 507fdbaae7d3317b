"""Loss of information: what networks can learn from decoded point clouds, beside what they learn from the original.

The field's test of a tokenizer (OmniJet-alpha, arXiv:2403.05618): networks are trained on original and on
decoded objects, each tested on objects of its own kind. Jets: the class; showers: the incident energy. The gap to the
original is what encoding and decoding lost to that network. All runs of a network start from the same weights, see the
same objects in the same batches, and are tested on the same objects, so that the gap is that of pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean
from foundation.evaluate.metrics import Floats, Measurement, classification_scores
from foundation.evaluate.set_inputs import PointSets, SetInputs

if TYPE_CHECKING:
    from torch import Tensor

ORIGINAL = "original"
KINDS = ("deep_sets", "transformer")
ENERGY = "incident_energy"
MINIMUM = 50
"""Objects to train on, and to test on, below which no result is quoted."""
RESAMPLINGS = 100
NO_LOSS = Measurement(0.0, 0.0)


@dataclass(frozen=True)
class InformationLoss:
    """What one network reaches on the point clouds of one tokenizer; `tokenizer` is "original" for the truth.

    score:   accuracy of the classes; or the 68 % half width of predicted / true incident energy - 1
    gap:     how much worse than on the original, in the unit of the score, positive is worse; 0 for the original
    auc:     of classes: mean of the areas under the ROC curves of each class against the rest; its error is that of one
             curve on average, an upper limit
    bias:    of energies: median of predicted / true incident energy - 1
    seconds: that training and prediction took, all seeds together

    Errors are bootstrap errors over the test objects (paired, for the gap). With several seeds the scores are means
    over them, and the error has the spread between the seeds in it; with one seed it does not know of that.
    """

    tokenizer: str
    network: str
    task: Literal["classification", "regression"]
    score: Measurement
    gap: Measurement
    auc: Measurement | None
    seconds: float
    bias: Measurement | None = None


def information_loss(
    card: DatasetCard,
    train: PointClouds,
    test: PointClouds,
    decoded: Mapping[str, tuple[PointClouds, PointClouds]],
    *,
    networks: Sequence[str] = KINDS,
    epochs: int = 5,
    seeds: int = 1,
    on_progress: Callable[[str], None] = lambda line: None,
) -> list[InformationLoss]:
    """Train and test each network on the original and on what each tokenizer makes of it: the original's results first.

    decoded:     tokenizer -> `train` and `test` after encoding and decoding, the same objects in the same order
    networks:    of "deep_sets" and "transformer"
    on_progress: called with a line after each training

    Networks see the features that all samples have. Raises DataError where there is nothing to learn, where samples do
    not belong together, or where they are too small.
    """
    _require_sense(networks, epochs, seeds)
    samples = {ORIGINAL: (train, test)} | dict(decoded)
    if ORIGINAL in decoded:
        raise DataError(f"no tokenizer may be called '{ORIGINAL}' in a test of information loss: that is the truth")
    for name, pair in decoded.items():
        _require_same_objects(name, pair, (train, test))
    question = _question(card, train, test)
    inputs = SetInputs.fit(card, _common_features(card, samples), train)

    reference: dict[str, _Answers] = {}
    found = []
    for name, pair in samples.items():
        sets = inputs.of(pair[0]), inputs.of(pair[1])
        for network in networks:
            answers = _answers(question, network, sets, train.counts, epochs, seeds)
            loss = _loss(name, network, question, answers, reference.setdefault(network, answers))
            on_progress(_line(loss))
            found.append(loss)
    return found


@dataclass(frozen=True)
class _Question:
    """What networks are asked: the targets of the training and of the test objects, and how many outputs it takes."""

    task: Literal["classification", "regression"]
    train: NDArray
    test: NDArray
    outputs: int

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each object [b]: cross entropy, or Huber's of the standardised logarithm of the energy."""
        import torch.nn.functional as F

        if self.task == "classification":
            return F.cross_entropy(outputs, targets, reduction="none")
        return F.huber_loss(outputs[:, 0], targets, reduction="none")


@dataclass(frozen=True)
class _Answers:
    """What one network says of the test objects, for each seed.

    per_object: [seeds, B]; 1 where the class is right, else 0; or predicted / true energy - 1
    """

    per_object: Floats
    auc: Measurement | None
    seconds: float


def _answers(
    question: _Question, network: str, sets: tuple[PointSets, PointSets], counts: NDArray[np.int64], epochs: int, n: int
) -> _Answers:
    """Train and test with n seeds. counts: points of the original objects, which make the batches."""
    from foundation.evaluate.set_networks import Fitting, fit, predict

    started = time.monotonic()
    fitting = Fitting(epochs=epochs)
    mean, std = (float(question.train.mean()), float(question.train.std())) if question.task == "regression" else (0, 1)
    targets = (
        question.train if question.task == "classification" else ((question.train - mean) / std).astype(np.float32)
    )
    per_object, aucs = [], []
    for seed in range(n):
        batches = fitting.batches(counts, seed)
        net = fit(network, sets[0], targets, question.outputs, question.loss, batches, seed, fitting)
        outputs = predict(net, sets[1]).astype(np.float64)
        if question.task == "classification":
            per_object.append((outputs.argmax(1) == question.test).astype(np.float64))
            aucs.append(macro_auc(question.test, _probabilities(outputs)))
        else:
            per_object.append(np.expm1(outputs[:, 0] * std + mean - question.test))
    auc = _mean_over_seeds(aucs) if aucs else None
    return _Answers(np.stack(per_object), auc, time.monotonic() - started)


def _loss(name: str, network: str, question: _Question, found: _Answers, original: _Answers) -> InformationLoss:
    """Scores of one training, beside that on the original."""
    statistic, sign = (_mean, -1.0) if question.task == "classification" else (_half_width, 1.0)
    a, b = found.per_object, original.per_object
    score = _measured(lambda rows: statistic(a[:, rows]), a.shape[1])
    difference = _measured(lambda rows: sign * (statistic(a[:, rows]) - statistic(b[:, rows])), a.shape[1])
    gap = NO_LOSS if name == ORIGINAL else difference
    bias = _measured(lambda rows: np.median(a[:, rows], axis=1), a.shape[1]) if question.task == "regression" else None
    return InformationLoss(name, network, question.task, score, gap, found.auc, found.seconds, bias)


def _measured(of_rows: Callable[[NDArray[np.int64]], Floats], objects: int) -> Measurement:
    """Mean over seeds of a statistic of the test objects' rows, [seeds], with its error over objects and seeds."""
    rng = np.random.default_rng(0)  # the same resamplings for all, so that errors compare
    values = of_rows(np.arange(objects))
    drawn = [of_rows(rng.integers(0, objects, objects)).mean() for _ in range(RESAMPLINGS)]
    return Measurement(float(values.mean()), float(np.hypot(np.std(drawn, ddof=1), _seed_error(values))))


def _mean_over_seeds(values: Sequence[Measurement]) -> Measurement:
    of_objects = float(np.mean([m.error for m in values]))
    each = np.array([m.value for m in values])
    return Measurement(float(each.mean()), float(np.hypot(of_objects, _seed_error(each))))


def _seed_error(values: Floats) -> float:
    """Standard error of the mean over seeds; 0 of a single one, where nothing is known of it."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def macro_auc(labels: NDArray[np.int64], probabilities: Floats) -> Measurement:
    """Mean over the classes 0 .. K - 1 of the AUC of each against the rest. labels [B], probabilities [B, K]."""
    curves = [classification_scores((labels == k).astype(np.int64), p).auc for k, p in enumerate(probabilities.T)]
    # the curves share their objects: errors do not average out
    return Measurement(float(np.mean([c.value for c in curves])), float(np.mean([c.error for c in curves])))


def _probabilities(outputs: Floats) -> Floats:
    weights = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _mean(values: Floats) -> Floats:
    return values.mean(axis=1)


def _half_width(values: Floats) -> Floats:
    """Half of the interval between the 16 % and 84 % quantiles, per seed."""
    low, high = np.quantile(values, [0.16, 0.84], axis=1)
    return (high - low) / 2


def _line(loss: InformationLoss) -> str:
    what = "accuracy" if loss.task == "classification" else "energy resolution"
    line = f"{loss.network} on {loss.tokenizer}: {what} {100 * loss.score.value:.2f} %"
    if loss.tokenizer != ORIGINAL:
        line += f", {100 * loss.gap.value:+.2f} +- {100 * loss.gap.error:.2f} points worse than on the original"
    return f"{line} ({loss.seconds:.0f} s)"


def _question(card: DatasetCard, train: PointClouds, test: PointClouds) -> _Question:
    """What there is to learn: the incident energy of showers, else the class."""
    for what, clouds in (("training", train), ("test", test)):
        if len(clouds) < MINIMUM:
            raise DataError(
                f"information loss on '{card.name}': {len(clouds)} {what} objects are too few, give at least {MINIMUM}"
            )
    known = [c.name for c in card.conditions if c.name in train.condition_names and c.name in test.condition_names]
    energy = ENERGY if ENERGY in known else next(iter(known), None)
    classes = np.unique(train.labels)
    if energy is not None and (card.domain == "shower" or len(classes) < 2):
        return _regression(energy, train, test)
    if len(classes) < 2:
        raise DataError(
            f"information loss on '{card.name}': all objects are of one class and none of the card's conditions is "
            "known, so there is nothing to learn: give jets of several classes, or showers with their incident energy"
        )
    for what, clouds in (("training", train), ("test", test)):
        if (clouds.labels < 0).any():
            raise DataError(
                f"information loss on '{card.name}': {int((clouds.labels < 0).sum())} {what} objects have no class"
            )
    if not np.array_equal(np.unique(test.labels), classes):
        raise DataError(
            f"information loss on '{card.name}': the training sample has classes {_names(card, classes)}, the test "
            f"sample {_names(card, np.unique(test.labels))}: they must be the same"
        )
    targets = [np.searchsorted(classes, clouds.labels).astype(np.int64) for clouds in (train, test)]
    return _Question("classification", targets[0], targets[1], len(classes))


def _regression(condition: str, train: PointClouds, test: PointClouds) -> _Question:
    values = [clouds.condition(condition).astype(np.float64) for clouds in (train, test)]
    if min(v.min() for v in values) <= 0:
        raise DataError(f"information loss: '{condition}' must be above 0, for its logarithm is what networks learn")
    if np.log(values[0]).std() < 1e-6:
        raise DataError(f"information loss: all training objects have the same '{condition}': nothing to learn")
    return _Question("regression", np.log(values[0]), np.log(values[1]), 1)


def _names(card: DatasetCard, labels: NDArray[np.int64]) -> str:
    return ", ".join(card.classes[k] if 0 <= k < len(card.classes) else str(k) for k in labels.tolist())


def _common_features(card: DatasetCard, samples: Mapping[str, tuple[PointClouds, PointClouds]]) -> list[str]:
    """Names of the card's features that all samples have, in the card's order."""
    given = {f"{name} ({part})": c for name, pair in samples.items() for part, c in zip(_PARTS, pair, strict=True)}
    common = [f.name for f in card.features if all(f.name in clouds.features for clouds in given.values())]
    if not common:
        known = "; ".join(f"{name}: {', '.join(clouds.features)}" for name, clouds in given.items())
        raise DataError(f"information loss on '{card.name}': the samples have no feature in common ({known})")
    units = {f.name: f.unit for f in card.features}
    for name, clouds in given.items():
        for feature in common:
            unit = clouds.units[clouds.features.index(feature)]
            if unit != units[feature]:
                raise DataError(
                    f"{name}: feature '{feature}' is in {unit}, card '{card.name}' has it in {units[feature]}"
                )
    return common


_PARTS = ("training", "test")


def _require_same_objects(
    name: str, decoded: tuple[PointClouds, PointClouds], original: tuple[PointClouds, PointClouds]
) -> None:
    for part, a, b in zip(_PARTS, decoded, original, strict=True):
        if len(a) != len(b):
            raise DataError(
                f"information loss of '{name}': {len(a)} decoded {part} objects, but {len(b)} original ones; every "
                "object must come back, in the same order"
            )
        if not np.array_equal(a.labels, b.labels):
            raise DataError(
                f"information loss of '{name}': decoded {part} objects have other classes than the original ones; they "
                "must come in the same order"
            )


def _require_sense(networks: Sequence[str], epochs: int, seeds: int) -> None:
    for network in networks:
        if network not in KINDS:
            raise DataError(f"information loss: there is no network '{network}'{did_you_mean(network, KINDS)}")
    if not networks or epochs < 1 or seeds < 1:
        raise DataError("information loss: give at least one network, one epoch and one seed")
