"""Panel `jets`: the distances that papers on generated jets quote, per class of the card, with their floors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from foundation.errors import DataError
from foundation.evaluate.coverage import coverage_and_mmd
from foundation.evaluate.grouping import Split, by_class, random_split
from foundation.evaluate.jet_scores import DEFINITIONS, JetFeatures, JetScores, jet_features, jet_scores
from foundation.evaluate.metrics import Measurement
from foundation.evaluate.panels.samples import Made, Sheet, Truth
from foundation.evaluate.scores import Score

LEFT_OUT = "left-out/1"
UNITS = {"quantiled_kld": "nat"}


def jets(truth: Truth, made: Made) -> Iterator[Score]:
    """W1-M, W1-P, W1-EFP, FPD, KPD and the quantiled KLD of jets with pT relative to the jet's."""
    sheet = Sheet(made.model, truth.card.name, "jets")
    for group, split, true, made_features in _groups(truth, made, sheet):
        if isinstance(split, Score):
            yield split
            continue
        reference, other = true.select(split.a), true.select(split.b)
        found = jet_scores(reference, made_features.select(split.generated), seed=truth.seed)
        floor = truth.once(
            ("floor of jets", group, split.n),
            lambda a=reference, b=other: jet_scores(a, b, seed=truth.seed),  # type: ignore[misc]
        )
        yield from _scores(sheet, group, found, floor.values, split.n)
    yield from _left_out(sheet, truth, made)


def coverage(truth: Truth, made: Made) -> Iterator[Score]:
    """Coverage and minimum matching distance by the energy mover's distance: minutes for jets of many constituents."""
    sheet = Sheet(made.model, truth.card.name, "jets")
    for group, split, true, made_features in _groups(truth, made, sheet):
        if isinstance(split, Score):
            yield split
            continue
        a, b, g = (
            features.relative.select(index)
            for features, index in ((true, split.a), (true, split.b), (made_features, split.generated))
        )
        found = coverage_and_mmd(a, g, seed=truth.seed)
        floor = truth.once(
            ("floor of coverage", group, split.n),
            lambda a=a, b=b: coverage_and_mmd(a, b, seed=truth.seed),  # type: ignore[misc]
        )
        yield sheet.score(
            group, "coverage", DEFINITIONS["coverage"], found.coverage, floor.coverage, n=split.n, better="higher"
        )
        yield sheet.score(group, "mmd", DEFINITIONS["mmd"], found.mmd, floor.mmd, n=split.n)


def _features(truth: Truth, made: Made) -> tuple[JetFeatures, JetFeatures]:
    return (
        truth.once("jet features", lambda: jet_features(truth.clouds, card=truth.card)),
        made.once("jet features", lambda: jet_features(made.clouds, card=truth.card)),
    )


def _groups(truth: Truth, made: Made, sheet: Sheet) -> Iterator[tuple[str, Split | Score, JetFeatures, JetFeatures]]:
    """Per class: halves of the truth and generated jets, within the features of the class; or why there are none."""
    true, generated = _features(truth, made)
    members = by_class(true.relative, generated.relative, truth.card)
    for number, (group, (in_truth, in_generated)) in enumerate(members.items()):
        split: Split | Score
        try:
            split = random_split(len(in_truth), len(in_generated), [truth.seed, number, 0])
        except DataError as error:
            split = sheet.problem(group, "jets", "", str(error), min(len(in_truth) // 2, len(in_generated)))
        yield group, split, true.select(in_truth), generated.select(in_generated)


def _scores(sheet: Sheet, group: str, found: JetScores, floor: Mapping[str, Measurement], n: int) -> Iterator[Score]:
    for name, value in found.values.items():
        kind = name.partition(".")[0]
        yield sheet.score(group, name, DEFINITIONS[kind], value, floor.get(name), unit=UNITS.get(kind, "1"), n=n)
    polynomials = [name for name in found.values if name.startswith("w1efp.")]
    if polynomials:
        mean, its_floor = _mean(found.values, polynomials), _mean(floor, polynomials)
        yield sheet.score(group, "w1efp.mean", DEFINITIONS["w1efp"], mean, its_floor, n=n)
    for name, problem in found.problems.items():
        yield sheet.problem(group, name, DEFINITIONS[name.partition(".")[0]], problem, n)


def _mean(values: Mapping[str, Measurement], names: list[str]) -> Measurement:
    """Mean, as papers quote it; the values share their draws, so their errors are taken as fully correlated."""
    known = [values[name] for name in names if name in values]
    if not known:
        return Measurement(float("nan"), float("nan"))
    return Measurement(sum(m.value for m in known) / len(known), sum(m.error for m in known) / len(known))


def _left_out(sheet: Sheet, truth: Truth, made: Made) -> Iterator[Score]:
    """Share of jets that have no constituents or impossible ones, where there are any."""
    true, generated = _features(truth, made)
    if true.left_out or generated.left_out:
        shares = [
            Measurement(features.left_out / len(clouds), float("nan"))
            for features, clouds in ((generated, made.clouds), (true, truth.clouds))
        ]
        yield sheet.score("all", "left_out", LEFT_OUT, *shares, n=len(made.clouds))
