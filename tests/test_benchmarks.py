"""The benchmark scripts run; what they measure is not tested."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
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


@pytest.mark.slow
def test_metrics_of_jets_are_measured_without_the_peers() -> None:
    said = run("evaluate.py", "--jets", "120", "--most", "20")
    rows = {line.split("|")[1].strip() for line in said.splitlines() if line.startswith("|")}
    assert {"polynomials", "substructure", "w1 of constituents", "fpd", "kpd", "full panel"} <= rows
    assert "not available: --peers not given" in said and "Peak memory of ours" in said


@pytest.mark.slow
def test_generation_is_measured_without_the_peers() -> None:
    options = ["--jets", "6", "--showers", "2", "--most-hits", "12", "--hits", "3x5", "--turns", "1", "--alone", "3"]
    said = run("generate.py", *options, "--slots", "1,4", "--bound-tokens", "40")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| ")]
    ours = [cells for cells in lines if cells[0].startswith("ours, ")]
    assert len(ours) == 4 + 2 + 2 and all(float(cells[1].replace(",", "")) > 0 for cells in ours), said
    peers = [cells for cells in lines if cells[0].startswith(("OmniJet", "Hugging", "SPADE"))]
    assert len(peers) == 4 + 3 + 2 and all("--peers not given" in cells[1] for cells in peers)
    shares = [float(cells[6].removesuffix(" %")) for cells in lines if cells[0] in ("1, fp32", "4, fp32", "1, bf16")]
    assert len(shares) == 6 and all(share > 0 for share in shares)
    assert sum(cells[0] in ("fp32", "bf16") for cells in lines) == 4
    assert "GPU: left out" in said or "TFLOP/s in torch.mm" in said


def test_lengths_of_generated_objects_are_those_of_the_data() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from generation.law import fitted
        from generation.sizes import Lengths
    finally:
        sys.path.remove(str(BENCHMARKS))
    counts = np.random.default_rng(1).integers(20, 90, 2000)
    lengths = Lengths.like(counts, longest=126)
    drawn = lengths.draw(20_000)
    assert lengths.mean == pytest.approx(counts.mean(), rel=1e-6) == pytest.approx(drawn.mean(), rel=0.02)
    assert lengths.shortest <= drawn.min() and drawn.max() == 126
    # the cost law finds the parabola that it is given
    assert fitted({n: 1 + 2 * n + 3 * n * n for n in (1, 10, 100)}, 50)[-1] == pytest.approx(1 + 2 * 50 + 3 * 2500)
