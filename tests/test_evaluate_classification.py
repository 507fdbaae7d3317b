"""Scores of classifiers of many classes against scikit-learn's, closed forms and each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.evaluate.classification import Multiclass, multiclass_scores
from foundation.evaluate.learning_curves import learning_curve
from foundation.evaluate.metrics import classification_scores
from foundation.evaluate.reliability import reliability

FOLDER = Path(__file__).parent / "data" / "any_domain"
NUMBERS = json.loads((FOLDER / "references.json").read_text())


def recorded(case: str) -> tuple[NDArray[np.int64], NDArray[np.float64], dict[str, Any]]:
    with np.load(FOLDER / "samples.npz") as arrays:
        return arrays[f"{case}_labels"], arrays[f"{case}_probabilities"], NUMBERS[case]


def classifier(n: int, seed: int, strength: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels and calibrated probabilities of three classes, from Gaussians `strength` apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = strength * rng.normal(size=(n, 3)) + strength**2 * (np.arange(3) == labels[:, None])
    p = np.exp(logits - logits.max(1, keepdims=True))
    return labels, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("case", ["smooth", "ties"])
def test_scores_agree_with_scikit_learn(case: str) -> None:
    labels, p, expected = recorded(case)
    found = multiclass_scores(labels, p, resamplings=2)
    assert found.auc_ovr is not None and found.auc_ovo is not None
    assert found.accuracy.value == pytest.approx(expected["accuracy"], rel=1e-12)
    assert found.auc_ovr.value == pytest.approx(expected["auc_ovr"], rel=1e-12)
    assert found.auc_ovo.value == pytest.approx(expected["auc_ovo"], rel=1e-12)
    assert [m.value for m in found.auc_rest.values()] == pytest.approx(expected["auc_rest"], rel=1e-12)
    assert found.confusion.tolist() == expected["confusion"]
    background, signal = (np.array(x) for x in expected["roc_of_class_2"])
    for efficiency in (0.3, 0.5):
        above = np.searchsorted(signal, efficiency)
        kept = np.interp(efficiency, signal[above - 1 : above + 1], background[above - 1 : above + 1])
        assert found.rejection["2", efficiency].value == pytest.approx(1 / kept, rel=1e-12)


@pytest.mark.parametrize("case", ["smooth", "ties"])
def test_calibration_agrees_with_scikit_learn(case: str) -> None:
    labels, p, expected = recorded(case)
    found = reliability(labels, p, resamplings=2)
    there = found.objects > 0
    np.testing.assert_allclose(found.accuracy[there], expected["reliability_accuracy"], rtol=1e-12)
    np.testing.assert_allclose(found.confidence[there], expected["reliability_confidence"], rtol=1e-12)
    assert found.brier.value == pytest.approx(expected["brier"], rel=1e-12)
    assert found.nll.value == pytest.approx(expected["nll"], rel=1e-12)
    weighted = found.objects[there] @ np.abs(found.accuracy - found.confidence)[there] / len(labels)
    assert found.ece.value == pytest.approx(weighted, rel=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), digits=st.integers(1, 6))
def test_two_classes_agree_with_the_binary_scores(seed: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, 2, 60), [0, 1])
    p = np.round(rng.random(62), digits)
    binary, found = classification_scores(labels, p), multiclass_scores(labels, p, resamplings=0)
    assert found.auc_rest["1"].value == pytest.approx(binary.auc.value)
    assert found.auc_pair["0", "1"].value == pytest.approx(binary.auc.value)
    ours, theirs = found.rejection["1", 0.5], binary.rejection_50
    assert ours.value == pytest.approx(theirs.value) and ours.limit == theirs.limit


def test_bootstrap_errors_are_those_of_the_closed_form_and_seeded() -> None:
    labels, p = classifier(2000, 1, 1.0)
    found, again = (multiclass_scores(labels, p, seed=4, resamplings=150) for _ in range(2))
    assert found.auc_rest == again.auc_rest
    for k, name in enumerate(found.classes):
        binary = classification_scores((labels == k).astype(np.int64), p[:, k])
        assert found.auc_rest[name].error == pytest.approx(binary.auc.error, rel=0.3)
        assert found.rejection[name, 0.5].error == pytest.approx(binary.rejection_50.error, rel=0.5)


def test_a_background_class_is_rejected_by_the_ratio_of_two_probabilities() -> None:
    labels, p = classifier(3000, 2, 1.0)
    found = multiclass_scores(labels, p, classes=("qcd", "top", "higgs"), background="qcd", resamplings=5)
    assert {name for name, _ in found.rejection_background} == {"top", "higgs"}
    rows = labels != 2
    binary = classification_scores((labels[rows] == 1).astype(np.int64), p[rows, 1] / (p[rows, 0] + p[rows, 1]))
    assert found.rejection_background["top", 0.5].value == pytest.approx(binary.rejection_50.value)


def _ranked(better: Multiclass, worse: Multiclass) -> bool:
    assert better.auc_ovr and worse.auc_ovr and better.auc_ovo and worse.auc_ovo
    return (
        better.accuracy.value > worse.accuracy.value
        and better.auc_ovr.value > worse.auc_ovr.value
        and better.auc_ovo.value > worse.auc_ovo.value
        and all(better.rejection[key].value > worse.rejection[key].value for key in better.rejection)
        and np.trace(better.confusion) > np.trace(worse.confusion)
    )


def test_a_classifier_that_sees_less_is_ranked_below() -> None:
    labels, p = classifier(3000, 3, 1.2)
    noise = np.exp(np.random.default_rng(0).normal(0, 1.5, p.shape))
    blurred = p * noise / (p * noise).sum(1, keepdims=True)
    assert _ranked(multiclass_scores(labels, p, resamplings=2), multiclass_scores(labels, blurred, resamplings=2))
    honest, vain = reliability(labels, p), reliability(labels, blurred)
    assert honest.ece.value < honest.ece_floor.value + 4 * honest.ece_floor.error
    assert vain.ece.value > vain.ece_floor.value + 4 * vain.ece_floor.error
    assert honest.brier.value < vain.brier.value and honest.nll.value < vain.nll.value
    assert honest.ece.value < vain.ece.value and honest.mce < vain.mce


def test_a_class_without_objects_is_a_problem_and_loses_nothing_else() -> None:
    labels, p = classifier(300, 4, 1.0)
    found = multiclass_scores(labels[labels != 2], p[labels != 2], classes=("a", "b", "c"), resamplings=2)
    assert found.auc_ovr is None and found.auc_ovo is None and set(found.auc_rest) == {"a", "b"}
    assert found.problems == (
        "class 'c' has no objects in the sample: no AUC and no rejection of it, and no mean over classes",
    )
    alone = multiclass_scores(np.zeros(5, np.int64), p[:5], resamplings=2)
    assert not alone.auc_rest and len(alone.problems) == 2 and alone.accuracy.value >= 0


@pytest.mark.parametrize(
    ("labels", "p", "message"),
    [
        ([0, 1], [[0.5, 0.5]], "one line per object"),
        ([], np.zeros((0, 2)), "the sample is empty"),
        ([0, 1], [[0.5, 0.9], [0.1, 0.9]], "add up to 1; apply a softmax"),
        ([0, 1], [[np.nan, 0.5], [0.1, 0.9]], "apply a softmax"),
        ([0, -1], [[0.5, 0.5], [0.1, 0.9]], "labels must be whole numbers from 0 to 1.*without a class"),
    ],
)
def test_bad_input_is_a_sentence(labels: list[int], p: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        multiclass_scores(np.array(labels, np.int64), np.array(p, np.float64))
    with pytest.raises(DataError, match=message):
        reliability(np.array(labels, np.int64), np.array(p, np.float64))


def test_names_must_fit() -> None:
    labels, p = classifier(30, 1, 1.0)
    with pytest.raises(DataError, match="2 names were given for 3 classes"):
        multiclass_scores(labels, p, classes=("a", "b"))
    with pytest.raises(DataError, match="'d' is none of a, b, c"):
        multiclass_scores(labels, p, classes=("a", "b", "c"), background="d")


def test_a_learning_curve_has_means_and_intervals_over_seeds() -> None:
    points = learning_curve([(1000, 0, 0.9), (100, 0, 0.5), (100, 1, 0.7), (100, 2, 0.6)])
    assert [p.n_train for p in points] == [100, 1000] and [p.seeds for p in points] == [3, 1]
    assert points[0].mean == pytest.approx(0.6) and points[0].std == pytest.approx(0.1)
    # Student's t with 2 degrees of freedom: 68.27 % within 1.3213
    assert points[0].high - points[0].mean == pytest.approx(1.3213 * 0.1 / np.sqrt(3), rel=1e-3)
    assert (points[0].lowest, points[0].highest) == (0.5, 0.7)
    assert points[1].mean == 0.9 and np.isnan([points[1].std, points[1].low, points[1].high]).all()
    with pytest.raises(DataError, match="two scores of seed 0 at 100"):
        learning_curve([(100, 0, 0.5), (100, 0, 0.6)])
    with pytest.raises(DataError, match="of seed 3 at 100 training objects is not finite"):
        learning_curve([(100, 3, float("nan"))])
    with pytest.raises(DataError, match="no score was given"):
        learning_curve([])
