"""What a user can say about drawing ids; the defaults, which live here, draw from the model as it is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StreamSampling(BaseModel):
    """How codes are drawn. Applied in this order: temperature, top_k, top_p, min_p; the most probable code stays."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it: below 1 the probable codes gain, above 1 the improbable ones."""
    top_k: int = Field(0, ge=0)
    """Keep this many of the most probable codes; 0 keeps all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the most probable codes that add up to this probability (arXiv:1904.09751)."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Keep codes that are at least this times as probable as the most probable one (arXiv:2407.01082)."""

    @property
    def keeps_all(self) -> bool:
        """Whether no code is left out."""
        return self.top_k == 0 and self.top_p == 1.0 and self.min_p == 0.0


class SamplingConfig(StreamSampling):
    """How objects are drawn. Whether one ends is decided first, with the model's own probability of that: what is said
    about codes does not change how many points there are."""

    max_points: int = Field(ge=1)
    """Most points of an object; of no meaning where every object has the same number of tokens."""
    min_points: int = Field(0, ge=0)
    """Fewest points of an object: before that many none ends."""
    end_temperature: float = Field(1.0, gt=0)
    """The log-odds of ending are divided by it."""
    streams: dict[str, StreamSampling] = Field(default_factory=dict)
    """Settings of single streams of the codes, by the stream's name, in place of the general ones."""

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        if self.min_points > self.max_points:
            raise ValueError(f"min_points {self.min_points} is more than max_points {self.max_points}")
        return self

    def stream(self, name: str) -> StreamSampling:
        """Settings of one stream of the codes."""
        return self.streams.get(name, self)
