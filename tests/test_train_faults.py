"""What goes wrong while training: kills at any moment, signals, bad losses, full disks, processes that die."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from foundation.errors import TrainingError
from foundation.recipe.artifact import is_finished, write_artifact
from foundation.recipe.schema import Pretrain
from foundation.train import faults
from foundation.train.checkpoint import MARKER, committed, read_about
from foundation.train.engine import StepResult
from foundation.train.faults import ERRORS, PREEMPTED, EndRequests, lost_processes_named
from foundation.train.spikes import SpikeGuard

from conftest import ToyTokens
from gloo_ranks import exit_codes, run_distributed
from small_training import CONFIG, errors_written, losses, run, same_weights

KILLED = -signal.SIGKILL
LONG = CONFIG.model_copy(update={"steps": 40})


class KillAt:
    """A profiler that kills its process at the n-th call, in any thread, of the functions of a name, or of all."""

    def __init__(self, n: int, name: str = "") -> None:
        self.left, self.name = n, name

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and "/foundation/train/" in code.co_filename and code.co_name.startswith(self.name):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(toy: ToyTokens, folder: Path, last: int, killer: KillAt) -> None:
    """`run`, killed at the moment that `killer` knows after step `last`, or the first one if that is done already."""
    armed = []

    def arm(step: int) -> None:
        if step >= last and not armed:
            armed.append(step)
            threading.setprofile(killer)  # threads to come: that of the next checkpoint
            sys.setprofile(killer)

    run(toy, folder, LONG, arm)


@pytest.fixture(scope="module")
def whole(toy: ToyTokens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of LONG."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_codes(run, 1, toy, folder, LONG) == [0]
    return folder


def test_killed_at_twelve_moments_it_goes_on_to_the_same_losses_bit_for_bit(
    toy: ToyTokens, tmp_path: Path, whole: Path
) -> None:
    draw = random.Random(6)
    # while the file is written, before its sha256, before and between description and marker, before old ones go
    moments = [KillAt(1, name) for name in ("write_state", "sha256", "_commit", "commit", "remove_all_but")]
    moments += [KillAt(2, "_write_durably"), *(KillAt(draw.randrange(1, 80)) for _ in range(6))]
    draw.shuffle(moments)
    for attempt, killer in enumerate(moments):
        codes = exit_codes(run_and_die, 1, toy, tmp_path, 3 * attempt + draw.randrange(3), killer)
        assert codes == [KILLED], (attempt, killer.name)
    assert exit_codes(run, 1, toy, tmp_path, LONG) == [0]
    assert losses(tmp_path) == losses(whole) and len(losses(whole)) == LONG.steps
    assert same_weights(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_training_with_a_checkpoint_and_the_code_of_preemption(
    toy: ToyTokens, tmp_path: Path, whole: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    rarely = LONG.model_copy(update={"checkpoint_seconds": 1e9})

    def send(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    assert exit_codes(run, 1, toy, tmp_path, rarely, send) == [PREEMPTED] == [85]
    assert [p.name for p in committed(tmp_path / "checkpoints")] == ["step_00000006"]
    assert f"{number.name}: checkpoint at step 6; the same command goes on from there" in capfd.readouterr().out
    assert exit_codes(run, 1, toy, tmp_path, rarely) == [0]
    assert losses(tmp_path) == losses(whole) and same_weights(tmp_path, whole)


def test_a_signal_to_one_rank_ends_all_after_the_same_step(toy: ToyTokens, tmp_path: Path) -> None:
    rarely = CONFIG.model_copy(update={"checkpoint_seconds": 1e9})

    def send(step: int) -> None:
        if step == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGUSR1)

    assert exit_codes(run, 2, toy, tmp_path / "cut", rarely, send) == [PREEMPTED, PREEMPTED]
    (found,) = committed(tmp_path / "cut" / "checkpoints")
    assert found.name == "step_00000004" and sorted(read_about(found)["files"]) == [
        "state_00000.safetensors",
        "state_00001.safetensors",
    ]
    run_distributed(run, 2, toy, tmp_path / "cut", rarely)
    run_distributed(run, 2, toy, tmp_path / "whole", rarely)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert not (tmp_path / "cut" / ERRORS).exists()


def test_a_second_signal_ends_at_once_but_not_the_same_one_passed_on() -> None:
    def ask(times: int) -> None:
        with EndRequests() as requests:
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.asked == "SIGTERM"
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGUSR1)
            assert requests.asked == "SIGTERM"

    def insist() -> None:
        faults.ONE_REQUEST_SECONDS = 0.0
        ask(1)

    assert exit_codes(ask, 1, 3) == [0]
    assert exit_codes(insist, 1) == [-signal.SIGUSR1]


@pytest.mark.parametrize("world", [1, 2])
def test_a_loss_that_is_not_finite_is_skipped_and_its_sequences_are_written_down(
    toy: ToyTokens, tmp_path: Path, world: int
) -> None:
    factors = {2: math.nan, 5: math.inf}
    run_distributed(run, world, toy, tmp_path, CONFIG, None, factors)
    told = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted((line["step"], line["rank"]) for line in told) == [(s, r) for s in factors for r in range(world)]
    assert {(line["loss"], line["reason"]) for line in told} == {(None, "the loss is not finite")}
    assert all(set(line["sequences"]) <= set(toy.clouds) and line["sequences"] for line in told)
    assert all(math.isfinite(loss) for step, loss in enumerate(losses(tmp_path)) if step not in factors)


def test_a_spike_is_skipped_also_right_after_a_resume(toy: ToyTokens, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 12, "max_spike_sigma": 6.0, "spike_window": 5})
    factors = {3: 1.5, 7: 1.5}  # the first before the window is full: it counts as any other

    def cut(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    assert exit_codes(run, 1, toy, tmp_path / "whole", config, None, factors) == [0]
    assert exit_codes(run, 1, toy, tmp_path / "cut", config, cut, factors) == [1]
    assert exit_codes(run, 1, toy, tmp_path / "cut", config, None, factors) == [0]
    (line,) = (tmp_path / "whole" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 7 and "is a spike: the median of 5 before is" in json.loads(line)["reason"]
    for name in ("skipped.jsonl", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_too_many_skipped_steps_in_a_row_stop_the_training(
    toy: ToyTokens, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    factors = {1: math.nan, 3: math.nan, 4: math.nan, 5: math.nan}
    config = CONFIG.model_copy(update={"max_skipped": 3})
    with pytest.raises(TrainingError, match="3 steps in a row were skipped, the last one step 5 because the loss is"):
        run(toy, tmp_path, config, factors=factors)
    assert "the update was skipped (2 in a row)" in capfd.readouterr().err
    assert read_about(committed(tmp_path / "checkpoints")[-1])["skipped_in_a_row"] == 2


def test_the_window_of_the_guard_forgets_spikes_and_judges_only_when_full() -> None:
    guard = SpikeGuard(CONFIG.model_copy(update={"max_spike_sigma": 5.0, "spike_window": 4, "max_skipped": 2}), {})
    assert guard.accept is not None and SpikeGuard(CONFIG, {}).accept is None
    for step, loss in enumerate((4.0, 3.9, 4.1, 4.0)):
        assert guard.accept(100.0)
        guard.after_step(step, loss, "")
    assert guard.accept(4.3) and not guard.accept(9.0)
    reason = guard.why_skipped(StepResult(9.0, 1, math.nan, "not accepted"))
    assert reason == "the loss 9 is a spike: the median of 4 before is 4"
    guard.after_step(4, 9.0, reason)
    assert list(guard.losses) == [4.0, 3.9, 4.1, 4.0]
    again = SpikeGuard(guard.config, json.loads(json.dumps(guard.state)))
    assert again.state == guard.state and again.accept is not None and not again.accept(9.0)
    with pytest.raises(TrainingError, match="2 steps in a row were skipped"):
        again.after_step(5, 9.0, reason)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB for the checkpoints of the folder that is returned."""
    folder = tmp_path / "stage"
    disk = folder / "checkpoints"
    disk.mkdir(parents=True)
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: that needs root and the right to mount")
    yield folder
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_an_error_and_the_checkpoint_before_is_intact(
    toy: ToyTokens, small_disk: Path, background: bool
) -> None:
    config = CONFIG.model_copy(update={"background_checkpoints": background})

    def fill(step: int) -> None:
        if step == 3:
            with pytest.raises(OSError), (small_disk / "checkpoints" / "others").open("wb", buffering=0) as f:
                while f.write(bytes(1000)):
                    pass

    with pytest.raises(TrainingError, match="cannot write the checkpoint .*No space left.* the previous one is intact"):
        run(toy, small_disk, config, fill)
    (small_disk / "checkpoints" / "others").unlink()
    found = committed(small_disk / "checkpoints")
    assert found and not set(small_disk.glob("checkpoints/step_*")) - set(found)
    trained = run(toy, small_disk, config)
    assert trained.summary["resumed_at"] == int(found[-1].name[5:])


def test_a_file_that_may_not_grow_is_an_error_of_the_thread_at_a_later_step(toy: ToyTokens, tmp_path: Path) -> None:
    def limit(step: int) -> None:
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    def run_limited() -> None:
        with errors_written(tmp_path):
            run(toy, tmp_path, CONFIG, limit)

    assert exit_codes(run_limited, 1) == [1]
    told = (tmp_path / "error_0").read_text()
    assert "cannot write the checkpoint (" in told and "File too large" in told and "the previous one is intact" in told
    assert committed(tmp_path / "checkpoints")


def test_checkpoints_that_vanish_are_an_error_and_are_not_begun_anew(toy: ToyTokens, tmp_path: Path) -> None:
    def vanish(step: int) -> None:
        if step == 4:
            (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")

    with pytest.raises(TrainingError, match="is gone with all checkpoints: is its file system still there"):
        run(toy, tmp_path, CONFIG, vanish)
    assert not (tmp_path / "checkpoints").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints")
    assert run(toy, tmp_path).summary["resumed_at"] in (3, 4)


def die_on_rank_1(toy: ToyTokens, folder: Path, die: Callable[[], None]) -> list[int | None]:
    """How both ranks ended when rank 1 did `die` after a step; TrainingErrors are left in `folder`."""

    def at_step(step: int) -> None:
        if step == 2 and os.environ["RANK"] == "1":
            die()

    def work() -> None:
        with errors_written(folder):
            run(toy, folder, CONFIG, at_step)

    return exit_codes(work, 2)


def test_a_rank_that_fails_ends_the_others_with_its_cause(toy: ToyTokens, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("the shard is on fire")

    assert die_on_rank_1(toy, tmp_path, fail) == [1, 1]
    told = (tmp_path / "error_0").read_text()
    assert "rank 1 failed with OSError: the shard is on fire" in told and "start the same command again" in told
    assert (tmp_path / ERRORS / "rank_00001.txt").read_text() == "OSError: the shard is on fire\n"
    run_distributed(run, 2, toy, tmp_path)
    assert not (tmp_path / ERRORS).exists()


def test_what_a_rank_that_is_not_yet_done_holds_is_no_output_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Pretrain(kind="pretrain", name="p", data="tokens", mixture={"toy_jets": 1.0})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with lost_processes_named(tmp_path / ERRORS, lambda: 1.0):
        assert list((tmp_path / ERRORS).iterdir())
        write_artifact(tmp_path, spec, "key", 1, {}, {}, 0.0)
    assert is_finished(tmp_path, "key")


def test_a_rank_that_is_killed_is_named_by_the_others(toy: ToyTokens, tmp_path: Path) -> None:
    assert die_on_rank_1(toy, tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL)) == [1, KILLED]
    told = (tmp_path / "error_0").read_text()
    assert "rank 1 vanished without a message, as after kill -9" in told and "start the same command again" in told


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    toy: ToyTokens, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = CONFIG.model_copy(update={"steps": 5})
    run(toy, tmp_path, first)
    newest = committed(tmp_path / "checkpoints")[-1]
    state = newest / "state_00000.safetensors"
    content = bytearray(state.read_bytes())
    content[-5] ^= 1  # one bit of a weight: safetensors alone would not notice
    state.write_bytes(content)
    trained = run(toy, tmp_path, first)
    assert trained.summary["resumed_at"] == 3 and newest.name == "step_00000004"
    assert f"{state} is not as it was written: this checkpoint is damaged" in capfd.readouterr().err
    assert (tmp_path / "checkpoints" / "damaged_step_00000004").is_dir()
    run(toy, tmp_path / "whole", first)
    assert losses(tmp_path) == losses(tmp_path / "whole")

    for folder in committed(tmp_path / "checkpoints"):
        (folder / "about.json").write_text((folder / "about.json").read_text() + " ")
    with pytest.raises(TrainingError, match="all checkpoints are damaged .*step_00000004, step_00000003"):
        run(toy, tmp_path, first)
    assert not list((tmp_path / "checkpoints").glob(f"step_*/{MARKER}"))
