"""Record what the reference implementations say about a few jets; README.md says how this was run.

python record.py: writes jets.npz, references.npz and references.json beside itself.
"""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import awkward as ak
import energyflow
import fastjet
import numpy as np
from jetnet.evaluation import gen_metrics
from jetnet.utils import jet_features
from scipy.stats import entropy

HERE = Path(__file__).parent
PACKAGES = ("jetnet", "energyflow", "fastjet", "wasserstein", "numpy", "scipy", "numba", "coffea", "awkward")
JETS = 160


def make_jets(seed: int, width: float, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Constituents (eta, phi, pt relative) float32 and offsets; the first jets have 1 to 4 constituents."""
    rng = np.random.default_rng(seed)
    counts = np.concatenate([[1, 2, 3, 4], rng.integers(5, 31, JETS - 4)])
    owner = np.repeat(np.arange(JETS), counts)
    pt = rng.gamma(0.7, 1.0, len(owner)) + 0.01
    pt = (pt / np.bincount(owner, pt)[owner]) ** tilt
    prong = rng.normal(0, 0.15, (JETS, 2, 2))[owner, rng.integers(0, 2, len(owner))]
    angles = prong + rng.laplace(0, width, (len(owner), 2))
    # two jets far from their axis: one around phi = pi, where azimuths wrap, one forward
    angles[owner == 10] += (0.0, 3.1)
    angles[owner == 11] += (2.0, 0.0)
    angles[:, 1] = (angles[:, 1] + np.pi) % (2 * np.pi) - np.pi
    return np.column_stack([angles, pt]).astype(np.float32), np.concatenate([[0], np.cumsum(counts)])


def padded(points: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[JETS, longest, 3] in double precision, which jetnet keeps."""
    counts = np.diff(offsets)
    table = np.zeros((len(counts), counts.max(), 3))
    for jet, (a, b) in enumerate(pairwise(offsets)):
        table[jet, : b - a] = points[a:b]
    return table


def polynomials(jets: np.ndarray, normed: bool) -> np.ndarray:
    graphs = energyflow.EFPSet(("d<=", 4), measure="hadr", beta=1, normed=normed, coords="ptyphim")
    return graphs.batch_compute(jets[:, :, [2, 0, 1]], 1)


def fastjet_observables(points: np.ndarray, offsets: np.ndarray) -> dict[str, list[float]]:
    """tau_1-3 and D2 as OmniJet-alpha's code has them, soft-drop mass: NaN below three constituents for the former."""
    found: dict[str, list[float]] = {name: [] for name in ("tau1", "tau2", "tau3", "d2", "soft_drop_mass")}
    for a, b in pairwise(offsets):
        eta, phi, pt = points[a:b].astype(np.float64).T
        momenta = ak.Array(
            {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "E": pt * np.cosh(eta)},
            with_name="Momentum4D",
        )
        if b - a >= 3:
            kt = fastjet.ClusterSequence(momenta, fastjet.JetDefinition(fastjet.kt_algorithm, 0.8))
            for n in (1, 2, 3):
                axes = kt.exclusive_jets(n_jets=n)
                found[f"tau{n}"].append(tau(eta, phi, pt, axes))
            # a radius without end keeps all constituents: the code's 0.8 loses those that merge with the beam
            whole = fastjet.ClusterSequence(momenta, fastjet.JetDefinition(fastjet.kt_algorithm, 1000.0))
            found["d2"].append(float(np.ravel(whole.exclusive_jets_energy_correlator(1, func="d2"))[0]))
        else:
            for name in ("tau1", "tau2", "tau3", "d2"):
                found[name].append(np.nan)
        tree = fastjet.ClusterSequence(momenta, fastjet.JetDefinition(fastjet.cambridge_algorithm, 1000.0))
        groomed = tree.exclusive_jets_softdrop_grooming(1, 0, 0.1, "scalar_z", 0.8)
        found["soft_drop_mass"].append(float(np.ravel(groomed.msoftdrop)[0]))
    return found


def tau(eta: np.ndarray, phi: np.ndarray, pt: np.ndarray, axes: ak.Array) -> float:
    distances = []
    for axis in axes:
        jet = fastjet.PseudoJet(float(axis.px), float(axis.py), float(axis.pz), float(axis.E))
        across = np.abs(phi - jet.phi_std())
        distances.append(np.hypot(eta - jet.rap(), np.minimum(across, 2 * np.pi - across)))
    return float((pt * np.min(distances, axis=0)).sum() / (pt.sum() * 0.8))


def quantiled_kld(truth: np.ndarray, generated: np.ndarray, quantiles: int) -> float:
    """The formula of OmniJet-alpha (gabbro/metrics/utils.py), written out with numpy and scipy."""
    edges = np.quantile(truth, np.linspace(0.001, 0.999, quantiles))
    densities = [np.histogram(values, edges, density=True)[0] + 1e-8 for values in (truth, generated)]
    return float(entropy(*densities))


def main() -> None:
    warnings.simplefilter("ignore")
    files = {"truth": make_jets(1, 0.05, 1.0), "generated": make_jets(2, 0.06, 1.05)}
    jets = {side: padded(*parts) for side, parts in files.items()}
    a, b = jets["truth"], jets["generated"]
    arrays = {f"efp_{side}": polynomials(x, False) for side, x in jets.items()}
    arrays["efp_normed_truth"] = polynomials(a[:40], True)
    arrays["mass_truth"], arrays["mass_generated"] = jet_features(a)["mass"], jet_features(b)["mass"]
    arrays |= {f"{name}_truth": np.array(values) for name, values in fastjet_observables(*files["truth"]).items()}
    x, y = arrays["efp_truth"], arrays["efp_generated"]
    numbers: dict[str, object] = {"packages": {name: version(name) for name in PACKAGES}}
    for name, call in {
        "w1m": lambda: gen_metrics.w1m(a, b, num_eval_samples=2000),
        "w1p": lambda: gen_metrics.w1p(a, b, num_eval_samples=2000),
        "w1efp": lambda: gen_metrics.w1efp(a, b, num_eval_samples=2000, efp_jobs=1),
        "cov_mmd": lambda: gen_metrics.cov_mmd(a, b, num_eval_samples=30, num_batches=2, use_tqdm=False),
        "fpd": lambda: gen_metrics.fpd(x, y),
        "fpd_floor": lambda: gen_metrics.fpd(x[:80], x[80:]),
        "fpd_small": lambda: gen_metrics.fpd(x, y, min_samples=500, max_samples=2000, num_batches=5, seed=3),
        "kpd": lambda: gen_metrics.kpd(x, y, num_batches=4, batch_size=1000),
        "kpd_threads": lambda: gen_metrics.kpd(x, y, num_batches=4, batch_size=1000, num_threads=1),
    }.items():
        gen_metrics.rng = np.random.default_rng(11)
        numbers[name] = [np.asarray(part).tolist() for part in call()]
    numbers["quantiled_kld"] = {
        str(n): quantiled_kld(arrays["mass_truth"], arrays["mass_generated"], n) for n in (10, 30)
    }
    parts = {f"{side}_{name}": pair[k] for side, pair in files.items() for k, name in enumerate(("points", "offsets"))}
    np.savez_compressed(HERE / "jets.npz", **parts)
    np.savez_compressed(HERE / "references.npz", **arrays)
    (HERE / "references.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
