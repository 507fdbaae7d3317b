"""The mixture: exact to less than one row of every dataset at every prefix, without gaps, without state."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from foundation.errors import DataError
from foundation.recipe.schema import Pretrain
from foundation.recipe.stages.training import mixture_of, tags_of
from foundation.stream.mixture import LONGEST_PERIOD, Mixture, MixtureSchedule, exact_shares, temperature_weights
from foundation.stream.reading import ShardedDataset

from conftest import ToyTokens

WEIGHTS = st.lists(
    st.decimals(0, 10, places=2).map(float) | st.sampled_from([0.0, 0.01, 1.0, 90.0]), min_size=1, max_size=8
).filter(any)


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.integers(0, 2000))
def test_every_dataset_is_within_one_row_of_its_weight_at_every_prefix(weights: list[float], first: int) -> None:
    exact = [Fraction(repr(w)) for w in weights]
    wanted = np.array([float(w / sum(exact)) for w in exact])
    schedule = MixtureSchedule(weights)
    datasets, indices = schedule.rows(0, first + 500)
    counts = np.cumsum(datasets[:, None] == np.arange(len(weights)), axis=0)
    n = np.arange(1, len(datasets) + 1)[:, None]
    assert np.abs(counts - wanted * n).max() < 1
    # an index counts the rows of its dataset, none is left out, and a window needs nothing of what was before it
    assert np.array_equal(indices, counts[np.arange(len(datasets)), datasets] - 1)
    window = schedule.rows(first, first + 500)
    assert np.array_equal(window[0], datasets[first:]) and np.array_equal(window[1], indices[first:])
    assert np.array_equal(schedule.counts(first + 500), counts[-1])
    assert schedule.row(first) == (datasets[first], indices[first])


def test_weights_are_fractions_as_they_are_written() -> None:
    assert exact_shares([0.1, 0.2]).tolist() == [1, 2]
    assert exact_shares([0.95, 0.05]).tolist() == [19, 1]
    assert exact_shares([1e-3, 0.999]).tolist() == [1, 999]
    rounded = exact_shares([0.1234567, 0.7654321, 3.0])
    assert rounded.sum() == LONGEST_PERIOD and abs(rounded[2] / LONGEST_PERIOD - 3 / 3.8888888) < 1e-5


def test_a_late_row_is_found_at_once() -> None:
    schedule = MixtureSchedule([0.6, 0.4], [(100, [0.1, 0.9])])
    dataset, index = schedule.row(10**15)
    assert abs(index - (0.6, 0.4)[dataset] * 100 - (0.1, 0.9)[dataset] * (10**15 - 100)) <= 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_parts_follow_one_another_and_count_on(parts: list[tuple[int, int, int]]) -> None:
    starts = np.cumsum([n for n, _, _ in parts]).tolist()
    later = [(start, [float(a), float(b) + 1]) for start, (_, a, b) in zip(starts, parts, strict=True)]
    schedule = MixtureSchedule([3.0, 1.0], later)
    datasets, indices = schedule.rows(0, starts[-1] + 200)
    for d in (0, 1):
        assert np.array_equal(indices[datasets == d], np.arange((datasets == d).sum()))
    borders = [0, *starts, starts[-1] + 200]
    for (a, b), share in zip(pairwise(borders), schedule.shares, strict=True):
        inside = np.cumsum(datasets[a:b, None] == np.arange(2), axis=0)
        assert np.abs(inside - share * np.arange(1, b - a + 1)[:, None]).max() < 1
    middle = starts[-1] // 2
    assert np.array_equal(schedule.counts(middle), np.bincount(datasets[:middle], minlength=2))


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("nan")], [1, 1e-9]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weight"):
        MixtureSchedule(weights)


def test_parts_out_of_order_or_of_other_datasets_are_refused() -> None:
    with pytest.raises(DataError, match="one after the other"):
        MixtureSchedule([1.0, 1.0], [(5, [1.0, 2.0]), (5, [1.0, 3.0])])
    with pytest.raises(DataError, match="one weight for each dataset"):
        MixtureSchedule([1.0, 1.0], [(5, [1.0])])


def test_temperature_evens_out() -> None:
    assert temperature_weights([900, 100], 1.0) == pytest.approx((1.0, 1 / 9))
    assert temperature_weights([900, 100], 2.0) == pytest.approx((1.0, 1 / 3))
    assert temperature_weights([900, 100, 0], 1e9) == pytest.approx((1.0, 1.0, 0.0))
    with pytest.raises(DataError, match="above 0"):
        temperature_weights([1], 0.0)
    with pytest.raises(DataError, match="no dataset"):
        temperature_weights([0, 0], 1.0)


# What a recipe says


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"a": -1.0}, "greater than or equal to 0"),
        ({}, "at least 1 item"),
        ({"temperature": 0}, "greater than 0"),
        ({"temperature": 1, "a": 1}, "Extra inputs"),
        ([], "must begin with from_step: 0"),
        ([{"from_step": 5, "weights": {"a": 1}}], "must begin with from_step: 0"),
        ([{"from_step": 0, "weights": {"a": 1}}, {"from_step": 0, "weights": {"a": 2}}], "follow one another"),
        (3, "valid dictionary"),
    ],
)
def test_a_recipe_with_a_mixture_that_cannot_be_is_refused(text: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Pretrain.model_validate({"kind": "pretrain", "name": "p", "data": "t", "mixture": text})


@pytest.mark.parametrize(
    ("text", "tags", "mixture"),
    [
        ({"toy_showers": 2, "toy_jets": 1}, ["toy_showers", "toy_jets"], Mixture((2.0, 1.0))),
        (
            [
                {"from_step": 0, "weights": {"toy_showers": 1}},
                {"from_step": 9, "weights": {"toy_jets": 3, "toy_showers": 1}},
            ],
            ["toy_showers", "toy_jets"],
            Mixture((1.0, 0.0), ((9, (1.0, 3.0)),)),
        ),
        ({"temperature": 1e9}, ["toy_jets", "toy_showers"], None),
    ],
)
def test_a_recipe_names_weights_a_schedule_or_a_temperature(toy: ToyTokens, text, tags, mixture) -> None:
    spec = Pretrain.model_validate({"kind": "pretrain", "name": "p", "data": "t", "mixture": text})
    assert tags_of(spec.mixture, toy.vocabulary) == tags
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in tags]
    found = mixture_of(spec.mixture, data, toy.layout())
    assert found == mixture if mixture else found.weights == pytest.approx((1.0, 1.0))
