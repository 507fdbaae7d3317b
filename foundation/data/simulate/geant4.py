"""Electromagnetic (or any) showers by Geant4 in a card's geometry, with the user's own Geant4 data.

Geant4 is optional (`geant4-pybind`, extra `geant4`) and runs in a process of its own: it can be initialised once per
process, stops the process at any mistake, and keeps state from shower to shower. One process per shard makes the
showers follow from the shard's seed alone. This module checks what can be checked before, starts that process
(`geant4_process.py`) and turns its hits into point clouds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard, Geant4Showers
from foundation.data.geometry import Geometry
from foundation.data.point_clouds import PointClouds
from foundation.data.simulate.matter import MATERIALS, is_homogeneous, plates_of
from foundation.data.simulate.showers import Hits, draw_incident, label_of, shower_clouds
from foundation.errors import DataError, did_you_mean

GEANT4_SOFTWARE = ("geant4-pybind", "numpy")
# Variable -> name of the data set, as geant4-pybind wants them at import, or else asks on standard input.
DATA_SETS = {
    "G4NEUTRONHPDATA": "G4NDL",
    "G4LEDATA": "G4EMLOW",
    "G4LEVELGAMMADATA": "PhotonEvaporation",
    "G4RADIOACTIVEDATA": "RadioactiveDecay",
    "G4PARTICLEXSDATA": "G4PARTICLEXS",
    "G4PIIDATA": "G4PII",
    "G4REALSURFACEDATA": "RealSurface",
    "G4SAIDXSDATA": "G4SAIDDATA",
    "G4ABLADATA": "G4ABLA",
    "G4INCLDATA": "G4INCL",
    "G4ENSDFSTATEDATA": "G4ENSDFSTATE",
    "G4CHANNELINGDATA": "G4CHANNELING",
}
NEEDED_FOR_ELECTROMAGNETIC = ("G4LEDATA", "G4ENSDFSTATEDATA")
NEEDED_FOR_HADRONS = (*NEEDED_FOR_ELECTROMAGNETIC, "G4PARTICLEXSDATA", "G4LEVELGAMMADATA", "G4SAIDXSDATA")
ELECTROMAGNETIC = {
    "emstandard": "G4EmStandardPhysics",
    **{f"emstandard_opt{i}": f"G4EmStandardPhysics_option{i}" for i in range(1, 5)},
    "emlivermore": "G4EmLivermorePhysics",
    "empenelope": "G4EmPenelopePhysics",
}
"""Names of electromagnetic physics in a card -> Geant4's constructors."""
PARTICLES = {"photon": "gamma", "electron": "e-", "positron": "e+"}
MAX_ROUNDS = 10


def geant4_showers(
    card: DatasetCard, count: int, seed: int, energies_gev: NDArray | None = None, class_name: str | None = None
) -> tuple[PointClouds, dict[str, object]]:
    """`count` showers of one class, and how they were made; the same seed gives the same bits.

    For what the card may ask for see `showers.shower_clouds`; a hit is the energy deposited in the active material of
    a cell. Energies are those of the card's spectrum, or `energies_gev` [count].

    Raises DataError when the card is not one of Geant4 showers, geant4-pybind or Geant4's data are missing, the
    geometry lacks matter, a shower stays without hits, or Geant4 stops.
    """
    simulator, geometry = card.simulator, card.geometry
    if not isinstance(simulator, Geant4Showers) or geometry is None:
        raise DataError(f"card '{card.name}' has no geant4 simulator: its showers cannot be simulated with Geant4")
    label = label_of(card, class_name)
    incident = draw_incident(card, simulator, count, np.random.default_rng(seed), energies_gev)
    request = {
        "geometry": geometry.model_dump(mode="json"),
        "materials": _geant4_materials(geometry),
        "particle": _geant4_particle(simulator, class_name),
        "constructor": ELECTROMAGNETIC.get(simulator.physics),
        "physics_list": simulator.physics,
        "cut_mm": simulator.cut_mm,
        "threshold_mev": simulator.threshold_mev,
        "energy_gev": incident.energy_gev.tolist(),
        "theta": incident.theta.tolist(),
        "seed": seed,
        "max_rounds": MAX_ROUNDS,
    }
    if importlib.util.find_spec("geant4_pybind") is None:
        raise DataError('simulating with Geant4 needs geant4-pybind: pip install "foundation-hep[geant4]"')
    with tempfile.TemporaryDirectory(prefix="geant4-") as folder:
        environment = geant4_environment(os.environ, simulator.physics, Path(folder))
        answer = _ask_geant4(card, request, environment, Path(folder))
        with np.load(Path(folder) / "hits.npz", allow_pickle=False) as arrays:
            hits = Hits(arrays["shower"], arrays["voxel"], arrays["energy_mev"])
    # Names of the folders tell the versions of the data, G4EMLOW8.8, where they are called as Geant4 calls them.
    data = {name: Path(environment[name]).name for name in needed_data(simulator.physics) if name in environment}
    return shower_clouds(card, geometry, label, incident, hits), {**answer, "data": data}


def needed_data(physics: str) -> tuple[str, ...]:
    """Environment variables of the data sets without which Geant4 would stop."""
    return NEEDED_FOR_ELECTROMAGNETIC if physics in ELECTROMAGNETIC else NEEDED_FOR_HADRONS


def geant4_environment(environ: Mapping[str, str], physics: str, empty: Path) -> dict[str, str]:
    """The environment for a process that imports geant4_pybind: it then neither asks nor downloads.

    Data sets are found by their variables, in GEANT4_DATA_DIR, or in ~/.geant4_pybind, where geant4_pybind puts what it
    downloads; those that this physics does not use are said to be in the folder `empty`.

    Raises DataError that names every data set that is missing.
    """
    # With CI=true geant4_pybind would download without asking, and tidy up the folder of its data.
    found = {name: value for name, value in environ.items() if name not in ("CI", "GEANT4_DATA_DIR")}
    package_parent = str(Path(__file__).resolve().parents[3])
    found["PYTHONPATH"] = os.pathsep.join([package_parent, *filter(None, [environ.get("PYTHONPATH")])])
    missing = []
    for name, data_set in DATA_SETS.items():
        folder = environ.get(name) or _installed(environ, data_set)
        if name in needed_data(physics) and not (folder and Path(folder).is_dir()):
            missing.append(f"{name} ({data_set}, now {folder or 'not set'})")
        found[name] = folder or str(empty)
    if missing:
        raise DataError(
            f"Geant4 lacks data for physics '{physics}': set {', '.join(missing)} to the folder of the data set, or "
            "GEANT4_DATA_DIR to the folder that holds them all. The script geant4.sh of a Geant4 installation sets "
            "them; without one, run python -c 'import geant4_pybind' once and let it download them (about 2 GB)"
        )
    return found


def _installed(environ: Mapping[str, str], data_set: str) -> str | None:
    """The newest version of a data set in the folders that hold all data sets."""
    folders = [Path(environ["GEANT4_DATA_DIR"])] if environ.get("GEANT4_DATA_DIR") else []
    folders += [Path(environ["HOME"], ".geant4_pybind")] if environ.get("HOME") else []
    for folder in folders:
        versions = sorted(folder.glob(f"{data_set}[0-9]*"))
        if versions:
            return str(versions[-1])
    return None


def _geant4_materials(geometry: Geometry) -> dict[str, str]:
    """Our names of the materials -> Geant4's; names that begin with G4_ are Geant4's own."""
    is_homogeneous(geometry)
    names = {name for group in geometry.layers for name, _ in plates_of(group)}
    for name in sorted(names):
        if name not in MATERIALS and not name.startswith("G4_"):
            raise DataError(
                f"the geometry names the material '{name}'{did_you_mean(name, MATERIALS)}; Geant4's own names begin "
                "with G4_"
            )
    return {name: MATERIALS[name].geant4 if name in MATERIALS else name for name in sorted(names)}


def _geant4_particle(simulator: Geant4Showers, class_name: str | None) -> str:
    if simulator.physics[:1].islower() and simulator.physics not in ELECTROMAGNETIC:
        raise DataError(f"there is no physics '{simulator.physics}'{did_you_mean(simulator.physics, ELECTROMAGNETIC)}")
    name = simulator.particle_of(class_name)
    particle = PARTICLES.get(name, name)
    if simulator.physics in ELECTROMAGNETIC and particle not in PARTICLES.values():
        raise DataError(
            f"particle '{name}': with physics '{simulator.physics}' only {', '.join(PARTICLES)} interact fully; "
            "for others give a reference list of Geant4, such as physics: FTFP_BERT"
        )
    return particle


def _ask_geant4(
    card: DatasetCard, request: dict[str, object], environment: dict[str, str], folder: Path
) -> dict[str, object]:
    """Run the Geant4 process, which writes hits.npz into the folder; what it says about itself."""
    (folder / "request.json").write_text(json.dumps(request))
    log = folder / "log.txt"
    with log.open("wb") as output:
        # A session of its own keeps Ctrl-C away from Geant4; its standard input ends when this process does, and the
        # process with it.
        process = subprocess.Popen(
            [sys.executable, "-m", "foundation.data.simulate.geant4_process", str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    answer: dict[str, object] = {}
    if code == 0:
        answer = json.loads((folder / "answer.json").read_text())
    if code != 0 or "error" in answer:
        reason = answer.get("error") or _reason(log.read_text(errors="replace"), code)
        raise DataError(f"card '{card.name}': {reason}")
    return answer


def _reason(log: str, code: int) -> str:
    """Why Geant4 stopped, in its own words: of its exception where there was one, else the end of what it printed."""
    exception = re.search(r"G4Exception : (\S+)\s+issued by : (.+)\n((?:.+\n)+?)\s*\n?\*\*\*", log)
    if exception:
        name, where, words = exception.groups()
        return f"Geant4 stopped in {where.strip()} ({name}): {' '.join(words.split())}"
    return f"Geant4 ended with code {code}: {' '.join(log.split())[-500:]}"
