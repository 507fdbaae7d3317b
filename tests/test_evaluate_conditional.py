"""Groups of a condition, scores in each, and how well a condition is obeyed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.conditional import Obedience, bins_of, classes_of, obedience, per_group
from foundation.evaluate.metrics import Floats, Measurement, wasserstein

from evaluate_samples import JET_CARD, toy_jets, toy_showers


def energy(clouds: PointClouds) -> Floats:
    return np.bincount(clouds.owners, clouds.feature("energy"), len(clouds))


def follow(truth: PointClouds, generated: PointClouds, values: Floats | None = None, **options: int) -> Obedience:
    made = energy(generated) if values is None else values
    return obedience(truth, generated, "incident_energy", energy(truth), made, **options)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(60, 300), bins=st.integers(1, 8))
def test_bins_hold_every_true_object_once(n: int, bins: int) -> None:
    truth, generated = toy_showers(n, 1), toy_showers(2 * n, 2)
    groups = bins_of(truth, generated, "incident_energy", bins=bins)
    assert len(groups) == bins or n <= 20
    assert np.array_equal(np.sort(np.concatenate([g.truth for g in groups])), np.arange(n))
    sizes = [len(g.truth) for g in groups]
    assert max(sizes) - min(sizes) <= 2
    made = generated.condition("incident_energy")
    for group in groups:
        assert (made[group.generated] >= np.float32(group.low) * (1 - 1e-6)).all()
        assert (made[group.generated] <= np.float32(group.high) * (1 + 1e-6)).all()


def test_few_values_are_groups_of_their_own_and_edges_can_be_given() -> None:
    showers = toy_showers(200, 1)
    steps = replace(showers, conditions=np.float32([[10], [20], [50], [10]])[np.arange(200) % 4])
    groups = bins_of(steps, steps, "incident_energy")
    assert [g.name for g in groups] == ["incident_energy 10 GeV", "incident_energy 20 GeV", "incident_energy 50 GeV"]
    assert [len(g.generated) for g in groups] == [100, 50, 50]
    given = bins_of(steps, steps, "incident_energy", edges=(10, 20, 50))
    assert [len(g.truth) for g in given] == [100, 100] and given[0].name == "incident_energy 10-20 GeV"


def test_classes_are_named_by_the_card() -> None:
    jets = toy_jets(100, 1)
    groups = classes_of(jets, toy_jets(60, 2), JET_CARD.classes)
    assert [g.name for g in groups] == list(JET_CARD.classes[:2]) and [len(g.generated) for g in groups] == [30, 30]
    with pytest.raises(DataError, match="no object of the truth has a class"):
        classes_of(replace(jets, labels=np.full(100, -1)), jets, JET_CARD.classes)


def test_any_score_per_group_and_a_failure_stays_in_its_group() -> None:
    truth, generated = toy_showers(400, 1), toy_showers(400, 2, scale=1.1)
    a, b = energy(truth), energy(generated)

    def measure(in_truth: np.ndarray, in_generated: np.ndarray) -> Measurement:
        if in_truth[0] == groups[1].truth[0]:
            raise DataError("something is wrong")
        return wasserstein(a[in_truth], b[in_generated])

    groups = bins_of(truth, generated, "incident_energy", bins=4)
    few = replace(groups[2], generated=groups[2].generated[:7])
    found = per_group([groups[0], groups[1], few, groups[3]], measure)
    assert set(found.values) == {groups[0].name, groups[3].name}
    assert found.problems[groups[1].name].endswith("something is wrong")
    assert "100 true and 7 generated objects, at least 50 of each are needed" in found.problems[few.name]


def test_who_obeys_less_is_ranked_below() -> None:
    truth = toy_showers(1500, 1)
    good, loud = follow(truth, toy_showers(1500, 2)), follow(truth, toy_showers(1500, 2, scale=1.15))
    deaf = toy_showers(1500, 2)
    deaf_values = energy(deaf)[np.random.default_rng(0).permutation(1500)]
    disobedient = follow(truth, deaf, deaf_values)
    assert good.deviation.value < loud.deviation.value < disobedient.deviation.value
    assert all(abs(b.difference.value) < 4 * b.difference.error for b in good.bins)
    assert all(b.difference.value == pytest.approx(0.15, abs=4 * b.difference.error) for b in loud.bins)
    assert abs(disobedient.generated_correlation.value) < 0.1 < 0.9 < good.generated_correlation.value
    assert good.truth_correlation.value == pytest.approx(good.generated_correlation.value, abs=0.02)
    assert disobedient.width.value > 1 > good.width.value
    assert good.deviation == follow(truth, toy_showers(1500, 2)).deviation and good.relative


def test_quantities_around_zero_deviate_in_units_of_the_width() -> None:
    truth = toy_showers(600, 1)
    rng = np.random.default_rng(0)
    found = obedience(truth, truth, "incident_energy", rng.normal(0, 2, 600), rng.normal(1, 2, 600), bins=2)
    assert not found.relative and found.deviation.value == pytest.approx(0.5, abs=0.15)


def test_bad_input_is_a_sentence() -> None:
    truth, jets = toy_showers(100, 1), toy_jets(100, 1)
    with pytest.raises(DataError, match="the generated sample has no condition 'incident_energy'.*store it"):
        bins_of(truth, jets, "incident_energy")
    with pytest.raises(DataError, match="the truth has no condition 'incident_energ' - did you mean"):
        bins_of(truth, truth, "incident_energ")
    broken = replace(truth, conditions=np.where(np.arange(100)[:, None] < 3, np.nan, truth.conditions))
    with pytest.raises(DataError, match="'incident_energy' of 3 objects of the truth is not finite"):
        bins_of(broken, truth, "incident_energy")
    with pytest.raises(DataError, match="the generated sample is empty"):
        bins_of(truth, truth.select(np.arange(0)), "incident_energy")
    with pytest.raises(DataError, match="99 values for 100 objects of the generated sample"):
        follow(truth, truth, energy(truth)[:99])
    with pytest.raises(DataError, match="obedience to 'incident_energy': .*at least 50 of each"):
        follow(truth, truth, bins=10)
