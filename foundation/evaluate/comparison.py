"""Generated against held-out truth, always beside the floor: truth against truth at the same sample size.

The held-out truth of a group is split at random into two halves A and B of n objects, and n generated objects are
drawn, with n = min(half of the truth, all generated). Then score = d(A, generated) and floor = d(A, B). Both are
averaged over `SPLITS` random splits, so that one lucky split does not decide; the error is the bootstrap error of the
first split. A ratio of score to floor of 1 means: as close to truth as truth is to itself at this sample size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard, Geometry
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate import metrics
from foundation.evaluate.grouping import MINIMUM, Split, by_class, by_energy, random_split
from foundation.evaluate.jets import jet_observables
from foundation.evaluate.metrics import Floats, Measurement
from foundation.evaluate.observables import JET_OBSERVABLES, SHOWER_OBSERVABLES, Observable
from foundation.evaluate.showers import Profile, shower_observables, shower_profiles

SPLITS = 5
NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One line of the table: one observable in one group.

    truth_median, generated_median: of all objects of the group; of a profile, the position of half of its sum
    relative_difference:            (generated - truth) / truth of the medians; NaN where the observable is signed
    w1, w1_error, floor, ratio:     Wasserstein-1 distance in `unit` (hit energy: decades), see the module's head
    separation, separation_floor:   separation power, the same way
    separation_error, floor_error, separation_floor_error: bootstrap error, and standard deviations over the splits
    truth_missing, generated_missing: objects of the group without a value (NaN); they enter nothing else
    problem:                        why there are no numbers, else empty
    """

    group: str
    observable: str
    unit: str
    n: int
    truth_median: float = NAN
    generated_median: float = NAN
    relative_difference: float = NAN
    w1: float = NAN
    w1_error: float = NAN
    floor: float = NAN
    ratio: float = NAN
    separation: float = NAN
    separation_floor: float = NAN
    truth_missing: int = 0
    generated_missing: int = 0
    problem: str = ""
    separation_error: float = NAN
    floor_error: float = NAN
    separation_floor_error: float = NAN


@dataclass(frozen=True)
class Group:
    """A class of jets, all showers, or the showers of one bin of incident energy: what its plots need.

    truth, generated: values per object by observable, float64 [objects of the group]
    truth_index, generated_index: which objects of the dataset they are
    edges:            histogram bins by observable, float64 [n + 1]
    truth_profiles, generated_profiles: by name, of the same objects
    split:            halves A, B and generated objects of one size, as positions within the group
    """

    name: str
    truth: Mapping[str, Floats]
    generated: Mapping[str, Floats]
    truth_index: NDArray[np.int64]
    generated_index: NDArray[np.int64]
    edges: Mapping[str, Floats]
    truth_profiles: Mapping[str, Profile]
    generated_profiles: Mapping[str, Profile]
    split: Split


@dataclass(frozen=True)
class Comparison:
    """Generated against truth for one dataset.

    groups: those with enough objects; rows: all, with the reason where there are no numbers
    peaks:  jets only: mass peak in 120-230 GeV by class, (truth, generated), where the truth has one
    notes:  what a reader must know: objects without values, differing incident energies, failures
    """

    dataset: str
    title: str
    domain: str
    truth: PointClouds
    generated: PointClouds
    geometry: Geometry | None
    observables: tuple[Observable, ...]
    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    peaks: Mapping[str, tuple[Measurement, Measurement]]
    notes: tuple[str, ...]
    seed: int


def compare(
    truth: PointClouds, generated: PointClouds, card: DatasetCard, *, seed: int = 0, energy_bins: int = 4
) -> Comparison:
    """Compare generated with held-out truth: jets per class, showers inclusive and per bin of incident energy.

    The bins of incident energy hold equal numbers of truth showers; the outer ones are open. Same seed, same numbers.
    DataError when a sample is empty or no group has enough objects; one observable that fails does not stop the others.
    """
    for what, clouds in (("held-out truth", truth), ("generated sample", generated)):
        if len(clouds) == 0:
            raise DataError(f"{card.name}: the {what} is empty; give at least {2 * MINIMUM} objects")
    notes: list[str] = []
    observables: tuple[Observable, ...] = JET_OBSERVABLES if card.domain == "jet" else SHOWER_OBSERVABLES
    profiles: tuple[Sequence[Profile], Sequence[Profile]] = ((), ())
    if card.domain == "jet":
        values = jet_observables(truth), jet_observables(generated)
        members = by_class(truth, generated, card)
    else:
        if card.geometry is None:
            raise DataError(f"{card.name}: showers are compared in a geometry, and the dataset card has none")
        values = shower_observables(truth, card.geometry), shower_observables(generated, card.geometry)
        profiles = shower_profiles(truth, card.geometry), shower_profiles(generated, card.geometry)
        members = by_energy(truth, generated, energy_bins)
        notes += _conditioning_notes(truth, generated)
    observables = tuple(o for o in observables if o.name in values[0] and o.name in values[1])

    for side, what in enumerate(("truth", "generated")):
        grouped = sum(len(pair[side]) for name, pair in members.items() if name != "all")
        lost = len((truth, generated)[side]) - grouped
        if lost and list(members) != ["all"]:
            notes.append(f"{lost} {what} objects have no known class or incident energy and are in no such group.")

    groups: list[Group] = []
    rows: list[Row] = []
    for number, (name, (in_truth, in_generated)) in enumerate(members.items()):
        sizes = len(in_truth), len(in_generated)
        try:
            splits = [random_split(*sizes, [seed, number, k]) for k in range(SPLITS)]
        except DataError as error:
            rows += [Row(name, o.name, o.unit, min(sizes[0] // 2, sizes[1]), problem=str(error)) for o in observables]
            notes.append(f"{name}: not compared, {error}.")
            continue
        groups.append(_group(name, values, profiles, in_truth, in_generated, observables, splits[0]))
        rows += _group_rows(groups[-1], observables, splits, seed)
    if not groups:
        raise DataError(f"{card.name}: nothing to compare; " + " ".join(notes))
    for row in rows:
        if row.truth_missing or row.generated_missing:
            notes.append(
                f"{row.group}, {row.observable}: no value for {row.truth_missing} truth and "
                f"{row.generated_missing} generated objects; they are left out."
            )
    peaks = _mass_peaks(groups, seed) if card.domain == "jet" else {}
    return Comparison(
        card.name, card.title, card.domain, truth, generated, card.geometry, observables,
        tuple(groups), tuple(rows), peaks, tuple(notes), seed,
    )  # fmt: skip


def _conditioning_notes(truth: PointClouds, generated: PointClouds) -> list[str]:
    """A warning when truth and generated showers were not asked for at the same incident energies."""
    if "incident_energy" not in truth.condition_names or "incident_energy" not in generated.condition_names:
        return ["No incident energy is known on both sides: no response and no bins of incident energy."]
    medians = [float(np.nanmedian(c.condition("incident_energy"))) for c in (truth, generated)]
    if abs(medians[1] - medians[0]) <= 0.1 * medians[0]:
        return []
    return [
        f"The incident energies differ (median {medians[0]:.3g} GeV of truth, {medians[1]:.3g} GeV of generated): "
        "read the bins of incident energy, not the inclusive rows."
    ]


def _group(
    name: str,
    values: tuple[dict[str, Floats], dict[str, Floats]],
    profiles: tuple[Sequence[Profile], Sequence[Profile]],
    in_truth: NDArray[np.int64],
    in_generated: NDArray[np.int64],
    observables: Sequence[Observable],
    split: Split,
) -> Group:
    truth = {o.name: values[0][o.name][in_truth] for o in observables}
    return Group(
        name,
        truth,
        {o.name: values[1][o.name][in_generated] for o in observables},
        in_truth,
        in_generated,
        {o.name: histogram_edges(truth[o.name], o.integer) for o in observables},
        {p.name: p.select(in_truth) for p in profiles[0]},
        {p.name: p.select(in_generated) for p in profiles[1]},
        split,
    )


def histogram_edges(truth: Floats, integer: bool = False, bins: int = 40) -> Floats:
    """Bins over the central 99 % of the truth and 15 % beyond on each side; whole numbers in the middle of bins."""
    known = truth[np.isfinite(truth)]
    low, high = np.quantile(known, [0.005, 0.995]) if len(known) else (0.0, 1.0)
    margin = 0.15 * (high - low) or 0.5
    low, high = (max(0.0, low - margin) if known.min(initial=0.0) >= 0 else low - margin), high + margin
    if not integer:
        return np.linspace(low, high, bins + 1)
    width = max(1, int(np.ceil((high - low) / bins)))
    return np.arange(np.floor(low), high + width, width) - 0.5


def _group_rows(group: Group, observables: Sequence[Observable], splits: Sequence[Split], seed: int) -> list[Row]:
    rows = []
    for o in observables:
        rows.append(_guarded(_observable_row, group, o.name, o.unit, splits, seed, o))
    for name, profile in group.truth_profiles.items():
        unit = "decade" if profile.log_axis else profile.axis_unit
        rows.append(_guarded(_profile_row, group, name, unit, splits, seed, profile))
    return rows


def _guarded(
    make: Callable[..., Row], group: Group, name: str, unit: str, splits: Sequence[Split], seed: int, what: object
) -> Row:
    """One broken metric must not lose the others: its row says why it has no numbers."""
    try:
        return make(group, splits, seed, what)
    except (DataError, ValueError, FloatingPointError) as error:
        missing = [int(np.isnan(side[name]).sum()) if name in side else 0 for side in (group.truth, group.generated)]
        return Row(
            group.name, name, unit, len(splits[0].a), problem=str(error),
            truth_missing=missing[0], generated_missing=missing[1],
        )  # fmt: skip


def _observable_row(group: Group, splits: Sequence[Split], seed: int, observable: Observable) -> Row:
    truth, generated = group.truth[observable.name], group.generated[observable.name]
    edges = group.edges[observable.name]
    known = (
        metrics.finite(truth, f"truth {observable.name}", MINIMUM),
        metrics.finite(generated, f"generated {observable.name}", MINIMUM),
    )

    def distances(split: Split, resamplings: int) -> tuple[Measurement, ...]:
        a, b, g = truth[split.a], truth[split.b], generated[split.generated]
        return (
            metrics.wasserstein(a, g, seed, resamplings),
            metrics.wasserstein(a, b, seed, 0),
            metrics.separation_power(a, g, edges, seed, resamplings),
            metrics.separation_power(a, b, edges, seed, 0),
        )

    return _row(
        group.name, observable.name, observable.unit, splits, distances,
        (float(np.median(known[0])), float(np.median(known[1]))), observable.signed,
        (len(truth) - len(known[0]), len(generated) - len(known[1])),
    )  # fmt: skip


def _profile_row(group: Group, splits: Sequence[Split], seed: int, profile: Profile) -> Row:
    truth, generated = profile.per_shower, group.generated_profiles[profile.name].per_shower
    for what, values in (("truth", truth), ("generated", generated)):
        if values.sum() <= 0:
            raise DataError(f"{what} {profile.name}: there is nothing in any bin")
    edges = np.log10(profile.edges) if profile.log_axis else profile.edges

    def distances(split: Split, resamplings: int) -> tuple[Measurement, ...]:
        a, b, g = truth[split.a], truth[split.b], generated[split.generated]
        return (
            metrics.binned_wasserstein(a, g, edges, seed, resamplings),
            metrics.binned_wasserstein(a, b, edges, seed, 0),
            Measurement(float(metrics.separation_of_histograms(a.sum(0), g.sum(0))), NAN),
            Measurement(float(metrics.separation_of_histograms(a.sum(0), b.sum(0))), NAN),
        )

    medians = _half_sum(truth.sum(0), profile.edges), _half_sum(generated.sum(0), profile.edges)
    unit = "decade" if profile.log_axis else profile.axis_unit
    return _row(group.name, profile.name, unit, splits, distances, medians, False, (0, 0))


def _half_sum(contents: Floats, edges: Floats) -> float:
    """Where half of the histogram's sum is reached, linear within a bin."""
    cumulative = np.append(0.0, np.cumsum(contents) / contents.sum())
    return float(np.interp(0.5, cumulative, edges))


def _row(
    group: str,
    name: str,
    unit: str,
    splits: Sequence[Split],
    distances: Callable[[Split, int], tuple[Measurement, ...]],
    medians: tuple[float, float],
    signed: bool,
    missing: tuple[int, int],
) -> Row:
    measured = [distances(split, metrics.RESAMPLINGS if k == 0 else 0) for k, split in enumerate(splits)]
    values = np.array([[m[k].value for k in range(4)] for m in measured])
    w1, floor, separation, separation_floor = (float(v) for v in values.mean(0))
    spread = values.std(0, ddof=1)
    truth, generated = medians
    return Row(
        group, name, unit, len(splits[0].a), truth, generated,
        relative_difference=NAN if signed or truth == 0 else (generated - truth) / truth,
        w1=w1,
        w1_error=measured[0][0].error,
        floor=floor,
        ratio=w1 / floor if floor > 0 else (1.0 if w1 == 0 else NAN),
        separation=separation,
        separation_floor=separation_floor,
        separation_error=measured[0][2].error,
        floor_error=float(spread[1]),
        separation_floor_error=float(spread[3]),
        truth_missing=missing[0],
        generated_missing=missing[1],
    )  # fmt: skip


def _mass_peaks(groups: Sequence[Group], seed: int) -> dict[str, tuple[Measurement, Measurement]]:
    peaks = {}
    for group in groups:
        try:
            truth = metrics.mass_peak(group.truth["mass"], seed=seed)
            generated = metrics.mass_peak(group.generated["mass"], seed=seed)
        except DataError:
            continue  # the mass row of this group says that there are no masses
        if np.isfinite(truth.value):
            peaks[group.name] = (truth, generated)
    return peaks
