"""What is drawn follows the exact probabilities of the model, enumerated over all objects of a tiny one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from foundation.generate.sampler import Sampled
from foundation.generate.sampling_config import SamplingConfig, StreamSampling
from foundation.model.attention import Packing
from foundation.model.loss import slot_logits
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout, Mode

from sequence_models import TAG, drawn, layout_of, model_of

CPU = torch.device("cpu")
each_mode = pytest.mark.parametrize("mode", ["delayed", "interleaved"])


def probabilities(
    layout: Layout, model: Transformer, config: SamplingConfig, sizes: tuple[int, ...], label: int = 0
) -> dict[bytes, float]:
    """Of every object with up to max_points points, from full forward passes and the definitions."""
    every: dict[bytes, float] = {}
    combinations = np.stack(np.meshgrid(*(np.arange(s) for s in sizes), indexing="ij"), -1).reshape(-1, len(sizes))
    objects = [np.zeros((0, len(sizes)), np.int64)]
    for points in range(config.max_points + 1):
        for codes in objects:
            every[codes.tobytes()] = _probability(layout, model, config, codes, label)
        if points < config.max_points:
            objects = [np.concatenate([o, c[None]]) for o in objects for c in combinations]
    return every


def _probability(layout: Layout, model: Transformer, config: SamplingConfig, codes: np.ndarray, label: int) -> float:
    n = len(codes)
    made = layout.sequences(TAG, codes, np.array([0, n]), np.array([label]), np.zeros((1, 0)))
    steps = len(made.ids)
    hidden = model(torch.from_numpy(made.ids), torch.arange(steps), Packing(np.array([0, steps]), CPU))
    p, start, columns = 1.0, layout.prefix_length(TAG), np.arange(len(layout.slots))
    for stream, slot in enumerate(layout.slots[: len(columns)]):
        for point in range(n + (stream == 0)):
            step, _ = layout.place(stream, np.array([point]), len(columns))
            logits = slot_logits(hidden[start + int(step[0]) - 1], model.output_weight, slot).double()
            if slot.ends:
                end = float(_end_probability(logits, config)) if point >= config.min_points else 0.0
                if point == n:
                    p *= 1.0 if n == config.max_points else end
                    continue
                p *= 1.0 - end
            p *= float(_kept(logits[: slot.size], config.stream(f"s{stream}"))[codes[point, stream]])
    return p


def _end_probability(logits: Tensor, config: SamplingConfig) -> Tensor:
    return torch.sigmoid((logits[-1] - logits[:-1].logsumexp(0)) / config.end_temperature)


def _kept(logits: Tensor, how: StreamSampling) -> Tensor:
    """Probabilities of the codes that are left, by the definitions."""
    p = torch.softmax(logits / how.temperature, 0)
    best = p.argsort(descending=True)
    keep = torch.zeros(len(p), dtype=torch.bool)
    keep[best[: how.top_k or len(p)]] = True
    p = torch.where(keep, p, 0.0) / p[keep].sum()
    before = p[best].cumsum(0) - p[best]
    keep[best[before >= how.top_p]] = False
    keep &= p >= how.min_p * p.max()
    return torch.where(keep, p, 0.0) / p[keep].sum()


def excess(found: dict[int, Sampled], p: dict[bytes, float], lengths: bool = False) -> float:
    """Chi-square of the frequencies, of objects or of their lengths, in standard deviations above its expectation.

    Rare ones share a bin.
    """
    names = {name: len(name) if lengths else i for i, name in enumerate(p)}
    counts = np.bincount([names[one.codes.tobytes()] for one in found.values()], minlength=max(names.values()) + 1)
    expected = len(found) * np.bincount(list(names.values()), list(p.values()))
    assert counts[expected == 0].sum() == 0
    common = expected > 8
    bins = [(counts[common], expected[common]), ([counts[~common].sum()], [expected[~common].sum()])]
    c, e = (np.concatenate(parts) for parts in zip(*bins, strict=True))
    c, e = c[e > 0], e[e > 0]
    freedom = len(c) - 1
    return float((((c - e) ** 2 / e).sum() - freedom) / np.sqrt(2 * freedom))


SETTINGS = {
    "plain": SamplingConfig(max_points=2),
    "colder": SamplingConfig(max_points=2, temperature=0.8, end_temperature=1.5, min_points=1),
    "streams": SamplingConfig(max_points=2, top_k=3, streams={"s1": StreamSampling(temperature=1.5, min_p=0.2)}),
}


@each_mode
@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS.keys())
@torch.no_grad()
def test_sampled_frequencies_are_the_exact_probabilities(mode: Mode, config: SamplingConfig) -> None:
    layout = layout_of((4, 3), mode)
    model = model_of(layout, preference=8.0, seed=4)
    p = probabilities(layout, model, config, (4, 3))
    assert sum(p.values()) == pytest.approx(1.0, abs=1e-5) and len(p) == 1 + 12 + 144
    found = drawn(model, layout, config, range(0, 36_000, 3))  # all of one class
    assert abs(excess(found, p)) < 4
    # the test would see temperatures that are a bit off
    streams = {name: s.model_copy(update={"temperature": 1.15 * s.temperature}) for name, s in config.streams.items()}
    wrong = config.model_copy(update={"temperature": 1.15 * config.temperature, "streams": streams})
    assert excess(found, probabilities(layout, model, wrong, (4, 3))) > 8
    wrong = config.model_copy(update={"end_temperature": 1.3 * config.end_temperature})
    assert excess(found, probabilities(layout, model, wrong, (4, 3)), lengths=True) > 8
    assert abs(excess(found, p, lengths=True)) < 4


@torch.no_grad()
def test_greedy_codes_leave_the_number_of_points_as_the_model_has_it() -> None:
    """The lengths follow the model's own probability of ending on the way that the codes take."""
    layout = layout_of((30,))
    model, config = model_of(layout, preference=6.0, seed=8), SamplingConfig(max_points=6, top_k=1)
    found = drawn(model, layout, config, range(0, 12_000, 3))
    longest = max(found.values(), key=lambda one: len(one.codes)).codes
    p = [_probability(layout, model, config, longest[:n], 0) for n in range(7)]
    assert len(longest) == 6 and sum(p) == pytest.approx(1.0, abs=1e-5)
    counts = np.bincount([len(one.codes) for one in found.values()], minlength=7)
    expected = len(found) * np.array(p)
    assert ((counts - expected) ** 2 / expected)[expected > 5].sum() < 25  # 7 bins: chance 3e-4
    assert all(np.array_equal(one.codes, longest[: len(one.codes)]) for one in found.values())


@torch.no_grad()
def test_a_partial_object_has_the_models_distribution_behind_what_is_given() -> None:
    layout, config = layout_of((5, 4)), SamplingConfig(max_points=2)
    model = model_of(layout, preference=6.0, seed=4)
    begun = np.array([[3, 1]])
    p = probabilities(layout, model, config, (5, 4))
    p = {name: own if name.startswith(begun.tobytes()) else 0.0 for name, own in p.items()}
    total = sum(p.values())
    found = drawn(model, layout, config, range(0, 30_000, 3), given=dict.fromkeys(range(0, 30_000, 3), begun))
    assert abs(excess(found, {name: own / total for name, own in p.items()})) < 4
