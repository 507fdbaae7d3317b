"""Stages that train read the shards of their tokenize stage, wherever these lie."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foundation.errors import DataError
from foundation.recipe.artifact import stage_key
from foundation.recipe.schema import Pretrain
from foundation.recipe.stages.training import open_split

from byte_server import ByteServer
from conftest import ToyTokens


@pytest.fixture
def tokens(toy: ToyTokens, tmp_path: Path) -> Any:
    """What a tokenize stage leaves: DATASET/SPLIT."""
    shutil.copytree(toy.home / "toy_jets", tmp_path / "toy_jets" / "train")
    shutil.copytree(toy.home / "toy_showers", tmp_path / "toy_showers" / "train")
    return SimpleNamespace(folder=tmp_path, name="tokens")


def spec(**settings: Any) -> Pretrain:
    return Pretrain(kind="pretrain", name="p", data="tokens", mixture={"toy_jets": 1.0}, **settings)


@pytest.mark.parametrize("cached", [False, True])
def test_shards_may_have_moved_to_a_server(toy: ToyTokens, tokens: Any, tmp_path: Path, cached: bool) -> None:
    server = ByteServer()
    try:
        for path in (tokens.folder / "toy_jets" / "train").rglob("*"):
            if path.is_file():
                server.files[path.relative_to(tokens.folder).as_posix()] = path.read_bytes()
        here = open_split(tokens, "toy_jets", "train", toy.vocabulary, spec())
        moved = spec(shards_at=server.url, cache=str(tmp_path / "cache") if cached else None)
        there = open_split(tokens, "toy_jets", "train", toy.vocabulary, moved)
        assert len(there) == len(here) and there.digest == here.digest
        for number in range(here.n_blocks):
            np.testing.assert_array_equal(there.block(number).codes, here.block(number).codes)
        asked = len(server.asked)
        again = open_split(tokens, "toy_jets", "train", toy.vocabulary, moved)
        again.block(0)
        data = [name for method, name in server.asked[asked:] if method == "GET" and name.endswith(".tar")]
        assert bool(data) != cached
    finally:
        server.close()


def test_shards_of_another_dataset_or_tokenizer_are_refused(toy: ToyTokens, tokens: Any) -> None:
    elsewhere = tokens.folder / "elsewhere"
    shutil.copytree(tokens.folder / "toy_showers" / "train", elsewhere / "toy_jets" / "train")
    with pytest.raises(DataError, match="toy_showers"):
        open_split(tokens, "toy_jets", "train", toy.vocabulary, spec(shards_at=str(elsewhere)))
    with pytest.raises(DataError, match="has no dataset 'toy_jet' - did you mean 'toy_jets'"):
        open_split(tokens, "toy_jet", "train", toy.vocabulary, spec())


def test_how_work_is_spread_does_not_make_a_stage_start_again() -> None:
    def key(**train: Any) -> str:
        return stage_key(spec(train=train), 1, {}, Path())

    assert key(zero_stage=3, offload="optimizer", accumulation=2, recompute=True, deepspeed="x.json") == key()
    assert key(learning_rate=1e-4) != key()


def test_samples_of_a_model_that_cannot_generate_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match="a model that reads features cannot generate"):
        spec(train={"sample_every": 5}, model={"features": ["pt"]})
