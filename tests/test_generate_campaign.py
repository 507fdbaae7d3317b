"""Campaigns: parts that survive a kill, ranks and workers that agree, partial objects, rejection, calibration."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from foundation.data.files import read_point_clouds, write_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.generate.campaign import Outputs, generate, run_campaign
from foundation.generate.campaign_folder import Part
from foundation.generate.corrections import Calibration, calibration_of
from foundation.generate.decoding import energy_sums
from foundation.generate.opening import open_campaign
from foundation.generate.request_config import CampaignSettings
from foundation.model.weights import load_backbone
from foundation.tokens.tokenizer import Tokenizer

from conftest import JETS, SHOWERS, ToyTokens, toy_jets, toy_showers
from generators import model_folder, per_feature
from gloo_ranks import run_distributed

SOME = {"incident_energy": {"log_uniform": [5, 50]}}


@dataclass(frozen=True)
class Model:
    """A model folder and its tokenizers."""

    home: Path
    tokenizers: dict[str, Tokenizer]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of both toy datasets."""
    tokenizers = {
        "toy_jets": per_feature(JETS, toy_jets(300, 1)),
        "toy_showers": per_feature(SHOWERS, toy_showers(300, 1)),
    }
    home = tmp_path_factory.mktemp("generator") / "model"
    cards = {"toy_jets": JETS, "toy_showers": SHOWERS}
    return Model(model_folder(home, {tag: (cards[tag], t) for tag, t in tokenizers.items()}), tokenizers)


def wanted(dataset: str = "toy_showers", objects: int = 90, **more: Any) -> CampaignSettings:
    """Settings of a small campaign."""
    asked = {"conditions": SOME} if dataset == "toy_showers" else {}
    settings = {"dataset": dataset, "objects": objects, "sampling": {"max_points": 12}, "asked": asked}
    return CampaignSettings.model_validate(settings | more)


def made(model: Model, out: Path, **more: Any) -> tuple[PointClouds, dict[str, Any]]:
    """Clouds and report of a campaign of small parts."""
    report = run_campaign(model.home, wanted(**more), Outputs(out), part_objects=16)
    assert report is not None and not Outputs(out).parts.exists()
    return read_point_clouds(out), report


def same(a: PointClouds, b: PointClouds) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
        for name in ("points", "offsets", "labels", "conditions")
    )


# Parts


def run_it(model: Model, out: Path, settings: CampaignSettings, workers: int = 1) -> None:
    torch.set_num_threads(1)
    run_campaign(model.home, settings, Outputs(out), part_objects=16, workers=workers)


def test_a_killed_campaign_goes_on_without_a_gap_or_a_twin(model: Model, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole, out, settings = tmp_path / "whole.h5", tmp_path / "killed.h5", wanted(objects=320)
    run_it(model, whole, settings)
    rng, parts, kills = np.random.default_rng(), Outputs(out).parts, 0
    for target in (0, 3, 8, 13, 17, 20, 20):  # finished parts of 20, then a random moment
        process = multiprocessing.get_context("fork").Process(target=run_it, args=(model, out, settings))
        process.start()
        while process.is_alive() and len(list(parts.glob("0*.h5"))) < target:
            time.sleep(0.002)
        process.join(rng.uniform(0, 0.05))
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
    assert kills > 3
    run_it(model, out, settings)
    # bit for bit: points, order, counts, and what is said of them
    assert out.read_bytes() == whole.read_bytes()
    assert not Outputs(out).parts.exists() and not list(tmp_path.glob("*.part"))


def test_ranks_make_the_same_file_as_one_process(model: Model, tmp_path: Path) -> None:
    settings = wanted(objects=60)
    run_it(model, tmp_path / "one.h5", settings)
    run_distributed(run_it, 2, model, tmp_path / "other.h5", settings)
    require_equal(tmp_path)


@pytest.mark.slow
def test_workers_make_the_same_file_as_one_process(model: Model, tmp_path: Path) -> None:
    settings = wanted(objects=60)
    run_it(model, tmp_path / "one.h5", settings)
    run_it(model, tmp_path / "other.h5", settings, 2)
    require_equal(tmp_path)


def require_equal(folder: Path) -> None:
    assert (folder / "one.h5").read_bytes() == (folder / "other.h5").read_bytes()
    one, other = (json.loads((folder / f"{name}.h5.json").read_text()) for name in ("one", "other"))
    assert one["counts"] == other["counts"] and one["campaign"] == other["campaign"]


def test_an_object_depends_on_its_number_alone(model: Model, tmp_path: Path) -> None:
    clouds, _ = made(model, tmp_path / "a.h5")
    fewer, _ = made(model, tmp_path / "b.h5", objects=40)
    assert same(clouds.select(slice(0, 40)), fewer)
    run_campaign(model.home, wanted(), Outputs(tmp_path / "c.h5"), part_objects=1000, slots=5)
    assert same(clouds, read_point_clouds(tmp_path / "c.h5"))
    other, _ = made(model, tmp_path / "d.h5", seed=2)
    assert not np.array_equal(other.counts, clouds.counts)
    opened = open_campaign(str(model.home), wanted().model_dump_json(), 0)
    backbone, about = load_backbone(model.home)
    index = np.arange(90)
    in_memory = generate(
        backbone, about.layout, model.tokenizers["toy_showers"], SHOWERS, *opened.asking(index),
        seed=1, config=wanted().sampling,
    )  # fmt: skip
    assert same(in_memory.clouds, clouds)


def test_a_report_says_what_happened_and_a_finished_campaign_is_not_made_again(model: Model, tmp_path: Path) -> None:
    clouds, report = made(model, tmp_path / "a.h5")
    counts = report["counts"]
    assert counts["objects"] == 90 and counts["empty"] == int((clouds.counts == 0).sum())
    assert counts["reached_max_points"] >= int((clouds.counts == 12).sum()) > 0
    assert counts["tokens"] == 4 * (len(clouds.points) + counts["merged_hits"])
    assert report["campaign"]["settings"]["seed"] == 1 and len(report["weights"]) == 64
    assert report["objects_per_process_second"] == pytest.approx(90 / report["process_seconds"], rel=0.01)
    with h5py.File(tmp_path / "a.h5") as f:
        inside = json.loads(f.attrs["provenance"])
    assert inside["objects"] == 90 and inside["weights"] == report["weights"] and "process_seconds" not in inside
    before = (tmp_path / "a.h5").stat().st_mtime_ns
    assert made(model, tmp_path / "a.h5")[1] == report
    assert (tmp_path / "a.h5").stat().st_mtime_ns == before


def stopped_campaign(model: Model, out: Path) -> Path:
    """The folder of a campaign that stopped before the end."""
    with pytest.raises(RuntimeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr("foundation.generate.campaign.write_results", lambda *_: (_ for _ in ()).throw(RuntimeError))
        run_it(model, out, wanted())
    return Outputs(out).parts


def test_a_folder_of_another_campaign_is_refused(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    folder = stopped_campaign(model, out)
    with pytest.raises(DataError, match=r"of another campaign, which differs in settings.seed \(1, now 2\)"):
        run_it(model, out, wanted(seed=2))
    run_it(model, out, wanted())
    with pytest.raises(DataError, match=r"differs in settings.objects \(90, now 20\)"):
        run_it(model, out, wanted(objects=20))
    out.with_name("a.h5.json").unlink()
    with pytest.raises(DataError, match="exists already, and is not overwritten"):
        run_it(model, out, wanted())
    folder.mkdir()
    (folder / "campaign.json").write_text("{")
    with pytest.raises(DataError, match=r"campaign.json: damaged; remove the folder a.h5.parts"):
        run_it(model, out, wanted())


def test_damaged_parts_are_made_again(model: Model, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.h5", tmp_path / "a.h5"
    run_it(model, whole, wanted())
    folder = stopped_campaign(model, out)
    parts = sorted(folder.glob("0*.h5"))
    assert len(parts) == 6
    parts[0].unlink()
    parts[3].write_bytes(parts[3].read_bytes()[:500])
    parts[5].write_bytes(parts[4].read_bytes()[:-100])
    write_point_clouds(parts[2], toy_showers(16, 1))
    run_it(model, out, wanted())
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "toy_shower"}, "not trained on 'toy_shower' - did you mean 'toy_showers'"),
        ({"asked": {"classes": ["muon"]}}, "no class 'muon'"),
        ({"sampling": {"max_points": 9, "streams": {"enrgy": {}}}}, "settings of the stream 'enrgy'"),
        ({"asked": {}, "reject": {"energy_sum": {"factor": 1}}}, "needs the incident energy of every shower"),
        ({"dataset": "toy_jets", "calibrate": {"truth": "x.h5"}}, "a calibration of the energy needs showers"),
        ({"dataset": "toy_jets", "reject": {"energy_sum": {"factor": 1}}}, "envelope of the energy sum needs showers"),
        ({"complete": {"file": "gone.h5", "keep": 2}}, "gone.h5: no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_generated_is_one_sentence(
    model: Model, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run_it(model, tmp_path / "a.h5", wanted(**changes))
    assert not (tmp_path / "a.h5").exists()


# Conditions


def test_the_clouds_carry_what_was_asked_for(model: Model, tmp_path: Path) -> None:
    truth = toy_showers(70, 9)
    write_point_clouds(tmp_path / "truth.h5", truth)
    asked = {"source": {"file": str(tmp_path / "truth.h5")}}
    clouds, _ = made(model, tmp_path / "a.h5", asked=asked, objects=140)
    assert np.array_equal(clouds.conditions[:70], truth.conditions) and same_half(clouds.conditions)
    jets, _ = made(model, tmp_path / "b.h5", dataset="toy_jets", asked={"classes": ["wide"]}, objects=40)
    assert (jets.labels == 1).all()
    _, report = made(model, tmp_path / "c.h5", asked={"conditions": {"incident_energy": 80}, "outside": True})
    assert report["counts"]["outside_incident_energy"] == 90


def same_half(values: np.ndarray) -> bool:
    return np.array_equal(values[: len(values) // 2], values[len(values) // 2 :])


# Partial objects


@pytest.mark.parametrize("tag", ["toy_jets", "toy_showers"])
def test_partial_objects_begin_with_what_was_given(model: Model, tmp_path: Path, tag: str) -> None:
    truth = toy_jets(40, 9) if tag == "toy_jets" else toy_showers(40, 9)
    write_point_clouds(tmp_path / "truth.h5", truth)
    clouds, report = made(
        model, tmp_path / "a.h5", dataset=tag, objects=60, asked={},
        complete={"file": str(tmp_path / "truth.h5"), "keep": 4}, sampling={"max_points": 9},
    )  # fmt: skip
    assert np.array_equal(clouds.labels, truth.labels[np.arange(60) % 40])
    assert np.array_equal(clouds.conditions, truth.conditions[np.arange(60) % 40])
    longer = 0
    for i, points in enumerate(clouds):
        given = truth.points[truth.offsets[i % 40] : truth.offsets[i % 40 + 1]][:4]
        if tag == "toy_jets":
            assert np.array_equal(points[: len(given)], given)
            longer += len(points) > len(given)
        else:  # hits in one voxel are added: its cell is there, with at least the energy that was given
            for hit in given:
                here = (points[:, :3] == hit[:3]).all(axis=1)
                assert here.sum() == 1 and points[here][0, 3] >= hit[3] * (1 - 1e-6)
            longer += len(points) > len(given)
    assert longer > 10
    assert report["campaign"]["settings"]["complete"]["keep"] == 4


def test_more_points_cannot_be_kept_than_objects_may_have(model: Model, tmp_path: Path) -> None:
    write_point_clouds(tmp_path / "truth.h5", toy_jets(10, 9))
    complete = {"file": str(tmp_path / "truth.h5"), "keep": 12}
    with pytest.raises(DataError, match="12 points are kept, but objects end at 12"):
        made(model, tmp_path / "a.h5", dataset="toy_jets", complete=complete)


def test_patches_have_no_points_to_begin_with(toy: ToyTokens, tmp_path: Path) -> None:
    from foundation.generate.beginnings import read_beginnings
    from foundation.generate.request_config import Complete

    tokenizer = toy.tokenizers["toy_jets"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tokenizer), "tokens_per_object", 7)
        with pytest.raises(DataError, match="codes patches and not points"):
            read_beginnings(JETS, tokenizer, Complete(file="x", keep=1), 5)


# Rejection


def test_rejected_objects_are_drawn_again_and_the_others_stay_as_they_were(model: Model, tmp_path: Path) -> None:
    plain, before = made(model, tmp_path / "a.h5")
    clouds, report = made(model, tmp_path / "b.h5", reject={"min_points": 4, "tries": 40})
    counts = report["counts"]
    assert clouds.counts.min() >= 4 and counts["not_accepted"] == 0
    stay = np.flatnonzero(plain.counts >= 4)
    assert same(clouds.select(stay), plain.select(stay)) and len(stay) < 90
    # each that was rejected once is at least one of the rejected ones
    assert counts["rejected"] >= 90 - len(stay)
    assert report["rejection_rate"] == pytest.approx(counts["rejected"] / (90 + counts["rejected"]))
    assert "rejected" not in before["counts"] and "rejection_rate" not in before
    assert np.array_equal(clouds.conditions, plain.conditions)


def test_an_envelope_of_the_energy_sum(model: Model, tmp_path: Path) -> None:
    envelope = {"factor": 0.8, "power": 0.9, "offset": 2.0, "scale": 1.5}
    clouds, report = made(model, tmp_path / "a.h5", reject={"energy_sum": envelope, "tries": 60})
    least = 1.5 * (0.8 * clouds.conditions[:, 0].astype(float) ** 0.9 + 2.0)
    low = energy_sums(clouds) < least
    assert int(low.sum()) == report["counts"]["not_accepted"] <= 5 < report["counts"]["rejected"]


def test_after_the_last_try_the_object_is_kept_and_counted(model: Model, tmp_path: Path) -> None:
    clouds, report = made(model, tmp_path / "a.h5", reject={"min_points": 1000, "tries": 3}, objects=30)
    assert len(clouds) == 30
    assert report["counts"]["not_accepted"] == 30 and report["counts"]["rejected"] == 90
    alone, _ = made(model, tmp_path / "b.h5", reject={"min_points": 1000, "tries": 3}, objects=7)
    assert same(clouds.select(slice(0, 7)), alone)


# Calibration


def test_factors_are_the_quotient_of_mean_responses() -> None:
    rng = np.random.default_rng(1)
    incident = rng.uniform(10, 90, 4000)
    truth = incident, 0.03 * incident * rng.normal(1, 0.1, 4000)
    wrong = np.where(incident < 50, 1.25, 0.8)
    calibration = calibration_of(truth, (incident, truth[1] * wrong), 2)
    assert calibration.edges[1] == pytest.approx(50, abs=2)
    assert np.allclose(calibration.factors, [0.8, 1.25], rtol=0.03)
    clouds = toy_showers(50, 1)
    factor = np.where(clouds.conditions[:, 0] < calibration.edges[1], *calibration.factors)
    assert np.allclose(energy_sums(calibration(clouds)), factor * energy_sums(clouds), rtol=1e-6)
    one = calibration_of((np.full(9, 5.0), np.full(9, 2.0)), (np.full(4, 5.0), np.full(4, 1.0)), 10)
    assert one.factors == pytest.approx((2.0,))
    with pytest.raises(DataError, match="a bin holds no showers"):
        calibration_of(truth, (incident[incident < 40], truth[1][incident < 40]), 8)


def test_showers_without_an_incident_energy_are_not_calibrated() -> None:
    clouds = toy_showers(4, 1)
    clouds = replace(clouds, conditions=np.array([[10], [np.nan], [100], [1]], np.float32))
    found = energy_sums(Calibration((5.0, 20.0, 50.0), (2.0, 3.0))(clouds)) / energy_sums(clouds)
    assert np.allclose(found, [2, 1, 3, 2])


def test_a_calibrated_campaign_has_the_response_of_the_truth(model: Model, tmp_path: Path) -> None:
    truth = toy_showers(400, 9)
    write_point_clouds(tmp_path / "truth.h5", truth)
    calibrate = {"truth": str(tmp_path / "truth.h5"), "bins": 3, "objects": 400}
    asked = {"source": {"file": str(tmp_path / "truth.h5")}}
    plain, _ = made(model, tmp_path / "a.h5", objects=400, asked=asked)
    clouds, report = made(model, tmp_path / "b.h5", objects=400, asked=asked, calibrate=calibrate)
    factors = np.array(report["calibration"]["factors"])
    place = np.searchsorted(report["calibration"]["edges_of_incident_energy"][1:-1], plain.conditions[:, 0], "right")
    assert np.allclose(energy_sums(clouds), energy_sums(plain) * factors[place], rtol=1e-5)

    def responses(of: PointClouds) -> np.ndarray:
        response = energy_sums(of) / of.conditions[:, 0]
        return np.bincount(place, response) / np.bincount(place)

    # the sample that was fitted on is another one: equal up to the fluctuations of both
    assert np.allclose(responses(clouds) / responses(truth), 1, atol=0.25)
    assert (np.abs(responses(plain) / responses(truth) - 1) > 0.3).any()


def test_a_part_is_one_stream_with_the_next(model: Model) -> None:
    """Nothing is lost or mixed up where parts end while others have begun, retries included."""
    opened = open_campaign(str(model.home), wanted(reject={"min_points": 3}).model_dump_json(), 16)
    generator = replace(opened.generator, reject=opened.settings.reject)
    parts = [Part(0, 3), Part(3, 25), Part(25, 26), Part(26, 40)]
    streamed = dict(generator.parts(opened.wanted(part) for part in parts))
    (alone,) = (m for _, m in generator.parts([opened.wanted(Part(0, 40))]))
    joined = PointClouds.concatenate([streamed[i].clouds for i in range(4)])
    assert same(joined, alone.clouds)
