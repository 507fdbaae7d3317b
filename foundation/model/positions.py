"""How a step knows where in its sequence it stands."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.errors import DataError
from foundation.model.config import TransformerConfig


class Positions(nn.Module):
    """No positions: order shows only in what the causal mask lets a step see."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def require(self, steps: int) -> None:
        """Raise DataError where sequences of so many steps are too long."""

    def placed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Embeddings x [T, D] of the steps at `positions` [T], with what says so."""
        return x

    def turn(self, positions: Tensor) -> Tensor | None:
        """Phases of queries and keys, as `rotate` takes them; None where these are not turned."""
        return None


class Rotary(Positions):
    """Queries and keys turn with the position, so that attention sees distances (arXiv:2104.09864)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.pairs, self.base, self.before = config.head_width // 2, config.rope_base, config.registers
        # no buffer, which would lose digits when a model is converted to half precision
        self.table = torch.empty(0, device="cpu")

    def require(self, steps: int) -> None:
        if len(self.table) < self.before + steps:
            with torch.inference_mode(False):  # training may follow sampling
                self.table = self._turns(torch.arange(-self.before, 2 * steps, device=self.table.device))

    def turn(self, positions: Tensor) -> Tensor:
        """Cosine and sine [T, 1, d/2, 2] at positions that `require` has been asked for; registers are before 0."""
        if self.table.device != positions.device:
            with torch.inference_mode(False):
                self.table = self.table.to(positions.device)
        return self.table[positions + self.before]

    def _turns(self, positions: Tensor) -> Tensor:
        frequency = self.base ** (-torch.arange(self.pairs, device=positions.device, dtype=torch.float32) / self.pairs)
        angle = positions[:, None].float() * frequency
        return torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None]


class Learned(Positions):
    """A learned vector per position."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.vectors = nn.Embedding(config.max_steps, config.width)

    def require(self, steps: int) -> None:
        if steps > self.vectors.num_embeddings:
            raise DataError(
                f"a sequence has {steps} steps, but the model has learned positions for {self.vectors.num_embeddings}: "
                "raise max_steps of the model, or use positions: rope"
            )

    def placed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.vectors(positions)


POSITIONS: dict[str, type[Positions]] = {"rope": Rotary, "learned": Learned, "none": Positions}


def rotate(x: Tensor, turn: Tensor | None) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of x [T, heads, d], each as one complex number."""
    if turn is None:
        return x
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which has no complex numbers, and needs none for one pass over the memory
        (cosine, sine), (real, imaginary) = turn.unbind(-1), pairs.unbind(-1)
        turned = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn))
    return turned.flatten(-2).to(x.dtype)
