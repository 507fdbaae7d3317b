"""Small files in the exact layouts that jet datasets are published in, with toy jets, and what reading must give.

Every function writes one file and returns its `Truth`: the quantities of the constituents in our units and signs, jet
by jet and in falling order of pT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import uproot
from numpy.typing import NDArray

from foundation.data.ragged import ragged_arange, to_offsets

Generator = np.random.Generator
Columns = dict[str, NDArray]

PIDS = ("charged_hadron", "electron", "muon", "photon", "neutral_hadron")
PDG_OF_PID = np.array([211, 11, 13, 22, 130])
JETCLASS_LABELS = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
TOP_PLACES, TOP_COLUMNS = 200, 804


@dataclass(frozen=True)
class Truth:
    """What a card should read from a file.

    points: name -> [N]; objects: name -> [B]; counts, labels: int64 [B]
    missing: quantity -> how often the file says "none"
    """

    points: Columns
    counts: NDArray[np.int64]
    labels: NDArray[np.int64]
    objects: Columns = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ToyJets:
    """B jets of 2 to 25 constituents: momenta [GeV] and energies as float32 [N], in falling order of pT.

    pid is the index into PIDS, charge -1, 0 or 1; d0 and dz in mm are 0 where `tracked` is false.
    """

    counts: NDArray[np.int64]
    columns: Columns

    def __getitem__(self, name: str) -> NDArray:
        return self.columns[name]

    @property
    def owners(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def sums(self, columns: Mapping[str, NDArray] | None = None) -> Columns:
        """Jets as the sums of their constituents: px, py, pz, energy, pt, eta, phi, [B] each."""
        parts = columns or self.columns
        total = {
            name: np.bincount(self.owners, np.asarray(parts[name], np.float64), len(self.counts))
            for name in ("px", "py", "pz", "energy")
        }
        return total | cylindrical(total)

    def relative(self, jets: Mapping[str, NDArray], points: Mapping[str, NDArray] | None = None) -> Columns:
        """eta_rel and phi_rel of all constituents, [N] each."""
        own = points or cylindrical(self.columns)
        phi = own["phi"] - jets["phi"][self.owners]
        return {"eta_rel": own["eta"] - jets["eta"][self.owners], "phi_rel": np.arctan2(np.sin(phi), np.cos(phi))}


def cylindrical(columns: Mapping[str, NDArray]) -> Columns:
    """pt, eta and phi of momenta."""
    px, py, pz = (np.asarray(columns[name], np.float64) for name in ("px", "py", "pz"))
    pt = np.hypot(px, py)
    return {"pt": pt, "eta": np.arcsinh(pz / pt), "phi": np.arctan2(py, px)}


def toy_jets(rng: Generator, jets: int, most: int = 25) -> ToyJets:
    """Jets of 500 to 1000 GeV: random shares of pT, Gaussian angles, charged ones with displaced tracks."""
    counts = rng.integers(2, most + 1, jets)
    owners = np.repeat(np.arange(jets), counts)
    n = len(owners)
    share = rng.exponential(size=n)
    pt = rng.uniform(500, 1000, jets)[owners] * share / np.bincount(owners, share)[owners]
    pt, owners = _falling(pt, owners)
    eta = rng.uniform(-2, 2, jets)[owners] + rng.normal(0, 0.2, n)
    phi = rng.uniform(-np.pi, np.pi, jets)[owners] + rng.normal(0, 0.2, n)
    pid = rng.choice(5, n, p=[0.5, 0.05, 0.05, 0.25, 0.15])
    mass = np.array([0.13957, 0.000511, 0.10566, 0.0, 0.49761])[pid]
    px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
    momenta = {"px": px, "py": py, "pz": pz, "energy": np.sqrt(px**2 + py**2 + pz**2 + mass**2)}
    charge = np.where(pid < 3, rng.choice([-1, 1], n), 0)
    tracked = (charge != 0) & (rng.random(n) < 0.7)
    tracks = {"d0": rng.normal(0, 2, n), "dz": rng.normal(0, 5, n)}
    tracks |= {"d0_err": rng.uniform(0.01, 0.2, n), "dz_err": rng.uniform(0.01, 0.5, n)}
    columns = {name: values.astype(np.float32) for name, values in momenta.items()}
    columns |= {name: np.where(tracked, values, 0).astype(np.float32) for name, values in tracks.items()}
    return ToyJets(counts, {**columns, "pid": pid, "charge": charge, "tracked": tracked})


def _falling(pt: NDArray, owners: NDArray) -> tuple[NDArray, NDArray]:
    order = np.lexsort([-pt, owners])
    return pt[order], owners


def _jagged(values: NDArray, counts: NDArray, kind: type) -> ak.Array:
    return ak.unflatten(np.asarray(values).astype(kind), counts)


def _padded(columns: list[NDArray], counts: NDArray, places: int) -> NDArray[np.float32]:
    """[B, places, columns], zero where there is no point."""
    out = np.zeros((len(counts), places, len(columns)), np.float32)
    out[np.repeat(np.arange(len(counts)), counts), ragged_arange(counts)] = np.stack(columns, axis=1)
    return out


def _common(jets: ToyJets) -> Columns:
    """What every card that stores momenta, charges and identities should give."""
    points = {name: jets[name] for name in ("px", "py", "pz", "energy", "pid")}
    return {**points, "pt": cylindrical(jets.columns)["pt"], "charge": jets["charge"] + 1}


def write_jetclass(path: Path, rng: Generator, jets: int) -> Truth:
    """JetClass: a TTree `tree` with one jagged branch per quantity, flags of identity, and one label branch per class.

    uproot writes jagged arrays and not vectors; the JetClass-II example in tests/data has vectors.
    """
    toy = toy_jets(rng, jets)
    axis = {name: values.astype(np.float32) for name, values in toy.sums().items()}
    relative = toy.relative(axis)
    sign = np.where(axis["eta"] < 0, -1, 1)[toy.owners]
    labels = rng.integers(0, len(JETCLASS_LABELS), jets)
    floats = {f"part_{name}": toy[name] for name in ("px", "py", "pz", "energy", "charge")}
    floats |= {"part_deta": relative["eta_rel"] * sign, "part_dphi": relative["phi_rel"]}
    for name in ("d0", "dz"):
        floats |= {f"part_{name}val": toy[name], f"part_{name}err": toy[f"{name}_err"]}
    branches = {name: _jagged(values, toy.counts, np.float32) for name, values in floats.items()}
    flags = ("isChargedHadron", "isElectron", "isMuon", "isPhoton", "isNeutralHadron")
    branches |= {f"part_{name}": _jagged(toy["pid"] == i, toy.counts, np.int32) for i, name in enumerate(flags)}
    # The real files have these types: float for QCD, bool for Higgs, int for the others.
    kinds = (np.float32, *[np.bool_] * 5, *[np.int32] * 4)
    branches |= {f"label_{name}": (labels == i).astype(kinds[i]) for i, name in enumerate(JETCLASS_LABELS)}
    branches |= {f"jet_{name}": axis[name] for name in ("pt", "eta", "phi", "energy")}
    branches |= {"jet_nparticles": toy.counts.astype(np.float32), "jet_sdmass": rng.uniform(0, 200, jets)}
    branches |= {f"jet_tau{i}": rng.uniform(0, 1, jets) for i in (1, 2, 3, 4)}
    branches |= {f"aux_genpart_{name}": np.zeros(jets, np.float32) for name in ("eta", "phi", "pid", "pt")}
    branches["aux_truth_match"] = np.zeros(jets, np.float32)
    for name in ("jet_sdmass", "jet_tau1", "jet_tau2", "jet_tau3", "jet_tau4"):
        branches[name] = branches[name].astype(np.float32)
    _write_tree(path, "tree", branches)
    tracks = {name: toy[name] for name in ("d0", "d0_err", "dz", "dz_err")}
    objects = {
        name: branches[name] for name in ("jet_pt", "jet_eta", "jet_phi", "jet_energy", "jet_sdmass", "jet_tau4")
    }
    return Truth({**_common(toy), **relative, **tracks}, toy.counts, labels, objects)


def _write_tree(path: Path, name: str, branches: Mapping[str, ak.Array | NDArray]) -> None:
    with uproot.recreate(path) as file:
        file.mktree(name, {key: ak.type(ak.Array(array)).content for key, array in branches.items()}).extend(branches)


def write_jetnet(path: Path, rng: Generator, jets: int, places: int = 30) -> Truth:
    """JetNet: particle_features [B, places, 4] relative to the jet with a mask, jet_features [B, 4]."""
    toy = toy_jets(rng, jets)
    axis, own = toy.sums(), cylindrical(toy.columns)
    relative = toy.relative(axis)
    jet_pt = axis["pt"].astype(np.float32)
    pt_rel = (own["pt"] / jet_pt[toy.owners]).astype(np.float32)
    columns = [relative["eta_rel"], relative["phi_rel"], pt_rel, np.ones(len(pt_rel))]
    mass = rng.uniform(10, 200, jets).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["particle_features"] = _padded(columns, toy.counts, places)
        file["jet_features"] = np.stack([jet_pt, axis["eta"], mass, toy.counts], axis=1).astype(np.float32)
    points = {"pt": pt_rel.astype(np.float64) * jet_pt[toy.owners], **relative}
    labels = np.full(jets, "gqtwz".index(path.name[0]))
    objects = {"jet_pt": jet_pt, "jet_eta": axis["eta"], "jet_mass": mass, "jet_n_constituents": toy.counts}
    return Truth(points, toy.counts, labels, objects)


def _cms(toy: ToyJets, rng: Generator) -> tuple[Columns, dict[str, int], Columns]:
    """CMS's columns of tracks and identities: cm, the other sign of d0, -1 for "no track", HF candidates 1 and 2."""
    pid = np.where((toy["pid"] == 4) & (rng.random(len(toy["pid"])) < 0.3), 5, toy["pid"])
    pid = np.where((toy["pid"] == 3) & (rng.random(len(pid)) < 0.3), 6, pid)
    # Electrons and muons of negative charge have positive numbers.
    sign = np.where(pid == 0, toy["charge"], np.where(pid < 3, -toy["charge"], 1))
    stored = {"pdg_id": np.append(PDG_OF_PID, [1, 2])[pid] * sign, "charge": toy["charge"]}
    for name, factor in (("d0", -0.1), ("d0_err", 0.1), ("dz", 0.1), ("dz_err", 0.1)):
        stored[name] = np.where(toy["tracked"], toy[name] * np.float32(factor), np.float32(-1))
    stored["puppi_weight"] = rng.uniform(0, 1, len(pid)).astype(np.float32)
    untracked = int((~toy["tracked"]).sum())
    truth = {"pid": pid, "pdg_id": stored["pdg_id"], "puppi_weight": stored["puppi_weight"]}
    truth |= {name: toy[name] for name in ("d0", "d0_err", "dz", "dz_err")}
    return stored, dict.fromkeys(("d0", "d0_err", "dz", "dz_err"), untracked), truth


def write_aspen_open_jets(path: Path, rng: Generator, jets: int) -> Truth:
    """Aspen Open Jets: PFCands [B, 150, 11], jet_kinematics [B, 4], jet_tagging [B, 13], event_info [B, 3]."""
    toy = toy_jets(rng, jets)
    stored, missing, truth = _cms(toy, rng)
    axis = toy.sums()
    momenta = [toy[name] for name in ("px", "py", "pz", "energy")]
    rest = [stored[n] for n in ("d0", "d0_err", "dz", "dz_err", "charge", "pdg_id", "puppi_weight")]
    corrected = np.stack([axis["pt"] * 1.08, axis["eta"], axis["phi"], rng.uniform(0, 200, jets)], axis=1)
    tagging = np.concatenate([toy.counts[:, None], rng.uniform(0, 1, (jets, 12))], axis=1)
    with h5py.File(path, "w") as file:
        file["event_info"] = np.stack([np.full(jets, 279931), np.arange(jets), np.arange(jets) + 2**31], axis=1)
        for name, array in (("jet_kinematics", corrected), ("jet_tagging", tagging)):
            file.create_dataset(name, data=array.astype(np.float32), compression="gzip")
        file.create_dataset("PFCands", data=_padded([*momenta, *rest], toy.counts, 150), compression="gzip")
    objects = {f"jet_{name}": axis[name] for name in ("pt", "eta", "phi", "energy")}
    objects |= {"jet_pt_corrected": corrected[:, 0], "jet_sdmass": corrected[:, 3], "jet_n_stored": toy.counts}
    objects |= {"jet_tau1": tagging[:, 1], "pn_top": tagging[:, 9], "pn_mass": tagging[:, 12]}
    points = {**_common(toy), **toy.relative(axis), **truth}
    return Truth(points, toy.counts, np.full(jets, -1), objects, missing)


def write_cms_pfnano(path: Path, rng: Generator, jets: int) -> Truth:
    """PFNano: events with up to three jets, whose candidates FatJetPFCands finds in PFCands by index.

    Candidates lie in the events in any order, between others that belong to no jet; the links are in any order too.
    """
    toy = toy_jets(rng, jets)
    stored, missing, truth = _cms(toy, rng)
    own = cylindrical(toy.columns)
    points = {name: own[name].astype(np.float32) for name in ("pt", "eta", "phi")}
    points["mass"] = np.array([0.1396, 0.000511, 0.1057, 0.0, 0.4976], np.float32)[toy["pid"]]
    per_event = _jets_per_event(rng, jets)
    event_of_jet = np.repeat(np.arange(len(per_event)), per_event)
    pool = _pool_of_candidates(rng, event_of_jet[toy.owners], len(per_event))
    in_jet = toy.owners - to_offsets(per_event)[event_of_jet][toy.owners]
    links = np.lexsort([rng.random(len(in_jet)), event_of_jet[toy.owners]])
    n_links = np.bincount(event_of_jet[toy.owners], minlength=len(per_event))
    candidates = {}
    names = {"d0": "d0", "d0_err": "d0Err", "dz": "dz", "dz_err": "dzErr", "puppi_weight": "puppiWeight"}
    names |= {"charge": "charge", "pdg_id": "pdgId", "pt": "pt", "eta": "eta", "phi": "phi", "mass": "mass"}
    for name, branch in names.items():
        values = {**stored, **points}[name]
        kind = np.int32 if name in ("charge", "pdg_id") else np.float32
        candidates[branch] = _jagged(pool.filled(values, kind), pool.counts, kind)
    corrected = {name: toy.sums()[name].astype(np.float32) for name in ("eta", "phi")}
    corrected |= {"pt": (toy.sums()["pt"] * 1.08).astype(np.float32)}
    for name in ("mass", "msoftdrop", "rawFactor", "tau1", "tau2", "tau3", "tau4"):
        corrected[name] = rng.uniform(0, 1, jets).astype(np.float32)
    events = {"event": np.arange(len(per_event)), "run": np.full(len(per_event), 1, np.uint32)}
    events["PFCands"] = ak.zip(candidates)
    events["FatJet"] = ak.zip({name: _jagged(values, per_event, np.float32) for name, values in corrected.items()})
    linked = {"jetIdx": in_jet[links], "pFCandsIdx": pool.place[links]}
    events["FatJetPFCands"] = ak.zip({n: _jagged(values, n_links, np.int32) for n, values in linked.items()})
    _write_tree(path, "Events", events)
    axis = toy.sums(_momenta(points))
    objects = {f"jet_{name}": axis[name] for name in ("pt", "eta", "phi", "energy")}
    objects |= {
        "jet_pt_corrected": corrected["pt"],
        "jet_sdmass": corrected["msoftdrop"],
        "jet_tau4": corrected["tau4"],
    }
    truth |= {**points, **toy.relative(axis, points), "charge": toy["charge"] + 1}
    return Truth(truth, toy.counts, np.full(jets, -1), objects, missing)


def _momenta(points: Mapping[str, NDArray]) -> Columns:
    """Momenta and energies of pt, eta, phi and mass."""
    pt, eta, phi, mass = (points[name].astype(np.float64) for name in ("pt", "eta", "phi", "mass"))
    px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
    return {"px": px, "py": py, "pz": pz, "energy": np.sqrt(px**2 + py**2 + pz**2 + mass**2)}


def _jets_per_event(rng: Generator, jets: int) -> NDArray[np.int64]:
    """0 to 3 jets in every event, `jets` in all."""
    numbers = np.cumsum(rng.integers(0, 4, 4 * jets))
    numbers = np.append(numbers[numbers < jets], jets)
    return np.diff(np.concatenate([[0], numbers]))


@dataclass(frozen=True)
class Pool:
    """Candidates of all events: place[i] is the index within its event of the i-th one that belongs to a jet."""

    counts: NDArray[np.int64]
    place: NDArray[np.int64]
    row: NDArray[np.int64]

    def filled(self, values: NDArray, kind: type) -> NDArray:
        """Candidates of all events one after the other; 7 where one belongs to no jet."""
        out: NDArray = np.full(int(self.counts.sum()), 7, kind)
        out[self.row] = values
        return out


def _pool_of_candidates(rng: Generator, event: NDArray[np.int64], events: int) -> Pool:
    """Three more candidates per event than its jets have, all in random order."""
    counts = np.bincount(event, minlength=events) + 3
    shuffled = np.lexsort([rng.random(counts.sum()), np.repeat(np.arange(events), counts)])
    place = ragged_arange(counts)[np.argsort(shuffled)]
    row = to_offsets(counts)[event] + _number_within(event)
    place = place[row]
    return Pool(counts, place, to_offsets(counts)[event] + place)


def _number_within(event: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same event come before; `event` rises."""
    return ragged_arange(np.bincount(event)[np.bincount(event) > 0])


def write_top_tagging(path: Path, rng: Generator, jets: int) -> Truth:
    """Top tagging: what pandas 3.1 and PyTables 3.11 write by `to_hdf(path, key="table", format="table")`."""
    toy = toy_jets(rng, jets)
    labels = rng.integers(0, 2, jets)
    top = np.where(labels[:, None] == 1, rng.uniform(100, 600, (jets, 4)), 0).astype(np.float32)
    momenta = _padded([toy[name] for name in ("energy", "px", "py", "pz")], toy.counts, TOP_PLACES)
    kind = [("index", "<i8"), ("values_block_0", "<f4", (TOP_COLUMNS,)), ("values_block_1", "<i8", (2,))]
    table = np.zeros(jets, kind)
    table["index"] = np.arange(jets)
    table["values_block_0"] = np.concatenate([momenta.reshape(jets, -1), top], axis=1)
    table["values_block_1"] = np.stack([np.full(jets, 2), labels], axis=1)
    with h5py.File(path, "w") as file:
        file.attrs["PYTABLES_FORMAT_VERSION"] = np.bytes_("2.1")
        group = file.create_group("table")
        group.attrs["pandas_type"] = np.bytes_("frame_table")
        dataset = group.create_dataset("table", data=table, chunks=(40,), maxshape=(None,))
        dataset.attrs["CLASS"] = np.bytes_("TABLE")
    axis = toy.sums()
    points = {name: values for name, values in _common(toy).items() if name not in ("pid", "charge")}
    objects = {f"jet_{name}": axis[name] for name in ("pt", "eta", "phi", "energy")}
    objects |= {f"top_{name}": top[:, i] for i, name in enumerate(("energy", "px", "py", "pz"))}
    return Truth({**points, **toy.relative(axis)}, toy.counts, labels, {**objects, "ttv": np.full(jets, 2)})


def write_energyflow_qg(path: Path, rng: Generator, jets: int) -> Truth:
    """EnergyFlow: npz with X [B, places, 4] of (pt, y, phi, PDG number) and y [B], float64; pT in any order."""
    toy = toy_jets(rng, jets)
    own = cylindrical(toy.columns)
    pdg = np.where(toy["pid"] == 0, rng.choice([211, 321, 2212], len(toy["pid"])), PDG_OF_PID[toy["pid"]])
    pdg = np.where(toy["pid"] == 4, rng.choice([130, 2112, -2112], len(pdg)), pdg)
    pdg = np.where(toy["pid"] == 0, pdg * toy["charge"], np.where(toy["pid"] < 3, -pdg * toy["charge"], pdg))
    labels = rng.integers(0, 2, jets)
    massless = {
        "px": own["pt"] * np.cos(own["phi"]),
        "py": own["pt"] * np.sin(own["phi"]),
        "pz": own["pt"] * np.sinh(own["eta"]),
        "energy": own["pt"] * np.cosh(own["eta"]),
    }
    axis = toy.sums(massless)
    # Jets between 0 and 2 pi, and their particles within pi of them: some angles are negative or above 2 pi.
    phi = (axis["phi"] % (2 * np.pi))[toy.owners] + toy.relative(axis)["phi_rel"]
    shuffled = np.lexsort([rng.random(len(phi)), toy.owners])
    columns = [values[shuffled] for values in (own["pt"], own["eta"], phi, pdg.astype(float))]
    places = int(toy.counts.max())
    padded = np.zeros((jets, places, 4))
    padded[toy.owners, ragged_arange(toy.counts)] = np.stack(columns, axis=1)
    np.savez_compressed(path, X=padded, y=labels.astype(float))
    points = {"pt": own["pt"], "rapidity": own["eta"], "phi": phi, "pdg_id": pdg, "pid": toy["pid"]}
    objects = {f"jet_{name}": axis[name] for name in ("pt", "eta", "phi", "energy")}
    return Truth({**points, **toy.relative(axis), "charge": toy["charge"] + 1}, toy.counts, labels, objects)


def write_omnilearned(path: Path, rng: Generator, jets: int, columns: int = 9) -> Truth:
    """OmniLearned: data [B, 150, columns] of d eta, d phi, log pT, log E, identity, tracks; pid [B]; global [B, 4]."""
    toy = toy_jets(rng, jets)
    axis, own = toy.sums(), cylindrical(toy.columns)
    relative = toy.relative(axis)
    more = [toy["pid"], np.tanh(toy["d0"]), toy["d0_err"], np.tanh(toy["dz"]), toy["dz_err"]]
    kinematics = [relative["eta_rel"], relative["phi_rel"], np.log(own["pt"]), np.log(toy["energy"])]
    labels = rng.integers(2, 12, jets)
    with h5py.File(path, "w") as file:
        file["data"] = _padded([*kinematics, *more][:columns], toy.counts, 150)
        file["pid"] = labels
        file["global"] = np.stack([axis["pt"], axis["eta"], axis["energy"], toy.counts], axis=1).astype(np.float32)
    points = {**relative, "pt": own["pt"], "energy": toy["energy"]}
    return Truth(points, toy.counts, labels, {"jet_n_constituents": toy.counts})
