"""Jets from Pythia 8, the parametrised detector and anti-kT clustering (arXiv:2203.11601, arXiv:0802.1189).

Everything is done on the flat arrays of a batch of events; nothing loops over events or jets in Python.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.data.by_card import clouds_of_card
from foundation.data.cards import DatasetCard, PythiaJets
from foundation.data.point_clouds import PointClouds
from foundation.data.simulate.detector import detect, perfect_detector
from foundation.data.simulate.jet_finding import FoundJets, find_jets, wrapped
from foundation.data.simulate.jet_labels import hard_partons, matched
from foundation.data.simulate.particles import IDENTITIES, DetectorObjects, Integers, Particles
from foundation.errors import DataError, did_you_mean

JET_SOFTWARE = ("pythia8mc", "fastjet", "awkward", "numpy")
MAX_PYTHIA_SEED = 900_000_000
# Fixed, because the detector draws its random numbers batch by batch: another size would give other jets.
EVENTS_PER_BATCH = 50
# A selection that keeps less than one jet in so many events is a mistake in the card, not a rare process.
MAX_EVENTS_WITHOUT_JET = 5_000
CHARGES = ("negative", "neutral", "positive")
NEUTRINOS = (12, 14, 16)


def simulate_jets(card: DatasetCard, class_name: str, count: int, seed: int) -> PointClouds:
    """Exactly `count` jets of one class of the card; the same seed gives the same bits. See `jets_and_provenance`."""
    return jets_and_provenance(card, class_name, count, seed)[0]


def jets_and_provenance(
    card: DatasetCard, class_name: str, count: int, seed: int
) -> tuple[PointClouds, dict[str, object]]:
    """Exactly `count` jets of one class, and how they were made (settings, events generated).

    Features the card may ask for: pt, energy, px, py, pz [GeV], eta_rel, phi_rel [rad] (relative to the sum of the
    constituents, eta_rel without JetClass's change of sign), pid and charge (indices of the card's categories), d0,
    d0_err, dz, dz_err [mm] (see `tracks.impact_parameters`; errors are 0 without a detector). Conditions and
    attributes: jet_pt, jet_mass, jet_energy [GeV], jet_eta, jet_phi [rad], jet_n_constituents. The window in pT and
    eta holds for the reconstructed jet; its label is matched to the generated partons as the card says.

    Raises DataError when the extra `simulate` is missing, the card has no such class, Pythia refuses a setting, or no
    event gives a jet.
    """
    simulator = _simulator_of(card)
    if class_name not in simulator.processes:
        raise DataError(
            f"card '{card.name}' has no class '{class_name}'{did_you_mean(class_name, simulator.processes)}"
        )
    if count < 1:
        raise DataError(f"{count} jets are asked for: simulate at least 1")
    if not 1 <= seed <= MAX_PYTHIA_SEED:
        raise DataError(f"seed {seed}: Pythia 8 takes seeds from 1 to {MAX_PYTHIA_SEED}")
    pythia8, fastjet, awkward = _generators()
    columns: list[dict[str, NDArray]] = []
    owners: list[Integers] = []
    jets: list[dict[str, NDArray]] = []
    found = events = last = batch = 0
    with _standard_output_silenced():
        generator = _start(pythia8, card, class_name, simulator, seed)
        while found < count:
            table = generator.nextBatch(EVENTS_PER_BATCH).prt
            rng = np.random.default_rng([seed, batch])
            of_points, of_jets, owner = _jets_of_batch(card, class_name, table, rng, fastjet, awkward)
            columns.append(of_points)
            jets.append(of_jets)
            owners.append(owner + found)
            found, events, batch = found + len(of_jets["jet_pt"]), events + len(table), batch + 1
            last = events if len(of_jets["jet_pt"]) else last
            if batch * EVENTS_PER_BATCH - last > MAX_EVENTS_WITHOUT_JET:
                raise DataError(
                    f"card '{card.name}', class '{class_name}': no jet in {MAX_EVENTS_WITHOUT_JET} events; "
                    "check pt_gev, eta_max, pthat_gev and the matching of its simulator"
                )
    label = np.full(found, card.classes.index(class_name))
    clouds = clouds_of_card(card, _joined(columns), np.concatenate(owners), label, _joined(jets))
    process = simulator.processes[class_name]
    provenance: dict[str, object] = {
        "settings": _settings(simulator, process.settings, seed),
        "events": events,
        "jets_per_event": found / max(events, 1),
    }
    return clouds.select(slice(0, count)), provenance


def _simulator_of(card: DatasetCard) -> PythiaJets:
    if not isinstance(card.simulator, PythiaJets):
        raise DataError(f"card '{card.name}' has no pythia8 simulator: its jets cannot be simulated")
    return card.simulator


def _generators() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        import awkward
        import fastjet
        import pythia8mc
    except ImportError as error:
        raise DataError(
            f'simulating jets needs Pythia 8 and FastJet ({error}): pip install "foundation-hep[simulate]"'
        ) from None
    return pythia8mc, fastjet, awkward


@contextmanager
def _standard_output_silenced() -> Iterator[None]:
    """Send file descriptor 1 to nowhere: Pythia and FastJet print from C++, past Python's sys.stdout."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _settings(simulator: PythiaJets, of_process: tuple[str, ...], seed: int) -> list[str]:
    low, high = simulator.pthat_gev
    return [
        "Print:quiet = on",
        f"Beams:eCM = {simulator.energy_gev}",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
        f"PhaseSpace:pTHatMin = {low}",
        f"PhaseSpace:pTHatMax = {high}",
        f"PartonLevel:MPI = {'on' if simulator.mpi else 'off'}",
        # Particles that fly more than 10 mm (K0S, Lambda, ...) reach the detector before they decay.
        "ParticleDecays:limitTau0 = on",
        "ParticleDecays:tau0Max = 10",
        *of_process,
    ]


def _start(pythia8: ModuleType, card: DatasetCard, class_name: str, simulator: PythiaJets, seed: int) -> Any:
    """A Pythia generator, ready for events."""
    generator = pythia8.Pythia("", False)
    for line in _settings(simulator, simulator.processes[class_name].settings, seed):
        if not generator.readString(line):
            raise DataError(f"card '{card.name}', class '{class_name}': Pythia 8 does not accept the setting '{line}'")
    if not generator.init():
        raise DataError(f"card '{card.name}', class '{class_name}': Pythia 8 cannot start with these settings")
    return generator


def _jets_of_batch(
    card: DatasetCard, class_name: str, table: Any, rng: np.random.Generator, fastjet: ModuleType, awkward: ModuleType
) -> tuple[dict[str, NDArray], dict[str, NDArray], Integers]:
    """Quantities of the constituents, of the jets, and the jet of each constituent, for one batch of events."""
    simulator = _simulator_of(card)
    n_events, (event, flat) = len(table), _flattened(table, awkward)
    particles = _visible(event, flat)
    objects = detect(particles, rng) if simulator.detector else perfect_detector(particles)
    (low, high), process = simulator.pt_gev, simulator.processes[class_name]
    jets = find_jets(objects, n_events, simulator.radius, low, fastjet, awkward)
    jets = jets.at((jets.pt > low) & (jets.pt < high) & (np.abs(jets.eta) < simulator.eta_max))
    jets = jets.at(matched(jets, hard_partons(event, flat), n_events, process, simulator.radius))
    return _of_constituents(card, objects, jets), _of_jets(jets), jets.jet


def _flattened(table: Any, awkward: ModuleType) -> tuple[Integers, dict[str, NDArray]]:
    """Event number and columns of all particles of a batch: indexing events one by one is 20 times slower."""
    counts = awkward.to_numpy(awkward.num(table))
    flat = awkward.flatten(table)
    columns = {name: awkward.to_numpy(flat[name]).astype(np.int64) for name in ("id", "status", "mother1")}
    columns |= {name: awkward.to_numpy(flat.p[name]) for name in ("px", "py", "pz", "e")}
    # A particle without a vertex of its own comes from the collision itself.
    vertex = [awkward.to_numpy(awkward.fill_none(flat.vProd[axis], 0.0)) for axis in ("px", "py", "pz")]
    columns["vertex"] = np.stack(vertex, axis=1)
    # mother1 counts within its event; as a row of the flat table it can be followed for all events at once.
    columns["mother1"] += np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(counts)), counts), columns


def _visible(event: Integers, flat: dict[str, NDArray]) -> Particles:
    """The particles that reach the detector, without neutrinos."""
    seen = (flat["status"] > 0) & ~np.isin(np.abs(flat["id"]), NEUTRINOS)
    px, py, pz, energy = (flat[name][seen] for name in ("px", "py", "pz", "e"))
    return Particles.from_momenta(event[seen], flat["id"][seen], px, py, pz, energy, flat["vertex"][seen])


def _of_constituents(card: DatasetCard, objects: DetectorObjects, jets: FoundJets) -> dict[str, NDArray]:
    i, j = jets.objects, jets.jet
    px, py, pz, energy = (component[i] for component in objects.momenta)
    return {
        "pt": objects.pt[i],
        "eta_rel": objects.eta[i] - jets.eta[j],
        "phi_rel": wrapped(objects.phi[i] - jets.phi[j]),
        "pid": _category(card, "pid", IDENTITIES)[objects.identity[i]],
        "charge": _category(card, "charge", CHARGES)[objects.charge[i] + 1],
        "d0": objects.d0[i],
        "d0_err": objects.d0_err[i],
        "dz": objects.dz[i],
        "dz_err": objects.dz_err[i],
        "px": px,
        "py": py,
        "pz": pz,
        "energy": energy,
    }


def _of_jets(jets: FoundJets) -> dict[str, NDArray]:
    return {
        "jet_pt": jets.pt,
        "jet_eta": jets.eta,
        "jet_phi": jets.phi,
        "jet_mass": jets.mass,
        "jet_energy": jets.energy,
        "jet_n_constituents": jets.n_constituents,
    }


def _category(card: DatasetCard, feature: str, names: tuple[str, ...]) -> NDArray[np.float64]:
    """The card's index of each of `names`; NaN-free because a name the card lacks is an error."""
    categories = next((f.categories for f in card.features if f.name == feature), names)
    missing = [name for name in names if name not in categories]
    if missing:
        raise DataError(f"card '{card.name}': feature '{feature}' has no category '{missing[0]}'")
    return np.array([categories.index(name) for name in names], float)


def _joined(parts: list[dict[str, NDArray]]) -> dict[str, NDArray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
