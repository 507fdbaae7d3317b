"""Patches of voxel grids: geometry, totals, choice of hits, and a tokenizer fitted on simulated showers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.cards import load_card
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.data.simulate.gflash import simulate_showers
from foundation.errors import DataError
from foundation.tokens.config import PatchesConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.kinds import fit_tokenizer, load_tokenizer
from foundation.tokens.patches import tokenizer as patches
from foundation.tokens.patches.grid import PatchGrid
from foundation.tokens.patches.hits import brightest, chances_of, drawn, many, scaled, spread
from foundation.tokens.patches.net import sine_positions
from foundation.tokens.patches.scale import SCALES, fit_scale
from foundation.tokens.patches.tokenizer import PatchesTokenizer
from foundation.tokens.patches.totals import TotalsCode, places_for

from conftest import JETS, inputs_of, toy_jets

CARD = load_card("gflash_siw")
SETTINGS = PatchesConfig(
    type="patches",
    patch={"layer": 4, "x": 5, "y": 12},  # 12 voxels along each axis: five does not divide them
    codebook=64,
    latent=8,
    width=32,
    encoder_blocks=1,
    decoder_blocks=1,
    steps=150,
    batch_objects=16,
    learning_rate=3e-3,
)


@pytest.fixture(scope="module")
def showers() -> PointClouds:
    return simulate_showers(CARD, 300, 1)


@pytest.fixture(scope="module")
def unseen() -> PointClouds:
    return simulate_showers(CARD, 60, 2)


@pytest.fixture(scope="module")
def losses() -> list[float]:
    return []


@pytest.fixture(scope="module")
def tokenizer(showers: PointClouds, losses: list[float]) -> PatchesTokenizer:
    def on_step(step: int, metrics: object) -> None:
        losses.append(metrics["reconstruction"])  # type: ignore[index]

    fitted = fit_tokenizer(SETTINGS, inputs_of(CARD, showers), showers, 1, on_step)
    assert isinstance(fitted, PatchesTokenizer)
    return fitted


def sums(clouds: PointClouds) -> np.ndarray:
    return np.bincount(clouds.owners, clouds.feature("energy").astype(float), len(clouds))


# the grid


@st.composite
def grids(draw: st.DrawFn) -> PatchGrid:
    cells = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    return PatchGrid(tuple(cells), tuple(draw(st.integers(1, n)) for n in cells))


@settings(max_examples=60, deadline=None)
@given(grid=grids(), seed=st.integers(0, 1000), hits=st.integers(0, 40))
def test_voxels_go_into_patches_and_back(grid: PatchGrid, seed: int, hits: int) -> None:
    rng = np.random.default_rng(seed)
    voxels, owners, energies = rng.integers(0, grid.voxels, hits), rng.integers(0, 3, hits), rng.random(hits)
    dense = grid.cut(voxels, owners, energies, 3)
    assert dense.shape == (3, grid.patches, grid.volume)
    assert grid.real.sum() == grid.voxels and not dense[:, ~grid.real].any()
    truth = np.zeros((3, grid.voxels))
    np.add.at(truth, (owners, voxels), energies)
    assert np.allclose(grid.joined(dense), truth, rtol=1e-12)
    assert np.array_equal(grid.voxel_numbers(grid.voxel_positions(voxels)), voxels)


def test_a_patch_holds_neighbours() -> None:
    grid = PatchGrid((4, 6), (2, 4))
    assert grid.along == (2, 2) and grid.patches == 4 and grid.volume == 8
    patch = grid.joined(np.repeat(np.arange(4.0), 8).reshape(1, 4, 8))[0].reshape(4, 6)
    assert np.array_equal(patch, np.kron([[0, 1], [2, 3]], np.ones((2, 4)))[:, :6])
    assert grid.positions.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_positions_are_fixed_differ_and_close_a_periodic_axis() -> None:
    grid = PatchGrid((3, 8, 4), (1, 1, 2))
    positions = sine_positions(grid, (False, True, False), 38)
    assert positions.shape == (48, 38)
    assert torch.equal(positions, sine_positions(grid, (False, True, False), 38))
    assert len(torch.unique(positions, dim=0)) == 48
    along = positions[grid.positions[:, 0] == 0][::2]
    steps = (along - along.roll(1, 0)).norm(dim=1)
    assert torch.allclose(steps, steps[:1], atol=1e-5)  # from the last to the first it is as far as between others
    assert not torch.allclose(sine_positions(grid, (False, False, False), 38), positions)


# totals and hits


@settings(max_examples=60, deadline=None)
@given(
    base=st.integers(2, 5000),
    energy=st.integers(0, 5),
    share=st.floats(0, 1),
    count=st.integers(0, 40_500),
    uniform=st.floats(0, 0.999),
)
def test_digits_give_counts_exactly_and_shares_within_a_level(
    base: int, energy: int, share: float, count: int, uniform: float
) -> None:
    code = TotalsCode(base, energy, places_for(40_500, base), top=0.8, most=40_500)
    digits = code.encode(np.array([0.8 * share]), np.array([count]))
    assert digits.shape == (1, energy + code.hits) and digits.min() >= 0 and digits.max() < base
    assert code.counts(digits).tolist() == [count]
    if energy:
        back = code.shares(digits, np.array([uniform]))
        assert abs(back[0] - 0.8 * share) <= 0.8 / code.levels * (1 + 1e-6)


def test_digits_that_no_shower_has_decode_to_the_largest() -> None:
    code = TotalsCode(8192, 4, 4, top=1.0, most=100)
    digits = np.full((1, 8), 8191)
    assert code.counts(digits).tolist() == [100] and 0.999 < code.shares(digits, np.zeros(1))[0] <= 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 50), uniform=st.floats(0, 0.999))
def test_numbers_of_hits_are_kept(seed: int, count: int, uniform: float) -> None:
    odds = 4 * np.random.default_rng(seed).normal(size=(1, 50))
    counts = np.array([count])
    chances = chances_of(odds, counts)
    assert chances.sum() == pytest.approx(count, abs=1e-3)
    assert drawn(chances, np.array([uniform])).sum() == count
    best = brightest(odds, counts)[0]
    assert best.sum() == count and (count in (0, 50) or odds[0][best].min() >= odds[0][~best].max())


def test_every_voxel_is_hit_with_its_chance() -> None:
    chances = chances_of(np.random.default_rng(1).normal(size=30), None)[None].repeat(4000, 0)
    hits = drawn(chances, np.linspace(0, 1, 4000, endpoint=False))
    assert np.abs(hits.mean(axis=0) - chances[0]).max() < 0.003
    assert np.ptp(hits.sum(axis=1)) <= 1


def test_energies_spread_inside_a_patch_and_keep_its_sum() -> None:
    rng = np.random.default_rng(5)
    shares, widths, groups = rng.random(3000) + 0.1, np.full(3000, 0.5), np.repeat(np.arange(30), 100)
    values = spread(shares, widths, groups, many(rng.random(30)[groups], np.tile(np.arange(100), 30)))
    wanted = np.bincount(groups, shares) * np.exp(0.125)
    assert np.bincount(groups, values) == pytest.approx(wanted)
    assert np.log(values / shares).std() == pytest.approx(0.5, rel=0.03)
    assert spread(shares, 0 * widths, groups, rng.random(3000)) == pytest.approx(shares)


def test_scaled_energies_have_the_sum_and_none_is_below_the_lowest() -> None:
    energies, owners = np.array([0.01, 0.5, 2.0, 0.3, 0.4]), np.array([0, 0, 0, 2, 2])
    values = scaled(energies, owners, np.array([4.0, 7.0, 0.1]), 0.1)
    assert np.bincount(owners, values) == pytest.approx([4.0, 0.0, 0.2])  # 0.1 is too little for two hits
    assert values.min() >= 0.1 and np.all(np.diff(values[:3]) > 0)


@pytest.mark.parametrize("kind", ["hits", "bce", "mse"])
def test_scales_count_real_voxels_only_and_the_constant_guess_scores_one(kind: str) -> None:
    rng = np.random.default_rng(3)
    x = np.where(rng.random((40, 6, 8)) < 0.3, np.exp(rng.normal(-5, 1, (40, 6, 8))), 0.0)
    hit = x[x > 0]
    scale = fit_scale(kind, hit, len(hit) / x.size)  # type: ignore[arg-type]
    guess = torch.zeros(scale.channels_out, requires_grad=True)
    shares, real = torch.from_numpy(x), torch.ones(6, 8, dtype=torch.bool)
    fit = torch.optim.Adam([guess], lr=0.1)
    for _ in range(300):
        loss = scale.loss(guess.repeat_interleave(8).expand(40, 6, -1), shares, real)
        fit.zero_grad()
        loss.backward()
        fit.step()
    assert float(loss.detach()) == pytest.approx(1.0, abs=0.01)
    real[2:, 5] = False
    out = torch.from_numpy(rng.normal(size=(40, 6, 8 * scale.channels_out)))
    other = out.unflatten(-1, (scale.channels_out, 8)).where(real[:, None], torch.tensor(9.0)).flatten(-2)
    assert torch.equal(scale.loss(out, shares, real), scale.loss(other, shares, real))
    if kind != "bce":  # its logits are not what enters
        entered = scale.enter(shares)
        shown = scale.leave(F.pad(entered, (0, 8 * scale.channels_out - entered.shape[-1])))
        assert torch.allclose(shown.shares[shares > 0], shares[shares > 0])
    assert type(scale) is SCALES[kind]


# the tokenizer


def test_a_shower_is_one_token_per_patch_after_its_totals(tokenizer: PatchesTokenizer, unseen: PointClouds) -> None:
    codes = tokenizer.encode(unseen)
    assert tokenizer.grid.along == (3, 3, 1) and tokenizer.leading == 1 + 2  # 64**2 > 1728 voxels
    assert tokenizer.tokens_per_object == 12 and np.array_equal(codes.offsets, 12 * np.arange(61))
    assert [(s.name, s.size) for s in tokenizer.streams] == [("code0", 64)]
    assert codes.values.min() >= 0 and codes.values.max() < 64
    assert tokenizer.code_vectors()["code0"].shape == (64, 8)


def test_energy_and_number_of_hits_survive_and_the_shape_is_learnt(
    tokenizer: PatchesTokenizer, unseen: PointClouds, losses: list[float]
) -> None:
    back = tokenizer.reconstruct(unseen)
    assert np.array_equal(back.counts, unseen.counts)
    levels = tokenizer.totals.levels
    step = tokenizer.totals.top / levels * unseen.condition("incident_energy") * 1000
    assert (np.abs(sums(back) - sums(unseen)) < step * 1.02).all()
    assert np.mean(losses[-20:]) < 0.75  # the best constant guess scores 1
    depths = [np.bincount(c.owners, c.feature("layer") * c.feature("energy")) / sums(c) for c in (unseen, back)]
    assert (depths[1] - depths[0]).std() < 0.8 * depths[0].std()


def test_decoded_hits_come_in_the_order_of_the_axes_on_the_grid(
    tokenizer: PatchesTokenizer, unseen: PointClouds
) -> None:
    back = tokenizer.reconstruct(unseen)
    number = np.ravel_multi_index(back.points[:, :3].astype(int).T, (12, 12, 12)) + 1728 * back.owners
    assert (np.diff(number) > 0).all()  # sorted, and no voxel twice
    assert back.feature("energy").min() >= tokenizer.inputs.window(CARD.features[3])[0] * 0.9999


def test_order_and_splitting_of_hits_do_not_change_codes(tokenizer: PatchesTokenizer, unseen: PointClouds) -> None:
    rng, codes = np.random.default_rng(0), tokenizer.encode(unseen).values
    mixed = np.lexsort([rng.random(len(unseen.points)), unseen.owners])
    assert np.array_equal(tokenizer.encode(replace(unseen, points=unseen.points[mixed])).values, codes)
    halves = np.repeat(unseen.points, 2, axis=0) * np.array([1, 1, 1, 0.5], np.float32)
    split = replace(unseen, points=halves, offsets=2 * unseen.offsets)
    assert np.array_equal(tokenizer.encode(split).values, codes)


def test_a_shower_does_not_depend_on_its_company(
    tokenizer: PatchesTokenizer, unseen: PointClouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, uniform = tokenizer.encode(unseen), np.random.default_rng(0).random((12 * 60, 1))
    incident = unseen.condition("incident_energy")
    points = tokenizer.decode(whole, uniform, {"incident_energy": incident})
    monkeypatch.setattr(patches, "MOST_PER_PASS", 7)
    assert np.array_equal(tokenizer.encode(unseen).values, whole.values)
    for i in (0, 31):
        alone = tokenizer.encode(unseen.select(np.array([i])))
        assert np.array_equal(alone.values, whole.values[12 * i : 12 * i + 12])
        again = tokenizer.decode(alone, uniform[12 * i : 12 * i + 12], {"incident_energy": incident[i : i + 1]})
        there = points.values[points.offsets[i] : points.offsets[i + 1]]
        assert np.array_equal(again.values[:, :3], there[:, :3])
        assert np.allclose(again.values[:, 3], there[:, 3], rtol=1e-4)
    nothing = tokenizer.encode(unseen.select(np.array([], np.int64)))
    assert len(tokenizer.decode(nothing, np.zeros((0, 1)), {"incident_energy": np.zeros(0)}).values) == 0


def test_the_energy_of_decoded_hits_follows_the_incident_energy(
    tokenizer: PatchesTokenizer, unseen: PointClouds
) -> None:
    codes, uniform = tokenizer.encode(unseen), np.full((12 * 60, 1), 0.5)
    totals = []
    for factor in (1.0, 1.5):
        points = tokenizer.decode(codes, uniform, {"incident_energy": factor * unseen.condition("incident_energy")})
        owners = np.repeat(np.arange(60), np.diff(points.offsets))
        totals.append(np.bincount(owners, points.values[:, 3], 60))
    assert totals[1] / totals[0] == pytest.approx(np.full(60, 1.5), rel=1e-5)


def test_units_do_not_change_codes(showers: PointClouds) -> None:
    short = SETTINGS.model_copy(update={"steps": 5})
    codes = fit_tokenizer(short, inputs_of(CARD, showers), showers, 1).encode(showers).values
    mev = replace(showers, conditions=showers.conditions * 1000, condition_units=("MeV",))
    other = fit_tokenizer(short, inputs_of(CARD, mev), mev, 1)
    assert (other.encode(mev).values == codes).mean() > 0.99  # rounding may move a vector across a border
    with pytest.raises(DataError, match="'incident_energy' is in GeV, but tokenizer 'gflash_siw' was fitted in MeV"):
        other.encode(showers)


@pytest.mark.parametrize(("loss", "energy_tokens"), [("bce", 0), ("mse", 1)])
def test_without_counted_hits_a_threshold_keeps_their_mean_number(
    showers: PointClouds, loss: str, energy_tokens: int
) -> None:
    changes = {"loss": loss, "energy_tokens": energy_tokens, "count_hits": False, "periodic": ("x",), "steps": 60}
    fitted = fit_tokenizer(SETTINGS.model_copy(update=changes), inputs_of(CARD, showers), showers, 1)
    assert fitted.tokens_per_object == 9 + energy_tokens
    back = fitted.reconstruct(showers)
    assert back.counts.mean() == pytest.approx(showers.counts.mean(), rel=0.02)
    assert sums(back).mean() == pytest.approx(sums(showers).mean(), rel=0.01 if energy_tokens else 0.4)


def test_residual_codes_share_the_totals(showers: PointClouds, unseen: PointClouds) -> None:
    config = SETTINGS.model_copy(update={"quantisers": 2, "steps": 20})
    fitted = fit_tokenizer(config, inputs_of(CARD, showers), showers, 1)
    assert isinstance(fitted, PatchesTokenizer)
    assert fitted.leading == 2 and fitted.encode(unseen).values.shape == (11 * 60, 2)  # one token of each, two digits
    assert np.array_equal(fitted.reconstruct(unseen).counts, unseen.counts)


def test_saved_and_fitted_again_it_is_the_same(
    tokenizer: PatchesTokenizer, showers: PointClouds, unseen: PointClouds, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.streams == tokenizer.streams and loaded.tokens_per_object == tokenizer.tokens_per_object
    assert np.array_equal(loaded.encode(unseen).values, tokenizer.encode(unseen).values)
    assert np.array_equal(loaded.reconstruct(unseen, 3).points, tokenizer.reconstruct(unseen, 3).points)
    short = SETTINGS.model_copy(update={"steps": 10})
    twice = [fit_tokenizer(short, inputs_of(CARD, showers), showers, 4) for _ in range(2)]
    assert np.array_equal(twice[0].encode(unseen).values, twice[1].encode(unseen).values)


# mistakes


def fit(clouds: PointClouds, **changes: object) -> None:
    config = PatchesConfig(**{**SETTINGS.model_dump(), "steps": 1, **changes})
    fit_tokenizer(config, inputs_of(CARD, clouds), clouds, 1)


def test_settings_that_do_not_fit_the_grid_are_refused(showers: PointClouds) -> None:
    with pytest.raises(DataError, match="'patch' names 'layers', which is not an axis.*did you mean 'layer'"):
        fit(showers, patch={"layers": 4, "x": 5, "y": 12})
    with pytest.raises(DataError, match=r"'patch' gives no size along 'y' \(1 .. 12\)"):
        fit(showers, patch={"layer": 4, "x": 5})
    with pytest.raises(DataError, match="a patch of 13 along 'x' does not fit in its 12 voxels"):
        fit(showers, patch={"layer": 4, "x": 13, "y": 12})
    with pytest.raises(DataError, match="'periodic' names 'energy', which is not an axis"):
        fit(showers, periodic=("energy",))
    with pytest.raises(DataError, match="which these showers do not have.*did you mean 'incident_energy'"):
        fit(showers, condition="incident_energi")
    with pytest.raises(ValueError, match=r"'width' \(30\) must be a multiple of 'heads' \(4\)"):
        fit(showers, width=30)
    jets = toy_jets(30, 1)
    with pytest.raises(DataError, match=r"patches need showers on a grid.*pt \(continuous\)"):
        fit_tokenizer(SETTINGS, Inputs.fit("j", ("j",), JETS.features, jets), with_energy(jets), 1)


def with_energy(clouds: PointClouds) -> PointClouds:
    return replace(
        clouds,
        conditions=np.ones((len(clouds), 1), np.float32),
        condition_names=("incident_energy",),
        condition_units=("GeV",),
    )


def test_an_empty_shower_stays_empty(tokenizer: PatchesTokenizer, unseen: PointClouds) -> None:
    first = int(unseen.offsets[1])
    gap = replace(unseen, points=unseen.points[first:], offsets=np.append(0, unseen.offsets[1:] - first))
    assert np.array_equal(tokenizer.reconstruct(gap).counts, gap.counts) and gap.counts[0] == 0


def test_showers_without_what_is_needed_are_refused(tokenizer: PatchesTokenizer, unseen: PointClouds) -> None:
    codes, uniform = tokenizer.encode(unseen), np.zeros((12 * 60, 1))
    with pytest.raises(DataError, match="divides energies by 'incident_energy': give it for every shower, in GeV"):
        tokenizer.decode(codes, uniform)
    with pytest.raises(DataError, match="must be known and above 0"):
        tokenizer.decode(codes, uniform, {"incident_energy": np.full(60, np.nan)})
    with pytest.raises(DataError, match="which these showers do not have"):
        tokenizer.encode(unseen.with_columns(unseen.features, (), unseen.tag))
    cut = replace(codes, values=codes.values[:-1], offsets=to_offsets(np.array([12] * 59 + [11])))
    with pytest.raises(DataError, match="shower 59 has 11 codes, but tokenizer 'gflash_siw' gives every shower 12"):
        tokenizer.decode(cut, uniform[:-1], {"incident_energy": np.ones(60)})
    points = unseen.points.copy()
    points[3, 1] = 12
    with pytest.raises(DataError, match="'x' reaches 12, above its range"):
        tokenizer.encode(replace(unseen, points=points))
