"""What every task gives the trainer: backbone and head in one module, whose forward is a loss over counted targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation.model.attention import Packing
from foundation.model.transformer import Transformer
from foundation.stream.token_stream import Batch


@dataclass
class TensorBatch:
    """A Batch on the device of the model; see Batch for the shapes."""

    ids: Tensor
    targets: Tensor
    slots: Tensor
    positions: Tensor
    offsets: Tensor
    labels: Tensor
    dataset: Tensor
    packing: Packing
    features: Tensor | None = None


def to_device(batch: Batch, device: torch.device) -> TensorBatch:
    """Move a batch to the device."""

    def tensor(x: NDArray) -> Tensor:
        return torch.from_numpy(x).to(device, non_blocking=True)

    return TensorBatch(
        tensor(batch.ids),
        tensor(batch.targets),
        tensor(batch.slots),
        tensor(batch.positions),
        tensor(batch.offsets),
        tensor(batch.labels),
        tensor(batch.dataset),
        Packing(batch.offsets, device),
        None if batch.features is None else tensor(batch.features),
    )


class Task(nn.Module, ABC):
    """Backbone and head. `forward(batch)` is the loss summed over the batch's targets, an fp32 scalar."""

    name: ClassVar[str]
    backbone: Transformer

    @abstractmethod
    def forward(self, batch: TensorBatch) -> Tensor:
        """Loss summed over the targets of the batch."""

    @staticmethod
    @abstractmethod
    def count(batch: Batch) -> int:
        """How many targets `forward` sums over."""

    @abstractmethod
    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters that are new in this task, as opposed to the backbone's."""
