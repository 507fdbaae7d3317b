"""Our training step as a recipe runs it: stream layout, transformer, loss and engine of the platform."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foundation.data.cards import load_card
from foundation.data.ragged import to_offsets
from foundation.model.config import TransformerConfig
from foundation.model.loss import local_targets, slot_logits
from foundation.model.transformer import Transformer, count_parameters
from foundation.stream.batches import Batch, lay_out
from foundation.stream.row_stream import Rows
from foundation.tasks.base import TensorBatch, to_device
from foundation.tasks.generation import Generation
from foundation.tokens.layout import Layout, Slot
from foundation.tokens.tokenizer import Stream
from foundation.tokens.vocabulary import ANY, EOS, NONE, Addition, Vocabulary
from foundation.train.config import TrainConfig
from foundation.train.engine import make_engine
from training.sizes import BLOCKS, HEADS, WIDTH, WORKLOADS

CARDS = {"jets": "pythia_jetclass", "showers": "gflash_ild"}
ARCHITECTURES = {
    "published": TransformerConfig(size="omnijet_alpha"),
    "default": TransformerConfig(width=WIDTH, layers=BLOCKS, heads=HEADS),
}


@dataclass(frozen=True)
class Variant:
    """A way to train; `shared`: the vocabulary has the codes of jets and of showers."""

    architecture: str = "published"
    precision: str = "fp32"
    optimizer: str = "adamw"
    shared: bool = False
    ragged: bool = True
    restricted: bool = True
    fused: bool = True
    compiled: bool = False


VARIANTS = {
    "fp32": Variant(),
    "bf16": Variant(precision="bf16"),
    "ranger fp32": Variant(optimizer="ranger"),
    "ranger bf16": Variant(optimizer="ranger", precision="bf16"),
    "default fp32": Variant("default"),
    "default bf16": Variant("default", "bf16"),
}
BEST = Variant(precision="bf16", shared=True)
WITHOUT = {
    "all": BEST,
    "padded": replace(BEST, ragged=False),
    "softmax over all ids": replace(BEST, restricted=False),
    "loss not fused": replace(BEST, fused=False),
    "fp32": replace(BEST, precision="fp32"),
    "compiled": replace(BEST, compiled=True),
    "none": replace(BEST, precision="fp32", ragged=False, restricted=False, fused=False),
}
"""What is switched off alone, but for `compiled`, which is switched on, and `none`, which has nothing switched on."""


class LossOfAllLogits(Generation):
    """The same loss as everyone writes it."""

    def forward(self, batch: TensorBatch) -> Tensor:
        hidden = self.backbone(batch.ids, batch.positions, batch.packing)
        weight, bias = self.backbone.output_weight, self.backbone.output_bias
        total = hidden.new_zeros((), dtype=torch.float32)
        for number, slot in enumerate(self.slots):
            step, column = torch.nonzero(batch.slots == number, as_tuple=True)
            if len(step):
                logits = slot_logits(hidden[step], weight, slot, bias)
                right = local_targets(batch.targets[step, column], slot)
                total = total + F.cross_entropy(logits.float(), right, reduction="sum")
        return total


def vocabulary_of(samples: tuple[str, ...]) -> Vocabulary:
    """One stream of codes for each."""
    additions = []
    for sample in samples:
        card = load_card(CARDS[sample]).model_copy(update={"conditions": ()})
        additions.append(Addition(card, sample, (Stream("code", WORKLOADS[sample].codes),), "0" * 64))
    return Vocabulary.build(additions)


def batch_of(layout: Layout, tag: str, codes: NDArray[np.integer], counts: NDArray[np.int64]) -> Batch:
    """One batch of sequences whose class is not given."""
    unknown = np.full(len(counts), -1)
    rows = Rows(
        dataset=0, codes=codes[:, None], gap=0, points=counts, labels=unknown, shown=unknown,
        conditions=np.zeros((len(counts), 0), np.float32), ids=np.arange(len(counts), dtype=np.uint64),
    )  # fmt: skip
    return lay_out(layout, [tag], [rows])


def padded(batch: Batch) -> Batch:
    """Every sequence as long as the longest one; in the padding eos is predicted, as if it were real."""
    lengths = np.diff(batch.offsets)
    longest = int(lengths.max())
    place = batch.positions + np.repeat(np.arange(len(lengths)) * longest, lengths)
    size = len(lengths) * longest
    ids, targets, slots = (np.full((size, 1), value) for value in (NONE, EOS, batch.slots.max()))
    for wide, narrow in ((ids, batch.ids), (targets, batch.targets), (slots, batch.slots)):
        wide[place] = narrow
    positions = np.tile(np.arange(longest), len(lengths))
    return replace(batch, ids=ids, targets=targets, slots=slots, positions=positions,
                   offsets=to_offsets(np.full(len(lengths), longest)))  # fmt: skip


class Ours:
    """Our step on a sample of a file."""

    def __init__(self, home: Path, sample: str, variant: Variant, few: int) -> None:
        with np.load(home / f"{sample}.npz") as found:
            self.codes, self.offsets, self.batch = found["codes"], found["offsets"], int(found["batch"])
        self.variant, self.tag = variant, load_card(CARDS[sample]).tag
        self.layout = Layout(vocabulary_of(tuple(WORKLOADS) if variant.shared else (sample,)))
        # only the logits of a whole batch need so much memory that it has to be cut
        self.few = self.batch if variant.fused else min(few, self.batch)
        self.task = new_task(ARCHITECTURES[variant.architecture], self.layout, variant)
        config = TrainConfig.model_validate(
            {"rows_per_step": 1, "precision": variant.precision, "optimizer": variant.optimizer,
             "compile": variant.compiled, "clip": WORKLOADS[sample].clip}
        )  # fmt: skip
        self.engine = make_engine(self.task, config)

    def prepare(self, number: int) -> None:
        """Lay out a batch as the stream does, in parts of `few` sequences."""
        batches = len(self.offsets[1:]) // self.batch
        first = (number % batches) * self.batch
        self.ready, self.targets, self.tokens = [], 0, 0
        for start in range(first, first + self.batch, self.few):
            offsets = self.offsets[start : min(start + self.few, first + self.batch) + 1]
            counts = np.diff(offsets)
            batch = batch_of(self.layout, self.tag, self.codes[offsets[0] : offsets[-1]], counts)
            self.tokens += int((counts + 1).sum())
            batch = batch if self.variant.ragged else padded(batch)
            if not self.variant.restricted:
                batch = replace(batch, slots=np.minimum(batch.slots, 0))
            self.ready.append(batch)
            self.targets += Generation.count(batch)

    def step(self) -> int:
        """Batches to tensors, forward, backward, clipping, update. Returns the number of real tokens."""
        device = self.engine.device
        result = self.engine.step([to_device(batch, device) for batch in self.ready], self.targets)
        assert not result.skipped, result.reason
        return self.tokens


def new_task(config: TransformerConfig, layout: Layout, variant: Variant = BEST) -> Generation:
    """An untrained generator."""
    torch.manual_seed(1)
    backbone = Transformer(config, layout.vocabulary.size)
    task = (Generation if variant.fused else LossOfAllLogits)(backbone, layout)
    if not variant.restricted:
        task.slots = [Slot(ANY, layout.vocabulary.size - ANY, ends=True)]
    return task


class Scaled:
    """Our step on `tokens` tokens in sequences of one length, for a vocabulary and a width."""

    def __init__(self, length: int, codes: int, width: int, precision: str, tokens: int) -> None:
        card = load_card(CARDS["jets"]).model_copy(update={"conditions": ()})
        layout = Layout(Vocabulary.build([Addition(card, "codes", (Stream("code", codes),), "0" * 64)]))
        config = TransformerConfig(width=width, layers=BLOCKS, heads=max(1, width // 32))
        self.task = new_task(config, layout)
        self.engine = make_engine(self.task, TrainConfig.model_validate({"rows_per_step": 1, "precision": precision}))
        counts = np.full(max(1, tokens // length), length - 1)
        drawn = np.random.default_rng(1).integers(0, codes, int(counts.sum()))
        self.batch, self.tokens = batch_of(layout, card.tag, drawn, counts), int((counts + 1).sum())

    def prepare(self, number: int) -> None:
        """Nothing: all batches are alike."""

    def step(self) -> int:
        """As that of Ours."""
        self.engine.step([to_device(self.batch, self.engine.device)], Generation.count(self.batch))
        return self.tokens


def OPEN(home: Path, sample: str, variant: str, few: int) -> Ours | Scaled:
    """variant: of VARIANTS, of WITHOUT after "without ", or for the sample "scaled" length, ids, width, precision."""
    if sample == "scaled":
        length, codes, width, precision, tokens = variant.split()
        return Scaled(int(length), int(codes), int(width), precision, int(tokens))
    found = WITHOUT[variant.removeprefix("without ")] if variant.startswith("without ") else VARIANTS[variant]
    return Ours(home, sample, found, few)


def block_parameters(architecture: str) -> int:
    """Parameters of all blocks."""
    return count_parameters(Transformer(ARCHITECTURES[architecture], ANY + 1).blocks)
