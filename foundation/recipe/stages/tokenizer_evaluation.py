"""Stage evaluate_tokenizers: what tokenizers lose, measured on the same held-out objects."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from foundation.console import say
from foundation.data.files import point_cloud_file_size, read_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, RecipeError, did_you_mean
from foundation.evaluate.tokenizer_evaluation import (
    METRICS,
    REPORT,
    TABLE,
    InformationTest,
    TokenizerEvaluation,
)
from foundation.evaluate.tokenizer_evaluation import evaluate_tokenizers as evaluate_all
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import EvaluateTokenizers, InformationSettings
from foundation.recipe.stages.datasets import card_of
from foundation.recipe.stages.evaluation import describe_run
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.tokenizer import Tokenizer


def evaluate_tokenizers(spec: EvaluateTokenizers, context: StageContext) -> dict[str, Any]:
    """Write tokenizer_metrics.json, tokenizers.md, figures and tokenizers.html, and return the headline numbers."""
    source = context.artifact(spec.source)
    card = card_of(source)
    tokenizers = {name: _tokenizer(context.artifact(name), card.tag) for name in spec.tokenizers}
    repeated = [name for name, count in Counter(spec.tokenizers).items() if count > 1]
    if repeated:
        raise RecipeError(f"stage '{spec.name}' names tokenizer '{repeated[0]}' twice")
    result = evaluate_all(
        context.folder,
        describe_run(context),
        card,
        first_of_split(source, "test", spec.objects),
        tokenizers,
        _information(spec.information, source) if spec.information is not None else None,
        seed=context.seed,
        on_progress=lambda line: say(f"  {line}"),
    )
    for line in result.table:
        say(line)
    _log(result, context)
    return {
        "report": REPORT,
        "metrics": METRICS,
        "table": TABLE,
        "scores": result.scores,
        "problems": list(result.problems),
        "headline": result.headline,
        "line": result.line,
    }


def _tokenizer(artifact: Artifact, tag: str) -> Tokenizer:
    if artifact.kind != "tokenizer":
        raise RecipeError(f"stage '{artifact.name}' ({artifact.kind}) fits no tokenizer: name a tokenizer stage")
    fitted = load_tokenizer(artifact.folder)
    if tag not in fitted.inputs.datasets:
        fitted_on = "', '".join(fitted.inputs.datasets)
        raise RecipeError(f"tokenizer '{artifact.name}' was fitted on '{fitted_on}', not on '{tag}'")
    return fitted


def _information(settings: InformationSettings, source: Artifact) -> InformationTest:
    return InformationTest(
        first_of_split(source, "train", settings.train_objects),
        first_of_split(source, "test", settings.test_objects),
        settings.networks,
        settings.epochs,
        settings.seeds,
    )


def first_of_split(artifact: Artifact, split: str, most: int) -> PointClouds:
    """The first objects of the files of a split, as many of each, at most `most`: simulations have files per class."""
    paths = sorted((artifact.folder / split).glob("*.h5"))
    if not paths:
        splits = sorted(p.name for p in artifact.folder.iterdir() if p.is_dir())
        raise DataError(f"stage '{artifact.name}' has no split '{split}'{did_you_mean(split, splits)}")
    sizes = {path: point_cloud_file_size(path).clouds for path in paths}
    shares, left = {}, most
    # the smallest first, so that what they lack is taken from the others
    for number, path in enumerate(sorted(paths, key=lambda path: sizes[path])):
        shares[path] = min(sizes[path], math.ceil(left / (len(paths) - number)))
        left -= shares[path]
    return PointClouds.concatenate([read_point_clouds(path, 0, shares[path]) for path in paths if shares[path]])


def _log(result: TokenizerEvaluation, context: StageContext) -> None:
    flat = {f"{name}.{score}": value for name, scores in result.scores.items() for score, value in scores.items()}
    context.tracker.log_metrics(flat, 0)
    context.tracker.log_artifact(result.report)
