"""Our sampler on models of the published sizes whose weights are random, but for the end, which comes as in data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from coders.ours import SAME_SIZES, folder_of
from training.ours import ARCHITECTURES, CARDS, vocabulary_of
from training.sizes import BLOCKS, HEADS, WIDTH

from foundation.data.cards import load_card
from foundation.data.ragged import to_offsets
from foundation.generate.sampler import Request, Sampled, Sampler
from foundation.generate.sampling_config import SamplingConfig
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer, count_parameters
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Codes, Stream
from foundation.tokens.vocabulary import EOS, Addition, Vocabulary
from generation.sizes import REGISTERS, SPADE_BINS, Cost, Lengths, step_cost

NEVER = -1e4
"""Bias of an id that is not to be drawn."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BYTES = {"fp32": 4, "bf16": 2}
SPADE_LIKE = TransformerConfig(
    width=WIDTH, layers=BLOCKS, heads=HEADS, kv_heads=1, mlp=4 * WIDTH, norm="layer", registers=REGISTERS, bias=True,
    qkv_bias=False, tied=False, output_bias=True,
)  # fmt: skip


def architecture_of(sample: str) -> TransformerConfig:
    """That of the sample's peer."""
    return SPADE_LIKE if sample == "hits" else ARCHITECTURES["published"]


def layout_of(sample: str) -> tuple[Layout, str]:
    """The layout of sequences, and the tag of the dataset."""
    if sample != "hits":
        return Layout(vocabulary_of((sample,))), load_card(CARDS[sample]).tag
    card = load_card(CARDS["showers"])
    streams = tuple(Stream(name, bins) for name, bins in SPADE_BINS.items())
    return Layout(Vocabulary.build([Addition(card, "bins", streams, "0" * 64)])), card.tag


def model_of(sample: str, layout: Layout, tag: str, stop: float) -> Transformer:
    """Random weights that give all codes nearly the same probability, and the end the probability `stop`."""
    torch.manual_seed(1)
    model = Transformer(architecture_of(sample), layout.vocabulary.size).eval()
    codes = layout.slots[layout.first_slot[tag]].size
    assert model.output is not None and model.output_bias is not None
    with torch.no_grad():
        model.output *= 1e-3
        model.output_bias[EOS] = math.log(codes * stop / (1 - stop)) if stop else NEVER
    return model


class Ours:
    """One sampler, which keeps its slots between calls, as a campaign does."""

    def __init__(self, home: Path, sample: str, variant: str, device: str = "cpu") -> None:
        """variant: type of the numbers, slots, and the points of every object or "ends": as in data."""
        precision, slots, points, *decoded = variant.split()
        law = Lengths.load(home / f"{sample}.json") if points == "ends" else Lengths(0, 0.0, int(points))
        self.layout, self.tag = layout_of(sample)
        model = model_of(sample, self.layout, self.tag, law.stop).to(device)
        config = SamplingConfig(max_points=law.longest, min_points=law.shortest)
        self.sampler = Sampler(
            model, self.layout, self.tag, seed=1, config=config, slots=int(slots), dtype=TYPES[precision]
        )
        nothing = np.full((1, len(self.layout.entry(self.tag).conditions)), np.nan, np.float32)
        self.prefix = self.layout.prefix(self.tag, np.full(1, -1), nothing)[0]
        self.tokenizer = load_tokenizer(home / folder_of(SAME_SIZES)) if decoded else None
        self.asked = 0

    def generate(self, size: int) -> tuple[int, int]:
        """`size` objects."""
        made = list(self._objects(size))
        return len(made), sum(len(one.codes) for one in made)

    def constituents(self, size: int) -> tuple[int, int]:
        """The same, and their constituents in physical units."""
        assert self.tokenizer is not None
        made = [one.codes for one in self._objects(size)]
        codes = Codes(np.concatenate(made), to_offsets(np.array([len(one) for one in made])))
        uniform = np.random.default_rng(1).random(codes.values.shape)
        return len(made), len(self.tokenizer.decode(codes, uniform, {}).values)

    def _objects(self, size: int) -> Iterator[Sampled]:
        first, self.asked = self.asked, self.asked + size
        return self.sampler.objects(Request(index, self.prefix) for index in range(first, first + size))


def cost_of(sample: str, precision: str, rows: int, context: float) -> Cost:
    """Of one step of so many sequences; what stands before the points counts as context."""
    layout, tag = layout_of(sample)
    config = architecture_of(sample)
    first = layout.first_slot[tag]
    legal = [slot.width for slot in layout.slots[first : first + len(layout.entry(tag).streams)]]
    before = layout.prefix_length(tag) + config.registers
    blocks = count_parameters(Transformer(config, layout.vocabulary.size).blocks)
    kv_width = config.groups * config.head_width
    return step_cost(rows, context + before, config.width, config.layers, kv_width, blocks, legal, BYTES[precision])


def cache_bytes(sample: str, precision: str, points: int) -> float:
    """Of the cache of one sequence."""
    config = architecture_of(sample)
    return 2.0 * config.layers * config.groups * config.head_width * (points + 8) * BYTES[precision]


OPEN = Ours
