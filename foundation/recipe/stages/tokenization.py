"""Stages from point clouds to shards: tokenizer, tokenize."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from foundation.console import Progress, say
from foundation.data.cards import Condition, DatasetCard, Feature
from foundation.data.dask_workers import Run, running
from foundation.data.files import FileSize, point_cloud_file_size, read_point_clouds
from foundation.data.formats.reading import with_features
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import to_offsets
from foundation.errors import DataError, RecipeError, did_you_mean
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import FitTokenizer, Tokenize
from foundation.recipe.stages.datasets import card_of, read_split
from foundation.stream.shard_index import Columns
from foundation.stream.shuffling import Encoded, Part
from foundation.stream.whole_files import write_json
from foundation.stream.writing import write_dataset
from foundation.tokens.conditions import conditions_outside
from foundation.tokens.inputs import Inputs
from foundation.tokens.kinds import fit_tokenizer, load_tokenizer
from foundation.tokens.tokenizer import Tokenizer, tokenizer_digest
from foundation.tokens.vocabulary import Addition, Vocabulary

ENCODE_AT_ONCE = 4000
PART_BYTES = 64 * 2**20
"""Small files are encoded together up to this size."""
OUTSIDE_CONDITION = "outside_condition."
"""Before the name of a condition, in the counts that a manifest keeps."""


def tokenizer(spec: FitTokenizer, context: StageContext) -> dict[str, Any]:
    """Fit a tokenizer on one or several datasets and measure how well it reproduces points it has not seen."""
    sources = [context.artifact(name) for name in spec.sources]
    cards = [with_features(card_of(source), spec.features, ordered=False) for source in sources]
    _same_features(spec, cards)
    name = spec.called or cards[0].tag
    clouds = _joined(cards, [_some(read_split(s, "train"), spec.fit_objects, context.seed) for s in sources])
    inputs = Inputs.fit(name, [card.tag for card in cards], cards[0].features, clouds)
    fitted = _fit(spec, context, inputs, clouds)
    fitted.save(context.folder)
    quality: dict[str, float] = {}
    for card, source in zip(cards, sources, strict=True):
        measured = reproduction(fitted, _joined([card], [read_split(source, "validation")]))
        quality |= {f"{card.tag}.{k}": v for k, v in measured.items()} if len(cards) > 1 else measured
    context.tracker.log_metrics(quality, 0)
    return {
        "name": name,
        "datasets": list(inputs.datasets),
        "kind": fitted.kind,
        "streams": {s.name: s.size for s in fitted.streams},
        "quality": quality,
        "line": f"{fitted.kind}, codes per {'patch' if fitted.tokens_per_object else 'point'}: "
        + " x ".join(f"{s.name} {s.size}" for s in fitted.streams)
        + "; "
        + ", ".join(f"{k} {v:.3g}" for k, v in quality.items()),
    }


def _same_features(spec: FitTokenizer, cards: list[DatasetCard]) -> None:
    """One tokenizer for several datasets must see the same quantities in all of them."""
    first = cards[0]
    for card in cards[1:]:
        for ours, theirs in zip_longest(first.features, card.features):
            if ours is None or theirs is None or _meaning(ours) != _meaning(theirs):
                names = [f.name if f else "nothing" for f in (ours, theirs)]
                raise RecipeError(
                    f"tokenizer '{spec.name}' cannot serve '{first.tag}' and '{card.tag}': '{names[0]}' and "
                    f"'{names[1]}' differ in name, kind, unit, convention or transform; name common ones in 'features'"
                )


def _meaning(feature: Feature) -> Feature:
    """A feature without its description."""
    return feature.model_copy(update={"description": ""})


def _some(clouds: PointClouds, most: int, seed: int) -> PointClouds:
    return clouds.select(np.sort(np.random.default_rng(seed).permutation(len(clouds))[:most]))


def _joined(cards: list[DatasetCard], parts: list[PointClouds]) -> PointClouds:
    """Clouds of several datasets as one, with the features of the first and the conditions that all have."""
    names = [f.name for f in cards[0].features]
    common = [c for c in parts[0].condition_names if all(c in part.condition_names for part in parts)]
    return PointClouds.concatenate([part.with_columns(names, common, cards[0].tag) for part in parts])


def _fit(spec: FitTokenizer, context: StageContext, inputs: Inputs, clouds: PointClouds) -> Tokenizer:
    with Progress("fit", getattr(spec.method, "steps", 1), "steps") as progress:

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            progress.advance(1, ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
            if step % 50 == 0:
                context.tracker.log_metrics(dict(metrics), step)

        return fit_tokenizer(spec.method, inputs, clouds, context.seed, on_step)


def reproduction(fitted: Tokenizer, clouds: PointClouds) -> dict[str, float]:
    """Mean absolute error of each continuous feature after encoding and decoding, and the share of codes in use."""
    codes = fitted.encode(clouds).values
    quality = {}
    if fitted.tokens_per_object is None:
        decoded = fitted.reconstruct(clouds)
        for feature in fitted.inputs.continuous:
            truth = clouds.feature(feature.name)
            error = np.abs(decoded.feature(feature.name) - truth)
            if feature.log:
                error = error / truth
            quality[f"{feature.name}_{'relative_' if feature.log else ''}error"] = float(error.mean())
    for k, stream in enumerate(fitted.streams):
        if stream.name.startswith("code"):
            quality[f"{stream.name}_used"] = len(np.unique(codes[:, k])) / stream.size
    return quality


def tokenize(spec: Tokenize, context: StageContext) -> dict[str, Any]:
    """One vocabulary for all datasets, then every split of each as shards in `TAG/SPLIT/`."""
    parts = []
    for dataset in spec.datasets:
        source, made = context.artifact(dataset.source), context.artifact(dataset.tokenizer)
        card, fitted = card_of(source), load_tokenizer(made.folder)
        if dataset.conditions is not None:
            card = card.model_copy(update={"conditions": dataset.conditions})
        if card.tag not in fitted.inputs.datasets:
            fitted_on = "', '".join(fitted.inputs.datasets)
            raise RecipeError(f"tokenizer '{made.name}' was fitted on '{fitted_on}', not on '{card.tag}'")
        if spec.features != "none" and fitted.tokens_per_object is not None:
            raise RecipeError(
                f"tokenizer '{made.name}' codes patches: there are no features of points beside its codes"
            )
        parts.append((source, card, made, fitted, tokenizer_digest(made.folder)))
    vocabulary = Vocabulary.build([Addition.of(card, fitted, digest) for _, card, _, fitted, digest in parts])
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
    continuous = tuple(f.name for f in fitted.inputs.continuous)
    manifest = write_dataset(
        home / split,
        card.tag,
        _parts(source, split, fitted.tokens_per_object),
        EncodeFiles((home / "tokenizer").resolve(), card.conditions, spec.features != "none"),
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


def _parts(source: Artifact, split: str, tokens_per_object: int | None) -> list[Part]:
    """The files of a split, small ones together, so that there are few parts and each fits into memory."""
    paths = sorted((source.folder / split).glob("*.h5"))
    parts: list[Part] = []
    group: list[tuple[Path, FileSize]] = []
    for path in paths:
        group.append((path, point_cloud_file_size(path)))
        if path == paths[-1] or sum(size.clouds * size.bytes_per_cloud for _, size in group) >= PART_BYTES:
            first, last = group[0][0].stem, group[-1][0].stem
            sequences, points = (sum(getattr(size, what) for _, size in group) for what in ("clouds", "points"))
            parts.append(
                Part(
                    name=first if first == last else f"{first} to {last}",
                    sequences=sequences,
                    points=points if tokens_per_object is None else tokens_per_object * sequences,
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
    conditions: tuple[Condition, ...]
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
        counts = [np.diff(part.offsets) for part in codes]
        conditions = clouds.conditions_named([c.name for c in self.conditions])
        objects = conditions_outside(self.conditions, conditions, clouds.tag)
        return Encoded(
            codes=np.concatenate([np.zeros((0, len(fitted.streams)), np.int64), *(part.values for part in codes)]),
            offsets=to_offsets(np.concatenate([np.zeros(0, np.int64), *counts])),
            labels=clouds.labels,
            conditions=conditions,
            features=fitted.inputs.transformed(clouds).astype(np.float32) if self.with_features else None,
            counted={f"outside.{name}": count for name, count in fitted.inputs.outside(clouds).items()}
            | {OUTSIDE_CONDITION + name: count for name, count in objects.items()},
        )


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


def _say_outside(counted: Mapping[str, int], points: int, name: str) -> None:
    for key, count in counted.items():
        if key.startswith(OUTSIDE_CONDITION):
            condition = key.removeprefix(OUTSIDE_CONDITION)
            say(f"  {name}: {count} objects have '{condition}' outside its range; they are in its first or last bin")
            continue
        share = 100.0 * count / max(1, points)
        feature = key.removeprefix("outside.")
        say(f"  {name}: {count} points ({share:.2g} %) have '{feature}' outside the tokenizer's window; they are kept")
