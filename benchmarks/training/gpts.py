"""GPT-2 of Hugging Face and nanoGPT at OmniJet-alpha's sizes, padded to the longest sequence of a batch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.padded import IGNORED, PaddedBatch, PaddedTraining
from training.sizes import BLOCKS, HEADS, WIDTH


class HuggingFace(PaddedTraining):
    """transformers.GPT2LMHeadModel; its attention is causal, so padding on the right needs no mask."""

    def __init__(self, home: Path, sample: str, precision: str, few: int) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__(home, sample, precision, few)
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = GPT2Config(
            vocab_size=self.workload.codes + 2, n_positions=self.workload.longest, n_embd=WIDTH, n_layer=BLOCKS,
            n_head=HEADS, use_cache=False, **dropout,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).train()
        # as its Trainer does by default
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=1e-2, fused=True)

    def places(self, longest: int) -> int:
        return longest

    def loss(self, batch: PaddedBatch) -> Tensor:
        targets = batch.targets.masked_fill(~batch.mask, IGNORED)
        return self.model(batch.inputs, labels=targets, shift_labels=targets).loss


class NanoGPT(PaddedTraining):
    """karpathy/nanoGPT with biases, as it has them by default."""

    def __init__(self, home: Path, sample: str, precision: str, few: int) -> None:
        from model import GPT, GPTConfig

        super().__init__(home, sample, precision, few)
        sizes = {"n_layer": BLOCKS, "n_head": HEADS, "n_embd": WIDTH, "dropout": 0.0, "bias": True}
        self.model = GPT(GPTConfig(block_size=self.workload.longest, vocab_size=self.workload.codes + 2, **sizes))
        self.optimizer = self.model.configure_optimizers(1e-2, 1e-3, (0.9, 0.95), "cpu")

    def places(self, longest: int) -> int:
        return longest

    def loss(self, batch: PaddedBatch) -> Tensor:
        return self.model(batch.inputs, batch.targets.masked_fill(~batch.mask, -1))[1]


def OPEN(home: Path, sample: str, variant: str, few: int) -> PaddedTraining:
    """variant: "huggingface fp32" or the like."""
    kind, precision = variant.split()
    return (HuggingFace if kind == "huggingface" else NanoGPT)(home, sample, precision, few)
