"""What a generate stage may say of the objects of one dataset."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from foundation.generate.request_config import FromFile, Reject, Values
from foundation.generate.sampling_config import StreamSampling
from foundation.recipe.section import Section


def _kind_of_conditions(value: Any) -> str:
    if isinstance(value, str):
        return "str"
    return "FromFile" if isinstance(value, FromFile) or (isinstance(value, dict) and "file" in value) else "dict"


# messages about mistakes find their place by the names of the types
ConditionsSpec = Annotated[
    Annotated[Literal["truth", "any"], Tag("str")]
    | Annotated[FromFile, Tag("FromFile")]
    | Annotated[dict[str, Values], Tag("dict")],
    Discriminator(_kind_of_conditions),
]


class Completion(Section):
    """Partial objects that are completed."""

    file: str | None = None
    """File or folder of such files (*.h5), relative to the recipe, in the dataset's own format or of this platform;
    the test split of `truth` where none is given. Its objects are taken in turn, with their classes and conditions."""
    keep: int = Field(ge=1)
    """How many points of each object to keep, the first ones in the dataset's order; of shorter objects, all."""


class Recalibration(Section):
    """Energies of hits times a factor per bin of incident energy, so that the mean response is that of the truth."""

    split: str = "train"
    """Split of `truth` that says the response; not the one that results are compared with."""
    bins: int = Field(10, ge=1)
    """Bins of the incident energy, with equal numbers of true showers."""
    objects: int = Field(2000, ge=1)
    """Showers generated to find the factors, with incident energies of that split; none is among the result."""


class Sample(Section):
    """Objects of one dataset to generate."""

    truth: str
    """The simulate or import stage of the dataset: what is generated is compared with its test split."""
    objects: int = Field(1000, ge=1)
    """Objects to generate, per class; all together where partial objects are completed."""
    classes: tuple[str, ...] = ()
    """Classes; all when not given."""
    conditions: ConditionsSpec = "truth"
    """Where conditions such as the incident energy come from: the test split (each object's once before any comes
    again), left open (`any`), a file, or values and distributions by the condition's name."""
    outside: bool = False
    """Allow values outside the range that the model was trained on: they count as the nearest bin of it."""
    max_points: int = Field(0, ge=0)
    """Longest object; 0 means 1.2 times the longest of the train split."""
    min_points: int = Field(0, ge=0)
    """Fewest points of an object: before that many none ends."""
    streams: dict[str, StreamSampling] = {}
    """Settings of single streams of the codes, by name, in place of those of the stage."""
    complete: Completion | None = None
    """Begin with the first points of given objects."""
    reject: Reject | None = None
    """Draw objects again that are not as they must be."""
    calibrate: Recalibration | None = None
    """Correct the energy response of showers."""
    format: Literal["foundation", "own"] = "foundation"
    """`own`: also write a file in the dataset's own format, TAG.own.SUFFIX beside TAG.h5."""
    assume: dict[str, float] = {}
    """Quantity -> value for all objects, where the own format needs what the objects do not have."""
