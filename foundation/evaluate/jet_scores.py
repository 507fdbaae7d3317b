"""All distances of two samples of jets in one go, what they share calculated once, and their floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate import coverage, energy_flow, frechet, jet_wasserstein, kl_divergence, substructure
from foundation.evaluate.energy_flow import GRAPHS, W1_GRAPHS, energy_flow_polynomials
from foundation.evaluate.jets import relative_pt, unphysical
from foundation.evaluate.metrics import Measurement

Floats = NDArray[np.float64]
ON_AXIS = 1e-4
"""Angle below which a jet's momentum and its axis are the same."""

DEFINITIONS: dict[str, str] = {
    **energy_flow.DEFINITIONS,
    **substructure.DEFINITIONS,
    **jet_wasserstein.DEFINITIONS,
    **frechet.DEFINITIONS,
    **coverage.DEFINITIONS,
    **kl_divergence.DEFINITIONS,
}
"""Name and version of the definition of every number about jets."""


@dataclass(frozen=True)
class JetFeatures:
    """What the distances are calculated from, of B jets.

    relative:    the jets with pT relative to the jet's, as jetnet's metrics take them
    polynomials: all energy flow polynomials of them, not normed, float64 [B, 36]
    observables: of the jets as they are, float64 [B] each
    left_out:    jets that were left out: without constituents, or with one that is not finite or has pT <= 0
    """

    relative: PointClouds
    polynomials: Floats
    observables: Mapping[str, Floats]
    left_out: int

    def __len__(self) -> int:
        return len(self.relative)

    def select(self, index: NDArray[np.integer]) -> JetFeatures:
        """The jets at `index`."""
        observables = {name: values[index] for name, values in self.observables.items()}
        return JetFeatures(self.relative.select(index), self.polynomials[index], observables, 0)


@dataclass(frozen=True)
class JetScores:
    """Distances by name, and why others have none; `DEFINITIONS` has what stands before the first dot of a name.

    w1m, w1p.<feature>, w1efp.<graph>, fpd, kpd, quantiled_kld.<observable>
    """

    values: Mapping[str, Measurement]
    problems: Mapping[str, str]


def jet_features(
    clouds: PointClouds, *, card: DatasetCard | None = None, jet_pt: NDArray[np.floating] | None = None
) -> JetFeatures:
    """Polynomials and observables of all jets that have them; jet_pt [B]: see `relative_pt`."""
    good = np.flatnonzero(~unphysical(clouds) & (clouds.counts > 0))
    if len(good) == 0:
        raise DataError(f"jets: none of the {len(clouds)} jets has constituents that are finite with pT above zero")
    kept = clouds.select(good)
    relative = relative_pt(kept, None if jet_pt is None else np.asarray(jet_pt)[good])
    polynomials = energy_flow_polynomials(relative)
    observables = substructure.jet_panel(kept, card=card, polynomials=polynomials)
    return JetFeatures(relative, polynomials, observables, len(clouds) - len(good))


def jet_scores(truth: JetFeatures, generated: JetFeatures, *, seed: int = 0) -> JetScores:
    """Every distance of the generated jets to the truth, with its definition's own settings and the draws of `seed`."""
    values: dict[str, Measurement] = {}
    problems: dict[str, str] = {}

    def add(name: str, measure: Callable[[], Mapping[str, Measurement]]) -> None:
        try:
            values.update(measure())
        except DataError as error:
            problems[name] = str(error)

    sides = truth.relative, generated.relative
    polynomials = truth.polynomials, generated.polynomials
    columns = [GRAPHS.index(graph) for graph in W1_GRAPHS]
    add("w1m", lambda: {"w1m": jet_wasserstein.w1m(*sides, seed=seed)})
    add("w1p", lambda: {f"w1p.{name}": m for name, m in jet_wasserstein.w1p(*sides, seed=seed).items()})
    add("w1efp", lambda: _named_polynomials(truth.polynomials[:, columns], generated.polynomials[:, columns], seed))
    add("fpd", lambda: {"fpd": frechet.fpd(*polynomials, seed=seed)})
    add("kpd", lambda: {"kpd": frechet.kpd(*polynomials, seed=seed)})
    for name in truth.observables.keys() & generated.observables.keys():
        if name in ("eta", "phi") and _on_their_axis(truth.observables[name]):
            continue
        both = truth.observables[name], generated.observables[name]
        full = f"quantiled_kld.{name}"
        add(full, lambda full=full, both=both: {full: kl_divergence.quantiled_kld(*both, seed=seed)})  # type: ignore[misc]
    return JetScores(dict(sorted(values.items())), problems)


def _on_their_axis(angle: Floats) -> bool:
    """Whether jets lie on the axis that their constituents are counted from: then what is left is rounding."""
    return bool(np.nanquantile(np.abs(angle), 0.9) < ON_AXIS)


def floor(truth: JetFeatures, *, seed: int = 0) -> JetScores:
    """Scores of one random half of the truth against the other: what a perfect generator reaches at that size."""
    order = np.random.default_rng(seed).permutation(len(truth))
    halves = [truth.select(np.sort(half)) for half in np.array_split(order, 2)]
    return jet_scores(halves[0], halves[1], seed=seed)


def _named_polynomials(a: Floats, b: Floats, seed: int) -> dict[str, Measurement]:
    found = jet_wasserstein.w1efp(a, b, seed=seed)
    return {f"w1efp.{graph[0].replace(' ', '-')}": m for graph, m in zip(W1_GRAPHS, found, strict=True)}
