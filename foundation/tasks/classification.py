"""Classification of whole objects: jets to their origin, showers to their particle."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.model.transformer import Transformer
from foundation.stream.token_stream import Batch
from foundation.tasks.base import Task, TensorBatch


class Classification(Task):
    """OmniJet-alpha's head (arXiv:2403.05618): linear, ReLU, sum over the steps, linear.

    The sum is divided by a constant, the square root of a typical length, so that logits start near zero.
    """

    name: ClassVar[str] = "classification"

    def __init__(self, backbone: Transformer, classes: int) -> None:
        super().__init__()
        width = backbone.config.width
        self.backbone = backbone
        self.each = nn.Linear(width, width)
        self.decide = nn.Linear(width, classes)
        nn.init.zeros_(self.decide.bias)

    def logits(self, batch: TensorBatch) -> Tensor:
        """Logits [B, classes]."""
        hidden = self.backbone(batch.ids, batch.positions, batch.packing, batch.features)
        counts = batch.offsets.diff()
        owner = torch.repeat_interleave(torch.arange(len(counts), device=hidden.device), counts)
        each = F.relu(self.each(hidden))
        pooled = each.new_zeros(len(counts), each.shape[1]).index_add(0, owner, each)
        return self.decide(pooled / 50.0)

    def forward(self, batch: TensorBatch) -> Tensor:
        return F.cross_entropy(self.logits(batch).float(), batch.labels, reduction="sum")

    @staticmethod
    def count(batch: Batch) -> int:
        return len(batch.labels)

    def head_parameters(self) -> list[nn.Parameter]:
        return [*self.each.parameters(), *self.decide.parameters()]
