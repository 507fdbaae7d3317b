"""`foundation evaluate TRUTH GENERATED ...`: files of other generators, several models, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from foundation.cli import main
from foundation.data.files import write_point_clouds
from foundation.data.formats.writing import write_file
from foundation.evaluate.metrics_file import SavedMetrics, read_metrics, write_metrics
from foundation.evaluate.scores import Score

from calochallenge_samples import card_of, showers
from evaluate_samples import SHOWER_CARD, toy_jets, toy_showers

ONLY = ("--metrics", "distributions,response")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Truth in two files, two models, and files that are wrong in some way."""
    home = tmp_path_factory.mktemp("files")
    for k in range(2):
        write_point_clouds(home / f"truth_{k}.h5", toy_showers(100, k))
    good, bad = toy_showers(100, 2), toy_showers(90, 3, scale=1.3)
    write_point_clouds(home / "good.h5", good)
    write_point_clouds(home / "bad.h5", bad)
    (home / "other").mkdir()
    write_point_clouds(home / "other" / "good.h5", good)
    write_point_clouds(home / "jets.h5", toy_jets(50, 1))
    write_point_clouds(home / "few.h5", good.select(np.arange(8)))
    write_point_clouds(home / "none.h5", good.select(np.arange(0)))
    write_point_clouds(home / "flat.h5", good.with_columns(["layer", "x", "energy"], ["incident_energy"], good.tag))
    write_point_clouds(home / "free.h5", good.with_columns(SHOWER_CARD.feature_names, [], good.tag))
    points = good.points.copy()
    points[7, 3] = np.nan
    write_point_clouds(home / "nan.h5", replace(good, points=points))
    (home / "text.json").write_text("{}")
    return home


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time, and some tests are about other things."""
    for name in ("dataset_pictures", "score_pictures"):
        monkeypatch.setattr(f"foundation.evaluate.evaluation.{name}", lambda *_: [])


def test_several_models_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "truth_*.h5", "good.h5", "bad.h5", "--card", "gflash_siw", "--out", "out"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "truth: 200 objects" in out and "bad: 90 objects" in out
    assert "report: out/report.html" in out and "metrics: out/metrics.json" in out
    assert "furthest from truth, bad:" in out and "w1.response" in out
    saved = read_metrics(Path("out/metrics.json"))
    assert saved.models == ("good", "bad") and saved.seed == 1 and not saved.problems
    assert {s.panel for s in saved.scores} == {"distributions", "ild", "response", "conditional"}
    response = {s.model: s for s in saved.scores if (s.group, s.name) == ("all", "w1.response")}
    assert response["bad"].value > 3 * response["good"].value
    page = Path("out/report.html").read_text()
    assert "good" in page and "bad" in page and "foundation evaluate" in page
    assert list(Path("out/figures").glob("*.png"))


def test_saved_metrics_are_put_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    scores = [
        Score("mine", "gflash_siw", "distributions", "all", "w1.hits", "1", "w1/1", value=v, error=0.1, floor=1)
        for v in (1.2, 4.0)
    ]
    for name, score in zip(("good", "bad"), scores, strict=True):
        write_metrics(Path(name) / "metrics.json", SavedMetrics((score,), 1, {}, {"gflash_siw": {"title": "a"}}))
    files = ["good/metrics.json", "bad/metrics.json"]
    assert main(["evaluate", *files, "--out", "both"]) == 0
    assert "1.2 +- 0.1 good" in capsys.readouterr().out and Path("both/report.html").is_file()
    both = read_metrics(Path("both/metrics.json"))
    assert both.models == ("good: mine", "bad: mine") and [s.value for s in both.scores] == [1.2, 4.0]
    assert main(["evaluate", *files, "--name", "a", "--name", "b", "--out", "both"]) == 0
    assert read_metrics(Path("both/metrics.json")).models == ("a", "b")
    assert main(["evaluate", *files, "--name", "a", "--out", "both"]) == 2
    capsys.readouterr()
    assert main(["evaluate", "good/metrics.json"]) == 0
    assert "w1.hits" in capsys.readouterr().out


def test_files_of_our_writer_in_the_format_of_a_challenge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = card_of("1_photons")
    for name, n, seed in (("truth", 120, 1), ("model", 60, 2)):
        write_file(card, showers("1_photons", n, seed), tmp_path / f"{name}.hdf5")
    command = ["evaluate", str(tmp_path / "truth.hdf5"), str(tmp_path / "model.hdf5"), "--card", card.name]
    assert main([*command, "--out", str(tmp_path / "out"), "--pdf"]) == 0
    assert "separation.energy_layer.mean" in capsys.readouterr().out
    saved = read_metrics(tmp_path / "out" / "metrics.json")
    assert any(s.definition == "separation_power/calochallenge-9b41df7" and s.n == 60 for s in saved.scores)
    assert "CaloDiffusion" in (tmp_path / "out" / "report.html").read_text()
    assert list((tmp_path / "out" / "figures").glob("*.pdf"))


@pytest.mark.usefixtures("undrawn")
def test_what_is_missing_is_said_and_the_rest_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "truth_*.h5", "free.h5", "--card", "gflash_siw", "--objects", "95", "--out", "free"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "note: free: the files do not have incident_energy" in out
    assert "truth: 190 objects" in out and "free: 95 objects" in out
    assert "not measured: free, all response: " in out and "no condition 'incident_energy'" in out
    notes = json.loads(Path("free/metrics.json").read_text())["datasets"]["gflash_siw"]["notes"]
    assert any("do not have incident_energy" in note for note in notes)


@pytest.mark.usefixtures("undrawn")
def test_objects_that_cannot_be_right_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = card_of("1_photons")
    for name, seed in (("truth", 1), ("model", 2)):
        write_file(card, showers("1_photons", 80, seed), tmp_path / f"{name}.hdf5")
    with h5py.File(tmp_path / "model.hdf5", "r+") as f:
        f["showers"][3, 100] = np.nan
    files = [str(tmp_path / f"{name}.hdf5") for name in ("truth", "model")]
    assert main(["evaluate", *files, "--card", card.name, *ONLY, "--out", str(tmp_path / "out")]) == 0
    assert "note: model: skipped 1 objects" in capsys.readouterr().out
    with h5py.File(tmp_path / "model.hdf5", "r+") as f:
        energies = f["incident_energies"][:50]
        del f["incident_energies"]
        f["incident_energies"] = energies
    assert main(["evaluate", *files, "--card", card.name, *ONLY, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "model.hdf5" in error and "50" in error


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["truth_0.h5", "good.h5"], "name its card with --card"),
        (["truth_0.h5", "--card", "gflash_siw"], "this is the truth; name the files of at least one model"),
        (["truth_0.h5", "gone.h5", "--card", "gflash_siw"], "gone.h5: no such file or folder"),
        (["truth_0.h5", "god.h5", "--card", "gflash_siw"], "god.h5: no such file or folder - did you mean 'good.h5'?"),
        (["truth_0.h5", "good.h5", "--card", "gflash_sw"], "gflash_siw"),
        (["truth_0.h5", "jets.h5", "--card", "gflash_siw"], "jets.h5: holds objects of 'pythia_jets'"),
        (["truth_0.h5", "none.h5", "--card", "gflash_siw"], "none.h5: holds no objects"),
        (["truth_0.h5", "few.h5", "--card", "gflash_siw"], "8 generated objects; at least 40 and 20 are needed"),
        (["truth_0.h5", "flat.h5", "--card", "gflash_siw"], "flat.h5: has no feature 'y'"),
        (["truth_0.h5", "nan.h5", "--card", "gflash_siw"], "nan.h5: feature 'energy' has NaN or infinite values"),
        (
            ["truth_0.h5", "good.h5", "--card", "gflash_siw", "--name", "a", "--name", "b"],
            "2 names (--name) were given",
        ),
        (["truth_0.h5", "good.h5", "bad.h5", "--card", "gflash_siw", "--name", "a", "--name", "a"], "the same name"),
        (["truth_0.h5", "good.h5", "--card", "gflash_siw", "--metrics", "fdp"], "there is no metric 'fdp'"),
        (["truth_0.h5", "good.h5", "--card", "gflash_siw", "--train", "tran.h5"], "tran.h5: no such file"),
        (["text.json"], "text.json: is not a file of metrics"),
        (["text.json", "good.h5"], "good.h5: saved metrics (*.json) are put beside each other"),
    ],
)
def test_mistakes_are_a_sentence(capsys: pytest.CaptureFixture[str], wrong: list[str], words: str) -> None:
    assert main(["evaluate", *wrong, "--out", "wrong"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not Path("wrong").exists()


@pytest.mark.usefixtures("undrawn")
def test_one_model_that_cannot_be_evaluated_loses_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "truth_0.h5", "few.h5", "good.h5", "other/good.h5", "--card", "gflash_siw", *ONLY]
    assert main([*command, "--out", "some"]) == 2
    out = capsys.readouterr().out
    assert "note: other/good: half of the truth is the floor, so that 50 of its 100 objects are compared" in out
    assert "not evaluated: few: gflash_siw: nothing to compare" in out
    saved = read_metrics(Path("some/metrics.json"))
    assert set(saved.models) == {f"{Path.cwd().name}/good", "other/good"} and len(saved.problems) == 1
