"""GPT-2 of Hugging Face at OmniJet-alpha's sizes: `generate` with its static cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training.sizes import BLOCKS, HEADS, WIDTH, WORKLOADS
from transformers import GPT2Config, GPT2LMHeadModel, StoppingCriteria, StoppingCriteriaList

from generation.sizes import Lengths


class AtLengths(StoppingCriteria):
    """Each sequence ends at a length of its own, as its interface for ends allows."""

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.shape[1] > self.lengths


class HuggingFace:
    """transformers.GPT2LMHeadModel with random weights."""

    def __init__(self, home: Path, sample: str, variant: str) -> None:
        """variant: fp32 or bf16, the type of all weights."""
        workload = WORKLOADS[sample]
        self.lengths, self.drawn = Lengths.load(home / f"{sample}.json"), 0
        torch.manual_seed(1)
        config = GPT2Config(
            vocab_size=workload.codes + 2, n_positions=workload.longest, n_embd=WIDTH, n_layer=BLOCKS, n_head=HEADS,
            bos_token_id=0, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval().to(torch.bfloat16 if variant == "bf16" else torch.float32)

    def generate(self, size: int) -> tuple[int, int]:
        """A batch of `size` objects."""
        self.drawn += 1
        lengths = torch.from_numpy(self.lengths.draw(size, seed=self.drawn))
        self.model.generate(
            torch.zeros(size, 1, dtype=torch.long),
            attention_mask=torch.ones(size, 1, dtype=torch.long),
            do_sample=True,
            top_k=0,
            max_new_tokens=self.lengths.longest,
            cache_implementation="static",
            stopping_criteria=StoppingCriteriaList([AtLengths(lengths)]),
        )
        return size, int(lengths.sum())


OPEN = HuggingFace
