"""Stages from point clouds to shards: tokenizer, tokenize."""

from __future__ import annotations

import hashlib
import shutil
from typing import Any

import numpy as np

from foundation.console import Progress, say
from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.data.reading import with_features
from foundation.errors import DataError, RecipeError, did_you_mean
from foundation.recipe.running import StageContext
from foundation.recipe.schema import FitTokenizer, Tokenize
from foundation.recipe.stages.datasets import card_of, read_split
from foundation.stream.writing import write_json, write_shards
from foundation.tokens.config import VqVaeConfig
from foundation.tokens.per_feature import PerFeatureTokenizer
from foundation.tokens.tokenizer import Tokenizer, load_tokenizer, outside_window, tokenizer_digest
from foundation.tokens.vocabulary import Vocabulary

ENCODE_AT_ONCE = 4000


def tokenizer(spec: FitTokenizer, context: StageContext) -> dict[str, Any]:
    """Fit a tokenizer and measure how well it reproduces points it has not seen."""
    source = context.artifact(spec.source)
    card = with_features(card_of(source), spec.features, ordered=False)
    clouds = read_split(source, "train")
    _report_outside(clouds, card.features, card.name)
    chosen = np.sort(np.random.default_rng(context.seed).permutation(len(clouds))[: spec.fit_objects])
    fitted = _fit(spec, context, card, clouds.select(chosen))
    fitted.save(context.folder)
    quality = reproduction(fitted, read_split(source, "validation"))
    context.tracker.log_metrics(quality, 0)
    return {
        "dataset": card.tag,
        "kind": fitted.kind,
        "streams": {s.name: s.size for s in fitted.streams},
        "quality": quality,
        "line": f"{fitted.kind}, codes per point: "
        + " x ".join(f"{s.name} {s.size}" for s in fitted.streams)
        + "; "
        + ", ".join(f"{k} {v:.3g}" for k, v in quality.items()),
    }


def _fit(spec: FitTokenizer, context: StageContext, card: DatasetCard, clouds: PointClouds) -> Tokenizer:
    if not isinstance(spec.method, VqVaeConfig):
        return PerFeatureTokenizer.fit(card.tag, card.features, clouds, spec.method.bins)
    from foundation.tokens.vqvae import VqVaeTokenizer

    with Progress("fit", spec.method.steps, "steps") as progress:

        def on_step(step: int, metrics: dict[str, float]) -> None:
            progress.advance(1, f"reconstruction {metrics['reconstruction']:.4f}")
            if step % 50 == 0:
                context.tracker.log_metrics(metrics, step)

        return VqVaeTokenizer.fit(card.tag, card.features, clouds, spec.method, context.seed, on_step)


def reproduction(fitted: Tokenizer, clouds: PointClouds) -> dict[str, float]:
    """Mean absolute error of each continuous feature after encoding and decoding, and the share of codes in use."""
    codes = fitted.encode(clouds)
    uniform = np.random.default_rng(0).random(codes.shape)
    decoded = fitted.decode(codes, clouds.offsets, uniform)
    quality = {}
    for i, feature in enumerate(fitted.features):
        if feature.kind == "continuous":
            truth = clouds.feature(feature.name)
            error = np.abs(decoded[:, i] - truth)
            if feature.log:
                error = error / truth
            quality[f"{feature.name}_{'relative_' if feature.log else ''}error"] = float(error.mean())
    if fitted.kind == "vqvae":
        quality["codes_used"] = len(np.unique(codes[:, 0])) / fitted.streams[0].size
    return quality


def tokenize(spec: Tokenize, context: StageContext) -> dict[str, Any]:
    """One vocabulary for all datasets, then every split of each as shards in `TAG/SPLIT/`."""
    parts = []
    for dataset in spec.datasets:
        source, made = context.artifact(dataset.source), context.artifact(dataset.tokenizer)
        card, fitted = card_of(source), load_tokenizer(made.folder)
        if fitted.dataset != card.tag:
            raise RecipeError(f"tokenizer '{made.name}' was fitted on '{fitted.dataset}', not on '{card.tag}'")
        parts.append((source, card, made, fitted, tokenizer_digest(made.folder)))
    vocabulary = Vocabulary.build([(card, fitted.streams, digest) for _, card, _, fitted, digest in parts])
    vocabulary.save(context.folder / "vocabulary.json")
    tokens: dict[str, dict[str, int]] = {}
    for source, card, _, fitted, digest in parts:
        home = context.folder / card.tag
        shutil.rmtree(home, ignore_errors=True)  # shards without a manifest, of a killed run
        fitted.save(home / "tokenizer")
        (home / "card.json").write_text(card.model_dump_json(indent=1))
        identity: dict[str, object] = {"card": card.name, "vocabulary": vocabulary.digest, "tokenizer": digest}
        tokens[card.tag], longest = {}, {}
        for split in sorted(p.name for p in source.folder.iterdir() if p.is_dir()):
            clouds = read_split(source, split)
            _report_outside(clouds, fitted.features, f"{card.name} {split}")
            codes = _encode(fitted, clouds, f"encode {card.tag} {split}")
            write_shards(
                home / split,
                card.tag,
                codes,
                clouds.offsets,
                clouds.labels,
                clouds.conditions_named([c.name for c in card.conditions]),
                largest_code=max(s.size for s in fitted.streams) - 1,
                identity=identity,
                seed=context.seed,
            )
            tokens[card.tag][split], longest[split] = int(clouds.offsets[-1]), int(clouds.counts.max())
            manifest = (home / split / "manifest.json").read_bytes()
            context.tracker.log_dataset(f"{card.tag}.{split}", hashlib.sha256(manifest).hexdigest()[:32], split)
        if "train" not in longest:
            raise DataError(f"stage '{source.name}' has no split 'train'{did_you_mean('train', longest)}")
        write_json(home / "longest.json", longest["train"])
    return {
        "vocabulary": vocabulary.digest,
        "vocabulary_size": vocabulary.size,
        "streams": spec.streams,
        "points": tokens,
        "line": f"{vocabulary.size} ids in one vocabulary; points to train on: "
        + ", ".join(f"{n['train']:,} {tag}" for tag, n in tokens.items() if "train" in n),
    }


def _encode(fitted: Tokenizer, clouds: PointClouds, title: str) -> np.ndarray:
    """Codes of all clouds, a few thousand at a time."""
    parts = []
    with Progress(title, len(clouds), "objects") as progress:
        for first in range(0, len(clouds), ENCODE_AT_ONCE):
            part = clouds.select(slice(first, first + ENCODE_AT_ONCE))
            parts.append(fitted.encode(part))
            progress.advance(len(part))
    return np.concatenate(parts)


def _report_outside(clouds: PointClouds, features: tuple, name: str) -> None:
    for feature, count in outside_window(clouds, features).items():
        share = 100.0 * count / max(1, len(clouds.points))
        say(f"  {name}: {count} points ({share:.2g} %) have '{feature}' outside the card's range; they are kept")
