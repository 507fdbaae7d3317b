"""What a recipe may say about the datasets that a training mixes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from foundation.recipe.section import Section

Weights = Annotated[
    dict[str, Annotated[float, Field(ge=0)]],
    Field(min_length=1, json_schema_extra={"not": {"required": ["temperature"]}}),
]
"""Weight of each dataset, by tag; weights mean tokens."""


class TemperatureMixture(Section):
    """All datasets of the tokenize stage, weighted by their tokens to the power of 1 / temperature."""

    temperature: float = Field(gt=0)
    """1 takes the datasets as large as they are; the larger, the more equal are the weights."""


class MixturePart(Section):
    """Weights from a step on."""

    from_step: int = Field(ge=0)
    """First step with these weights."""
    weights: Weights
    """Weight of each dataset, by tag; a dataset that is not named has none."""


def _in_order(parts: tuple[MixturePart, ...]) -> tuple[MixturePart, ...]:
    steps = [part.from_step for part in parts]
    if steps[:1] != [0] or sorted(set(steps)) != steps:
        raise ValueError(f"the parts must begin with from_step: 0 and follow one another, not {steps}")
    return parts


def _kind_of_mixture(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "tuple"
    named = isinstance(value, TemperatureMixture) or (isinstance(value, dict) and "temperature" in value)
    return "TemperatureMixture" if named else "dict"


# messages about mistakes find their place by the names of the types
MixtureSpec = Annotated[
    Annotated[TemperatureMixture, Tag("TemperatureMixture")]
    | Annotated[tuple[MixturePart, ...], AfterValidator(_in_order), Tag("tuple")]
    | Annotated[Weights, Tag("dict")],
    Discriminator(_kind_of_mixture),
]
