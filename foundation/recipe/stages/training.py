"""Stages that train: pretrain, finetune. They leave `model/`, `metrics.jsonl` and `test_scores.npz` of a classifier."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundation.data.cards import DatasetCard
from foundation.errors import DataError, RecipeError, did_you_mean
from foundation.model.config import TransformerConfig
from foundation.model.embedding import start_from
from foundation.model.transformer import Transformer, count_parameters
from foundation.model.weights import ModelFolder, describe_model, load_backbone, write_weights
from foundation.recipe.artifact import Artifact
from foundation.recipe.mixtures import MixtureSpec, TemperatureMixture
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Finetune, Pretrain, TrainingStage
from foundation.recipe.stages.models import model_folder
from foundation.recipe.stages.sampling import sampler
from foundation.stream.mixture import Mixture, temperature_weights
from foundation.stream.point_features import require_features
from foundation.stream.reading import ShardedDataset
from foundation.stream.rows import length_rule
from foundation.stream.token_stream import StreamConfig, TokenStream, one_pass
from foundation.tasks.base import Task, to_device
from foundation.tasks.classification import Classification
from foundation.tasks.generation import Generation
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.layout import Layout
from foundation.tokens.vocabulary import Vocabulary
from foundation.train.config import TrainConfig
from foundation.train.export import DESCRIPTION
from foundation.train.interface import Extras, Sample, Trained
from foundation.train.loop import train


def pretrain(spec: Pretrain, context: StageContext) -> dict[str, Any]:
    """Train one transformer on the mixture."""
    tokens = context.artifact(spec.data)
    vocabulary = Vocabulary.load(tokens.folder / "vocabulary.json")
    layout = Layout(vocabulary, tokens.summary["streams"])
    tags = tags_of(spec.mixture, vocabulary)
    datasets = [open_split(tokens, tag, "train", vocabulary, spec) for tag in tags]
    require_features(datasets, spec.model.features, every=True)
    held_out = {tag: open_split(tokens, tag, "validation", vocabulary, spec) for tag in tags}
    task = Generation(new_backbone(spec.model, vocabulary, tokens, context.seed), layout, spec.train.z_loss)
    mixture = mixture_of(spec.mixture, datasets, layout)
    stream = TokenStream(datasets, mixture, layout, _stream(spec, spec.train, context.seed, spec.model.features))
    model = ModelFolder(spec.model, layout.mode, Generation.name, {}, vocabulary)
    trained = train(
        task,
        stream,
        _with_paths(spec.train, context),
        context.folder,
        context.tracker,
        context.seed,
        "pretrain",
        _per_target_loss(held_out, layout, spec.train),
        spec.prefetch,
        _extras(context, spec, model, tokens, tags, sampler(context, model, tokens, held_out)),
    )
    if context.is_main:
        for name, weights in _models(trained, spec.train).items():
            _leave_model(context.folder / name, weights, model, tokens, tags)
    return _summary(task, trained, {"datasets": tags, "vocabulary": vocabulary.digest})


def finetune(spec: Finetune, context: StageContext) -> dict[str, Any]:
    """Train a classifier and score the test split."""
    tokens = context.artifact(spec.data)
    backbone, model = load_backbone(model_folder(spec.source, context))
    entry = model.vocabulary.dataset(spec.dataset)
    if len(entry.classes) < 2:
        raise RecipeError(f"dataset '{spec.dataset}' has {len(entry.classes)} class(es): nothing to classify")
    if spec.start == "scratch":
        backbone = new_backbone(model.transformer, model.vocabulary, tokens, context.seed)
    torch.manual_seed(context.seed)
    layout = model.layout
    # the answer must not be in the sequence
    settings = _with_paths(spec.train, context).model_copy(update={"class_dropout": 1.0})
    task = Classification(backbone, len(entry.classes))
    split = {name: open_split(tokens, spec.dataset, name, model.vocabulary, spec) for name in ("validation", "test")}
    labelled = open_split(tokens, spec.dataset, "train", model.vocabulary, spec, spec.labels)
    stream = TokenStream([labelled], [1.0], layout, _stream(spec, settings, context.seed, model.transformer.features))

    def validate(task: Task, device: torch.device) -> dict[str, float]:
        labels, scores = class_scores(
            task, split["validation"], layout, device, settings, settings.validation_sequences
        )
        picked = scores[np.arange(len(labels)), labels]
        return {
            f"validation/{spec.dataset}/loss": float(-np.log(np.maximum(picked, 1e-300)).mean()),
            f"validation/{spec.dataset}/accuracy": float((scores.argmax(axis=1) == labels).mean()),
        }

    about = ModelFolder(
        model.transformer, model.mode, Classification.name, {"classes": list(entry.classes)}, model.vocabulary
    )
    trained = train(
        task,
        stream,
        settings,
        context.folder,
        context.tracker,
        context.seed,
        spec.name,
        validate,
        spec.prefetch,
        _extras(context, spec, about, tokens, [spec.dataset]),
    )
    facts: dict[str, Any] = {"labels": len(labelled), "start": spec.start, "classes": list(entry.classes)}
    if context.is_main:
        # a fresh module: under ZeRO-3 the trained one holds only this rank's part of the weights
        scorer = Classification(Transformer(model.transformer, model.vocabulary.size), len(entry.classes))
        models = _models(trained, settings)
        scorer.load_state_dict(models["model"])
        labels, scores = class_scores(scorer, split["test"], layout, torch.device("cpu"), settings, None)
        np.savez(context.folder / "test_scores.npz", labels=labels, scores=scores)
        facts["test_accuracy"] = float((scores.argmax(axis=1) == labels).mean())
        for name, weights in models.items():
            _leave_model(context.folder / name, weights, about, tokens, [spec.dataset])
        context.tracker.log_metrics({"test_accuracy": facts["test_accuracy"]}, spec.train.steps)
    summary = _summary(task, trained, facts | {"datasets": [spec.dataset], "vocabulary": model.vocabulary.digest})
    summary["line"] = f"{spec.start}, {len(labelled)} labels: test accuracy {facts.get('test_accuracy', 0):.4f}"
    return summary


def new_backbone(config: TransformerConfig, vocabulary: Vocabulary, tokens: Artifact, seed: int) -> Transformer:
    """An untrained backbone; codes that have vectors in their tokenizer start from these."""
    torch.manual_seed(seed)
    backbone = Transformer(config, vocabulary.size)
    generator = torch.Generator().manual_seed(seed)
    for entry in vocabulary.tokenizers.values():
        tokenizer = load_tokenizer(tokens.folder / entry.name / "tokenizer", entry.tokenizer)
        for stream, vectors in tokenizer.code_vectors().items():
            ids = vocabulary.stream_range(entry.name, stream)
            start_from(backbone, range(ids.start, ids.stop), torch.from_numpy(vectors), generator)
    return backbone


def open_split(
    tokens: Artifact, tag: str, split: str, vocabulary: Vocabulary, spec: TrainingStage, limit: int | None = None
) -> ShardedDataset:
    """A split of a dataset of the tokenize stage; its shards may have been copied elsewhere."""
    home = tokens.folder / tag
    if not home.is_dir():
        tags = [p.name for p in tokens.folder.iterdir() if p.is_dir()]
        raise DataError(f"stage '{tokens.name}' has no dataset '{tag}'{did_you_mean(tag, tags)}")
    folder = home / split if spec.shards_at is None else f"{spec.shards_at.rstrip('/')}/{tag}/{split}"
    return ShardedDataset(
        folder,
        vocabulary.digest,
        limit,
        spec.on_bad_block,
        None if spec.cache is None else Path(spec.cache).expanduser(),
        expected={"tag": tag, "tokenizer": vocabulary.dataset(tag).tokenizer},
        cache_bytes=int(spec.cache_gb * 1e9),
    )


def class_scores(
    task: Task, data: ShardedDataset, layout: Layout, device: torch.device, config: TrainConfig, limit: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """True classes int64 [B] and predicted probabilities float64 [B, classes] of a split."""
    assert isinstance(task, Classification)
    labels, scores = [], []
    task.to(device).eval()
    with torch.no_grad():
        features = task.backbone.config.features
        for batch in one_pass(data, layout, 4 * config.row_tokens, hide_class=True, limit=limit, features=features):
            logits = task.logits(to_device(batch, device))
            labels.append(batch.labels)
            scores.append(torch.softmax(logits.double(), dim=1).cpu().numpy())
    return np.concatenate(labels), np.concatenate(scores)


def _per_target_loss(
    held_out: dict[str, ShardedDataset], layout: Layout, config: TrainConfig
) -> Callable[[Task, torch.device], dict[str, float]]:
    """Validation of next-token prediction: mean loss per target of each dataset."""

    def validate(task: Task, device: torch.device) -> dict[str, float]:
        losses = {}
        for tag, data in held_out.items():
            total, targets = 0.0, 0
            limit = config.validation_sequences
            features = task.backbone.config.features
            for batch in one_pass(data, layout, 4 * config.row_tokens, False, limit, features):
                total += float(task(to_device(batch, device)))
                targets += task.count(batch)
            losses[f"validation/{tag}/loss"] = total / targets
        return losses

    return validate


def tags_of(mixture: MixtureSpec, vocabulary: Vocabulary) -> list[str]:
    """Datasets of a mixture, in the order in which they are first named."""
    if isinstance(mixture, TemperatureMixture):
        return list(vocabulary.datasets)
    named = [mixture] if isinstance(mixture, dict) else [part.weights for part in mixture]
    tags = list(dict.fromkeys(tag for weights in named for tag in weights))
    for tag in tags:
        vocabulary.dataset(tag)
    return tags


def mixture_of(mixture: MixtureSpec, datasets: list[ShardedDataset], layout: Layout) -> Mixture:
    """What a recipe says, as weights of these datasets."""
    if isinstance(mixture, TemperatureMixture):
        rules = [length_rule(layout, d.tag) for d in datasets]
        tokens = [r.scale * int(d.points.sum()) + r.extra * len(d) for r, d in zip(rules, datasets, strict=True)]
        return Mixture(temperature_weights(tokens, mixture.temperature))
    if isinstance(mixture, dict):
        return Mixture(tuple(mixture[d.tag] for d in datasets))
    parts = [(part.from_step, tuple(part.weights.get(d.tag, 0.0) for d in datasets)) for part in mixture]
    return Mixture(parts[0][1], tuple(parts[1:]))


def _stream(spec: TrainingStage, config: TrainConfig, seed: int, features: tuple[str, ...]) -> StreamConfig:
    return StreamConfig(
        config.row_tokens,
        config.rows_per_step,
        seed,
        config.class_dropout,
        config.condition_dropout,
        spec.too_long,
        features,
    )


def _with_paths(config: TrainConfig, context: StageContext) -> TrainConfig:
    """With the path of DeepSpeed's file, which a recipe gives relative to itself."""
    if config.deepspeed is None:
        return config
    return config.model_copy(update={"deepspeed": str(context.recipe_folder / config.deepspeed)})


def _models(trained: Trained, config: TrainConfig) -> dict[str, dict[str, Tensor]]:
    """All weights by the folder that gets them: `model` has those that `export` names."""
    if trained.average is None:
        return {"model": trained.weights}
    if config.export == "average":
        return {"model": trained.average, "model_last": trained.weights}
    return {"model": trained.weights, "model_average": trained.average}


def _extras(
    context: StageContext,
    spec: TrainingStage,
    model: ModelFolder,
    tokens: Artifact,
    tags: list[str],
    sample: Sample | None = None,
) -> Extras:
    """What checkpoints say besides the state of training, so that one alone can become a model."""
    if context.is_main:
        _describe(context.folder / "checkpoints" / DESCRIPTION, model, tokens, tags)
    recipe = context.recipe.model_dump(mode="json", by_alias=True)

    def facts() -> dict[str, Any]:
        return {"recipe": recipe, "stage": spec.name, "mlflow_run": context.tracker.run_id}

    return Extras(sample, facts)


def _leave_model(
    folder: Path, weights: dict[str, Tensor], model: ModelFolder, tokens: Artifact, tags: list[str]
) -> None:
    """A model folder that needs nothing else: weights, vocabulary, and each dataset's card and tokenizer."""
    _describe(folder, model, tokens, tags)
    write_weights(folder, weights)


def _describe(folder: Path, model: ModelFolder, tokens: Artifact, tags: list[str]) -> None:
    """All that a model folder has but the weights."""
    for tag in tags:
        shutil.copytree(tokens.folder / tag / "tokenizer", folder / "tokenizers" / tag, dirs_exist_ok=True)
        (folder / "cards").mkdir(parents=True, exist_ok=True)
        card = DatasetCard.model_validate_json((tokens.folder / tag / "card.json").read_text())
        (folder / "cards" / f"{tag}.json").write_text(card.model_dump_json(indent=1))
        longest = tokens.folder / tag / "longest.json"
        shutil.copy(longest, folder / "cards" / f"{tag}.longest.json")
    describe_model(folder, model)


def _summary(task: Task, trained: Trained, facts: dict[str, Any]) -> dict[str, Any]:
    validation = ", ".join(f"{k} {v:.3f}" for k, v in trained.validation.items())
    return {
        "model": "model",
        "parameters": count_parameters(task),
        **trained.summary,
        "validation": trained.validation,
        **facts,
        "line": f"{count_parameters(task):,} parameters, {trained.summary['tokens']:,} tokens; {validation}",
    }
