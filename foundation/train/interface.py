"""What a stage gives to training, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from foundation.tasks.base import Task


class MetricLogger(Protocol):
    """Where metrics go besides the local file: MLflow, or nowhere."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of a step."""


Validate = Callable[[Task, torch.device], dict[str, float]]
"""validate(task, device): metrics; keys that end in `/loss` decide which checkpoint is best."""
Sample = Callable[[dict[str, Tensor], int], None]
"""sample(weights, step): draw something from all weights; called on rank 0 alone."""


@dataclass(frozen=True)
class Trained:
    """What training returns: all weights (rank 0), the last validation metrics, what was done, and the averages."""

    weights: dict[str, Tensor]
    validation: dict[str, float]
    summary: dict[str, object]
    average: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Extras:
    """What a stage adds to training.

    sample: called every `sample_every` steps
    facts:  for `about.json` of every checkpoint, such as the resolved recipe and the tracking run
    """

    sample: Sample | None = None
    facts: Callable[[], Mapping[str, Any]] = field(default=dict)
