"""Tokenizers, vocabulary, and the layout of sequences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.cards import Feature
from foundation.data.ragged import length_buckets, to_offsets
from foundation.errors import DataError
from foundation.tokens.conditions import condition_bins
from foundation.tokens.config import VqVaeConfig
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.layout import Layout
from foundation.tokens.per_feature import PerFeatureTokenizer
from foundation.tokens.tokenizer import Stream
from foundation.tokens.transforms import inverse_transform, transform
from foundation.tokens.vocabulary import ANY, BOS, EOS, NONE, Addition, Vocabulary

from conftest import JETS, SHOWERS, ToyTokens, inputs_of, toy_jets, toy_showers


def test_per_feature_keeps_integers_exactly_and_energies_within_their_bin(toy: ToyTokens) -> None:
    tokenizer, clouds = toy.tokenizers["toy_showers"], toy_showers(50, 9)
    decoded = tokenizer.reconstruct(clouds).points
    assert np.array_equal(decoded[:, :3], clouds.points[:, :3])
    assert isinstance(tokenizer, PerFeatureTokenizer)
    edges = np.exp(tokenizer.edges["energy"])
    inside = (clouds.points[:, 3] > edges[0]) & (clouds.points[:, 3] < edges[-1])
    width = edges[1] / edges[0]
    ratio = decoded[inside, 3] / clouds.points[inside, 3]
    assert ratio.max() <= width * 1.0001 and ratio.min() >= 0.9999 / width


def test_decoding_inside_bins_keeps_the_mean_energy(toy: ToyTokens) -> None:
    tokenizer, clouds = toy.tokenizers["toy_showers"], toy.clouds["toy_showers"]
    decoded = tokenizer.reconstruct(clouds, seed=1).points
    assert decoded[:, 3].mean() == pytest.approx(clouds.points[:, 3].mean(), rel=0.02)


def test_vqvae_round_trip_is_closer_than_the_spread_and_keeps_categories(toy: ToyTokens) -> None:
    tokenizer, clouds = toy.tokenizers["toy_jets"], toy_jets(80, 7)
    decoded = tokenizer.reconstruct(clouds).points
    assert np.array_equal(decoded[:, 3], clouds.points[:, 3])
    for column in (1, 2):
        assert np.abs(decoded[:, column] - clouds.points[:, column]).std() < 0.5 * clouds.points[:, column].std()


def test_codes_do_not_depend_on_what_else_is_encoded(toy: ToyTokens) -> None:
    tokenizer, clouds = toy.tokenizers["toy_jets"], toy_jets(40, 8)
    whole = tokenizer.encode(clouds).values
    alone = np.concatenate([tokenizer.encode(clouds.select(np.array([i]))).values for i in range(len(clouds))])
    assert np.array_equal(whole, alone)


def test_conditional_vqvae_does_not_depend_on_the_order_of_points(tmp_path) -> None:
    from foundation.tokens.vq.vqvae import VqVaeTokenizer

    config = VqVaeConfig(codebook=16, width=16, heads=2, latent=3, attention=True, steps=30, batch_points=256)
    clouds = toy_jets(60, 3)
    tokenizer = VqVaeTokenizer.fit(inputs_of(JETS, clouds), clouds, config, 1)
    reverse = np.concatenate(
        [np.arange(b - 1, a - 1, -1) for a, b in zip(clouds.offsets[:-1], clouds.offsets[1:], strict=True)]
    )
    turned = replace(clouds, points=clouds.points[reverse])
    same = (tokenizer.encode(turned).values == tokenizer.encode(clouds).values[reverse]).mean()
    assert same > 0.995  # rounding may flip a point that lies on a border


@pytest.mark.parametrize("tag", ["toy_jets", "toy_showers"])
def test_saved_tokenizer_loads_as_an_equal_one(toy: ToyTokens, tag: str, tmp_path) -> None:
    tokenizer = toy.tokenizers[tag]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.streams == tokenizer.streams and loaded.features == tokenizer.features
    assert np.array_equal(loaded.encode(toy.clouds[tag]).values, toy.codes[tag])


def test_wrong_features_units_and_values_are_refused(toy: ToyTokens) -> None:
    tokenizer, clouds = toy.tokenizers["toy_jets"], toy.clouds["toy_jets"]
    with pytest.raises(DataError, match="is in MeV, but tokenizer 'toy_jets' was fitted in GeV"):
        tokenizer.encode(replace(clouds, units=("MeV", *clouds.units[1:])))
    with pytest.raises(DataError, match="needs feature 'pt'"):
        tokenizer.encode(replace(clouds, features=("ptt", *clouds.features[1:])))
    points = clouds.points.copy()
    points[5, 3] = 7
    with pytest.raises(DataError, match="'charge' reaches 7"):
        tokenizer.encode(replace(clouds, points=points))
    assert tokenizer.inputs.outside(replace(clouds, points=points)) == {"charge": 1}


@given(st.floats(1e-3, 1e3), st.booleans(), st.floats(-5, 5), st.floats(0.1, 10))
def test_transforms_invert(value: float, log: bool, shift: float, scale: float) -> None:
    feature = Feature(name="a", log=log, shift=shift, scale=scale)
    x = np.array([value])
    assert inverse_transform(feature, transform(feature, x)) == pytest.approx(x, rel=1e-9)


def test_growing_a_vocabulary_moves_no_id(toy: ToyTokens) -> None:
    other = JETS.model_copy(update={"name": "more", "tag": "more"})
    addition = Addition(other, "more", (Stream("code0", 7),), "1" * 64)
    grown = toy.vocabulary.grow([addition])
    for name, r in toy.vocabulary.ranges.items():
        assert grown.ranges[name] == r
    assert grown.size == toy.vocabulary.size + 1 + 2 + 7
    assert grown.digest != toy.vocabulary.digest
    assert Vocabulary.from_json(grown.to_json()).digest == grown.digest
    with pytest.raises(DataError, match="already has a dataset"):
        grown.grow([addition])


@given(st.floats(5, 50), st.integers(1, 64), st.sampled_from(["linear", "log"]))
def test_condition_bins_are_ordered_and_cover_the_range(value: float, bins: int, scale: str) -> None:
    c = SHOWERS.conditions[0].model_copy(update={"bins": bins, "scale": scale})
    low, here, high = condition_bins(c, np.array([5.0, value, 50.0]))
    assert 0 == low <= here <= high == bins - 1


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    mode=st.sampled_from(["delayed", "interleaved"]),
    tag=st.sampled_from(["toy_jets", "toy_showers"]),
    data=st.data(),
)
def test_sequences_obey_the_grammar_and_give_the_codes_back(toy, counts, mode, tag, data) -> None:
    layout: Layout = toy.layout(mode)
    n = np.array(counts)
    sizes = [toy.vocabulary.stream_range(tag, s).size for s in layout.entry(tag).streams]
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, n.sum()) for size in sizes], axis=1)
    conditions = np.full((len(n), len(layout.entry(tag).conditions)), 10.0)
    labels = np.zeros(len(n), np.int64)
    sequences = layout.sequences(tag, codes, to_offsets(n), labels, conditions)
    assert np.array_equal(np.diff(sequences.offsets), layout.lengths(tag, n))
    # every predicted id is legal in its slot, and what is not predicted is prefix or empty
    for place, number in np.ndenumerate(sequences.slots):
        value = sequences.ids[place]
        if number >= 0:
            slot = layout.slots[number]
            assert slot.start <= value < slot.start + slot.size or (slot.ends and value == EOS)
    prefix = layout.prefix_length(tag)
    for b, count in enumerate(n):
        ids = sequences.ids[sequences.offsets[b] : sequences.offsets[b + 1]]
        assert ids[0, 0] == BOS and (ids[:prefix, 1:] == NONE).all()
        body = ids[prefix:]
        k = len(sizes)
        back = np.array(
            [
                [
                    (body[j * k + s, 0] if mode == "interleaved" else body[j + s, s])
                    - toy.vocabulary.stream_range(tag, stream).start
                    for s, stream in enumerate(layout.entry(tag).streams)
                ]
                for j in range(count)
            ]
        ).reshape(count, k)
        a = to_offsets(n)[b]
        assert np.array_equal(back, codes[a : a + count])
        assert (ids == EOS).sum() == 1


def test_unknown_class_and_condition_become_any(toy: ToyTokens) -> None:
    layout = toy.layout()
    prefix = layout.prefix("toy_showers", np.array([0, -1]), np.array([[20.0], [np.nan]]))
    assert prefix[1, 2] == ANY and prefix[1, 3] == ANY
    assert ANY not in prefix[0]
    with pytest.raises(DataError, match="not one of the 1 classes"):
        layout.prefix("toy_showers", np.array([1]), np.array([[20.0]]))
    with pytest.raises(DataError, match="did you mean 'toy_jets'"):
        layout.prefix("toy_jet", np.array([0]), np.zeros((1, 0)))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_length_buckets_hold_every_point_once_with_bounded_padding(counts: list[int]) -> None:
    offsets = to_offsets(np.array(counts))
    buckets = length_buckets(offsets)
    rows = np.concatenate([b.rows[b.valid] for b in buckets]) if buckets else np.array([])
    assert sorted(rows) == list(range(int(offsets[-1])))
    for b in buckets:
        lengths = b.valid.sum(axis=1)
        assert (b.rows.shape[1] - lengths <= np.maximum(4, np.ceil(0.15 * b.rows.shape[1]))).all()


@pytest.mark.parametrize("tag", ["toy_jets", "toy_showers"])
def test_artefacts_of_the_first_version_load_and_give_the_same_codes(tag: str) -> None:
    home = Path(__file__).parent / "data" / "tokenizers_v1"
    vocabulary = Vocabulary.load(home / "vocabulary.json")
    assert vocabulary.digest == (home / "vocabulary.sha256").read_text().strip()
    tokenizer = load_tokenizer(home / tag, vocabulary.dataset(tag).tokenizer)
    with np.load(home / f"{tag}.npz") as kept:
        card = {"toy_jets": JETS, "toy_showers": SHOWERS}[tag]
        clouds = replace(
            toy_jets(1, 1) if tag == "toy_jets" else toy_showers(1, 1),
            points=kept["points"],
            offsets=kept["offsets"],
            labels=np.zeros(len(kept["offsets"]) - 1, np.int64),
            conditions=np.ones((len(kept["offsets"]) - 1, len(card.conditions)), np.float32),
        )
        codes = tokenizer.encode(clouds)
        assert np.array_equal(codes.values, kept["codes"])
        decoded = tokenizer.decode(codes, np.full(codes.values.shape, 0.5))
        assert np.allclose(decoded.values, kept["decoded"], rtol=1e-5, atol=1e-6)
