"""Memorisation: the authors' C_T, samples that copy and samples that do not, exact copies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate import neighbours
from foundation.evaluate.memorisation import copying_of_cells, copying_z, exact_copies, memorisation
from foundation.evaluate.neighbours import cloud_vectors, nearest

from evaluate_samples import JET_CARD, SHOWER_CARD, toy_jets, toy_showers

FOLDER = Path(__file__).parent / "data" / "any_domain"


def test_the_copying_test_agrees_with_its_authors() -> None:
    expected = json.loads((FOLDER / "references.json").read_text())["copying"]
    with np.load(FOLDER / "samples.npz") as arrays:
        training, held, made = (arrays[name] for name in ("training", "held_out", "generated"))
    z = copying_z(nearest(held, training).distance, nearest(made, training).distance)
    assert z == pytest.approx(expected["z"], rel=1e-10)
    celled = [(x, (x[:, 0] > 0).astype(np.int64)) for x in (training, held, made)]
    for least in (0.02, 0.5):
        found = copying_of_cells(celled[0], celled[1], celled[2], least=least)
        assert found.value == pytest.approx(expected[f"c_t_{least}"], rel=1e-10)
    assert np.isnan(copying_of_cells(celled[0], celled[1], celled[2], least=0.9).value)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), m=st.integers(1, 40), d=st.integers(1, 4), places=st.integers(1, 500))
def test_neighbours_are_those_of_all_distances(n: int, m: int, d: int, places: int) -> None:
    rng = np.random.default_rng(n * m + d)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    found, expected = nearest(a, b, places=places), cdist(a, b)
    np.testing.assert_array_equal(found.index, expected.argmin(1))
    np.testing.assert_allclose(found.distance, expected.min(1), rtol=1e-12)


def test_independent_samples_are_half_closer_with_the_right_error() -> None:
    shares, errors, tests = [], [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        found = memorisation(*(rng.normal(size=(150, 2)) for _ in range(2)), rng.normal(size=(500, 2)))
        shares.append(found.closer_to_training.value)
        errors.append(found.closer_to_training.error)
        tests.append(found.copying.value / found.copying.error)
    assert np.mean(shares) == pytest.approx(0.5, abs=3 * np.mean(errors) / np.sqrt(80))
    assert np.std(shares) == pytest.approx(np.mean(errors), rel=0.25)
    assert abs(np.mean(tests)) < 0.6 and 0.6 < np.std(tests) < 1.5


def test_more_copies_are_ranked_higher_and_blur_is_no_copy() -> None:
    rng = np.random.default_rng(1)
    train, held, fresh = (rng.normal(size=(800, 4)) for _ in range(3))
    found = []
    for copied in (0, 200, 600):
        made = fresh.copy()
        made[:copied] = train[rng.integers(0, 800, copied)] + rng.normal(0, 0.05, (copied, 4))
        found.append(memorisation(train, held, made))
    shares = [f.closer_to_training.value for f in found]
    assert shares[0] < shares[1] < shares[2] and abs(found[0].z) < 3 and found[1].p_value < 1e-3
    significance = [f.copying.value / f.copying.error for f in found]
    assert significance[0] > -3 > significance[1] > significance[2]
    ratios = [f.distance_ratio for f in found]
    assert ratios[0].value == pytest.approx(1, abs=4 * ratios[0].error) and ratios[2].value < 0.3
    blurred = memorisation(train, held, fresh * 1.5)
    assert (
        blurred.distance_ratio.value > 1.2
        and blurred.copying.value > 4 * blurred.copying.error
        and blurred.p_value > 0.01
    )


def test_a_copy_has_no_distance_and_ties_count_half() -> None:
    rng = np.random.default_rng(0)
    train = 1e4 + rng.normal(size=(60, 3))
    assert nearest(train, train).distance.max() == 0.0
    assert memorisation(train, train, train).closer_to_training.value == 0.5
    assert memorisation(train, train + 1, train).closer_to_training.value == 1.0


@pytest.mark.parametrize(("card", "make"), [(JET_CARD, toy_jets), (SHOWER_CARD, toy_showers)])
def test_clouds_are_compared_whole(card, make) -> None:  # type: ignore[no-untyped-def]
    train, held, made = (make(150, seed) for seed in (1, 2, 3))
    copies = train.select(np.arange(75))
    copies = replace(copies, points=copies.points * np.float32(1.001))
    mixed = PointClouds.concatenate([copies, made.select(np.arange(75))])
    samples = {"training": train, "held-out": held, "fresh": made, "copied": mixed}
    vectors = cloud_vectors(card, samples, "training")
    fresh, copied = (
        memorisation(vectors["training"], vectors["held-out"], vectors[name], standardise=False)
        for name in ("fresh", "copied")
    )
    assert abs(fresh.z) < 3 and copied.closer_to_training.value > 0.65
    assert copied.copying.value < -4 * copied.copying.error and abs(fresh.copying.value) < 3 * fresh.copying.error


def test_vectors_do_not_depend_on_the_order_of_points_or_on_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    jets = toy_jets(30, 1)
    order = np.lexsort((np.random.default_rng(0).random(len(jets.points)), jets.owners))
    shuffled = replace(jets, points=jets.points[order])
    whole = cloud_vectors(JET_CARD, {"a": jets, "b": shuffled}, "a")
    np.testing.assert_allclose(whole["a"], whole["b"], atol=1e-6)
    monkeypatch.setattr(neighbours, "CHUNK_POINTS", 100)
    np.testing.assert_array_equal(cloud_vectors(JET_CARD, {"a": jets}, "a")["a"], whole["a"])
    with pytest.raises(DataError, match="1 objects of the a sample have no points"):
        cloud_vectors(JET_CARD, {"a": replace(jets, offsets=np.append(0, jets.offsets[[0, *range(2, 31)]])[:31])}, "a")


def test_the_sliced_distance_of_moved_clouds_is_the_shift() -> None:
    card = SHOWER_CARD
    showers = toy_showers(2, 1)
    twice = PointClouds.concatenate([showers.select([0]), showers.select([0])])
    same = cloud_vectors(card, {"a": twice}, "a")["a"]
    np.testing.assert_array_equal(same[0], same[1])


def test_exact_copies_are_counted_whatever_the_order_of_their_points() -> None:
    train, held, made = (toy_jets(60, seed) for seed in (1, 2, 3))
    copies = train.select(np.array([5, 7]))
    points = copies.points.copy()
    points[: copies.offsets[1]] = points[: copies.offsets[1]][::-1]
    generated = PointClouds.concatenate([made, replace(copies, points=points), made.select(np.array([0]))])
    found = exact_copies(train, held, generated)
    assert (found.of_training, found.repeats, found.generated) == (2, 1, 63)
    assert found.held_out_of_training == 0.0 and found.share.value == pytest.approx(2 / 63)


def test_bad_input_is_a_sentence() -> None:
    good, few = np.zeros((60, 2)), np.zeros((10, 2))
    with pytest.raises(DataError, match="the held-out sample has 10 objects, at least 50 are needed"):
        memorisation(good, few, good)
    with pytest.raises(DataError, match="60 objects of the generated sample have a feature that is not finite"):
        memorisation(good, good, good * np.nan)
    with pytest.raises(DataError, match="the same features"):
        memorisation(good, good, np.zeros((60, 3)))
    with pytest.raises(DataError, match="no feature in common"):
        exact_copies(toy_jets(3, 1), toy_jets(3, 1), toy_showers(3, 1))
    with pytest.raises(DataError, match="the generated sample is empty"):
        exact_copies(toy_jets(3, 1), toy_jets(3, 1), toy_jets(3, 1).select(np.arange(0)))
