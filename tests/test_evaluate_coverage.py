"""Energy mover's distance, coverage and MMD against energyflow's and jetnet's, closed forms and axioms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.evaluate.coverage import _lower_bounds, coverage_and_mmd, energy_movers_distance, nearest_jets

from recorded_jets import SEED, jets_of, recorded_jets, recorded_numbers


def jet(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.column_stack([rng.gamma(1.0, 1.0, n) + 1e-3, rng.normal(0, 0.3, (n, 2))])


def test_coverage_and_mmd_agree_with_jetnet() -> None:
    found = coverage_and_mmd(recorded_jets("truth"), recorded_jets("generated"), seed=SEED, size=30, batches=2)
    assert found.coverage.value == pytest.approx(recorded_numbers()["cov_mmd"][0], abs=1e-12)
    assert found.mmd.value == pytest.approx(recorded_numbers()["cov_mmd"][1], rel=1e-8)


def test_distance_by_hand() -> None:
    # 1 of pT moves by 0.5, and 0.3 has nowhere to go
    a = np.array([[1.0, 0.0, 0.0], [0.3, 0.0, 0.2]])
    b = np.array([[1.0, 0.3, 0.4]])
    assert energy_movers_distance(b, a[:1]) == pytest.approx(0.5)
    # the one at 0.2 is nearer, so it moves first
    assert energy_movers_distance(a, b) == pytest.approx(0.7 * 0.5 + 0.3 * np.hypot(0.3, 0.2) + 0.3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_distance_is_a_metric_and_its_bound_is_below(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (jet(rng, int(n)) for n in rng.integers(1, 15, 3))
    ab, ba, bc, ac = (energy_movers_distance(*pair) for pair in ((a, b), (b, a), (b, c), (a, c)))
    assert ab == pytest.approx(ba, rel=1e-9) and energy_movers_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert ac <= ab + bc + 1e-9
    bound = _lower_bounds([a], [b])[0, 0]
    assert bound <= ab + 1e-9


def test_nearest_jets_are_those_of_all_distances() -> None:
    rng = np.random.default_rng(1)
    first, second = ([jet(rng, int(n)) for n in rng.integers(1, 12, k)] for k in (9, 7))
    second[3] = first[2]
    distances = np.array([[energy_movers_distance(a, b) for b in second] for a in first])
    found = nearest_jets(first, second)
    assert found.of_first.tolist() == distances.argmin(1).tolist()
    np.testing.assert_allclose(found.distance_of_second, distances.min(0), atol=1e-12)
    assert found.solved < distances.size


def test_bad_jets_are_a_sentence() -> None:
    good = recorded_jets("truth")
    broken, empty = good.points.copy(), np.append(good.counts[:-1], 0)
    broken[0, 0] = -1
    for other, message in (
        (good.select(slice(19)), "second sample has 19 jets, at least 20"),
        (jets_of(broken, good.counts), "not finite or have pT < 0"),
        (jets_of(good.points[: empty.sum()], empty), "1 jets of the second sample have no constituents"),
    ):
        with pytest.raises(DataError, match=message):
            coverage_and_mmd(good, other)
