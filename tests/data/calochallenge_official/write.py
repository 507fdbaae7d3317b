"""Make the small showers of showers.npz, and write them as CaloChallenge files; see README.md here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from foundation.data.cards import DatasetCard, load_card
from foundation.data.formats.writing import write_file
from foundation.data.geometry import CylindricalGeometry
from foundation.data.simulate.gflash import simulate_showers

from calochallenge_samples import FOLDER, NAMES, card_of, merged, read, spots


def par04_like(card: DatasetCard, count: int, seed: int, smear: float) -> tuple[np.ndarray, ...]:
    """GFlash showers of 1 to 4 GeV in the voxels of datasets 2 and 3, divided by the sampling fraction as those are."""
    simulator = load_card("gflash_par04")
    energies = np.exp(np.random.default_rng(seed).uniform(0, np.log(4), count))
    simulator = simulator.model_copy(update={"geometry": _with_matter(card, simulator)})
    showers = simulate_showers(simulator, count, seed, energies)
    geometry = card.geometry
    assert isinstance(geometry, CylindricalGeometry)
    cells = {name: showers.feature(name).astype(np.int64) for name in geometry.axes}
    rng = np.random.default_rng(seed + 1)
    energy = showers.feature("energy") / 0.033 * rng.normal(1.0, smear - 0.99, len(showers.points)).clip(0.2)
    return showers.owners, geometry.numbers(cells), energy, 1000.0 * energies


def _with_matter(card: DatasetCard, simulator: DatasetCard) -> CylindricalGeometry:
    assert isinstance(card.geometry, CylindricalGeometry) and isinstance(simulator.geometry, CylindricalGeometry)
    of_card, group = card.geometry.layers[0], simulator.geometry.layers[0]
    rings = {"r_edges_mm": of_card.r_edges_mm, "alpha_bins": of_card.alpha_bins}
    return simulator.geometry.model_copy(update={"layers": (group.model_copy(update=rings),)})


def make() -> dict[str, np.ndarray]:
    """Counts, voxel numbers, energies and incident energies (MeV) of truth and generated showers."""
    arrays: dict[str, np.ndarray] = {}
    for name in NAMES:
        maker, count = (spots, 300 if name == "1_photons" else 60) if name[0] == "1" else (par04_like, 16)
        for seed, (sample, smear) in enumerate((("truth", 1.0), ("generated", 1.2))):
            owners, voxels, energy, incident = maker(card_of(name), count, seed + 10, smear)
            counts, numbers, added = merged(count, owners, voxels, energy)
            # twelve bits of mantissa less: the file compresses
            rounded = (added.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)
            parts = {"counts": counts, "voxels": numbers, "energy": rounded, "incident": incident.astype(np.float32)}
            arrays |= {f"{name}_{sample}_{part}": array for part, array in parts.items()}
    return arrays


def main(work: Path) -> None:
    """showers.npz here, and one file per dataset and sample in `work`."""
    np.savez_compressed(FOLDER / "showers.npz", **make())
    work.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        for sample in ("truth", "generated"):
            write_file(card_of(name), read(name, sample), work / f"{name}_{sample}.hdf5")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
