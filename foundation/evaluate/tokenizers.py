"""What a tokenizer loses: held-out objects are encoded and decoded, and compared with what they were.

Points are compared one by one where each has its own token, and objects always. Everything is done a few hundred
objects at a time, so memory grows with the sample alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from time import process_time

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard, Feature
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate import metrics
from foundation.evaluate.codes import Rate, StreamUse, rate, stream_use
from foundation.evaluate.jets import jet_observables
from foundation.evaluate.metrics import Floats, Measurement
from foundation.evaluate.observables import JET_OBSERVABLES, SHOWER_OBSERVABLES, Observable
from foundation.evaluate.residuals import Residuals, relative_residuals, residual_statistics
from foundation.evaluate.showers import shower_observables
from foundation.evaluate.voxels import VoxelPairs, VoxelResponse, voxel_pairs, voxel_response
from foundation.tokens.tokenizer import Codes, Tokenizer

AT_ONCE = 500
"""Objects encoded together."""
WARM_UP = 20
"""Objects encoded before the clock starts."""
RELATIVE = ("mass", "pt", "energy_sum")
"""Object-level quantities whose residual is decoded / truth - 1."""
MINIMUM, SPLITS = 20, 5
"""Objects per half below which no distance is quoted; random splits that a distance is averaged over."""
NAN = float("nan")


@dataclass(frozen=True)
class Truth:
    """Held-out objects that tokenizers are measured on.

    groups: positions of the objects of "all", and of each class (jets) or bin of incident energy (showers)
    """

    card: DatasetCard
    clouds: PointClouds
    groups: Mapping[str, NDArray[np.int64]]

    @staticmethod
    def of(card: DatasetCard, clouds: PointClouds, energy_bins: int = 4) -> Truth:
        """Group the objects; bins of incident energy hold equal numbers. Raises DataError where there are none."""
        if not len(clouds):
            raise DataError(f"{card.name}: there are no objects to measure tokenizers on")
        groups = {"all": np.arange(len(clouds))}
        if card.domain == "jet" and len(card.classes) > 1:
            groups |= {name: np.flatnonzero(clouds.labels == k) for k, name in enumerate(card.classes)}
        if card.domain == "shower" and "incident_energy" in clouds.condition_names:
            groups |= _energy_bins(clouds.condition("incident_energy"), energy_bins)
        return Truth(card, clouds, {name: index for name, index in groups.items() if len(index)})

    @property
    def needed(self) -> tuple[str, ...]:
        """Features that quantities of the whole object are computed from; none where they cannot be."""
        card = self.card
        if card.domain == "jet":
            return ("pt", "eta_rel", "phi_rel")
        if card.geometry is None:
            return ()
        in_mm = card.units.get("x") == card.units.get("y") == "mm"
        return ("layer", "x", "y", "energy") if in_mm else (*card.geometry.axes, "energy")

    @cached_property
    def observables(self) -> dict[str, Floats]:
        """Object-level quantities of the truth, float64 [B] each; nothing where a feature that they need is missing."""
        if not self.needed or not set(self.needed) <= set(self.clouds.features):
            return {}
        parts = [observables(self.card, part) for part in chunks(self.clouds)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _energy_bins(energy: NDArray[np.float32], bins: int) -> dict[str, NDArray[np.int64]]:
    known = energy[np.isfinite(energy)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1))) if len(known) else np.zeros(0)
    if len(edges) < 3:
        return {}
    return {
        f"{low:.3g}-{high:.3g} GeV": np.flatnonzero((energy >= low) & ((energy < high) | (high == edges[-1])))
        for low, high in pairwise(edges.tolist())
    }


def chunks(clouds: PointClouds) -> Iterator[PointClouds]:
    """The clouds a few hundred at a time."""
    return (clouds.select(slice(first, first + AT_ONCE)) for first in range(0, len(clouds), AT_ONCE))


def observables(card: DatasetCard, clouds: PointClouds) -> dict[str, Floats]:
    """Object-level quantities of B jets or showers, float64 [B] each."""
    if card.domain == "jet":
        return jet_observables(clouds)
    if card.geometry is None:
        raise DataError(f"{card.name}: showers are compared in a geometry, and the dataset card has none")
    return shower_observables(clouds, card.geometry)


@dataclass(frozen=True)
class FeatureRow:
    """One feature of the points of one group.

    unit, relative: of the residuals decoded - truth, or decoded / truth - 1 for features that are taken as logarithms
    exact: share of the values that come back as they were; NaN for real numbers
    """

    group: str
    feature: str
    unit: str
    relative: bool
    exact: float
    residuals: Residuals


@dataclass(frozen=True)
class ObjectRow:
    """One quantity of whole objects in one group.

    unit, relative:  of the residuals decoded - truth, or decoded / truth - 1, object by object
    truth, decoded:  medians of the quantity itself
    w1, floor:       Wasserstein-1 distance of a half of the truth and the other half decoded, in the quantity's unit,
                     and of the two halves of the truth: means over some random splits
    """

    group: str
    observable: str
    unit: str
    relative: bool
    truth: float
    decoded: float
    residuals: Residuals
    w1: Measurement
    floor: float


@dataclass(frozen=True)
class Quality:
    """All that was measured of one tokenizer.

    fixed:     every object has the same number of tokens (patches), so points of truth and decoding do not correspond
    outside:   points outside of the window that it was fitted for, by feature
    encode_per_second, decode_per_second: objects per second of processor time of one thread, the
               check of the inputs included
    voxels:    only where `fixed`, for showers
    residuals: residuals for drawing, by quantity; code_counts: how often each code occurs, by stream
    """

    name: str
    kind: str
    datasets: tuple[str, ...]
    features: tuple[str, ...]
    fixed: bool
    objects: int
    streams: tuple[StreamUse, ...]
    rate: Rate
    encode_per_second: float
    decode_per_second: float
    outside: Mapping[str, int]
    feature_rows: tuple[FeatureRow, ...]
    object_rows: tuple[ObjectRow, ...]
    voxels: VoxelResponse | None
    notes: tuple[str, ...]
    residuals: Mapping[str, NDArray[np.float32]] = field(repr=False, default_factory=dict)
    code_counts: Mapping[str, NDArray[np.int64]] = field(repr=False, default_factory=dict)

    def of_objects(self, observable: str, group: str = "all") -> ObjectRow | None:
        """The row of a quantity of whole objects, if there is one."""
        return next((r for r in self.object_rows if (r.observable, r.group) == (observable, group)), None)


@dataclass(frozen=True)
class Piece:
    """Some objects, their codes, what these decode to, and the seconds of processor time that both took."""

    truth: PointClouds
    codes: Codes
    decoded: PointClouds
    encode_seconds: float
    decode_seconds: float


def pieces(tokenizer: Tokenizer, clouds: PointClouds, seed: int = 0) -> Iterator[Piece]:
    """Encode and decode the clouds, a few hundred at a time; the result is that of `Tokenizer.reconstruct`."""
    rng = np.random.default_rng(seed)
    for part in chunks(clouds):
        conditions = {name: part.condition(name) for name in tokenizer.conditions}
        start = process_time()
        codes = tokenizer.encode(part)
        encoded = process_time()
        uniform = rng.random(codes.values.shape)
        drawn = process_time()
        points = tokenizer.decode(codes, uniform, conditions)
        done = process_time()
        decoded = replace(
            part,
            points=points.values,
            offsets=points.offsets,
            features=tuple(f.name for f in tokenizer.features),
            units=tuple(f.unit for f in tokenizer.features),
            conventions=tuple(f.convention for f in tokenizer.features),
        )
        yield Piece(part, codes, decoded, encoded - start, done - drawn)


def decoded_clouds(tokenizer: Tokenizer, clouds: PointClouds, seed: int = 0) -> PointClouds:
    """All clouds after encoding and decoding."""
    return PointClouds.concatenate([piece.decoded for piece in pieces(tokenizer, clouds, seed)])


def measure(name: str, tokenizer: Tokenizer, truth: Truth, seed: int = 0) -> Quality:
    """Encode and decode the truth and compare. Raises DataError for objects that the tokenizer refuses."""
    done = _Measuring(tokenizer, truth)
    with one_thread():
        tokenizer.reconstruct(truth.clouds.select(slice(0, WARM_UP)))
        for piece in pieces(tokenizer, truth.clouds, seed):
            done.add(piece)
    streams = tuple(stream_use(s, done.counts[s.name]) for s in tokenizer.streams)
    residuals = {feature: np.concatenate(parts) for feature, parts in done.residuals.items() if parts}
    rows, of_objects = _object_rows(done, truth, seed)
    return Quality(
        name=name,
        kind=tokenizer.kind,
        datasets=tokenizer.inputs.datasets,
        features=tuple(f.name for f in tokenizer.features),
        fixed=done.fixed,
        objects=len(truth.clouds),
        streams=streams,
        rate=rate(tokenizer, truth.card, np.concatenate(done.tokens), streams),
        encode_per_second=len(truth.clouds) / max(done.encode_seconds, 1e-9),
        decode_per_second=len(truth.clouds) / max(done.decode_seconds, 1e-9),
        outside=tokenizer.inputs.outside(truth.clouds),
        feature_rows=_feature_rows(tokenizer, truth, residuals, done),
        object_rows=rows,
        voxels=voxel_response(done.voxels) if done.voxels else None,
        notes=tuple(done.notes),
        residuals={f: r for f, r in residuals.items() if len(r)} | of_objects,
        code_counts=done.counts,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Speeds are those of one thread, and codes do not depend on how many cores a machine has."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Measuring:
    """What is gathered piece by piece."""

    def __init__(self, tokenizer: Tokenizer, truth: Truth) -> None:
        self.tokenizer, self.truth = tokenizer, truth
        self.fixed = tokenizer.tokens_per_object is not None
        self.encode_seconds = self.decode_seconds = 0.0
        self.counts = {s.name: np.zeros(s.size, np.int64) for s in tokenizer.streams}
        self.tokens: list[NDArray[np.int64]] = []
        self.residuals: dict[str, list[NDArray[np.float32]]] = {f.name: [] for f in tokenizer.features}
        self.exact: dict[str, list[NDArray[np.bool_]]] = {f.name: [] for f in tokenizer.features}
        self.observables: list[dict[str, Floats]] = []
        self.voxels: list[VoxelPairs] = []
        self.notes: list[str] = []
        lacking = [f for f in truth.needed if f not in self.residuals]
        self.has_objects = bool(truth.observables) and not lacking
        if not self.has_objects:
            why = f"it does not code {', '.join(lacking)}" if lacking else "the sample has not what they need"
            self.notes.append(f"no quantities of whole objects: {why}")

    def add(self, piece: Piece) -> None:
        self.encode_seconds += piece.encode_seconds
        self.decode_seconds += piece.decode_seconds
        self.tokens.append(np.diff(piece.codes.offsets))
        for k, stream in enumerate(self.tokenizer.streams):
            self.counts[stream.name] += np.bincount(piece.codes.values[:, k], minlength=stream.size)
        if self.has_objects:
            self.observables.append(observables(self.truth.card, piece.decoded))
        if not self.fixed:
            self._add_points(piece)
        elif self.has_objects and self.truth.card.geometry is not None:
            self.voxels.append(voxel_pairs(piece.truth, piece.decoded, self.truth.card.geometry))

    def _add_points(self, piece: Piece) -> None:
        for feature in self.tokenizer.features:
            decoded, truth = piece.decoded.feature(feature.name), piece.truth.feature(feature.name)
            if feature.kind != "continuous":
                self.exact[feature.name].append(decoded == truth)
            if feature.kind != "category":
                values = relative_residuals(decoded, truth) if feature.log else decoded - truth
                self.residuals[feature.name].append(values.astype(np.float32))
            else:
                self.residuals[feature.name].append(np.zeros(0, np.float32))


def _feature_rows(
    tokenizer: Tokenizer, truth: Truth, residuals: Mapping[str, NDArray[np.float32]], done: _Measuring
) -> tuple[FeatureRow, ...]:
    if done.fixed:
        return ()
    exact = {name: np.concatenate(parts) if parts else None for name, parts in done.exact.items()}
    rows = []
    for group, index in truth.groups.items():
        member = np.zeros(len(truth.clouds), np.bool_)
        member[index] = True
        points = np.repeat(member, truth.clouds.counts)
        for f in tokenizer.features:
            same, values = exact[f.name], residuals[f.name]
            share = NAN if same is None else float(same[points].mean()) if points.any() else NAN
            # points of one object are not independent, so resampling points would give too small errors
            found = residual_statistics(values[points] if len(values) else values, resamplings=0)
            rows.append(FeatureRow(group, f.name, _unit(f), f.log, share, found))
    return tuple(rows)


def _unit(feature: Feature) -> str:
    return "1" if feature.log else feature.unit


def _object_rows(
    done: _Measuring, truth: Truth, seed: int
) -> tuple[tuple[ObjectRow, ...], dict[str, NDArray[np.float32]]]:
    """All rows, and the residuals of all objects by quantity."""
    if not done.has_objects:
        return (), {}
    known: tuple[Observable, ...] = JET_OBSERVABLES if truth.card.domain == "jet" else SHOWER_OBSERVABLES
    rows, drawn = [], {}
    for number, o in enumerate(o for o in known if o.name in truth.observables):
        true = truth.observables[o.name]
        decoded = np.concatenate([part[o.name] for part in done.observables])
        relative = o.name in RELATIVE
        residuals = relative_residuals(decoded, true) if relative else decoded - true
        drawn[object_key(o.name)] = residuals[np.isfinite(residuals)].astype(np.float32)
        for group, index in truth.groups.items():
            w1, floor = _distance(true[index], decoded[index], [seed, number], errors=group == "all")
            rows.append(
                ObjectRow(
                    group, o.name, "1" if relative else o.unit, relative, _median(true[index]),
                    _median(decoded[index]), residual_statistics(residuals[index], seed), w1, floor,
                )
            )  # fmt: skip
    return tuple(rows), drawn


def object_key(observable: str) -> str:
    """Key of the residuals of whole objects, which may have a feature's name."""
    return f"object.{observable}"


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else NAN


def _distance(truth: Floats, decoded: Floats, seed: list[int], errors: bool) -> tuple[Measurement, float]:
    """W1 of a half of the truth and the decoded other half, and of the two halves of the truth."""
    known = np.isfinite(truth) & np.isfinite(decoded)
    truth, decoded = truth[known], decoded[known]
    half = len(truth) // 2
    if half < MINIMUM:
        return Measurement(NAN, NAN), NAN
    found, floors = [], []
    for k in range(SPLITS):
        order = np.random.default_rng([*seed, k]).permutation(len(truth))
        a, b = order[:half], order[half : 2 * half]
        found.append(metrics.wasserstein(truth[a], decoded[b], seed[0], metrics.RESAMPLINGS if errors and not k else 0))
        floors.append(metrics.wasserstein(truth[a], truth[b], seed[0], 0).value)
    return Measurement(float(np.mean([m.value for m in found])), found[0].error), float(np.mean(floors))
