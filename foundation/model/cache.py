"""What decoding remembers of the steps before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.model.config import TransformerConfig


class Cache:
    """Keys and values of sequences that are equally far: [layers, rows, G, registers + max_steps, d] each.

    `filled` places hold registers and steps; memory that no step has reached is not touched, and so costs nothing.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rows: int,
        max_steps: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.registers, self.rows, self.filled = config.registers, rows, 0
        shape = (config.layers, rows, config.groups, config.registers + max_steps, config.head_width)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.layers: list[tuple[Tensor, Tensor]] = []
        """What `attend` reads and writes of each layer; empty where the rows have changed."""

    @property
    def positions(self) -> Tensor:
        """Position of the next step of every row, int64 [rows]."""
        return torch.full((self.rows,), self.step, device=self.keys.device)

    def advance(self) -> None:
        """The next step has gone through all layers."""
        self.filled += 1

    @property
    def step(self) -> int:
        """Position of the step that comes next; -R for the first of R registers."""
        return self.filled - self.registers

    def attend(self, layer: int, qk: Tensor, v: Tensor, heads: int) -> Tensor:
        """Queries and keys qk [rows, H + G, d] and values v [rows, G, d] of the next step -> [rows, H, d]; H is heads.

        Writes the keys and values of this step; `advance` follows when all layers are done.
        """
        if not self.layers:
            self.layers = [(k[: self.rows], v[: self.rows]) for k, v in zip(self.keys, self.values, strict=True)]
        (keys, values), place = self.layers[layer], self.filled
        q, k = qk.tensor_split((heads,), dim=1)
        keys[:, :, place], values[:, :, place] = k, v
        # the heads of a group as queries of one attention: nothing is copied where they share keys and values
        q = q.unflatten(1, (keys.shape[1], -1)).to(keys.dtype)
        attended = F.scaled_dot_product_attention(q, keys[:, :, : place + 1], values[:, :, : place + 1])
        return attended.flatten(1, 2).to(v.dtype)

    def keep(self, kept: Tensor) -> Tensor:
        """Drop all rows but these, int64 [k] ascending; returns the order in which they stand from now on, int64 [k].

        Only rows from the end move, into the places of dropped ones; memory is given back when half of it is not used.
        """
        number = len(kept)
        movers = kept[kept >= number]
        order = torch.arange(number, device=kept.device)
        if len(movers):
            free = torch.ones(number, dtype=torch.bool, device=kept.device)
            free[kept[kept < number]] = False
            holes = torch.nonzero(free)[:, 0]
            order[holes] = movers
            for tensor in (self.keys, self.values):
                tensor[:, holes, :, : self.filled] = tensor[:, movers, :, : self.filled]
        if number < self.rows:
            self.rows, self.layers = number, []
        if 2 * number <= self.keys.shape[1]:
            self.keys, self.values, self.layers = self._shrunk(self.keys), self._shrunk(self.values), []
        return order

    def _shrunk(self, tensor: Tensor) -> Tensor:
        smaller = tensor.new_empty(tensor.shape[0], self.rows, *tensor.shape[2:])
        smaller[:, :, :, : self.filled] = tensor[:, : self.rows, :, : self.filled]
        return smaller

    def copied(self, row: int) -> Tensor:
        """Keys and values of what is filled in a row: [2, layers, G, filled, d]."""
        return torch.stack([t[:, row, :, : self.filled] for t in (self.keys, self.values)])

    def begin_with(self, beginnings: Tensor) -> None:
        """Fill the first places of all rows with what `copied` returned for each: [rows, 2, layers, G, places, d]."""
        self.filled = beginnings.shape[4]
        self.keys[:, :, :, : self.filled] = beginnings[:, 0].transpose(0, 1)
        self.values[:, :, :, : self.filled] = beginnings[:, 1].transpose(0, 1)
