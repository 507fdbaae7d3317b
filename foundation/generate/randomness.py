"""Random numbers that are a function of (seed, object, place), so that nothing else can change them.

Counter-based: nothing is kept from one number to the next (Salmon et al., SC 2011). The function is the finaliser of
SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), on integers, so that every device gives the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 52
"""Of a number. With 53 bits, the largest one times a total could round up to the total."""
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def object_keys(seed: int, indices: Tensor) -> Tensor:
    """What tells the numbers of one object of a campaign from those of another: int64 [n], of its index int64 [n]."""
    start = _mixed(torch.tensor([_signed(seed)], device=indices.device))
    return _mixed(start + indices * _signed(_GOLDEN))


def uniform(keys: Tensor, places: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, for these keys and places, int64 of one shape or such that broadcast."""
    # places are mixed before they meet the key: else two objects could have the same numbers at shifted places
    bits = _mixed(keys ^ _mixed(places * _signed(_GOLDEN)))
    return _shifted(bits, 64 - BITS).double() * 2.0**-BITS


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """x >> by, with zeros coming in."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """The signed number of 64 bits with the same lowest bits."""
    return (number + 2**63) % 2**64 - 2**63
