"""What checkpoints hold, which of them stay, and models made of them; and what the live line says."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from foundation.cli import main
from foundation.errors import TrainingError
from foundation.model.config import TransformerConfig
from foundation.model.transformer import Transformer
from foundation.model.weights import ModelFolder, describe_model, load_backbone
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import StreamConfig, TokenStream
from foundation.tasks.generation import Generation
from foundation.train import saving
from foundation.train.checkpoint import MARKER, committed, read_about, sha256
from foundation.train.export import DESCRIPTION, chosen_checkpoint, export_checkpoint
from foundation.train.faults import PREEMPTED
from foundation.train.interface import Extras
from foundation.train.progress import Speedometer, batch_flops, matmul_peak, matrix_weights

from conftest import ToyTokens
from gloo_ranks import exit_codes, run_distributed
from small_training import CONFIG, MODEL, losses, run, same_weights


def describe(toy: ToyTokens, folder: Path) -> None:
    """As a stage does before it trains."""
    model = ModelFolder(MODEL, "delayed", Generation.name, {}, toy.vocabulary)
    describe_model(folder / "checkpoints" / DESCRIPTION, model)


@pytest.mark.parametrize(("world", "stage"), [(1, 1), (2, 0), (2, 2), (2, 3)])
def test_a_checkpoint_becomes_a_model_without_the_processes_that_wrote_it(
    toy: ToyTokens, tmp_path: Path, world: int, stage: int
) -> None:
    config = CONFIG.model_copy(update={"steps": 3, "zero_stage": stage, "average_decay": 0.5})

    def stop(step: int) -> None:
        if step == 2:  # the checkpoint then has what training ends with
            os.kill(os.getpid(), signal.SIGTERM)

    describe(toy, tmp_path)
    assert exit_codes(run, world, toy, tmp_path, config, stop) == [PREEMPTED] * world
    export_checkpoint(chosen_checkpoint(tmp_path), tmp_path / "last")
    export_checkpoint(chosen_checkpoint(tmp_path), tmp_path / "average", average=True)
    run_distributed(run, world, toy, tmp_path, config)
    for kind in ("last", "average"):
        backbone, model = load_backbone(tmp_path / kind)
        assert model.layout.mode == "delayed"
        expected = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert all(torch.equal(p, expected[f"backbone.{name}"]) for name, p in backbone.state_dict().items())


def test_the_best_checkpoint_stays_besides_the_newest(toy: ToyTokens, tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0, 1.5, 9.0, 4.0])
    config = CONFIG.model_copy(
        update={"checkpoint_seconds": 1e9, "keep_checkpoints": 1, "keep_best": True, "validate_every": 2, "steps": 10}
    )

    def validate(task: object, device: object) -> dict[str, float]:
        return {"validation/toy/loss": next(values), "validation/toy/accuracy": 0.0}

    def stop(step: int) -> None:
        if step == 5:  # after two validations that were better than all before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(toy, tmp_path, config, stop, validate=validate)
    (best,) = committed(tmp_path / "checkpoints")
    assert best.name == "step_00000004" and read_about(best)["validation_loss"] == 1.0
    often = config.model_copy(update={"checkpoint_seconds": 1e-9})
    run(toy, tmp_path, often, validate=validate)
    assert [p.name for p in committed(tmp_path / "checkpoints")] == ["step_00000004", "step_00000009"]
    assert chosen_checkpoint(tmp_path, best=True) == best
    with pytest.raises(TrainingError, match="no checkpoint of step 7; there is step_00000004, step_00000009"):
        chosen_checkpoint(tmp_path, step=7)


def test_training_goes_on_while_a_checkpoint_is_written(
    toy: ToyTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {"checkpoint_seconds": 1e9, "keep_best": True, "validate_every": 2, "steps": 7}
    written, seen, threads = threading.Event(), [], []
    validated = iter([1.0, 2.0, 3.0, 4.0])
    write = saving.write_state

    def slow(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        threads.append(threading.current_thread().name)
        assert written.wait(60)
        write(path, tensors)

    def after(step: int) -> None:
        seen.append([p.name for p in committed(tmp_path / "slow" / "checkpoints")])
        if step == 4:
            written.set()

    monkeypatch.setattr(saving, "write_state", slow)
    run(
        toy, tmp_path / "slow", CONFIG.model_copy(update=best), after,
        validate=lambda task, device: {"validation/toy/loss": next(validated)},
    )  # fmt: skip
    assert seen[:5] == [[]] * 5 and threads == ["checkpoint-state_00000"]
    (found,) = committed(tmp_path / "slow" / "checkpoints")
    assert read_about(found)["step"] == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]
    # of step 2, not of what the weights became while it was being written
    monkeypatch.undo()
    run(toy, tmp_path / "slow", CONFIG.model_copy(update={"steps": 7}))
    run(toy, tmp_path / "whole", CONFIG.model_copy(update={"steps": 7}))
    assert losses(tmp_path / "slow") == losses(tmp_path / "whole")


def test_a_checkpoint_says_what_it_is_of_and_has_the_sha256_of_every_file(toy: ToyTokens, tmp_path: Path) -> None:
    describe(toy, tmp_path)
    facts = Extras(facts=lambda: {"recipe": {"name": "r"}, "mlflow_run": "abc"})
    run(toy, tmp_path, extras=facts)
    newest = committed(tmp_path / "checkpoints")[-1]
    about = read_about(newest)
    assert about["recipe"] == {"name": "r"} and about["mlflow_run"] == "abc" and about["tokens"] > 0
    assert len(about["recent_losses"]) == 7 and about["skipped"] == 0
    files = {p.name for p in newest.iterdir()} - {"about.json", MARKER}
    assert {name: f["sha256"] for name, f in about["files"].items()} == {name: sha256(newest / name) for name in files}


def test_checkpoints_on_the_command_line(toy: ToyTokens, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    describe(toy, tmp_path / "stage")
    run(toy, tmp_path / "stage")
    capfd.readouterr()
    stage, to = str(tmp_path / "stage"), tmp_path / "made"
    assert main(["checkpoint", "list", stage, "--check"]) == 0
    assert [line.split(":")[0] for line in capfd.readouterr().out.splitlines()] == ["step_00000006", "step_00000007"]
    assert main(["checkpoint", "export", stage, "--to", str(to), "--step", "6"]) == 0
    assert load_backbone(to)[1].vocabulary.digest == toy.vocabulary.digest
    for wrong, told in [
        (["--to", str(to)], "there is something already"),
        (["--to", str(tmp_path / "b"), "--best"], "no checkpoint was validated"),
        (["--to", str(tmp_path / "b"), "--average"], "has no average of the weights"),
    ]:
        assert main(["checkpoint", "export", stage, *wrong]) == 2
        assert told in capfd.readouterr().err
    state = tmp_path / "stage" / "checkpoints" / "step_00000007" / "state_00000.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    assert main(["checkpoint", "list", stage, "--check"]) == 2
    assert main(["checkpoint", "export", stage, "--to", str(tmp_path / "b")]) == 2
    assert "is not as it was written: the checkpoint is damaged" in capfd.readouterr().err
    assert main(["checkpoint", "list", str(tmp_path)]) == 2


def test_samples_are_taken_of_all_weights_and_change_nothing(toy: ToyTokens, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"sample_every": 3, "checkpoint_seconds": 1e9})
    taken: dict[int, list[str]] = {}

    def sample(weights: dict[str, torch.Tensor], step: int) -> None:
        torch.rand(7)
        taken[step] = sorted(weights)

    run(toy, tmp_path / "with", config, extras=Extras(sample))
    trained = run(toy, tmp_path / "without", config.model_copy(update={"sample_every": 0}))
    assert taken == {3: sorted(trained.weights), 6: sorted(trained.weights)}
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert same_weights(tmp_path / "with", tmp_path / "without")


def test_the_operations_of_a_batch_are_counted_by_weights_targets_and_lengths(toy: ToyTokens) -> None:
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in toy.clouds]
    layout = toy.layout()
    (batch,) = TokenStream(data, [0.5, 0.5], layout, StreamConfig(64, 2, 1)).batches(0)
    task = Generation(Transformer(TransformerConfig(width=16, layers=2, heads=2), toy.vocabulary.size), layout)
    shapes = {name: list(p.shape) for name, p in task.named_parameters()}
    linear = [m for m in task.modules() if isinstance(m, torch.nn.Linear)]
    assert matrix_weights(task, shapes) == sum(m.weight.numel() for m in linear)
    outputs = sum(16 * layout.slots[s].width for s in batch.slots[batch.slots >= 0].tolist())
    attention = sum(2 * 16 * int(n) ** 2 for n in batch.offsets[1:] - batch.offsets[:-1])
    expected = 6 * (1000 * len(batch.ids) + outputs + attention)
    assert batch_flops(task, 1000, batch) == pytest.approx(expected)

    device = torch.device("cpu")
    assert matmul_peak(device, torch.float32) == matmul_peak(device, torch.float32) > 1e8
    meter = Speedometer(task, shapes, device, "fp32")
    time.sleep(0.01)
    meter.count(100, [batch])
    speed = meter.speed()
    assert 0 < speed.tokens_per_second <= 10_000 and 0 < speed.share < 1 and speed.memory > 1e7
    assert json.dumps(speed.metrics) and "tokens/s" in str(speed) and "of the matmul peak" in str(speed)
