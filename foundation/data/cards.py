"""Dataset cards: what a dataset is, as data. One YAML file per dataset in `datasets/`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from foundation.errors import DataError, did_you_mean


class Section(BaseModel):
    """Part of a card: every key is known, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Feature(Section):
    """One feature of a point, and the invertible transform that a tokenizer sees it through."""

    name: str
    unit: str = "1"
    """Unit, "1" where dimensionless, "index" for a voxel or category index."""
    description: str = ""
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


class LayerGroup(Section):
    """Identical layers, one behind the other: an absorber plate, then the active plate that is read out."""

    repeat: int = Field(1, ge=1)
    absorber: str
    absorber_mm: float = Field(gt=0)
    active: str
    active_mm: float = Field(gt=0)
    gap_mm: float = Field(0.0, ge=0)
    """Space for boards, glue and air behind the plates: it widens a shower, its matter is not counted."""


class Geometry(Section):
    """A layered calorimeter with square cells, the particle entering at its centre, along the depth."""

    cells: int = Field(ge=1)
    """Cells per side, both in x and in y."""
    cell_mm: float = Field(gt=0)
    layers: tuple[LayerGroup, ...]

    @property
    def n_layers(self) -> int:
        """Number of active layers."""
        return sum(group.repeat for group in self.layers)


class PythiaProcess(Section):
    """How the jets of one class are produced."""

    settings: tuple[str, ...]
    """Pythia 8 settings, for example "HardQCD:all = on"."""
    matched: Literal["parton", "decay"]
    """Label rule: a hard parton within R/2 of the jet, or all decay quarks of one resonance within R."""
    decay_quarks: int = 0
    """How many quarks the resonance decays to, where matched is "decay"."""


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


class GFlashShowers(Section):
    """Showers of photons or electrons by the Grindhammer-Peters parametrisation (hep-ex/0001020)."""

    kind: Literal["gflash"]
    particle: Literal["photon", "electron"] = "photon"
    energy_gev: tuple[float, float]
    spectrum: Literal["uniform", "log"] = "uniform"
    threshold_mev: float = 0.1
    """Hits below it are not read out."""
    sampling_resolution: float = 0.11
    """c of sigma/E = c/sqrt(E/GeV) of the sampling fluctuations."""


Simulator = Annotated[PythiaJets | GFlashShowers, Field(discriminator="kind")]


class DatasetCard(Section):
    """What a dataset is: domain, provenance, features, classes, conditions, and how it is made or read."""

    name: str
    title: str
    domain: Literal["jet", "shower"]
    tag: str
    """The token that names this dataset in a sequence."""
    description: str = ""
    citation: tuple[str, ...] = ()
    licence: str
    features: tuple[Feature, ...]
    order: tuple[str, ...] = ()
    """Order of the points: feature names, "-" before a name for descending."""
    classes: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    geometry: Geometry | None = None
    simulator: Simulator | None = None

    @model_validator(mode="after")
    def _check(self) -> DatasetCard:
        names = [f.name for f in self.features]
        for key in self.order:
            if key.lstrip("-") not in names:
                raise ValueError(f"order names '{key}', which is not a feature{did_you_mean(key.lstrip('-'), names)}")
        if isinstance(self.simulator, PythiaJets) and set(self.simulator.processes) != set(self.classes):
            raise ValueError("simulator.processes must have exactly one entry per class")
        if isinstance(self.simulator, GFlashShowers) and self.geometry is None:
            raise ValueError("a gflash simulator needs a geometry")
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in column order."""
        return tuple(f.name for f in self.features)

    @property
    def feature_units(self) -> tuple[str, ...]:
        """Units of the features, in column order."""
        return tuple(f.unit for f in self.features)


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
        return DatasetCard.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({error})") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise DataError(f"{path}: not a valid dataset card\n  " + "\n  ".join(lines)) from None
