"""What `foundation plan` says, against what runs: parameters, operations, memory; and how it says it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.cli import main
from foundation.errors import DataError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer, count_parameters
from foundation.stream.reading import ShardedDataset
from foundation.stream.rows import length_rule
from foundation.stream.token_stream import StreamConfig, TokenStream, one_pass
from foundation.tasks.base import to_device
from foundation.tasks.generation import Generation
from foundation.train.config import TrainConfig
from foundation.train.engine import make_engine
from foundation.train.hardware import GPUS, gpu_named
from foundation.train.memory import MicroBatch, Parameters, memory_of
from foundation.train.planning import (
    Machines,
    Work,
    count_on_meta,
    exchange_of,
    lengths_in,
    plan_training,
    work_of,
)
from foundation.train.progress import batch_flops, matrix_weights

from conftest import ToyTokens

MODEL = TransformerConfig(width=64, layers=3, heads=4)
ONE = Machines(GPUS["h200"], 1, 1, 25e9)
WORK = Work(vocabulary=5000, columns=1, legal=(4000,), tokens=4e6, length=100.0, outputs=4000.0)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        MODEL.model_copy(update={"tied": False, "kv_heads": 1, "qk_norm": True}),
        TransformerConfig(size="omnijet_alpha"),
    ],
)
def test_parameters_are_counted_without_making_any(model: TransformerConfig) -> None:
    counted, real = count_on_meta(model, 1000), Transformer(model, 1000)
    assert counted.total == count_parameters(real)
    assert counted.hidden == sum(p.numel() for p in real.blocks.parameters() if p.ndim == 2)
    assert counted.embeddings == 1000 * model.width * (1 if model.tied else 2)


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
@pytest.mark.parametrize("tag", ["toy_jets", "toy_showers"])
def test_operations_are_those_of_the_batches(toy: ToyTokens, tag: str, mode: str) -> None:
    layout = toy.layout(mode)
    data = ShardedDataset(toy.home / tag, toy.vocabulary.digest)
    task = Generation(Transformer(MODEL, toy.vocabulary.size), layout)
    weights = matrix_weights(task, {name: list(p.shape) for name, p in task.named_parameters()})
    batches = list(one_pass(data, layout, 2048, hide_class=False))
    tokens = sum(len(batch.ids) for batch in batches)
    real = sum(batch_flops(task, weights, batch) for batch in batches)
    points = lengths_in(data, length_rule(layout, tag), 10**6)
    plan = plan_training(MODEL, TrainConfig(), work_of(layout, [tag], [points], [1.0], tokens), ONE)
    assert plan.flops * tokens == pytest.approx(real, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "train"),
    [
        (MODEL, {}),
        (MODEL, {"recompute": True}),
        (MODEL, {"precision": "bf16", "average_decay": 0.9}),
        (MODEL.model_copy(update={"norm": "layer", "activation": "gelu", "kv_heads": 2, "qk_norm": True}), {}),
        (
            MODEL.model_copy(update={"norm_place": "post", "activation": "relu", "positions": "none"}),
            {"accumulation": 2},
        ),
    ],
)
def test_memory_is_what_a_step_allocates(toy: ToyTokens, model: TransformerConfig, train: dict) -> None:
    config, layout = TrainConfig(**train), toy.layout()
    torch.manual_seed(0)
    task = Generation(Transformer(model, toy.vocabulary.size), layout)
    engine = make_engine(task, config)
    data = ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest)
    batch = next(one_pass(data, layout, 1500, hide_class=False))
    tensors = [to_device(batch, engine.device)] * config.accumulation
    targets = task.count(batch) * config.accumulation
    engine.step(tensors, targets)
    engine.optimizer.zero_grad()
    state = [x for states in (engine.optimizer.state, engine.averages.states if engine.averages else {})
             for s in states.values() for x in s.values() if isinstance(x, torch.Tensor)]  # fmt: skip
    before = sum(x.nbytes for x in [*task.parameters(), *state])
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        engine.step(tensors, targets)
    events = profile.profiler.kineto_results.events()
    sizes = [size for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")]
    micro = MicroBatch(
        len(batch.ids), layout.columns, tensors[0].packing.padded / len(batch.ids), tuple(s.width for s in layout.slots)
    )
    predicted = memory_of(model, count_on_meta(model, toy.vocabulary.size), config, micro, 1, on_gpu=False)
    assert predicted.peak == pytest.approx(before + np.cumsum(sizes).max(), rel=0.12)
    engine.close()


@given(
    processes=st.sampled_from([2, 8, 64]),
    stage=st.sampled_from([0, 1, 2, 3]),
    precision=st.sampled_from(["fp32", "bf16"]),
    steps=st.integers(1, 100_000),
)
@settings(max_examples=50, deadline=None)
def test_more_is_never_less(processes: int, stage: int, precision: str, steps: int) -> None:
    train = TrainConfig(zero_stage=stage, precision=precision)
    parameters, batch = Parameters(10**9, 9 * 10**8, 10**8), MicroBatch(steps, 1, 1.0, (50_000,))
    memory = memory_of(MODEL, parameters, train, batch, processes)
    assert memory.peak >= memory.weights + memory.optimizer + max(memory.activations, memory.gradients)
    more = memory_of(MODEL, parameters, train, replace(batch, steps=steps + 1), processes)
    assert more.peak >= memory.peak
    fewer = memory_of(MODEL, parameters, train.model_copy(update={"recompute": True}), batch, processes)
    assert fewer.activations <= memory.activations
    if stage:
        shared = memory_of(MODEL, parameters, train, batch, 2 * processes)
        assert shared.optimizer == pytest.approx(memory.optimizer / 2)
    else:
        assert memory.optimizer == 8e9


def test_what_is_offloaded_is_in_the_memory_of_the_machine() -> None:
    parameters, batch = Parameters(10**9, 9 * 10**8, 10**8), MicroBatch(100, 1, 1.0, (5,))
    here = memory_of(MODEL, parameters, TrainConfig(zero_stage=2), batch, 4)
    there = memory_of(MODEL, parameters, TrainConfig(zero_stage=2, offload="optimizer"), batch, 4)
    assert (here.host, there.optimizer) == (0.0, 0.0) and there.host >= here.optimizer
    assert there.peak == pytest.approx(here.peak - here.optimizer)


def test_sending() -> None:
    eight = replace(ONE, gpus=8)
    plain = TrainConfig(zero_stage=0)
    # a ring sends all gradients twice, but for the own part
    assert exchange_of(10**9, plain, eight).bytes == pytest.approx(2 * 4e9 * 7 / 8)
    assert exchange_of(10**9, plain, ONE).bytes == 0
    far = exchange_of(10**9, plain, replace(eight, nodes=2))
    assert far.between_machines and far.seconds == pytest.approx(2 * 4e9 * 7 / 8 / 25e9)
    often = [exchange_of(10**9, TrainConfig(zero_stage=s, accumulation=4), eight).bytes for s in (0, 1, 2, 3)]
    assert often[0] < often[1] < often[2] < often[3]


def test_time_is_work_over_speed() -> None:
    train = TrainConfig(steps=1000, rows_per_step=64)
    half = plan_training(MODEL, train, WORK, replace(ONE, gpus=8, efficiency=0.5))
    assert half.seconds == pytest.approx(half.flops * WORK.tokens * 1000 / (8 * 0.5 * 989e12))
    assert half.gpu_hours == pytest.approx(half.seconds * 8 / 3600)
    measured = plan_training(MODEL, train, WORK, replace(ONE, gpus=8, efficiency=None, tokens_per_second=1e6))
    assert measured.seconds == pytest.approx(WORK.tokens * 1000 / 8e6)


def test_rows_that_cannot_be_divided_are_told_with_what_can() -> None:
    with pytest.raises(DataError, match="set rows_per_step to a multiple of 16"):
        plan_training(MODEL, TrainConfig(rows_per_step=12, accumulation=2), WORK, replace(ONE, gpus=8))


def test_gpus_are_found_by_name() -> None:
    assert gpu_named("mi300x").memory == 192e9
    with pytest.raises(DataError, match="no GPU 'h20' in the table - did you mean 'h200'"):
        gpu_named("h20")
    assert all(gpu.source and 1e14 < gpu.peak < 1e16 for gpu in GPUS.values())


# The command


RECIPE = """\
name: planned
description: To be planned
stages:
  - {kind: simulate, name: showers, dataset: gflash_siw, objects: {train: 10}}
  - {kind: tokenizer, name: codes, from: showers, method: {type: per_feature}}
  - {kind: tokenize, name: tokens, datasets: [{from: showers, tokenizer: codes}]}
  - {kind: pretrain, name: backbone, data: tokens, mixture: {toy_jets: 0.5, toy_showers: 0.5},
     model: {width: 64, layers: 2, heads: 4}, train: {steps: 100, row_tokens: 128, rows_per_step: 8}}
  - {kind: finetune, name: tagger, from: backbone, data: tokens, dataset: toy_jets, train: {row_tokens: 128}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FOUNDATION_RUNS", str(tmp_path / "runs"))
    (tmp_path / "planned.yaml").write_text(RECIPE)
    return str(tmp_path / "planned.yaml")


@pytest.fixture
def with_shards(recipe: str, toy: ToyTokens, tmp_path: Path) -> str:
    home = tmp_path / "runs" / "planned" / "tokens"
    for tag in toy.clouds:
        (home / tag).mkdir(parents=True)
        (home / tag / "train").symlink_to(toy.home / tag)
    toy.vocabulary.save(home / "vocabulary.json")
    return recipe


def test_a_plan_in_words(with_shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", with_shards, "--gpus", "8", "--nodes", "2", "--gpu", "a100-40"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("stage backbone of planned\nGPUs        8 x a100-40 in 2 machines: 312 TFLOP/s, 40 GB")
    assert "* ZeRO 1" in said and "network" in said and "epochs: toy_jets" in said
    assert max(map(len, said.splitlines())) <= 140


def test_a_plan_as_json(with_shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", with_shards, "--stage", "tagger", "--gpus", "2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert list(plan["memory"]) == ["0", "1", "2", "3"] and plan["memory"]["1"]["fits"]
    assert plan["machines"]["gpus"] == 2 and plan["seconds"] > 0 and "toy_jets" in plan["epochs"]


def test_tokens_are_those_that_the_stream_will_give(
    with_shards: str, toy: ToyTokens, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", with_shards, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in toy.clouds]
    stream = TokenStream(data, [0.5, 0.5], toy.layout(), StreamConfig(128, 8, 1))
    given = [len(batch.ids) for step in range(100) for batch in stream.batches(step)]
    assert plan["tokens"] == pytest.approx(np.mean(given), rel=0.01)


def test_a_plan_before_there_are_shards(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe]) == 2
    assert "no shards yet. Run `foundation run" in capsys.readouterr().err
    stated = ["--vocabulary-size", "65000", "--sequence-tokens", "130"]
    big = ["--set", "backbone.model={size: 7b}", "backbone.train.rows_per_step=64"]
    assert main(["plan", recipe, *stated, "--gpus", "64", "--nodes", "8", "--gpu", "l40s", *big]) == 0
    said = capsys.readouterr().out
    assert "ZeRO 0" in said and " no " in said and " yes " in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "3", "--nodes", "2"], "a multiple of --nodes 2"),
        (["--stage", "backbon"], "did you mean 'backbone'?"),
        (["--gpu", "h300"], "no GPU 'h300'"),
        (["--efficiency", "40"], "a share of the peak"),
        (["--vocabulary-size", "9"], "give both"),
    ],
)
def test_mistakes(recipe: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, *arguments]) == 2
    assert message in capsys.readouterr().err
