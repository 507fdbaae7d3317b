"""The stages tokenizer and tokenize: one tokenizer for several datasets, other conditions, patches, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from foundation.cli import main
from foundation.data.cards import Attribute, DatasetCard
from foundation.data.files import read_point_clouds, write_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.tokens.grammar import Grammar
from foundation.tokens.layout import Layout
from foundation.tokens.vocabulary import Vocabulary

from conftest import JETS, SHOWERS, toy_jets, toy_showers

SPLITS = {"train": 120, "validation": 20, "test": 30}


def jets_of(tag: str, n: int, seed: int) -> PointClouds:
    """Toy jets of a dataset, with the pT of each jet."""
    jets = toy_jets(n, seed)
    pt = np.add.reduceat(jets.points[:, 0], jets.offsets[:-1])
    return replace(
        jets,
        tag=tag,
        conditions=pt[:, None].astype(np.float32),
        condition_names=("jet_pt",),
        condition_units=("GeV",),
    )


def card_of(card: DatasetCard, tag: str, folder: Path, **changes: object) -> str:
    """Name of the file of a card like this one, under another tag."""
    new = card.model_copy(update={"name": tag, "tag": tag, **changes})
    (folder / f"{tag}.yaml").write_text(yaml.safe_dump(json.loads(new.model_dump_json(exclude_none=True))))
    return f"{tag}.yaml"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two datasets of jets, one of showers, and their cards."""
    monkeypatch.setenv("FOUNDATION_RUNS", str(tmp_path / "runs"))
    attributes = (Attribute(name="jet_pt", unit="GeV"),)
    for number, tag in enumerate(("here", "there")):
        card_of(JETS, tag, tmp_path, attributes=attributes)
        for split, n in SPLITS.items():
            write_point_clouds(tmp_path / tag / f"{split}.h5", jets_of(tag, n, 10 * number + n))
    card_of(SHOWERS, "showers", tmp_path)
    for split, n in SPLITS.items():
        write_point_clouds(tmp_path / "showers" / f"{split}.h5", replace(toy_showers(n, n), tag="showers"))
    return tmp_path


def imported(tag: str) -> dict:
    """An import stage."""
    files = {split: [f"{tag}/{split}.h5"] for split in SPLITS}
    return {"kind": "import", "name": tag, "dataset": f"{tag}.yaml", "files": files}


def run(home: Path, *stages: dict) -> int:
    """Run a recipe of these stages."""
    (home / "recipe.yaml").write_text(yaml.safe_dump({"name": "test", "stages": list(stages)}))
    return main(["run", str(home / "recipe.yaml")])


SHARED = {
    "kind": "tokenizer",
    "name": "codes",
    "from": ["here", "there"],
    "called": "jets",
    "method": {"type": "per_feature", "bins": 16},
}
PT = {"name": "jet_pt", "unit": "GeV", "range": [20.0, 1000.0], "bins": 10, "scale": "log"}


def test_two_datasets_share_a_tokenizer_and_start_with_the_jet_pt(home: Path) -> None:
    sets = [{"from": tag, "tokenizer": "codes", "conditions": [PT]} for tag in ("here", "there")]
    assert run(home, imported("here"), imported("there"), SHARED, tokenize(*sets)) == 0
    tokens = home / "runs" / "test" / "tokens"
    vocabulary = Vocabulary.load(tokens / "vocabulary.json")
    assert [name for name in vocabulary.ranges if name.endswith(".pt")] == ["jets.pt"]
    assert vocabulary.stream_ranges("here") == vocabulary.stream_ranges("there")
    assert vocabulary.tag_id("here") != vocabulary.tag_id("there")
    layout = Layout(vocabulary)
    jets = jets_of("there", 30, 40)
    prefix = layout.prefix("there", jets.labels, jets.conditions)
    pt = vocabulary.condition_range("there", "jet_pt")
    assert ((prefix[:, 3] >= pt.start) & (prefix[:, 3] < pt.stop)).all() and len(set(prefix[:, 3].tolist())) > 3
    said = json.loads((home / "runs" / "test" / "codes" / "tokenizer.json").read_text())
    assert (said["name"], said["datasets"]) == ("jets", ["here", "there"])


def tokenize(*datasets: dict) -> dict:
    """A tokenize stage."""
    return {"kind": "tokenize", "name": "tokens", "datasets": list(datasets)}


def test_datasets_that_differ_cannot_share(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = tuple(f.model_copy(update={"scale": 7.0}) if f.name == "eta_rel" else f for f in JETS.features)
    card_of(JETS, "there", home, features=features, attributes=(Attribute(name="jet_pt", unit="GeV"),))
    assert run(home, imported("here"), imported("there"), SHARED) == 2
    assert "cannot serve 'here' and 'there': 'eta_rel' and 'eta_rel' differ" in capsys.readouterr().err


def test_a_tokenizer_of_another_dataset_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = SHARED | {"from": "here"}
    assert run(home, imported("here"), imported("there"), own, tokenize({"from": "there", "tokenizer": "codes"})) == 2
    assert "tokenizer 'codes' was fitted on 'here', not on 'there'" in capsys.readouterr().err


PATCHES = {
    "kind": "tokenizer",
    "name": "patches",
    "from": "showers",
    "method": {
        "type": "patches",
        "patch": {"layer": 5, "x": 3, "y": 3},
        "codebook": 16,
        "width": 16,
        "heads": 2,
        "latent": 4,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "steps": 20,
    },
}


def test_a_model_of_patches_trains_and_generates(home: Path) -> None:
    stages = [
        imported("showers"),
        PATCHES,
        tokenize({"from": "showers", "tokenizer": "patches"}),
        {
            "kind": "pretrain",
            "name": "model",
            "data": "tokens",
            "mixture": {"showers": 1.0},
            "model": {"width": 16, "layers": 1, "heads": 2},
            "train": {"steps": 5, "row_tokens": 64, "rows_per_step": 2, "warmup_steps": 1},
        },
        {"kind": "generate", "name": "made", "from": "model", "samples": [{"truth": "showers", "objects": 12}]},
    ]
    assert run(home, *stages) == 0
    tokens = home / "runs" / "test" / "tokens"
    vocabulary = Vocabulary.load(tokens / "vocabulary.json")
    fixed = vocabulary.dataset("showers").tokens_per_object
    assert fixed is not None and fixed > 4  # four patches and the totals before them
    manifest = json.loads((tokens / "showers" / "train" / "manifest.json").read_text())
    assert manifest["points"] == SPLITS["train"] * fixed
    showers = toy_showers(3, 5)
    layout = Layout(vocabulary)
    codes = np.zeros((3 * fixed, 1), np.int64)
    made = layout.sequences("showers", codes, fixed * np.arange(4), showers.labels, showers.conditions)
    Grammar(layout).check("showers", made.ids[: made.offsets[1]])
    generated = read_point_clouds(home / "runs" / "test" / "made" / "showers.h5")
    assert len(generated) == 12 and generated.features == ("layer", "x", "y", "energy")


def test_features_of_points_have_no_place_beside_patches(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = tokenize({"from": "showers", "tokenizer": "patches"}) | {"features": "float16"}
    assert run(home, imported("showers"), PATCHES, stage) == 2
    assert "'patches' codes patches: there are no features of points beside its codes" in capsys.readouterr().err
