"""Saved evaluations side by side: several metrics.json become one table and one report, without the objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from foundation.errors import DataError
from foundation.evaluate.leaderboard import published
from foundation.evaluate.metrics_file import SavedMetrics, read_metrics, write_metrics
from foundation.evaluate.report import DatasetView, RunDescription, write_report
from foundation.evaluate.score_plots import score_pictures
from foundation.evaluate.scores import Score


def read_side_by_side(paths: Sequence[Path], names: Sequence[str] = ()) -> SavedMetrics:
    """The scores of several files of metrics in one; models of the same name get the names of their files' folders.

    names: other names of the models, in the order of the files; then every file must hold one model.
    Raises DataError where files cannot be read, or names do not fit.
    """
    files = [read_metrics(path) for path in paths]
    if names:
        for path, file in zip(paths, files, strict=False):
            if len(file.models) != 1:
                raise DataError(f"{path}: holds {len(file.models)} models, so that --name cannot say which it is")
        if len(names) != len(files):
            raise DataError(f"{len(names)} names were given for {len(files)} files of metrics; give one for each")
    twice = {m for m, n in Counter(m for file in files for m in file.models).items() if n > 1}
    scores: list[Score] = []
    for k, (path, file) in enumerate(zip(paths, files, strict=True)):
        folder = path.resolve().parent.name
        called = {m: names[k] if names else f"{folder}: {m}" if m in twice else m for m in file.models}
        scores += [replace(score, model=called[score.model]) for score in file.scores]
    first = files[0]
    datasets = {name: about for file in reversed(files) for name, about in file.datasets.items()}
    problems = tuple(dict.fromkeys(problem for file in files for problem in file.problems))
    return SavedMetrics(tuple(scores), first.seed, first.versions, datasets, (), problems)


def write_side_by_side(folder: Path, run: RunDescription, saved: SavedMetrics) -> Mapping[str, Path]:
    """Write metrics.json with all scores, and a report of them; the paths of both by name."""
    views = []
    for dataset in dict.fromkeys(score.dataset for score in saved.scores):
        scores = [score for score in saved.scores if score.dataset == dataset]
        views.append(DatasetView({}, scores, score_pictures(scores, folder / "figures"), published(dataset)))
    return {
        "metrics": write_metrics(folder / "metrics.json", saved),
        "report": write_report(folder / "report.html", run, views, problems=saved.problems),
    }
