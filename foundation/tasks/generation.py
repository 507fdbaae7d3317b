"""Next-token prediction: the task of pre-training and of every generator."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from foundation.model.loss import restricted_cross_entropy
from foundation.model.transformer import Transformer
from foundation.stream.token_stream import Batch
from foundation.tasks.base import Task, TensorBatch
from foundation.tokens.layout import Layout


class Generation(Task):
    """p(next step | steps so far), each stream over the ids that are legal in its place.

    z_loss: weight of log^2 Z in the loss that is trained; validation goes without it.
    """

    name: ClassVar[str] = "generation"

    def __init__(self, backbone: Transformer, layout: Layout, z_loss: float = 0.0) -> None:
        super().__init__()
        self.backbone, self.z_loss = backbone, z_loss
        self.slots = layout.slots

    def forward(self, batch: TensorBatch) -> Tensor:
        hidden = self.backbone(batch.ids, batch.positions, batch.packing, batch.features)
        weight, bias = self.backbone.output_weight, self.backbone.output_bias
        z_loss = self.z_loss if self.training else 0.0
        return restricted_cross_entropy(hidden, weight, batch.targets, batch.slots, self.slots, bias, z_loss)

    @staticmethod
    def count(batch: Batch) -> int:
        return int((batch.slots >= 0).sum())

    def head_parameters(self) -> list[nn.Parameter]:
        return []
