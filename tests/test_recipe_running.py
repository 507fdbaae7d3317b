"""Running: skipping, continuing, clearing, locking, and several ranks. Stages are tiny, processes are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from foundation.errors import RecipeError
from foundation.recipe.artifact import finished_artifact, load_artifact, recipe_keys
from foundation.recipe.running import StageError, run_recipe

from tiny_recipe import load, run_stage

TESTS = Path(__file__).parent
RECIPE = """\
name: tiny
stages:
  - {kind: make, name: text}
  - {kind: train, name: fit, from: text}
  - {kind: make, name: other, lines: 5}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOUNDATION_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def run(recipe: Path, *overrides: str, until: str | None = None, only: str | None = None) -> None:
    run_recipe(load(recipe, *overrides), until, only, run_stage)


def start(recipe: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """The same in a process of its own."""
    command = [sys.executable, str(TESTS / "tiny_recipe.py"), str(recipe), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_leaves_artifacts_that_say_what_was_done(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe)
    runs = recipe.parent / "runs" / "tiny"
    fit = load_artifact(runs / "fit")
    assert fit.inputs == {"text": load_artifact(runs / "text").key}
    assert fit.spec["steps"] == 4
    assert fit.summary == {"first": 0, "ranks": 1}
    assert fit.outputs["checkpoints/rank0"] == (1, None)
    assert fit.outputs["weights"][0] == 60 and len(fit.outputs["weights"][1] or "") == 64
    assert fit.versions["numpy"]
    assert load(runs / "recipe.yaml").recipe == load(recipe).recipe
    out = capsys.readouterr().out
    assert "[2/3] train      fit" in out
    assert f"report: {runs / 'other' / 'out.txt'}" in out
    assert "  5 lines" in out


def test_a_finished_recipe_is_skipped(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe)
    before = {path: path.stat().st_mtime_ns for path in recipe.parent.rglob("artifact.json")}
    capsys.readouterr()
    run(recipe, "text.workers=7")
    assert capsys.readouterr().out.count("(finished, skipped)") == 3
    assert before == {path: path.stat().st_mtime_ns for path in recipe.parent.rglob("artifact.json")}


def test_a_changed_setting_clears_the_stage_and_what_depends_on_it(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe)
    stale = recipe.parent / "runs" / "tiny" / "text" / "deep" / "stale"
    stale.parent.mkdir()
    stale.touch()
    capsys.readouterr()
    run(recipe, "text.lines=4")
    out = capsys.readouterr().out
    assert not stale.parent.exists()
    assert out.count("the old result was removed") == 2
    assert out.count("(finished, skipped)") == 1


def test_a_missing_or_cut_output_is_made_again(recipe: Path) -> None:
    run(recipe)
    out = recipe.parent / "runs" / "tiny" / "text" / "out.txt"
    for damage in (out.unlink, lambda: out.write_text("x")):
        damage()
        run(recipe)
        assert out.read_text() == "line\n" * 3


def test_keys_follow_settings_seed_inputs_and_cards(recipe: Path) -> None:
    shipped = (TESTS.parent / "datasets" / "gflash_siw.yaml").read_text()
    card = recipe.parent / "card.yaml"
    card.write_text(shipped)

    def keys(*overrides: str) -> dict[str, str]:
        loaded = load(recipe, "text.card=card.yaml", *overrides)
        return recipe_keys(loaded.recipe.stages, loaded.recipe.seed, loaded.folder)

    def changed(*overrides: str) -> set[str]:
        return {name for name, key in keys(*overrides).items() if key != first[name]}

    first = keys()
    assert changed("description=x", "text.workers=3", "fit.hang_at=2") == set()
    assert changed("fit.steps=5") == {"fit"}
    assert changed("text.shape.width=9") == {"text", "fit"}
    assert changed("seed=2") == {"text", "fit", "other"}
    card.write_text("# a comment changes nothing\n" + shipped)
    assert changed() == set()
    card.write_text(shipped.replace("cell_mm: 10.0", "cell_mm: 11.0"))
    assert changed() == {"text", "fit"}


def test_until_and_only(recipe: Path) -> None:
    runs = recipe.parent / "runs" / "tiny"
    with pytest.raises(RecipeError, match="stage 'fit' uses 'text', which is not finished"):
        run(recipe, only="fit")
    run(recipe, until="text")
    assert sorted(path.parent.name for path in runs.glob("*/artifact.json")) == ["text"]
    run(recipe, only="fit")
    assert sorted(path.parent.name for path in runs.glob("*/artifact.json")) == ["fit", "text"]
    with pytest.raises(RecipeError, match="no stage 'fitt' in recipe 'tiny' - did you mean 'fit'"):
        run(recipe, until="fitt")


def test_a_foreign_folder_is_not_emptied(recipe: Path) -> None:
    mine = recipe.parent / "runs" / "tiny" / "text" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(RecipeError, match="was not written by this program"):
        run(recipe)
    assert mine.exists()


def test_a_mistake_inside_a_stage_names_it(recipe: Path) -> None:
    with pytest.raises(StageError, match=r"^error in stage text: x.h5: no such dataset$"):
        run(recipe, "text.fail=mistake")
    assert not (recipe.parent / "runs" / "tiny" / "text" / "artifact.json").exists()


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGINT, 130, "interrupted; run the same command to continue"),
        (signal.SIGTERM, 143, "interrupted; run the same command to continue"),
    ],
)
def test_a_stopped_run_continues(recipe: Path, number: int, code: int, says: str) -> None:
    folder = recipe.parent / "runs" / "tiny" / "fit"
    process = start(recipe, "fit.hang_at=3")
    wait_until((folder / ".hanging").exists)
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert says in out and "Traceback" not in errors
    assert not (folder / "artifact.json").exists()
    run(recipe)
    assert load_artifact(folder).summary["first"] == 3


def test_two_runs_of_one_recipe_do_not_collide(recipe: Path) -> None:
    process = start(recipe, "fit.hang_at=0")
    wait_until((recipe.parent / "runs" / "tiny" / "fit" / ".hanging").exists)
    try:
        with pytest.raises(RecipeError, match=f"runs/tiny is in use by process {process.pid} on "):
            run(recipe)
    finally:
        process.kill()
        process.communicate()
    run(recipe)


@pytest.mark.parametrize(
    ("fails", "code", "says"), [("mistake", 2, "error in stage text: x.h5"), ("bug", 1, "ZeroDivisionError")]
)
def test_exit_codes_of_failing_stages(recipe: Path, fails: str, code: int, says: str) -> None:
    process = start(recipe, f"text.fail={fails}")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert says in errors
    assert ("Traceback" in errors) == (fails == "bug")
    assert ("in stage text (make) of recipe tiny" in errors) == (fails == "bug")


@pytest.mark.parametrize("first", [0, 1])
def test_two_ranks_walk_through_the_same_stages(recipe: Path, first: int) -> None:
    def rank(number: int, *overrides: str) -> subprocess.Popen[str]:
        return start(recipe, *overrides, RANK=str(number), WORLD_SIZE="2")

    # Whoever comes first, from an older run with another key.
    run(recipe, "fit.steps=2")
    early = rank(first)
    time.sleep(0.5)
    late = rank(1 - first)
    ranks = [early, late] if first == 0 else [late, early]
    outs = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outs
    assert "(settings or inputs changed" in outs[0][0] and outs[1][0] == ""
    artifact = load_artifact(recipe.parent / "runs" / "tiny" / "fit")
    assert artifact.summary == {"first": 0, "ranks": 2}
    assert (artifact.folder / "checkpoints" / "rank1").read_text() == "4"
    # Again, now everything is finished: nobody waits for anybody.
    assert rank(1).wait(timeout=30) == 0
    again = rank(0)
    assert again.communicate(timeout=30)[0].count("(finished, skipped)") == 3


def test_an_artifact_of_another_format_or_a_broken_one_is_not_finished(recipe: Path) -> None:
    run(recipe, until="text")
    folder = recipe.parent / "runs" / "tiny" / "text"
    key = load_artifact(folder).key
    assert finished_artifact(folder, key) is not None
    record = json.loads((folder / "artifact.json").read_text())
    broken: object
    for broken in ({**record, "format": 99}, {**record, "outputs": 3}, [], {**record, "key": "0"}):
        (folder / "artifact.json").write_text(json.dumps(broken))
        assert finished_artifact(folder, key) is None
    (folder / "artifact.json").write_text('{"format": 1, "ke')
    with pytest.raises(RecipeError, match="not readable"):
        load_artifact(folder)
