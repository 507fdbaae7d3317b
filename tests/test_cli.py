"""The command line as a user meets it: what it prints and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.cli import main, stage_tree
from foundation.recipe.loading import load_recipe, shipped_recipes
from foundation.recipe.yaml_source import parse_yaml

ROOT = Path(__file__).parent.parent
RECIPE = """\
name: small
description: Two stages. More words.
stages:
  - {kind: simulate, name: showers, dataset: gflash_siw, objects: {train: 10}}
  - {kind: tokenizer, name: codes, from: showers, method: {type: per_feature}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOUNDATION_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "foundation", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_valid_recipe_exits_0_and_a_mistake_2_without_traceback(recipe: Path) -> None:
    good = command("validate", str(recipe))
    assert (good.returncode, good.stdout) == (0, f"{recipe}: fine, 2 stages\n")
    recipe.write_text(RECIPE.replace("dataset:", "datset:").replace("from: showers", "from: shower"))
    for arguments in (["validate", "small.yaml"], ["run", "small.yaml"], ["show", "small.yaml"]):
        bad = command(*arguments)
        assert bad.returncode == 2
        assert bad.stderr.splitlines() == [
            "small.yaml:4: stages.showers: missing key 'dataset'",
            "small.yaml:4: stages.showers.datset: unknown key - did you mean 'dataset'?",
            "small.yaml:5: stages.codes.from: no stage 'shower' before this one - did you mean 'showers'?",
        ]
    assert not (recipe.parent / "runs").exists()


def test_validate_goes_on_after_a_bad_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "nowhere.yaml", "small.yaml"]) == 2
    out, errors = capsys.readouterr()
    assert out == "small.yaml: fine, 2 stages\n"
    assert errors == "error: nowhere.yaml: no such recipe file (known: small.yaml)\n"


def test_validating_loads_nothing_heavy(recipe: Path) -> None:
    code = f"""
import sys
from foundation.cli import main
assert main(["validate", {str(recipe)!r}]) == 0
assert main(["show", {str(recipe)!r}]) == 0
assert main(["list", "datasets"]) == 0
print(sorted({{"torch", "mlflow", "h5py", "uproot", "dask", "matplotlib", "scipy"}} & sys.modules.keys()))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_show_prints_a_recipe_that_can_be_run_and_the_graph(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "small.yaml", "--set", "showers.objects.train=11", "seed=3"]) == 0
    out = capsys.readouterr().out
    assert "#   --set seed=3" in out
    assert out.splitlines()[-2:] == ["#   showers  simulate", "#   +-codes  tokenizer  uses showers"]
    Path("again.yaml").write_text(out)
    first = load_recipe("small.yaml", ["showers.objects.train=11", "seed=3"])
    assert load_recipe("again.yaml").sha256 == first.sha256


def test_the_tree_puts_each_stage_once_below_the_last_that_it_uses() -> None:
    stages = [
        ("jets", "simulate", []),
        ("codes", "tokenizer", ["jets"]),
        ("tokens", "tokenize", ["jets", "codes"]),
        ("top", "finetune", ["models:/jets@best", "tokens"]),
    ]
    assert stage_tree(stages) == [
        "jets        simulate",
        "+-codes     tokenizer  uses jets",
        "  +-tokens  tokenize   uses jets, codes",
        "    +-top   finetune   uses models:/jets@best, tokens",
    ]


def test_list_names_every_card_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "datasets"]) == 0
    datasets = capsys.readouterr().out
    assert {line.split()[0] for line in datasets.splitlines()} == {p.stem for p in (ROOT / "datasets").glob("*.yaml")}
    assert main(["list", "recipes"]) == 0
    recipes = capsys.readouterr().out
    assert all(name in recipes for name in shipped_recipes())


def test_every_shipped_recipe_is_valid_and_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in shipped_recipes().items():
        assert main(["validate", name]) == 0, capsys.readouterr().err
        assert parse_yaml(path.read_text(), name)["description"], name


def test_the_schema_knows_stages_extends_and_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"name", "seed", "stages", "extends"} <= schema["properties"].keys()
    assert "Simulate" in schema["$defs"]
    assert schema["$defs"]["Simulate"]["properties"]["workers"]["description"]


def test_help_shows_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--help"], ["foundation run quickstart", "exit codes", "130"]),
        (["run", "--help"], ["FOUNDATION_RUNS", "--until STAGE", "STAGE.KEY=VALUE"]),
        (["--version"], ["foundation 0."]),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)


def test_wrong_options_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["run"], ["list", "cats"], ["run", "x", "--until", "a", "--only", "b"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert "usage: foundation" in capsys.readouterr().err


def test_an_unknown_stage_to_stop_at_exits_2(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "small.yaml", "--until", "showrs"]) == 2
    assert capsys.readouterr().err == "error: no stage 'showrs' in recipe 'small' - did you mean 'showers'?\n"


def test_a_reader_that_goes_away_gets_no_traceback(recipe: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"{sys.executable} -m foundation schema | head -n 1"
    done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_a_place_that_cannot_be_written_exits_2(recipe: Path) -> None:
    (recipe.parent / "runs").write_text("a file where the folder should be")
    done = command("run", "small.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "runs" in done.stderr
