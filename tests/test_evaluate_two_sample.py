"""Classifier two-sample test: blind where there is nothing to see, and not where there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from foundation.errors import DataError
from foundation.evaluate.two_sample import (
    DEFINITIONS,
    FAST,
    _mann_whitney,
    two_sample_floor,
    two_sample_test,
)

from evaluate_samples import JET_CARD, SHOWER_CARD, toy_jets, toy_showers

QUICK = replace(FAST, epochs=3, objects=300)


@pytest.mark.parametrize("network", ["deep_sets", pytest.param("transformer", marks=pytest.mark.slow)])
def test_smeared_jets_are_found_and_truth_is_not(network: str) -> None:
    truth = toy_jets(300, 1)
    smeared = two_sample_test(JET_CARD, truth, toy_jets(400, 2, smear=2.0), network=network, mode=QUICK)
    same = two_sample_test(JET_CARD, truth, toy_jets(300, 3), network=network, mode=QUICK)
    assert smeared.auc.value > 0.75 and smeared.p_value < 1e-6 and smeared.z > 4
    assert abs(same.auc.value - 0.5) < 4 * same.auc.error and same.p_value > 1e-3
    assert smeared.accuracy.value > same.accuracy.value
    assert (same.n_train, same.n_test) == (360, 120)
    assert same.definition == DEFINITIONS[f"{network}.fast"] and 1 <= same.best_epoch <= same.epochs <= 3


def test_showers_and_repetition() -> None:
    truth, loud = toy_showers(300, 1), toy_showers(300, 2, scale=2.0)
    found, again = (two_sample_test(SHOWER_CARD, truth, loud, mode=QUICK) for _ in range(2))
    assert replace(found, seconds=0) == replace(again, seconds=0) and found.auc.value > 0.75
    floor = two_sample_floor(SHOWER_CARD, truth, mode=QUICK)
    assert abs(floor.auc.value - 0.5) < 4 * floor.auc.error


def test_a_condition_that_is_not_obeyed_is_seen_only_beside_it() -> None:
    truth, deaf = toy_showers(300, 1), toy_showers(300, 2)
    deaf = replace(deaf, conditions=deaf.conditions[np.random.default_rng(0).permutation(300)])
    blind = two_sample_test(SHOWER_CARD, truth, deaf, mode=QUICK)
    told = two_sample_test(SHOWER_CARD, truth, deaf, mode=replace(QUICK, epochs=8), conditions=("incident_energy",))
    assert abs(blind.auc.value - 0.5) < 4 * blind.auc.error and told.auc.value > 0.5 + 5 * told.auc.error


def test_samples_are_cut_to_the_mode() -> None:
    limited = replace(QUICK, epochs=1, objects=10_000, points=5_000)
    found = two_sample_test(JET_CARD, toy_jets(300, 1), toy_jets(300, 2), mode=limited)
    mean = len(toy_jets(300, 1).points) / 300
    assert found.n_train + found.n_test < 2 * 5_000 / mean


def test_the_p_value_is_that_of_mann_and_whitney() -> None:
    rng = np.random.default_rng(0)
    a, b = np.round(rng.normal(0.3, 1, 80), 1), np.round(rng.normal(0, 1, 60), 1)
    expected = mannwhitneyu(a, b, alternative="greater", method="asymptotic", use_continuity=False)
    assert _mann_whitney(a, b)[1] == pytest.approx(expected.pvalue, rel=1e-10)
    assert _mann_whitney(np.ones(5), np.ones(4)) == (0.0, 0.5)


def test_bad_input_is_a_sentence() -> None:
    jets = toy_jets(120, 1)
    with pytest.raises(DataError, match="no network 'transfomer' - did you mean 'transformer'"):
        two_sample_test(JET_CARD, jets, jets, network="transfomer")
    with pytest.raises(DataError, match="the generated sample has 20 objects, at least 100 are needed"):
        two_sample_test(JET_CARD, jets, toy_jets(20, 1))
    with pytest.raises(DataError, match="share none of the features"):
        two_sample_test(JET_CARD, toy_showers(120, 1), toy_showers(120, 1))
    broken = replace(jets, points=np.where(np.arange(len(jets.points))[:, None] == 5, np.nan, jets.points))
    with pytest.raises(DataError, match="NaN or infinite"):
        two_sample_test(JET_CARD, jets, broken, mode=QUICK)
    with pytest.raises(DataError, match="no condition 'jet_mass'"):
        two_sample_test(JET_CARD, jets, jets, conditions=("jet_mass",))
