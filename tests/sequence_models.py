"""Vocabularies of one dataset with streams of given sizes, and small models of them that have preferences."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from foundation.generate.sampler import Request, Sampled, Sampler
from foundation.generate.sampling_config import SamplingConfig
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout, Mode
from foundation.tokens.vocabulary import DatasetEntry, Range, Vocabulary

TAG = "toy"


def layout_of(sizes: tuple[int, ...], mode: Mode = "delayed", fixed: int | None = None, classes: int = 3) -> Layout:
    """Layout of a dataset with streams s0, s1, ... of these sizes."""
    names = [f"class.{TAG}", *(f"{TAG}.s{k}" for k in range(len(sizes)))]
    ranges = [Range("special", 0, 4), Range(f"tag.{TAG}", 4, 1)]
    for name, size in zip(names, (classes, *sizes), strict=True):
        ranges.append(Range(name, ranges[-1].stop, size))
    streams = tuple(f"s{k}" for k in range(len(sizes)))
    labels = tuple(f"class{c}" for c in range(classes))
    return Layout(Vocabulary(ranges, [DatasetEntry(TAG, labels, (), streams, "0" * 64, TAG, fixed)]), mode)


def model_of(layout: Layout, options: dict | None = None, seed: int = 0, preference: float = 15.0) -> Transformer:
    """A small random model; the larger its preference, the further from uniform."""
    torch.manual_seed(seed)
    config = TransformerConfig(**({"width": 32, "layers": 2, "heads": 4, "kv_heads": 2} | (options or {})))
    model = Transformer(config, layout.vocabulary.size).eval()
    with torch.no_grad():
        for weight in (model.embedding.weight, *([] if model.output is None else [model.output])):
            weight.mul_(preference)
    return model


def prefixes(layout: Layout, labels: Iterable[int]) -> np.ndarray:
    """Prefixes [n, P] of objects of these classes."""
    own = np.array(list(labels), np.int64)
    return layout.prefix(TAG, own, np.zeros((len(own), 0)))


def drawn(
    model: Transformer,
    layout: Layout,
    config: SamplingConfig,
    indices: Iterable[int],
    *,
    given: dict[int, np.ndarray] | None = None,
    seed: int = 5,
    slots: int = 0,
    dtype: torch.dtype | None = None,
) -> dict[int, Sampled]:
    """Objects by their index; object i has class i % 3."""
    table = prefixes(layout, range(3))
    sampler = Sampler(model, layout, TAG, seed=seed, config=config, slots=slots, dtype=dtype)
    requests = (Request(i, table[i % 3], (given or {}).get(i)) for i in indices)
    return {one.index: one for one in sampler.objects(requests)}


def same(a: dict[int, Sampled], b: dict[int, Sampled]) -> bool:
    """Whether the same objects were drawn, to the last code."""
    return a.keys() == b.keys() and all(np.array_equal(a[i].codes, b[i].codes) and a[i].cut == b[i].cut for i in a)
