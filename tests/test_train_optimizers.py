"""Optimisers, schedules, averages: one process and every ZeRO stage do the same, and all of it resumes."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from foundation.errors import TrainingError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import StreamConfig, TokenStream
from foundation.tasks.base import to_device
from foundation.tasks.classification import Classification
from foundation.tasks.generation import Generation
from foundation.train.config import TrainConfig
from foundation.train.deepspeed_settings import deepspeed_settings
from foundation.train.engine import Accept, Engine, StepResult, make_engine
from foundation.train.optimizers import parameter_groups
from foundation.train.schedules import learning_rate

from conftest import ToyTokens
from gloo_ranks import run_distributed

OPTIMIZERS = ("adamw", "muon", "ranger", "lion")
CONFIG = TrainConfig(row_tokens=64, rows_per_step=4, learning_rate=1e-3, average_decay=0.9)
STEPS = 8
"""More than the 6 after which Ranger's slow weights are used."""


def settings(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate(CONFIG.model_dump() | changes)


def build(toy: ToyTokens, config: TrainConfig, seed: int = 0) -> Engine:
    """An engine for a small generator."""
    torch.manual_seed(seed)
    layout = toy.layout()
    return make_engine(
        Generation(Transformer(TransformerConfig(width=16, layers=2, heads=2), toy.vocabulary.size), layout), config
    )


def take(toy: ToyTokens, engine: Engine, steps: Iterable[int], accept: Accept | None = None) -> list[StepResult]:
    """These steps of the toy mixture."""
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in toy.clouds]
    stream = TokenStream(data, [0.5, 0.5], toy.layout(), StreamConfig(64, 4, 1, 0.3))
    results = []
    for step in steps:
        batches = stream.batches(step, engine.rank, engine.world, engine.config.accumulation)
        engine.set_learning_rate(1.0 / (1 + step))
        targets = sum(map(engine.task.count, batches))
        results.append(engine.step([to_device(b, engine.device) for b in batches], targets, accept))
    return results


def losses(results: Iterable[StepResult]) -> list[float]:
    return [result.loss for result in results]


def copied(state: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in (state or {}).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=0, atol=tolerance) for k in a)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes_to_the_bit(toy: ToyTokens, tmp_path: Path, optimizer: str) -> None:
    config = settings(optimizer=optimizer)
    whole = build(toy, config)
    expected = take(toy, whole, range(STEPS))
    assert losses(expected)[-1] < losses(expected)[0]
    first = build(toy, config)
    take(toy, first, range(3))
    first.save(tmp_path)
    second = build(toy, config, seed=5)
    second.load(tmp_path, 1)
    assert losses(take(toy, second, range(3, STEPS))) == losses(expected)[3:]
    assert same(second.state(), whole.state())


@pytest.mark.parametrize(
    "optimizer", ["adamw", "muon", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ranger", "lion"))]
)
def test_every_zero_stage_trains_like_one_process_and_takes_over_from_the_other(
    toy: ToyTokens, tmp_path: Path, optimizer: str
) -> None:
    """Steps 0-2 at one ZeRO stage, 3-5 at another from its checkpoint, with averages; the last ones on one process."""
    config = settings(optimizer=optimizer, accumulation=2)
    one = build(toy, config)
    expected = losses(take(toy, one, range(STEPS)))
    # where the sign of a rounded zero falls otherwise, Lion moves a weight by more than rounding
    tolerance = 2e-3 if optimizer == "lion" else 1e-4

    def part(stage: int, first: bool) -> None:
        engine = build(toy, settings(optimizer=optimizer, accumulation=2, zero_stage=stage), seed=0 if first else 7)
        if not first:
            engine.load(tmp_path / str((stage + 1) % 4), 2)
        begin = 0 if first else 3
        got = losses(take(toy, engine, range(begin, begin + 3)))
        assert got == pytest.approx(expected[begin : begin + 3], rel=tolerance), (stage, first)
        engine.save(tmp_path / (str(stage) if first else f"then_{stage}"))
        engine.close()

    def both() -> None:
        for first in (True, False):
            for stage in range(4):
                (tmp_path / str(stage)).mkdir(exist_ok=True)
                (tmp_path / f"then_{stage}").mkdir(exist_ok=True)
                part(stage, first)

    run_distributed(both, 2)
    for stage in range(4):
        last = build(toy, config, seed=9)
        last.load(tmp_path / f"then_{stage}", 2)
        assert losses(take(toy, last, range(6, STEPS))) == pytest.approx(expected[6:], rel=tolerance)
        average, weights = last.average(), one.average()
        assert average is not None and weights is not None
        assert near(average, weights, 10 * tolerance)


@pytest.mark.parametrize(
    "cases",
    [
        [("adamw", stage, "fp32") for stage in range(4)] + [("muon", 2, "fp32")],
        pytest.param(
            [("adamw", stage, "bf16") for stage in range(4)]
            + [("muon", stage, "fp32") for stage in (0, 1, 3)]
            + [("muon", stage, "bf16") for stage in range(4)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_step_that_is_not_accepted_leaves_no_trace_on_any_rank(
    toy: ToyTokens, cases: list[tuple[str, int, str]]
) -> None:
    def check(optimizer: str, stage: int, precision: str) -> None:
        changes = {"optimizer": optimizer, "zero_stage": stage, "precision": precision, "accumulation": 2}
        plain, picky = (build(toy, settings(**changes)) for _ in range(2))
        expected = take(toy, plain, [0, 2])
        seen: list[float] = []

        def accept(loss: float) -> bool:
            seen.append(loss)
            return len(seen) != 2

        got = take(toy, picky, [0, 1, 2], accept)
        assert [result.skipped for result in got] == [False, True, False]
        assert "was not accepted" in got[1].reason and math.isnan(got[1].gradient_norm)
        assert seen == losses(got)
        assert [got[0], got[2]] == expected
        assert same(picky.state(), plain.state())
        picky.close()

    def check_all() -> None:
        for case in cases:
            check(*case)

    run_distributed(check_all, 2)
    check("adamw", 1, "fp32")


@pytest.mark.parametrize(
    "cases",
    [
        [(3, "parameters")],
        pytest.param([(1, "optimizer"), (2, "optimizer"), (3, "optimizer")], marks=pytest.mark.slow),
    ],
)
def test_offload_changes_nothing(toy: ToyTokens, tmp_path: Path, cases: list[tuple[int, str]]) -> None:
    """Also on one process that no launcher started, which then uses DeepSpeed too."""
    one = build(toy, settings())
    expected = losses(take(toy, one, range(4)))

    def check(stage: int, offload: str) -> None:
        engine = build(toy, settings(zero_stage=stage, offload=offload))
        results = take(toy, engine, [0, 1])
        results += take(toy, engine, [2], lambda loss: False)
        assert results[2].skipped
        folder = tmp_path / f"{engine.world}_{stage}_{offload}"
        folder.mkdir(exist_ok=True)
        engine.save(folder)
        engine.close()
        again = build(toy, settings(zero_stage=stage, offload=offload), seed=3)
        again.load(folder, again.world)
        results[2:] = take(toy, again, [2, 3])
        assert losses(results) == pytest.approx(expected, rel=1e-4), (stage, offload)
        again.close()

    def check_all() -> None:
        for case in cases:
            check(*case)

    def check_alone() -> None:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
        check(*cases[-1])

    run_distributed(check_all, 2)
    run_distributed(check_alone, 1)
    last = build(toy, settings())
    last.load(tmp_path / f"2_{cases[-1][0]}_{cases[-1][1]}", 2)
    assert losses(take(toy, last, [2, 3])) == pytest.approx(expected[2:], rel=1e-4)


def test_the_average_is_what_its_formula_says_and_leaves_the_weights_alone(toy: ToyTokens) -> None:
    engine = build(toy, settings(export="average"))
    name, weight = next(iter(engine.task.named_parameters()))
    expected = None
    for step in range(12):
        take(toy, engine, [step])
        now = weight.detach().clone()
        kept = min(0.9, (1 + step) / (10 + step))
        expected = now if expected is None else kept * expected + (1 - kept) * now
    before = copied(engine.state())
    with engine.exported_weights():
        assert torch.allclose(weight, expected, atol=1e-6) and not torch.equal(weight, now)
    average = engine.average()
    assert average is not None and torch.allclose(average[name], expected, atol=1e-6)
    assert same(engine.state(), before)
    assert build(toy, settings(average_decay=0.0)).average() is None


def test_the_average_under_zero_is_that_of_one_process(toy: ToyTokens, tmp_path: Path) -> None:
    one = build(toy, settings())
    take(toy, one, range(4))
    expected = copied(one.average())

    def check() -> None:
        for stage in range(4):
            engine = build(toy, settings(zero_stage=stage, export="average"))
            take(toy, engine, range(4))
            before = copied(engine.state())
            average, last = engine.average(), engine.weights()
            with engine.exported_weights():
                exported = copied(engine.weights())
            assert same(engine.state(), before), stage
            if engine.rank == 0:
                assert near(copied(average), expected, 1e-4) and same(exported, copied(average)), stage
                assert near(copied(last), copied(one.weights()), 1e-4)
            engine.close()

    run_distributed(check, 2)


def test_a_checkpoint_without_average_or_of_the_format_before_loads(toy: ToyTokens, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = build(toy, settings(average_decay=0.0))
    expected = losses(take(toy, whole, range(6)))
    first = build(toy, settings())
    take(toy, first, range(3))
    first.save(tmp_path)
    path = tmp_path / "state_00000.safetensors"
    saved = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("average.")}
    save_file({k: v.reshape(1) if k.startswith("step/") else v for k, v in saved.items()}, path)
    second = build(toy, settings(), seed=4)
    second.load(tmp_path, 1)
    assert losses(take(toy, second, range(3, 6))) == expected[3:]
    assert second.average() is not None


def test_schedules_rise_and_end_as_they_are_named() -> None:
    def rates(**changes: object) -> list[float]:
        config = settings(steps=100, warmup_steps=10, final_learning_rate=0.1, **changes)
        return [learning_rate(step, config) for step in range(101)]

    for name in ("cosine", "wsd", "linear", "constant"):
        curve = rates(schedule=name)
        assert curve[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert curve[10:] == sorted(curve[10:], reverse=True)
        assert curve[-1] == pytest.approx(1.0 if name == "constant" else 0.1)
    assert rates(schedule="linear")[55] == pytest.approx(0.55)
    wsd = rates(schedule="wsd", decay_fraction=0.5)
    assert wsd[10:56] == [1.0] * 46 and wsd[56] < 1.0
    assert rates(schedule="wsd", decay_fraction=1.0)[11] < 1.0


def test_matrices_of_the_blocks_get_the_rate_of_their_width() -> None:
    task = Classification(Transformer(TransformerConfig(width=64, layers=1, heads=2), 50), 2)
    hidden = {id(p) for p in task.backbone.blocks.parameters() if p.ndim == 2}
    assert hidden

    def peaks(**changes: object) -> dict[bool, set[float]]:
        found: dict[bool, set[float]] = {True: set(), False: set()}
        for group in parameter_groups(task, settings(**changes)):
            for parameter in group["params"]:
                found[id(parameter) in hidden].add(group["peak"])
        return found

    assert peaks() == {True: {1e-3}, False: {1e-3}}
    assert peaks(learning_rate_width=16) == {True: {2.5e-4}, False: {1e-3}}
    assert peaks(optimizer="muon", learning_rate_width=16) == {True: {0.02}, False: {1e-3}}
    tuned = peaks(optimizer="muon", backbone_learning_rate=1e-4)
    assert tuned[False] == {1e-3, 1e-4} and [*tuned[True]] == pytest.approx([0.002])


def test_what_does_not_go_together_is_refused(toy: ToyTokens) -> None:
    with pytest.raises(TrainingError, match="muon works on whole matrices, which offload cuts up"):
        build(toy, settings(optimizer="muon", offload="optimizer"))
    with pytest.raises(ValidationError, match="offload optimizer needs zero_stage 1, 2 or 3, not 0"):
        settings(offload="optimizer", zero_stage=0)
    with pytest.raises(ValidationError, match="offload parameters needs zero_stage 3, not 1"):
        settings(offload="parameters")
    with pytest.raises(ValidationError, match="export average needs average_decay"):
        settings(export="average", average_decay=0.0)


def test_a_deepspeed_file_adds_settings_and_may_not_contradict(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"

    def merged(own: object, **changes: object) -> dict:
        path.write_text(json.dumps(own))
        return deepspeed_settings(settings(deepspeed=str(path), **changes))

    zero = {"stage": 1, "overlap_comm": False, "offload_optimizer": {"device": "none", "pin_memory": False}}
    own = {
        "zero_optimization": zero,
        "wall_clock_breakdown": True,
        "train_batch_size": "auto",
        "bf16": {"enabled": False},
    }
    made = merged(own)
    assert made["wall_clock_breakdown"] is True and "train_batch_size" not in made
    assert made["zero_optimization"]["overlap_comm"] is False and made["zero_optimization"]["stage"] == 1
    for wrong, word in (
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage 2 contradicts zero_stage of the recipe"),
        ({"gradient_clipping": 5.0}, "gradient_clipping 5.0 contradicts clip of the recipe"),
        ({"optimizer": {"type": "Adam"}}, 'optimizer.type "Adam" contradicts optimizer of the recipe'),
        ({"fp16": {"enabled": True}}, "fp16.enabled true contradicts precision of the recipe"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "contradicts offload of the recipe"),
        ({"train_batch_size": 64}, "train_batch_size 64 contradicts rows_per_step of the recipe"),
        ({"steps_per_print": 10}, "steps_per_print 10 cannot be: training needs 1000000000"),
        ([1], "not a JSON object"),
    ):
        with pytest.raises(TrainingError, match=re.escape(f"{path}: ") + ".*" + re.escape(word)):
            merged(wrong)
    path.write_text("{\n'a'")
    with pytest.raises(TrainingError, match=r"mine.json:2: not JSON"):
        deepspeed_settings(settings(deepspeed=str(path)))
    with pytest.raises(TrainingError, match="nowhere.json: cannot read these DeepSpeed settings"):
        deepspeed_settings(settings(deepspeed=str(tmp_path / "nowhere.json")))
