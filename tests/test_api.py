"""A trained model in Python: `foundation.load` and what can be done with what it returns; `foundation likelihood`."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foundation
from foundation.cli import main
from foundation.data.files import read_point_clouds, write_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, FoundationError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.model.weights import ModelFolder, save_model
from foundation.registry.models import register_model
from foundation.tasks.classification import Classification
from foundation.tasks.generation import Generation
from foundation.tokens.tokenizer import tokenizer_digest
from foundation.tokens.vocabulary import Addition, Vocabulary

from conftest import JETS, SHOWERS, ToyTokens

ROOT = Path(__file__).parent.parent
CONFIG = TransformerConfig(width=32, layers=2, heads=4)
LONGEST = 20


def model_folder(
    home: Path, toy: ToyTokens, tags: tuple[str, ...] = ("toy_jets", "toy_showers"), longest: int = LONGEST
) -> Path:
    """A model folder as a pretrain stage leaves it, with random weights."""
    additions = []
    for card in (JETS, SHOWERS):
        if card.tag in tags:
            toy.tokenizers[card.tag].save(home / "tokenizers" / card.tag)
            digest = tokenizer_digest(home / "tokenizers" / card.tag)
            additions.append(Addition.of(card, toy.tokenizers[card.tag], digest))
            (home / "cards").mkdir(exist_ok=True)
            (home / "cards" / f"{card.tag}.json").write_text(card.model_dump_json())
            (home / "cards" / f"{card.tag}.longest.json").write_text(str(longest))
    vocabulary = Vocabulary.build(additions)
    about = ModelFolder(CONFIG, "delayed", Generation.name, {}, vocabulary)
    torch.manual_seed(1)
    backbone = Transformer(CONFIG, vocabulary.size)
    save_model(home, {f"backbone.{k}": v for k, v in backbone.state_dict().items()}, about)
    return home


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy: ToyTokens) -> Path:
    """A folder of runs with a stage, and its model in the registry."""
    base = tmp_path_factory.mktemp("runs")
    folder = model_folder(base / "job" / "pretrain" / "model", toy)
    register_model(folder, "toys", run_folder=base / "job", run_id=None, tags={}, metrics={}, aliases=["best"])
    # as the documents name it; short objects, for many are made
    folder = model_folder(base / "quickstart" / "pretrain" / "model", toy, longest=6)
    register_model(folder, "quickstart-backbone", run_folder=base / "quickstart", run_id=None, tags={}, metrics={})
    return base


@pytest.fixture(scope="module")
def model(runs: Path) -> foundation.Model:
    return foundation.load(runs / "job" / "pretrain")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, runs: Path) -> Iterator[None]:
    """Random weights seldom end an object; that they are cut is tested where it is the point."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOUNDATION_RUNS", str(runs))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* were cut at max_points")
        yield


def same(a: PointClouds, b: PointClouds) -> bool:
    return a.points.tobytes() == b.points.tobytes() and a.offsets.tolist() == b.offsets.tolist()


# ---- loading


def test_import_is_light() -> None:
    code = (
        "import sys, foundation; assert foundation.__version__; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        foundation.lod  # noqa: B018


def test_a_model_is_found_by_all_its_names(runs: Path, model: foundation.Model) -> None:
    for name in (
        "job/pretrain",
        runs / "job" / "pretrain" / "model",
        "models:/toys@best",
        "models:/toys",
        "models:/toys/1",
    ):
        found = foundation.load(name, device="cpu")
        assert found.about == model.about or found.vocabulary.digest == model.vocabulary.digest
        assert torch.equal(found.backbone.output_weight, model.backbone.output_weight)
    assert foundation.load("models:/toys@best", runs=runs).folder != model.folder


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("job/pretrian", {}, "job/pretrian: no model here: give a folder with a model.json"),
        ("models:/toy", {}, "no registered model 'toy' - did you mean 'toys'"),
        ("models:/toys@bets", {}, "has no alias 'bets' - did you mean 'best'"),
        ("models:/toys", {"device": "gpu"}, "device 'gpu' cannot be used here"),
    ],
)
def test_what_cannot_be_loaded_is_said(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(FoundationError, match=message):
        foundation.load(name, **more)


def test_datasets_say_what_can_be_asked_for(model: foundation.Model) -> None:
    assert list(model.datasets) == ["toy_jets", "toy_showers"]
    jets, showers = model.datasets.values()
    assert jets.classes == ("narrow", "wide") and jets.conditions == () and jets.longest == LONGEST
    assert [(c.name, c.unit, c.range) for c in showers.conditions] == [("incident_energy", "GeV", (5.0, 50.0))]
    assert [f.name for f in showers.features] == ["layer", "x", "y", "energy"]
    assert "toy_showers (Toy showers): classes photon; incident_energy 5 to 50 GeV" in repr(model)


# ---- generating


def test_generated_clouds_are_those_of_the_dataset(model: foundation.Model) -> None:
    jets = model.generate(7, "toy_jets")
    assert len(jets) == 7 and jets.tag == "toy_jets" and jets.features == JETS.feature_names
    assert jets.labels.tolist() == [0, 1, 0, 1, 0, 1, 0] and jets.counts.max() <= 1.2 * LONGEST
    assert same(model.generate(7, "toy_jets"), jets) and not same(model.generate(7, "toy_jets", seed=2), jets)


def test_an_object_depends_on_its_number_alone(model: foundation.Model) -> None:
    energy = {"incident_energy": {"log_uniform": [5, 50]}}
    whole = model.generate(9, "toy_showers", condition=energy, seed=4)
    assert len(set(whole.condition("incident_energy").tolist())) == 9
    parts = list(model.iterate("toy_showers", n=9, part=4, condition=energy, seed=4))
    assert [len(part) for part in parts] == [4, 4, 1] and same(PointClouds.concatenate(parts), whole)
    endless = islice(model.iterate("toy_showers", part=2, slots=4, condition=energy, seed=4), 3)
    assert same(PointClouds.concatenate(list(endless)), whole.select(slice(0, 6)))
    rest = model.generate(4, "toy_showers", condition=energy, seed=4, first=5)
    assert same(rest, whole.select(slice(5, 9)))
    assert rest.condition("incident_energy").tolist() == whole.condition("incident_energy")[5:].tolist()


def test_classes_and_conditions_can_be_given_per_object(model: foundation.Model) -> None:
    assert model.generate(3, "toy_jets", label="wide").labels.tolist() == [1, 1, 1]
    assert model.generate(2, "toy_jets", label=0).labels.tolist() == [0, 0]
    assert model.generate(2, "toy_jets", label="any").labels.tolist() == [-1, -1]
    mixed = model.generate(4, "toy_jets", label=["wide", "narrow", "any", "wide"], first=3)
    assert mixed.labels.tolist() == [1, 0, -1, 1]
    assert model.generate(2, "toy_jets", label=np.array([1, 0])).labels.tolist() == [1, 0]
    energies = np.array([10.0, 40.0, np.nan], np.float32)
    for given in (energies, energies.tolist()):
        showers = model.generate(3, "toy_showers", condition={"incident_energy": given})
        np.testing.assert_array_equal(showers.condition("incident_energy"), energies)
    for one, expected in ((20, 20.0), ("any", np.nan), (np.float32(7), 7.0)):
        showers = model.generate(2, "toy_showers", condition={"incident_energy": one})
        np.testing.assert_array_equal(showers.condition("incident_energy"), [expected] * 2)
    assert np.isnan(model.generate(1, "toy_showers").condition("incident_energy")).all()
    far = model.generate(1, "toy_showers", condition={"incident_energy": 500.0}, outside=True)
    assert far.condition("incident_energy").tolist() == [500.0]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "the model knows several datasets, name one: toy_jets, toy_showers"),
        ({"dataset": "toy_jet"}, "knows no dataset 'toy_jet' - did you mean 'toy_jets'"),
        ({"dataset": "toy_jets", "n": 0}, "nothing to generate: 0 objects"),
        ({"dataset": "toy_jets", "label": "wider"}, "has no class 'wider' - did you mean 'wide'"),
        ({"dataset": "toy_jets", "label": 2}, r"has no class '2' \(0 to 1\)"),
        ({"dataset": "toy_jets", "label": ["wide"]}, "label: there are 1 values for 2 objects"),
        ({"dataset": "toy_jets", "condition": {"energy": 1.0}}, "'toy_jets' has no condition 'energy'"),
        ({"condition": {"incident_enrgy": 1.0}}, "no condition 'incident_enrgy' - did you mean 'incident_energy'"),
        ({"condition": {"incident_energy": [1.0, 2.0, 3.0]}}, "there are 3 values for 2 objects"),
        ({"condition": {"incident_energy": [[1.0, 2.0]]}}, "one per object, not the shape"),
        ({"condition": {"incident_energy": ["a", "b"]}}, "give a number, one number per object, or a distribution"),
        ({"condition": {"incident_energy": 500.0}}, "asked for with 500 GeV, but the model was trained on 5 to 50"),
        ({"condition": {"incident_energy": [10.0, 90.0]}}, "asked for with 10 to 90 GeV, but the model was trained on"),
        ({"condition": {"incident_energy": {"gauss": [1, 2]}}}, "condition 'incident_energy': "),
        ({"condition": {"incident_energy": {"uniform": [9, 8]}}}, "uniform needs its lower end first"),
        ({"temprature": 1.0}, "sampling has no setting 'temprature' - did you mean 'temperature'"),
        ({"temperature": -1.0}, "sampling setting 'temperature': Input should be greater than 0"),
    ],
)
def test_what_a_model_does_not_know_is_said_in_a_sentence(
    model: foundation.Model, wanted: dict[str, Any], message: str
) -> None:
    known = {"temprature", "temperature", "condition"} & set(wanted)
    wanted = {"n": 2, **({"dataset": "toy_showers"} if known else {}), **wanted}
    with pytest.raises(DataError, match=message) as error:
        model.generate(**wanted)
    assert "\n" not in str(error.value)


def test_values_per_object_without_end_are_refused(model: foundation.Model) -> None:
    with pytest.raises(DataError, match="values for each object need n"):
        model.iterate("toy_jets", label=["wide", "wide"])
    with pytest.raises(DataError, match="a part has at least one object, not 0"):
        model.iterate("toy_jets", part=0)


def test_objects_that_are_cut_are_counted_and_warned_of(model: foundation.Model) -> None:
    with pytest.warns(UserWarning, match="of 5 objects were cut at max_points: give a larger"):
        jets = model.generate(5, "toy_jets", max_points=1, min_points=1)
    assert jets.counts.tolist() == [1] * 5 and 0 < model.report["reached_max_points"] <= 5
    assert model.report["objects"] == 5


def test_python_and_the_command_make_the_same_objects(
    runs: Path, model: foundation.Model, toy: ToyTokens, tmp_path: Path
) -> None:
    out, folder = tmp_path / "showers.h5", str(runs / "job" / "pretrain")
    arguments = ["--dataset", "toy_showers", "--objects", "6", "--seed", "5", "--out", str(out)]
    assert main(["generate", folder, *arguments, "--condition", "incident_energy=uniform:10,20"]) == 0
    showers = model.generate(6, "toy_showers", condition={"incident_energy": {"uniform": [10, 20]}}, seed=5)
    assert same(read_point_clouds(out), showers)
    begun, done = toy.clouds["toy_showers"].select(slice(0, 6)), tmp_path / "done.h5"
    write_point_clouds(tmp_path / "begun.h5", begun)
    arguments = [
        "--dataset",
        "toy_showers",
        "--complete",
        str(tmp_path / "begun.h5"),
        "--keep",
        "2",
        "--out",
        str(done),
    ]
    assert main(["generate", folder, *arguments]) == 0
    assert same(read_point_clouds(done), model.complete(begun, keep=2))


def test_a_model_of_one_dataset_needs_no_name(tmp_path: Path, toy: ToyTokens) -> None:
    alone = foundation.load(model_folder(tmp_path, toy, ("toy_jets",)))
    jets = alone.generate(2)
    assert jets.tag == "toy_jets" and alone.log_likelihood(replace(jets, tag="")).shape == (2,)


def test_another_task_does_not_generate(tmp_path: Path, toy: ToyTokens, model: foundation.Model) -> None:
    folder = model_folder(tmp_path, toy)
    torch.manual_seed(0)
    tagger = Classification(Transformer(CONFIG, model.vocabulary.size), 2)
    save_model(folder, tagger.state_dict(), replace(model.about, task=Classification.name))
    loaded, jets = foundation.load(folder), toy.clouds["toy_jets"]
    assert len(loaded.encode(jets).values) == len(jets.points)
    for call in (lambda: loaded.generate(1, "toy_jets"), lambda: loaded.log_likelihood(jets)):
        with pytest.raises(DataError, match="a model for classification, which has unlearnt to generate"):
            call()


# ---- partial objects, codes, likelihood


def test_completed_objects_begin_as_they_were_given(model: foundation.Model, toy: ToyTokens) -> None:
    jets = toy.clouds["toy_jets"].select(slice(0, 8))
    done = model.complete(jets, keep=4)
    assert len(done) == 8 and done.labels.tolist() == jets.labels.tolist()
    for before, after in zip(jets, done, strict=True):
        assert len(after) >= min(4, len(before)) and after[:4].tolist() == before[:4][: len(after)].tolist()
    shuffled = replace(jets, points=np.concatenate([cloud[::-1] for cloud in jets]))
    assert same(model.complete(shuffled, keep=4), done)  # the first in the card's order, not the file's
    with pytest.raises(DataError, match="at least one point of each object is kept, not 0"):
        model.complete(jets, keep=0)
    bare = toy.clouds["toy_showers"].with_columns(SHOWERS.feature_names, [], "toy_showers")
    with pytest.raises(DataError, match="with the condition 'incident_energy', which these point clouds do not have"):
        model.complete(bare, keep=1)


def test_codes_and_back(model: foundation.Model, toy: ToyTokens) -> None:
    showers = toy.clouds["toy_showers"].select(slice(0, 5))
    codes = model.encode(showers)
    again = model.decode(codes, "toy_showers", labels=showers.labels, conditions=showers.conditions)
    assert np.array_equal(model.encode(again).values, codes.values)
    assert again.conditions.tolist() == showers.conditions.tolist()
    assert np.isnan(model.decode(codes, "toy_showers").conditions).all()


def test_likelihood_of_clouds(model: foundation.Model, toy: ToyTokens) -> None:
    jets = toy.clouds["toy_jets"].select(slice(0, 20))
    given = model.log_likelihood(jets)
    assert given.shape == (20,) and given.dtype == np.float64 and (given < 0).all()
    of_classes = model.class_log_likelihoods(jets)
    np.testing.assert_allclose(of_classes[np.arange(20), jets.labels], given, rtol=1e-5)
    np.testing.assert_allclose(
        model.log_likelihood(jets, classes="sum", prior=[0.3, 0.7]),
        np.log(0.3 * np.exp(of_classes[:, 0]) + 0.7 * np.exp(of_classes[:, 1])),
    )
    unknown = replace(jets, labels=np.full(20, -1))
    np.testing.assert_allclose(model.log_likelihood(jets, classes="any"), model.log_likelihood(unknown), rtol=1e-6)
    parts = model.log_probabilities(jets)
    np.testing.assert_allclose(parts.counts + parts.streams.sum(axis=1), given, rtol=1e-6)
    shuffled = replace(jets, points=np.concatenate([cloud[::-1] for cloud in jets]))
    np.testing.assert_allclose(model.log_likelihood(shuffled), given, rtol=1e-6)
    for more, message in (
        ({"classes": "all"}, "classes are 'given' or 'any'"),
        ({"conditions": "no"}, "conditions are"),
    ):
        with pytest.raises(DataError, match=message):
            model.log_likelihood(jets, **more)  # type: ignore[arg-type]
    showers = toy.clouds["toy_showers"].with_columns(SHOWERS.feature_names, [], "toy_showers")
    assert model.log_likelihood(showers, conditions="any").shape == (len(showers),)
    with pytest.raises(DataError, match="needs feature 'pt'"):
        model.log_likelihood(showers, "toy_jets")


def test_the_command_writes_the_scores(
    runs: Path, model: foundation.Model, toy: ToyTokens, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jets = toy.clouds["toy_jets"].select(slice(0, 30))
    write_point_clouds(tmp_path / "a.h5", jets.select(slice(0, 20)))
    write_point_clouds(tmp_path / "b.h5", jets.select(slice(20, 30)))
    out = tmp_path / "new" / "scores.npz"
    arguments = ["likelihood", "job/pretrain", str(tmp_path), "--dataset", "toy_jets", "--out", str(out)]
    assert main([*arguments, "--classes", "sum", "--objects", "25"]) == 0
    printed = capsys.readouterr().out
    assert "25 objects of toy_jets: mean log-likelihood -" in printed and "least likely: object " in printed
    with np.load(out, allow_pickle=False) as scores:
        np.testing.assert_allclose(scores["log_likelihood"], model.log_likelihood(jets, classes="sum")[:25], rtol=1e-6)
        assert scores["of_streams"].shape == (25, 3) and scores["streams"].tolist() == ["code0", "code1", "charge"]
        assert scores["points"].tolist() == jets.counts[:25].tolist() and scores["of_classes"].shape == (25, 2)
    assert main(["likelihood", "job/pretrain", str(tmp_path / "c.h5"), "--dataset", "toy_jets"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["likelihood", "job/pretrain", str(tmp_path), "--dataset", "toy_jets", "--out", "x.csv"]) == 2
    assert "scores are written as .npz" in capsys.readouterr().err


# ---- the documents


@pytest.mark.parametrize("page", ["docs/reference/python.md", "docs/how-to/generate.md"])
def test_code_of_the_documents_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block, as a reader would; with the toys in place of the quickstart's datasets."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    for real, toys in (("pythia_jets", "toy_jets"), ("gflash_siw", "toy_showers"), ('"top"', '"wide"')):
        text = text.replace(real, toys)
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    if page.endswith("python.md"):
        assert names["clouds"].units == ("GeV", "1") and np.isfinite(names["log_density"]).all()
        np.testing.assert_array_equal(names["model"].encode(names["again"]).values, names["codes"].values)
