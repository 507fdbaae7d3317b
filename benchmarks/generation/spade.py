"""SPADE's public sampler with its cache, in its own environment: `generate_physical_showers`, unchanged.

The architecture is that of its humite/config/model/model.yaml. The number of hits is forced, by an option of its own,
so that its separate network that decides when to stop is not asked: random weights would not stop, and this costs it
nothing. Hits are not decoded to physical values on either side.
"""

from __future__ import annotations

from pathlib import Path

import torch
from humite.core.models.gpt_decoder import TransformerConfig
from humite.core.registries.model_registry import build_model
from training.sizes import BLOCKS, HEADS, WIDTH

from generation.sizes import REGISTERS, SPADE_BINS, SPADE_PREFIX

BETWEEN = 2
"""Ids that a range of SPADE's has beyond its bins: padding, and no hit."""


class Spade:
    """A model of theirs with random weights."""

    def __init__(self, home: Path, sample: str, variant: str) -> None:
        """variant: hits of a shower, and "mixture" or "tokens": how the energy of a hit is drawn."""
        hits, energy = variant.split()
        self.hits, tokens = int(hits), energy == "tokens"
        ids = {name: bins + BETWEEN for name, bins in SPADE_BINS.items()}
        torch.manual_seed(1)
        transformer = TransformerConfig(
            embedding_dim=WIDTH, num_layers=BLOCKS, num_heads=HEADS, mlp_ratio=4.0, max_seq_len=1700
        )
        settings = {
            "axis_mode": "split",
            "per_axis_vocab_sizes": {axis: ids[axis] for axis in ("x", "y", "z")},
            "energy_vocab_size": ids["energy"],
            "use_energy_tokenization": tokens,
            "use_mog_energy": not tokens,
            "mog_components": 4,
            "energy_sample_min": -20.0,
            "energy_sample_max": 20.0,
            "n_registers": REGISTERS,
            "register_condition_incident_energy": False,
            "zero_init_register_incident": False,
        }
        self.model = build_model(transformer=transformer, kwargs=settings).eval()

    def generate(self, size: int) -> tuple[int, int]:
        """A batch of `size` showers."""
        made = self.model.generate_physical_showers(
            size,
            x_shower=torch.full((size, 1), 50.0),
            incident_energy_cond=torch.zeros(size, 1),
            max_len=self.hits + SPADE_PREFIX,
            force_n_hits=torch.full((size,), self.hits),
        )
        return size, int(made["hit_mask"].sum())


OPEN = Spade
