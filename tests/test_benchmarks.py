"""The benchmark scripts run; what they measure is not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
