"""Continuous features of points, from shards to the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.errors import DataError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.stream.batches import lay_out
from foundation.stream.point_features import require_features
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import Batch, StreamConfig, TokenStream, one_pass
from foundation.stream.writing import write_shards
from foundation.tasks.base import to_device
from foundation.tasks.classification import Classification
from foundation.tasks.generation import Generation

from conftest import ToyTokens

NAMES = {"toy_jets": ("pt", "eta_rel"), "toy_showers": ("energy", "pt")}
READ = ("eta_rel", "pt", "energy")


@pytest.fixture(scope="module")
def home(toy: ToyTokens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy datasets with two features: the number of the point, and 1000 + its first code."""
    folder = tmp_path_factory.mktemp("featured")
    for tag, clouds in toy.clouds.items():
        codes = toy.codes[tag]
        features = np.stack([np.arange(len(codes)), 1000 + codes[:, 0]], axis=1).astype(np.float32)
        write_shards(
            folder / tag, tag, codes, clouds.offsets, clouds.labels, clouds.conditions, largest_code=100,
            identity={"card": tag, "vocabulary": toy.vocabulary.digest, "tokenizer": "0" * 64}, seed=5,
            features=features, feature_names=NAMES[tag], feature_type="float32", block_sequences=50,
        )  # fmt: skip
    return folder


def datasets(toy: ToyTokens, home: Path) -> list[ShardedDataset]:
    return [ShardedDataset(home / tag, toy.vocabulary.digest) for tag in NAMES]


def check(toy: ToyTokens, batch: Batch, mode: str, tags: list[str]) -> int:
    """Compare features with the ids that stand beside them, step by step; how many points were found."""
    layout, found = toy.layout(mode), 0
    assert batch.features is not None and batch.features.dtype == np.float32 and batch.features.shape[1] == len(READ)
    for i, (a, z) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        tag = tags[batch.dataset[i]]
        ranges, prefix = layout.vocabulary.stream_ranges(tag), layout.prefix_length(tag)
        streams = len(ranges)
        number, code = (READ.index(name) for name in NAMES[tag])
        other = ({0, 1, 2} - {number, code}).pop()
        beside = batch.features[a:z]
        assert (beside[:, other] == 0).all() and (beside[: prefix + streams - 1] == 0).all()
        steps = np.flatnonzero(beside[:, code])
        wanted = np.arange(prefix + streams - 1, z - a, streams if mode == "interleaved" else 1)
        assert np.array_equal(steps, wanted[: len(steps)])
        # the step of a point's features shows its last code, and its first stands streams - 1 steps before
        ids = batch.ids[a + steps - (streams - 1), 0]
        assert np.array_equal(beside[steps, code], 1000 + ids - ranges[0].start)
        last = batch.ids[a + steps, 0 if mode == "interleaved" else streams - 1]
        assert ((last >= ranges[-1].start) & (last < ranges[-1].stop)).all()
        assert (np.diff(beside[steps, number]) == 1).all()
        found += len(steps)
    return found


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
def test_features_stand_beside_the_last_code_of_their_point(toy: ToyTokens, home: Path, mode: str) -> None:
    data, tags = datasets(toy, home), list(NAMES)
    config = StreamConfig(100, 4, 1, 0.3, features=READ)
    stream = TokenStream(data, [0.5, 0.5], toy.layout(mode), config)
    assert sum(check(toy, batch, mode, tags) for step in range(4) for batch in stream.batches(step)) > 100
    for number, tag in enumerate(tags):
        whole = list(one_pass(data[number], toy.layout(mode), 300, False, features=READ))
        found = sum(check(toy, batch, mode, [tag]) for batch in whole)
        # in the delayed layout the last code of the last point is a target only
        lost = len(data[number]) if mode == "delayed" else 0
        assert found == len(toy.codes[tag]) - lost


def test_features_change_nothing_else(toy: ToyTokens, home: Path) -> None:
    data = datasets(toy, home)
    plain, beside = (
        TokenStream(data, [0.5, 0.5], toy.layout(), StreamConfig(100, 4, 1, 0.3, features=names)).batches(3)[0]
        for names in ((), READ)
    )
    assert plain.features is None and np.array_equal(plain.ids, beside.ids)
    assert np.array_equal(plain.sources, beside.sources)
    assert lay_out(toy.layout(), ["toy_jets"], [], features=2).features.shape == (1, 2)  # type: ignore[union-attr]


def test_missing_features_are_named(toy: ToyTokens, home: Path) -> None:
    data = datasets(toy, home)
    require_features(data, ("pt", "phi_rel"))
    with pytest.raises(DataError, match=r"stores the feature 'eta'.*'eta_rel'"):
        require_features(data, ("pt", "eta"), every=True)
    bare = ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest)
    with pytest.raises(DataError, match="but toy_jets store none: tokenise with `features: float16`"):
        TokenStream([bare], [1.0], toy.layout(), StreamConfig(100, 4, 1, features=READ))


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
def test_tasks_learn_from_features_and_see_none_ahead(toy: ToyTokens, home: Path, mode: str) -> None:
    data, layout = datasets(toy, home), toy.layout(mode)
    batch = next(one_pass(data[0], layout, 200, True, features=READ))
    torch.manual_seed(0)
    backbone = Transformer(TransformerConfig(width=16, layers=1, heads=2, features=READ), toy.vocabulary.size)
    for task in (Generation(backbone, layout), Classification(backbone, 2)):
        b = to_device(batch, torch.device("cpu"))
        assert b.features is not None
        b.features.div_(1000.0).requires_grad_()
        task(b).backward()
        assert b.features.grad is not None and b.features.grad.abs().sum() > 0
        assert backbone.features is not None and backbone.features.weight.grad.abs().sum() > 0
    # what a step predicts are codes of points whose features stand at later steps
    first = torch.nonzero(torch.from_numpy(batch.features[:, 1]))[0, 0]  # type: ignore[index]
    b = to_device(batch, torch.device("cpu"))
    changed = b.features.clone()  # type: ignore[union-attr]
    changed[first:] += 1.0
    with torch.no_grad():
        same = [backbone(b.ids, b.positions, b.packing, f)[:first] for f in (b.features, changed)]
    assert torch.equal(*same)
