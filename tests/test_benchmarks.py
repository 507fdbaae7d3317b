"""The benchmark scripts run; what they measure is not tested."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.data.files import write_point_clouds

from conftest import toy_jets

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_stream_is_compared_with_its_bounds(tmp_path: Path) -> None:
    said = run("stream.py", "--sequences", "2000", "--epochs", "1", "--only", "ours,bounds", "--folder", str(tmp_path))
    assert "not available" not in said
    names = {line.split("|")[1].strip() for line in said.splitlines() if line.startswith("|")}
    assert {"ours: rows of codes", "ours: training batches", "bound: packing of blocks in memory"} <= names


@pytest.mark.slow
def test_a_loader_that_is_not_installed_is_a_line_of_the_table(tmp_path: Path) -> None:
    said = run("stream.py", "--sequences", "100", "--epochs", "1", "--only", "litdata", "--folder", str(tmp_path))
    assert "not available: --peers not given" in said


@pytest.mark.slow
def test_imports_are_compared_with_libraries_alone() -> None:
    said = run("import_files.py", "--jets", "300", "--showers", "5", "--repeat", "1")
    assert said.count("ratio") == 3


@pytest.mark.slow
def test_tokenizers_are_measured_without_the_peer(tmp_path: Path) -> None:
    words = "alpha's sizes,per_feature,binning,patches"
    options = ["--jets", "30", "--showers", "10", "--turns", "1", "--threads", "1", "--batches", "64", "--steps", "2"]
    said = run("tokenizers.py", *options, "--only", words, "--folder", str(tmp_path))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| ")]
    ours = {name: cells for name, *cells in lines if name.startswith("ours: ")}
    assert {"ours: vqvae, OmniJet-alpha's sizes", "ours: per_feature", "ours: patches"} <= set(ours)
    for name, (encode, decode, *ratios) in ours.items():
        assert float(encode.replace(",", "")) > 0 and float(decode.replace(",", "")) > 0, name
        assert not any(ratios), name
    assert all("--peers not given" in cells[0] for name, *cells in lines if name.startswith("OmniJet"))
    assert said.count("of the compute bound") == 4  # encode and decode of both samples of jets


@pytest.mark.slow
def test_tokenizers_are_measured_on_jets_of_files(tmp_path: Path) -> None:
    jets = replace(toy_jets(40, 1), tag="pythia_jetclass")
    write_point_clouds(tmp_path / "jets.h5", jets)
    options = ["--files", str(tmp_path / "jets.h5"), "--jets", "30", "--showers", "0", "--turns", "1", "--threads", "1"]
    said = run("tokenizers.py", *options, "--only", "per_feature")
    assert "Jets as they come, one core: 30 with" in said and "not available: --peers not given" in said


@pytest.mark.slow
def test_training_is_measured_without_the_peers() -> None:
    options = ["--jets", "3", "--showers", "1", "--few-showers", "1", "--turns", "1"]
    said = run("train.py", *options, "--tables", "published,gpu")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| ")]
    ours = [cells for cells in lines if cells[0].startswith("ours: ")]
    assert len(ours) == 4 + 6 and all(float(cells[1].replace(",", "")) > 0 for cells in ours)
    peers = [cells for cells in lines if cells[0].startswith(("OmniJet", "Hugging", "nano"))]
    assert len(peers) == 6 + 7 and all("--peers not given" in cells[1] for cells in peers)
    assert "GPU: left out" in said or "MFU" in said
    said = run("train.py", *options[:2], "--showers", "0", "--turns", "1", "--tables", "tricks", "--only", "all,padded")
    assert said.count("not available") == 0 and "| padded |" in said
