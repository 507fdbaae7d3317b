"""Which metrics there are, what they cost, and which of them a dataset gets. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from foundation.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from foundation.data.cards import DatasetCard

Cost = Literal["quick", "slow", "long"]
Metric = Literal[
    "distributions", "jets", "separations", "ild", "response", "conditional", "speed", "likelihood",
    "coverage", "distances", "precision_recall", "classifiers", "two_sample", "memorisation", "official_classifiers",
]  # fmt: skip
"""Names that a recipe and a command line may choose from."""
Need = Literal["jet", "shower", "rings", "squares", "incident energy", "condition", "train", "timing", "likelihood"]

MISSING: dict[Need, str] = {
    "jet": "it is about jets, and the card's domain is another",
    "shower": "it is about calorimeter showers, and the card's domain is another",
    "rings": "it needs a geometry of rings (kind: cylindrical)",
    "squares": "it needs a geometry of square cells (kind: cartesian)",
    "incident energy": "the card has no condition 'incident_energy'",
    "condition": "the card has no condition that points could be held against",
    "train": "give objects that the model was trained on (--train, or `train` in a recipe)",
    "timing": "nobody knows how long generating took; a recipe's generate stage does",
    "likelihood": "the log-likelihoods of the objects under the model are not known",
}
QUANTITIES = {
    "incident_energy": "energy_sum", "jet_pt": "pt", "jet_mass": "mass", "jet_n_constituents": "multiplicity"
}  # fmt: skip
"""Condition -> what of an object's points should follow it."""


@dataclass(frozen=True)
class Part:
    """Metrics that are chosen and calculated together.

    panel: the tab of the report that they are in; function: module and name below foundation.evaluate.panels
    cost:  quick ones take a minute at most for 10,000 objects, slow ones minutes, long ones hours without a GPU
    """

    name: Metric
    panel: str
    cost: Cost
    function: str
    what: str
    needs: tuple[Need, ...] = ()


PARTS = (
    Part("distributions", "distributions", "quick", "distributions:distributions",
         "W1 and separation power of every observable"),
    Part("jets", "jets", "quick", "jets:jets", "W1-M, W1-P, W1-EFP, FPD, KPD and quantiled KLD of jets", ("jet",)),
    Part("separations", "calochallenge", "quick", "showers:separations",
         "separation powers of the CaloChallenge's features per layer, and of voxels", ("rings", "incident energy")),
    Part("ild", "ild", "quick", "showers:square_cells", "W1 and KL of the ILD's observables", ("squares",)),
    Part("response", "response", "quick", "showers:response", "response and resolution against incident energy",
         ("shower", "incident energy")),
    Part("conditional", "conditional", "quick", "any_domain:conditional",
         "how well conditions are obeyed", ("condition",)),
    Part("speed", "speed", "quick", "any_domain:speed", "objects per second", ("timing",)),
    Part("likelihood", "likelihood", "quick", "any_domain:likelihood",
         "log-likelihoods of truth and of generated objects under the model", ("likelihood",)),
    Part("coverage", "jets", "slow", "jets:coverage", "coverage and MMD by the energy mover's distance", ("jet",)),
    Part("distances", "calochallenge", "slow", "showers:shower_distances", "FPD, trimmed FPD and KPD of showers",
         ("rings", "incident energy")),
    Part("precision_recall", "calochallenge", "slow", "showers:precision_and_recall",
         "precision, recall, density and coverage of voxels", ("rings", "incident energy")),
    Part("classifiers", "calochallenge", "slow", "showers:fast_classifiers",
         "the CaloChallenge's classifier tests with small networks", ("rings", "incident energy")),
    Part("two_sample", "two-sample", "slow", "any_domain:two_sample", "classifier two-sample test on point clouds"),
    Part("memorisation", "memorisation", "slow", "any_domain:memorisation",
         "are generated objects closer to those of the training than held-out ones are?", ("train",)),
    Part("official_classifiers", "calochallenge", "long", "showers:official_classifiers",
         "the CaloChallenge's classifier tests as they are", ("rings", "incident energy")),
)  # fmt: skip
NAMES: tuple[str, ...] = get_args(Metric)


def chosen(metrics: str | Sequence[str]) -> tuple[tuple[Part, ...], bool]:
    """The parts that are meant, and whether they were named: `quick`, `all` (but the long ones), or names.

    A name may also be that of a panel, for all that is in it but the long ones; `quick` and `all` may be among names.
    """
    words = [metrics] if isinstance(metrics, str) else list(metrics)
    wanted: set[str] = set()
    for word in words:
        if word in ("quick", "all"):
            wanted |= {part.name for part in PARTS if part.cost == "quick" or (word == "all" and part.cost == "slow")}
        elif word in NAMES:
            wanted.add(word)
        elif found := {part.name for part in PARTS if part.panel == word and part.cost != "long"}:
            wanted |= found
        else:
            raise DataError(f"there is no metric '{word}'{did_you_mean(word, ['quick', 'all', *NAMES])}")
    if not wanted:
        raise DataError(f"no metrics are chosen; name some of {', '.join(['quick', 'all', *NAMES])}")
    return tuple(part for part in PARTS if part.name in wanted), not {"quick", "all"} & set(words)


def lacking(part: Part, card: DatasetCard, *, train: bool, timing: bool, likelihood: bool) -> str:
    """Why these metrics do not fit the dataset or what is known of it; empty where they do."""
    kind = card.geometry.kind if card.geometry is not None else ""
    conditions = {condition.name for condition in card.conditions} | {a.name for a in card.attributes}
    given: dict[Need, bool] = {
        "jet": card.domain == "jet",
        "shower": card.domain == "shower",
        "rings": card.domain == "shower" and kind == "cylindrical",
        "squares": card.domain == "shower" and kind == "cartesian",
        "incident energy": "incident_energy" in conditions,
        "condition": any(condition.name in QUANTITIES for condition in card.conditions),
        "train": train,
        "timing": timing,
        "likelihood": likelihood,
    }
    return next((MISSING[need] for need in part.needs if not given[need]), "")
