"""The commands `foundation data ...`, from the command line to files: exit codes, sentences, no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from dataset_files import JETS, SHOWERS, card_of, jet_arrays, shower_arrays, write_arrays, write_card

from foundation.cli import main
from foundation.data.cards import card_paths, load_card
from foundation.data.describe.card_content import chapters
from foundation.data.describe.card_pages import card_lines, card_page, write_pages
from foundation.data.describe.text_table import table_lines
from foundation.data.files import read_point_clouds
from foundation.data.formats.reading import read_file
from foundation.data_cli import files_of
from foundation.errors import DataError
from foundation.evaluate.dataset_plots import plot_dataset

ROOT = Path(__file__).parent.parent
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def jets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A card of jets in the working folder, with two files of its format in jets/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jets").mkdir()
    write_arrays(tmp_path / "jets" / "jets_1.h5", jet_arrays(40, 1))
    write_arrays(tmp_path / "jets" / "jets_2.h5", jet_arrays(30, 2))
    return write_card(tmp_path, JETS)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence that a wrong command gives."""
    capsys.readouterr()
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_list_names_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(card_paths()) <= {line.split()[0] for line in lines[2:] if not line.startswith(" ")}


def test_show_says_what_a_page_says(jets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", jets]) == 0
    out = capsys.readouterr().out
    assert all(chapter.title in out for chapter in chapters(card_of(JETS)))
    assert "constituents, column 0" in out and "`" not in out and "\t" not in out


@pytest.mark.parametrize("name", sorted(card_paths()))
def test_every_card_has_a_page_that_names_its_keys(name: str) -> None:
    card = load_card(name)
    page = card_page(card)
    words = [card.title, card.licence.split("\n")[0], *card.feature_names, *(c.name for c in card.conditions)]
    assert not [word for word in words if " ".join(word.split()) not in page]
    assert len(card.traps) == 0 or "## Traps" in page
    for row in re.findall(r"(?m)^\|.*\|$", page):
        assert row.count(" | ") >= 1
    assert max(map(len, card_lines(card))) <= 200


def test_the_committed_pages_are_up_to_date(tmp_path: Path) -> None:
    remedy = "run: python -m foundation.data.describe.card_pages docs/reference/datasets"
    folder = ROOT / "docs" / "reference" / "datasets"
    written = {path.name: path.read_text() for path in write_pages(tmp_path)}
    assert {path.name: path.read_text() for path in folder.glob("*.md")} == written, remedy


def test_pages_of_cards_that_are_gone_go_and_other_files_stay(tmp_path: Path) -> None:
    write_pages(tmp_path, [card_of(JETS), card_of(SHOWERS)])
    (tmp_path / "notes.md").write_text("mine")
    write_pages(tmp_path, [card_of(SHOWERS)])
    assert {path.name for path in tmp_path.iterdir()} == {"small_showers.md", "index.md", "notes.md"}


def test_files_are_named_by_path_by_glob_and_by_folder(jets: str, tmp_path: Path) -> None:
    card = load_card(jets)
    both = [Path("jets/jets_1.h5"), Path("jets/jets_2.h5")]
    for words in (["jets"], ["jets/*.h5"], ["**/jets_*.h5"], ["jets/jets_1.h5", "jets"], [str(p) for p in both]):
        assert files_of(card, words) == both
    assert files_of(card, ["."]) == both
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"other: has no file named like 'jets_\*.h5'"):
        files_of(card, ["other"])
    with pytest.raises(DataError, match="jets/jets_3.h5: no such file or folder - did you mean 'jets_2.h5'"):
        files_of(card, ["jets/jets_3.h5"])


def test_inspect_prints_arrays_statistics_and_cards(jets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", "jets/jets_1.h5", "jets/jets_2.h5"]) == 0
    out = capsys.readouterr().out
    assert "constituents  float32 [40, 8, 4]" in out and "[30, 8, 4]" in out and "no shipped card fits" in out


def test_check_exits_with_0_or_2_and_writes_json(jets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", jets, "jets", "--json", "found.json"]) == 0
    assert "2 files, 70 objects: 0 errors, 0 warnings" in capsys.readouterr().out
    assert json.loads(Path("found.json").read_text())["objects"] == 70
    with h5py.File("jets/jets_2.h5", "r+") as f:
        f["constituents"][4, 0, 0] = np.nan
    assert main(["data", "check", jets, "jets"]) == 2
    out = capsys.readouterr().out
    assert re.search(r"error +NaN or infinite 'pt' +jets_2.h5 +1 +0.0333 +object 4", out)


def test_plot_draws_jets_and_showers(jets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "plot", jets, "jets", "--to", "plots", "--objects", "20"]) == 0
    assert "20 objects" in capsys.readouterr().out
    showers = card_of(SHOWERS)
    clouds, _ = read_file(showers, write_arrays(tmp_path / "showers_1.hdf5", shower_arrays()))
    for folder in (tmp_path / "plots", plot_dataset(showers, clouds, tmp_path / "drawn")[0].parent):
        assert {path.name for path in folder.iterdir()} == {"features.png", "objects.png", "displays.png"}
        assert all(path.read_bytes().startswith(PNG) and path.stat().st_size > 5000 for path in folder.iterdir())
    with pytest.raises(DataError, match="nothing to plot"):
        plot_dataset(showers, clouds.select(slice(0, 0)), tmp_path / "none")


def test_import_and_write_give_the_file_back(jets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", jets, "jets/jets_1.h5", "--to", "imported", "--split", "train"]) == 0
    assert "40 objects" in capsys.readouterr().out
    (part,) = Path("imported/train").glob("*.h5")
    assert len(read_point_clouds(part)) == 40
    assert main(["data", "write", jets, "imported", "--to", "back.h5"]) == 0
    assert main(["data", "write", jets, "--from", jets, "jets/jets_1.h5", "--to", "direct.h5"]) == 0
    first = read_file(load_card(jets), Path("jets/jets_1.h5"))[0]
    for name in ("back.h5", "direct.h5"):
        again = read_file(load_card(jets), Path(name))[0]
        assert np.array_equal(first.points, again.points) and np.array_equal(first.labels, again.labels)
        assert np.array_equal(first.conditions, again.conditions)
    assert main(["data", "check", jets, "imported"]) == 0


def test_mistakes_are_one_sentence(jets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'jetclass'" in mistake(capsys, "show", "jetclas")
    assert "nowhere.h5: no such file" in mistake(capsys, "inspect", "nowhere.h5")
    assert "'*.root': no such file" in mistake(capsys, "check", jets, "*.root").replace(
        "error: *.root", "error: '*.root'"
    )
    assert "--from CARD" in mistake(capsys, "write", jets, "jets/jets_1.h5", "--to", "x.h5")
    assert "NAME=NUMBER" in mistake(capsys, "write", jets, "jets/jets_1.h5", "--to", "x.h5", "--assume", "jet_eta")
    features = mistake(capsys, "import", jets, "jets", "--to", "imported", "--features", "pt", "eta_re")
    assert "did you mean 'eta_rel'" in features
    assert "small_jets" in mistake(capsys, "download", jets)
    Path("jets/jets_1.h5").write_bytes(b"not hdf5")
    assert "jets_1.h5" in mistake(capsys, "plot", jets, "jets")
    assert not Path("x.h5").exists() and not list(Path(".").rglob("*.part"))


def test_help_and_options_that_are_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["data", "--help"], ["foundation data inspect", "exit codes", "FILES"]),
        (["data", "check", "--help"], ["--json FILE", "Exit code"]),
        (["data", "import", "--help"], ["--workers N", "--scheduler", "--skip-bad", "--features"]),
        (["data", "write", "--help"], ["--from CARD", "--assume NAME=VALUE"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        out = capsys.readouterr().out
        assert stopped.value.code == 0 and not [word for word in words if word not in out]
    for wrong in (["data"], ["data", "plot", "x", "y", "--objects", "0"], ["data", "import", "x", "y"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from foundation.cli import main
try:
    main(["data", "--help"])
except SystemExit:
    print(sorted({"torch", "numpy", "h5py", "uproot", "awkward", "pyarrow", "dask", "pooch"} & sys.modules.keys()))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_card_of_the_how_to_reads_the_file_that_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "how-to" / "own-data.md").read_text()
    for name, block in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text, re.S):
        Path(name).write_text(block)
    subprocess.run([sys.executable, "make_lab_jets.py"], check=True)
    assert main(["data", "check", "lab_jets.yaml", "lab_1.h5"]) == 0
    assert "1,000 objects: 0 errors, 0 warnings" in capsys.readouterr().out
    clouds, _ = read_file(load_card("lab_jets.yaml"), Path("lab_1.h5"))
    assert len(clouds) == 1000 and 3 < float(np.median(clouds.feature("pt"))) < 8
    assert main(["data", "import", "lab_jets.yaml", ".", "--to", "imported"]) == 0
    assert main(["data", "write", "jetnet150", "imported", "--to", "g.hdf5", "--assume", "jet_eta=0", "jet_phi=0"]) == 0
    assert main(["data", "inspect", "g.hdf5"]) == 0
    assert "jetnet150: all" in capsys.readouterr().out


def test_tables_fold_their_widest_columns() -> None:
    lines = table_lines(("a", "words"), [("1", "one two three four five six"), ("22", "seven")], width=20)
    assert max(map(len, lines)) <= 20
    assert [line.split() for line in lines[2:]] == [
        ["1", "one", "two", "three"],
        ["four", "five", "six"],
        ["22", "seven"],
    ]
