"""W1 distances and the quantiled KLD against their references; every distance ranks a worse sample as worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.evaluate.coverage import coverage_and_mmd
from foundation.evaluate.frechet import fpd, kpd
from foundation.evaluate.jet_scores import DEFINITIONS, floor, jet_features, jet_scores
from foundation.evaluate.jet_wasserstein import w1efp, w1m, w1p
from foundation.evaluate.kl_divergence import quantiled_kld

from evaluate_samples import JET_CARD, toy_jets
from recorded_jets import SEED, jets_of, recorded_arrays, recorded_jets, recorded_numbers, smeared


def test_w1_agree_with_jetnet() -> None:
    truth, generated, numbers = recorded_jets("truth"), recorded_jets("generated"), recorded_numbers()
    mass = w1m(truth, generated, seed=SEED, size=2000)
    assert [mass.value, mass.error] == pytest.approx(numbers["w1m"], rel=1e-8)
    for found, name in (
        (tuple(w1p(truth, generated, seed=SEED, size=2000).values()), "w1p"),
        (w1efp(truth, generated, seed=SEED, size=2000), "w1efp"),
    ):
        assert [m.value for m in found] == pytest.approx(numbers[name][0], rel=1e-8)
        assert [m.error for m in found] == pytest.approx(numbers[name][1], rel=1e-8)


@pytest.mark.parametrize("quantiles", [10, 30])
def test_quantiled_kld_agrees_with_omnijet_alpha(quantiles: int) -> None:
    found = quantiled_kld(*(recorded_arrays()[f"mass_{side}"] for side in ("truth", "generated")), quantiles=quantiles)
    assert found.value == pytest.approx(recorded_numbers()["quantiled_kld"][str(quantiles)], rel=1e-10)


def test_quantiled_kld_of_whole_numbers_and_of_nothing() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (2, 4000)).astype(np.float64)
    found = quantiled_kld(*counts)
    assert 0 <= found.value < 0.02 and 0 < found.error < 0.02
    assert quantiled_kld(counts[0], counts[0] + 1).value > 10 * found.value
    with pytest.raises(DataError, match="no quantiles"):
        quantiled_kld(np.ones(100), counts[0])
    with pytest.raises(DataError, match="between the outer quantiles"):
        quantiled_kld(rng.normal(size=100), np.full(100, 50.0))
    with pytest.raises(DataError, match="the sample is empty"):
        quantiled_kld(counts[0], counts[0][:0])


def test_error_of_the_kld_is_its_spread() -> None:
    rng = np.random.default_rng(1)
    samples = [(rng.normal(size=1000), rng.normal(0.3, 1, 1000)) for _ in range(60)]
    found = [quantiled_kld(a, b, quantiles=8, seed=3) for a, b in samples]
    spread = np.std([m.value for m in found])
    assert np.mean([m.error for m in found]) == pytest.approx(spread, rel=0.35)


@settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 1000))
def test_every_distance_ranks_smeared_truth(seed: int) -> None:
    truth, other = jet_features(toy_jets(300, seed)), toy_jets(300, seed + 5000)
    found: dict[str, list[float]] = {}
    for width in (0.0, 0.15, 0.4):
        made = jet_features(smeared(other, width, seed))
        sides, polynomials = (truth.relative, made.relative), (truth.polynomials, made.polynomials)
        measured = {f"w1p.{name}": m for name, m in w1p(*sides, size=2000, batches=2).items()}
        measured |= {f"w1efp.{k}": m for k, m in enumerate(w1efp(*sides, size=2000, batches=2))}
        measured["w1m"] = w1m(*sides, size=2000, batches=2)
        measured["fpd"] = fpd(*polynomials, draws=2)
        measured["kpd"] = kpd(*polynomials, size=500, batches=4)
        for name in ("mass", "d2"):
            both = truth.observables[name], made.observables[name]
            measured[f"quantiled_kld.{name}"] = quantiled_kld(*both, quantiles=10)
        for name, m in measured.items():
            found.setdefault(name, []).append(m.value)
    for name, values in found.items():
        assert values[0] < values[2], (name, values)
        # pT is hardly touched by the smaller width, and the KLD does not see what is beyond its quantiles
        if name != "w1p.pt" and not name.startswith("quantiled_kld"):
            assert values[0] < values[1] < values[2], (name, values)


def test_coverage_ranks_smeared_truth() -> None:
    truth = recorded_jets("truth")
    truth = truth.select(truth.counts < 16)
    found = [coverage_and_mmd(truth, smeared(truth, width), size=20, batches=1) for width in (0.0, 0.2, 0.8)]
    assert found[0].mmd.value < found[1].mmd.value < found[2].mmd.value
    assert found[0].coverage.value > found[2].coverage.value


def test_scores_have_definitions_floors_and_problems() -> None:
    truth = jet_features(toy_jets(240, 1), card=JET_CARD)
    scores = jet_scores(truth, jet_features(toy_jets(50, 2, smear=1.3), card=JET_CARD))
    assert set(scores.problems) == {"fpd", "kpd"} and "50 objects, at least 100" in scores.problems["fpd"]
    assert {name.split(".")[0] for name in scores.values} <= DEFINITIONS.keys()
    assert "quantiled_kld.charge" in scores.values
    least = floor(truth)
    assert least.values.keys() == scores.values.keys() | {"fpd", "kpd"} and not least.problems
    assert least.values["w1m"].value < scores.values["w1m"].value


def test_bad_samples_are_a_sentence() -> None:
    good = recorded_jets("truth")
    broken = good.points.copy()
    broken[0, 1] = np.inf
    for metric in (w1m, w1p, w1efp):
        with pytest.raises(DataError, match="second sample has 19 jets, at least 20"):
            metric(good, good.select(slice(19)))
        with pytest.raises(DataError, match="1 constituents of the first sample are not finite"):
            metric(jets_of(broken, good.counts), good)
    with pytest.raises(DataError, match="none of the 0 jets"):
        jet_features(good.select(slice(0)))
    features = jet_features(jets_of(broken, good.counts))
    assert features.left_out == 1 and len(features) == len(good) - 1
