"""Networks on sets, and the test of information loss that they serve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import rows_of, to_offsets
from foundation.errors import DataError
from foundation.evaluate.information import InformationLoss, information_loss, macro_auc
from foundation.evaluate.set_inputs import PointSets, SetInputs
from foundation.evaluate.set_networks import NETWORKS, Fitting, fit, predict

from conftest import JETS, SHOWERS, toy_jets, toy_showers

BOTH = pytest.mark.parametrize("network", NETWORKS)
JETS_TRAIN, JETS_TEST = toy_jets(300, 11), toy_jets(200, 12)


def random_sets(counts: list[int], seed: int, width: int = 5) -> PointSets:
    rng = np.random.default_rng(seed)
    return PointSets(rng.normal(size=(sum(counts), width)).astype(np.float32), to_offsets(np.array(counts)))


def untrained(network: str, inputs: int = 5, outputs: int = 3) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return NETWORKS[network](inputs, outputs, 6.0).eval()


def smeared(clouds: PointClouds, width: float, seed: int) -> PointClouds:
    points = clouds.points.copy()
    points[:, 1:3] += np.random.default_rng(seed).normal(0, width, (len(points), 2))
    return replace(clouds, points=points)


def reordered(clouds: PointClouds, seed: int) -> PointClouds:
    rng = np.random.default_rng(seed)
    rows = np.lexsort([rng.random(len(clouds.points)), clouds.owners])
    return replace(clouds, points=clouds.points[rows])


def lost(decoded: dict[str, tuple[PointClouds, PointClouds]], **options: Any) -> list[InformationLoss]:
    return information_loss(JETS, JETS_TRAIN, JETS_TEST, decoded, **{"networks": ("deep_sets",), "epochs": 2} | options)


# The networks


@BOTH
@settings(max_examples=10, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_a_set_gets_the_same_answer_alone_as_among_longer_ones_and_in_any_order(
    network: str, counts: list[int], seed: int
) -> None:
    net, sets = untrained(network), random_sets(counts, seed)
    together = predict(net, sets)
    assert np.isfinite(together).all() and together.shape == (len(counts), 3)
    rng = np.random.default_rng(seed)
    for i in range(len(counts)):
        rows, offsets = rows_of(sets.offsets, np.array([i]))
        alone = predict(net, PointSets(sets.values[rng.permutation(rows)], offsets))
        np.testing.assert_allclose(alone[0], together[i], atol=2e-5)


@BOTH
def test_every_point_counts_and_so_does_their_number(network: str) -> None:
    net, sets = untrained(network), random_sets([30, 7], 1)
    changed = sets.values.copy()
    changed[-1] += 1.0
    moved = predict(net, replace(sets, values=changed)) - predict(net, sets)
    assert np.abs(moved[0]).max() < 1e-6 < 1e-4 < np.abs(moved[1]).max()
    twice = PointSets(np.concatenate([sets.values[:30]] * 2), np.array([0, 60]))
    assert np.abs(predict(net, twice)[0] - predict(net, sets)[0]).max() > 1e-3


def test_predictions_come_in_the_order_of_the_sets() -> None:
    net, sets = untrained("deep_sets"), random_sets([900] * 40 + [3, 2500, 40, 0, 700], 2)
    together = predict(net, sets)
    rows, offsets = rows_of(sets.offsets, np.arange(len(sets))[::-1])
    np.testing.assert_allclose(predict(net, PointSets(sets.values[rows], offsets)), together[::-1], atol=2e-5)


@BOTH
def test_training_is_the_same_for_a_seed_and_leaves_the_random_numbers_alone(network: str) -> None:
    sets = random_sets([3, 9, 1, 0, 14, 6] * 5, 4)
    targets = np.arange(30) % 2
    fitting = Fitting(epochs=2, batch_points=50)

    def trained(seed: int) -> np.ndarray:
        batches = fitting.batches(np.diff(sets.offsets), seed)
        return predict(fit(network, sets, targets, 2, cross_entropy, batches, seed, fitting), sets)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = trained(1)
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(trained(1), first) and not np.array_equal(trained(2), first)


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=80),
    epochs=st.integers(1, 3),
    points=st.integers(20, 500),
    seed=st.integers(0, 9),
)
def test_every_epoch_has_every_object_once_in_batches_of_a_bounded_size(
    counts: list[int], epochs: int, points: int, seed: int
) -> None:
    n = np.array(counts)
    batches = Fitting(epochs=epochs, batch_points=points, least_batches=2).batches(n, seed)
    seen = np.concatenate(batches).reshape(epochs, -1)
    assert np.array_equal(np.sort(seen, axis=1), np.tile(np.arange(len(n)), (epochs, 1)))
    assert all(len(batch) for batch in batches)
    assert max(n[batch].sum() for batch in batches) < points + n.max() + 1


# Their inputs


def test_inputs_are_scaled_as_the_reference_and_do_not_depend_on_the_order_of_the_points() -> None:
    inputs = SetInputs.fit(JETS, JETS.feature_names, JETS_TRAIN)
    values = inputs.of(JETS_TRAIN).values
    # log pT and its share, eta, phi, three charges, log energy and its share, distance to the axis
    assert values.shape == (len(JETS_TRAIN.points), 2 + 2 + 3 + 3)
    scaled = np.delete(values, [4, 5, 6], axis=1)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-2)
    assert set(np.unique(values[:, 4:7])) == {0.0, 1.0} and (values[:, 4:7].sum(1) == 1).all()
    shuffled = inputs.of(reordered(JETS_TRAIN, 1))
    clouds = [np.sort(np.split(v, JETS_TRAIN.offsets[1:-1])[7], axis=0) for v in (shuffled.values, values)]
    np.testing.assert_allclose(clouds[0], clouds[1], atol=1e-5)


def test_inputs_of_long_tails_keep_their_core_and_of_one_value_are_zero() -> None:
    rng = np.random.default_rng(0)
    points = JETS_TRAIN.points.copy()
    points[:, 1] = rng.standard_t(1.2, len(points))
    points[:, 2] = 0.25
    values = SetInputs.fit(JETS, ("eta_rel", "phi_rel"), JETS_TRAIN).of(replace(JETS_TRAIN, points=points)).values
    assert np.abs(values).max() <= 10
    tailed = SetInputs.fit(JETS, ("eta_rel", "phi_rel"), replace(JETS_TRAIN, points=points))
    values = tailed.of(replace(JETS_TRAIN, points=points)).values
    core = np.abs(points[:, 1]) < 1
    assert np.ptp(values[core, 0]) > 0.8  # the tails reach thousands of widths, the core still has room
    assert not values[:, 1].any()
    points[3, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        tailed.of(replace(JETS_TRAIN, points=points))


# Loss of information


@BOTH
def test_an_identical_copy_loses_nothing_and_a_smeared_one_much(network: str) -> None:
    decoded = {
        "identical": (JETS_TRAIN, JETS_TEST),
        "smeared": (smeared(JETS_TRAIN, 3.0, 1), smeared(JETS_TEST, 3.0, 2)),
    }
    lines: list[str] = []
    original, identical, bad = lost(decoded, networks=(network,), on_progress=lines.append)
    assert [x.tokenizer for x in (original, identical, bad)] == ["original", "identical", "smeared"]
    assert original.task == "classification" and original.network == network and original.seconds > 0
    assert original.gap.value == original.gap.error == 0 and original.auc is not None and original.bias is None
    assert identical.score == original.score and identical.gap.value == identical.gap.error == 0
    assert original.score.value > 0.9 and original.score.error < 0.03
    assert 1 > bad.gap.value > 5 * bad.gap.error > 0 and bad.gap.value == pytest.approx(
        original.score.value - bad.score.value
    )
    assert len(lines) == 3 and "points worse than on the original" in lines[2]


def test_several_seeds_are_averaged_and_their_spread_is_in_the_error() -> None:
    decoded = {"smeared": (smeared(JETS_TRAIN, 0.3, 1), smeared(JETS_TEST, 0.3, 2))}
    one, two = lost(decoded, epochs=1), lost(decoded, epochs=1, seeds=2)
    assert [x.gap.value for x in one] != [x.gap.value for x in two]
    assert two[0].score.error > 0


def test_only_features_that_all_samples_have_are_used() -> None:
    fewer = JETS_TRAIN.with_columns(("pt", "charge"), (), JETS.tag), JETS_TEST.with_columns(("pt", "charge"), (), "x")
    same = JETS_TRAIN, JETS_TEST
    full, without = lost({"same": same}), lost({"same": same, "fewer": fewer})
    assert without[0].score.value < full[0].score.value
    assert all(x.gap.value == 0 for x in without)  # the angles are missing in one, so no network sees them


@BOTH
def test_the_energy_of_showers_is_learned_and_lost_where_hits_lose_it(network: str) -> None:
    train, test = toy_showers(300, 21), toy_showers(300, 22)
    emptied = [replace(c, points=c.points[:0], offsets=c.offsets * 0) for c in (train, test)]
    original, without = information_loss(
        SHOWERS, train, test, {"without": (emptied[0], emptied[1])}, networks=(network,), epochs=5
    )
    assert original.task == "regression" and original.auc is None and original.bias is not None
    # the number of hits follows the energy within 3 hits of up to 18; the energies are between 5 and 50
    assert original.score.value < 0.25 and abs(original.bias.value) < 0.15
    assert without.score.value > 0.4 and without.gap.value == without.score.value - original.score.value
    assert without.gap.value > 5 * without.gap.error > 0


def test_macro_auc_of_three_classes_is_the_mean_of_three_curves() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    perfect = np.eye(3)[labels]
    assert macro_auc(labels, perfect).value == 1.0
    assert macro_auc(labels, np.full((6, 3), 1 / 3)).value == 0.5
    mixed = perfect.copy()
    mixed[0], mixed[2] = perfect[2], perfect[0]  # one of class 0 looks like class 1 and the other way round
    # class 2 stays perfect; of class 0, half a point of two is above all but one of four, which is above it
    expected = (1 + 2 * (0.5 * (0.75 + 0.25 / 2) + 0.5 * (0.75 / 2))) / 3
    assert macro_auc(labels, mixed).value == pytest.approx(expected)


MISTAKES: dict[str, tuple[dict[str, tuple[PointClouds, PointClouds]], dict[str, Any], str]] = {
    "fewer objects": ({"x": (JETS_TRAIN, toy_jets(199, 12))}, {}, "199 decoded test objects, but 200 original"),
    "other objects": ({"x": (toy_jets(300, 5), JETS_TEST)}, {}, "other classes than the original ones"),
    "a name taken": ({"original": (JETS_TRAIN, JETS_TEST)}, {}, "may be called 'original'"),
    "no network": ({}, {"networks": ("transfomer",)}, "did you mean 'transformer'"),
    "nothing to do": ({}, {"epochs": 0}, "at least one network, one epoch"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_sentences(mistake: str) -> None:
    decoded, options, sentence = MISTAKES[mistake]
    with pytest.raises(DataError, match=sentence):
        lost(decoded, **options)


def test_samples_that_teach_nothing_are_refused() -> None:
    def check(train: PointClouds, test: PointClouds, sentence: str, **decoded: tuple[PointClouds, PointClouds]) -> None:
        with pytest.raises(DataError, match=sentence):
            information_loss(SHOWERS if train.tag == SHOWERS.tag else JETS, train, test, decoded)

    narrow = JETS_TRAIN.select(JETS_TRAIN.labels == 0)
    check(narrow, narrow, "all objects are of one class")
    check(JETS_TRAIN, narrow, "test sample narrow: they must be the same")
    check(JETS_TRAIN, JETS_TEST.select(slice(0, 49)), "49 test objects are too few")
    check(replace(JETS_TRAIN, labels=JETS_TRAIN.labels - 1), JETS_TEST, "training objects have no class")
    angles = tuple(c.with_columns(("eta_rel", "phi_rel"), (), JETS.tag) for c in (JETS_TRAIN, JETS_TEST))
    momenta = tuple(c.with_columns(("pt",), (), JETS.tag) for c in (JETS_TRAIN, JETS_TEST))
    check(*angles, "no feature in common", x=(momenta[0], momenta[1]))
    wrong = replace(JETS_TRAIN, units=("MeV", *JETS_TRAIN.units[1:])), JETS_TEST
    check(JETS_TRAIN, JETS_TEST, r"x \(training\): feature 'pt' is in MeV", x=wrong)
    showers = toy_showers(60, 1)
    check(showers, replace(showers, conditions=showers.conditions * 0), "'incident_energy' must be above 0")
    constant = replace(showers, conditions=np.full_like(showers.conditions, 20.0))
    check(constant, showers, "all training objects have the same 'incident_energy'")
