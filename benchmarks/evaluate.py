"""How long the metrics of jets take, beside jetnet, energyflow and fastjet, in one run, one thread each.

    python benchmarks/evaluate.py [--peers FOLDER] [--jets 50000] [--most 128] [--few 300]

Two samples of --jets jets with 10 to --most constituents, evenly spread, are compared in full: 36 energy flow
polynomials per jet, FPD, KPD, W1 of masses, constituents and polynomials, and the substructure of every jet. Times are
CPU times, so that other work on the machine counts less. `sh benchmarks/peers.sh FOLDER` makes the peers'
environment (ONLY=jets: no other). benchmarks/evaluate_showers.py does the same for showers.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stream import last_line, machine

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.evaluate.energy_flow import GRAPHS, W1_GRAPHS, energy_flow_polynomials
from foundation.evaluate.frechet import fpd, kpd
from foundation.evaluate.jet_wasserstein import w1efp, w1m, w1p
from foundation.evaluate.metrics import Measurement
from foundation.evaluate.substructure import jet_panel

PEER = Path(__file__).parent / "scores" / "jets_peer.py"
PEER_ENVIRONMENT = "jets"
TARGETS = {"full panel": 5, "fpd": 2}
LEGEND = """
CPU seconds of one thread for both samples. The peers' polynomials and substructure are of the first {few} jets, times
the number of jets over that; their W1 of masses and constituents is one batch of 50,000 drawn jets of five, times five;
their W1 of polynomials are the five polynomials alone, without the W1. FPD and KPD are of the same features, in full.
OmniJet-alpha's code calls fastjet as in "substructure", and clusters with it in C++. D2 is part of our polynomials."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jets", type=int, default=50_000, help="of each sample")
    parser.add_argument("--most", type=int, default=128, help="constituents of a jet")
    parser.add_argument("--few", type=int, default=300, help="jets for the peers where the time per jet is all")
    parser.add_argument("--peers", type=Path, help="folder that peers.sh filled")
    options = parser.parse_args()
    print(machine(), flush=True)
    samples = [make_jets(options.jets, options.most, seed) for seed in (1, 2)]
    print(f"2 x {options.jets:,} jets, {samples[0].counts.mean():.1f} constituents each on average", flush=True)
    seconds, values, features = ours(samples)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if options.peers is None:
        print("jetnet, energyflow, fastjet: not available: --peers not given")
        theirs: dict[str, tuple[float, float | None]] = {}
    else:
        theirs = peers(options.peers, samples[0], features, options.few)
    report(seconds, values, theirs)
    print(f"\nPeak memory of ours: {peak:.2f} GiB (target: below 6)")
    print(LEGEND.format(few=options.few))


def make_jets(jets: int, most: int, seed: int) -> PointClouds:
    """Jets whose constituents carry pT relative to the jet's."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(min(10, most), most + 1, jets)
    owners = np.repeat(np.arange(jets), counts)
    pt = rng.exponential(1.0, len(owners)) ** 1.5 + 1e-4
    pt /= np.bincount(owners, pt)[owners]
    points = np.column_stack([pt, rng.laplace(0, 0.1 + 0.005 * seed, (len(owners), 2))]).astype(np.float32)
    return PointClouds(
        points, to_offsets(counts), ("pt", "eta_rel", "phi_rel"), ("1", "1", "rad"),
        np.zeros(jets, np.int64), np.zeros((jets, 0), np.float32),
    )  # fmt: skip


def ours(samples: list[PointClouds]) -> tuple[dict[str, float], dict[str, float], list[np.ndarray]]:
    """CPU seconds by part, values of FPD and KPD, and the polynomials of both samples."""
    seconds: dict[str, float] = {}

    def clock(name: str, work: Callable[[], object]) -> object:
        start = time.process_time()
        result = work()
        seconds[name] = time.process_time() - start
        print(f"ours, {name}: {seconds[name]:.1f} s", flush=True)
        return result

    features: list[np.ndarray] = []
    clock("polynomials", lambda: features.extend(energy_flow_polynomials(jets) for jets in samples))
    columns = [GRAPHS.index(graph) for graph in W1_GRAPHS]
    clock("w1 of polynomials", lambda: w1efp(*(table[:, columns] for table in features)))
    clock("w1 of masses", lambda: w1m(*samples))
    clock("w1 of constituents", lambda: w1p(*samples))
    clock("substructure", lambda: [jet_panel(s, polynomials=f) for s, f in zip(samples, features, strict=True)])
    values = {}
    for name, metric in (("fpd", fpd), ("kpd", kpd)):
        found = clock(name, lambda metric=metric: metric(*features, seed=42))
        assert isinstance(found, Measurement)
        values[name] = found.value
    return seconds, values, features


def peers(
    folder: Path, truth: PointClouds, features: list[np.ndarray], few: int
) -> dict[str, tuple[float, float | None]]:
    """CPU seconds by part, scaled to the whole, and values; nothing where they do not run."""
    with tempfile.TemporaryDirectory() as home:
        file, log = Path(home) / "jets.npz", Path(home) / "log"
        points = truth.points[:, [1, 2, 0]]
        np.savez(file, points=points, offsets=truth.offsets, truth=features[0], generated=features[1])
        command = [folder / PEER_ENVIRONMENT / "bin" / "python", PEER, file, str(few)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": ""}
        with log.open("w") as errors:
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
            except OSError as error:
                print(f"jetnet, energyflow, fastjet: not available: {error}")
                return {}
        if done.returncode != 0:
            print(f"jetnet, energyflow, fastjet: not available: {last_line(log)}")
            return {}
    answer = json.loads(done.stdout.splitlines()[-1])
    return {name: (seconds / share, value) for name, (seconds, share, value) in answer.items()}


def report(seconds: dict[str, float], values: dict[str, float], theirs: dict[str, tuple[float, float | None]]) -> None:
    """One line per part, then all together."""
    print("\n| part | ours [s] | peers [s] | ratio | target |\n|---|---|---|---|---|")
    for name, own in seconds.items():
        print(line(name, own, theirs[name][0] if name in theirs else None))
    whole = sum(theirs[name][0] for name in seconds) if seconds.keys() <= theirs.keys() else None
    print(line("full panel", sum(seconds.values()), whole))
    for name, value in values.items():
        other = theirs[name][1] if name in theirs else None
        beside = "" if other is None else f", jetnet {other:.9g}, difference {value - other:.1e}"
        print(f"{name}: ours {value:.9g}{beside}")


def line(name: str, own: float, other: float | None) -> str:
    """A row of the table."""
    beside = " | " if other is None else f"{other:,.1f} | {other / own:.1f}"
    return f"| {name} | {own:.1f} | {beside} | {TARGETS.get(name, '')} |"


if __name__ == "__main__":
    main()
