"""Run a function on several gloo ranks by forking: about a second, where starting interpreters takes half a minute."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any


def run_distributed(function: Callable[..., None], world: int, *args: Any) -> None:
    """Call function(*args) on `world` ranks; an exception on any rank fails the test."""
    _import_once()
    import torch.multiprocessing as mp

    mp.start_processes(_entry, args=(world, _free_port(), function, args), nprocs=world, start_method="fork")


def exit_codes(function: Callable[..., None], world: int, *args: Any, seconds: float = 120) -> list[int | None]:
    """The same for ranks that may die: how each ended, None for one that still ran after so many seconds.

    0 is a normal end, 1 an exception, -9 a kill. Nobody ends the others when one dies, as a launcher would.
    """
    _import_once()
    import torch.multiprocessing as mp

    port = _free_port()
    ranks = [mp.get_context("fork").Process(target=_entry, args=(r, world, port, function, args)) for r in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(seconds)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return codes


def _import_once() -> None:
    """Before the fork: every child would spend ten seconds on them."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"
    import accelerate  # noqa: F401
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import torch._dynamo  # noqa: F401


def _entry(rank: int, world: int, port: int, function: Callable[..., None], args: tuple) -> None:
    import torch

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    function(*args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
