"""All panels: smeared truth is worse than truth in each, one that breaks loses no other, numbers can be read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.evaluate.comparison import compare
from foundation.evaluate.leaderboard import FOLDER, published
from foundation.evaluate.metrics_file import SavedMetrics, read_metrics, versions, write_metrics
from foundation.evaluate.panels import showers as shower_panels
from foundation.evaluate.panels.choice import PARTS, Part, chosen
from foundation.evaluate.panels.running import panel_scores
from foundation.evaluate.panels.samples import Made, Timing, Truth
from foundation.evaluate.scores import Score
from foundation.evaluate.traffic_lights import distance_from_ideal, light

from calochallenge_samples import card_of, showers
from evaluate_samples import JET_CARD, SHOWER_CARD, toy_jets, toy_showers

N = 500
ONE_CLASS = JET_CARD.model_copy(update={"classes": ()})
RINGS = card_of("1_photons")


def unlabelled(clouds: PointClouds) -> PointClouds:
    return replace(clouds, labels=np.full(len(clouds), -1))


def smeared_showers(clouds: PointClouds) -> PointClouds:
    """Hits a layer and a cell off, a fifth of them lost, and energies that are wrong by a fifth and more."""
    rng = np.random.default_rng(7)
    points, n = clouds.points.copy(), len(clouds.points)
    points[:, 0] = np.clip(points[:, 0] + rng.integers(0, 3, n), 0, 11)
    points[:, 1:3] = np.clip(points[:, 1:3] + rng.integers(-2, 4, (n, 2)), 0, 11)
    points[:, 3] *= 1.2 * rng.lognormal(0, 0.5, n)
    kept = rng.random(n) > 0.2
    kept[clouds.offsets[:-1]] = True
    counts = np.bincount(clouds.owners[kept], minlength=len(clouds))
    return replace(clouds, points=points[kept], offsets=to_offsets(counts))


def made(card: DatasetCard, model: str, truth: PointClouds, clouds: PointClouds, **known: object) -> Made:
    return Made(model, clouds, compare(truth, clouds, card), **known)  # type: ignore[arg-type]


def pair(domain: str) -> tuple[Truth, Made, Made]:
    """Truth, objects of the same distribution, and smeared ones."""
    rng = np.random.default_rng(0)
    likelihoods = [(rng.normal(size=2 * N), rng.normal(shift, 1, N)) for shift in (0.0, 1.0)]
    if domain == "jets":
        samples = [unlabelled(toy_jets(n, s, k)) for n, s, k in ((2 * N, 1, 1.0), (N, 2, 1.0), (N, 3, 1.3))]
        card = ONE_CLASS
    elif domain == "cells":
        samples = [toy_showers(2 * N, 1), toy_showers(N, 2), smeared_showers(toy_showers(N, 3))]
        card = SHOWER_CARD
    else:
        samples = [showers("1_photons", n, s, k) for n, s, k in ((2 * N, 1, 1.0), (N, 2, 1.0), (N, 3, 1.6))]
        card = RINGS
    truth, same, smeared = samples
    return (
        Truth(card, truth),
        made(card, "same", truth, same, likelihoods=likelihoods[0]),
        made(card, "smeared", truth, smeared, likelihoods=likelihoods[1]),
    )


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Truth, Made, Made]]:
    return {domain: pair(domain) for domain in ("jets", "cells", "rings")}


def by_key(scores: tuple[Score, ...]) -> dict[tuple[str, str], Score]:
    return {(s.group, s.name): s for s in scores if np.isfinite(s.value)}


QUICK = [
    ("jets", "distributions"), ("jets", "jets"), ("cells", "distributions"), ("cells", "ild"), ("cells", "response"),
    ("cells", "conditional"), ("cells", "likelihood"), ("rings", "separations"), ("rings", "precision_recall"),
]  # fmt: skip
SLOW = [
    *(("jets", "coverage"), ("jets", "two_sample"), ("cells", "two_sample")),
    *(("rings", "distances"), ("rings", "classifiers")),
]


@pytest.mark.parametrize(
    ("domain", "part"), [*QUICK, *(pytest.param(*names, marks=pytest.mark.slow) for names in SLOW)]
)
def test_smeared_truth_is_worse_than_truth(pairs: dict[str, tuple[Truth, Made, Made]], domain: str, part: str) -> None:
    truth, *models = pairs[domain]
    same, smeared = (panel_scores(truth, model, [part]) for model in models)
    assert not [s for s in (*same, *smeared) if not s.group and not s.definition]
    assert {s.definition for s in same if not s.problem} and all("/" in s.definition for s in same if not s.problem)
    wrong = [sum(light(s) in ("fair", "poor") for s in found) for found in (same, smeared)]
    assert wrong[1] > 2 * wrong[0]
    both = [(by_key(same)[key], by_key(smeared)[key]) for key in by_key(same).keys() & by_key(smeared).keys()]
    further = np.mean([distance_from_ideal(b) > distance_from_ideal(a) for a, b in both])
    assert further > 0.6
    with_floor = [a for a, _ in both if np.isfinite(a.floor)]
    assert len(with_floor) >= len(both) / 3 and {s.n for s in with_floor} <= set(range(20, N + 1))


def test_a_copy_of_the_training_sample_is_found() -> None:
    train, held = toy_showers(300, 1), toy_showers(600, 2)
    truth = Truth(SHOWER_CARD, held)
    honest, copied = (
        by_key(panel_scores(truth, Made("m", clouds, train=train), ["memorisation"]))
        for clouds in (toy_showers(300, 3), train)
    )
    assert light(honest["all", "closer_to_training"]) == "good" and honest["all", "exact_copies"].value == 0
    assert copied["all", "closer_to_training"].value > 0.95 and copied["all", "exact_copies"].value == 1
    assert light(copied["all", "closer_to_training"]) == "poor" and copied["all", "c_t"].value < -3


def test_numbers_repeat_and_depend_on_the_seed(pairs: dict[str, tuple[Truth, Made, Made]]) -> None:
    truth, model, _ = pairs["cells"]
    again = Truth(truth.card, truth.clouds), Made(model.model, model.clouds, model.comparison)
    other = Truth(truth.card, truth.clouds, 1), again[1]
    first, second, third = (panel_scores(*samples, ["ild"]) for samples in ((truth, model), again, other))
    assert first == second != third


def test_one_metric_that_breaks_loses_no_other(
    pairs: dict[str, tuple[Truth, Made, Made]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    truth, model, _ = pairs["cells"]
    monkeypatch.setattr(shower_panels, "ild_distances", broken)
    scores = panel_scores(Truth(truth.card, truth.clouds), model)
    problems = [s for s in scores if s.panel == "ild"]
    assert [s.problem for s in problems] == [
        "this metric failed (ZeroDivisionError: division by zero); please report it"
    ]
    assert {s.panel for s in scores if not s.problem} >= {"distributions", "response", "conditional"}


def test_missing_conditions_and_few_objects_are_sentences_and_the_rest_is_given() -> None:
    nameless = toy_showers(200, 2).with_columns(SHOWER_CARD.feature_names, [], SHOWER_CARD.tag)
    truth = toy_showers(200, 1)
    scores = panel_scores(Truth(SHOWER_CARD, truth), made(SHOWER_CARD, "m", truth, nameless))
    problems = {s.panel: s.problem for s in scores if s.problem}
    assert set(problems) == {"response", "conditional"}
    assert all("no condition 'incident_energy'" in problem for problem in problems.values())
    assert {s.panel for s in scores if not s.problem} == {"distributions", "ild"}

    few = unlabelled(toy_jets(120, 1))
    scores = panel_scores(Truth(ONE_CLASS, few), Made("m", unlabelled(toy_jets(60, 2))), ["jets"])
    problems = {s.name: s.problem for s in scores if s.problem}
    assert set(problems) == {"fpd", "kpd"} and "at least 100 are needed" in problems["fpd"]
    assert {"w1m", "w1p.pt", "w1efp.mean", "quantiled_kld.mass"} <= {s.name for s in scores if not s.problem}


def test_which_metrics_are_chosen() -> None:
    names = {part.name for part in PARTS}
    assert {p.name for p in chosen("all")[0]} == names - {"official_classifiers"}
    assert all(part.cost == "quick" for part in chosen("quick")[0]) and not chosen("quick")[1]
    assert [p.name for p in chosen(["two_sample", "jets"])[0]] == ["jets", "two_sample"]
    assert {p.name for p in chosen("calochallenge")[0]} == {
        "separations",
        "distances",
        "precision_recall",
        "classifiers",
    }
    with pytest.raises(DataError, match="no metric 'two_samples' - did you mean 'two_sample'"):
        chosen(["quick", "two_samples"])
    with pytest.raises(DataError, match="no metrics are chosen"):
        chosen([])
    assert all(part.panel and part.what for part in PARTS) and isinstance(PARTS[0], Part)


def test_what_does_not_fit_is_left_out_or_named() -> None:
    truth, jets = Truth(ONE_CLASS, unlabelled(toy_jets(80, 1))), Made("m", unlabelled(toy_jets(40, 2)))
    assert {s.panel for s in panel_scores(truth, jets, ["response"])} == {"response"}
    (asked,) = panel_scores(truth, jets, ["memorisation"])
    assert asked.problem.startswith("not measured: give objects that the model was trained on")


def test_speed_is_there_where_a_timing_is() -> None:
    truth, clouds = Truth(SHOWER_CARD, toy_showers(40, 1)), toy_showers(20, 2)
    timings = Timing(1000, 4.0, 100, "cpu"), Timing(50, 0.0, 1)
    fast, broken = panel_scores(truth, Made("m", clouds, timings=timings), ["speed"])
    assert (fast.value, fast.unit, fast.name) == (250.0, "1/s", "objects_per_second.batch_100.cpu")
    assert fast.better == "higher" and light(fast) == ""
    assert "no timing" in broken.problem
    assert not [s for s in panel_scores(truth, made(SHOWER_CARD, "m", truth.clouds, clouds)) if s.panel == "speed"]


def test_metrics_are_read_back_as_they_were_written(tmp_path: Path, pairs: dict[str, tuple[Truth, Made, Made]]) -> None:
    truth, model, _ = pairs["cells"]
    saved = SavedMetrics(panel_scores(truth, model, ["response", "jets"]), 3, versions(), {"a": {"n": 1}}, (), ("p",))
    again = read_metrics(write_metrics(tmp_path / "metrics.json", saved))
    assert repr(again) == repr(SavedMetrics(*(getattr(saved, name) for name in saved.__dataclass_fields__)))
    assert again.models == ("same",) and {"foundation", "numpy", "torch"} <= set(again.versions)
    for content, words in (
        ("{", "cannot be read"),
        ('{"schema": "foundation/metrics/1"}', "schema foundation/metrics/1"),
    ):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(DataError, match=words):
            read_metrics(tmp_path / "other.json")
    with pytest.raises(DataError, match="no such file of metrics"):
        read_metrics(tmp_path / "none.json")


def test_published_numbers_are_for_their_dataset_and_definition_only(
    pairs: dict[str, tuple[Truth, Made, Made]],
) -> None:
    definition = "fpd/jetnet-0.2.5, calochallenge-9b41df7"
    found = {p.system: p for p in published("calochallenge_ds2", definition)}
    assert found["CaloDREAM"].value == pytest.approx(24.65e-3, rel=1e-3) and "2410.21611" in found["CaloDREAM"].source
    assert not published("calochallenge_ds2", "fpd/jetnet-0.2.5") and not published("geant4_par04", definition)
    assert {p.group for p in published("jetnet30")} == {"g", "q", "t"}
    for path in FOLDER.glob("*.yaml"):
        entries = published(path.stem)
        assert entries and all(np.isfinite(p.value) and p.source and p.definition for p in entries)
    ours = {(s.group, s.name, s.definition) for s in panel_scores(*pairs["rings"][:2], ["separations"])}
    theirs = {(p.group, p.name, p.definition) for p in published(RINGS.name) if p.name.startswith("separation")}
    assert theirs <= ours
