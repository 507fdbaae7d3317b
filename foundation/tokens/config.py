"""Settings of the tokenizers, as a recipe states them."""

from __future__ import annotations

from typing import Annotated, Literal

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


class PatchesConfig(BaseModel):
    """A fixed number of codes per shower: one for each patch of its grid of voxels, by a VQ-VAE."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    type: Literal["patches"]
    patch: dict[str, int]
    """Voxels of a patch along each axis of the grid (each integer feature), for example {layer: 3, alpha: 4, r: 9}."""
    periodic: tuple[str, ...] = ()
    """Axes whose last voxel lies beside the first, such as an angle around the shower."""
    condition: str = "incident_energy"
    """The object-level energy that voxels are divided by; it must be known to encode and to decode."""
    loss: Literal["hits", "bce", "mse"] = "hits"
    """How voxels are compared: `hits` takes the chance of a hit and the logarithm of its energy apart, `bce` the share
    of the incident energy by binary cross-entropy, `mse` the logarithm of one plus that share by squared error."""
    energy_tokens: int = Field(1, ge=0)
    """Leading tokens that code the visible energy as digits of its share; decoded hits are scaled to it."""
    count_hits: bool = True
    """More leading tokens, as many as it takes, code the number of hits exactly."""
    codebook: int = Field(1024, ge=2, le=8192)
    """Number of codes of a quantiser, and the base of the digits."""
    quantisers: int = Field(1, ge=1)
    """Codes per patch; the second codes what the first leaves over, and so on."""
    latent: int = Field(16, ge=1)
    """Dimension of the quantised vector."""
    width: int = Field(64, ge=8)
    heads: int = Field(4, ge=1)
    encoder_blocks: int = Field(2, ge=0)
    decoder_blocks: int = Field(2, ge=0)
    commitment: float = Field(0.25, ge=0)
    """Weight of the commitment loss."""
    steps: int = Field(2000, ge=1)
    """Training steps; the first fifth of them without the quantiser, whose codes then start from k-means."""
    batch_objects: int = Field(32, ge=1)
    """Showers of one training step."""
    learning_rate: float = Field(1e-3, gt=0)


TokenizerConfig = Annotated[VqVaeConfig | PerFeatureConfig | PatchesConfig, Field(discriminator="type")]
