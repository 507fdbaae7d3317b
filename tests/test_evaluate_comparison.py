"""Generated beside truth beside the floor: ranking, grouping, and what happens to bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foundation.errors import DataError
from foundation.evaluate.comparison import MINIMUM, Row, compare

from evaluate_samples import JET_CARD, SHOWER_CARD, toy_jets, toy_showers


def row(rows: tuple[Row, ...], group: str, observable: str) -> Row:
    return next(r for r in rows if (r.group, r.observable) == (group, observable))


def test_equal_distribution_is_at_the_floor_and_smeared_is_above() -> None:
    truth = toy_jets(1200, 1)
    same = compare(truth, toy_jets(1200, 2), JET_CARD).rows
    smeared = compare(truth, toy_jets(1200, 2, smear=1.25), JET_CARD).rows
    for group in ("qg", "top"):
        for name in ("mass", "pt"):
            good, bad = row(same, group, name), row(smeared, group, name)
            assert good.ratio < 2.0 and abs(good.relative_difference) < 0.1
            assert bad.ratio > 2.5 and bad.w1 > bad.floor + 3 * bad.w1_error
            assert bad.separation > bad.separation_floor
    assert row(smeared, "qg", "pt").relative_difference == pytest.approx(0.25, abs=0.06)
    assert row(same, "top", "mass").n == 300


def test_truth_compared_with_itself_has_no_difference_of_medians() -> None:
    truth = toy_jets(200, 1)
    for r in compare(truth, truth, JET_CARD).rows:
        assert r.relative_difference == 0.0


def test_showers_are_inclusive_and_per_incident_energy() -> None:
    result = compare(toy_showers(800, 1), toy_showers(800, 2, scale=1.2), SHOWER_CARD)
    names = [group.name for group in result.groups]
    assert names[0] == "all" and len(names) == 5
    rising = [row(result.rows, name, "energy_sum") for name in names[1:]]
    assert np.all(np.diff([r.truth_median for r in rising]) > 0)
    assert np.all(np.diff([r.generated_median for r in rising]) > 0)
    assert row(result.rows, "all", "response").relative_difference == pytest.approx(0.2, abs=0.05)
    assert row(result.rows, "all", "response").ratio > 3
    assert row(result.rows, "all", "hit_energy").ratio > 3 > row(result.rows, "all", "layer_profile").ratio
    assert np.isnan(row(result.rows, "all", "cog_x").relative_difference)
    assert sum(len(g.truth_index) for g in result.groups[1:]) == 800
    assert result.notes == ()


def test_same_seed_same_rows() -> None:
    truth, generated = toy_jets(200, 1), toy_jets(200, 2)
    assert compare(truth, generated, JET_CARD, seed=3).rows == compare(truth, generated, JET_CARD, seed=3).rows
    assert compare(truth, generated, JET_CARD, seed=3).rows != compare(truth, generated, JET_CARD, seed=4).rows


def test_empty_and_too_small_samples_are_sentences() -> None:
    truth, few = toy_jets(200, 1), toy_jets(10, 2)
    with pytest.raises(DataError, match=r"pythia_jets: the generated sample is empty; give at least 40"):
        compare(truth, truth.select(slice(0, 0)), JET_CARD)
    with pytest.raises(DataError, match=r"100 truth and 5 generated objects; at least 40 and 20 are needed"):
        compare(truth, few, JET_CARD)


def test_a_missing_class_does_not_lose_the_other() -> None:
    generated = toy_jets(200, 2)
    result = compare(toy_jets(200, 1), generated.select(generated.labels == 0), JET_CARD)
    assert [g.name for g in result.groups] == ["qg"]
    assert f"at least {2 * MINIMUM} and {MINIMUM}" in row(result.rows, "top", "mass").problem
    assert any(note.startswith("top: not compared") for note in result.notes)


def test_an_observable_without_values_does_not_lose_the_others() -> None:
    generated = toy_jets(200, 2)
    pairs = replace(  # two constituents each: mass and pT exist, tau does not
        generated,
        points=generated.points[np.concatenate([np.array([a, a + 1]) for a in generated.offsets[:-1]])],
        offsets=np.arange(201) * 2,
    )
    result = compare(toy_jets(200, 1), pairs, JET_CARD)
    broken = row(result.rows, "top", "tau32")
    assert "only 0 of 100 values are finite" in broken.problem and broken.generated_missing == 100
    assert row(result.rows, "top", "mass").problem == "" and np.isfinite(row(result.rows, "top", "mass").w1)


def test_unknown_labels_and_other_energies_are_noted() -> None:
    generated = toy_jets(200, 2)
    generated.labels[:4] = -1
    assert "4 generated objects have no known class" in " ".join(compare(toy_jets(200, 1), generated, JET_CARD).notes)
    showers = toy_showers(300, 1)
    low = showers.select(showers.condition("incident_energy") < 20)
    assert "incident energies differ" in " ".join(compare(showers, low, SHOWER_CARD).notes)
