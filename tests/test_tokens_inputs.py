"""What a tokenizer refuses: features, units, conventions and scales other than those it was fitted on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foundation.data.cards import Feature
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.tokens.config import PerFeatureConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.kinds import fit_tokenizer, load_tokenizer
from foundation.tokens.tokenizer import Tokenizer, tokenizer_digest

FEATURES = (
    Feature(name="pt", unit="GeV", range=(0.1, 1000.0), log=True, shift=1.8),
    Feature(name="eta_rel", range=(-1.6, 1.6), scale=3.0, convention="constituent - jet"),
    Feature(name="d0", unit="mm", range=(-10.0, 10.0), convention="(x py - y px) / pT"),
    Feature(name="charge", unit="index", kind="category", categories=("negative", "neutral", "positive")),
)


def jets(n: int, seed: int) -> PointClouds:
    """Jets whose constituents have the pT spectrum of real ones: mostly between 1 and 30 GeV."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(10, 60, n)
    total = int(counts.sum())
    points = np.stack(
        [
            np.exp(rng.normal(1.5, 1.2, total)).clip(0.2, 900),
            rng.normal(0, 0.2, total).clip(-1.5, 1.5),
            rng.standard_t(2, total).clip(-9, 9) * 0.1,
            rng.integers(0, 3, total),
        ],
        axis=1,
    ).astype(np.float32)
    return PointClouds(
        points=points,
        offsets=to_offsets(counts),
        features=tuple(f.name for f in FEATURES),
        units=tuple(f.unit for f in FEATURES),
        conventions=tuple(f.convention for f in FEATURES),
        labels=np.zeros(n, np.int64),
        conditions=np.zeros((n, 0), np.float32),
        tag="jets",
    )


@pytest.fixture(scope="module")
def fitted() -> Tokenizer:
    """A tokenizer of jets."""
    clouds = jets(200, 1)
    inputs = Inputs.fit("jets", ("jets",), FEATURES, clouds)
    return fit_tokenizer(PerFeatureConfig(type="per_feature", bins=32), inputs, clouds, 1)


def with_pt(clouds: PointClouds, pt: np.ndarray) -> PointClouds:
    """The same clouds with other numbers where pT in GeV should be."""
    return replace(clouds, points=np.column_stack([pt, clouds.points[:, 1:]]).astype(np.float32))


def test_jets_like_those_of_the_fit_are_taken(fitted: Tokenizer) -> None:
    clouds = jets(100, 2)
    assert len(fitted.encode(clouds).values) == len(clouds.points)
    undeclared = replace(clouds, conventions=())
    assert np.array_equal(fitted.encode(undeclared).values, fitted.encode(clouds).values)
    harder = with_pt(clouds, clouds.points[:, 0] * 3)  # another process, not another unit
    assert len(fitted.encode(harder).values)


def test_pt_relative_to_the_jet_is_refused(fitted: Tokenizer) -> None:
    clouds = jets(100, 3)
    pt = clouds.points[:, 0].astype(np.float64)
    relative = pt / np.repeat(np.add.reduceat(pt, clouds.offsets[:-1]), clouds.counts)
    with pytest.raises(DataError, match=r"'pt' is mostly between .* but tokenizer 'jets' was fitted on values .* GeV"):
        fitted.encode(with_pt(clouds, relative))


def test_mev_called_gev_is_refused(fitted: Tokenizer) -> None:
    clouds = jets(100, 3)
    with pytest.raises(DataError, match="are they really in GeV"):
        fitted.encode(with_pt(clouds, clouds.points[:, 0] * 1000))
    with pytest.raises(DataError, match="'pt' is in MeV, but tokenizer 'jets' was fitted in GeV"):
        fitted.encode(replace(clouds, units=("MeV", *clouds.units[1:])))


def test_the_logarithm_of_pt_is_refused(fitted: Tokenizer) -> None:
    clouds = jets(100, 3)
    with pytest.raises(DataError, match="'pt' reaches .* must be above 0 .* not their logarithm"):
        fitted.encode(with_pt(clouds, np.log(clouds.points[:, 0])))


def test_a_missing_feature_is_refused_with_the_nearest_name(fitted: Tokenizer) -> None:
    clouds = jets(20, 3)
    with pytest.raises(DataError, match="needs feature 'eta_rel'.*did you mean 'eta_rell'"):
        fitted.encode(replace(clouds, features=("pt", "eta_rell", "d0", "charge")))


def test_another_sign_convention_is_refused(fitted: Tokenizer) -> None:
    clouds = jets(20, 3)
    flipped = replace(clouds, conventions=("", "constituent - jet", "(y px - x py) / pT", ""))
    with pytest.raises(DataError, match=r"'d0' follows the convention '\(y px - x py\) / pT', but .* convert it first"):
        fitted.encode(flipped)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(fitted: Tokenizer, value: float) -> None:
    clouds = jets(20, 3)
    points = clouds.points.copy()
    points[7, 2] = value
    with pytest.raises(DataError, match="'d0' has NaN or infinite values"):
        fitted.encode(replace(clouds, points=points))


def test_points_outside_the_fit_are_counted_and_kept(fitted: Tokenizer) -> None:
    clouds = jets(50, 4)
    points = clouds.points.copy()
    points[:3, 0], points[3, 1] = 5000.0, 1.59
    wild = replace(clouds, points=points)
    before, after = fitted.inputs.outside(clouds), fitted.inputs.outside(wild)
    assert after["pt"] == before.get("pt", 0) + 3 and after["eta_rel"] == before.get("eta_rel", 0) + 1
    decoded = fitted.reconstruct(wild)
    assert len(decoded.points) == len(wild.points)
    assert decoded.points[:3, 0] == pytest.approx(fitted.inputs.window(FEATURES[0])[1], rel=0.5)


def test_a_fit_needs_points_of_the_right_kind() -> None:
    clouds = jets(20, 1)
    with pytest.raises(DataError, match="no points to fit"):
        Inputs.fit("jets", ("jets",), FEATURES, clouds.select(slice(0, 0)))
    with pytest.raises(DataError, match="'pt' reaches"):
        Inputs.fit("jets", ("jets",), FEATURES, with_pt(clouds, -clouds.points[:, 0]))


def test_another_artefact_is_refused_by_its_hash(fitted: Tokenizer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    digest = tokenizer_digest(tmp_path)
    assert np.array_equal(load_tokenizer(tmp_path, digest).encode(jets(9, 9)).values, fitted.encode(jets(9, 9)).values)
    with pytest.raises(DataError, match="another tokenizer than the one of the vocabulary"):
        load_tokenizer(tmp_path, "0" * 64)


def test_damaged_and_newer_artefacts_are_named(fitted: Tokenizer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    weights, head = tmp_path / "tokenizer.safetensors", tmp_path / "tokenizer.json"
    good, said = weights.read_bytes(), json.loads(head.read_text())
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(DataError, match="does not belong to tokenizer.json"):
        load_tokenizer(tmp_path)
    weights.write_bytes(good)
    head.write_text(json.dumps(said | {"format": "foundation/tokenizer/99"}))
    with pytest.raises(DataError, match="which this version cannot read"):
        load_tokenizer(tmp_path)
    head.write_text(json.dumps(said | {"kind": "per_featur"}))
    with pytest.raises(DataError, match="unknown tokenizer kind 'per_featur'.*did you mean 'per_feature'"):
        load_tokenizer(tmp_path)
    head.unlink()
    with pytest.raises(DataError, match="not a tokenizer"):
        load_tokenizer(tmp_path)
