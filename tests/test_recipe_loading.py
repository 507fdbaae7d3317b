"""What a recipe may look like, and what its author is told when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.errors import RecipeError
from foundation.recipe.loading import load_recipe

from tiny_recipe import TinyRecipe, load

GOOD = """\
name: tiny
seed: 5
stages:
  - kind: make
    name: text
    shape:
      width: 16
  - {kind: train, name: fit, from: text, steps: 1e1}
"""


def write(folder: Path, text: str, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_good_recipe_is_read_whole(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, GOOD))
    assert loaded.recipe.seed == 5
    assert loaded.recipe.stages[0].shape.width == 16
    assert loaded.recipe.stages[1].steps == 10
    assert loaded.resolved["stages"][1]["from"] == "text"
    assert loaded.sources == (tmp_path / "tiny.yaml",)


def test_the_resolved_recipe_loads_to_the_same(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, GOOD), "text.limit=2.5e-7", "text.mode=slow", "description='1e6'")
    again = load(write(tmp_path, loaded.as_yaml(), "again.yaml"))
    assert again.recipe == loaded.recipe
    assert again.recipe.description == "1e6"
    assert again.sha256 == loaded.sha256
    assert load(write(tmp_path, GOOD)).sha256 != loaded.sha256


# What is replaced in GOOD, by what, and the line that must be among the errors.
MISTAKES = [
    ("width: 16", "widht: 16", "tiny.yaml:7: stages.text.shape.widht: unknown key - did you mean 'width'?"),
    ("width: 16", "heads: 16", "tiny.yaml:7: stages.text.shape.heads: unknown key (known: depth, rates, width)"),
    ("seed: 5", "sead: 5", "tiny.yaml:2: sead: unknown key - did you mean 'seed'?"),
    ("kind: train", "kind: trian", "tiny.yaml:8: stages.fit.kind: unknown kind 'trian' - did you mean 'train'?"),
    ("kind: train, ", "", "tiny.yaml:8: stages.fit: missing key 'kind'"),
    ("from: text, ", "", "tiny.yaml:8: stages.fit: missing key 'from'"),
    ("name: tiny\n", "", "tiny.yaml:1: missing key 'name'"),
    (
        "from: text",
        "from: texd",
        "tiny.yaml:8: stages.fit.from: no stage 'texd' before this one - did you mean 'text'?",
    ),
    ("from: text", "from: fit", "tiny.yaml:8: stages.fit.from: a stage cannot use itself"),
    ("name: fit", "name: text", "tiny.yaml:8: stages.text.name: duplicate stage name 'text'"),
    ("name: fit", "name: seed", "tiny.yaml:8: stages.seed.name: 'seed' cannot name a stage"),
    ("name: tiny", "name: a/b", "tiny.yaml:1: name: 'a/b' cannot name a run folder"),
    ("width: 16", "width: true", "tiny.yaml:7: stages.text.shape.width: should be a whole number (got true)"),
    ("width: 16", "width: 1.5", "tiny.yaml:7: stages.text.shape.width: should be a whole number (got 1.5)"),
    ("width: 16", "width: '16'", 'tiny.yaml:7: stages.text.shape.width: should be a whole number (got "16")'),
    ("width: 16", "width: 0", "tiny.yaml:7: stages.text.shape.width: should be greater than or equal to 1 (got 0)"),
    ("width: 16", "rates: [0.1, x]", 'tiny.yaml:7: stages.text.shape.rates.1: should be a number (got "x")'),
    ("width: 16", "rates: 3", "tiny.yaml:7: stages.text.shape.rates: should be a list (got 3)"),
    ("shape:\n      width: 16", "shape: big", 'tiny.yaml:6: stages.text.shape: should be a mapping (got "big")'),
    ("seed: 5", "seed: 1e-3", "tiny.yaml:2: seed: should be a whole number (got 0.001)"),
    ("name: text", "name: text\n    loud: yes", 'tiny.yaml:6: stages.text.loud: should be true or false (got "yes")'),
    (
        "name: text",
        "name: text\n    mode: slwo",
        "tiny.yaml:6: stages.text.mode: should be 'fast' or 'slow' (got \"slwo\") - did you mean 'slow'?",
    ),
    (
        "name: text",
        "name: text\n    limit: aut",
        'tiny.yaml:6: stages.text.limit: should be a number (got "aut") or should be \'auto\' (got "aut")'
        " - did you mean 'auto'?",
    ),
    (
        "name: text",
        "name: text\n    form:\n      kind: round\n      radios: 2.0",
        "tiny.yaml:8: stages.text.form.radios: unknown key - did you mean 'radius'?",
    ),
    ("name: text", "name: text\n    lines: 13", "tiny.yaml:6: stages.text.lines: 13 lines bring bad luck"),
    (
        "name: text",
        "name: text\n    card: pythia_jet",
        "tiny.yaml:6: stages.text.card: no dataset card 'pythia_jet' - did you mean 'pythia_jets'?",
    ),
    ("seed: 5", "seed: 5\nseed: 6", "tiny.yaml:3: duplicate key 'seed' (first on line 2)"),
    ("seed: 5", "seed: [5", "tiny.yaml:3: not valid YAML: expected ',' or ']', but got ':'"),
    ("seed: 5", "seed: !!python/name:os.system 5", "tiny.yaml:2: not valid YAML: could not determine a constructor"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[m[2].split(": ", 1)[1][:50] for m in MISTAKES])
def test_every_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, GOOD.replace(old, new)))
    assert any(line.startswith(message) for line in str(caught.value).splitlines()), str(caught.value)


def test_a_reference_to_a_later_stage_says_so(tmp_path: Path) -> None:
    text = "name: t\nstages:\n  - {kind: train, name: fit, from: text}\n  - {kind: make, name: text}\n"
    with pytest.raises(RecipeError, match=r"^tiny.yaml:3: stages.fit.from: stage 'text' comes later: move it before"):
        load(write(tmp_path, text))


def test_a_registered_model_is_a_valid_reference(tmp_path: Path) -> None:
    load(write(tmp_path, GOOD.replace("from: text", "from: models:/jets@best")))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("seed: 5", "seed: five").replace("width: 16", "widht: 1").replace("from: text", "from: txt")
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, text))
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == [
        "tiny.yaml:2:",
        "tiny.yaml:7:",
        "tiny.yaml:8:",
    ]


def test_the_line_of_a_mistake_is_that_of_the_file_it_is_in(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("width", "widht"), "base.yaml")
    child = write(tmp_path, "extends: base.yaml\nname: child\nstages:\n  - {name: fit, stepz: 2}\n", "child.yaml")
    with pytest.raises(RecipeError) as caught:
        load(child)
    assert str(caught.value).splitlines() == [
        "base.yaml:7: stages.text.shape.widht: unknown key - did you mean 'width'?",
        "child.yaml:4: stages.fit.stepz: unknown key - did you mean 'steps'?",
    ]


def test_extends_merges_stages_by_name(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    (tmp_path / "below").mkdir()
    stages = "  - {name: text, shape: {depth: 9}}\n  - {kind: make, name: new}\n"
    text = "extends: ../base.yaml\nname: child\nstages:\n" + stages
    loaded = load(write(tmp_path / "below", text))
    assert [stage.name for stage in loaded.recipe.stages] == ["text", "fit", "new"]
    assert (loaded.recipe.stages[0].shape.width, loaded.recipe.stages[0].shape.depth) == (16, 9)
    assert loaded.recipe.seed == 5
    assert loaded.sources == (tmp_path / "base.yaml", tmp_path / "below" / "tiny.yaml")


def test_the_later_of_several_bases_wins(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "one.yaml")
    write(tmp_path, "seed: 7\nstages:\n  - {name: text, shape: {rates: [1, 2]}}\n", "two.yaml")
    recipe = load(write(tmp_path, "extends: [one.yaml, two.yaml]\nname: t\n")).recipe
    assert recipe.seed == 7
    assert recipe.stages[0].shape.rates == (1.0, 2.0)


def test_the_name_is_not_inherited_because_it_is_the_run_folder(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    with pytest.raises(RecipeError, match="missing key 'name'"):
        load(write(tmp_path, "extends: base.yaml\nseed: 6\n"))


def test_another_kind_replaces_the_inherited_section(tmp_path: Path) -> None:
    base = GOOD.replace("name: text", "name: text\n    form: {kind: flat, size: 3}")
    write(tmp_path, base, "base.yaml")
    text = "extends: base.yaml\nname: t\nstages:\n  - {name: text, form: {kind: round, radius: 2}}\n"
    assert load(write(tmp_path, text)).resolved["stages"][0]["form"] == {"kind": "round", "radius": 2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: tiny.yaml\nname: t\n", "extends itself: tiny.yaml -> tiny.yaml"),
        ("name: t\nextends: tinny.yml\n", "tiny.yaml:2: extends: no file 'tinny.yml'"),
        ("extends: {a: 1}\n", "tiny.yaml:1: extends: must be the path of a recipe"),
        ("- a\n", "tiny.yaml: not a recipe"),
        ("", "tiny.yaml: not a recipe"),
        ("a: &x\n  b: *x\n", "tiny.yaml:1: this anchor contains itself"),
    ],
)
def test_a_bad_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, text))
    assert message in str(caught.value)


def test_a_cycle_over_two_files_is_told(tmp_path: Path) -> None:
    write(tmp_path, "extends: tiny.yaml\n", "base.yaml")
    with pytest.raises(RecipeError, match=r"tiny.yaml -> base.yaml -> tiny.yaml"):
        load(write(tmp_path, "extends: base.yaml\nname: t\n"))


def test_overrides_set_values_of_stages_and_of_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("width: 16", "rates: [1, 2]"))
    form = "text.form={kind: flat, size: 1}"
    recipe = load(path, "seed=1_000", "text.shape.rates.1=3e-4", "fit.from=models:/a/1", form)
    assert recipe.recipe.seed == 1000
    assert recipe.recipe.stages[0].shape.rates == (1.0, 3e-4)
    assert recipe.recipe.stages[0].form.size == 1
    assert recipe.recipe.stages[1].from_ == "models:/a/1"
    assert recipe.overrides[0] == "seed=1_000"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fitt.steps=1", "--set fitt.steps=1: no stage 'fitt' - did you mean 'fit'?"),
        ("fit.step=1", "--set fit.step=1: stages.fit.step: unknown key - did you mean 'steps'?"),
        ("fit.steps=on", '--set fit.steps=on: stages.fit.steps: should be a whole number (got "on")'),
        ("fit.steps.x=1", "--set fit.steps.x=1: there is no 'x' in the single value 10"),
        ("fit=1", "--set fit=1: say which key of the stage"),
        ("fit.steps", "--set fit.steps: write it as stage.key=value"),
        ("stages.7.name=x", "--set stages.7.name=x: '7' must be an index from 0 to 1"),
        ("fit.steps=[", "--set fit.steps=[: not valid YAML"),
    ],
)
def test_a_bad_override_is_told(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, GOOD), override)
    assert str(caught.value).startswith(message)


def test_a_card_is_found_relative_to_the_recipe(tmp_path: Path) -> None:
    shipped = Path(__file__).parent.parent / "datasets" / "gflash_siw.yaml"
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", shipped.read_text(), "mine.yaml")
    load(write(tmp_path / "below", GOOD.replace("name: text", "name: text\n    card: mine.yaml")))


def test_an_unknown_recipe_is_told(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match="tinny.yaml: no such recipe file - did you mean 'tiny.yaml'"):
        load_recipe("tinny.yaml", model=TinyRecipe)
    with pytest.raises(RecipeError, match="no recipe 'nothing_of_this_name'"):
        load_recipe("nothing_of_this_name", model=TinyRecipe)
