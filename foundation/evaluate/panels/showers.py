"""Panels of calorimeter showers: `calochallenge` for rings, `ild` for square cells, and `response` for all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from foundation.data.geometry import CylindricalGeometry
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate import ild
from foundation.evaluate import response as responses
from foundation.evaluate.calochallenge.features import HighLevelFeatures, high_level_features
from foundation.evaluate.calochallenge.separation import Separation, separation_powers, voxel_separation
from foundation.evaluate.calochallenge.settings import DEFINITIONS, Settings, settings_of
from foundation.evaluate.grouping import Split, random_split
from foundation.evaluate.ild import IldShowers, ild_distances, ild_showers
from foundation.evaluate.metrics import Measurement
from foundation.evaluate.panels.samples import Made, Sheet, Truth
from foundation.evaluate.response import ResponseBin, fit_resolution, response_bins
from foundation.evaluate.scores import Score

PRDC_SHOWERS = 5000
"""Showers of each sample whose nearest neighbours are looked for; the work goes with the square."""
MODES = ("high", "low", "low_normed")
UNITS = {"stochastic": "sqrt(GeV)", "noise": "GeV", "constant": "1"}


def separations(truth: Truth, made: Made) -> Iterator[Score]:
    """Separation powers of the CaloChallenge's features, per layer and over the layers, and of the voxels."""
    sheet, settings = _calochallenge(truth, made)
    split, features = _split(truth, made), _high_level(truth, made)
    found = list(separation_powers(features[0], features[2], truth.seed))
    floor = truth.once(
        ("floor of separations", split.n), lambda: list(separation_powers(features[0], features[1], truth.seed))
    )
    clouds = [truth.clouds.select(split.a), truth.clouds.select(split.b), made.clouds.select(split.generated)]
    highest = features[0].highest_voxel
    found.append(voxel_separation(clouds[0], clouds[2], settings, truth.seed, highest))
    voxels = truth.once(
        ("floor of voxels", split.n), lambda: voxel_separation(clouds[0], clouds[1], settings, truth.seed, highest)
    )
    for power, its_floor in zip(found, [*floor, voxels], strict=True):
        yield from _of_separation(sheet, settings, power, its_floor, split.n)


def shower_distances(truth: Truth, made: Made) -> Iterator[Score]:
    """FPD, trimmed FPD and KPD of the features: minutes where there are hundreds of them (datasets 2 and 3)."""
    from foundation.evaluate.calochallenge import distances

    sheet, settings = _calochallenge(truth, made)
    n, features = _split(truth, made).n, _high_level(truth, made)
    measures = {
        "fpd": distances.shower_fpd, "fpd_trimmed": distances.shower_fpd_trimmed, "kpd": distances.shower_kpd
    }  # fmt: skip
    for name, measure in measures.items():
        definition = _definition(settings, name)
        try:
            value = measure(features[0], features[2])
            floor = truth.once(("floor of", name, n), lambda m=measure: m(features[0], features[1]))  # type: ignore[misc]
            yield sheet.score("all", name, definition, value, floor, n=n)
        except DataError as error:
            yield sheet.problem("all", name, definition, str(error), n)


def precision_and_recall(truth: Truth, made: Made) -> Iterator[Score]:
    """Precision, recall, density and coverage of the voxels; of 5000 showers where there are more."""
    from foundation.evaluate.calochallenge.prdc import shower_prdc

    sheet, settings = _calochallenge(truth, made)
    split = _split(truth, made)
    n = min(split.n, PRDC_SHOWERS)
    a, b, g = _clouds(truth, made, split)
    found = shower_prdc(a, g, settings, truth.seed, most=n)
    floor = truth.once(("floor of prdc", n), lambda: shower_prdc(a, b, settings, truth.seed, most=n))
    definition = _definition(settings, "prdc") + ("" if n == split.n else f", {n} showers")
    for name in ("precision", "recall", "density", "coverage"):
        yield sheet.score("all", name, definition, getattr(found, name), getattr(floor, name), n=n, better="higher")


def fast_classifiers(truth: Truth, made: Made) -> Iterator[Score]:
    """Classifier tests with small networks, which say that samples differ, and are not the challenge's numbers."""
    yield from _classifiers(truth, made, official=False)


def official_classifiers(truth: Truth, made: Made) -> Iterator[Score]:
    """The CaloChallenge's own classifier tests: hours without a GPU."""
    yield from _classifiers(truth, made, official=True)


def square_cells(truth: Truth, made: Made) -> Iterator[Score]:
    """W1 and KL of the ILD's observables of showers."""
    sheet, split = Sheet(made.model, truth.card.name, "ild"), _split(truth, made)
    geometry = truth.card.geometry
    assert geometry is not None  # the panel is for cards with a geometry
    a, b, g = _clouds(truth, made, split)

    def halves() -> tuple[IldShowers, IldShowers]:
        return ild_showers(a, geometry), ild_showers(b, geometry)

    true, other = truth.once(("ild showers", split.n), halves)
    found = ild_distances(true, ild_showers(g, geometry), truth.seed)
    floors = truth.once(("floor of ild", split.n), lambda: ild_distances(true, other, truth.seed))
    for distance, floor in zip(found, floors, strict=True):
        name, unit = distance.observable, distance.unit
        yield sheet.score("all", f"w1.{name}", ild.DEFINITIONS["w1"], distance.w1, floor.w1, unit=unit, n=split.n)
        yield sheet.score("all", f"kl.{name}", ild.DEFINITIONS["kl"], distance.kl, floor.kl, unit="nat", n=split.n)


def response(truth: Truth, made: Made) -> Iterator[Score]:
    """Response and resolution per bin of incident energy over those of the truth, and the terms of the resolution."""
    sheet, split = Sheet(made.model, truth.card.name, "response"), _split(truth, made)
    a, b, g = _clouds(truth, made, split)
    true = response_bins(a)
    edges = np.unique([edge for bin_ in true for edge in (bin_.low, bin_.high)])
    if all(bin_.low == bin_.high for bin_ in true):
        sides = [{bin_.low: bin_ for bin_ in response_bins(side)} for side in (b, g)]
    else:
        sides = [{bin_.low: bin_ for bin_ in response_bins(side, edges)} for side in (b, g)]
    for bin_ in true:
        group = f"{bin_.low:.4g} GeV" if bin_.low == bin_.high else f"{bin_.low:.4g}-{bin_.high:.4g} GeV"
        other, generated = (side.get(bin_.low) for side in sides)
        if generated is None:
            problem = f"the generated sample has fewer than {responses.MINIMUM} showers in this bin"
            yield sheet.problem(group, "response", responses.DEFINITIONS["response"], problem)
            continue
        for name in ("response", "resolution"):
            floor = _ratio(other, bin_, name) if other is not None else None
            yield sheet.score(
                group, f"{name}_ratio", responses.DEFINITIONS[name], _ratio(generated, bin_, name), floor,
                n=generated.showers, better="nearest", ideal=1.0,
            )  # fmt: skip
    yield from _terms(sheet, true, tuple(sides[1].values()), split.n)


def _terms(sheet: Sheet, true: tuple[ResponseBin, ...], made: tuple[ResponseBin, ...], n: int) -> Iterator[Score]:
    definition = responses.DEFINITIONS["resolution_fit"]
    try:
        fits = [fit_resolution(bins) for bins in (made, true)]
    except DataError as error:
        yield sheet.problem("all", "resolution", definition, str(error), n)
        return
    for term, unit in UNITS.items():
        value, ideal = (getattr(fit, term) for fit in fits)
        both = float(np.hypot(value.error, ideal.error))
        yield sheet.score(
            "all", f"resolution.{term}", definition, Measurement(value.value, both), unit=unit, n=n,
            better="nearest", ideal=ideal.value,
        )  # fmt: skip


def _ratio(made: ResponseBin, true: ResponseBin, name: str) -> Measurement:
    value, ideal = getattr(made, name), getattr(true, name)
    ratio = value.value / ideal.value if ideal.value else float("nan")
    return Measurement(ratio, abs(ratio) * float(np.hypot(value.error / value.value, ideal.error / ideal.value)))


def _calochallenge(truth: Truth, made: Made) -> tuple[Sheet, Settings]:
    return Sheet(made.model, truth.card.name, "calochallenge"), settings_of(truth.card)


def _definition(settings: Settings, name: str) -> str:
    """Derived settings make numbers that must not stand beside the challenge's."""
    return DEFINITIONS[name] if settings.official else f"{DEFINITIONS[name]}, derived settings"


def _split(truth: Truth, made: Made) -> Split:
    return random_split(len(truth.clouds), len(made.clouds), [truth.seed, 0, 0])


def _clouds(truth: Truth, made: Made, split: Split) -> tuple[PointClouds, PointClouds, PointClouds]:
    return truth.clouds.select(split.a), truth.clouds.select(split.b), made.clouds.select(split.generated)


def _high_level(truth: Truth, made: Made) -> tuple[HighLevelFeatures, HighLevelFeatures, HighLevelFeatures]:
    """Features of both halves of the truth and of the generated showers."""
    assert isinstance(truth.card.geometry, CylindricalGeometry)
    settings, split = settings_of(truth.card), _split(truth, made)

    def of_truth() -> tuple[HighLevelFeatures, HighLevelFeatures]:
        first, second = (high_level_features(truth.clouds.select(part), settings) for part in (split.a, split.b))
        return first, second

    first, second = truth.once(("high-level features", split.n), of_truth)
    generated = made.once(
        ("high-level features", split.n),
        lambda: high_level_features(made.clouds.select(split.generated), settings),
    )
    return first, second, generated


def _of_separation(sheet: Sheet, settings: Settings, power: Separation, floor: Separation, n: int) -> Iterator[Score]:
    definition, name = _definition(settings, "separation"), f"separation.{power.observable}"
    if power.by_layer:
        yield sheet.score("all", f"{name}.mean", definition, power.mean, floor.mean, n=n)
        yield sheet.score("all", f"{name}.largest", definition, power.largest, floor.largest, n=n)
    else:
        yield sheet.score("all", name, definition, power.mean, floor.mean, n=n)
    for layer, value in power.by_layer.items():
        if np.isfinite(value.value):
            yield sheet.score(f"layer {layer}", name, definition, value, floor.by_layer.get(layer), n=n)


def _classifiers(truth: Truth, made: Made, official: bool) -> Iterator[Score]:
    from foundation.evaluate.calochallenge.classifier import FAST, OFFICIAL, ClassifierTest, classifier_test

    sheet, settings = _calochallenge(truth, made)
    split, mode = _split(truth, made), OFFICIAL if official else FAST
    a, b, g = _clouds(truth, made, split)
    kinds = MODES if settings.geometry.regular_shape is None or not official else (*MODES, "resnet")
    for kind in kinds:
        definition = _definition(settings, f"classifier_{kind}") if official else f"classifier_{kind}/fast-1"

        def test(other: PointClouds, kind: str = kind) -> ClassifierTest:
            return classifier_test(a, other, settings, kind, mode, truth.seed)  # type: ignore[arg-type]

        try:
            found = test(g).calibrated
            floor = truth.once(("floor of classifier", kind, mode.name, split.n), lambda: test(b).calibrated)
        except DataError as error:
            yield sheet.problem("all", f"auc.{kind}", definition, str(error), split.n)
            continue
        yield sheet.score(
            "all", f"auc.{kind}", definition, found.auc, floor.auc, n=split.n, better="nearest", ideal=0.5
        )
        yield sheet.score("all", f"jsd.{kind}", definition, found.jsd, floor.jsd, unit="bit", n=split.n)
