"""The process that runs Geant4; `geant4.py` starts it. Not to be imported: geant4_pybind may ask for data on import.

    python -m foundation.data.simulate.geant4_process FOLDER

reads FOLDER/request.json, writes FOLDER/hits.npz and FOLDER/answer.json. It ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import geant4_pybind as g4
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from foundation.data.geometry import CartesianGeometry, Geometry, LayerGroup, n_voxels
from foundation.data.simulate.matter import pair_mm

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
# Plates reach so far beyond the readout that what leaves them sideways would hardly have come back.
MARGIN_MM = 200.0
GEANT4_ERROR = "Geant4 does not know"


class Recorder(g4.G4VSensitiveDetector):
    """Keeps the energy deposits in the active plates of the current event: x [mm], y [mm], layer, energy [MeV]."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.deposits: list[float] = []

    def ProcessHits(self, step: Any, history: Any) -> bool:
        """Called by Geant4 for each step in an active plate: most of the time is spent here."""
        energy = step.GetTotalEnergyDeposit()
        if energy > 0:
            before = step.GetPreStepPoint()
            start, end = before.GetPosition(), step.GetPostStepPoint().GetPosition()
            layer = before.GetTouchable().GetCopyNumber()
            self.deposits += (start.x, end.x, start.y, end.y, layer, energy)
        return True


class Calorimeter(g4.G4VUserDetectorConstruction):
    """Plates in vacuum, one behind the other from z = 0 on; the number of an active plate is that of its layer."""

    def __init__(self, geometry: Geometry, materials: dict[str, str], recorder: Recorder) -> None:
        super().__init__()
        self.geometry, self.materials, self.recorder = geometry, materials, recorder
        # Geant4 does not own what Python made: everything that is built must outlive the run.
        self.built: list[Any] = []
        self.active: list[Any] = []

    def Construct(self) -> Any:
        """The world volume."""
        depth = sum(group.repeat * group.pairs * pair_mm(group) for group in self.geometry.layers)
        width = _half_width_mm(self.geometry) + MARGIN_MM
        solid = g4.G4Box("world", width + 10, width + 10, depth + 10)
        world = g4.G4LogicalVolume(solid, _material("G4_Galactic"), "world")
        placed = g4.G4PVPlacement(None, g4.G4ThreeVector(), world, "world", None, False, 0, False)
        self.built += [solid, world, placed]
        z, layer = 0.0, 0
        for group in self.geometry.layers:
            plates = self._plates(group, width)
            for _ in range(group.repeat):
                for _ in range(group.pairs):
                    for volume, mm in plates:
                        at = g4.G4ThreeVector(0, 0, z + mm / 2)
                        self.built.append(g4.G4PVPlacement(None, at, volume, "plate", world, False, layer, False))
                        z += mm
                    z += group.gap_mm
                layer += 1
        return placed

    def _plates(self, group: LayerGroup, width: float) -> list[tuple[Any, float]]:
        """Volume and thickness of the absorber, if there is one, and of the active plate."""
        plates = []
        for kind in ("absorber", "active"):
            name, mm = getattr(group, kind), getattr(group, f"{kind}_mm")
            if name is None:
                continue
            if isinstance(self.geometry, CartesianGeometry):
                solid = g4.G4Box(kind, width, width, mm / 2)
            else:
                solid = g4.G4Tubs(kind, 0.0, width, mm / 2, 0.0, 2 * np.pi)
            volume = g4.G4LogicalVolume(solid, _material(self.materials[name]), kind)
            self.built += [solid, volume]
            plates.append((volume, mm))
        self.active.append(plates[-1][0])
        return plates

    def ConstructSDandField(self) -> None:
        """Make the active plates sensitive."""
        g4.G4SDManager.GetSDMpointer().AddNewDetector(self.recorder)
        for volume in self.active:
            self.SetSensitiveDetector(volume, self.recorder)


class Beam(g4.G4VUserPrimaryGeneratorAction):
    """One particle per event into the centre of the front face, with energies [B] and angles [B] of its own."""

    def __init__(self, particle: str, energy_gev: Floats, theta: Floats) -> None:
        super().__init__()
        self.gun = g4.G4ParticleGun(1)
        self.gun.SetParticleDefinition(g4.G4ParticleTable.GetParticleTable().FindParticle(particle))
        self.energy_gev, self.theta = energy_gev, theta
        self.todo = np.arange(len(energy_gev))

    def GeneratePrimaries(self, event: Any) -> None:
        """Called by Geant4 at the start of each event."""
        shower = self.todo[event.GetEventID()]
        energy, theta = float(self.energy_gev[shower]), float(self.theta[shower])
        direction = g4.G4ThreeVector(np.sin(theta), 0.0, np.cos(theta))
        self.gun.SetParticleEnergy(energy * g4.GeV)
        self.gun.SetParticleMomentumDirection(direction)
        self.gun.SetParticlePosition(direction * -1.0)
        self.gun.GeneratePrimaryVertex(event)


class Readout(g4.G4UserEventAction):
    """Adds up the deposits of each event in the cells of the readout."""

    def __init__(self, geometry: Geometry, recorder: Recorder, beam: Beam, threshold_mev: float) -> None:
        super().__init__()
        self.geometry, self.recorder, self.beam, self.threshold_mev = geometry, recorder, beam, threshold_mev
        self.hits: dict[int, tuple[Integers, Floats]] = {}

    def BeginOfEventAction(self, event: Any) -> None:
        """Forget the last event."""
        self.recorder.deposits.clear()

    def EndOfEventAction(self, event: Any) -> None:
        """Voxels and energies of the event, above the threshold."""
        x0, x1, y0, y1, layer, energy = np.array(self.recorder.deposits).reshape(-1, 6).T
        voxel = self.geometry.cell_at(layer.astype(np.int64), (x0 + x1) / 2, (y0 + y1) / 2)
        inside = voxel >= 0
        deposited = np.bincount(voxel[inside], energy[inside], n_voxels(self.geometry)).astype(np.float64)
        read_out = np.flatnonzero((deposited > 0) & (deposited >= self.threshold_mev))
        if len(read_out):
            self.hits[int(self.beam.todo[event.GetEventID()])] = read_out, deposited[read_out]


class Actions(g4.G4VUserActionInitialization):
    """Hands our actions to Geant4."""

    def __init__(self, *actions: Any) -> None:
        super().__init__()
        self.actions = actions

    def Build(self) -> None:
        """Called by Geant4."""
        for action in self.actions:
            self.SetUserAction(action)


class ElectromagneticPhysics(g4.G4VModularPhysicsList):
    """One of Geant4's electromagnetic constructors and nothing else."""

    def __init__(self, constructor: str) -> None:
        super().__init__()
        self.SetVerboseLevel(0)
        self.RegisterPhysics(getattr(g4, constructor)())


def simulate(request: dict[str, Any]) -> tuple[dict[int, tuple[Integers, Floats]], dict[str, object]]:
    """Hits of each shower, and what to say about the run: the versions, or an "error"."""
    geometry: Geometry = TypeAdapter(Geometry).validate_python(request["geometry"])
    energy_gev, theta = np.array(request["energy_gev"]), np.array(request["theta"])
    manager = g4.G4RunManagerFactory.CreateRunManager(g4.G4RunManagerType.Serial)
    for name in request["materials"].values():
        if g4.G4NistManager.Instance().FindOrBuildMaterial(name) is None:
            return {}, {"error": f"{GEANT4_ERROR} the material '{name}'"}
    recorder = Recorder()
    manager.SetUserInitialization(Calorimeter(geometry, request["materials"], recorder))
    physics = _physics(request)
    if physics is None:
        return {}, {"error": f"{GEANT4_ERROR} the physics list '{request['physics_list']}'"}
    manager.SetUserInitialization(physics)
    if g4.G4ParticleTable.GetParticleTable().FindParticle(request["particle"]) is None:
        return {}, {"error": f"{GEANT4_ERROR} the particle '{request['particle']}'"}
    beam = Beam(request["particle"], energy_gev, theta)
    readout = Readout(geometry, recorder, beam, request["threshold_mev"])
    manager.SetUserInitialization(Actions(beam, readout))
    manager.Initialize()
    # The setting of the physics list has no effect here; the command has.
    g4.G4UImanager.GetUIpointer().ApplyCommand(f"/run/setCut {request['cut_mm']} mm")
    g4.G4Random.setTheSeed(request["seed"])
    for _ in range(request["max_rounds"]):
        manager.BeamOn(len(beam.todo))
        beam.todo = np.setdiff1d(np.arange(len(energy_gev)), list(readout.hits))
        if not len(beam.todo):
            return readout.hits, {"geant4": g4.G4Version.strip("$").removeprefix("Name: ")}
    return {}, {
        "error": f"a shower of {energy_gev[beam.todo[0]]:.3g} GeV had no hit above {request['threshold_mev']} MeV in "
        f"{request['max_rounds']} attempts; lower threshold_mev or raise energy_gev"
    }


def _physics(request: dict[str, Any]) -> Any:
    """The physics list; None if Geant4 has no such."""
    if request["constructor"] is not None:
        return ElectromagneticPhysics(request["constructor"])
    factory = g4.G4PhysListFactory()
    name = request["physics_list"]
    return factory.GetReferencePhysList(name) if factory.IsReferencePhysList(name) else None


def _material(name: str) -> Any:
    return g4.G4NistManager.Instance().FindOrBuildMaterial(name)


def _half_width_mm(geometry: Geometry) -> float:
    """How far the readout reaches from the axis."""
    if isinstance(geometry, CartesianGeometry):
        return geometry.cells * geometry.cell_mm / 2
    return max(group.r_edges_mm[-1] for group in geometry.layers)


def _end_with_parent(folder: Path) -> None:
    # Below Python's buffers, whose locks would get in the way when the process ends first.
    while os.read(0, 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main(folder: Path) -> None:
    """Answer the request in the folder."""
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    hits, answer = simulate(json.loads((folder / "request.json").read_text()))
    if hits:
        order = sorted(hits)
        np.savez(
            folder / "hits.npz",
            shower=np.repeat(order, [len(hits[i][0]) for i in order]),
            voxel=np.concatenate([hits[i][0] for i in order]),
            energy_mev=np.concatenate([hits[i][1] for i in order]),
        )
    (folder / "answer.json").write_text(json.dumps(answer))
    sys.stdout.flush()
    # Geant4's own clean-up at the end of a process is not needed, and can crash after everything is written.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
