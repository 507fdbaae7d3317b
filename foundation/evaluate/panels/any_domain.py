"""Panels for jets and showers alike: two-sample test, memorisation, conditions, likelihoods, speed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.grouping import random_split
from foundation.evaluate.metrics import Floats, Measurement
from foundation.evaluate.panels.choice import QUANTITIES
from foundation.evaluate.panels.samples import Made, Sheet, Truth
from foundation.evaluate.scores import Score

SPEED = "objects-per-second/1"
NAN = float("nan")


def speed(truth: Truth, made: Made) -> Iterator[Score]:
    """Objects per second of every timing there is; the whole of generating, with decoding, without loading a model."""
    sheet = Sheet(made.model, truth.card.name, "speed")
    for timing in made.timings:
        name = f"objects_per_second.batch_{timing.batch}" + (f".{timing.device}" if timing.device else "")
        if timing.seconds <= 0 or timing.objects <= 0:
            yield sheet.problem("all", name, SPEED, f"{timing.objects} objects in {timing.seconds:g} s is no timing")
            continue
        rate = Measurement(timing.objects / timing.seconds, NAN)
        yield sheet.score("all", name, SPEED, rate, unit="1/s", n=timing.objects, better="higher")


def two_sample(truth: Truth, made: Made) -> Iterator[Score]:
    """AUC of networks on sets that tell generated from true objects, in the fast mode."""
    from foundation.evaluate.two_sample import NETWORKS, two_sample_test

    sheet = Sheet(made.model, truth.card.name, "two-sample")
    split = random_split(len(truth.clouds), len(made.clouds), [truth.seed, 0, 0])
    a, b, g = truth.clouds.select(split.a), truth.clouds.select(split.b), made.clouds.select(split.generated)
    for network in NETWORKS:
        found = two_sample_test(truth.card, a, g, network=network, seed=truth.seed)
        floor = truth.once(
            ("floor of two samples", network, split.n),
            lambda network=network: two_sample_test(truth.card, a, b, network=network, seed=truth.seed),  # type: ignore[misc]
        )
        n = (found.n_train + found.n_test) // 2
        yield sheet.score(
            "all", f"auc.{network}", found.definition, found.auc, floor.auc, n=n, better="nearest", ideal=0.5
        )
        values = (Measurement(test.p_value, NAN) for test in (found, floor))
        yield sheet.score("all", f"p_value.{network}", found.definition, *values, n=n, better="higher")


def conditional(truth: Truth, made: Made) -> Iterator[Score]:
    """How a quantity of the points follows the condition that was asked for: medians and widths in bins of it."""
    from foundation.evaluate.conditional import DEFINITIONS, obedience

    sheet = Sheet(made.model, truth.card.name, "conditional")
    split = random_split(len(truth.clouds), len(made.clouds), [truth.seed, 0, 0])
    a, b, g = truth.clouds.select(split.a), truth.clouds.select(split.b), made.clouds.select(split.generated)
    for condition in truth.card.conditions:
        if condition.name not in QUANTITIES:
            continue
        quantity = QUANTITIES[condition.name]
        values = [_quantity(truth.card, clouds, quantity) for clouds in (a, b, g)]
        try:
            found = obedience(a, g, condition.name, values[0], values[2], seed=truth.seed)
            floor = obedience(a, b, condition.name, values[0], values[1], seed=truth.seed)
        except DataError as error:
            yield sheet.problem("all", f"{condition.name}.deviation", DEFINITIONS["deviation"], str(error), split.n)
            continue
        for name in ("deviation", "width"):
            yield sheet.score(
                "all", f"{condition.name}.{name}", DEFINITIONS[name], getattr(found, name), getattr(floor, name),
                n=split.n,
            )  # fmt: skip
        yield sheet.score(
            "all", f"{condition.name}.correlation", DEFINITIONS["correlation"], found.generated_correlation,
            floor.generated_correlation, n=split.n, better="nearest", ideal=found.truth_correlation.value,
        )  # fmt: skip
        others = {bin_.group.name: bin_.difference for bin_ in floor.bins}
        for bin_ in found.bins:
            yield sheet.score(
                bin_.group.name, f"{condition.name}.difference", DEFINITIONS["deviation"], bin_.difference,
                others.get(bin_.group.name), n=len(bin_.group.generated), better="nearest", ideal=0.0,
            )  # fmt: skip


def _quantity(card: DatasetCard, clouds: PointClouds, name: str) -> Floats:
    if card.domain == "jet":
        from foundation.evaluate.jets import jet_mass, jet_momenta

        if name == "mass":
            return jet_mass(clouds)
        momenta = jet_momenta(clouds)
        return np.hypot(momenta[:, 0], momenta[:, 1]) if name == "pt" else clouds.counts.astype(np.float64)
    return np.bincount(clouds.owners, clouds.feature("energy").astype(np.float64), len(clouds)).astype(np.float64)


def likelihood(truth: Truth, made: Made) -> Iterator[Score]:
    """Is truth as likely under the model as what it generates? Log-likelihoods in nats, by halves of the truth."""
    from foundation.evaluate.likelihood_calibration import DEFINITIONS, likelihood_test, rank_calibration

    assert made.likelihoods is not None  # the panel is for models that know them
    sheet, (true, generated) = Sheet(made.model, truth.card.name, "likelihood"), made.likelihoods
    split = random_split(len(true), len(generated), [truth.seed, 0, 0])
    a, b, g = true[split.a], true[split.b], generated[split.generated]
    found, floor = likelihood_test(a, g, seed=truth.seed), likelihood_test(a, b, seed=truth.seed)
    yield sheet.score("all", "ks", DEFINITIONS["ks"], found.ks, floor.ks, n=split.n)
    yield sheet.score("all", "w1", DEFINITIONS["w1"], found.w1, floor.w1, unit="nat", n=split.n)
    yield sheet.score(
        "all", "gap", DEFINITIONS["gap"], found.gap, floor.gap, unit="nat", n=split.n, better="nearest", ideal=0.0
    )
    inside, inside_floor = rank_calibration(a, g).coverage, rank_calibration(a, b).coverage
    for level, share in inside.items():
        yield sheet.score(
            "all", f"coverage_{100 * level:.0f}", DEFINITIONS["coverage"], share, inside_floor[level], n=split.n,
            better="nearest", ideal=level,
        )  # fmt: skip


def memorisation(truth: Truth, made: Made) -> Iterator[Score]:
    """Are generated objects closer to those of the training than held-out ones are, and are some of them copies?

    By the sliced Wasserstein distance of whole clouds; the floor is that of one half of the truth, taken as generated,
    with the other half held out.
    """
    from foundation.evaluate.memorisation import DEFINITIONS, LARGEST, exact_copies
    from foundation.evaluate.memorisation import memorisation as test
    from foundation.evaluate.neighbours import cloud_vectors

    assert made.train is not None  # the panel is for models whose training sample is known
    sheet = Sheet(made.model, truth.card.name, "memorisation")
    split = random_split(len(truth.clouds), len(made.clouds), [truth.seed, 0, 0])
    samples = {
        "training": _filled(made.train.select(np.random.default_rng(truth.seed).permutation(len(made.train))), LARGEST),
        "held-out": _filled(truth.clouds.select(split.a), LARGEST),
        "other": _filled(truth.clouds.select(split.b), LARGEST),
        "generated": _filled(made.clouds.select(split.generated), LARGEST),
    }
    vectors = cloud_vectors(truth.card, samples, "training", seed=truth.seed)
    found, floor = (
        test(vectors["training"], vectors["held-out"], vectors[name], standardise=False, seed=truth.seed)
        for name in ("generated", "other")
    )
    n = found.objects
    yield sheet.score(
        "all", "closer_to_training", DEFINITIONS["closer_to_training"], found.closer_to_training,
        floor.closer_to_training, n=n, better="nearest", ideal=0.5,
    )  # fmt: skip
    yield sheet.score(
        "all", "distance_ratio", DEFINITIONS["distance_ratio"], found.distance_ratio, floor.distance_ratio, n=n,
        better="nearest", ideal=1.0,
    )  # fmt: skip
    copying = found.copying, floor.copying
    yield sheet.score("all", "c_t", DEFINITIONS["copying"], *copying, n=n, better="nearest", ideal=0.0)
    copies = exact_copies(made.train, truth.clouds, made.clouds)
    held = Measurement(copies.held_out_of_training, NAN)
    yield sheet.score("all", "exact_copies", DEFINITIONS["exact_copies"], copies.share, held, n=copies.generated)
    repeats = Measurement(copies.repeats / copies.generated, NAN)
    yield sheet.score("all", "repeats", DEFINITIONS["repeats"], repeats, n=copies.generated)


def _filled(clouds: PointClouds, most: int) -> PointClouds:
    """The first objects with points: those without have no neighbours, and are all equal."""
    return clouds.select(np.flatnonzero(clouds.counts > 0)[:most])
