"""Run one function on many items: in this process, in processes of this machine, or on a running Dask cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from foundation.console import say
from foundation.data.interrupts import interrupts_held_back
from foundation.errors import DataError

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")

ANSWER_SECONDS = 20.0
"""How long a scheduler has to answer."""
LOCAL_SETTINGS = {
    # A worker that has used much memory would otherwise be paused, and wait for ever for memory that is not given back.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # What killed one worker for lack of memory kills the next one too.
    "distributed.scheduler.allowed-failures": 0,
}


class Run(Protocol):
    """Gives the place of each item and what the function makes of it, in the order in which they are ready."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]: ...


@contextmanager
def running(workers: int = 1, scheduler: str | None = None) -> Iterator[Run]:
    """How to run a function on items: here with one worker, in `workers` processes, or on the cluster at `scheduler`.

    Functions and items travel to the workers as pickles, so a function must be one of a module. Leaving the block, by
    an error or Ctrl-C too, ends the processes that were started for it; a cluster of others goes on.

    Raises DataError when the scheduler does not answer or is lost, and when a worker dies or lacks this package.
    """
    if workers < 1:
        raise DataError(f"{workers} workers cannot do anything: give at least 1")
    if scheduler is None and workers == 1:
        yield _run_here
        return
    with _local_client(workers) if scheduler is None else _client_of(scheduler) as client:
        yield lambda function, items: _run_on(client, scheduler, function, items)


def _run_here(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
    return ((place, function(item)) for place, item in enumerate(items))


def _run_on(
    client: Client, scheduler: str | None, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[int, Result]]:
    from distributed import KilledWorker, as_completed

    where = f"of {scheduler}" if scheduler else "of this machine"
    futures = client.map(function, items, pure=False)
    places = {future.key: place for place, future in enumerate(futures)}
    try:
        for future in as_completed(futures, loop=client.loop):
            yield places[future.key], future.result()
    except KilledWorker:
        raise DataError(
            f"a worker process {where} died, perhaps for lack of memory; run again with fewer workers: finished parts "
            "are kept"
        ) from None
    except CancelledError:
        raise DataError(f"the workers {where} were lost; run again: finished parts are kept") from None
    except ImportError as error:
        raise DataError(f"the workers {where} cannot load this package ({error}): install it where they run") from None


@contextmanager
def _local_client(workers: int) -> Iterator[Client]:
    """A cluster of our own. Its processes end with this one, in whatever way it ends."""
    import dask.config
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    with dask.config.set(LOCAL_SETTINGS):
        with interrupts_held_back():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=MEMORY_LIMIT // workers,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client


@contextmanager
def _client_of(scheduler: str) -> Iterator[Client]:
    """A client of a cluster that is there already."""
    from distributed import Client

    if _workers_of(scheduler) == 0:
        say(f"  {scheduler} has no workers yet: waiting for them")
    with Client(scheduler, timeout=ANSWER_SECONDS, set_as_default=False) as client:
        yield client


def _workers_of(scheduler: str) -> int:
    """How many workers a scheduler has.

    It is asked before there is a Client, which would go on trying for long when there is no such scheduler.
    """
    from distributed.core import rpc

    async def identity() -> dict[str, Any]:
        async with rpc(scheduler, timeout=ANSWER_SECONDS) as connection:
            return await asyncio.wait_for(connection.identity(), ANSWER_SECONDS)

    try:
        # In a thread of its own, because a notebook has its own event loop in this one.
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(asyncio.run, identity()).result()
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"no Dask scheduler answers at '{scheduler}' ({error or 'it says something else'}); give the address that "
            "it prints when it starts, such as tcp://host:8786"
        ) from None
    if found.get("type") != "Scheduler":
        raise DataError(f"'{scheduler}' is the address of a Dask {found.get('type')}, not of its scheduler")
    return len(found["workers"])
