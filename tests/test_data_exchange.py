"""Point clouds as arrays of other packages: nothing is lost, and what is not possible is said."""

from __future__ import annotations

import sys
from dataclasses import replace

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError

from conftest import toy_jets, toy_showers


@st.composite
def clouds(draw: st.DrawFn) -> PointClouds:
    """Any clouds: none at all, empty ones, without conditions, with NaN conditions."""
    counts = np.array(draw(st.lists(st.integers(0, 4), max_size=5)), np.int64)
    features, conditions = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.normal(size=(len(counts), conditions)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    return PointClouds(
        points=rng.normal(size=(int(counts.sum()), features)).astype(np.float32),
        offsets=to_offsets(counts),
        features=("pt", "eta", "phi")[:features],
        units=("GeV", "1", "rad")[:features],
        labels=rng.integers(-1, 3, len(counts)),
        conditions=values,
        condition_names=("energy", "angle")[:conditions],
        condition_units=("GeV", "deg")[:conditions],
        tag=draw(st.sampled_from(["", "toys"])),
        conventions=draw(st.sampled_from([(), ("", "constituent - jet", "")[:features]])),
    )


def assert_same(a: PointClouds, b: PointClouds) -> None:
    for name in ("features", "units", "condition_names", "condition_units", "tag", "conventions"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("points", "offsets", "labels", "conditions"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype


@settings(max_examples=40, deadline=None)
@given(clouds())
def test_awkward_and_back_is_the_same(some: PointClouds) -> None:
    array = some.to_awkward()
    assert len(array) == len(some) and ak.fields(array) == ["points", "label", *some.condition_names]
    assert_same(PointClouds.from_awkward(array), some)


@settings(max_examples=40, deadline=None)
@given(clouds())
def test_padded_arrays_hold_every_point_once(some: PointClouds) -> None:
    points, mask = some.to_numpy()
    assert points.shape == (*mask.shape, len(some.features)) and mask.sum(1).tolist() == some.counts.tolist()
    np.testing.assert_array_equal(points[mask], some.points)
    assert not points[~mask].any()
    flat, offsets = some.to_numpy(padded=False)
    assert flat is some.points and offsets is some.offsets
    tensor, real = some.to_torch(length=6)
    assert tuple(tensor.shape) == (len(some), 6, len(some.features))
    np.testing.assert_array_equal(tensor[real].numpy(), some.points)


@settings(max_examples=20, deadline=None)
@given(clouds())
def test_tables_have_a_row_per_point_or_per_object(some: PointClouds) -> None:
    table = some.to_pandas()
    assert list(table.columns) == ["object", "point", *some.features] and len(table) == len(some.points)
    np.testing.assert_array_equal(table[list(some.features)].to_numpy(), some.points)
    assert table["object"].tolist() == some.owners.tolist()
    objects = some.to_pandas(per="object")
    assert objects["points"].tolist() == some.counts.tolist() and objects["label"].tolist() == some.labels.tolist()
    for name in some.condition_names:
        np.testing.assert_array_equal(objects[name].to_numpy(), some.condition(name))


def test_an_awkward_array_that_was_cut_and_selected_is_still_point_clouds() -> None:
    showers = toy_showers(30, 1)
    array = showers.to_awkward()
    picked = PointClouds.from_awkward(array[array.incident_energy > 20])
    assert_same(picked, showers.select(showers.condition("incident_energy") > 20))
    array["points"] = array.points[array.points.energy > 5.0]
    harder = PointClouds.from_awkward(array)
    assert harder.points.tobytes() == showers.points[showers.feature("energy") > 5.0].tobytes()
    assert harder.units == showers.units and harder.tag == "toy_showers"


def test_an_array_of_the_user_needs_points_and_takes_units() -> None:
    points = ak.Array([[{"pt": 3.0, "eta": 0.1}], [], [{"pt": 1.0, "eta": 0.2}, {"pt": 0.5, "eta": 0.0}]])
    some = PointClouds.from_awkward(ak.zip({"points": points, "mass": [1.0, 2.0, 3.0]}, depth_limit=1), {"pt": "GeV"})
    assert some.counts.tolist() == [1, 0, 2] and some.units == ("GeV", "1") and some.labels.tolist() == [-1, -1, -1]
    assert some.condition("mass").tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(DataError, match=r"no field 'points' .*it has: pt, eta"):
        PointClouds.from_awkward(points)
    with pytest.raises(DataError, match="no field 'pts' - did you mean 'pt'"):
        PointClouds.from_awkward(ak.zip({"points": points}, depth_limit=1), {"pts": "GeV"})
    with pytest.raises(DataError, match="'id' of the awkward array is not one number each"):
        PointClouds.from_awkward(ak.zip({"points": points, "id": ["a", "b", "c"]}, depth_limit=1))
    with pytest.raises(DataError, match="'mass' of the awkward array is not one number each"):
        PointClouds.from_awkward(ak.zip({"points": points, "mass": [1.0, None, 3.0]}, depth_limit=1))


def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    jets = toy_jets(5, 1)
    with pytest.raises(DataError, match="more than the length of 2: give a larger length"):
        jets.to_numpy(length=2)
    with pytest.raises(DataError, match="not per 'jet'"):
        jets.to_pandas(per="jet")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'label' has a meaning of its own"):
        replace(jets, features=("label", *jets.features[1:])).to_awkward()
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if it were not installed
    with pytest.raises(DataError, match="needs the package pandas, which is not installed: pip install pandas"):
        jets.to_pandas()
