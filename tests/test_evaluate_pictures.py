"""Figures: several models on top of each other, files that journals take, displays that fit their box."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foundation.data.geometry import CylindricalGeometry, RingLayers
from foundation.evaluate.comparison import Comparison, compare
from foundation.evaluate.displays import jet_pictures, matched_jets, matched_showers, shower_scale
from foundation.evaluate.html.event_display import MOST_POINTS, STEPS, event_display
from foundation.evaluate.plots import distribution_pictures, observable_panel, response_picture
from foundation.evaluate.score_plots import MOST_ROWS, score_pictures
from foundation.evaluate.scores import Score

from evaluate_samples import JET_CARD, SHOWER_CARD, toy_jets, toy_showers


@pytest.fixture(scope="module")
def jets() -> dict[str, Comparison]:
    other = toy_jets(80, 3, 1.3)
    return {
        "one class": compare(toy_jets(80, 1), replace(other, labels=other.labels * 0), JET_CARD),
        "flow": compare(toy_jets(80, 1), toy_jets(80, 2), JET_CARD),
    }


@pytest.fixture(scope="module")
def showers() -> dict[str, Comparison]:
    made = {"flow": toy_showers(90, 2), "diffusion": toy_showers(80, 3, 1.2)}
    return {name: compare(toy_showers(80, 1), clouds, SHOWER_CARD) for name, clouds in made.items()}


def test_several_models_are_in_every_figure(showers: dict[str, Comparison], tmp_path: Path) -> None:
    groups = {name: comparison.groups[0] for name, comparison in showers.items()}
    panel = observable_panel(groups, showers["flow"].observables[0])
    assert list(panel.generated) == ["flow", "diffusion"]
    assert not np.array_equal(panel.generated["flow"].values, panel.generated["diffusion"].values)
    pictures = distribution_pictures(showers, tmp_path)
    response = response_picture(showers, tmp_path, pdf=True)
    assert [p.name for p in pictures] == [f"gflash_siw_{name}" for name in ("energy", "gravity", "profiles")]
    assert response is not None and response.panel == "response"
    for picture in (*pictures, response):
        assert (tmp_path / f"{picture.name}.png").read_bytes() == picture.png
    pdf = (tmp_path / f"{response.name}.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf  # the fonts are inside, and as TrueType


def test_models_may_lack_classes(jets: dict[str, Comparison]) -> None:
    assert [len(c.groups) for c in jets.values()] == [1, 2]
    assert all(p.panel == "events" for p in jet_pictures(jets))
    assert {m.name.partition(",")[0] for m in matched_jets(jets, 4)} == {"qg"}


def test_matches_are_the_nearest(showers: dict[str, Comparison], jets: dict[str, Comparison]) -> None:
    matches = matched_showers(showers, 5)
    assert len(matches) == 5
    for match in matches:
        true = shower_scale(showers["flow"].truth)[match.truth]
        for name, comparison in showers.items():
            distance = np.abs(shower_scale(comparison.generated) - true)
            assert distance[match.of(name)] == distance.min()
    for match in matched_jets({"flow": jets["flow"]}, 4):
        truth, generated = jets["flow"].truth, jets["flow"].generated
        assert truth.labels[match.of("truth")] == generated.labels[match.of("flow")]


def content_of(display: str) -> dict[str, list[dict[str, object]]]:
    found = re.search(r'<script type="application/json">(.*?)</script>', display, re.S)
    assert found
    return dict(json.loads(found[1]))


def table_of(side: dict[str, str], columns: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(side["points"]), "<u2").reshape(-1, columns) / STEPS


def test_displays_hold_the_hits(showers: dict[str, Comparison]) -> None:
    models = {"<b>": showers["flow"]}
    display = event_display(models)
    assert "<b>" not in display and "&lt;b&gt;" in display
    content = content_of(display)
    low, high = content["energy"]["low"], content["energy"]["high"]  # type: ignore[call-overload]
    for match, event in zip(matched_showers(models, 6), content["events"], strict=True):
        shower = showers["flow"].truth.select(np.array([match.truth]))
        order = np.argsort(shower.feature("energy"))[::-1]
        table = table_of(event["sides"][0], 4)  # type: ignore[index]
        np.testing.assert_allclose(table[:, 0] * 12 - 0.5, shower.feature("layer")[order], atol=1e-3)
        np.testing.assert_allclose(table[:, 2] * 12 - 0.5, shower.feature("y")[order], atol=1e-3)
        energies = low * (high / low) ** table[:, 3]
        np.testing.assert_allclose(energies, np.maximum(shower.feature("energy")[order], low), rtol=1e-3)


def test_displays_of_rings_of_jets_and_of_bright_showers(jets: dict[str, Comparison]) -> None:
    def rings(seed: int) -> Comparison:
        sides = []
        for k in (seed, seed + 1):
            clouds = toy_showers(50, k)
            table = np.minimum(clouds.points, [11, 7, 2, np.inf]).astype(np.float32)
            sides.append(replace(clouds, points=table, features=("layer", "alpha", "r", "energy")))
        layers = RingLayers(r_edges_mm=(0, 5, 10, 20), alpha_bins=8, repeat=12)
        geometry = CylindricalGeometry(kind="cylindrical", layers=(layers,))
        return compare(*sides, SHOWER_CARD.model_copy(update={"geometry": geometry}))

    for comparison, columns in ((rings(1), 4), (jets["flow"], 3)):
        for event in content_of(event_display({"flow": comparison}))["events"]:
            for side in event["sides"]:  # type: ignore[attr-defined]
                assert 0 < len(table_of(side, columns)) <= MOST_POINTS


def test_scores_become_a_figure_per_panel() -> None:
    score = Score("flow", "toy", "jets", "all", "fpd", "1", "fpd/1", value=2.0, error=0.1, floor=1.0)
    rows = [replace(score, name=f"w1.{k}", value=1 + k / 10, model=m) for k in range(50) for m in ("flow", "gan")]
    left_out = [replace(score, problem="no"), replace(score, better="higher"), replace(score, floor=-1.0)]
    pictures = score_pictures([*rows, replace(score, panel="ild"), *left_out])
    assert [(p.name, p.panel) for p in pictures] == [("toy_jets_scores", "jets"), ("toy_ild_scores", "ild")]
    assert f"The {MOST_ROWS} that are furthest" in pictures[0].caption and "furthest" not in pictures[1].caption
    assert score_pictures(left_out) == []
