"""VQ-VAE and k-means tokenizers: networks, quantisers, training, and what they do to clouds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.tokens.config import KMeansConfig, VqVaeConfig
from foundation.tokens.kinds import fit_tokenizer, load_tokenizer
from foundation.tokens.vq.fit import groups_of, losses
from foundation.tokens.vq.kmeans import KMeansTokenizer
from foundation.tokens.vq.nearest import NearestCode, k_means
from foundation.tokens.vq.net import VqVae
from foundation.tokens.vq.point_groups import passes, single_points, whole_clouds
from foundation.tokens.vq.quantisers import Codebooks, FollowingCodebook, Levels, all_vectors
from foundation.tokens.vq.training import CodebookHealth, perplexity, train, usage
from foundation.tokens.vq.vqvae import VqVaeTokenizer

from conftest import JETS, SHOWERS, inputs_of, toy_jets, toy_showers

SMALL = {"codebook": 32, "width": 16, "heads": 2, "latent": 3, "steps": 40, "batch_points": 400}
PUBLISHED = {"architecture": "normformer", "width": 128, "heads": 8, "encoder_blocks": 4, "decoder_blocks": 4}


def fitted(clouds: PointClouds, seed: int = 1, **settings: object) -> VqVaeTokenizer:
    card = JETS if clouds.tag == JETS.tag else SHOWERS
    return VqVaeTokenizer.fit(inputs_of(card, clouds), clouds, VqVaeConfig(**(SMALL | settings)), seed)


@pytest.fixture(scope="module")
def jets() -> PointClouds:
    return toy_jets(250, 1)


@pytest.fixture(scope="module", params=["pre_norm", "normformer"])
def conditional(request: pytest.FixtureRequest, jets: PointClouds) -> VqVaeTokenizer:
    return fitted(jets, architecture=request.param, encoder_blocks=2, dropout=0.1)


def lively(net: VqVae) -> VqVae:
    """A net whose blocks are not the identity that they start as."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval()


# The networks


@pytest.mark.parametrize(
    ("settings", "features", "parameters"),
    [
        (PUBLISHED | {"latent": 4}, 3, 800_775),  # OmniJet-alpha
        (PUBLISHED | {"latent": 12}, 4, 803_088),  # OmniJet-alpha_C
        ({"architecture": "mlp", "width": 128, "encoder_blocks": 3, "decoder_blocks": 3}, 3, 68_103),
    ],
)
def test_published_architectures_have_the_published_number_of_parameters(settings, features, parameters) -> None:
    net = VqVae(features, VqVaeConfig(codebook=16, **settings))
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_a_normformer_starts_as_the_identity() -> None:
    net = VqVae(3, VqVaeConfig(**(SMALL | {"architecture": "normformer"}))).eval()
    h = torch.randn(2, 5, 16)
    assert torch.equal(net.encoder[0](h, None), h)


@pytest.mark.parametrize("architecture", ["pre_norm", "normformer"])
def test_padding_changes_neither_latents_nor_features(architecture: str) -> None:
    net = lively(VqVae(3, VqVaeConfig(**(SMALL | {"architecture": architecture}))))
    x, z = torch.randn(1, 9, 3), torch.randn(1, 9, 3)
    valid = torch.arange(14)[None] < 9
    padded = [torch.cat([t, torch.randn(1, 5, 3)], dim=1) for t in (x, z)]
    assert torch.allclose(net.latents(padded[0], valid)[:, :9], net.latents(x, None), atol=1e-6)
    assert torch.allclose(net.features(padded[1], valid)[:, :9], net.features(z, None), atol=1e-6)


def test_the_conditional_one_is_permutation_equivariant(conditional: VqVaeTokenizer, jets: PointClouds) -> None:
    rng = np.random.default_rng(0)
    turned = np.concatenate([a + rng.permutation(n) for a, n in zip(jets.offsets[:-1], jets.counts, strict=True)])
    other = replace(jets, points=jets.points[turned])
    assert (conditional.encode(other).values == conditional.encode(jets).values[turned]).mean() > 0.999
    net = conditional.net
    x, order = torch.randn(3, 20, 3), torch.from_numpy(rng.permutation(20))
    assert torch.allclose(net.latents(x[:, order], None), net.latents(x, None)[:, order], atol=1e-5)
    assert not torch.allclose(net.latents(x[:, :10], None), net.latents(x, None)[:, :10], atol=1e-3)


def test_what_else_is_encoded_does_not_change_codes(conditional: VqVaeTokenizer) -> None:
    clouds = toy_jets(600, 5)
    assert len(clouds.points) > 5000
    whole = conditional.encode(clouds).values
    alone = [conditional.encode(clouds.select(np.array([i]))).values for i in range(0, 600, 10)]
    rows = np.concatenate([np.arange(clouds.offsets[i], clouds.offsets[i + 1]) for i in range(0, 600, 10)])
    assert np.array_equal(np.concatenate(alone), whole[rows])
    last = conditional.encode(clouds.select(np.arange(599, -1, -1))).values
    assert np.array_equal(last[: clouds.counts[599]], whole[clouds.offsets[599] :])


def test_decoding_does_not_depend_on_what_else_is_decoded(conditional: VqVaeTokenizer, jets: PointClouds) -> None:
    whole = conditional.reconstruct(jets)
    part = conditional.reconstruct(jets.select(np.array([3, 100])))
    assert np.allclose(part.points, whole.select(np.array([3, 100])).points, rtol=1e-5, atol=1e-6)


def test_the_unconditional_one_looks_at_the_point_alone(jets: PointClouds) -> None:
    tokenizer = fitted(jets, architecture="mlp", encoder_blocks=2, decoder_blocks=2)
    points = replace(
        jets,
        offsets=np.arange(len(jets.points) + 1),
        labels=np.zeros(len(jets.points), np.int64),
        conditions=np.zeros((len(jets.points), 0), np.float32),
    )
    assert np.array_equal(tokenizer.encode(points).values, tokenizer.encode(jets).values)


# The loss


@pytest.mark.parametrize("architecture", ["pre_norm", "normformer", "mlp"])
def test_the_loss_does_not_depend_on_how_clouds_are_batched(architecture: str) -> None:
    net = lively(VqVae(3, VqVaeConfig(**(SMALL | {"architecture": architecture}))))
    rng = np.random.default_rng(2)
    counts = np.array([3, 17, 4, 9, 16, 1])
    x = rng.normal(size=(counts.sum(), 3)).astype(np.float32)
    weights = torch.tensor([1.0, 2.0, 0.5])
    offsets = to_offsets(counts)
    padded, _, _ = losses(net, groups_of(x, offsets), weights)
    total = torch.zeros(())
    for a, b in pairwise(offsets):
        alone = losses(net, [(torch.from_numpy(x[a:b])[None], None)], weights)[0]
        total += alone * int(b - a)
    assert float(padded.detach()) == pytest.approx(float(total.detach()) / counts.sum(), rel=1e-5)


def test_weights_move_the_error_to_where_it_counts_less(jets: PointClouds) -> None:
    tokenizers = [fitted(jets, attention=False, steps=120, weights=w) for w in ({}, {"eta_rel": 100.0})]
    errors = [np.abs(t.reconstruct(jets).points - jets.points).mean(axis=0) for t in tokenizers]
    assert errors[1][1] < 0.8 * errors[0][1] and errors[1][2] > errors[0][2]


def test_a_fit_is_the_same_for_a_seed(jets: PointClouds) -> None:
    one, same, other = fitted(jets), fitted(jets), fitted(jets, seed=2)
    assert np.array_equal(one.encode(jets).values, same.encode(jets).values)
    assert not np.array_equal(one.encode(jets).values, other.encode(jets).values)


def test_training_that_diverges_is_named() -> None:
    net = torch.nn.Linear(1, 1)
    with pytest.raises(DataError, match="diverged at step 0: lower its learning_rate"):
        train(net, lambda step: (net.weight.sum() * torch.inf, {}), lambda *_: None, steps=3, learning_rate=1.0)


# Codebooks


def test_usage_and_perplexity_of_a_case_made_by_hand() -> None:
    assert usage(np.array([4, 0, 4, 0])) == 0.5 and perplexity(np.array([4, 0, 4, 0])) == pytest.approx(2.0)
    assert perplexity(np.array([2, 1, 1])) == pytest.approx(2**1.5)
    assert perplexity(np.zeros(3, np.int64)) == 0.0


def test_the_use_of_codes_is_counted_over_a_window(capsys: pytest.CaptureFixture[str]) -> None:
    health = CodebookHealth([4, 4], batch_points=4)  # ten steps
    health.add(np.array([[0, 0], [1, 0], [2, 0], [3, 0]]))
    health.warn("jets")
    assert not capsys.readouterr().out  # too few points to tell
    for _ in range(4):
        health.add(np.array([[0, 0], [1, 0], [2, 0], [3, 0]]))
    assert health.metrics()["code0_used"] == 1.0 and health.metrics()["code1_perplexity"] == 1.0
    health.warn("jets")
    said = capsys.readouterr().out
    assert "tokenizer 'jets': only 25% of the 4 codes of code1 are in use" in said and "code0" not in said
    for _ in range(10):
        health.add(np.array([[0, 0], [1, 1], [0, 2], [1, 3]]))
    assert health.metrics() == {"code0_used": 0.5, "code0_perplexity": 2.0, "code1_used": 1.0, "code1_perplexity": 4.0}


def test_the_use_of_codes_is_reported_in_training(jets: PointClouds) -> None:
    seen = []
    config = VqVaeConfig(**(SMALL | {"quantisers": 2}))
    fit_tokenizer(config, inputs_of(JETS, jets), jets, 1, lambda step, metrics: seen.append(dict(metrics)))
    assert "code0_used" not in seen[0]  # the first tenth of the steps is trained without codes
    assert 0 < seen[-1]["code1_used"] <= 1 and seen[-1]["code0_perplexity"] > 4 and "replaced" in seen[-1]


def test_dead_codes_revive() -> None:
    codebook = FollowingCodebook(2, 8, decay=0.5, dead=0.2, batch_points=64)
    codebook.embed[0, 0] = 0.0
    codebook.embed[0, 1:] = 1000.0  # where no point will ever be
    vectors = torch.rand(1, 64, 2)
    codebook.train()
    for _ in range(30):
        codebook(vectors)
    assert codebook.replaced >= 7
    assert np.unique(codebook(vectors)[1]).size == 8


def test_a_codebook_converges_to_the_mean_of_its_points() -> None:
    codebook = FollowingCodebook(1, 2, decay=0.5, dead=0.0, batch_points=4)
    codebook.embed[0] = torch.tensor([[0.0], [9.0]])
    codebook.train()
    for _ in range(60):
        codebook(torch.tensor([[[1.0], [3.0], [8.0], [12.0]]]))
    assert torch.allclose(codebook.embed[0, :, 0], torch.tensor([2.0, 10.0]), atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 14), st.integers(1, 60), st.integers(0, 100))
def test_the_nearest_code_is_the_nearest_and_the_first_of_equals(dim: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (size, dim)).astype(np.float32)
    points = rng.normal(size=(50, dim)).astype(np.float32)
    search = NearestCode(vectors)
    distance = np.square(points[:, None].astype(np.float64) - vectors[None]).sum(axis=2)
    found = search(points)
    assert np.allclose(distance[np.arange(50), found], distance.min(axis=1))
    assert np.array_equal(search(vectors), [np.flatnonzero((vectors == v).all(axis=1))[0] for v in vectors])
    assert np.array_equal(found, np.concatenate([search(points[i : i + 1]) for i in range(50)]))


def test_k_means_finds_clusters_and_leaves_none_empty() -> None:
    rng = np.random.default_rng(0)
    middles = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = np.concatenate([m + 0.1 * rng.normal(size=(100, 2)) for m in middles])
    centres, owners = k_means(points, 3, rng)
    assert np.abs(centres[NearestCode(centres)(middles)] - middles).max() < 0.1
    assert np.bincount(owners, minlength=3).min() == 100
    assert np.unique(k_means(points, 100, rng)[1]).size > 90
    assert len(k_means(points[:5], 8, rng)[0]) == 8


@pytest.mark.parametrize("number", [1, 3])
def test_residual_codes_round_trip_and_refine(number: int) -> None:
    quantiser = Codebooks(3, 16, number, commitment=1.0, decay=0.9, dead=0.1, batch_points=500)
    z = torch.randn(500, 3)
    quantiser.start(z, 0)
    quantiser.eval()
    codes = quantiser.codes(z)
    vectors = quantiser.vectors(codes)
    assert torch.allclose(quantiser.quantise(z)[0], vectors, atol=1e-6)
    assert torch.equal(quantiser.quantise(z)[1], codes)
    books = all_vectors(quantiser)
    assert np.allclose(sum(books[k][codes[:, k]] for k in range(number)), vectors, atol=1e-6)
    left, errors = z, [float(z.square().mean())]
    for k in range(number):
        left = left - torch.from_numpy(books[k])[codes[:, k]]
        errors.append(float(left.square().mean()))
    assert sorted(errors, reverse=True) == errors and errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("number", [1, 2])
def test_fsq_codes_round_trip(number: int) -> None:
    quantiser = Levels([5, 4, 3], number).eval()
    z = torch.randn(400, 3)
    quantised, codes, _ = quantiser.quantise(z)
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < 60
    assert torch.equal(codes, quantiser.codes(z))
    assert torch.allclose(quantiser.vectors(codes), quantised, atol=1e-6)
    books = all_vectors(quantiser)
    assert np.allclose(sum(books[k][codes[:, k]] for k in range(number)), quantised, atol=1e-6)


# The tokenizer


@pytest.mark.parametrize(
    "settings",
    [
        {"quantiser": "fsq", "levels": [7, 5, 5], "quantisers": 2},
        {"architecture": "normformer", "quantisers": 2},
        {"architecture": "mlp"},
        {"normalise": "each", "weights": {"pt": 2.0}, "free_start": 0},
    ],
    ids=["fsq", "normformer", "mlp", "each"],
)
def test_a_saved_tokenizer_is_equal(settings: dict, jets: PointClouds, tmp_path: Path) -> None:
    config = VqVaeConfig(
        **{k: v for k, v in SMALL.items() if "levels" not in settings or k not in ("codebook", "latent")}, **settings
    )
    tokenizer = fit_tokenizer(config, inputs_of(JETS, jets), jets, 1)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    codes = tokenizer.encode(jets)
    assert loaded.streams == tokenizer.streams
    assert all(codes.values[:, k].max() < s.size for k, s in enumerate(tokenizer.streams))
    assert np.array_equal(loaded.encode(jets).values, codes.values)
    uniform = np.zeros(codes.values.shape)
    assert np.array_equal(loaded.decode(codes, uniform).values, tokenizer.decode(codes, uniform).values)
    assert all(len(v) == s.size for s, v in zip(loaded.streams, loaded.code_vectors().values(), strict=False))


def test_coded_integers_come_back_as_integers_in_their_range(tmp_path: Path) -> None:
    showers = toy_showers(150, 3)
    tokenizer = fitted(showers, integers="coded", codebook=256, steps=300, weights={"energy": 0.1}, attention=False)
    assert [s.name for s in tokenizer.streams] == ["code0"]
    decoded = tokenizer.reconstruct(showers).points
    places = decoded[:, :3]
    assert np.array_equal(places, np.rint(places))
    assert places.min() >= 0 and (places.max(axis=0) <= [4, 5, 5]).all()
    assert (places == showers.points[:, :3]).all(axis=1).mean() > 0.5
    far = np.array([[-40.0], [70.0]])
    tokenizer.save(tmp_path)
    assert np.array_equal(load_tokenizer(tmp_path).encode(showers).values, tokenizer.encode(showers).values)
    from foundation.tokens.vq.vqvae import _value

    assert np.array_equal(_value(SHOWERS.features[0], far), [[0.0], [4.0]])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=25), st.integers(1, 50))
def test_groups_hold_every_point_once_and_no_cloud_is_cut(counts: list[int], most: int) -> None:
    offsets = to_offsets(np.array(counts))
    for divided in (whole_clouds, single_points):
        rows = [r for group in divided(offsets, most) for r in group]
        assert sorted(np.concatenate([*rows, np.zeros(0, int)])) == list(range(offsets[-1]))
    owners = np.repeat(np.arange(len(counts)), counts)
    for group in whole_clouds(offsets, most):
        assert all(np.unique(owners[rows]).size == 1 and len(rows) == counts[owners[rows[0]]] for rows in group)
        assert group.size <= most or len(group) == 1
    parts = list(passes(offsets, most))
    assert [a for a, _ in parts] == [0, *(b for _, b in parts[:-1])] and parts[-1][1] == len(counts)
    assert all(offsets[b] - offsets[a] <= most or b == a + 1 for a, b in parts)


def test_no_clouds_and_empty_clouds_are_fine(conditional: VqVaeTokenizer, jets: PointClouds) -> None:
    none = jets.select(slice(0, 0))
    assert conditional.encode(none).values.shape == (0, 2)
    empty = replace(
        none, offsets=np.zeros(3, np.int64), labels=np.zeros(2, np.int64), conditions=np.zeros((2, 0), np.float32)
    )
    assert len(conditional.reconstruct(empty)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantiser": "fsq"}, "belong together"),
        ({"levels": [4, 4]}, "belong together"),
        ({"quantiser": "fsq", "levels": [4, 4], "codebook": 17}, "follow from 'levels'"),
        ({"width": 20, "heads": 8}, "cannot be divided by 8 heads"),
        ({"architecture": "mlp", "encoder_blocks": 0}, "needs a layer"),
        ({"codebook": 2**23}, "use several quantisers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VqVaeConfig(**settings)
    assert VqVaeConfig(quantiser="fsq", levels=[8, 5, 5]).codebook == 200


def test_mistakes_are_named(jets: PointClouds) -> None:
    with pytest.raises(DataError, match=r"'weights' names 'eta_rell'.*did you mean 'eta_rel'"):
        fitted(jets, weights={"eta_rell": 2.0})
    with pytest.raises(DataError, match="clusters cannot be found from"):
        fit_tokenizer(KMeansConfig(type="kmeans", codes=10**6), inputs_of(JETS, jets), jets, 1)


# k-means


@pytest.mark.parametrize("inside", ["centroid", "residual"])
def test_kmeans_decodes_to_centroids_or_beside_them(inside: str, jets: PointClouds, tmp_path: Path) -> None:
    config = KMeansConfig(type="kmeans", codes=50, inside=inside)
    tokenizer = fit_tokenizer(config, inputs_of(JETS, jets), jets, 1)
    assert isinstance(tokenizer, KMeansTokenizer)
    assert [(s.name, s.size) for s in tokenizer.streams] == [("code0", 50), ("charge", 3)]
    decoded = tokenizer.reconstruct(jets)
    assert np.array_equal(decoded.points[:, 3], jets.points[:, 3])
    if inside == "centroid":
        assert len(np.unique(decoded.points[:, :3], axis=0)) <= 50
        assert np.array_equal(tokenizer.encode(decoded).values, tokenizer.encode(jets).values)
    else:  # the spread of the fit, not only that of the centroids
        assert len(np.unique(decoded.points[:, :3], axis=0)) > 300
        assert decoded.points[:, 1].std() == pytest.approx(jets.points[:, 1].std(), rel=0.03)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert np.array_equal(loaded.encode(jets).values, tokenizer.encode(jets).values)
    assert np.array_equal(loaded.reconstruct(jets).points, decoded.points)
    alone = tokenizer.encode(jets.select(np.array([7]))).values
    assert np.array_equal(alone, tokenizer.encode(jets).values[jets.offsets[7] : jets.offsets[8]])
