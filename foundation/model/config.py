"""Architecture of the backbone, as a recipe states it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from foundation.model.sizes import SIZES, Size


class TransformerConfig(BaseModel):
    """Decoder-only transformer; unless told otherwise with RMSNorm before each part, rotary positions and SwiGLU."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    size: Size | None = None
    """Named architecture that fills in every key that is not given: a size or a published backbone."""
    width: int = Field(128, ge=8)
    """Width of the residual stream."""
    layers: int = Field(4, ge=1)
    """Blocks of attention and MLP."""
    heads: int = Field(4, ge=1)
    """Attention heads."""
    kv_heads: int = Field(0, ge=0)
    """Heads of keys and values; 0 means as many as heads, 1 is multi-query attention."""
    mlp: int = Field(0, ge=0)
    """Hidden width of the MLP; 0 means 4 times the width, for SwiGLU 8/3 of it, rounded up to a multiple of 32."""
    activation: Literal["swiglu", "gelu", "relu"] = "swiglu"
    """Of the MLP."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm with bias."""
    norm_place: Literal["pre", "post"] = "pre"
    """Before attention and MLP (and once at the end), or after the sum of each with its input."""
    qk_norm: bool = False
    """RMSNorm over every head's queries and keys: keeps attention from saturating at high learning rates."""
    positions: Literal["rope", "learned", "none"] = "rope"
    """Rotary, one learned vector per step, or none: then order shows only in what a step may see."""
    rope_base: float = Field(10_000.0, gt=0)
    """Base of the rotary positions."""
    max_steps: int = Field(0, ge=0)
    """Longest sequence in steps; needed with learned positions, and only there."""
    registers: int = Field(0, ge=0)
    """Learned vectors before every sequence, which all its steps attend to."""
    features: tuple[str, ...] = ()
    """Continuous features that are read beside the ids, by name; the tokenize stage must store them. Not for models
    that generate."""
    bias: bool = False
    """Linear layers of the blocks have a bias."""
    qkv_bias: bool | None = None
    """The same for queries, keys and values, where it differs."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what attention and MLP add to the residual stream."""
    tied: bool = True
    """Input and output embeddings are one matrix."""
    output_bias: bool = False
    """Every id has a bias in the output."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        size, features = given.get("size"), given.get("features")
        if isinstance(features, list):  # as YAML has it: behind this function pydantic no longer knows that it may be
            given = {**given, "features": tuple(features)}
        return {**SIZES[size], **given} if isinstance(size, str) and size in SIZES else given

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        even = "an even" if self.positions == "rope" else "a"
        if self.width % self.heads or (self.positions == "rope" and self.head_width % 2):
            raise ValueError(f"width {self.width} must be {even} multiple of heads {self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if (self.positions == "learned") != bool(self.max_steps):
            raise ValueError("positions learned and max_steps need each other: give both or neither")
        if len(set(self.features)) < len(self.features):
            raise ValueError("features: each name once")
        return self

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def groups(self) -> int:
        """Number of heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP."""
        if self.mlp:
            return self.mlp
        return -(-self.width * 8 // 3 // 32) * 32 if self.activation == "swiglu" else 4 * self.width
