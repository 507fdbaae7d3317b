"""What a user can say about training; the defaults live here, once."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    backbone_learning_rate: float | None = Field(None, ge=0)
    """Peak learning rate of the backbone, where it differs from the head's; 0 freezes it."""
    warmup_steps: int = Field(50, ge=0)
    final_learning_rate: float = Field(0.02, ge=0, le=1)
    """Learning rate at the end as a fraction of the peak; cosine in between."""
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    class_dropout: float = Field(0.3, ge=0, le=1)
    """Fraction of sequences whose class is shown as `any`, so that one model generates with and without a class."""
    condition_dropout: float = Field(0.1, ge=0, le=1)
    """The same for each condition, such as the incident energy."""
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage; used with more than one process."""
    checkpoint_seconds: float = Field(30.0, gt=0)
    """Time between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(10, ge=1)
    validate_every: int = Field(0, ge=0)
    """Steps between validations; 0 means only at the end."""
    validation_sequences: int = Field(1000, ge=1)
    """Sequences of each dataset's validation split that are scored."""
    max_skipped: int = Field(10, ge=1)
    """Stop after this many steps in a row were skipped because the gradient was not finite."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """Fraction of the peak learning rate at `step`: linear warm-up, then a cosine. No state, so resuming is exact."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return config.final_learning_rate + (1.0 - config.final_learning_rate) * cosine
