"""The processes in which sides work, each with the Python of its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stream import last_line

ENVIRONMENTS = {"omnijet": "omnijet", "gpts": "gpt", "spade": "spade"}
SOURCES = {"showers": "omnijet_alpha_c", "jets": "omnijet_alpha"}
"""Two repositories with one package name: the sample says which one is meant."""
PROGRAM = "import sys; sys.path.append(sys.argv[1]); from {package}.worker import main; main(*sys.argv[2:])"
"""The folder of the benchmarks comes last: it has a module named as a package that Hugging Face needs."""


@dataclass
class Side:
    """A process that trains or generates, or why there is none."""

    process: subprocess.Popen[str] | None = None
    log: Path = Path()
    problem: str = ""

    def ask(self, question: Mapping[str, object]) -> dict[str, float | str]:
        """One line there and back."""
        if self.process is None or self.problem:
            return {"problem": self.problem}
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.problem = last_line(self.log)
            return {"problem": self.problem}
        return json.loads(answer)

    def stop(self) -> None:
        """End the process."""
        if self.process:
            self.process.kill()
            self.process.wait()


def start(side: str, sample: str, threads: int, home: Path, peers: Path | None, package: str = "training") -> Side:
    """Start a process for one side, the worker of `package`; it stays idle until it is asked."""
    python, paths = Path(sys.executable), os.environ.get("PYTHONPATH", "")
    if side in ENVIRONMENTS:
        if peers is None:
            return Side(problem="--peers not given")
        python = peers.absolute() / ENVIRONMENTS[side] / "bin" / "python"
        if not python.exists():
            return Side(problem=f"no environment {python}")
        paths = str(python.parents[1] / "source" / SOURCES.get(sample, "")) if side == "omnijet" else ""
    number = len(list(home.glob("*.log")))
    made = Side(log=home / f"{number}.log")
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    arguments = [str(Path(__file__).parents[1].absolute()), side, str(home.absolute()), str(threads)]
    with made.log.open("w") as log:
        made.process = subprocess.Popen(
            [str(python), "-c", PROGRAM.format(package=package), *arguments], text=True,
            env=os.environ | limits | {"PYTHONPATH": paths}, cwd=home,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    return made
