"""What is asked of a generator: values, distributions and files, by the number of the object alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import kstest, norm

from foundation.data.cards import Condition
from foundation.data.files import write_point_clouds
from foundation.errors import DataError
from foundation.generate.conditions import Asking, objects_of_file
from foundation.generate.numbers import CONDITIONS, INSIDE_BINS, keys, uniform, uniform_of_points
from foundation.generate.request_config import Asked

from conftest import JETS, SHOWERS, toy_jets, toy_showers

ENERGY, ANGLE = SHOWERS.conditions[0], Condition(name="theta", unit="deg", range=(0.0, 90.0), bins=9)
CARD = SHOWERS.model_copy(update={"conditions": (ENERGY, ANGLE), "classes": ("photon", "electron")})


def asking(seed: int = 1, card: Any = CARD, **asked: Any) -> Asking:
    return Asking.of(card, Asked.model_validate(asked), seed)


def energies(n: int, values: Any, **more: Any) -> np.ndarray:
    """Incident energies of the first n objects."""
    return asking(conditions={"incident_energy": values}, **more)(np.arange(n))[1][:, 0]


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ({"uniform": [10, 30]}, lambda x: (x - 10) / 20),
        ({"log_uniform": [5, 50]}, lambda x: np.log(x / 5) / np.log(10)),
        ({"normal": [20, 10]}, lambda x: (norm.cdf(x, 20, 10) - LOW) / (HIGH - LOW)),
    ],
)
def test_distributions_are_those_asked_for(values: Any, shape: Any) -> None:
    assert kstest(energies(20_000, values), lambda x: np.clip(shape(x), 0, 1)).pvalue > 1e-3
    wrong = energies(20_000, {"uniform": [10, 30.8]})
    assert kstest(wrong, lambda x: np.clip((x - 10) / 20, 0, 1)).pvalue < 1e-3  # the test would see 4 %


LOW, HIGH = norm.cdf([5, 50], 20, 10)


def test_a_choice_takes_each_value_alike_and_a_list_in_turn() -> None:
    chosen, counts = np.unique(energies(9000, {"choice": [10, 20, 40]}), return_counts=True)
    assert chosen.tolist() == [10, 20, 40] and (np.abs(counts - 3000) < 5 * np.sqrt(2000)).all()
    labels, conditions = asking(conditions={"incident_energy": [10, 40]})(np.arange(8))
    # in turn within each class: no class has one value only
    assert labels.tolist() == [0, 1] * 4
    assert conditions[:, 0].tolist() == [10, 10, 40, 40] * 2
    assert np.isnan(conditions[:, 1]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40 - 500), st.lists(st.integers(0, 400), min_size=1, max_size=20), st.integers(0, 2**63))
def test_an_object_does_not_depend_on_those_beside_it(first: int, chosen: list[int], seed: int) -> None:
    made = asking(seed=seed, conditions={"incident_energy": {"log_uniform": [5, 50]}, "theta": {"uniform": [0, 90]}})
    all_labels, all_conditions = made(first + np.arange(401))
    labels, conditions = made(first + np.array(chosen))
    assert np.array_equal(labels, all_labels[chosen]) and np.array_equal(conditions, all_conditions[chosen])


def test_seeds_conditions_and_purposes_have_numbers_of_their_own() -> None:
    index = np.arange(4000)
    drawn = [
        uniform(keys(seed, purpose, index), place)
        for seed in (1, 2)
        for purpose in (INSIDE_BINS, CONDITIONS)
        for place in (0, 1)
    ]
    for i, a in enumerate(drawn):
        assert kstest(a, "uniform").pvalue > 1e-4
        for b in drawn[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(len(index))


def test_numbers_inside_bins_are_those_of_the_object_alone() -> None:
    counts = np.array([3, 0, 5])
    drawn = uniform_of_points(keys(7, INSIDE_BINS, np.array([4, 5, 2**50])), counts, 2)
    assert drawn.shape == (8, 2)
    assert np.array_equal(drawn[3:], uniform_of_points(keys(7, INSIDE_BINS, np.array([2**50])), counts[2:], 2))
    many = uniform_of_points(keys(7, INSIDE_BINS, np.arange(500)), np.full(500, 40), 3)
    assert kstest(many.ravel(), "uniform").pvalue > 1e-4 and len(np.unique(many)) == many.size


def write_truth(path: Path, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Showers with an angle that follows the energy; their labels and conditions."""
    clouds = toy_showers(n, 3)
    energy = clouds.conditions[:, 0]
    conditions = np.stack([energy, energy + 20], axis=1)
    labels = np.arange(n) % 3 % 2
    write_point_clouds(
        path,
        replace(
            clouds, labels=labels, conditions=conditions, condition_names=("incident_energy", "theta"),
            condition_units=("GeV", "deg"),
        ),
    )  # fmt: skip
    return labels, conditions


@pytest.mark.parametrize("take", ["in_turn", "shuffled", "drawn"])
def test_what_belongs_together_in_a_file_stays_together(tmp_path: Path, take: str) -> None:
    labels, conditions = write_truth(tmp_path / "truth.h5")
    source = {"file": str(tmp_path / "truth.h5"), "take": take}
    for classes in ((), ("electron", "photon")):
        made = asking(source=source, classes=classes)
        got_labels, got = made(np.arange(300))
        assert np.array_equal(got[:, 1], got[:, 0] + np.float32(20))
        pairs = {(int(label), float(e)) for label, e in zip(labels, conditions[:, 0], strict=True)}
        assert {(int(label), float(e)) for label, e in zip(got_labels, got[:, 0], strict=True)} <= pairs
        if classes:
            assert np.array_equal(got_labels, 1 - np.arange(300) % 2)


def test_in_turn_and_shuffled_take_each_object_once_before_any_comes_again(tmp_path: Path) -> None:
    labels, conditions = write_truth(tmp_path / "truth.h5")
    energy = conditions[:, 0]
    in_turn = asking(source={"file": str(tmp_path / "truth.h5")})(np.arange(120))
    assert np.array_equal(in_turn[1][:60], conditions) and np.array_equal(in_turn[1][60:], conditions)
    assert np.array_equal(in_turn[0][:60], labels)
    shuffled = asking(source={"file": str(tmp_path / "truth.h5"), "take": "shuffled"})(np.arange(120))[1][:, 0]
    for half in (shuffled[:60], shuffled[60:]):
        assert np.array_equal(np.sort(half), np.sort(energy)) and not np.array_equal(half, energy)
    assert not np.array_equal(shuffled[:60], shuffled[60:])


def test_a_value_goes_before_that_of_a_file_and_a_folder_is_its_files(tmp_path: Path) -> None:
    _, conditions = write_truth(tmp_path / "split" / "a.h5")
    write_truth(tmp_path / "split" / "b.h5")
    made = asking(source={"file": str(tmp_path / "split")}, conditions={"theta": 45, "incident_energy": "any"})
    assert len(made.found.labels) == 120  # type: ignore[union-attr]
    _, got = made(np.arange(5))
    assert np.isnan(got[:, 0]).all() and (got[:, 1] == 45).all()
    assert objects_of_file(CARD, str(tmp_path / "split" / "a.h5")).conditions.tolist() == conditions.tolist()


def test_classes_in_turn_or_left_open() -> None:
    assert asking(card=JETS)(np.arange(5))[0].tolist() == [0, 1, 0, 1, 0]
    assert asking(card=JETS, classes=("wide",))(np.arange(3))[0].tolist() == [1, 1, 1]
    assert asking(card=JETS, classes=("any",))(np.arange(3))[0].tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"conditions": {"incident_enrgy": 5}}, "no condition 'incident_enrgy' - did you mean 'incident_energy'"),
        ({"classes": ("foton",)}, "no class 'foton' - did you mean 'photon'"),
        ({"conditions": {"incident_energy": [10, 100]}}, r"asked for with 10 to 100 GeV, but .* trained on 5 to 50"),
        ({"conditions": {"incident_energy": {"uniform": [1, 20]}}}, "asked for with 1 to 20 GeV"),
        ({"conditions": {"incident_energy": 0.0}, "outside": True}, "is 0 GeV for an object, but its bins are log"),
        ({"source": {"file": "nowhere.h5"}}, "nowhere.h5: no such file"),
    ],
)
def test_what_cannot_be_is_one_sentence(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        asking(**asked)


def test_values_outside_can_be_allowed_and_a_file_is_checked_too(tmp_path: Path) -> None:
    assert energies(2, 100.0, outside=True).tolist() == [100, 100]
    assert energies(4000, {"normal": [50, 30]}, outside=True).max() > 60
    write_truth(tmp_path / "truth.h5")
    narrow = CARD.model_copy(update={"conditions": (ENERGY, ANGLE.model_copy(update={"range": (0.0, 30.0)}))})
    with pytest.raises(DataError, match="'theta' of 'toy_showers' is asked for with"):
        asking(card=narrow, source={"file": str(tmp_path / "truth.h5")})
    asking(card=narrow, source={"file": str(tmp_path / "truth.h5")}, outside=True)


def test_a_class_without_objects_in_the_file_is_named(tmp_path: Path) -> None:
    write_point_clouds(tmp_path / "jets.h5", toy_jets(30, 1).select(toy_jets(30, 1).labels == 0))
    with pytest.raises(DataError, match="no objects of class 'wide' to take conditions of"):
        asking(card=JETS, classes=("wide",), source={"file": str(tmp_path / "jets.h5")})


@pytest.mark.parametrize(
    "values",
    [{"uniform": [2, 1]}, {"log_uniform": [0, 1]}, {"normal": [1, 0]}, {"choice": []}, {}, {"gauss": [1, 2]}, [],
     {"uniform": [1, 2], "choice": [1]}, {"uniform": [1, float("nan")]}, "some"],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(values: Any) -> None:
    with pytest.raises(ValidationError):
        Asked.model_validate({"conditions": {"incident_energy": values}})
