"""The networks of the CaloChallenge's classifier tests: a plain one, and a 3-D residual network of 18 layers."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 64, 128)
"""Channels of the four stages of the residual network."""


def plain_network(inputs: int, hidden: int = 2048, layers: int = 2) -> nn.Sequential:
    """Inputs -> hidden, `layers` times hidden -> hidden, -> one logit; LeakyReLU of slope 0.01, no normalisation."""
    widths = [inputs] + [hidden] * (layers + 1)
    parts: list[nn.Module] = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b), nn.LeakyReLU()]
    return nn.Sequential(*parts, nn.Linear(hidden, 1))


class ShowerResNet(nn.Module):
    """ResNet-18 in three dimensions (arXiv:1512.03385) on images [layer, alpha, r], with one number beside them.

    Convolution 7x7x7 of stride 2, maximum over 3x3x3 of stride 2, four stages of two basic blocks, mean over the image;
    the incident energy, batch-normalised, joins before the last layer. Alpha is not taken as periodic.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.enter = nn.Conv3d(1, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm3d(WIDTHS[0])
        before = (WIDTHS[0], *WIDTHS[:-1])
        self.stages = nn.Sequential(
            *(
                nn.Sequential(_Block(a, b, 1 if i == 0 else 2), _Block(b, b, 1))
                for i, (a, b) in enumerate(zip(before, WIDTHS, strict=True))
            )
        )
        self.leave = nn.Linear(WIDTHS[-1] + 1, 1)
        self.norm_energy = nn.BatchNorm1d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """x [b, 1 + voxels]: log of the incident energy, then the image -> logits [b, 1]."""
        image = x[:, 1:].reshape(-1, 1, *self.shape)
        h = F.max_pool3d(F.relu(self.norm(self.enter(image))), 3, stride=2, padding=1)
        pooled = self.stages(h).mean((2, 3, 4))
        return self.leave(torch.cat([pooled, self.norm_energy(x[:, :1])], dim=1))


class _Block(nn.Module):
    """Two convolutions 3x3x3 with a shortcut, which is one of 1x1x1 where size or width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm3d(outputs)
        self.second = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm3d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm3d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(h)) + self.shortcut(x))
