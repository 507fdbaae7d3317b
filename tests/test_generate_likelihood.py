"""The likelihood of objects: equal to the naive sum, normalised over all objects, and that of what is sampled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.generate.likelihood import class_log_likelihoods, log_likelihood, log_probabilities, over_classes
from foundation.generate.sampler import SamplingConfig, sample
from foundation.model.attention import Packing
from foundation.model.config import TransformerConfig
from foundation.model.loss import slot_logits
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Codes
from foundation.tokens.vocabulary import EOS, DatasetEntry, Range, Vocabulary

from conftest import ToyTokens

CONFIG = TransformerConfig(width=32, layers=2, heads=4, kv_heads=2)
ANY = np.array([-1])
NOTHING = np.zeros((1, 0))


def model(vocabulary: Vocabulary, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> Transformer:
    """A random one; spread: how much probabilities differ from uniform ones."""
    torch.manual_seed(3)
    made = Transformer(CONFIG, vocabulary.size)
    with torch.no_grad():
        made.embedding.weight.mul_(20 * spread)
    return made.to(dtype).eval()


def tiny(streams: int, fixed: int | None = None) -> Vocabulary:
    """A dataset `t` of two classes whose points have 3 x 2 x ... codes."""
    sizes = [3, 2, 2][:streams]
    ranges, start = [Range("special", 0, 4), Range("tag.t", 4, 1), Range("class.t", 5, 2)], 7
    for k, size in enumerate(sizes):
        ranges.append(Range(f"t.s{k}", start, size))
        start += size
    entry = DatasetEntry("t", ("a", "b"), (), tuple(f"s{k}" for k in range(streams)), "0" * 64, "t", fixed)
    return Vocabulary(ranges, [entry])


def all_objects(sizes: list[int], points: int) -> Iterator[np.ndarray]:
    """The codes [points, K] of every object with so many points."""
    for codes in itertools.product(*(range(size) for size in sizes * points)):
        yield np.array(codes, np.int64).reshape(points, len(sizes))


def together(objects: list[np.ndarray], streams: int) -> Codes:
    counts = np.array([len(o) for o in objects])
    return Codes(np.concatenate([np.zeros((0, streams), np.int64), *objects]), to_offsets(counts))


@torch.no_grad()
def naive(m: Transformer, layout: Layout, tag: str, codes: Codes, labels: np.ndarray, conditions: np.ndarray) -> list:
    """One object at a time, one place at a time."""
    made = layout.sequences(tag, codes.values, codes.offsets, labels, conditions)
    totals = []
    for a, b in itertools.pairwise(made.offsets):
        ids, steps = torch.from_numpy(made.ids[a:b]), int(b - a)
        hidden = m(ids, torch.arange(steps), Packing(np.array([0, steps]), ids.device))
        total = 0.0
        for step, column in np.argwhere(made.slots[a:b] >= 0):
            slot = layout.slots[made.slots[a + step, column]]
            logits = slot_logits(hidden[step - 1], m.output_weight, slot).double()
            place = slot.size if ids[step, column] == EOS else int(ids[step, column]) - slot.start
            total += float(logits.log_softmax(-1)[place])
        totals.append(total)
    return totals


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
@pytest.mark.parametrize("tag", ["toy_jets", "toy_showers"])
def test_it_is_the_sum_of_the_log_probabilities_of_all_places(toy: ToyTokens, tag: str, mode: str) -> None:
    clouds, layout = toy.clouds[tag].select(slice(0, 25)), toy.layout(mode)
    codes = toy.tokenizers[tag].encode(clouds)
    for dtype, precision in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        m = model(toy.vocabulary, dtype)
        expected = naive(m, layout, tag, codes, clouds.labels, clouds.conditions)
        for batch_steps in (1, 100, 10_000):
            found = log_likelihood(m, layout, tag, codes, clouds.labels, clouds.conditions, batch_steps=batch_steps)
            np.testing.assert_allclose(found, expected, rtol=precision)
    parts = log_probabilities(m, layout, tag, codes, clouds.labels, clouds.conditions)
    assert parts.codes.shape == codes.values.shape and parts.streams.shape == (25, codes.values.shape[1])
    np.testing.assert_allclose(parts.counts + parts.streams.sum(1), expected, rtol=1e-6)
    assert (parts.codes < 0).all() and (parts.goes_on < 0).all() and (parts.ends < 0).all()


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_the_probabilities_of_all_objects_add_up_to_one(streams: int, mode: str) -> None:
    vocabulary = tiny(streams)
    layout, m = Layout(vocabulary, mode), model(vocabulary, torch.float64)  # type: ignore[arg-type]
    sizes, most = [3, 2, 2][:streams], 2
    objects = [o for n in range(most + 1) for o in all_objects(sizes, n)]
    codes = together(objects, streams)
    parts = log_probabilities(m, layout, "t", codes, np.zeros(len(codes), np.int64), np.zeros((len(codes), 0)))
    # those that go on after the last point are all the others
    longer = parts.objects - parts.ends + np.log1p(-np.exp(parts.ends))
    full = np.diff(codes.offsets) == most
    assert np.exp(parts.objects).sum() + np.exp(longer[full]).sum() == pytest.approx(1.0, abs=1e-12)
    assert np.exp(parts.objects).std() > 1e-3  # a uniform model would prove little


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
def test_objects_are_sampled_as_often_as_they_are_likely(mode: str) -> None:
    n, most, vocabulary = 6_000, 2, tiny(2)
    layout, m = Layout(vocabulary, mode), model(vocabulary)  # type: ignore[arg-type]
    prefix = layout.prefix("t", np.ones(n, np.int64), np.zeros((n, 0)))
    made = sample(m, layout, "t", prefix, np.arange(n), 11, SamplingConfig(max_points=most))
    objects = [o for k in range(most) for o in all_objects([3, 2], k)]
    codes = together(objects, 2)
    p = np.exp(log_likelihood(m, layout, "t", codes, np.ones(len(codes), np.int64), np.zeros((len(codes), 0))))
    whole = [made.codes[a:b].tobytes() for a, b in itertools.pairwise(made.offsets)]
    seen = np.array([sum(w == o.tobytes() for w in whole) for o in objects])
    # all objects with `most` points or more are one more outcome
    p, seen = np.append(p, 1 - p.sum()), np.append(seen, n - seen.sum())
    chi2 = ((seen - n * p) ** 2 / (n * p)).sum()
    assert chi2 < len(p) - 1 + 4 * math.sqrt(2 * (len(p) - 1))
    assert (np.diff(made.offsets) == most).sum() == seen[-1]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 99))
def test_an_object_has_the_same_likelihood_in_any_company(counts: list[int], batch_steps: int, seed: int) -> None:
    vocabulary = tiny(3)
    layout, m = Layout(vocabulary), model(vocabulary, torch.float64)
    rng = np.random.default_rng(seed)
    objects = [rng.integers(0, [3, 2, 2], (n, 3)) for n in counts]
    labels = rng.integers(-1, 2, len(counts))
    found = log_likelihood(
        m, layout, "t", together(objects, 3), labels, np.zeros((len(counts), 0)), batch_steps=batch_steps
    )
    for i, o in enumerate(objects):
        alone = log_likelihood(m, layout, "t", together([o], 3), labels[i : i + 1], NOTHING)
        assert found[i] == pytest.approx(alone[0], rel=1e-12)


def test_patches_have_no_probability_of_ending() -> None:
    vocabulary = tiny(2, fixed=2)
    layout, m = Layout(vocabulary), model(vocabulary, torch.float64)
    codes = together(list(all_objects([3, 2], 2)), 2)
    parts = log_probabilities(m, layout, "t", codes, np.full(36, -1), np.zeros((36, 0)))
    assert not parts.goes_on.any() and not parts.ends.any()
    assert np.exp(parts.objects).sum() == pytest.approx(1.0, abs=1e-12)


def test_classes_are_summed_with_their_prior() -> None:
    vocabulary = tiny(1)
    layout, m = Layout(vocabulary), model(vocabulary, torch.float64)
    codes = together([np.array([[0], [2]]), np.zeros((0, 1), np.int64)], 1)
    of_classes = class_log_likelihoods(m, layout, "t", codes, np.zeros((2, 0)))
    assert of_classes.shape == (2, 2) and not np.allclose(of_classes[:, 0], of_classes[:, 1])
    expected = np.log(0.25 * np.exp(of_classes[:, 0]) + 0.75 * np.exp(of_classes[:, 1]))
    np.testing.assert_allclose(over_classes(of_classes, np.array([1, 3])), expected)
    np.testing.assert_allclose(over_classes(of_classes), np.log(np.exp(of_classes).mean(axis=1)))
    np.testing.assert_array_equal(over_classes(of_classes, np.array([0, 1])), of_classes[:, 1])
    for wrong in ([1.0], [1.0, -1.0], [0.0, 0.0], [np.nan, 1.0]):
        with pytest.raises(DataError, match="a number per class, 2 in all"):
            over_classes(of_classes, np.array(wrong))


def test_no_objects_empty_objects_and_a_training_model() -> None:
    vocabulary = tiny(2)
    layout, m = Layout(vocabulary), model(vocabulary).train()
    assert log_likelihood(m, layout, "t", together([], 2), np.zeros(0, np.int64), np.zeros((0, 0))).shape == (0,)
    empty = log_probabilities(m, layout, "t", together([np.zeros((0, 2), np.int64)], 2), ANY, NOTHING)
    assert empty.objects.tolist() == empty.ends.tolist() and empty.ends[0] < 0
    assert m.training


def test_what_has_no_likelihood_is_said(toy: ToyTokens) -> None:
    vocabulary = tiny(2)
    layout, m = Layout(vocabulary), model(vocabulary)
    with pytest.raises(DataError, match=r"codes of 't' have 2 streams, but these have the shape \(1, 3\)"):
        log_likelihood(m, layout, "t", together([np.zeros((1, 3), np.int64)], 3), ANY, NOTHING)
    with pytest.raises(DataError, match=r"outside of their streams' \[3, 2\] values"):
        log_likelihood(m, layout, "t", together([np.array([[0, 2]])], 2), ANY, NOTHING)
    m.config = m.config.model_copy(update={"features": ("pt",)})
    with pytest.raises(DataError, match="reads the continuous features pt"):
        log_likelihood(m, layout, "t", together([], 2), ANY, NOTHING)
    only = Vocabulary(list(vocabulary.ranges.values()), [replace(vocabulary.dataset("t"), classes=())])
    with pytest.raises(DataError, match="'t' has no classes"):
        class_log_likelihoods(m, Layout(only), "t", together([], 2), NOTHING)
