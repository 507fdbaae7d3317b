"""Settings of the tokenizers, as a recipe states them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class VqVaeConfig(BaseModel):
    """One code per point for the continuous features; size and training of the VQ-VAE."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    type: Literal["vqvae"] = "vqvae"
    codebook: int = Field(2048, ge=2)
    """Number of codes of a quantiser."""
    quantisers: int = Field(1, ge=1)
    """Codes per point; the second codes what the first leaves over, and so on."""
    latent: int = Field(4, ge=1)
    """Dimension of the quantised vector."""
    width: int = Field(64, ge=8)
    encoder_blocks: int = Field(1, ge=0)
    decoder_blocks: int = Field(1, ge=0)
    attention: bool = True
    """Conditional tokenization: points see the other points of their cloud."""
    heads: int = Field(4, ge=1)
    commitment: float = Field(0.25, ge=0)
    """Weight of the commitment loss."""
    steps: int = Field(1000, ge=1)
    """Training steps."""
    batch_points: int = Field(4096, ge=1)
    """Points of one training step, about."""
    learning_rate: float = Field(2e-3, gt=0)


class PerFeatureConfig(BaseModel):
    """One code per feature: integer axes exactly, continuous features in bins."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    type: Literal["per_feature"]
    bins: int = Field(64, ge=2)
    """Bins of each continuous feature, equally wide in the card's transformed space."""
