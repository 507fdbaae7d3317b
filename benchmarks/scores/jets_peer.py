"""Time jetnet, energyflow and fastjet on jets of a file; benchmarks/evaluate.py calls it in their environment.

    python jets_peer.py FILE FEW

FILE (npz): points (eta, phi, pt) and offsets of the truth, and the polynomials of both samples. Prints one JSON object:
what -> [CPU seconds, of how many of the units that the whole has, value]. One thread; the first FEW jets for
what costs a fixed time per jet.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable

import awkward as ak
import fastjet
import numpy as np
from jetnet.evaluation import gen_metrics
from jetnet.utils import efps

DRAWN = 50_000


def main(file: str, few: int) -> None:
    warnings.simplefilter("ignore")
    with np.load(file) as arrays:
        points, offsets = arrays["points"].astype(np.float64), arrays["offsets"]
        features = [arrays["truth"], arrays["generated"]]
    counts = np.diff(offsets)
    few = min(few, len(counts))
    jets = np.zeros((len(counts), counts.max(), 3))
    jets[np.repeat(np.arange(len(counts)), counts), np.arange(len(points)) - np.repeat(offsets[:-1], counts)] = points
    particles = momenta(points[: offsets[few]], counts[:few])
    substructure(*(table[:2] for table in particles))
    gen_metrics.kpd(*(x[:200] for x in features), num_batches=1, batch_size=100)  # numba compiles
    found = {}

    def clock(name: str, share: float, work: Callable[[], object]) -> None:
        start = time.process_time()
        value = work()
        seconds = time.process_time() - start
        found[name] = [seconds, share, float(value[0]) if isinstance(value, tuple) else None]

    share = few / (2 * len(counts))
    clock("polynomials", share, lambda: gen_metrics.get_fpd_kpd_jet_features(jets[:few], efp_jobs=1))
    clock("w1 of polynomials", share, lambda: efps(jets[:few], efp_jobs=1))
    clock("w1 of masses", 1 / 5, lambda: gen_metrics.w1m(jets, jets, num_eval_samples=DRAWN, num_batches=1))
    clock("w1 of constituents", 1 / 5, lambda: per_feature(jets))
    clock("substructure", share, lambda: substructure(*particles))
    clock("fpd", 1, lambda: gen_metrics.fpd(*features))
    clock("kpd", 1, lambda: gen_metrics.kpd(*features))
    print(json.dumps(found))


def per_feature(jets: np.ndarray) -> None:
    gen_metrics.w1p(jets, jets, num_eval_samples=DRAWN, num_batches=1)


def momenta(points: np.ndarray, counts: np.ndarray) -> tuple[ak.Array, ak.Array]:
    """Four-momenta, and pt, eta and phi."""
    eta, phi, pt = points.T
    table = {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "E": pt * np.cosh(eta)}
    angles = ak.unflatten(ak.Array({"pt": pt, "eta": eta, "phi": phi}), counts)
    return ak.with_name(ak.unflatten(ak.Array(table), counts), "Momentum4D"), angles


def substructure(momenta: ak.Array, particles: ak.Array) -> None:
    """Axes of tau_1-3, D2 and the soft-drop mass by fastjet's loops over all jets in C++, and the taus."""
    kt = fastjet.ClusterSequence(momenta, fastjet.JetDefinition(fastjet.kt_algorithm, 0.8))
    for n in (1, 2, 3):
        axes = kt.exclusive_jets(n_jets=n)
        transverse = np.hypot(axes.px, axes.py)
        eta, phi = np.arcsinh(axes.pz / transverse), np.arctan2(axes.py, axes.px)
        distances = []
        for k in range(n):
            across = np.abs(particles.phi - phi[:, k])
            distances.append(np.hypot(particles.eta - eta[:, k], np.minimum(across, 2 * np.pi - across))[..., None])
        ak.sum(particles.pt * ak.min(ak.concatenate(distances, axis=-1), axis=-1), axis=1)
    kt.exclusive_jets_energy_correlator(1, func="d2")
    tree = fastjet.ClusterSequence(momenta, fastjet.JetDefinition(fastjet.cambridge_algorithm, 1000.0))
    tree.exclusive_jets_softdrop_grooming(1, 0, 0.1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
