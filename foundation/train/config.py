"""What a user can say about training; the defaults live here, once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrainConfig(BaseModel):
    """Steps, batch, optimiser, precision, distribution and checkpoints."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    steps: int = Field(1000, ge=1)
    """Optimiser steps."""
    row_tokens: int = Field(1024, ge=8)
    """Tokens of a row; whole sequences are packed into rows."""
    rows_per_step: int = Field(4, ge=1)
    """Rows of one optimiser step over all ranks: the global batch."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches that one rank splits its rows of a step into."""
    optimizer: Literal["adamw", "muon", "ranger", "lion"] = "adamw"
    """Muon moves the blocks' matrices, and leaves everything else to AdamW."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    learning_rate_width: int | None = Field(None, ge=1)
    """Width for which the learning rate was found: the blocks' matrices get it times this over the model's width."""
    muon_learning_rate: float = Field(0.02, gt=0)
    """Peak learning rate of what Muon moves, the same for every width."""
    backbone_learning_rate: float | None = Field(None, ge=0)
    """Peak learning rate of the backbone, where it differs from the head's; 0 freezes it."""
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """Way of the learning rate from the peak to the end, after a linear warm-up."""
    warmup_steps: int = Field(50, ge=0)
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Schedule wsd: the share of the steps, at the end, in which the learning rate falls."""
    final_learning_rate: float = Field(0.02, ge=0, le=1)
    """Learning rate at the end as a fraction of the peak."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices."""
    betas: tuple[float, float] | None = None
    """Decay of the moments; null: (0.9, 0.95) for AdamW, (0.95, 0.999) for Ranger, (0.9, 0.99) for Lion."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient; not with Muon, whose updates do not depend on it."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of log^2 of the softmax's normalisation in the loss, such as 1e-4: keeps logits small (pretrain only)."""
    average_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the weights per step; 0: no average."""
    export: Literal["last", "average"] = "last"
    """Which weights are validated and become the model; the others are left beside it."""
    class_dropout: float = Field(0.3, ge=0, le=1)
    """Fraction of sequences whose class is shown as `any`, so that one model generates with and without a class."""
    condition_dropout: float = Field(0.1, ge=0, le=1)
    """The same for each condition, such as the incident energy."""
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    """Compile the blocks with torch.compile, in the first steps; not with zero_stage 3."""
    recompute: bool = False
    """Compute the activations of a block again in the backward pass: a third more work, far less memory."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage; used with more than one process."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What DeepSpeed keeps in the host's memory: the optimiser's state, or with ZeRO 3 the parameters as well."""
    deepspeed: str | None = None
    """File of further DeepSpeed settings (JSON); what contradicts the recipe is an error."""
    checkpoint_seconds: float = Field(30.0, gt=0)
    """Time between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay on disk."""
    keep_best: bool = False
    """Write a checkpoint at every validation with a smaller loss than all before, and keep the best one too."""
    background_checkpoints: bool = True
    """Copy the state to the host's memory and write it while training goes on; off where that memory is short."""
    log_every: int = Field(10, ge=1)
    validate_every: int = Field(0, ge=0)
    """Steps between validations; 0 means only at the end."""
    validation_sequences: int = Field(1000, ge=1)
    """Sequences of each dataset's validation split that are scored."""
    sample_every: int = Field(0, ge=0)
    """Steps between samples, a few generated objects drawn beside true ones (pretrain only); 0 means none."""
    max_spike_sigma: float | None = Field(None, gt=0)
    """Skip a step whose loss is more standard deviations than this above the median of those before; null: never."""
    spike_window: int = Field(128, ge=4)
    """Losses that the median is taken of; none is judged before there are so many."""
    max_skipped: int = Field(10, ge=1)
    """Stop after this many steps in a row were skipped: a loss or gradient that is not finite, or a spike."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.export == "average" and not self.average_decay:
            raise ValueError("export average needs average_decay, such as 0.999")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile does not go with zero_stage 3, whose hooks cannot be compiled: use 1 or 2")
        if self.offload != "none" and self.zero_stage < (3 if self.offload == "parameters" else 1):
            needed = "3" if self.offload == "parameters" else "1, 2 or 3"
            raise ValueError(f"offload {self.offload} needs zero_stage {needed}, not {self.zero_stage}")
        return self
