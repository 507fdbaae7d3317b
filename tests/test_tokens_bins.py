"""Bins of features, and the tokenizers that are made of them: per_feature and binning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter, ValidationError

from foundation.data.cards import Feature
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.tokens.binning import BinningTokenizer
from foundation.tokens.bins import Bins, fit_bins
from foundation.tokens.config import BinningConfig, PerFeatureConfig, TokenizerConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.kinds import fit_tokenizer, load_tokenizer
from foundation.tokens.per_feature import PerFeatureTokenizer
from foundation.tokens.tokenizer import Codes, tokenizer_digest
from foundation.tokens.transforms import transform

from conftest import JETS, SHOWERS, inputs_of, toy_jets, toy_showers

SPACINGS = ["linear", "log", "quantile"]
INSIDES = ["density", "uniform", "middle"]
LAST = 1.0 - 2.0**-53
"""Largest number that a generator of uniform numbers gives."""
PT = Feature(name="pt", unit="GeV", log=True, shift=1.8)
D0 = Feature(name="d0", unit="mm", range=(-10.0, 10.0), shift=0.3, scale=2.0)
LAYER = Feature(name="layer", unit="index", kind="integer", range=(0, 44))
finite = st.floats(-(2.0**100), 2.0**100, width=32)


def fitted(feature: Feature, values: np.ndarray, bins: int, spacing: str, inside: str = "density") -> Bins:
    window = (float(values.min()), float(values.max()))
    return fit_bins(feature, values, window, bins, spacing, inside)  # type: ignore[arg-type]


def spectrum(n: int, seed: int = 0) -> np.ndarray:
    return (0.5 + np.random.default_rng(seed).exponential(7.0, n)).astype(np.float32)


def impact_parameters(n: int, seed: int = 0) -> np.ndarray:
    """Two fifths of the constituents are neutral and have 0, which floats just beside it must not be taken for."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.4, 0.0, rng.standard_t(2, n) * 0.05).astype(np.float32).clip(-9, 9)


def clouds_of(features: tuple[Feature, ...], columns: list[np.ndarray]) -> PointClouds:
    points = np.stack(columns, axis=1).astype(np.float32)
    return PointClouds(
        points=points,
        offsets=to_offsets(np.full(len(points) // 10, 10)),
        features=tuple(f.name for f in features),
        units=tuple(f.unit for f in features),
        labels=np.zeros(len(points) // 10, np.int64),
        conditions=np.zeros((len(points) // 10, 0), np.float32),
    )


# The bin of a value


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 60), elements=finite, unique=True),
    arrays(np.float32, 20, elements=finite),
    st.booleans(),
)
def test_the_bin_of_a_value_is_that_of_bisection(borders: np.ndarray, values: np.ndarray, narrow: bool) -> None:
    if narrow:  # many borders share their leading bits
        borders = np.unique(np.float32(1000) + borders % np.float32(0.01))
    lowest = np.unique(borders + np.float32(0))
    beside = [np.nextafter(lowest, np.float32(end), dtype=np.float32) for end in (-np.inf, np.inf)]
    tried = np.concatenate([values, lowest, *beside, np.array([0.0, -0.0, 1e-45, -1e-45], np.float32)])
    bins = Bins(Feature(name="a"), lowest, lowest, np.zeros((len(lowest), 1)))
    assert np.array_equal(bins.codes(tried), np.maximum(np.searchsorted(lowest, tried, side="right") - 1, 0))


@settings(max_examples=50, deadline=None)
@given(st.booleans(), st.floats(-5, 5), st.floats(0.1, 10), st.integers(2, 300), st.integers(0, 99))
def test_bins_of_the_first_version_are_its_edges(log: bool, shift: float, scale: float, n: int, seed: int) -> None:
    feature = Feature(name="a", log=log, shift=shift, scale=scale)
    values = spectrum(500, seed) - np.float32(0.0 if log else 6.0)
    x = transform(feature, values)
    edges = np.linspace(x.min(), x.max(), n + 1)
    bins = Bins.from_arrays(feature, {"edges.a": edges, "knots.a": np.zeros((n, 17))})
    beside = [np.nextafter(bins.lowest, np.float32(end), dtype=np.float32) for end in (-np.inf, np.inf)]
    tried = np.concatenate([values, bins.lowest, *beside, np.array([values.max() * 1.1], np.float32)])
    expected = np.clip(np.searchsorted(edges, transform(feature, tried), side="right") - 1, 0, n - 1)
    assert np.array_equal(bins.codes(tried), expected)


# There and back


@pytest.mark.parametrize("inside", INSIDES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("feature", [PT, D0, LAYER], ids=lambda f: f.name)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(2, 45), points=st.integers(45, 3000))
def test_decoded_values_stay_in_their_bin(
    feature: Feature, spacing: str, inside: str, seed: int, n: int, points: int
) -> None:
    rng = np.random.default_rng(seed)
    values = {
        "pt": spectrum(points, seed),
        "d0": impact_parameters(points, seed) + (np.float32(10) if spacing == "log" else np.float32(0)),
        "layer": 1 + rng.poisson(6, points).clip(0, 43).astype(np.float32),
    }[feature.name]
    bins = fitted(feature, values, n, spacing, inside)
    assert 1 <= len(bins) <= n
    borders = np.concatenate([bins.lowest, bins.highest, np.nextafter(bins.lowest[1:], np.float32(-np.inf))])
    tried = borders[(borders >= values.min()) & (borders <= values.max())] if feature.kind == "continuous" else values
    tried = np.concatenate([values, tried])
    codes = bins.codes(tried)
    upper = np.append(bins.lowest[1:], np.maximum(bins.highest[-1], values.max()))
    assert codes.min() >= 0 and codes.max() < len(bins)
    assert (bins.lowest[codes] <= tried).all() and (tried <= upper[codes]).all()
    for uniform in (0.0, 0.3, LAST):
        decoded = bins.values(codes, np.full(len(codes), uniform))
        assert decoded.dtype == np.float32
        assert np.array_equal(bins.codes(decoded), codes)
        # a value is at most the width of its bin away
        assert (bins.lowest[codes] <= decoded).all() and (decoded <= upper[codes]).all()
        if feature.kind == "integer":
            assert np.array_equal(decoded, np.rint(decoded))


@pytest.mark.parametrize("bins", [5, 7, 45])
def test_bins_of_whole_numbers_hold_equally_many(bins: int) -> None:
    values = np.arange(45, dtype=np.float32)
    codes = fitted(LAYER, values, bins, "linear").codes(values)
    assert set(np.bincount(codes, minlength=bins)) <= {45 // bins, 45 // bins + 1}
    if bins == 45:
        assert np.array_equal(codes, values)


def test_spacings_are_what_they_are_called() -> None:
    values = spectrum(20_000)
    linear = fitted(Feature(name="a", scale=3.0), values, 20, "linear")
    assert np.allclose(np.diff(linear.edges), np.diff(linear.edges).mean(), rtol=1e-4)
    for log in (fitted(Feature(name="a", scale=3.0), values, 20, "log"), fitted(PT, values, 20, "linear")):
        assert np.allclose(log.lowest[1:] / log.lowest[:-1], (values.max() / values.min()) ** (1 / 20), rtol=1e-4)
    quantile = fitted(PT, values, 20, "quantile")
    assert np.allclose(np.bincount(quantile.codes(values)), 1000, atol=2)
    assert quantile.lowest[0] == values.min() and quantile.highest[-1] == values.max()


# What lies inside a bin


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_density_inside_bins_is_kept(spacing: str) -> None:
    feature = Feature(name="energy", unit="MeV")
    fit, other = spectrum(200_000), spectrum(200_000, 1)
    bins = fitted(feature, fit, 4, spacing)
    codes = bins.codes(other)
    decoded = bins.values(codes, np.random.default_rng(2).random(len(codes)))
    counts = np.bincount(codes)
    for b in np.flatnonzero(counts > 1000):
        here, there = np.sort(other[codes == b]), np.sort(decoded[codes == b])
        error = 4 * (3 / len(here)) ** 0.5 * here.std(dtype=float) + 0.005 * here.mean(dtype=float)
        assert there.mean(dtype=float) == pytest.approx(here.mean(dtype=float), abs=error)
        # the largest distance of the cumulative distributions is what two samples have, and 1 % for the knots
        places = np.linspace(here[0], here[-1], 200)
        distance = np.abs(np.searchsorted(here, places) - np.searchsorted(there, places)).max() / len(here)
        assert distance < 1.95 * (2 / len(here)) ** 0.5 + 0.01
    flat = fitted(feature, fit, 4, spacing, "uniform").values(codes, np.random.default_rng(2).random(len(codes)))
    assert decoded.mean(dtype=float) == pytest.approx(other.mean(dtype=float), rel=0.01)
    assert flat.mean(dtype=float) > 1.1 * other.mean(dtype=float)


@pytest.mark.parametrize("inside", INSIDES)
def test_a_value_that_many_points_share_decodes_exactly(inside: str) -> None:
    fit, other = impact_parameters(20_000), impact_parameters(20_000, 1)
    bins = fitted(D0, fit, 64, "quantile", inside)
    codes = bins.codes(other)
    zero = int(bins.codes(np.zeros(1, np.float32))[0])
    decoded = bins.values(codes, np.random.default_rng(0).random(len(codes)))
    assert (decoded[other == 0] == 0).all() and (decoded[codes != zero] != 0).all()
    assert ((codes == zero) == (other == 0)).mean() > 0.999
    rest = np.delete(np.bincount(bins.codes(fit), minlength=len(bins)), zero)
    assert len(bins) == 64 and rest.max() < 1.1 * rest.mean() and rest.min() > 0.9 * rest.mean()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-30, 30), st.integers(1, 40)), min_size=1, max_size=40),
    st.integers(2, 30),
)
def test_no_bin_is_empty_whatever_repeats(repeated: list[tuple[int, int]], n: int) -> None:
    values = np.repeat(*(np.array(column) for column in zip(*repeated, strict=True))).astype(np.float32) / 4
    if len(values) < n:
        values = np.tile(values, n)
    bins = fitted(Feature(name="a"), values, n, "quantile")
    codes = bins.codes(values)
    assert (np.bincount(codes, minlength=len(bins)) > 0).all() and len(bins) <= n
    assert (np.diff(bins.lowest) > 0).all()
    if len(np.unique(values)) <= n and len(values) > len(np.unique(values)) * 2:
        once = np.unique(values, return_counts=True)[1].min() == 1
        assert once or np.array_equal(bins.values(codes, np.full(len(codes), 0.7)), values)


def test_a_constant_feature_has_one_bin_and_decodes_exactly() -> None:
    values = np.full(100, 0.7, np.float32)
    for spacing in SPACINGS:
        bins = fitted(PT, values, 8, spacing)
        assert len(bins) == 1
        assert np.array_equal(bins.values(bins.codes(values), np.full(100, 0.4)), values)


# The tokenizers


CONFIGS: list[PerFeatureConfig | BinningConfig] = [
    PerFeatureConfig(type="per_feature", bins={"pt": 100, "eta_rel": 30}, spacing={"pt": "quantile"}),
    PerFeatureConfig(type="per_feature", bins=50, spacing="quantile", inside="middle"),
    BinningConfig(type="binning", bins=12, inside="uniform"),
    BinningConfig(type="binning", bins={"pt": 20, "eta_rel": 9, "phi_rel": 9, "charge": 3}, spacing={"pt": "log"}),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.type}-{c.inside}")
def test_tokenizers_round_trip_save_and_load(config: PerFeatureConfig | BinningConfig, tmp_path: Path) -> None:
    fit, clouds = toy_jets(300, 1), toy_jets(60, 2)
    tokenizer = fit_tokenizer(config, inputs_of(JETS, fit), fit, 1)
    codes = tokenizer.encode(clouds)
    assert codes.values.dtype == np.int64 and codes.values.min() >= 0
    assert (codes.values.max(axis=0) < [s.size for s in tokenizer.streams]).all()
    decoded = tokenizer.reconstruct(clouds, seed=4)
    assert np.array_equal(tokenizer.encode(decoded).values, codes.values)
    assert np.array_equal(decoded.feature("charge"), clouds.feature("charge"))
    alone = [tokenizer.encode(clouds.select(np.array([i]))).values for i in range(len(clouds))]
    assert np.array_equal(np.concatenate(alone), codes.values)
    tokenizer.save(tmp_path / "once")
    loaded = load_tokenizer(tmp_path / "once", tokenizer_digest(tmp_path / "once"))
    assert type(loaded) is type(tokenizer) and loaded.streams == tokenizer.streams
    assert np.array_equal(loaded.encode(clouds).values, codes.values)
    assert np.array_equal(loaded.reconstruct(clouds, seed=4).points, decoded.points)
    loaded.save(tmp_path / "twice")
    assert tokenizer_digest(tmp_path / "twice") == tokenizer_digest(tmp_path / "once")


def test_many_points_are_coded_as_few_are() -> None:
    fit = toy_jets(300, 1)
    many = PointClouds.concatenate([fit] * 10)  # more than are worked on at once
    for config in CONFIGS:
        tokenizer = fit_tokenizer(config, inputs_of(JETS, fit), fit, 1)
        once, codes = tokenizer.encode(fit).values, tokenizer.encode(many)
        assert np.array_equal(codes.values, np.tile(once, (10, 1)))
        uniform = np.random.default_rng(0).random(once.shape)
        decoded = tokenizer.decode(codes, np.tile(uniform, (10, 1))).values
        assert np.array_equal(decoded, np.tile(tokenizer.decode(Codes(once, fit.offsets), uniform).values, (10, 1)))


def test_per_feature_takes_bins_and_spacing_by_feature() -> None:
    fit = toy_showers(200, 1)
    config = PerFeatureConfig(type="per_feature", bins=40, spacing={"energy": "quantile"})
    tokenizer = PerFeatureTokenizer.fit(inputs_of(SHOWERS, fit), fit, config)
    assert [s.size for s in tokenizer.streams] == [5, 6, 6, 40]
    decoded = tokenizer.reconstruct(fit).points
    assert np.array_equal(decoded[:, :3], fit.points[:, :3])
    held = np.bincount(tokenizer.encode(fit).values[:, 3])
    assert held.max() - held.min() <= 2


def test_binning_is_the_product_of_the_bins_in_c_order() -> None:
    fit = toy_showers(200, 1)
    inputs = inputs_of(SHOWERS, fit)
    product = BinningTokenizer.fit(inputs, fit, BinningConfig(type="binning", bins={"energy": 30, "x": 3, "y": 6}))
    single = PerFeatureTokenizer.fit(inputs, fit, PerFeatureConfig(type="per_feature", bins=30))
    assert [(s.name, s.size) for s in product.streams] == [("code0", 3 * 6 * 30), ("layer", 5)]
    layer, x, y, energy = single.encode(fit).values.T
    expected = np.ravel_multi_index((x // 2, y, energy), (3, 6, 30))
    assert np.array_equal(product.encode(fit).values, np.stack([expected, layer], axis=1))
    decoded = product.reconstruct(fit)
    assert np.array_equal(decoded.points[:, [0, 2]], fit.points[:, [0, 2]])
    assert np.array_equal(decoded.points[:, 1] // 2, fit.points[:, 1] // 2)


def test_one_random_number_places_all_features_independently() -> None:
    rng = np.random.default_rng(5)
    features = tuple(Feature(name=name) for name in "abc")
    clouds = clouds_of(features, [rng.random(20_000) for _ in features])
    config = BinningConfig(type="binning", bins=2, inside="uniform")
    tokenizer = BinningTokenizer.fit(Inputs.fit("toy", ["toy"], features, clouds), clouds, config)
    inside = (2 * tokenizer.reconstruct(clouds, seed=1).points) % 1.0
    assert np.abs(np.corrcoef(inside.T) - np.eye(3)).max() < 0.03
    assert np.abs(np.sort(inside, axis=0) - np.linspace(0, 1, len(inside))[:, None]).max() < 0.02


def test_a_tokenizer_of_the_first_version_can_be_saved_again(tmp_path: Path) -> None:
    home = Path(__file__).parent / "data" / "tokenizers_v1" / "toy_showers"
    first = load_tokenizer(home)
    first.save(tmp_path)
    again, clouds = load_tokenizer(tmp_path), toy_showers(40, 3)
    assert isinstance(again, PerFeatureTokenizer) and again.config.bins == {"energy": 8}
    assert np.array_equal(again.encode(clouds).values, first.encode(clouds).values)
    assert np.array_equal(again.reconstruct(clouds).points, first.reconstruct(clouds).points)


# Mistakes


def test_mistakes_are_named() -> None:
    jets, showers = toy_jets(200, 1), toy_showers(200, 1)
    of_jets, of_showers = inputs_of(JETS, jets), inputs_of(SHOWERS, showers)

    def per_feature(**settings: object) -> None:
        fit_tokenizer(PerFeatureConfig(type="per_feature", **settings), of_jets, jets, 1)  # type: ignore[arg-type]

    def binning(inputs: Inputs = of_jets, clouds: PointClouds = jets, **settings: object) -> None:
        fit_tokenizer(BinningConfig(type="binning", **settings), inputs, clouds, 1)  # type: ignore[arg-type]

    with pytest.raises(DataError, match="'bins' of tokenizer 'toy_jets' names 'eta_re'.*did you mean 'eta_rel'"):
        per_feature(bins={"eta_re": 5})
    with pytest.raises(DataError, match="'spacing' .* names 'charge', which is no feature with bins here"):
        per_feature(spacing={"charge": "log"})
    with pytest.raises(DataError, match="'eta_rel' reaches -.*need values above 0: take 'linear'"):
        per_feature(spacing="log")
    with pytest.raises(DataError, match="too few to fit 1000000 bins of 'pt'"):
        per_feature(bins=1_000_000)
    with pytest.raises(DataError, match="300 pt x 300 eta_rel x 300 phi_rel = 27,000,000 codes, more than 4,194,304"):
        binning(bins=300)
    with pytest.raises(DataError, match="does not say how many 'phi_rel' has"):
        binning(bins={"pt": 5, "eta_rel": 5})
    with pytest.raises(DataError, match="'charge' has 3 values: give it 3 bins, not 2"):
        binning(bins={"pt": 5, "eta_rel": 5, "phi_rel": 5, "charge": 2})
    with pytest.raises(DataError, match="'layer' has 5 values: give it at most 5 bins, not 8"):
        binning(of_showers, showers, bins={"energy": 5, "layer": 8})
    only_layers = SHOWERS.features[:1]
    with pytest.raises(DataError, match="has no continuous features: name in 'bins'"):
        binning(Inputs.fit("toy", ["toy"], only_layers, showers), showers)
    elsewhere = (JETS.features[0].model_copy(update={"range": (5e4, 6e4)}),)
    with pytest.raises(DataError, match="no value of 'pt' lies inside the range of its card"):
        binning(Inputs.fit("toy", ["toy"], elsewhere, jets), jets)
    whole = PerFeatureTokenizer.fit(of_showers, showers, PerFeatureConfig(type="per_feature"))
    with pytest.raises(DataError, match="'layer' must be whole numbers"):
        whole.encode(replace(showers, points=showers.points + np.float32(0.5)))


def test_recipes_may_give_one_number_or_a_mapping() -> None:
    adapter: TypeAdapter = TypeAdapter(TokenizerConfig)
    config = adapter.validate_python({"type": "binning", "bins": {"pt": 8}, "spacing": "log", "inside": "middle"})
    assert isinstance(config, BinningConfig) and config.bins == {"pt": 8}
    for wrong in ({"bins": 1}, {"bins": {"pt": 1}}, {"spacing": "logarithmic"}, {"inside": "mean"}, {"bin": 5}):
        with pytest.raises(ValidationError):
            adapter.validate_python({"type": "per_feature", **wrong})
