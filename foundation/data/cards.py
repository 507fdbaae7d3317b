"""Dataset cards: what a dataset is, as data. One YAML file per dataset in `datasets/`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from foundation.data.binning_xml import BinningFile
from foundation.data.card_format import FileFormat, Files
from foundation.data.geometry import Geometry
from foundation.data.section import Section
from foundation.errors import DataError, did_you_mean


class Feature(Section):
    """One feature of a point, and the invertible transform that a tokenizer sees it through."""

    name: str
    unit: str = "1"
    """Unit, "1" where dimensionless, "index" for a voxel or category index."""
    description: str = ""
    convention: str = ""
    """Which of the conventions in use the values follow, "constituent - jet" or "(x py - y px) / pT" say. A tokenizer
    refuses point clouds that state another one."""
    kind: Literal["continuous", "integer", "category"] = "continuous"
    range: tuple[float, float] | None = None
    """Window of values (inclusive); what lies outside is counted and reported, never dropped."""
    categories: tuple[str, ...] = ()
    """Names of the values 0, 1, ... of a category."""
    log: bool = False
    """Take the natural logarithm first."""
    shift: float = 0.0
    """Subtracted after the logarithm."""
    scale: float = 1.0
    """Multiplied after the shift."""

    @model_validator(mode="after")
    def _check(self) -> Feature:
        if self.kind == "category" and not self.categories:
            raise ValueError(f"feature '{self.name}' is a category: name its categories")
        if self.kind == "integer" and self.range is None:
            raise ValueError(f"feature '{self.name}' is an integer: give its range")
        return self


class Condition(Section):
    """An object-level quantity that a sequence starts with, as one token out of `bins`."""

    name: str
    unit: str
    range: tuple[float, float]
    bins: int = Field(32, ge=1)
    scale: Literal["linear", "log"] = "linear"


class Attribute(Section):
    """An object-level quantity that is carried along, for analysis and for writing files, but is no token."""

    name: str
    unit: str = "1"
    description: str = ""


class PythiaProcess(Section):
    """How the jets of one class are produced."""

    settings: tuple[str, ...]
    """Pythia 8 settings, for example "HardQCD:all = on"; the last of two that contradict each other holds."""
    matched: Literal["parton", "decay"]
    """Label rule: the nearest hard parton is within R/2 of the jet, or all decay products of one resonance within R."""
    flavours: tuple[int, ...] = (1, 2, 3, 4, 5, 21)
    """PDG numbers (without sign) that the nearest parton may have, where matched is "parton"."""
    decay_products: int = 0
    """How many quarks, gluons and charged leptons the resonance decays to in the end, where matched is "decay"."""

    @model_validator(mode="after")
    def _check(self) -> PythiaProcess:
        if (self.matched == "decay") != (self.decay_products > 0):
            raise ValueError("decay_products must be given where matched is decay, and only there")
        return self


class PythiaJets(Section):
    """Jets from Pythia 8, a parametrised detector and anti-kT clustering (extra `simulate`)."""

    kind: Literal["pythia8"]
    energy_gev: float = 13000.0
    radius: float = 0.8
    pt_gev: tuple[float, float] = (500.0, 1000.0)
    eta_max: float = 2.0
    pthat_gev: tuple[float, float] = (450.0, 1100.0)
    mpi: bool = True
    """Multiparton interactions: slower by 3-8x, needed for anything that is compared with real jets."""
    detector: bool = True
    """Efficiencies, resolutions and towers; without it the jets are made of generated particles."""
    processes: dict[str, PythiaProcess]
    """One entry per class of the card."""


class ShowerSimulator(Section):
    """What simulators of showers share: single particles that enter at the centre of the calorimeter's front face."""

    energy_gev: tuple[float, float]
    spectrum: Literal["uniform", "log"] = "uniform"
    """Energies are uniform in E or in log E."""
    theta_deg: tuple[float, float] | None = None
    """Angles to the depth axis, uniform in this range, leaning towards +x; without it all particles go straight in."""
    threshold_mev: float = Field(0.1, ge=0)
    """Hits below it are not read out."""
    particle: str
    particles: dict[str, str] = {}
    """Class -> its particle, where the card has several classes."""

    @model_validator(mode="after")
    def _ranges_make_sense(self) -> ShowerSimulator:
        if not 0 < self.energy_gev[0] <= self.energy_gev[1]:
            raise ValueError("energy_gev must be a range of positive energies: [low, high]")
        if self.theta_deg is not None and not 0 <= self.theta_deg[0] <= self.theta_deg[1] <= 80:
            raise ValueError("theta_deg must be a range within 0 and 80 degrees: [low, high]")
        return self

    def particle_of(self, class_name: str | None) -> str:
        """The particle that showers of this class start with."""
        return self.particles.get(class_name or "", self.particle)


class GFlashShowers(ShowerSimulator):
    """Showers of photons or electrons by the Grindhammer-Peters parametrisation (hep-ex/0001020)."""

    kind: Literal["gflash"]
    particle: Literal["photon", "electron"] = "photon"
    particles: dict[str, Literal["photon", "electron"]] = {}  # type: ignore[assignment]
    sampling_fluctuations: bool = True
    """Without them every layer shows its mean share of the energy."""
    sampling_resolution: float | None = Field(None, gt=0)
    """c of sigma/E = c/sqrt(E/GeV) of the sampling fluctuations: 0.11 where it is not given. A homogeneous calorimeter
    has none unless it is given."""


class Geant4Showers(ShowerSimulator):
    """Showers by Geant4 (extra `geant4`) with the user's own Geant4 data."""

    kind: Literal["geant4"]
    particle: str = "electron"
    """photon, electron, positron, or any name that Geant4 has for a particle, such as "pi+"."""
    physics: str = "emstandard"
    """emstandard, emstandard_opt1 to emstandard_opt4, emlivermore, empenelope: only electrons, positrons and photons
    interact. Or a reference list of Geant4, such as FTFP_BERT."""
    cut_mm: float = Field(0.7, gt=0)
    """Production cut: secondaries that would not come so far are not made."""


Simulator = Annotated[PythiaJets | GFlashShowers | Geant4Showers, Field(discriminator="kind")]


class DatasetCard(Section):
    """What a dataset is: domain, provenance, features, classes, conditions, and how it is made or read."""

    name: str
    title: str
    domain: Literal["jet", "shower"]
    tag: str
    """The token that names this dataset in a sequence."""
    description: str = ""
    citation: tuple[str, ...] = ()
    doi: str | None = None
    """Of the data themselves, "10.5281/zenodo.123"."""
    licence: str
    traps: tuple[str, ...] = ()
    """What has misled users of these files, and what is done about it here."""
    files: Files | None = None
    format: FileFormat | None = None
    features: tuple[Feature, ...]
    order: tuple[str, ...] = ()
    """Order of the points: feature names, "-" before a name for descending."""
    classes: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    selection: dict[str, tuple[float, float]] = {}
    """Quantity of the object -> window (inclusive); objects outside are left out, counted and reported."""
    geometry: Geometry | None = None
    """Or, in a card's file, {kind: xml, path: ...}: a binning file of the CaloChallenge, which `load_card` reads."""
    simulator: Simulator | None = None

    @model_validator(mode="after")
    def _check(self) -> DatasetCard:
        names = [f.name for f in self.features]
        for key in self.order:
            if key.lstrip("-") not in names:
                raise ValueError(f"order names '{key}', which is not a feature{did_you_mean(key.lstrip('-'), names)}")
        if isinstance(self.simulator, PythiaJets) and set(self.simulator.processes) != set(self.classes):
            raise ValueError("simulator.processes must have exactly one entry per class")
        if isinstance(self.simulator, ShowerSimulator):
            if self.geometry is None:
                raise ValueError(f"a {self.simulator.kind} simulator needs a geometry")  # type: ignore[attr-defined]
            if set(self.simulator.particles) != set(self.classes) and (self.simulator.particles or self.classes[1:]):
                raise ValueError("simulator.particles must have exactly one entry per class")
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in column order."""
        return tuple(f.name for f in self.features)

    @property
    def object_units(self) -> dict[str, str]:
        """Object-level quantity -> unit: the conditions, then the attributes."""
        return {c.name: c.unit for c in self.conditions} | {a.name: a.unit for a in self.attributes}

    @property
    def units(self) -> dict[str, str]:
        """Unit of every feature and object-level quantity."""
        return {f.name: f.unit for f in self.features} | self.object_units

    @property
    def feature_units(self) -> tuple[str, ...]:
        """Units of the features, in column order."""
        return tuple(f.unit for f in self.features)

    @property
    def feature_conventions(self) -> tuple[str, ...]:
        """Conventions of the features, in column order; "" where the card states none."""
        return tuple(f.convention for f in self.features)


def shipped(folder: str) -> Path:
    """A folder of YAML that ships with the platform: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    beside = package.parent / folder
    return beside if beside.is_dir() else package / "shipped" / folder


def card_paths() -> dict[str, Path]:
    """Name and file of every card that ships with the platform."""
    return {path.stem: path for path in sorted(shipped("datasets").glob("*.yaml"))}


def load_card(name: str, base: Path | None = None) -> DatasetCard:
    """The card of this name, or of this YAML file (relative to `base`, the recipe's folder, or to here)."""
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        candidates = [Path(name)] if base is None else [base / name, Path(name)]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            raise DataError(f"{name}: no such dataset card")
    else:
        known = card_paths()
        if name not in known:
            raise DataError(f"no dataset card '{name}'{did_you_mean(name, known)}")
        path = known[name]
    try:
        content = yaml.safe_load(path.read_text())
        geometry = content.get("geometry") if isinstance(content, dict) else None
        if isinstance(geometry, dict) and geometry.get("kind") == "xml":
            content["geometry"] = BinningFile.model_validate(geometry).read(path.parent)
        return DatasetCard.model_validate(content)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({error})") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise DataError(f"{path}: not a valid dataset card\n  " + "\n  ".join(lines)) from None
