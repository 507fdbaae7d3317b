"""Frechet and kernel physics distance against jetnet's and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.evaluate import frechet
from foundation.evaluate.frechet import fpd, frechet_distance, kpd

from recorded_jets import recorded_arrays, recorded_numbers

TRUTH, GENERATED = recorded_arrays()["efp_truth"], recorded_arrays()["efp_generated"]


def test_fpd_agrees_with_jetnet(monkeypatch: pytest.MonkeyPatch) -> None:
    # jetnet's root of a product of nearly singular matrices is good to 1e-8; ours, to 1e-15 (docs/reference/metrics.md)
    numbers = recorded_numbers()
    found = fpd(TRUTH, GENERATED)
    assert found.value == pytest.approx(numbers["fpd"][0], abs=3e-8)
    assert found.error == pytest.approx(numbers["fpd"][1], rel=1e-4)
    small = fpd(TRUTH, GENERATED, smallest=500, largest=2000, draws=5, seed=3)
    assert small.value == pytest.approx(numbers["fpd_small"][0], abs=3e-8)
    monkeypatch.setattr(frechet, "MINIMUM", 80)
    assert fpd(TRUTH[:80], TRUTH[80:]).value == pytest.approx(numbers["fpd_floor"][0], abs=1e-7)


@pytest.mark.parametrize(("draws", "name"), [("numpy", "kpd"), ("threads", "kpd_threads")])
def test_kpd_agrees_with_jetnet(draws: str, name: str) -> None:
    found = kpd(TRUTH, GENERATED, batches=4, size=1000, draws=draws)  # type: ignore[arg-type]
    assert [found.value, found.error] == pytest.approx(recorded_numbers()[name], rel=1e-8)


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(0, 3), widths=st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)), d=st.integers(1, 5))
def test_distance_of_gaussians_by_hand(shift: float, widths: tuple[float, float], d: int) -> None:
    turn = np.linalg.qr(np.random.default_rng(d).normal(size=(d, d)))[0]
    covariances = [turn @ np.diag(np.full(d, w**2)) @ turn.T for w in widths]
    found = frechet_distance(np.zeros(d), covariances[0], np.full(d, shift), covariances[1])
    assert found == pytest.approx(d * (shift**2 + (widths[0] - widths[1]) ** 2), abs=1e-10)


def test_many_features_and_long_samples_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sample, times = rng.normal(2.0, 1.0, (300, 9)), rng.poisson(1.0, (4, 300)).astype(np.float32)
    monkeypatch.setattr(frechet, "ROWS", 64)
    monkeypatch.setattr(frechet, "COLUMNS", 7)
    means, covariances = frechet._moments(sample, times)
    for k in range(4):
        drawn = np.repeat(sample, times[k].astype(int), axis=0)
        np.testing.assert_allclose(means[k], drawn.mean(0), rtol=1e-12)
        np.testing.assert_allclose(covariances[k], np.cov(drawn, rowvar=False), rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(frechet, "BLOCK", 37)
    kernel = (sample @ sample.T / 9 + 1) ** 4
    assert frechet._kernel_sum(sample, sample) == pytest.approx(kernel.sum())
    assert frechet._kernel_sum_within(sample) == pytest.approx(kernel.sum() - np.trace(kernel))


def test_same_seed_same_value() -> None:
    for metric in (
        lambda seed: fpd(TRUTH, GENERATED, seed=seed, draws=2),
        lambda seed: kpd(TRUTH, GENERATED, seed=seed, size=200),
    ):
        assert metric(1) == metric(1) != metric(2)


@pytest.mark.parametrize("metric", [fpd, kpd])
def test_bad_features_are_a_sentence(metric: object) -> None:
    assert callable(metric)
    good = np.random.default_rng(0).normal(size=(120, 3))
    broken = good.copy()
    broken[3, 1] = np.nan
    for pair, message in {
        "few": ((good, good[:99]), "second sample: 99 objects, at least 100 are needed"),
        "empty": ((good[:0], good), "first sample: 0 objects"),
        "nan": ((good, broken), "1 of 120 objects have a feature that is not finite"),
        "features": ((good, good[:, :2]), "3 and 2 features"),
        "flat": ((good[:, 0], good), "must be a table"),
    }.values():
        with pytest.raises(DataError, match=message):
            metric(*pair)
