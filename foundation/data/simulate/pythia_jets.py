"""Jets from Pythia 8, the parametrised detector and anti-kT clustering (arXiv:2203.11601, arXiv:0802.1189).

Everything is done on the flat arrays of a batch of events; nothing loops over events or jets in Python.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.data.by_card import clouds_of_card
from foundation.data.cards import DatasetCard, PythiaJets
from foundation.data.point_clouds import PointClouds
from foundation.data.simulate.detector import (
    IDENTITIES,
    DetectorObjects,
    Floats,
    Integers,
    Particles,
    detect,
    perfect_detector,
)
from foundation.errors import DataError, did_you_mean

JET_SOFTWARE = ("pythia8mc", "fastjet", "awkward", "numpy")
MAX_PYTHIA_SEED = 900_000_000
# Fixed, because the detector draws its random numbers batch by batch: another size would give other jets.
EVENTS_PER_BATCH = 50
# A selection that keeps less than one jet in so many events is a mistake in the card, not a rare process.
MAX_EVENTS_WITHOUT_JET = 5_000
CHARGES = ("negative", "neutral", "positive")
NEUTRINOS = (12, 14, 16)
RESONANCES = (6, 23, 24, 25)
STATUS_HARD = 23
GLUON = 21
ANCESTORS_MAX = 100


@dataclass(frozen=True)
class Partons:
    """Outgoing partons of the hard process and of resonance decays, [N] each, sorted by event."""

    event: Integers
    eta: Floats
    phi: Floats
    origin: Integers
    """Row of the heavy resonance (top, W, Z, Higgs) that the parton comes from; of the parton itself if none."""


@dataclass(frozen=True)
class FoundJets:
    """J clustered jets and their constituents: `objects[i]` belongs to jet `jet[i]`, jets count from 0."""

    event: Integers
    pt: Floats
    eta: Floats
    phi: Floats
    objects: Integers
    jet: Integers

    def at(self, keep: NDArray[np.bool_]) -> FoundJets:
        """The jets where `keep` is true, counted from 0 again."""
        inside = keep[self.jet]
        number = np.cumsum(keep) - 1
        return FoundJets(
            self.event[keep],
            self.pt[keep],
            self.eta[keep],
            self.phi[keep],
            self.objects[inside],
            number[self.jet[inside]],
        )


def simulate_jets(card: DatasetCard, class_name: str, count: int, seed: int) -> PointClouds:
    """Exactly `count` jets of one class of the card; the same seed gives the same bits. See `jets_and_provenance`."""
    return jets_and_provenance(card, class_name, count, seed)[0]


def jets_and_provenance(
    card: DatasetCard, class_name: str, count: int, seed: int
) -> tuple[PointClouds, dict[str, object]]:
    """Exactly `count` jets of one class, and how they were made (settings, events generated).

    Features the card may ask for: pt [GeV], eta_rel, phi_rel [rad] (relative to the sum of the constituents), pid and
    charge (indices of the card's categories). Conditions: jet_pt [GeV], jet_eta. The window in pT and eta holds for
    the reconstructed jet; its label is matched to the generated partons as the card says.

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
    """Features of the constituents, of the jets, and the jet of each constituent, for one batch of events."""
    simulator = _simulator_of(card)
    n_events, event, flat = len(table), *_flattened(table, awkward)
    visible = (flat["status"] > 0) & ~np.isin(np.abs(flat["id"]), NEUTRINOS)
    particles = Particles.from_momenta(
        event[visible], flat["id"][visible], *(flat[name][visible] for name in ("px", "py", "pz", "e"))
    )
    objects = detect(particles, rng) if simulator.detector else perfect_detector(particles)
    jets = _clustered(objects, n_events, simulator, fastjet, awkward)
    (low, high), process = simulator.pt_gev, simulator.processes[class_name]
    jets = jets.at((jets.pt > low) & (jets.pt < high) & (np.abs(jets.eta) < simulator.eta_max))
    partons = _hard_partons(event, flat)
    if process.matched == "parton":
        jets = jets.at(_matched_to_parton(jets, partons, n_events, simulator.radius / 2))
    else:
        jets = jets.at(_matched_to_decay(jets, partons, n_events, simulator.radius, process.decay_quarks))
    i, j = jets.objects, jets.jet
    of_points = {
        "pt": objects.pt[i],
        "eta_rel": objects.eta[i] - jets.eta[j],
        "phi_rel": _wrapped(objects.phi[i] - jets.phi[j]),
        "pid": _category(card, "pid", IDENTITIES)[objects.identity[i]],
        "charge": _category(card, "charge", CHARGES)[objects.charge[i] + 1],
    }
    return of_points, {"jet_pt": jets.pt, "jet_eta": jets.eta}, j


def _flattened(table: Any, awkward: ModuleType) -> tuple[Integers, dict[str, NDArray]]:
    """Event number and columns of all particles of a batch: indexing events one by one is 20 times slower."""
    counts = awkward.to_numpy(awkward.num(table))
    flat = awkward.flatten(table)
    columns = {name: awkward.to_numpy(flat[name]).astype(np.int64) for name in ("id", "status", "mother1")}
    columns |= {name: awkward.to_numpy(flat.p[name]) for name in ("px", "py", "pz", "e")}
    # mother1 counts within its event; as a row of the flat table it can be followed for all events at once.
    columns["mother1"] += np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(counts)), counts), columns


def _clustered(
    objects: DetectorObjects, n_events: int, simulator: PythiaJets, fastjet: ModuleType, awkward: ModuleType
) -> FoundJets:
    """anti-kT jets of all events, above the lower end of the card's pT window."""
    px, py, pz, energy = objects.momenta
    counts = np.bincount(objects.event, minlength=n_events)
    momenta = awkward.zip({"px": px, "py": py, "pz": pz, "E": energy}, with_name="Momentum4D")
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, simulator.radius)
    cluster = fastjet.ClusterSequence(awkward.unflatten(momenta, counts), definition)
    members = cluster.constituent_index(min_pt=simulator.pt_gev[0])
    event = np.repeat(np.arange(n_events), awkward.to_numpy(awkward.num(members)))
    size = awkward.to_numpy(awkward.num(awkward.flatten(members), axis=1))
    jet = np.repeat(np.arange(len(size)), size)
    inside = awkward.to_numpy(awkward.flatten(members, axis=None)).astype(np.int64)
    rows = inside + (np.cumsum(counts) - counts)[event[jet]]
    # The axis of the jet is that of the sum of its constituents, whatever their masses.
    x, y, z = (np.bincount(jet, component[rows], len(size)) for component in (px, py, pz))
    pt = np.hypot(x, y)
    return FoundJets(event, pt, np.arcsinh(z / pt), np.arctan2(y, x), rows, jet)


def _hard_partons(event: Integers, flat: dict[str, NDArray]) -> Partons:
    """The quarks and gluons that leave the hard process, and those that a heavy resonance decays to."""
    number = np.abs(flat["id"])
    rows = np.flatnonzero((np.abs(flat["status"]) == STATUS_HARD) & ((number <= 5) | (number == GLUON)))
    origin = rows
    for _ in range(ANCESTORS_MAX):
        mother = flat["mother1"][origin]
        climbs = np.isin(number[mother], RESONANCES)
        if not climbs.any():
            break
        # Copies of the resonance, and a W from a top, lead on to the first of the chain.
        origin = np.where(climbs, mother, origin)
    px, py, pz = flat["px"][rows], flat["py"][rows], flat["pz"][rows]
    eta = np.arcsinh(pz / np.maximum(np.hypot(px, py), 1e-9))
    return Partons(event[rows], eta, np.arctan2(py, px), origin)


def _pairs(jets: FoundJets, partons: Partons, n_events: int) -> tuple[Integers, Integers, Floats]:
    """All (jet, parton) of the same event, and their distance in (eta, phi)."""
    counts = np.bincount(partons.event, minlength=n_events)
    first = np.cumsum(counts) - counts
    per_jet = counts[jets.event]
    jet = np.repeat(np.arange(len(jets.event)), per_jet)
    within = np.arange(len(jet)) - np.repeat(np.cumsum(per_jet) - per_jet, per_jet)
    parton = first[jets.event[jet]] + within
    distance = np.hypot(partons.eta[parton] - jets.eta[jet], _wrapped(partons.phi[parton] - jets.phi[jet]))
    return jet, parton, distance


def _matched_to_parton(jets: FoundJets, partons: Partons, n_events: int, radius: float) -> NDArray[np.bool_]:
    """Jets with a hard parton within `radius`, [J]."""
    jet, _, distance = _pairs(jets, partons, n_events)
    return np.bincount(jet[distance < radius], minlength=len(jets.event)) > 0


def _matched_to_decay(
    jets: FoundJets, partons: Partons, n_events: int, radius: float, quarks: int
) -> NDArray[np.bool_]:
    """Jets that hold all `quarks` decay quarks of one resonance within `radius`, [J]."""
    jet, parton, distance = _pairs(jets, partons, n_events)
    group, which = np.unique(np.stack([jet, partons.origin[parton]]), axis=1, return_inverse=True)
    which = which.reshape(-1)
    total, inside = np.bincount(which), np.bincount(which[distance < radius], minlength=group.shape[1])
    whole = (total == quarks) & (inside == quarks)
    return np.bincount(group[0][whole], minlength=len(jets.event)) > 0


def _category(card: DatasetCard, feature: str, names: tuple[str, ...]) -> NDArray[np.float64]:
    """The card's index of each of `names`; NaN-free because a name the card lacks is an error."""
    categories = next((f.categories for f in card.features if f.name == feature), names)
    missing = [name for name in names if name not in categories]
    if missing:
        raise DataError(f"card '{card.name}': feature '{feature}' has no category '{missing[0]}'")
    return np.array([categories.index(name) for name in names], float)


def _wrapped(angle: Floats) -> Floats:
    """The same angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _joined(parts: list[dict[str, NDArray]]) -> dict[str, NDArray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
