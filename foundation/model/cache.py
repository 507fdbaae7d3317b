"""What decoding remembers of the steps before."""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.model.config import TransformerConfig


class Cache:
    """Keys and values of registers and of the steps decoded so far: [layers, b, G, registers + max_steps, d] each."""

    def __init__(self, config: TransformerConfig, rows: int, max_steps: int, device: torch.device) -> None:
        self.registers = config.registers
        shape = (config.layers, rows, config.groups, config.registers + max_steps, config.head_width)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)

    def keep(self, rows: Tensor, steps: int) -> None:
        """Keep these rows only; `steps` steps are filled, the rest need not be copied."""
        filled = self.registers + steps
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(old.shape[0], len(rows), *old.shape[2:])
            new[:, :, :, :filled] = old[:, rows, :, :filled]
            setattr(self, name, new)
