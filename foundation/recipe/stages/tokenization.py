"""Stages from point clouds to shards: tokenizer, tokenize."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundation.console import Progress, say
from foundation.data.cards import DatasetCard, Feature
from foundation.data.dask_workers import Run, running
from foundation.data.files import FileSize, point_cloud_file_size, read_point_clouds
from foundation.data.formats.reading import with_features
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, RecipeError, did_you_mean
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import FitTokenizer, Tokenize
from foundation.recipe.stages.datasets import card_of, read_split
from foundation.stream.shard_index import Columns
from foundation.stream.shuffling import Encoded, Part
from foundation.stream.whole_files import write_json
from foundation.stream.writing import write_dataset
from foundation.tokens.config import VqVaeConfig
from foundation.tokens.per_feature import PerFeatureTokenizer
from foundation.tokens.tokenizer import Tokenizer, load_tokenizer, outside_window, tokenizer_digest, transform
from foundation.tokens.vocabulary import Vocabulary

ENCODE_AT_ONCE = 4000
PART_BYTES = 64 * 2**20
"""Small files are encoded together up to this size."""


def tokenizer(spec: FitTokenizer, context: StageContext) -> dict[str, Any]:
    """Fit a tokenizer and measure how well it reproduces points it has not seen."""
    source = context.artifact(spec.source)
    card = with_features(card_of(source), spec.features, ordered=False)
    clouds = read_split(source, "train")
    _say_outside(_outside(clouds, card.features), len(clouds.points), card.name)
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
    with running(spec.workers, spec.scheduler) as run:
        for source, card, _, fitted, digest in parts:
            home = context.folder / card.tag
            fitted.save(home / "tokenizer")
            (home / "card.json").write_text(card.model_dump_json(indent=1))
            identity = {"card": card.name, "vocabulary": vocabulary.digest, "tokenizer": digest}
            tokens[card.tag], longest = {}, {}
            for split in sorted(p.name for p in source.folder.iterdir() if p.is_dir()):
                manifest = _write_split(spec, context, run, source, split, card, fitted, identity)
                tokens[card.tag][split], longest[split] = manifest["points"], manifest["longest"]
                written = (home / split / "manifest.json").read_bytes()
                context.tracker.log_dataset(f"{card.tag}.{split}", hashlib.sha256(written).hexdigest()[:32], split)
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


def _write_split(
    spec: Tokenize,
    context: StageContext,
    run: Run,
    source: Artifact,
    split: str,
    card: DatasetCard,
    fitted: Tokenizer,
    identity: dict[str, str],
) -> dict[str, Any]:
    """Shards of one split; the manifest. What a killed run finished of it is kept."""
    home = context.folder / card.tag
    continuous = tuple(f.name for f in fitted.features if f.kind == "continuous")
    manifest = write_dataset(
        home / split,
        card.tag,
        _parts(source, split),
        EncodeFiles((home / "tokenizer").resolve(), tuple(c.name for c in card.conditions), spec.features != "none"),
        Columns(
            streams=len(fitted.streams),
            largest_code=max(s.size for s in fitted.streams) - 1,
            conditions=len(card.conditions),
            features=() if spec.features == "none" else continuous,
            feature_type="float32" if spec.features == "none" else spec.features,
        ),
        identity=identity,
        seed=context.seed,
        run=run,
        block_sequences=spec.block_sequences,
        shard_bytes=spec.shard_mb * 2**20,
    )
    _say_outside(manifest["counted"], manifest["points"], f"{card.name} {split}")
    return manifest


def _parts(source: Artifact, split: str) -> list[Part]:
    """The files of a split, small ones together, so that there are few parts and each fits into memory."""
    paths = sorted((source.folder / split).glob("*.h5"))
    parts: list[Part] = []
    group: list[tuple[Path, FileSize]] = []
    for path in paths:
        group.append((path, point_cloud_file_size(path)))
        if path == paths[-1] or sum(size.clouds * size.bytes_per_cloud for _, size in group) >= PART_BYTES:
            first, last = group[0][0].stem, group[-1][0].stem
            parts.append(
                Part(
                    name=first if first == last else f"{first} to {last}",
                    sequences=sum(size.clouds for _, size in group),
                    points=sum(size.points for _, size in group),
                    source=tuple(str(path.resolve()) for path, _ in group),
                    stamp=" ".join(str(source.outputs.get(f"{split}/{path.name}")) for path, _ in group),
                )
            )
            group = []
    return parts


@dataclass(frozen=True)
class EncodeFiles:
    """Codes of the files of a part. It travels to the workers, so it names the tokenizer instead of holding it.

    with_features: also take the continuous features, transformed as the card says
    """

    tokenizer: Path
    conditions: tuple[str, ...]
    with_features: bool

    def __call__(self, part: Part) -> Encoded:
        fitted = load_tokenizer(self.tokenizer)
        with _one_thread():
            encoded = [self._encode(fitted, read_point_clouds(Path(path))) for path in part.source]
        return Encoded.joined(encoded)

    def _encode(self, fitted: Tokenizer, clouds: PointClouds) -> Encoded:
        codes = [
            fitted.encode(clouds.select(slice(first, first + ENCODE_AT_ONCE)))
            for first in range(0, len(clouds), ENCODE_AT_ONCE)
        ]
        return Encoded(
            codes=np.concatenate([np.zeros((0, len(fitted.streams)), np.int64), *codes]),
            offsets=clouds.offsets,
            labels=clouds.labels,
            conditions=clouds.conditions_named(self.conditions),
            features=_continuous(fitted, clouds) if self.with_features else None,
            counted=_outside(clouds, fitted.features),
        )


def _continuous(fitted: Tokenizer, clouds: PointClouds) -> np.ndarray:
    """Continuous features float32 [N, F] in the space in which the tokenizer works, where float16 is precise enough."""
    features = [f for f in fitted.features if f.kind == "continuous"]
    columns = [transform(f, clouds.feature(f.name)).astype(np.float32) for f in features]
    return np.stack(columns, axis=1) if columns else np.zeros((len(clouds.points), 0), np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Codes must not depend on how many cores a machine has; many cores are used by many workers."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _outside(clouds: PointClouds, features: tuple[Feature, ...]) -> dict[str, int]:
    """Points outside the card's range, by feature, as the manifest counts them."""
    return {f"outside.{name}": count for name, count in outside_window(clouds, features).items()}


def _say_outside(counted: Mapping[str, int], points: int, name: str) -> None:
    for key, count in counted.items():
        share = 100.0 * count / max(1, points)
        feature = key.removeprefix("outside.")
        say(f"  {name}: {count} points ({share:.2g} %) have '{feature}' outside the card's range; they are kept")
