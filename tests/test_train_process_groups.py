"""Nobody waits longer than was said, in whatever process group."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest
import torch

from foundation.train.process_groups import wait_at_most

from gloo_ranks import run_distributed


def test_a_group_that_was_made_without_a_time_gives_up_too() -> None:
    run_distributed(_one_is_late, 2)


def _one_is_late() -> None:
    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=30))
    group = torch.distributed.new_group([0, 1])  # as DeepSpeed does
    wait_at_most(timedelta(seconds=1))
    if os.environ["RANK"] == "1":
        time.sleep(3)
        return
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="Timed out waiting 1000ms"):
        torch.distributed.all_reduce(torch.ones(1), group=group)
    assert time.monotonic() - started < 3
