"""What a user can ask a generator for: classes, conditions, partial objects, rejection, calibration. No torch here."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from foundation.generate.sampling_config import SamplingConfig


class Section(BaseModel):
    """Part of what is asked for: every key is known, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Distribution(Section):
    """Values drawn for each object; give exactly one of these."""

    uniform: tuple[float, float] | None = None
    """Between two values."""
    log_uniform: tuple[float, float] | None = None
    """Between two values above 0, uniform in the logarithm."""
    normal: tuple[float, float] | None = None
    """Mean and standard deviation of a normal distribution, of which the part within the condition's range is taken."""
    choice: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """One of these values, all alike probable."""

    @model_validator(mode="after")
    def _check(self) -> Distribution:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError("give exactly one of uniform, log_uniform, normal, choice")
        name, values = next(iter(given.items()))
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name} needs finite numbers")
        if name in ("uniform", "log_uniform") and values[0] > values[1]:
            raise ValueError(f"{name} needs its lower end first, not {list(values)}")
        if name == "log_uniform" and values[0] <= 0:
            raise ValueError("log_uniform needs values above 0")
        if name == "normal" and values[1] <= 0:
            raise ValueError("normal needs a mean and a standard deviation above 0")
        return self


def _kind_of_values(value: Any) -> str:
    if isinstance(value, (Distribution, dict)):
        return "Distribution"
    return "str" if isinstance(value, str) else "tuple" if isinstance(value, (tuple, list)) else "float"


# messages about mistakes find their place by the names of the types
Values = Annotated[
    Annotated[float, Tag("float")]
    | Annotated[Literal["any"], Tag("str")]
    | Annotated[tuple[float, ...], Field(min_length=1), Tag("tuple")]
    | Annotated[Distribution, Tag("Distribution")],
    Discriminator(_kind_of_values),
]
"""Of one condition: a value, several taken in turn (within each class), `any` to leave it open, or a distribution."""


class FromFile(Section):
    """Conditions of the objects of a file, together as they are there, so that what belongs together stays so."""

    file: str
    """File in the dataset's own format or of this platform's point clouds, or a folder of such files (*.h5)."""
    take: Literal["in_turn", "shuffled", "drawn"] = "in_turn"
    """The k-th object's; the same in an order of chance, each once before any comes again; or drawn each time."""


class Asked(Section):
    """Classes and conditions of the objects."""

    classes: tuple[str, ...] = ()
    """Classes, in turn. None given: those of the file where there is one, else all of the dataset in turn. ["any"]
    leaves the class open."""
    source: FromFile | None = None
    """File that classes and conditions come from."""
    conditions: dict[str, Values] = {}
    """Values of single conditions, by name, before those of the file; what is in neither is left open."""
    outside: bool = False
    """Allow values outside the range that the model was trained on: they count as the nearest bin of it."""


class Complete(Section):
    """Objects that begin with the first points of the objects of a file."""

    file: str
    """File in the dataset's own format or of this platform's point clouds; its objects are taken in turn, with their
    classes and conditions unless others are asked for."""
    keep: int = Field(ge=1)
    """How many points of each object to keep, the first ones in the dataset's order; of shorter objects, all."""


class EnergyEnvelope(Section):
    """Least energy sum of a shower: scale (factor E^power + offset), E being the incident energy (arXiv:2606.11304)."""

    factor: float
    """In the unit of the hits' energy, for an incident energy of 1 in its unit."""
    power: float = 1.0
    offset: float = 0.0
    """In the unit of the hits' energy."""
    scale: float = Field(1.0, gt=0)


class Reject(Section):
    """Objects that are drawn again. What is rejected is no longer what the model says: the rate is in the report."""

    min_points: int = Field(0, ge=0)
    """Reject objects with fewer points."""
    energy_sum: EnergyEnvelope | None = None
    """Reject showers with a smaller energy sum."""
    tries: int = Field(10, ge=1)
    """How often an object is drawn, at most; the last one is then kept, and counted."""


class Calibrate(Section):
    """Energies of hits times a factor, so that the mean response per incident energy is that of the truth."""

    truth: str
    """File of true showers, or a folder of such files (*.h5): in the dataset's own format or of this platform."""
    bins: int = Field(10, ge=1)
    """Bins of the incident energy, with equal numbers of true showers."""
    objects: int = Field(2000, ge=1)
    """Showers generated to find the factors, with incident energies of the truth; none of them is among the result."""


class CampaignSettings(Section):
    """All that the objects of a campaign depend on, beside the model."""

    dataset: str
    """Tag."""
    objects: int = Field(ge=1)
    seed: int = Field(1, ge=0)
    sampling: SamplingConfig
    asked: Asked = Asked()
    complete: Complete | None = None
    reject: Reject | None = None
    calibrate: Calibrate | None = None
