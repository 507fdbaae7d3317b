"""Two small networks on sets of points, and their training: for questions that only a trained network answers.

Both take ragged sets as they are (a flat array and offsets), depend on no order of the points, and run on one CPU core.
Runs that are to be compared get the same seed: then they start from the same weights and see the same objects in the
same batches. What is left of the run-to-run noise is damped by a learning rate that ends near zero and by an average of
the weights over the last steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation.data.ragged import length_buckets, rows_of
from foundation.evaluate.set_inputs import PointSets

Indices = NDArray[np.int64]
Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs [b, n] and targets [b, ...] -> the loss of each object, [b]."""

POINTS_PER_PASS = 16_384
"""Of prediction: enough to fill a core, few enough for its cache."""


class DeepSets(nn.Module):
    """A network per point, sums over the points, a network per set (particle flow network, arXiv:1810.05165).

    The set's network gets the mean over the points beside their sum, which is counted in sets of `typical` points.
    """

    def __init__(self, inputs: int, outputs: int, typical: float, width: int = 128) -> None:
        super().__init__()
        self.typical = typical
        self.points = nn.Sequential(
            *(nn.Linear(inputs, width), nn.ReLU(inplace=True)),
            *(nn.Linear(width, width), nn.ReLU(inplace=True)),
            *(nn.Linear(width, width), nn.ReLU(inplace=True)),
        )
        self.set = nn.Sequential(
            *(nn.Linear(2 * width, width), nn.ReLU(inplace=True)),
            *(nn.Linear(width, width), nn.ReLU(inplace=True)),
            nn.Linear(width, outputs),
        )

    def forward(self, x: Tensor, offsets: Indices) -> Tensor:
        """Points x [N, inputs] of sets that start and end at offsets [B + 1] -> [B, outputs]."""
        counts = torch.from_numpy(np.diff(offsets))
        total = torch.segment_reduce(self.points(x), "sum", lengths=counts, unsafe=True)
        mean = total / counts.clamp(min=1)[:, None]
        return self.set(torch.cat([total / self.typical, mean], dim=1))


class SetTransformer(nn.Module):
    """Pre-norm transformer among the points of a set, without positions; its output is pooled by mean and maximum."""

    def __init__(
        self, inputs: int, outputs: int, typical: float, width: int = 64, heads: int = 4, blocks: int = 2
    ) -> None:
        super().__init__()
        self.typical = typical
        self.enter = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(inplace=True), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.set = nn.Sequential(
            nn.Linear(2 * width + 1, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, outputs)
        )

    def forward(self, x: Tensor, offsets: Indices) -> Tensor:
        """Points x [N, inputs] of sets that start and end at offsets [B + 1] -> [B, outputs]."""
        sides = _SideBySide(offsets)
        h = self.enter(x[sides.rows])
        for block in self.blocks:
            h = block(h, sides)
        # attention shows shares, never how many there are
        count = torch.from_numpy(np.diff(offsets) / self.typical)[:, None].to(h.dtype)
        return self.set(torch.cat([sides.pooled(self.norm(h)), count], dim=1))


class _SideBySide:
    """Sets of similar length side by side, so that attention is a few dense products: padded by 15 % at most.

    All layers work in this order; a padded place repeats a point of its set and is never looked at.
    """

    def __init__(self, offsets: Indices) -> None:
        buckets = length_buckets(offsets)
        self.sets = len(offsets) - 1
        self.shapes = [bucket.rows.shape for bucket in buckets]
        self.sizes = [bucket.rows.size for bucket in buckets]
        self.valid = [torch.from_numpy(bucket.valid) for bucket in buckets]
        self.unseen = [torch.where(valid, 0.0, -torch.inf)[:, None, None, :] for valid in self.valid]
        empty = np.zeros(0, np.int64)
        self.rows = torch.from_numpy(np.concatenate([empty, *(bucket.rows.ravel() for bucket in buckets)]))
        # a set without points starts where the next one does, so the last one that starts at a row is its owner
        owners = [np.searchsorted(offsets, bucket.rows[:, 0], side="right") - 1 for bucket in buckets]
        self.members = torch.from_numpy(np.concatenate([empty, *owners]))

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """Queries, keys and values [P, 3 * width] -> what each point sees of its set, [P, width]."""
        seen = [qkv.new_zeros(0, qkv.shape[1] // 3)]
        for (b, length), unseen, part in zip(self.shapes, self.unseen, qkv.split(self.sizes), strict=True):
            q, k, v = part.view(b, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=unseen)
            seen.append(y.transpose(1, 2).reshape(b * length, -1))
        return torch.cat(seen)

    def pooled(self, h: Tensor) -> Tensor:
        """Mean and maximum over the points of each set: h [P, width] -> [B, 2 * width], zero for empty sets."""
        parts = [h.new_zeros(0, 2 * h.shape[1])]
        for (b, length), valid, part in zip(self.shapes, self.valid, h.split(self.sizes), strict=True):
            points, real = part.view(b, length, -1), valid[:, :, None]
            mean = (points * real).sum(1) / real.sum(1)
            parts.append(torch.cat([mean, points.masked_fill(~real, -torch.inf).amax(1)], dim=1))
        return h.new_zeros(self.sets, 2 * h.shape[1]).index_copy(0, self.members, torch.cat(parts))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, sides: _SideBySide) -> Tensor:
        """x [P, width] -> [P, width]."""
        x = x + self.mix(sides.attend(self.qkv(self.norm_attention(x)), self.heads))
        return x + self.down(F.relu_(self.up(self.norm(x))))


NETWORKS: dict[str, type[DeepSets] | type[SetTransformer]] = {"deep_sets": DeepSets, "transformer": SetTransformer}


@dataclass(frozen=True)
class Fitting:
    """How a network is trained: AdamW, one cycle of the learning rate, an exponential average of the weights."""

    epochs: int = 5
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    rise: float = 0.1
    """Share of the steps in which the learning rate rises; it falls in the rest, to a thousandth of the peak."""
    average: float = 0.05
    """The average of the weights reaches back over this share of the steps."""
    batch_points: int = 8192
    """Points per batch; fewer where this would make less than `least_batches` of an epoch."""
    least_batches: int = 50

    def batches(self, counts: Indices, seed: int) -> list[Indices]:
        """Objects of each step: all of them in every epoch, in a new order, in pieces of about equally many points.

        counts: points per object [B]. For runs that are to be compared, of one and the same sample.
        """
        rng = np.random.default_rng(seed)
        points = min(self.batch_points, max(1, int(counts.sum()) // self.least_batches))
        steps: list[Indices] = []
        for _ in range(self.epochs):
            order = rng.permutation(len(counts))
            piece = (np.cumsum(counts[order]) - 1) // points
            steps += np.split(order, np.flatnonzero(np.diff(piece)) + 1)
        return steps


def fit(
    kind: str,
    sets: PointSets,
    targets: NDArray[Any],
    outputs: int,
    loss: Loss,
    batches: Sequence[Indices],
    seed: int,
    fitting: Fitting,
    on_step: Callable[[int, float], None] = lambda step, value: None,
) -> nn.Module:
    """Train a network of this kind ("deep_sets" or "transformer") with `outputs` outputs on B sets.

    targets: one per set, [B, ...]; batches: from `Fitting.batches`; on_step: gets the step and the loss per object.
    Equal arguments give equal weights on one machine with one number of threads.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        typical = max(1.0, len(sets.values) / max(1, len(sets)))
        network = NETWORKS[kind](sets.values.shape[1], outputs, typical)
    wanted = torch.from_numpy(targets)
    weights: list[Tensor] = list(network.parameters())
    averages = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=fitting.learning_rate, weight_decay=fitting.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, fitting.learning_rate, len(batches) + 1, pct_start=fitting.rise, final_div_factor=40
    )
    # batches differ in objects, objects do not differ in weight
    typical_objects = float(np.mean([len(batch) for batch in batches]))
    share = 1 / max(1.0, fitting.average * len(batches))
    for step, batch in enumerate(batches):
        rows, offsets = rows_of(sets.offsets, batch)
        losses = loss(network(torch.from_numpy(sets.values[rows]), offsets), wanted[batch])
        optimizer.zero_grad()
        (losses.sum() / typical_objects).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, max(share, 1 / (step + 1)))
        on_step(step, float(losses.detach().mean()))
    with torch.no_grad():
        for weight, average in zip(weights, averages, strict=True):
            weight.copy_(average)
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, sets: PointSets) -> NDArray[np.float32]:
    """Outputs of a trained network for B sets, float32 [B, outputs]; sets of similar length go together."""
    order = np.argsort(np.diff(sets.offsets), kind="stable")
    piece = np.cumsum(np.diff(sets.offsets)[order]) // POINTS_PER_PASS
    parts = []
    for chosen in np.split(order, np.flatnonzero(np.diff(piece)) + 1):
        rows, offsets = rows_of(sets.offsets, chosen)
        parts.append(network(torch.from_numpy(sets.values[rows]), offsets))
    outputs = torch.cat(parts).numpy()
    unsorted = np.empty_like(outputs)
    unsorted[order] = outputs
    return unsorted
