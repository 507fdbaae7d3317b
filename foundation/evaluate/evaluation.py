"""Everything in one go: compare, score, draw, and write metrics.json, the figures and report.html."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.comparison import Comparison, compare
from foundation.evaluate.figures import Picture
from foundation.evaluate.leaderboard import published
from foundation.evaluate.metrics import Measurement, classification_scores
from foundation.evaluate.metrics_file import SavedMetrics, versions, write_metrics
from foundation.evaluate.panels.choice import chosen
from foundation.evaluate.panels.classifiers import classifier_panel
from foundation.evaluate.panels.running import panel_scores
from foundation.evaluate.panels.samples import Made, Timing, Truth
from foundation.evaluate.pictures import dataset_pictures
from foundation.evaluate.plots import roc_picture, training_picture
from foundation.evaluate.report import ArmResult, DatasetView, RunDescription, write_report
from foundation.evaluate.score_plots import score_pictures
from foundation.evaluate.scores import Score

HEADLINES = (
    "w1m", "fpd", "kpd", "separation.energy_layer.mean", "separation.voxel", "auc.high", "auc.low",
    "auc.deep_sets", "auc.transformer",
)  # fmt: skip
"""Numbers of the panels that the registry shows, where they were measured."""


@dataclass(frozen=True)
class Sample:
    """Held-out truth of one dataset and the objects that one model generated of it.

    train:       objects that the model was trained on, for the test of memorisation
    timings:     how long generating took
    likelihoods: log-likelihoods of truth and of generated objects under the model, float64 [B] each
    notes:       what a reader must know of the files, such as objects that were left out
    """

    card: DatasetCard
    truth: PointClouds
    generated: PointClouds
    model: str = "generated"
    train: PointClouds | None = None
    timings: Sequence[Timing] = ()
    likelihoods: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassifierArm:
    """A classifier on its test set: labels 0 or 1 [B], scores [B] = probability of class 1.

    task: what is signal and what is background; n_train: number of labelled objects it was trained on
    dataset, classes, class_labels, probabilities: of a classifier of K classes, [B] and [B, K]
    """

    name: str
    task: str
    n_train: int
    labels: NDArray[np.integer]
    scores: NDArray[np.floating]
    dataset: str = ""
    classes: tuple[str, ...] = ()
    class_labels: NDArray[np.integer] | None = None
    probabilities: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was found, and the files that say so; tidy: all scores, one number per row."""

    comparisons: tuple[Comparison, ...]
    arms: tuple[ArmResult, ...]
    problems: tuple[str, ...]
    report: Path
    metrics: Path
    tidy: tuple[Score, ...] = ()
    models: tuple[str, ...] = field(default=("generated",))
    """The model of each comparison."""

    @property
    def scores(self) -> dict[str, float]:
        """The headline numbers, flat, for the registry and the last lines on the screen; only finite ones.

        `<dataset>.<group>.<observable>.{difference,ratio}`, `<dataset>.<group>.mass_peak_shift` [GeV],
        `<dataset>.<group>.<name>` of HEADLINES, all with `<model>.` before them where there are several models;
        `<arm>.{accuracy,auc,rejection_30,rejection_50}`; lower limits of rejections are left out.
        """
        several = len(set(self.models)) > 1
        found: dict[str, float] = {}
        for model in dict.fromkeys(self.models):
            found |= {f"{model}.{k}" if several else k: v for k, v in self.scores_of(model).items()}
        for arm in self.arms:
            for name in ("accuracy", "auc", "rejection_30", "rejection_50"):
                measured: Measurement | None = getattr(arm.scores, name, None)
                if measured is not None and not measured.limit:
                    found[f"{arm.name}.{name}"] = measured.value
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def scores_of(self, model: str) -> dict[str, float]:
        """The headline numbers of one model, without its name; only finite ones."""
        found: dict[str, float] = {}
        for c in (c for name, c in zip(self.models, self.comparisons, strict=True) if name == model):
            for row in c.rows:
                name = f"{c.dataset}.{row.group}.{row.observable}"
                found[f"{name}.difference"], found[f"{name}.ratio"] = row.relative_difference, row.ratio
            for group, (truth, generated) in c.peaks.items():
                found[f"{c.dataset}.{group}.mass_peak_shift"] = generated.value - truth.value
        for score in self.tidy:
            if score.model == model and score.name in HEADLINES:
                found[f"{score.dataset}.{score.group}.{score.name}"] = score.value
        return {name: value for name, value in found.items() if np.isfinite(value)}


def evaluate(
    folder: Path,
    run: RunDescription,
    samples: Sequence[Sample],
    classifiers: Sequence[ClassifierArm] = (),
    training: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    *,
    seed: int = 0,
    pdf: bool = False,
    metrics: str | Sequence[str] = "quick",
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Write `metrics.json`, `figures/*.png` (and PDF) and `report.html` into `folder`.

    samples:  those with the same truth are compared with it side by side, as models of one dataset
    training: run name -> list of {"step": ..., "loss": ..., ...}
    metrics:  quick, all, or names, see `panels.choice`
    A sample or a classifier that cannot be evaluated becomes a sentence in `problems` and in the report. DataError when
    there is nothing at all that could be evaluated.
    """
    chosen(metrics)  # a wrong name is a mistake before anything is computed
    problems: list[str] = []
    datasets = [_dataset(group, seed, metrics, problems, on_progress) for group in _by_truth(samples)]
    datasets = [dataset for dataset in datasets if dataset.comparisons]
    arms = [_score(arm, problems) for arm in classifiers]
    if not datasets and not any(arm.scores for arm in arms):
        raise DataError("nothing could be evaluated: " + (" ".join(problems) or "no samples and no classifiers given"))

    figures = folder / "figures"
    views = [_view(dataset, figures, pdf) for dataset in datasets]
    tidy = tuple(score for dataset in datasets for score in dataset.scores)
    tidy += tuple(score for arm in classifiers for score in classifier_panel(arm, seed))
    roc, curves = _other_pictures(arms, training or {}, figures, pdf)
    saved = SavedMetrics(
        tidy, seed, versions(), _described(datasets), [_arm_content(arm) for arm in arms], tuple(problems)
    )
    written = write_metrics(folder / "metrics.json", saved)
    report = write_report(folder / "report.html", run, views, arms, roc, curves, problems)
    pairs = [(model, c) for dataset in datasets for model, c in dataset.comparisons.items()]
    return Evaluation(
        tuple(c for _, c in pairs), tuple(arms), tuple(problems), report, written, tidy, tuple(m for m, _ in pairs)
    )


@dataclass(frozen=True)
class _Dataset:
    """Comparisons by model, all scores, and notes, of models that have the same truth."""

    card: DatasetCard
    comparisons: Mapping[str, Comparison]
    scores: tuple[Score, ...]
    notes: tuple[str, ...]


def _by_truth(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples with the same card and the very same truth, in the order of the first of them."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.card.name, id(sample.truth)), []).append(sample)
    return list(groups.values())


def _dataset(
    samples: Sequence[Sample],
    seed: int,
    metrics: str | Sequence[str],
    problems: list[str],
    on_progress: Callable[[str], None] | None,
) -> _Dataset:
    """Compare and score all models of one dataset; one that cannot be compared is a problem and loses no other."""
    first, comparisons, scores = samples[0], dict[str, Comparison](), list[Score]()
    truth = Truth(first.card, first.truth, seed)
    for sample in samples:
        if sample.model in comparisons:
            raise DataError(f"{first.card.name}: two models are called '{sample.model}'; give each its own name")
        try:
            comparisons[sample.model] = compare(sample.truth, sample.generated, sample.card, seed=seed)
        except DataError as error:
            of = f"{sample.model}: " if len(samples) > 1 else ""
            problems.append(of + str(error))
            continue
        comparison = comparisons[sample.model]
        made = Made(sample.model, sample.generated, comparison, sample.train, sample.timings, sample.likelihoods)
        scores += panel_scores(truth, made, metrics, on_progress)
    notes = [f"{s.model}: {note}" if len(samples) > 1 else note for s in samples for note in s.notes]
    return _Dataset(first.card, comparisons, tuple(scores), tuple(notes))


def _view(dataset: _Dataset, figures: Path, pdf: bool) -> DatasetView:
    pictures = dataset_pictures(dataset.comparisons, figures, pdf) + score_pictures(dataset.scores, figures, pdf)
    return DatasetView(dataset.comparisons, dataset.scores, pictures, published(dataset.card.name))


def _other_pictures(
    arms: Sequence[ArmResult], training: Mapping[str, Sequence[Mapping[str, float]]], figures: Path, pdf: bool
) -> tuple[list[Picture], list[Picture]]:
    """ROC curves, and curves of the training, where there are any."""
    scored = {f"{arm.name}, {arm.n_train} labels": arm.scores for arm in arms if arm.scores is not None}
    curves = training_picture(training, figures, pdf)
    return [roc_picture(scored, figures, pdf)] if scored else [], [curves] if curves else []


def _score(arm: ClassifierArm, problems: list[str]) -> ArmResult:
    try:
        return ArmResult(arm.name, arm.task, arm.n_train, classification_scores(arm.labels, arm.scores))
    except DataError as error:
        problems.append(f"{arm.name}: {error}")
        return ArmResult(arm.name, arm.task, arm.n_train, None, str(error))


def _described(datasets: Sequence[_Dataset]) -> dict[str, object]:
    """What metrics.json says of each dataset beside the scores: sizes, medians, mass peaks, notes."""
    return {
        dataset.card.name: {
            "title": dataset.card.title,
            "domain": dataset.card.domain,
            "truth_objects": max(len(c.truth) for c in dataset.comparisons.values()),
            "generated_objects": {model: len(c.generated) for model, c in dataset.comparisons.items()},
            "rows": [{"model": model} | asdict(row) for model, c in dataset.comparisons.items() for row in c.rows],
            "mass_peaks": {
                model: {group: {"truth": asdict(t), "generated": asdict(m)} for group, (t, m) in c.peaks.items()}
                for model, c in dataset.comparisons.items()
            },
            "notes": list(dict.fromkeys([*dataset.notes, *(n for c in dataset.comparisons.values() for n in c.notes)])),
        }
        for dataset in datasets
    }


def _arm_content(arm: ArmResult) -> dict[str, object]:
    content: dict[str, object] = {
        "name": arm.name, "task": arm.task, "n_train": arm.n_train, "problem": arm.problem
    }  # fmt: skip
    if arm.scores is not None:
        curves = ("signal_efficiency", "background_efficiency")
        content |= {name: value for name, value in asdict(arm.scores).items() if name not in curves}
    return content
