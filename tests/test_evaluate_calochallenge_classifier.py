"""Classifier tests of the CaloChallenge: inputs, networks and scores as in the official code, and what they find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.evaluate.calochallenge.calibration import FLOOR, Isotonic, calibrated_scores, scores_of
from foundation.evaluate.calochallenge.classifier import FAST, OFFICIAL, Mode, classifier_test
from foundation.evaluate.calochallenge.classifier_inputs import inputs_of
from foundation.evaluate.calochallenge.networks import ShowerResNet, plain_network
from foundation.evaluate.calochallenge.settings import settings_of

from calochallenge_samples import FOLDER, card_of, read, showers

RECORDED = np.load(FOLDER / "official.npz")


@pytest.mark.parametrize("name", ["1_photons", "1_pions"])
@pytest.mark.parametrize("kind", ["low", "low_normed"])
def test_inputs_agree_with_the_official_code(name: str, kind: str) -> None:
    expected = RECORDED[f"{name}_low_{int(kind == 'low_normed')}"]
    inputs = inputs_of(kind, read(name, "truth"), settings_of(card_of(name)))  # type: ignore[arg-type]
    assert inputs.width == expected.shape[1]
    np.testing.assert_allclose(inputs.rows(np.arange(len(expected))), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("case", ["smooth", "ties", "sure"])
def test_scores_agree_with_the_official_code(case: str) -> None:
    labels = {part: RECORDED[f"scores_{case}_{part}_labels"].astype(int) for part in ("select", "test")}
    logits = {part: RECORDED[f"scores_{case}_{part}_logits"] for part in ("select", "test")}
    scores = {part: torch.sigmoid(torch.from_numpy(x)).numpy() for part, x in logits.items()}
    found = calibrated_scores(labels["select"], scores["select"], labels["test"], scores["test"])
    expected = RECORDED[f"scores_{case}_calibrated"]
    assert (found.accuracy.value, found.auc.value, found.jsd.value) == pytest.approx(tuple(expected), abs=1e-9)
    plain, official = scores_of(labels["test"], scores["test"]), RECORDED[f"scores_{case}_plain"]
    assert (plain.accuracy.value, plain.auc.value) == pytest.approx(tuple(official[:2]), abs=1e-9)
    if case != "sure":  # the official cross entropy of logits has no limit, that of probabilities has
        assert plain.jsd.value == pytest.approx(official[2], abs=1e-9)


def test_the_residual_network_is_the_official_one() -> None:
    network = ShowerResNet((45, 16, 9)).double()
    assert sum(p.numel() for p in network.parameters()) == int(RECORDED["resnet_parameters"])
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, 0.1, tuple(parameter.shape))))
        images = torch.from_numpy(np.random.default_rng(4).exponential(1.0, (5, 1 + 6480)))
        np.testing.assert_allclose(network.train()(images).numpy(), RECORDED["resnet_train"], rtol=1e-8)
        np.testing.assert_allclose(network.eval()(images).numpy(), RECORDED["resnet_eval"], rtol=1e-8)


def test_the_plain_network_and_its_training_are_the_official_ones() -> None:
    network = plain_network(10, OFFICIAL.hidden)
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert shapes == [(2048, 10), (2048,), (2048, 2048), (2048,), (2048, 2048), (2048,), (1, 2048), (1,)]
    assert (OFFICIAL.epochs, OFFICIAL.batch, OFFICIAL.learning_rate) == (50, 1000, 2e-4)
    assert OFFICIAL.dtype is torch.float64


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_isotonic_calibration_rises_and_keeps_the_mean(points: list[tuple[float, int]]) -> None:
    scores, labels = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    fitted = Isotonic.fit(scores, labels)
    grid = fitted(np.linspace(-1, 2, 100))
    assert (np.diff(grid) >= 0).all()
    assert FLOOR <= grid.min()
    assert grid.max() <= 1 - FLOOR
    assert fitted(scores).mean() == pytest.approx(labels.mean(), abs=2e-6)


def test_a_classifier_sees_a_smear_and_nothing_in_truth() -> None:
    of = settings_of(card_of("1_photons"))
    truth = showers("1_photons", 1000, 1)
    small = Mode("small", 8, 64, 2e-3, 32, torch.float32)
    generated = (showers("1_photons", 1000, 2, smear) for smear in (1.0, 1.8))
    same, other = (classifier_test(truth, sample, of, "high", small) for sample in generated)
    assert abs(same.calibrated.auc.value - 0.5) < 4 * same.calibrated.auc.error
    assert other.calibrated.auc.value > 0.7
    assert other.calibrated.jsd.value > same.calibrated.jsd.value
    assert (other.train, other.select, other.test) == (600, 200, 200)
    assert 1 <= other.best_epoch <= other.epochs <= 8


@pytest.mark.parametrize("kind", ["low", "low_normed", "high"])
def test_the_same_seed_gives_the_same_number(kind: str) -> None:
    of = settings_of(card_of("1_photons"))
    truth, generated = showers("1_photons", 120, 1), showers("1_photons", 90, 2, 1.5)
    quick = replace(FAST, epochs=2, hidden=16)
    first, again, other = (classifier_test(truth, generated, of, kind, quick, seed) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert first.calibrated == again.calibrated
    assert first.as_trained != other.as_trained
    assert first.train + first.select + first.test == 90  # as many of each as the smaller sample has


def test_the_residual_network_trains_on_showers() -> None:
    of = settings_of(card_of("2"))
    samples = [read("2", s) for s in ("truth", "generated")]
    truth, generated = (type(s).concatenate([s] * 4) for s in samples)
    found = classifier_test(truth, generated, of, "resnet", Mode("tiny", 1, 20, 1e-3, 16, torch.float32))
    assert 0 <= found.calibrated.auc.value <= 1


def test_bad_input_is_refused_in_a_sentence() -> None:
    clouds, of = read("1_photons", "truth"), settings_of(card_of("1_photons"))
    with pytest.raises(DataError, match="needs 50 showers"):
        classifier_test(clouds, clouds.select(slice(10)), of)
    with pytest.raises(DataError, match="no classifier 'hihg' - did you mean 'high'"):
        classifier_test(clouds, clouds, of, "hihg")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="make no image"):
        classifier_test(clouds, clouds, of, "resnet")
    with pytest.raises(DataError, match="no scores"):
        Isotonic.fit(np.zeros(0), np.zeros(0, int))
