"""The command `foundation likelihood`: how likely a model finds the objects of files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.console import Progress, say
from foundation.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foundation.api import Model
    from foundation.data.cards import DatasetCard
    from foundation.data.point_clouds import PointClouds

OK = 0
AT_ONCE = 2_000
"""Objects that are encoded and scored at a time."""
HELP = """\
Log-likelihood of objects under a trained model, in nats: of the whole object, and the parts of it
that come from the number of points and from each stream of codes. It is the probability of the
object's codes, so it compares objects under one tokenizer. FILES are in the format of the
dataset's card, or point clouds of this platform; MODEL is a model folder, the folder of a
pretrain stage, or models:/NAME@ALIAS.
"""
EPILOG = """\
examples:
  foundation likelihood runs/quickstart/pretrain runs/quickstart/jets/test --dataset pythia_jets
  foundation likelihood models:/quickstart-backbone@latest jets.h5 --out scores.npz --classes any

The arrays in scores.npz: log_likelihood [B], of_count [B] (the part of the number of points),
of_streams [B, K], streams [K] (names), points [B], label [B]; with --classes sum also
of_classes [B, classes] (the log-likelihood for every class).
"""


def add_likelihood_command(commands: Any) -> None:
    """Add `likelihood` to the subparsers of `foundation`."""
    raw = argparse.RawDescriptionHelpFormatter
    likelihood = commands.add_parser(
        "likelihood", help="log-likelihood of objects under a model", description=HELP, epilog=EPILOG,
        formatter_class=raw,
    )  # fmt: skip
    likelihood.add_argument("model", metavar="MODEL")
    likelihood.add_argument("files", metavar="FILE", nargs="+", help="files, quoted globs, or folders")
    likelihood.add_argument("--dataset", metavar="TAG", help="may be left out where the model knows one")
    likelihood.add_argument("--out", metavar="FILE", type=Path, help="npz file that gets the arrays")
    likelihood.add_argument(
        "--classes", choices=["given", "any", "sum"], default="given",
        help="the objects' own classes (given), left open (any), or a sum over all classes, equally probable (sum)",
    )  # fmt: skip
    likelihood.add_argument(
        "--conditions", choices=["given", "any"], default="given", help="the objects' own conditions, or left open"
    )
    likelihood.add_argument("--objects", metavar="N", type=int, help="the first N objects only")
    likelihood.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1; a GPU where there is one")
    likelihood.set_defaults(command=_likelihood)


def _likelihood(options: argparse.Namespace) -> int:
    import numpy as np

    from foundation.api import load
    from foundation.data_cli import files_of
    from foundation.stream.whole_files import written_whole

    if options.out is not None and options.out.suffix != ".npz":
        raise DataError(f"{options.out}: scores are written as .npz")
    model = load(options.model, device=options.device)
    tag = model.tag(options.dataset)
    card = _readable(model, tag)
    scores: list[dict[str, NDArray]] = []
    with Progress(f"likelihood {tag}", options.objects or 0, "objects") as progress:
        for clouds in _clouds(card, files_of(card, options.files), options.objects):
            scores.append(_scores(model, tag, clouds, options.classes, options.conditions))
            progress.advance(len(clouds))
    if not scores:
        raise DataError(f"{options.files[0]}: holds no objects")
    arrays = {name: np.concatenate([part[name] for part in scores]) for name in scores[0]}
    for line in _lines(model, tag, arrays):
        say(line)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(options.out) as f:
            np.savez(f, allow_pickle=False, streams=np.array(_streams(model, tag)), **arrays)
        say(f"scores: {options.out}")
    return OK


def _readable(model: Model, tag: str) -> DatasetCard:
    """The card with what the model needs only: generated objects have no more than that."""
    from foundation.data.formats.reading import with_features

    card = model.datasets[tag].card.model_copy(update={"attributes": ()})
    return with_features(card, tuple(f.name for f in model.tokenizer(tag).features), ordered=False)


def _clouds(card: DatasetCard, paths: list[Path], wanted: int | None) -> Iterator[PointClouds]:
    """The objects of all files, some at a time; the first `wanted` of them."""
    from foundation.data.formats.reading import read_in_ranges

    left = wanted
    for path in paths:
        for clouds, report in read_in_ranges(card, path):
            # the first line is how many there are
            for line in report.lines()[1:]:
                say(f"{path}: {line}")
            for first in range(0, len(clouds), AT_ONCE):
                if left == 0:
                    return
                last = first + (AT_ONCE if left is None else min(AT_ONCE, left))
                part = clouds.select(slice(first, last))
                left = None if left is None else left - len(part)
                yield part


def _scores(model: Model, tag: str, clouds: PointClouds, classes: str, conditions: Any) -> dict[str, NDArray]:
    from foundation.generate.likelihood import over_classes

    # of the sum over classes, the parts are those with the class left open
    shown: Any = "any" if classes == "sum" else classes
    parts = model.log_probabilities(clouds, tag, classes=shown, conditions=conditions)
    scores: dict[str, NDArray] = {
        "log_likelihood": parts.objects,
        "of_count": parts.counts,
        "of_streams": parts.streams,
        "points": clouds.counts,
        "label": clouds.labels,
    }
    if classes == "sum":
        scores["of_classes"] = model.class_log_likelihoods(clouds, tag, conditions=conditions)
        scores["log_likelihood"] = over_classes(scores["of_classes"])
    return scores


def _streams(model: Model, tag: str) -> tuple[str, ...]:
    return model.vocabulary.dataset(tag).streams


def _lines(model: Model, tag: str, arrays: dict[str, NDArray]) -> list[str]:
    """What a user sees: mean, spread, parts, and the objects that the model finds least likely."""
    import numpy as np

    values = arrays["log_likelihood"]
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    error = values.std() / np.sqrt(len(values))
    points = max(1, int(arrays["points"].sum()))
    parts = [("number of points", float(arrays["of_count"].mean()))]
    parts += list(zip(_streams(model, tag), arrays["of_streams"].mean(axis=0).tolist(), strict=True))
    least = np.argsort(values)[:5].tolist()
    return [
        f"{len(values)} objects of {tag}: mean log-likelihood {values.mean():.3f} +- {error:.3f} nats per object, "
        f"{values.sum() / points:.4f} per point",
        f"  5 % below {low:.2f}, half below {middle:.2f}, 95 % below {high:.2f}",
        "  of it: " + ", ".join(f"{name} {mean:.3f}" for name, mean in parts),
        "  least likely: " + ", ".join(f"object {i} ({values[i]:.1f})" for i in least),
    ]
