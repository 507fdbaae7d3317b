"""Small cards of the two kinds, and files in their formats, for the tests of `foundation data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard, load_card

JETS: dict[str, Any] = {
    "name": "small_jets",
    "title": "Small jets",
    "domain": "jet",
    "tag": "small_jets",
    "licence": "none",
    "features": [
        {"name": "pt", "unit": "GeV", "range": [0.1, 1000.0], "log": True},
        {"name": "eta_rel", "range": [-1.6, 1.6]},
        {"name": "phi_rel", "unit": "rad", "range": [-1.6, 1.6]},
    ],
    "order": ["-pt"],
    "classes": ["background", "signal"],
    "attributes": [{"name": "jet_pt", "unit": "GeV"}],
    "files": {"pattern": "jets_*.h5"},
    "format": {
        "container": "hdf5",
        "points": {
            "layout": "padded", "key": "constituents", "columns": ["pt", "eta_rel", "phi_rel", "mask"],
            "real": "mask", "keep_mask": True, "places": 8,
        },
        "objects": {"jet_pt": "jets[0]"},
        "label": {"key": "jets[1]"},
    },
}  # fmt: skip
SHOWERS: dict[str, Any] = {
    "name": "small_showers",
    "title": "Small showers",
    "domain": "shower",
    "tag": "small_showers",
    "licence": "none",
    "features": [
        {"name": "layer", "unit": "index", "kind": "integer", "range": [0, 2]},
        {"name": "alpha", "unit": "index", "kind": "integer", "range": [0, 3]},
        {"name": "r", "unit": "index", "kind": "integer", "range": [0, 1]},
        {"name": "energy", "unit": "MeV", "range": [0.01, 1e5], "log": True},
    ],
    "order": ["layer", "alpha", "r"],
    "classes": ["electron"],
    "conditions": [{"name": "incident_energy", "unit": "GeV", "range": [1.0, 100.0], "scale": "log"}],
    "geometry": {"kind": "cylindrical", "layers": [{"repeat": 3, "alpha_bins": 4, "r_edges_mm": [0, 5, 20]}]},
    "files": {"pattern": "showers_*.hdf5"},
    "format": {
        "container": "hdf5",
        "points": {"layout": "voxels", "key": "showers"},
        "objects": {"incident_energy": "incident_energies[0]"},
        "conversions": {"incident_energy": {"unit": "MeV"}},
        "label": {"constant": "electron"},
    },
}


def card_of(text: dict[str, Any], **changes: Any) -> DatasetCard:
    """A card with some of its keys changed."""
    return DatasetCard.model_validate({**text, **changes})


def write_card(folder: Path, text: dict[str, Any]) -> str:
    """The card as a YAML file; its path, as the command line takes it."""
    path = folder / f"{text['name']}.yaml"
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    load_card(str(path))
    return str(path)


def jet_arrays(n: int = 40, seed: int = 1) -> dict[str, NDArray]:
    """Jets of 3 to 7 constituents in 8 places, hardest first: constituents [n, 8, 4], jets [n, 2]."""
    rng = np.random.default_rng(seed)
    real = np.arange(8) < rng.integers(3, 8, n)[:, None]
    pt = -np.sort(-rng.lognormal(3.5, 0.5, (n, 8)) * real, axis=1)
    angles = rng.normal(0, 0.2, (n, 8, 2)) * real[..., None]
    constituents = np.concatenate([pt[..., None], angles, real[..., None]], axis=2).astype(np.float32)
    jets = np.stack([pt.sum(1), rng.integers(0, 2, n)], axis=1).astype(np.float32)
    return {"constituents": constituents, "jets": jets}


def shower_arrays(n: int = 30, seed: int = 2) -> dict[str, NDArray]:
    """Showers in 24 voxels with 80 % of the incident energy, all in MeV."""
    rng = np.random.default_rng(seed)
    incident = np.geomspace(2000, 80_000, n)
    shares = rng.dirichlet(np.full(24, 0.3), n)
    shares[shares < 0.01] = 0
    return {
        "showers": (0.8 * incident[:, None] * shares).astype(np.float32),
        "incident_energies": incident[:, None].astype(np.float32),
    }


def write_arrays(path: Path, arrays: dict[str, NDArray]) -> Path:
    """The arrays as an HDF5 file."""
    with h5py.File(path, "w") as f:
        for key, array in arrays.items():
            f[key] = array
    return path
