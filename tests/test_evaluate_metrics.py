"""Distances and classifier scores against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.evaluate.metrics import (
    binned_wasserstein,
    classification_scores,
    jensen_shannon,
    mass_peak,
    separation_power,
    wasserstein,
)

RNG = np.random.default_rng(0)
EDGES = np.linspace(-4.0, 4.0, 41)


@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-100, 100), n=st.integers(2, 50))
def test_wasserstein_of_a_shift_is_the_shift(shift: float, n: int) -> None:
    sample = np.random.default_rng(n).normal(size=n)
    assert wasserstein(sample, sample + shift, resamplings=0).value == pytest.approx(abs(shift), abs=1e-9)


def test_distances_are_zero_for_equal_and_symmetric() -> None:
    a, b = RNG.normal(size=500), RNG.normal(0.5, 1.2, size=400)
    for distance in (
        lambda x, y: wasserstein(x, y).value,
        lambda x, y: separation_power(x, y, EDGES).value,
        lambda x, y: jensen_shannon(x, y, EDGES).value,
    ):
        assert distance(a, a) == pytest.approx(0.0, abs=1e-12)
        assert distance(a, b) == pytest.approx(distance(b, a)) and distance(a, b) > 0


def test_disjoint_histograms_reach_the_maximum_also_outside_the_bins() -> None:
    a, b = np.full(50, -1.0), np.full(70, 1.0)
    assert separation_power(a, b, EDGES).value == pytest.approx(1.0)
    assert jensen_shannon(a, b, EDGES).value == pytest.approx(np.log(2))
    assert separation_power(a - 100, b + 100, EDGES).value == pytest.approx(1.0)


def test_separation_power_by_hand() -> None:
    # unit histograms (3/4, 1/4) and (1/4, 3/4): 1/2 * 2 * (1/2)^2 / 1
    a, b = np.array([0.5, 0.5, 0.5, 1.5]), np.array([0.5, 1.5, 1.5, 1.5])
    assert separation_power(a, b, np.array([0.0, 1.0, 2.0])).value == pytest.approx(0.25)


def test_binned_wasserstein_of_moved_profiles() -> None:
    a = np.zeros((10, 6))
    b = np.zeros((12, 6))
    a[:, 1], b[:, 4] = 2.0, 5.0  # the shape counts, not the height
    assert binned_wasserstein(a, b, np.arange(7.0) * 10).value == pytest.approx(30.0)


def test_bootstrap_error_is_seeded_and_of_the_right_size() -> None:
    # far apart, W1 is the difference of the means: its error is sqrt(1/n + 1/n)
    a, b = RNG.normal(size=400), RNG.normal(50, size=400)
    first, again, other = (wasserstein(a, b, seed=s, resamplings=200) for s in (1, 1, 2))
    assert first == again and first.error != other.error
    assert first.error == pytest.approx(np.sqrt(2 / 400), rel=0.25)


def test_nan_is_left_out_and_too_little_is_an_error() -> None:
    assert wasserstein(np.array([0.0, 1.0, np.nan]), np.array([0.0, 1.0])).value == 0.0
    with pytest.raises(DataError, match="empty"):
        wasserstein(np.zeros(0), np.ones(3))
    with pytest.raises(DataError, match="only 0 of 3 values are finite, at least 2"):
        wasserstein(np.full(3, np.nan), np.ones(3))


def test_mass_peak_is_found_on_a_falling_background() -> None:
    mass = np.concatenate([RNG.normal(172, 12, 1500), 60 + RNG.exponential(40, 1500)])
    peak = mass_peak(mass)
    assert peak.value == pytest.approx(172, abs=4) and 0 < peak.error < 5
    assert np.isnan(mass_peak(60 + RNG.exponential(40, 3000)).value)  # highest at the edge: no peak


def test_perfect_useless_and_inverted_classifiers() -> None:
    labels = np.arange(1000) % 2
    perfect = classification_scores(labels, labels * 0.8 + 0.1)
    assert (perfect.auc.value, perfect.accuracy.value) == (1.0, 1.0)
    assert perfect.rejection_30.limit and perfect.rejection_30.value == 500
    useless = classification_scores(labels, np.full(1000, 0.3))
    assert useless.auc.value == pytest.approx(0.5)
    assert useless.rejection_50.value == pytest.approx(2.0) and not useless.rejection_50.limit
    assert classification_scores(labels, 0.9 - labels * 0.8).auc.value == 0.0


def test_scores_by_hand() -> None:
    # of the pairs (signal, background), (0.4, 0.6) is wrong: AUC = 3 / 4; below, (0.9, 0.9) is a tie, too
    scores = classification_scores(np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.6, 0.1]))
    assert scores.auc.value == pytest.approx(0.75)
    assert scores.accuracy.value == pytest.approx(0.5)
    assert scores.accuracy.error == pytest.approx(0.25)
    tied = classification_scores(np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.9, 0.1]))
    assert tied.auc.value == pytest.approx(0.625)


def test_auc_and_errors_of_shifted_gaussians() -> None:
    n = 4000
    labels = np.arange(2 * n) % 2
    raw = RNG.normal(size=2 * n) + labels
    scores = classification_scores(labels, 1 / (1 + np.exp(-raw)))
    assert abs(scores.auc.value - 0.7602) < 4 * scores.auc.error  # Phi(1 / sqrt 2)
    assert scores.auc.error == pytest.approx(0.0053, rel=0.1)
    # eps_B at eps_S = 0.5: 1 - Phi(1) = 0.1587
    assert abs(scores.rejection_50.value - 1 / 0.15866) < 4 * scores.rejection_50.error


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [0.1, 0.2], "need both classes, got 0 signal and 2 background"),
        ([0, 1], [0.1, 2.0], "probabilities between 0 and 1"),
        ([0, 1], [0.1, np.nan], "probabilities between 0 and 1"),
        ([0, 2], [0.1, 0.2], "labels must be 0 or 1"),
        ([0, 1, 1], [0.1, 0.2], "equally long"),
        ([], [], "need both classes"),
    ],
)
def test_bad_classifier_input_is_a_sentence(labels: list[int], scores: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        classification_scores(np.array(labels), np.array(scores))
