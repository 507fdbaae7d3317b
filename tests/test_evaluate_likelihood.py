"""Calibration of likelihoods: models that are the truth, and models that are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.evaluate.likelihood_calibration import bits_per_token, likelihood_test, rank_calibration
from foundation.evaluate.metrics import Floats


def log_density(values: Floats, width: float) -> Floats:
    """Of ten Gaussian numbers per object under a model of this width."""
    return (-0.5 * (values / width) ** 2 - np.log(width * np.sqrt(2 * np.pi))).sum(1)


def samples(width: float, n: int = 1000, seed: int = 0) -> tuple[Floats, Floats]:
    """Log-likelihoods under a model of this width: of truth of width 1, and of what the model generates."""
    rng = np.random.default_rng(seed)
    return log_density(rng.normal(size=(n, 10)), width), log_density(width * rng.normal(size=(n, 10)), width)


def test_models_further_from_the_truth_are_ranked_below() -> None:
    right, near, far = (likelihood_test(*samples(width)) for width in (1.0, 1.1, 1.4))
    for one, other in ((right, near), (near, far)):
        assert one.ks.value < other.ks.value and one.w1.value < other.w1.value and one.p_value > other.p_value
    assert right.p_value > 0.01 and abs(right.gap.value) < 4 * right.gap.error and far.gap.value < -4 * far.gap.error
    narrow = likelihood_test(*samples(0.8))
    assert narrow.gap.value > 4 * narrow.gap.error, "a model that is too sure finds its own objects likelier"


def test_ks_is_that_of_scipy_with_a_seeded_error() -> None:
    from scipy.stats import ks_2samp

    a, b = samples(1.2, 200)
    found = likelihood_test(a, b, seed=3)
    assert found.ks.value == ks_2samp(a, b).statistic and found == likelihood_test(a, b, seed=3)
    assert 0.01 < found.ks.error < 0.1


def test_ranks_are_uniform_where_the_model_is_right() -> None:
    found = rank_calibration(*samples(1.0, 4000))
    assert found.shares.sum() == pytest.approx(1.0)
    assert (np.abs(found.shares - 0.05) < 5 * found.errors).all()
    for level, inside in found.coverage.items():
        assert inside.value == pytest.approx(level, abs=4 * inside.error)
    wrong = rank_calibration(*samples(1.4, 4000)).coverage[0.9]
    assert abs(wrong.value - 0.9) > 4 * wrong.error


def test_the_error_of_coverage_has_both_samples_in_it() -> None:
    found = [rank_calibration(*samples(1.0, 100, seed)).coverage[0.6827] for seed in range(200)]
    assert np.std([f.value for f in found]) == pytest.approx(np.mean([f.error for f in found]), rel=0.2)


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 100))
def test_ranks_do_not_change_under_a_common_shift_and_ties_count_half(shift: float, seed: int) -> None:
    a, b = (np.round(x, 1) for x in samples(1.0, 50, seed))
    expected = [((b < x).sum() + (b == x).sum() / 2) / len(b) for x in a]
    np.testing.assert_allclose(rank_calibration(a, b).ranks, expected, atol=1e-12)
    moved = rank_calibration(a * 4 + 4 * round(shift), b * 4 + 4 * round(shift))
    np.testing.assert_allclose(moved.ranks, rank_calibration(a * 4, b * 4).ranks, atol=0.021)


def test_groups_are_ranked_among_themselves() -> None:
    a, b = samples(1.0, 2000)
    groups = np.arange(2000) % 2
    apart = rank_calibration(a + 1000 * groups, b + 1000 * groups, truth_groups=groups, generated_groups=groups)
    assert (np.abs(apart.shares - 0.05) < 5 * apart.errors).all()
    with pytest.raises(DataError, match="0 generated objects in group 1, at least 20"):
        rank_calibration(a, b, truth_groups=groups, generated_groups=0 * groups)
    with pytest.raises(DataError, match="3 groups for 2000 objects"):
        rank_calibration(a, b, truth_groups=groups[:3], generated_groups=groups)


def test_bits_per_token_are_those_of_a_uniform_model() -> None:
    tokens = np.random.default_rng(0).integers(1, 30, 400)
    flat = bits_per_token(-tokens * np.log(256), tokens)
    assert flat.value == pytest.approx(8.0) and flat.error == pytest.approx(0.0, abs=1e-9)
    noise = np.random.default_rng(1).normal(0, 5, (300, 400))
    found = [bits_per_token(-tokens * np.log(256) + x, tokens) for x in noise]
    assert np.std([f.value for f in found]) == pytest.approx(np.mean([f.error for f in found]), rel=0.15)


def test_bad_input_is_a_sentence() -> None:
    good = np.zeros(30)
    with pytest.raises(DataError, match="of the generated objects: 1 of 30 are not finite"):
        likelihood_test(good, np.where(np.arange(30) == 3, -np.inf, 0.0))
    with pytest.raises(DataError, match="of the truth: .*at least 20"):
        rank_calibration(good[:5], good)
    with pytest.raises(DataError, match="do not fit"):
        bits_per_token(good, np.ones(29, np.int64))
    with pytest.raises(DataError, match="at least one token"):
        bits_per_token(good, np.zeros(30, np.int64))
