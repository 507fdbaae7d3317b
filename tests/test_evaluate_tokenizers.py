"""What tokenizers lose: numbers against hand-computed ones, the report, the stage and the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from distorting_tokenizers import Distorting, Grid, grid_jets
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluate_report import Balance

from foundation.cli import main
from foundation.data.files import write_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, FoundationError
from foundation.evaluate import tokenizers as measuring
from foundation.evaluate.codes import stream_use
from foundation.evaluate.report import RunDescription
from foundation.evaluate.residuals import relative_residuals, residual_statistics
from foundation.evaluate.tokenizer_evaluation import InformationTest, TokenizerEvaluation, evaluate_tokenizers
from foundation.evaluate.tokenizer_report import markdown
from foundation.evaluate.tokenizers import Truth, decoded_clouds, measure
from foundation.evaluate.voxels import voxel_pairs, voxel_response
from foundation.recipe.loading import load_recipe
from foundation.recipe.running import run_recipe
from foundation.tokens.config import PerFeatureConfig
from foundation.tokens.inputs import Inputs
from foundation.tokens.kinds import fit_tokenizer
from foundation.tokens.tokenizer import Stream, Tokenizer

from conftest import JETS, SHOWERS, ToyTokens, inputs_of, toy_jets, toy_showers

RUN = RunDescription(title="Tokenizers", reproduce=("foundation evaluate tokenizer",))


# Numbers


def test_residuals_of_a_known_distribution() -> None:
    values = np.concatenate([np.linspace(-1, 1, 20_001) + 0.25, [np.nan, np.inf]])
    found = residual_statistics(values)
    assert (found.n, found.missing) == (20_001, 2)
    assert found.bias.value == pytest.approx(0.25) and found.median == pytest.approx(0.25)
    assert found.width.value == pytest.approx(0.68) and found.rms == pytest.approx(1 / np.sqrt(3), rel=1e-3)
    assert found.tail == 0 and found.far == pytest.approx(1.23)
    assert found.bias.error == pytest.approx(1 / np.sqrt(3 * 20_001), rel=0.4)
    normal = np.random.default_rng(1).normal(0, 2, 200_000)
    found = residual_statistics(np.append(normal, np.full(2000, 50.0)), resamplings=0)
    assert found.width.value == pytest.approx(2 * 0.994, rel=0.03)
    assert found.tail == pytest.approx(2000 / 202_000 + 0.0027, abs=0.0015)
    assert np.isnan(found.bias.error)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=60), st.floats(-50, 50), st.floats(0.1, 10))
def test_residuals_follow_shifts_and_scales(values: list[float], shift: float, scale: float) -> None:
    before = residual_statistics(np.array(values), resamplings=0)
    after = residual_statistics(np.array(values) * scale + shift, resamplings=0)
    assert after.bias.value == pytest.approx(before.bias.value * scale + shift, abs=1e-9)
    assert after.width.value == pytest.approx(before.width.value * scale, abs=1e-9)
    assert after.rms == pytest.approx(before.rms * scale, abs=1e-9)


def test_nothing_and_zero_have_no_residuals() -> None:
    found = residual_statistics(np.full(3, np.nan))
    assert (found.n, found.missing) == (0, 3) and np.isnan(found.width.value)
    assert np.isnan(relative_residuals(np.ones(1), np.zeros(1))[0])


@pytest.mark.parametrize(
    ("counts", "used", "entropy"),
    [([4, 4, 0, 0], 0.5, 1.0), ([5, 5, 5, 5], 1.0, 2.0), ([7, 0, 0, 0], 0.25, 0.0), ([2, 1, 1, 0], 0.75, 1.5)],
)
def test_usage_of_known_codes(counts: list[int], used: float, entropy: float) -> None:
    found = stream_use(Stream("code0", 4), np.array(counts))
    assert (found.used, found.entropy_bits) == pytest.approx((used, entropy))
    assert found.perplexity == pytest.approx(2**entropy)


def test_a_known_distortion_is_measured() -> None:
    clouds = grid_jets(300, 5)
    truth = Truth.of(JETS, clouds)
    assert list(truth.groups) == ["all", "narrow", "wide"]
    found = measure("d", Distorting(inputs_of(JETS, clouds), 1.1, 0.02), truth)
    rows = {(r.feature, r.group): r for r in found.feature_rows}
    assert rows["pt", "all"].relative and rows["pt", "all"].residuals.bias.value == pytest.approx(0.1, abs=1e-5)
    eta = rows["eta_rel", "wide"].residuals
    assert eta.bias.value == pytest.approx(0.02, abs=1e-5) and eta.width.value == pytest.approx(0, abs=1e-5)
    assert eta.n == clouds.counts[clouds.labels == 1].sum()
    assert rows["charge", "all"].exact == 1 and rows["charge", "all"].residuals.n == 0
    # a boost along the beam and a scale of all momenta: both masses and pT grow by 10 %, substructure stays
    for group in truth.groups:
        for name in ("mass", "pt"):
            row = found.of_objects(name, group)
            assert row is not None and row.relative
            assert row.residuals.bias.value == pytest.approx(0.1, abs=1e-3)
            assert row.decoded == pytest.approx(1.1 * row.truth, rel=1e-3)
        tau32 = found.of_objects("tau32", group)
        # points on a grid have equal distances, so that rounding decides which are joined in a few jets
        assert tau32 is not None and tau32.residuals.width.value == pytest.approx(0, abs=1e-5)
    mass, multiplicity = found.of_objects("mass"), found.of_objects("multiplicity")
    assert mass is not None and mass.w1.value > mass.floor and mass.w1.error > 0
    assert multiplicity is not None and multiplicity.w1.value == pytest.approx(multiplicity.floor)
    assert found.encode_per_second > 0 and found.decode_per_second > 0 and not found.fixed


def test_rate_is_that_of_the_layout(toy: ToyTokens) -> None:
    tokenizer, clouds = toy.tokenizers["toy_jets"], toy_jets(60, 9)
    found = measure("t", tokenizer, Truth.of(JETS, clouds))
    sizes = [s.size for s in tokenizer.streams]
    assert found.rate.tokens == clouds.counts.mean()
    assert found.rate.bits == pytest.approx(clouds.counts.mean() * np.log2(np.prod(sizes)))
    assert found.rate.entropy_bits == pytest.approx(clouds.counts.mean() * sum(s.entropy_bits for s in found.streams))
    assert found.rate.delayed == toy.layout("delayed").lengths("toy_jets", clouds.counts).mean()
    assert found.rate.interleaved == 3 + 1 + len(sizes) * clouds.counts.mean()
    codes = tokenizer.encode(clouds).values
    for k, stream in enumerate(found.streams):
        assert stream.used == len(np.unique(codes[:, k])) / stream.size


def test_showers_are_grouped_by_incident_energy(toy: ToyTokens) -> None:
    clouds = toy_showers(90, 4)
    truth = Truth.of(SHOWERS, clouds)
    sizes = [len(index) for name, index in truth.groups.items() if name != "all"]
    assert len(sizes) == 4 and sum(sizes) == 90 and max(sizes) - min(sizes) <= 1
    found = measure("s", toy.tokenizers["toy_showers"], truth)
    exact = {r.feature: r.exact for r in found.feature_rows if r.group == "all"}
    assert [exact[name] for name in ("layer", "x", "y")] == [1, 1, 1] and np.isnan(exact["energy"])
    decoded = toy.tokenizers["toy_showers"].reconstruct(clouds, 0)
    sums = [np.bincount(c.owners, c.feature("energy").astype(float), 90) for c in (decoded, clouds)]
    row = found.of_objects("energy_sum")
    assert row is not None and row.residuals.bias.value == pytest.approx((sums[0] / sums[1] - 1).mean())


def test_pieces_give_what_the_whole_gives(toy: ToyTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, clouds = toy.tokenizers["toy_showers"], toy_showers(50, 3)
    whole = tokenizer.reconstruct(clouds, seed=4)
    monkeypatch.setattr(measuring, "AT_ONCE", 7)
    pieces = decoded_clouds(tokenizer, clouds, seed=4)
    assert np.array_equal(pieces.points, whole.points) and np.array_equal(pieces.offsets, whole.offsets)
    truth = Truth.of(SHOWERS, clouds)
    assert np.array_equal(truth.observables["hits"], clouds.counts)


def test_patches_are_compared_by_object_and_voxel() -> None:
    clouds = toy_showers(80, 6)
    found = measure("g", Grid(inputs_of(SHOWERS, clouds)), Truth.of(SHOWERS, clouds))
    assert found.fixed and found.feature_rows == () and found.rate.tokens == 180
    assert {r.observable for r in found.object_rows} >= {"energy_sum", "hits", "cog_layer", "response"}
    assert found.of_objects("energy_sum").residuals.bias.value < 0  # type: ignore[union-attr]
    assert found.voxels is not None and found.voxels.made_up == 0 and found.voxels.made_up_energy == 0
    first, *others = found.voxels.bins
    assert (first.low, first.high, first.found, first.response) == (pytest.approx(0.1), pytest.approx(1), 0, 0)
    assert others[0].found == 1 and 0.5 < others[0].response < others[1].response < 1


def test_voxels_are_matched_within_their_shower() -> None:
    def showers(rows: list[list[float]], counts: list[int]) -> PointClouds:
        clouds = toy_showers(2, 1)
        return replace(clouds, points=np.array(rows, np.float32), offsets=np.cumsum([0, *counts]))

    truth = showers([[0, 1, 1, 2.0], [0, 1, 1, 3.0], [4, 5, 5, 20.0], [0, 0, 0, 5.0]], [3, 1])
    decoded = showers([[0, 1, 1, 4.0], [0, 0, 0, 7.0], [4, 5, 5, 1.0]], [2, 1])
    assert SHOWERS.geometry is not None
    pairs = voxel_pairs(truth, decoded, SHOWERS.geometry)
    assert sorted(zip(pairs.truth.tolist(), pairs.decoded.tolist(), strict=True)) == [(5, 0), (5, 4), (20, 0)]
    assert sorted(pairs.made_up.tolist()) == [1, 7]
    found = voxel_response([pairs])
    assert (found.found, found.made_up, found.made_up_energy) == pytest.approx((1 / 3, 2 / 3, 8 / 30))
    assert [(b.voxels, b.found, b.response) for b in found.bins] == [(2, 0.5, 0.4), (1, 0, 0)]


def test_without_the_features_that_it_needs_nothing_is_said_of_objects() -> None:
    clouds = toy_jets(60, 2)
    inputs = Inputs.fit("some", ("toy_jets",), JETS.features[1:3], clouds)
    tokenizer = fit_tokenizer(PerFeatureConfig(type="per_feature", bins=8), inputs, clouds, 1)
    found = measure("some", tokenizer, Truth.of(JETS, clouds))
    assert found.object_rows == () and found.notes == ("no quantities of whole objects: it does not code pt",)
    assert {r.feature for r in found.feature_rows} == {"eta_rel", "phi_rel"}


# Everything in one go


def several(clouds: PointClouds) -> dict[str, Tokenizer]:
    """Coarse and fine bins of all features, and finer ones of three."""
    kinematic = Inputs.fit("toy_jets", ("toy_jets",), JETS.features[:3], clouds)
    fitted = {
        f"bins{bins}": fit_tokenizer(
            PerFeatureConfig(type="per_feature", bins=bins), inputs_of(JETS, clouds), clouds, 1
        )
        for bins in (64, 8)
    }
    config = PerFeatureConfig(type="per_feature", bins=32)
    return {**fitted, "three": fit_tokenizer(config, kinematic, clouds, 1)}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> TokenizerEvaluation:
    tokenizers = several(toy_jets(300, 1))
    in_mev = tuple(f.model_copy(update={"unit": "MeV"}) if f.name == "pt" else f for f in JETS.features)
    tokenizers["wrong"] = Distorting(replace(inputs_of(JETS, toy_jets(300, 1)), features=in_mev, name="wrong"), 1, 0)
    test = InformationTest(toy_jets(400, 11), toy_jets(300, 12), ("deep_sets",), epochs=1)
    folder = tmp_path_factory.mktemp("tokenizers")
    return evaluate_tokenizers(folder, RUN, JETS, toy_jets(200, 2), tokenizers, test)


def test_tokenizers_come_by_rising_bits_and_lose_less(result: TokenizerEvaluation) -> None:
    assert [q.name for q in result.qualities] == ["bins8", "three", "bins64"]
    coarse, _, fine = result.qualities
    for name in ("mass", "pt"):
        widths = [q.of_objects(name).residuals.width.value for q in (coarse, fine)]  # type: ignore[union-attr]
        assert widths[1] < widths[0] / 3
    assert result.scores["bins8"]["mass_width"] == coarse.of_objects("mass").residuals.width.value  # type: ignore[union-attr]
    assert result.headline[0].startswith("bins8: ") and "mass width [%]" in result.headline[0]


def test_a_tokenizer_that_fails_is_a_sentence(result: TokenizerEvaluation) -> None:
    assert len(result.problems) == 1
    assert result.problems[0].startswith("wrong: feature 'pt' is in GeV, but tokenizer 'wrong' was fitted in MeV")
    assert result.problems[0].replace("'", "&#x27;") in result.report.read_text()


def test_networks_see_the_features_that_all_have(result: TokenizerEvaluation) -> None:
    assert [x.tokenizer for x in result.losses][0] == "original"
    assert {x.tokenizer for x in result.losses} == {"original", "bins8", "bins64", "three"}
    assert all(np.isfinite(x.gap.value) for x in result.losses)
    assert any("accuracy gap deep sets [pp]" in line for line in result.table)
    assert "gap_deep_sets" in result.scores["bins8"]


def test_tokenizer_report_is_self_contained(result: TokenizerEvaluation) -> None:
    page = result.report.read_text()
    assert not re.search(r"https?://|@import|<script src|<link|url\(", page)
    images = re.findall(r' data-name="([^"]*)"', page)
    assert images == ["tokenizer_rates", "tokenizer_objects", "tokenizer_features", "tokenizer_usage"]
    for words in ("Rate and distortion", "Loss of information", "Whole objects", "perplexity", "tau32", "phi_rel"):
        assert words in page
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    figures = {p.name for p in (result.report.parent / "figures").iterdir()}
    assert figures == {f"{name}.png" for name in images}


def test_tokenizer_metrics_are_strict_json(result: TokenizerEvaluation) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(result.metrics.read_text(), parse_constant=refuse)
    assert content["schema"] == "foundation/tokenizer-metrics/1" and content["distortion"] == "mass"
    assert [t["name"] for t in content["tokenizers"]] == ["bins8", "three", "bins64"]
    one = content["tokenizers"][0]
    assert one["rate"]["tokens"] > 0 and one["streams"][0]["perplexity"] > 1
    assert {"group", "observable", "residuals", "w1", "floor"} <= set(one["object_rows"][0])
    assert one["feature_rows"][0]["residuals"]["width"]["value"] > 0 and "code_counts" not in one
    table = (result.metrics.parent / "tokenizers.md").read_text().splitlines()
    assert table == list(result.table) and len({line.count("|") for line in table[:5]}) == 1


def test_a_table_of_markdown_is_aligned() -> None:
    assert markdown(["a", "bits"], [["long", "1"], ["x", "22"]]) == [
        "| a    | bits |",
        "| ---- | ---: |",
        "| long |    1 |",
        "| x    |   22 |",
    ]


def test_patches_and_points_share_a_report(toy: ToyTokens, tmp_path: Path) -> None:
    clouds = toy_showers(90, 8)
    tokenizers = {"points": toy.tokenizers["toy_showers"], "grid": Grid(inputs_of(SHOWERS, clouds))}
    done = evaluate_tokenizers(tmp_path, RUN, SHOWERS, clouds, tokenizers)
    assert done.losses == () and done.problems == ()
    page = done.report.read_text()
    assert "of the true voxels are hit after decoding" in page and "Loss of information" not in page
    assert any("energy bias [%]" in line for line in done.table)


def test_nothing_to_measure_is_an_error(toy: ToyTokens, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer could be measured: showers: .*needs feature 'layer'"):
        evaluate_tokenizers(tmp_path / "x", RUN, JETS, toy_jets(30, 1), {"showers": toy.tokenizers["toy_showers"]})
    assert not (tmp_path / "x").exists()
    with pytest.raises(DataError, match="no objects to measure"):
        Truth.of(JETS, toy_jets(30, 1).select(np.arange(0)))


# The stage and the command


RECIPE = """
name: quality
description: Two tokenizers.
stages:
  - {kind: import, name: jets, dataset: jets.yaml,
     files: {train: [train.h5], validation: [validation.h5], test: [one.h5, two.h5]}}
  - {kind: import, name: showers, dataset: showers.yaml, files: {train: [showers.h5], validation: [more.h5]}}
  - {kind: tokenizer, name: coarse, from: jets, method: {type: per_feature, bins: 8}}
  - {kind: tokenizer, name: fine, from: jets, features: [pt, eta_rel, phi_rel], method: {type: per_feature, bins: 64}}
  - {kind: tokenizer, name: other, from: showers, method: {type: per_feature, bins: 8}}
  - kind: evaluate_tokenizers
    name: quality
    from: jets
    tokenizers: [coarse, fine]
    objects: 90
    information: {networks: [deep_sets], epochs: 1, train_objects: 250, test_objects: 100}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe on toy files, and the working folder with them."""
    monkeypatch.setenv("FOUNDATION_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    for card in (JETS, SHOWERS):
        name = card.name.removeprefix("toy_")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_none=True)))
    for name, n in {"train": 300, "validation": 40, "one": 30, "two": 150}.items():
        write_point_clouds(tmp_path / f"{name}.h5", toy_jets(n, n))
    for name, n in {"showers": 60, "more": 20}.items():
        write_point_clouds(tmp_path / f"{name}.h5", toy_showers(n, n))
    (tmp_path / "quality.yaml").write_text(RECIPE)
    return tmp_path / "quality.yaml"


def test_the_stage_measures_and_is_skipped_when_done(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = run_recipe(load_recipe(str(recipe)))
    summary = artifacts["quality"].summary
    folder = artifacts["quality"].folder
    assert summary["problems"] == [] and set(summary["scores"]) == {"coarse", "fine"}
    assert summary["scores"]["fine"]["mass_width"] < summary["scores"]["coarse"]["mass_width"]
    assert "gap_deep_sets" in summary["scores"]["fine"]
    content = json.loads((folder / "tokenizer_metrics.json").read_text())
    assert [t["objects"] for t in content["tokenizers"]] == [90, 90]
    out = capsys.readouterr().out
    assert "| coarse" in out and "report: " in out and "mass width [%]" in out
    assert summary["line"].startswith("2 tokenizers on 90 objects; least mass width [%]: fine, ")
    again = run_recipe(load_recipe(str(recipe)))
    assert again["quality"].finished == artifacts["quality"].finished


def test_the_stage_refuses_what_is_no_tokenizer_of_the_dataset(recipe: Path) -> None:
    with pytest.raises(FoundationError, match="tokenizer 'other' was fitted on 'toy_showers', not on 'toy_jets'"):
        run_recipe(load_recipe(str(recipe), ["quality.tokenizers=[coarse, other]"]))
    for names, words in (("[jets]", "fits no tokenizer"), ("[fine, fine]", "names tokenizer 'fine' twice")):
        with pytest.raises(FoundationError, match=words):
            run_recipe(load_recipe(str(recipe), [f"quality.tokenizers={names}"]))


@pytest.fixture
def folders(recipe: Path) -> list[str]:
    """Saved tokenizers of toy jets."""
    tokenizers = several(toy_jets(300, 1))
    for name, tokenizer in tokenizers.items():
        tokenizer.save(recipe.parent / "saved" / name)
    return [f"saved/{name}" for name in tokenizers]


def test_the_command_prints_the_table(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "tokenizer", *folders, "--card", "jets.yaml", "--files", "one.h5", "two.h5"]
    assert main([*command, "--objects", "80", "--out", "report"]) == 0
    out = capsys.readouterr().out
    assert "80 objects" in out and out.count("\n| bins") == 2 and "report: report/tokenizers.html" in out
    page = Path("report/tokenizers.html").read_text()
    assert "foundation evaluate tokenizer saved/bins64" in page and Path("report/tokenizers.md").is_file()


def test_the_command_needs_only_the_features_of_the_tokenizers(folders: list[str]) -> None:
    clouds = toy_jets(240, 3)
    write_point_clouds(Path("kinematic.h5"), clouds.with_columns(["pt", "eta_rel", "phi_rel"], [], "toy_jets"))
    command = ["evaluate", "tokenizer", "saved/three", "--card", "jets.yaml", "--files", "kinematic.h5"]
    assert main([*command, "--information", "--epochs", "1", "--out", "report"]) == 0
    assert "accuracy gap" in Path("report/tokenizers.md").read_text()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["saved", "--card", "jets.yaml", "--files", "one.h5"], "saved: there is no tokenizer.json"),
        (["saved/three", "saved/three", "--card", "jets.yaml", "--files", "one.h5"], "saved/three: named twice"),
        (["saved/three", "--card", "jet.yaml", "--files", "one.h5"], "jet.yaml: no such dataset card"),
        (["saved/three", "--card", "jets.yaml", "--files", "on.h5"], "on.h5: no such file or folder"),
        (["saved/three", "--card", "showers.yaml", "--files", "showers.h5"], "no tokenizer could be measured"),
    ],
)
def test_mistakes_are_a_sentence(
    folders: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str], words: str
) -> None:
    capsys.readouterr()
    assert main(["evaluate", "tokenizer", *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
