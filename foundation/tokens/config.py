"""Settings of the tokenizers, as a recipe states them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class VqVaeConfig(BaseModel):
    """One code per point, or a few residual ones, for the continuous features; size and training of the VQ-VAE."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    type: Literal["vqvae"] = "vqvae"
    quantiser: Literal["vq", "fsq"] = "vq"
    """`vq` takes the nearest of `codebook` vectors that follow the data; `fsq` rounds each latent dimension to `levels`
    steps."""
    codebook: int = Field(2048, ge=2)
    """Number of codes of a quantiser; with `fsq` the product of the levels."""
    quantisers: int = Field(1, ge=1)
    """Codes per point; the second codes what the first leaves over, and so on."""
    levels: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """With `fsq`: levels of each latent dimension, [16, 16, 16] for example."""
    latent: int = Field(4, ge=1)
    """Dimension of the quantised vector; with `fsq` the number of levels."""
    architecture: Literal["normformer", "mlp", "pre_norm"] = "normformer"
    """Blocks of encoder and decoder: OmniJet-alpha's `normformer`; the layers of a plain perceptron, `mlp`, which sees
    no other points; or `pre_norm`, that of the first version, which reconstructs worse."""
    width: int = Field(64, ge=8)
    """Width of the layers."""
    encoder_blocks: int = Field(1, ge=0)
    """Blocks of the encoder, or hidden layers of the perceptron."""
    decoder_blocks: int = Field(1, ge=0)
    """Blocks of the decoder, or hidden layers of the perceptron."""
    attention: bool = True
    """Conditional tokenization: points see the other points of their cloud."""
    heads: int = Field(4, ge=1)
    """Attention heads."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of values that are dropped in training, inside blocks and attention."""
    integers: Literal["exact", "coded"] = "exact"
    """Integer features have a stream of their own each, or are coded as real numbers and rounded when decoding."""
    normalise: Literal["common", "each"] = "common"
    """Divide all features by the largest of their standard deviations, which keeps the scales that the card gives them,
    or each by its own."""
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """How much the squared error of a feature counts after that, by name; 1 where none is given."""
    commitment: float = Field(0.25, ge=0)
    """Weight of the commitment loss."""
    decay: float = Field(0.95, ge=0, lt=1)
    """Codes are moving averages of what they stand for; this share of one is kept each step."""
    dead_codes: float = Field(0.1, ge=0, lt=1)
    """A code with less than this share of the points of an evenly used one moves to a point of the batch."""
    free_start: float = Field(0.1, ge=0, lt=1)
    """With `vq`: share of the steps before the codes start, by k-means, that are trained without them."""
    steps: int = Field(1000, ge=1)
    """Training steps."""
    batch_points: int = Field(4096, ge=1)
    """Points of one training step, about."""
    learning_rate: float = Field(5e-3, gt=0)
    """Highest of the one cycle of learning rates."""
    weight_decay: float = Field(1e-2, ge=0)
    """Weight decay of AdamW."""

    @property
    def sees_clouds(self) -> bool:
        """True where the code of a point depends on the other points of its cloud."""
        return self.attention and self.architecture != "mlp"

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_levels(cls, data: Any) -> Any:
        """With levels, codebook and latent follow from them."""
        if not isinstance(data, dict) or not data.get("levels"):
            return data
        try:
            sizes = {"codebook": math.prod(data["levels"]), "latent": len(data["levels"])}
            # a list of a recipe is a tuple only while nothing has touched it
            return sizes | data | {"levels": tuple(data["levels"])}
        except TypeError:
            return data  # the check of the type says what is wrong

    @model_validator(mode="after")
    def _check(self) -> VqVaeConfig:
        if (self.quantiser == "fsq") != bool(self.levels):
            raise ValueError("'quantiser: fsq' and 'levels' belong together: give both or none")
        if self.levels and (self.codebook, self.latent) != (math.prod(self.levels), len(self.levels)):
            raise ValueError("'codebook' and 'latent' follow from 'levels': leave them out")
        if self.codebook > 2**22:
            raise ValueError(f"{self.codebook:,} codes are too many for one stream: use several quantisers")
        if self.sees_clouds and self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be divided by {self.heads} heads")
        if self.architecture == "mlp" and not (self.encoder_blocks and self.decoder_blocks):
            raise ValueError("'architecture: mlp' needs a layer at least: encoder_blocks and decoder_blocks from 1")
        return self


BinCount = Annotated[int, Field(ge=2)]
Spacing = Literal["linear", "log", "quantile"]
Inside = Literal["density", "uniform", "middle"]
DEFAULT_BINS = 64


class PerFeatureConfig(BaseModel):
    """One code per feature: integer axes exactly, continuous features in bins."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    type: Literal["per_feature"]
    bins: BinCount | dict[str, BinCount] = DEFAULT_BINS
    """Bins of each continuous feature, or a mapping from features to their bins; 64 for those it leaves out."""
    spacing: Spacing | dict[str, Spacing] = "linear"
    """Bins are equally wide in the card's transformed space (`linear`), equally wide in the logarithm of the physical
    value (`log`), or hold equally many points of the fit, with a bin of its own for a value that many points share
    (`quantile`). One for all features, or a mapping; `linear` for features that it leaves out."""
    inside: Inside = "density"
    """Where decoding places a value inside its bin: by the `density` of the fit, `uniform` in the card's transformed
    space, or in the `middle` there."""


class BinningConfig(BaseModel):
    """One code per point: the product of the bins of its continuous features; integers and categories exactly."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    type: Literal["binning"]
    bins: BinCount | dict[str, BinCount] = 20
    """Bins of each continuous feature, or a mapping that names all of them; integer and category features that the
    mapping names are in the product as well, and have a stream of their own otherwise."""
    spacing: Spacing | dict[str, Spacing] = "linear"
    """As for `per_feature`."""
    inside: Inside = "density"
    """As for `per_feature`; all features of a point are placed by one random number."""


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
    """How voxels are compared: `hits` takes the chance of a hit and the density of its energy apart, `bce` the share
    of the incident energy by binary cross-entropy, `mse` the logarithm of one plus that share by squared error."""
    energy_tokens: int = Field(1, ge=0)
    """Leading tokens that code the visible energy as digits of its share; decoded hits are scaled to it."""
    count_hits: bool = True
    """More leading tokens, as many as it takes, code the number of hits exactly."""
    spread: bool = True
    """With the loss `hits`: draw the energy of a decoded hit from the density that the network gives, instead of taking
    its median."""
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
    learning_rate: float = Field(2e-3, gt=0)
    """Highest of the one cycle of learning rates."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> PatchesConfig:
        if self.width % self.heads:
            raise ValueError(f"'width' ({self.width}) must be a multiple of 'heads' ({self.heads})")
        return self


class KMeansConfig(BaseModel):
    """One code per point: the nearest of the centres of clusters of its continuous features."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    type: Literal["kmeans"]
    codes: int = Field(16_384, ge=2, le=2**22)
    """Number of clusters."""
    inside: Literal["centroid", "residual"] = "centroid"
    """Decode to the centre of the cluster, or beside it, as a random point of the fit lay."""
    fit_points: int = Field(1_000_000, ge=2)
    """Points that the clusters are found from, at most."""
    rounds: int = Field(20, ge=0)
    """Times that the centres move to the mean of their points."""


TokenizerConfig = Annotated[
    VqVaeConfig | KMeansConfig | PerFeatureConfig | BinningConfig | PatchesConfig, Field(discriminator="type")
]
