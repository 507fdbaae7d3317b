"""Energy flow polynomials against energyflow's, closed forms and symmetries."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.evaluate import energy_flow
from foundation.evaluate.energy_flow import GRAPHS, W1_GRAPHS, d2, energy_flow_polynomials

from recorded_jets import jets_of, recorded_arrays, recorded_jets


def by_definition(jet: np.ndarray, graph: energy_flow.Graph) -> float:
    """Sum over all ways to put constituents at the vertices of a graph."""
    value = 1.0
    pt, eta, phi = jet.astype(np.float64).T
    theta = np.hypot(eta[:, None] - eta, phi[:, None] - phi)
    for part in graph:
        edges = [(int(a), int(b)) for a, b in part.split()]
        vertices = max((max(edge) for edge in edges), default=0) + 1
        value *= sum(
            np.prod(pt[list(at)]) * np.prod([theta[at[a], at[b]] for a, b in edges])
            for at in product(range(len(jet)), repeat=vertices)
        )
    return value


def test_polynomials_agree_with_energyflow() -> None:
    for side in ("truth", "generated"):
        found = energy_flow_polynomials(recorded_jets(side))
        np.testing.assert_allclose(found, recorded_arrays()[f"efp_{side}"], rtol=1e-12, atol=1e-15)
    first = recorded_jets("truth").select(slice(40))
    normed = energy_flow_polynomials(first, normed=True)
    np.testing.assert_allclose(normed, recorded_arrays()["efp_normed_truth"], rtol=1e-12, atol=1e-15)
    single = energy_flow_polynomials(first, precision="float32")
    np.testing.assert_allclose(single, recorded_arrays()["efp_truth"][:40], rtol=1e-5, atol=1e-9)


def test_graphs_are_those_that_the_definition_sums_over() -> None:
    jet = np.array([[0.5, 0.1, 0.0], [0.3, -0.2, 0.1], [0.2, 0.0, -0.3]])
    found = energy_flow_polynomials(jets_of(jet, np.array([3])))[0]
    expected = [by_definition(jet.astype(np.float32), graph) for graph in GRAPHS]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert len(GRAPHS) == len(set(GRAPHS)) == 36 and set(W1_GRAPHS) < set(GRAPHS)


def test_chunks_and_chosen_graphs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    jets = recorded_jets("truth")
    whole = energy_flow_polynomials(jets)
    monkeypatch.setattr(energy_flow, "PAIRS", 1)
    np.testing.assert_allclose(energy_flow_polynomials(jets), whole, rtol=1e-12, atol=1e-18)
    columns = [GRAPHS.index(graph) for graph in W1_GRAPHS]
    np.testing.assert_allclose(energy_flow_polynomials(jets, W1_GRAPHS), whole[:, columns], rtol=1e-12, atol=1e-18)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), turn=st.floats(-3, 3), boost=st.floats(-1, 1), scale=st.floats(0.1, 10))
def test_rotation_boost_order_and_scale(seed: int, turn: float, boost: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 0.2, (12, 3)) + np.array([0, boost, 0])
    points[:, 0] = rng.gamma(1.0, 1.0, 12) + 0.01
    counts = np.array([7, 5])
    moved = points * np.array([scale, 1, 1]) + np.array([0, -boost, turn])
    moved[:, 2] = (moved[:, 2] + np.pi) % (2 * np.pi) - np.pi
    moved = np.concatenate([rng.permutation(moved[:7]), rng.permutation(moved[7:])])
    before, after = (energy_flow_polynomials(jets_of(p, counts)) for p in (points, moved))
    vertices = [sum(1 + max(map(int, part.replace(" ", "") or "0")) for part in graph) for graph in GRAPHS]
    np.testing.assert_allclose(after, before * scale ** np.array(vertices), rtol=1e-4)
    np.testing.assert_allclose(d2(after), d2(before), rtol=1e-4)


def test_what_has_no_value_is_nan_and_the_rest_stays() -> None:
    jet = [[1.0, 0.1, 0.0], [2.0, 0.0, 0.1]]
    points = np.array([*jet, *jet, [np.nan, 0, 0], *jet, [-1.0, 0, 0]])
    jets = jets_of(points, np.array([2, 0, 3, 3]))
    found = energy_flow_polynomials(jets)
    assert np.isfinite(found[0]).all() and (found[1] == 0).all() and np.isnan(found[2:]).all()
    assert np.isnan(energy_flow_polynomials(jets, normed=True)[1]).all()
    assert np.isnan(d2(found)[1])
    assert energy_flow_polynomials(jets_of(np.zeros((0, 3)), np.zeros(0))).shape == (0, 36)
    with pytest.raises(DataError, match="no graph '01 23'"):
        energy_flow_polynomials(jets, (("01 23",),))
