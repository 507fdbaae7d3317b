"""Lights: a number against its floor, whichever direction is good, with the uncertainties of both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.evaluate.html.score_tables import best_models, furthest
from foundation.evaluate.scores import Score
from foundation.evaluate.traffic_lights import Light, grade, light, ratio

DISTANCE = Score("flow", "toy", "jets", "all", "fpd", "1", "fpd/1", value=1.0, error=0.0, floor=1.0)
AREA = replace(DISTANCE, name="auc", better="nearest", ideal=0.5, value=0.5, floor=0.51)
ACCURACY = replace(DISTANCE, name="accuracy", better="higher", value=0.9, floor=0.9)
ORDER = ("good", "fair", "poor")


def test_grades() -> None:
    assert [grade(v, 1.5, 3.0) for v in (1.0, -1.0, 2.0, 4.0, np.nan)] == ["good", "good", "fair", "poor", ""]


@pytest.mark.parametrize(
    ("score", "wanted"),
    [
        (DISTANCE, "good"),
        (replace(DISTANCE, value=2.0), "fair"),
        (replace(DISTANCE, value=4.0), "poor"),
        (replace(DISTANCE, value=4.0, error=2.0), "good"),  # 1.5 standard errors above the floor
        (replace(DISTANCE, value=4.0, error=1.0), "fair"),
        (replace(DISTANCE, value=4.0, floor_error=1.0), "fair"),
        (replace(DISTANCE, value=0.1, floor=-0.01), "poor"),  # unbiased estimates of distances may be below zero
        (replace(DISTANCE, value=0.1, error=0.06, floor=-0.01), "good"),
        (replace(DISTANCE, floor=np.nan), ""),
        (replace(DISTANCE, problem="too few"), ""),
        (replace(DISTANCE, value=np.nan), ""),
        (AREA, "good"),
        (replace(AREA, value=0.48), "fair"),
        (replace(AREA, value=0.7), "poor"),
        (replace(AREA, value=1.03, ideal=1.0, floor=np.nan), "good"),
        (replace(AREA, value=0.85, ideal=1.0, floor=np.nan), "fair"),
        (replace(AREA, value=1.5, ideal=1.0, floor=np.nan), "poor"),
        (ACCURACY, "good"),
        (replace(ACCURACY, value=0.8), "fair"),
        (replace(ACCURACY, value=0.5), "poor"),
        (replace(ACCURACY, value=0.95), "good"),
    ],
)
def test_lights(score: Score, wanted: Light) -> None:
    assert light(score) == wanted


@settings(deadline=None, max_examples=60)
@given(value=st.floats(0.01, 100), more=st.floats(1, 10), error=st.floats(0, 10), floor=st.floats(0.01, 10))
def test_further_from_truth_is_never_greener(value: float, more: float, error: float, floor: float) -> None:
    near = replace(DISTANCE, value=value, error=error, floor=floor)
    far = replace(near, value=value * more)
    assert ORDER.index(light(near)) <= ORDER.index(light(far))
    assert ratio(near) <= ratio(far)
    assert ORDER.index(light(replace(near, error=error + 1))) <= ORDER.index(light(near))


def test_truth_at_the_ideal_value_by_chance_does_not_make_everything_far() -> None:
    assert ratio(replace(AREA, value=0.52, floor=0.5, floor_error=0.01)) == pytest.approx(2)
    assert np.isnan(ratio(replace(AREA, floor=0.5)))


def test_the_best_and_those_that_agree_with_it() -> None:
    flow = replace(DISTANCE, value=1.0, error=0.1)
    others = {"flow": flow, "diffusion": replace(flow, value=1.1), "gan": replace(flow, value=2.0)}
    assert best_models(others) == {"flow", "diffusion"}
    assert best_models({name: replace(s, better="higher") for name, s in others.items()}) == {"gan"}
    assert best_models({"flow": flow}) == set()
    assert best_models({"flow": flow, "gan": replace(flow, value=np.nan)}) == set()
    assert best_models({"flow": flow, "diffusion": replace(flow, value=1.1)}) == set()  # nothing tells them apart


def test_the_furthest_of_several_models_is_named_once() -> None:
    scores = [replace(DISTANCE, model=m, name=n, value=v) for m, n, v in (
        ("flow", "fpd", 9.0), ("gan", "fpd", 8.0), ("gan", "kpd", 4.0), ("flow", "w1", 1.0),
    )]  # fmt: skip
    assert [(s.model, s.name) for s in furthest(scores)] == [("flow", "fpd"), ("gan", "kpd")]
