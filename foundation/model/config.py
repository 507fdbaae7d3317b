"""Architecture of the backbone, as a recipe states it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TransformerConfig(BaseModel):
    """Decoder-only transformer: pre-norm, RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    width: int = Field(128, ge=8)
    """Width of the residual stream."""
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(0, ge=0)
    """Heads of keys and values; 0 means as many as heads, 1 is multi-query attention."""
    mlp: int = Field(0, ge=0)
    """Hidden width of the SwiGLU; 0 means 8/3 of the width, rounded up to a multiple of 32."""
    rope_base: float = Field(10_000.0, gt=0)
    """Base of the rotary positions."""
    dropout: float = Field(0.0, ge=0, lt=1)
    tied: bool = True
    """Input and output embeddings are one matrix."""

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
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
        """Hidden width of the SwiGLU."""
        return self.mlp or -(-self.width * 8 // 3 // 32) * 32
