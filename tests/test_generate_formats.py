"""Generated objects in their datasets' own formats, read back; the command line and the recipe stage."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from test_data_cards_jets import FILES as JET_FILES
from test_data_cards_showers import written

from foundation.cli import main
from foundation.data.cards import DatasetCard, load_card
from foundation.data.collisions import hits_outside
from foundation.data.files import read_point_clouds, write_point_clouds
from foundation.data.formats.reading import read_file, with_features
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, RecipeError
from foundation.generate.campaign import Outputs, run_campaign
from foundation.generate.own_format import own_places, own_suffix, try_own_format, without_points
from foundation.generate.request_config import CampaignSettings
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Generate
from foundation.recipe.stages.generation import generate as generate_stage

from conftest import JETS, SHOWERS, toy_jets, toy_showers
from generators import model_folder, per_feature

JET_AXIS = {"jet_eta": 0.3, "jet_phi": 0.2}
ASSUME: dict[str, dict[str, float]] = {
    "jetclass": {**JET_AXIS, "jet_sdmass": 80.0, **{f"jet_tau{i}": 0.1 for i in range(1, 5)}},
    "jetnet30": JET_AXIS,
    "energyflow_qg": JET_AXIS,
    "omnilearned": JET_AXIS,
    "calochallenge_ds1_photons": {},
    "calochallenge_ds2": {},
    "getting_high": {},
    "omnijet_alpha_c": {},
    "spade_events": {},
    "spade_separate": {},
    "caloclouds": {"phi_angle": 0.4},
    "showerdata": {"phi_angle": 0.4},
    "multi_calo": {"phi_angle": 0.4, "gun_x": 0.0, "gun_y": 0.0, "gun_z": 0.0},
    "lemurs": {"phi_angle": 0.4},
}
QUICK = ("jetclass", "jetnet30", "calochallenge_ds1_photons", "calochallenge_ds2", "spade_events", "showerdata")
# Models here are not trained: what a card has twice, as pt and as px or as pid and as charge, would not agree.
TWICE = {"energyflow_qg": ("pdg_id", "rapidity", "phi"), "jetclass": ("px", "py", "pz", "energy")}
# EnergyFlow's axis is the sum of the constituents, which here is not where the angles are 0.
COMPARED = {"energyflow_qg": ("pt",)}


def truth_of(name: str, folder: Path) -> tuple[DatasetCard, Path, PointClouds]:
    """A shipped card, a file in its published layout, and its clouds."""
    if name in JET_FILES:
        file, write = JET_FILES[name]
        write(folder / file, np.random.default_rng(3), 30)
        card, path = load_card(name), folder / file
    else:
        card, path, _ = written(name, folder)
    return card, path, read_file(card, path)[0]


def model_of(folder: Path, card: DatasetCard, truth: PointClouds) -> Path:
    """A model that knows one dataset."""
    coded = with_features(card, tuple(name for name in card.feature_names if name not in TWICE.get(card.name, ())))
    return model_folder(folder, {card.tag: (card, per_feature(coded, truth))})


def sorted_points(clouds: PointClouds) -> np.ndarray:
    """Points of each cloud in an order of their own: files of images have another than the model."""
    return clouds.points[np.lexsort([*clouds.points.T, clouds.owners])]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ASSUME])
def test_files_in_the_own_format_hold_the_same_objects(name: str, tmp_path: Path) -> None:
    card, path, truth = truth_of(name, tmp_path)
    home = model_of(tmp_path / "model", card, truth)
    settings = {
        "dataset": card.tag, "objects": 7, "sampling": {"max_points": 6, "min_points": 2},
        "asked": {"source": {"file": str(path)}, "outside": True},
    }  # fmt: skip
    outputs = Outputs(tmp_path / "made.h5", tmp_path / f"own{own_suffix(card)}", ASSUME[name])
    report = run_campaign(home, CampaignSettings.model_validate(settings), outputs, part_objects=3)
    assert report is not None
    clouds = read_point_clouds(tmp_path / "made.h5")
    if "hits_left_out_of_images" in report["counts"]:
        assert card.geometry is not None
        lost = hits_outside(clouds, card.geometry)
        assert report["counts"]["hits_left_out_of_images"] == int(lost.sum()) > 0
        clouds = without_points(clouds, lost)
    again, _ = read_file(card, tmp_path / report["files"][1])
    assert np.array_equal(again.counts, clouds.counts) and np.array_equal(again.labels, clouds.labels)
    clouds, again = (
        c.with_columns(COMPARED.get(name, clouds.features), clouds.condition_names, card.tag) for c in (clouds, again)
    )
    np.testing.assert_allclose(again.conditions, clouds.conditions, rtol=1e-5)
    # what follows from px, py, pz in single precision has that precision relative to the jet's own direction
    np.testing.assert_allclose(sorted_points(again), sorted_points(clouds), rtol=2e-5, atol=2e-6)


def test_files_that_say_the_class_by_their_name_are_one_per_class(tmp_path: Path) -> None:
    card, _, truth = truth_of("jetnet30", tmp_path)
    home = model_of(tmp_path / "model", card, truth)
    arguments = [
        "generate",
        str(home),
        "--objects",
        "20",
        "--format",
        "own",
        "--min-points",
        "1",
        "--assume",
        "jet_eta=0.3",
        "jet_phi=0",
    ]
    assert main([*arguments, "--class", "g", "t", "--out", str(tmp_path / "made.hdf5")]) == 0
    for label, name in ((card.classes.index("g"), "g_made.hdf5"), (card.classes.index("t"), "t_made.hdf5")):
        clouds, _ = read_file(card, tmp_path / name)
        assert len(clouds) == 10 and (clouds.labels == label).all()
    assert main([*arguments, "--class", "w", "--out", str(tmp_path / "w_jets.hdf5")]) == 0
    assert (read_file(card, tmp_path / "w_jets.hdf5")[0].labels == card.classes.index("w")).all()


def test_what_a_format_lacks_is_said_before_anything_is_generated(tmp_path: Path) -> None:
    card, _, truth = truth_of("jetclass", tmp_path)
    home = model_of(tmp_path / "model", card, truth)
    settings: dict[str, Any] = {"dataset": card.tag, "objects": 7, "sampling": {"max_points": 6}}
    outputs = Outputs(None, tmp_path / "own.root", JET_AXIS)
    with pytest.raises(DataError, match="need jet_sdmass, jet_tau1"):
        run_campaign(home, CampaignSettings.model_validate(settings), outputs)
    assert not list(outputs.parts.glob("0*.h5"))
    card, _, truth = truth_of("jetnet30", tmp_path)
    home = model_of(tmp_path / "model30", card, truth)
    assert own_places(card) == 30
    settings = {"dataset": card.tag, "objects": 7, "sampling": {"max_points": 36}}
    with pytest.raises(DataError, match="have 30 places, but objects of up to 36 points .* set max_points to 30"):
        run_campaign(home, CampaignSettings.model_validate(settings), Outputs(None, tmp_path / "g.hdf5", JET_AXIS))
    open_class = {**settings, "sampling": {"max_points": 20}, "asked": {"classes": ["any"]}}
    with pytest.raises(DataError, match="some objects have no class"):
        run_campaign(home, CampaignSettings.model_validate(open_class), Outputs(None, tmp_path / "h.hdf5", JET_AXIS))
    with pytest.raises(DataError, match="does not say how files are laid out"):
        try_own_format(JETS, toy_jets(2, 1), {})


# The command line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of both toy datasets, in the folder of its stage."""
    tokenizers = {
        "toy_jets": (JETS, per_feature(JETS, toy_jets(300, 1))),
        "toy_showers": (SHOWERS, per_feature(SHOWERS, toy_showers(300, 1))),
    }
    return model_folder(tmp_path_factory.mktemp("stage") / "model", tokenizers)


def test_the_command_generates_what_it_is_asked_for(home: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "made.h5"
    arguments = ["generate", str(home.parent), "--dataset", "toy_showers", "--objects", "30", "--out", str(out)]
    more = ["--condition", "incident_energy=10,40", "--max-points", "9", "--temperature", "0.8", "--seed", "3"]
    more += ["--stream", "energy.top_k=3", "--reject-points", "2", "--slots", "7", "--min-p", "0.01"]
    assert main([*arguments, *more]) == 0
    clouds = read_point_clouds(out)
    assert clouds.conditions[:, 0].tolist() == [10, 40] * 15 and 2 <= clouds.counts.min() <= clouds.counts.max() <= 9
    settings = json.loads((tmp_path / "made.h5.json").read_text())["campaign"]["settings"]
    assert settings["seed"] == 3 and settings["sampling"]["streams"]["energy"]["top_k"] == 3
    said = capsys.readouterr().out
    assert "30 objects" in said and "objects per second" in said and "made.h5.json" in said and "rejected" in said
    # the same again is there already; other settings are not mixed with it
    assert main([*arguments, *more]) == 0
    assert main([*arguments, *more, "--seed", "4"]) == 2
    assert "of another campaign, which differs in settings.seed (3, now 4)" in capsys.readouterr().err


def test_the_command_completes_partial_objects(home: Path, tmp_path: Path) -> None:
    write_point_clouds(tmp_path / "truth.h5", toy_jets(12, 5))
    partial = ["--complete", str(tmp_path / "truth.h5"), "--keep", "2", "--out", str(tmp_path / "made.h5")]
    assert main(["generate", str(home), "--dataset", "toy_jets", *partial]) == 0
    clouds, truth = read_point_clouds(tmp_path / "made.h5"), toy_jets(12, 5)
    assert len(clouds) == 12
    assert np.array_equal(clouds.first_points(2).points, truth.first_points(2).points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objects", "3"], "knows several datasets, name one with --dataset: toy_jets, toy_showers"),
        (["--dataset", "toy_showers"], "say how many objects to generate: --objects N"),
        (["--dataset", "toy_shower", "--objects", "3"], "did you mean 'toy_showers'"),
        (["--dataset", "toy_showers", "--objects", "3", "--condition", "incident_energy"], "write NAME=VALUE"),
        (["--dataset", "toy_showers", "--objects", "3", "--condition", "incident_energy=a"], "'a' is not a number"),
        (["--dataset", "toy_showers", "--objects", "3", "--condition", "incident_energy=unifrm:1,2"],
         "no distribution 'unifrm' - did you mean 'uniform'"),
        (["--dataset", "toy_showers", "--objects", "3", "--condition", "incident_energy=uniform:9,6"], "lower end"),
        (["--dataset", "toy_showers", "--objects", "3", "--condition", "incident_energy=500"], "trained on 5 to 50"),
        (["--dataset", "toy_showers", "--objects", "0"], "objects: Input should be greater than or equal to 1"),
        (["--dataset", "toy_showers", "--keep", "3", "--objects", "3"], "partial objects need both"),
        (["--dataset", "toy_showers", "--objects", "3", "--reject-energy", "3"], "give three or four numbers"),
        (["--dataset", "toy_showers", "--objects", "3", "--stream", "energy=3"], "write STREAM.SETTING=NUMBER"),
        (["--dataset", "toy_showers", "--objects", "3", "--format", "own"], "does not say how files are laid out"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line_are_one_sentence(
    home: Path, tmp_path: Path, capsys: Any, options: list[str], message: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["generate", str(home), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_model_is_named(tmp_path: Path, capsys: Any) -> None:
    assert main(["generate", str(tmp_path), "--objects", "3"]) == 2
    assert "no model here: give a folder with a model.json" in capsys.readouterr().err


# The recipe stage


def stage(home: Path, folder: Path, samples: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Summary of a generate stage of a small recipe."""
    spec = Generate.model_validate({"kind": "generate", "name": "made", "from": "pretrain", "samples": samples, **more})
    artifacts = {"pretrain": artifact("pretrain", home.parent, {})}
    for tag, clouds in (("toy_jets", toy_jets(40, 5)), ("toy_showers", toy_showers(40, 5))):
        for split in ("test", "train"):
            write_point_clouds(folder / tag / split / "a.h5", clouds)
        artifacts[tag] = artifact(tag, folder / tag, {"tag": tag})
    (folder / "made").mkdir()
    context = StageContext(
        folder / "made", folder, folder, None, 3, 0, 1, None, MappingProxyType(artifacts)  # type: ignore[arg-type]
    )  # fmt: skip
    return generate_stage(spec, context)


def artifact(name: str, folder: Path, summary: dict[str, Any]) -> Artifact:
    return Artifact(folder, "import", name, "0" * 64, {}, 1, {}, summary, {}, {}, "", "", 0.0)


def test_the_stage_takes_the_conditions_of_the_truth_once_each(home: Path, tmp_path: Path) -> None:
    samples = [{"truth": "toy_showers", "objects": 40}, {"truth": "toy_jets", "objects": 10, "max_points": 9}]
    summary = stage(home, tmp_path, samples)
    showers, jets = (read_point_clouds(tmp_path / "made" / f"{tag}.h5") for tag in ("toy_showers", "toy_jets"))
    assert np.array_equal(np.sort(showers.conditions[:, 0]), np.sort(toy_showers(40, 5).conditions[:, 0]))
    assert np.bincount(jets.labels).tolist() == [10, 10] and jets.counts.max() <= 9
    assert summary["samples"] == {"toy_showers": "toy_showers", "toy_jets": "toy_jets"}
    assert summary["reports"]["toy_jets"]["objects"] == 20 and "toy_jets: 20 objects" in summary["line"]


def test_the_stage_can_do_what_the_command_can(home: Path, tmp_path: Path) -> None:
    sample = {
        "truth": "toy_showers", "objects": 20, "conditions": {"incident_energy": {"choice": [10, 20]}},
        "min_points": 1, "max_points": 9, "streams": {"energy": {"temperature": 0.5}}, "reject": {"min_points": 3},
        "calibrate": {"bins": 2, "objects": 40},
    }  # fmt: skip
    jets = {"truth": "toy_jets", "objects": 15, "complete": {"keep": 2}}
    summary = stage(home, tmp_path, [sample, jets], top_k=3, end_temperature=2.0, workers=1)
    showers, completed = (read_point_clouds(tmp_path / "made" / f"{tag}.h5") for tag in ("toy_showers", "toy_jets"))
    assert set(showers.conditions[:, 0].tolist()) == {10, 20} and showers.counts.min() >= 3
    assert "rejected" in summary["reports"]["toy_showers"] and "rejected" not in summary["reports"]["toy_jets"]
    assert np.array_equal(completed.labels, toy_jets(40, 5).labels[:15])
    assert np.array_equal(completed.first_points(2).points, toy_jets(40, 5).first_points(2).points[:30])
    report = json.loads((tmp_path / "made" / "toy_showers.h5.json").read_text())
    assert len(report["calibration"]["factors"]) == 2


def test_the_stage_names_what_is_wrong(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no class 'wied' - did you mean 'wide'"):
        stage(home, tmp_path / "a", [{"truth": "toy_jets", "classes": ["wied"]}])
    with pytest.raises(RecipeError, match="two samples of 'toy_jets' would be one file"):
        stage(home, tmp_path / "b", [{"truth": "toy_jets"}, {"truth": "toy_jets"}])
    with pytest.raises(DataError, match="no split 'valid'"):
        stage(home, tmp_path / "c", [{"truth": "toy_showers", "calibrate": {"split": "valid"}}])
