"""Named architectures: a ladder of sizes, and published backbones.

A size is named after the parameters of its blocks, without embeddings: how large those are depends on the vocabulary.
Up to 350m all heads have keys and values of their own; above, groups of four (arXiv:2305.13245) keep the cache of the
sampler small. Heads are 128 wide from 124m on, which attention kernels of GPUs like best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Size = Literal["1m", "6m", "25m", "124m", "350m", "1b", "3b", "7b", "omnijet_alpha"]

SIZES: Mapping[str, Mapping[str, Any]] = {
    "1m": {"width": 128, "layers": 5, "heads": 4},
    "6m": {"width": 256, "layers": 8, "heads": 8},
    "25m": {"width": 512, "layers": 8, "heads": 8},
    "124m": {"width": 1024, "layers": 10, "heads": 8},
    "350m": {"width": 1280, "layers": 18, "heads": 10},
    "1b": {"width": 2048, "layers": 16, "heads": 16, "kv_heads": 4, "mlp": 8192},
    "3b": {"width": 3072, "layers": 30, "heads": 24, "kv_heads": 6, "mlp": 8192},
    "7b": {"width": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "mlp": 14336},
    # arXiv:2403.05618 and its public code; OmniJet-alpha_C (arXiv:2501.05534) differs in the number of ids only
    "omnijet_alpha": {
        "width": 256,
        "layers": 3,
        "heads": 8,
        "mlp": 1024,
        "norm": "layer",
        "norm_place": "post",
        "positions": "none",
        "activation": "relu",
        "bias": True,
        "qkv_bias": False,
        "tied": False,
        "output_bias": True,
    },
}
"""Settings of TransformerConfig that a name stands for."""
PARAMETERS: Mapping[str, float] = {
    "1m": 1e6,
    "6m": 6e6,
    "25m": 25e6,
    "124m": 124e6,
    "350m": 350e6,
    "1b": 1e9,
    "3b": 3e9,
    "7b": 7e9,
}
"""Parameters of the blocks that the names of the ladder promise, within a tenth."""
