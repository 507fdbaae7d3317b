"""How fast files are imported, as a ratio to what a library alone needs to read the same arrays.

    python benchmarks/import_files.py [--jets 100000] [--showers 2000] [--repeat 3] [--folder DIR]

Three figures, each of one run on one machine, the two sides taking turns, the smallest time of each counting:
  jets      a ROOT file in JetClass's layout, read by its card, against uproot reading the same branches
  showers   an HDF5 file in the layout of CaloChallenge dataset 2, against h5py and numpy.nonzero
  workers   a whole import (reading, checking, writing) with two processes against one
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import uproot

from foundation.data.cards import load_card
from foundation.data.formats.layouts import keys_of
from foundation.data.formats.reading import read_in_ranges
from foundation.data.formats.voxels import hits_to_images
from foundation.data.importing import import_dataset
from foundation.data.simulate.gflash import simulate_showers

WORKER_FILES = 8
JETS_PER_BASKET = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jets", type=int, default=100_000)
    parser.add_argument("--showers", type=int, default=2_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder by default")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores; Python "
          f"{platform.python_version()}, uproot {uproot.__version__}, h5py {h5py.__version__}")  # fmt: skip
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        jets = folder / "ZJetsToNuNu_000.root"
        write_jets(jets, options.jets)
        compare("jets, uproot", lambda: uproot_alone(jets), "card jetclass", lambda: by_card("jetclass", jets),
                options.repeat)  # fmt: skip
        showers = folder / "dataset_2.hdf5"
        write_showers(showers, options.showers)
        compare("showers, h5py + nonzero", lambda: h5py_alone(showers), "card calochallenge_ds2",
                lambda: by_card("calochallenge_ds2", showers), options.repeat)  # fmt: skip
        parts = folder / "parts"
        parts.mkdir(exist_ok=True)
        for i in range(WORKER_FILES):
            shutil.copy(jets, parts / f"ZJetsToNuNu_{i:03d}.root")
        compare("whole import, 2 workers", lambda: whole(parts, folder, 2), "1 worker", lambda: whole(parts, folder, 1),
                1)  # fmt: skip
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def compare(name: str, peer: Callable[[], object], our_name: str, ours: Callable[[], object], repeat: int) -> None:
    """Print both times and their ratio."""
    times: dict[str, list[float]] = {name: [], our_name: []}
    for _ in range(repeat):
        for label, work in ((name, peer), (our_name, ours)):
            start = time.perf_counter()
            work()
            times[label].append(time.perf_counter() - start)
    theirs, own = min(times[name]), min(times[our_name])
    print(f"{name}: {theirs:.2f} s; {our_name}: {own:.2f} s; ratio {own / theirs:.2f}", flush=True)


def write_jets(path: Path, count: int) -> None:
    """A file with the branches of JetClass and jets of random constituents of its typical numbers."""
    import awkward as ak

    rng = np.random.default_rng(1)
    counts = np.clip(rng.normal(45, 15, count), 2, 128).astype(int)
    n = counts.sum()
    jet_pt, jet_eta, jet_phi = rng.uniform(500, 1000, count), rng.uniform(-2, 2, count), rng.uniform(-3, 3, count)
    owner = np.repeat(np.arange(count), counts)
    share = rng.exponential(1, n)
    pt = share / np.bincount(owner, share)[owner] * jet_pt[owner]
    order = np.lexsort([-pt, owner])
    pt = pt[order]
    deta, dphi = rng.normal(0, 0.15, (2, n))
    eta, phi = jet_eta[owner] + deta, jet_phi[owner] + dphi
    kind = rng.choice(5, n, p=[0.5, 0.12, 0.35, 0.015, 0.015])
    tracks = np.isin(kind, (0, 3, 4))
    flat: dict[str, np.ndarray] = {
        "part_px": pt * np.cos(phi), "part_py": pt * np.sin(phi), "part_pz": pt * np.sinh(eta),
        "part_energy": pt * np.cosh(eta), "part_deta": np.sign(jet_eta[owner]) * deta, "part_dphi": dphi,
        "part_charge": np.where(tracks, rng.choice([-1, 1], n), 0),
    }  # fmt: skip
    for name in ("d0val", "d0err", "dzval", "dzerr"):
        flat[f"part_{name}"] = np.where(tracks, rng.normal(0, 0.1, n), 0)
    flat = {name: values.astype(np.float32) for name, values in flat.items()}
    for i, name in enumerate(("ChargedHadron", "NeutralHadron", "Photon", "Electron", "Muon")):
        flat[f"part_is{name}"] = (kind == i).astype(np.int32)
    of_jets = {"jet_pt": jet_pt, "jet_eta": jet_eta, "jet_phi": jet_phi, "jet_nparticles": counts.astype(float)}
    of_jets |= {name: rng.uniform(0, 1, count) for name in ("jet_energy", "jet_sdmass", "jet_tau1", "jet_tau2",
                                                            "jet_tau3", "jet_tau4")}  # fmt: skip
    arrays = {name: ak.unflatten(values, counts) for name, values in flat.items()}
    arrays |= {name: values.astype(np.float32) for name, values in of_jets.items()}
    for name in ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl"):
        arrays[f"label_{name}"] = np.full(count, name == "QCD", bool)
    with uproot.recreate(path) as file:
        tree = file.mktree("tree", {name: array.type if isinstance(array, ak.Array) else array.dtype
                                    for name, array in arrays.items()})  # fmt: skip
        # Baskets of a size that ROOT itself would write.
        for start in range(0, count, JETS_PER_BASKET):
            tree.extend({name: array[start : start + JETS_PER_BASKET] for name, array in arrays.items()})


def uproot_alone(path: Path) -> object:
    """The branches that the card reads, by uproot's own fastest way to arrays."""
    card = load_card("jetclass")
    assert card.format is not None
    with uproot.open(path) as file:
        return file["tree"].arrays(keys_of(card.format), library="ak")


def h5py_alone(path: Path) -> object:
    """The arrays, and the voxels that are not empty, in pieces as large as those of the card's reader."""
    found = []
    with h5py.File(path) as file:
        energies = file["incident_energies"][:]
        for start in range(0, len(energies), 3000):
            images = file["showers"][start : start + 3000]
            rows = np.nonzero(images)
            found.append((rows, images[rows]))
    return energies, found


def by_card(name: str, path: Path) -> object:
    """Point clouds of the whole file, checked as every import is."""
    return list(read_in_ranges(load_card(name), path))


def write_showers(path: Path, count: int) -> None:
    """Showers of GFlash in the voxels of dataset 2, in its layout."""
    card = load_card("gflash_par04")
    assert card.geometry is not None
    with h5py.File(path, "w") as file:
        clouds = simulate_showers(card, count, seed=1)
        columns = {name: clouds.feature(name) for name in card.geometry.axes}
        images = hits_to_images(columns, clouds.feature("energy"), clouds.counts, card.geometry)
        file.create_dataset("showers", data=images, compression="gzip")
        energies = 1000 * clouds.condition("incident_energy").astype(np.float64)
        file.create_dataset("incident_energies", data=energies[:, None], compression="gzip")


def whole(parts: Path, folder: Path, workers: int) -> None:
    """Import a folder of files into a new folder."""
    out = folder / f"imported_{workers}"
    shutil.rmtree(out, ignore_errors=True)
    import_dataset(load_card("jetclass"), {"train": sorted(parts.glob("*.root"))}, out, workers=workers)


if __name__ == "__main__":
    main()
