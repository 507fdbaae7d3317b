"""The public generators of OmniJet-alpha and OmniJet-alpha_C, in their own environment: `generate_batch`, unchanged.

Both compute the whole sequence again for each token. OmniJet-alpha's goes on to 128 tokens whatever ends before;
OmniJet-alpha_C's stops when all showers of the batch have ended, after thousands of times more work: here it makes few
and short ones, and its forward pass, which is nearly all of the time, is measured at all lengths.
"""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import torch
from training.sizes import BLOCKS, HEADS, WIDTH, WORKLOADS

from generation.sizes import Lengths

warnings.filterwarnings("ignore", category=UserWarning)
from gabbro.models.backbone import BackboneNextTokenPredictionLightning  # noqa: E402

NEVER = -1e4
"""Bias of an id that is not to be drawn."""


class OmniJet:
    """A model of theirs with random weights that ends as the lengths of the sample say, or never."""

    def __init__(self, home: Path, sample: str, variant: str) -> None:
        """variant: "ends" or "endless"; with "decoded" behind it there is a tokenizer as well."""
        ends, *decoded = variant.split()
        self.workload = WORKLOADS[sample]
        sizes = {
            "embedding_dim": WIDTH,
            "attention_dropout": 0.0,
            "vocab_size": self.workload.codes + 2,
            "max_sequence_len": self.workload.longest,
            "n_GPT_blocks": BLOCKS,
            "n_heads": HEADS,
            "verbosity": False,
            "return_embeddings": True,
        }
        if sample == "showers":
            sizes |= {"stop_token_weight": 1.0, "temperature": 1.0, "stop_token_threshold": 0.0}
        torch.manual_seed(1)
        self.model = BackboneNextTokenPredictionLightning(optimizer=None, model_kwargs=sizes).eval()
        lengths = Lengths.load(home / f"{sample}.json")
        stop = 1 / (1 + lengths.mean) if ends == "ends" else 0.0
        with torch.no_grad():  # all codes alike, and the end as often as it comes
            self.model.head.fc1.weight *= 1e-3
            self.model.head.fc1.bias.zero_()
            bias = math.log(self.workload.codes * stop / (1 - stop)) if stop else NEVER
            self.model.head.fc1.bias[-1] = bias
        self.tokenizer = new_tokenizer() if decoded else None

    def generate(self, size: int) -> tuple[int, int]:
        """A batch of `size` objects."""
        made = self.model.generate_batch(size)
        return size, sum(len(one) - 1 for one in made)

    def constituents(self, size: int) -> tuple[int, int]:
        """The same, decoded as its notebook does it (examples/notebooks/example_generate_jets.ipynb)."""
        import awkward as ak
        from coders.omnijet import FIELDS, PREPROCESSING

        assert self.tokenizer is not None
        codes = self.model.generate_batch(size)[:, 1:] - 1
        codes = codes[ak.num(codes) > 0]
        points = self.tokenizer.reconstruct_ak_tokens(
            codes, copy.deepcopy(PREPROCESSING), batch_size=256, pad_length=128, hide_pbar=True
        )
        return size, int(ak.count(points[FIELDS[0]]))

    def short(self, length: int) -> tuple[int, int]:
        """One object, cut after so many tokens."""
        longest, self.model.module.max_sequence_len = self.model.module.max_sequence_len, length
        made = self.model.generate_batch(1)
        self.model.module.max_sequence_len = longest
        return 1, len(made[0]) - 1

    def forward(self, length: int) -> tuple[int, int]:
        """Its forward pass on one sequence of this length: what its generator does for the next token."""
        with torch.no_grad():
            self.model(torch.ones(1, length, dtype=torch.long))
        return 1, 1

    def forward_of_eight(self, length: int) -> tuple[int, int]:
        """The same on eight, the batch of its example."""
        with torch.no_grad():
            self.model(torch.ones(8, length, dtype=torch.long))
        return 8, 8


def new_tokenizer() -> torch.nn.Module:
    """Their VQ-VAE with random weights; the time does not depend on them."""
    from coders.omnijet import QUANTISER
    from coders.sizes import BLOCKS, HEADS, LATENT, WIDTH
    from gabbro.models.vqvae import VQVAELightning

    sizes = {"input_dim": 3, "hidden_dim": WIDTH, "latent_dim": LATENT, "num_blocks": BLOCKS, "num_heads": HEADS}
    return VQVAELightning(
        optimizer=None,
        model_type="VQVAENormFormer",
        model_kwargs={**sizes, "alpha": 10, "vq_kwargs": dict(QUANTISER)},
    ).eval()


OPEN = OmniJet
