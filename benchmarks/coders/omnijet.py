"""OmniJet-alpha's tokenizer as its own scripts use it, in its own environment: awkward arrays in and out.

Nothing of it is changed. Its functions take the device from the model, so they run on a CPU as they are; only its
script that reads JetClass files (gabbro/data/data_tokenization.py) asks for "cuda", and that one is not used: what it
does around `tokenize_ak_array` (eval mode, no_grad inside) is done here. The weights are the random ones of a new
model; the time does not depend on them.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import awkward as ak
import numpy as np
import torch

from coders.sizes import BLOCKS, CODEBOOK, HEADS, LATENT, LONGEST, WIDTH

warnings.filterwarnings("ignore", category=UserWarning)
from gabbro.models.vqvae import VQVAELightning  # noqa: E402

FIELDS = ("part_pt", "part_etarel", "part_phirel")
# configs/experiment/example_experiment_tokenization.yaml and configs/model/model_vqvae_transformer.yaml
PREPROCESSING = {
    "part_pt": {"multiply_by": 1, "subtract_by": 1.8, "func": "np.log", "inv_func": "np.exp"},
    "part_etarel": {"multiply_by": 3, "larger_than": -0.8, "smaller_than": 0.8},
    "part_phirel": {"multiply_by": 3, "larger_than": -0.8, "smaller_than": 0.8},
}
QUANTISER = {
    "num_codes": CODEBOOK,
    "beta": 0.9,
    "kmeans_init": True,
    "norm": None,
    "cb_norm": None,
    "affine_lr": 2,
    "sync_nu": 1,
    "replace_freq": 100,
    "dim": -1,
}


class OmniJet:
    """Its tokenizer at work on one sample."""

    def __init__(self, home: Path, sample: str, name: str) -> None:
        """name: the batch size, and "plain" where torch's fast path for attention, slower on some CPUs, stays off."""
        with np.load(home / f"{sample}.npz") as found:
            columns, counts = found["points"].T, np.diff(found["offsets"])
        self.jets = ak.Array({field: ak.unflatten(x, counts) for field, x in zip(FIELDS, columns, strict=True)})
        batch, *plain = name.split()
        self.batch, self.fast_path = int(batch), not plain
        torch.manual_seed(1)
        sizes = {"input_dim": 3, "hidden_dim": WIDTH, "latent_dim": LATENT, "num_blocks": BLOCKS, "num_heads": HEADS}
        self.model = VQVAELightning(
            optimizer=None,
            model_type="VQVAENormFormer",
            model_kwargs={**sizes, "alpha": 10, "vq_kwargs": dict(QUANTISER)},
        ).eval()
        self.tokens: ak.Array | None = None

    def encode(self) -> int:
        """Returns how many constituents were coded."""
        torch.backends.mha.set_fastpath_enabled(self.fast_path)
        self.tokens = self.model.tokenize_ak_array(
            self.jets, copy.deepcopy(PREPROCESSING), batch_size=self.batch, pad_length=LONGEST, hide_pbar=True
        )
        return int(ak.count(self.tokens))

    def decode(self) -> int:
        """Returns how many constituents were decoded."""
        torch.backends.mha.set_fastpath_enabled(self.fast_path)
        found = self.model.reconstruct_ak_tokens(
            self.tokens, copy.deepcopy(PREPROCESSING), batch_size=self.batch, pad_length=LONGEST, hide_pbar=True
        )
        return int(ak.count(found[FIELDS[0]]))


OPEN = OmniJet
