"""Matrix products of which no row depends on how many there are, with weights that are laid out for them once.

Libraries choose their kernel by the number of rows, and with it the order in which products are added up. Measured with
MKL and oneDNN: neither the place of a row nor what the other rows hold changes a bit, but the number of rows may. So
products are done in pieces of sizes that were tried on this machine and agree to the last bit; rows are filled up to
these sizes.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.model.transformer import Transformer

SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of rows that are tried."""
ONE_FOR_ALL = 16
"""Rows of every product where no two numbers agree: no slower than one row where weights come from memory."""


class Product(nn.Module):
    """x @ weight.T + bias; on CPUs with weights in the layout of oneDNN, which matters most for few rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.shape, self.dtype, self.packed = (
            tuple(weight.shape),
            weight.dtype,
            _packs(weight.device.type, weight.dtype),
        )
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


@cache
def _packs(device: str, dtype: torch.dtype) -> bool:
    """Whether weights can be laid out beforehand: by operators of torch that have no public name."""
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        x, weight = torch.ones(2, 16, dtype=dtype), torch.ones(32, 16, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        return bool((torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "") == 16.0).all())
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


def with_products(model: Transformer, dtype: torch.dtype) -> Transformer:
    """A copy of the model to sample from, with weights of this type; on a CPU its blocks use products.

    Weights that are the same already are shared, not copied.
    """
    shared = {id(p): p for p in model.parameters() if p.dtype == dtype}
    own = copy.deepcopy(model, shared).to(dtype).eval()
    if own.embedding.weight.device.type == "cpu":
        for parent in list(own.blocks.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Product(child.weight, child.bias))
                elif isinstance(child, nn.Dropout):
                    setattr(parent, name, nn.Identity())
    return own


def steady_sizes(products: Iterable[Product]) -> tuple[int, ...]:
    """Numbers of rows at which every row of all these products has the same bits, ascending; () where any will do."""
    kinds = {(p.shape, p.dtype, p.bias is not None) for p in products if p.weight.device.type == "cpu"}
    if not kinds:
        return ()
    found = set.intersection(*(set(_steady(*kind, torch.get_num_threads())) for kind in kinds))
    return tuple(sorted(found)) or (ONE_FOR_ALL,)


@cache
def _steady(shape: tuple[int, int], dtype: torch.dtype, biased: bool, threads: int) -> tuple[int, ...]:
    """The largest set of sizes that agree, of one product."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=random).to(dtype)
    product = Product(weight, weight[:, 0].clone() if biased else None)
    rows = torch.randn(ONE_FOR_ALL, shape[1], generator=random).to(dtype)
    agreeing: dict[bytes, list[int]] = defaultdict(list)
    for size in SIZES:
        repeated = rows.repeat(max(1, size // ONE_FOR_ALL), 1)
        done = torch.cat([product(part) for part in repeated.split(size)]).unflatten(0, (-1, ONE_FOR_ALL))
        if torch.equal(done, done[:1].expand_as(done)):
            agreeing[done[0].float().numpy().tobytes()].append(size)
    return tuple(sorted(agreeing.values(), key=lambda found: len(found))[-1] if agreeing else [])


def pieces(rows: int, sizes: Sequence[int], most: int = SIZES[-1]) -> list[int]:
    """Sizes of the pieces in which to do a product of so many rows, or a few more; with a choice, none above `most`.

    A piece costs a pass over the weights: a few rows too many are cheaper than another piece.
    """
    if not sizes:
        return [rows]
    usable = [size for size in sizes if size <= most] or [sizes[0]]
    parts = []
    while rows > 0:
        above = next((size for size in usable if size >= rows), usable[-1])
        below = max((size for size in usable if size <= rows), default=usable[0])
        parts.append(above if above >= rows and 3 * above <= 4 * rows else below)
        rows -= parts[-1]
    return parts


def filled_up(x: Tensor, rows: int) -> Tensor:
    """x [n, ...] with zeros behind it up to so many rows."""
    return x if len(x) == rows else torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


def in_pieces(function: Callable[..., Tensor], sizes: Sequence[int], *tensors: Tensor) -> Tensor:
    """function(*tensors), rows after rows."""
    if len(sizes) < 2:
        return function(*tensors)
    return torch.cat([function(*part) for part in zip(*(t.split(list(sizes)) for t in tensors), strict=True)])
