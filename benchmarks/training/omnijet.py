"""The public training steps of OmniJet-alpha and OmniJet-alpha_C, in their own environment.

The model is their Lightning module, the loss its `model_step`, the optimiser the one that it configures; what their
trainer does around it is done here (zero_grad, backward, clipping, step), without the time of the trainer itself.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import torch
from torch import Tensor

from training.padded import PaddedBatch, PaddedTraining
from training.sizes import BLOCKS, HEADS, WIDTH

warnings.filterwarnings("ignore", category=UserWarning)
from gabbro.models.backbone import BackboneNextTokenPredictionLightning  # noqa: E402


class OmniJet(PaddedTraining):
    """As configs/experiment/example_experiment_generative.yaml (jets) and ..._backbone_generative.yaml (showers)."""

    def __init__(self, home: Path, sample: str, variant: str, few: int) -> None:
        optimizer, precision = variant.split()
        super().__init__(home, sample, precision, few)
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
        make = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2)
        if optimizer == "ranger":
            from gabbro.utils.optimizer.ranger import Ranger

            make = functools.partial(Ranger, lr=1e-3, weight_decay=1e-2, betas=(0.95, 0.999), eps=1e-5, alpha=0.5, k=6)
        self.model = BackboneNextTokenPredictionLightning(optimizer=make, model_kwargs=sizes)
        self.optimizer = self.model.configure_optimizers()["optimizer"]

    def places(self, longest: int) -> int:
        return self.workload.longest

    def loss(self, batch: PaddedBatch) -> Tensor:
        features = torch.stack([batch.inputs, batch.targets], dim=-1)
        return self.model.model_step({"part_features": features, "part_mask": batch.mask})

    def share(self, batch: PaddedBatch, tokens: int) -> float:
        return 1.0 / len(self.ready)  # its mean is over all places, padding included


OPEN = OmniJet
