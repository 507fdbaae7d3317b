"""Simulate a whole dataset: one job per split, class and shard, over several processes, resumable at any moment.

What a file holds depends on its job alone (card, seed, number of objects), never on the number of workers or on what
was finished before. Files appear complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

import h5py

from foundation.console import Progress
from foundation.data.cards import DatasetCard, Geant4Showers, PythiaJets
from foundation.data.files import write_point_clouds
from foundation.data.interrupts import interrupts_held_back
from foundation.data.point_clouds import PointClouds
from foundation.data.simulate.geant4 import GEANT4_SOFTWARE, geant4_showers
from foundation.data.simulate.gflash import SHOWER_SOFTWARE, showers_and_provenance
from foundation.data.simulate.pythia_jets import JET_SOFTWARE, MAX_PYTHIA_SEED, jets_and_provenance
from foundation.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Job:
    """One file of simulated objects of one class."""

    card: DatasetCard
    class_name: str
    count: int
    seed: int
    path: Path

    @property
    def identity(self) -> dict[str, object]:
        """What the content of the file follows from; equal identities have equal files."""
        card = json.dumps(self.card.model_dump(mode="json"), sort_keys=True)
        return {
            "card": self.card.name,
            "card_sha256": hashlib.sha256(card.encode()).hexdigest(),
            "class": self.class_name,
            "count": self.count,
            "seed": self.seed,
            "software": software_versions(*_software(self.card)),
        }


def run_campaign(
    card: DatasetCard,
    objects: Mapping[str, int],
    seed: int,
    folder: Path,
    workers: int,
    shard_size: int = 500,
    classes: tuple[str, ...] = (),
) -> dict[str, list[Path]]:
    """Simulate objects[split] objects of every split, divided evenly over these classes, or all of the card.

    Returns the files of each split, folder/split/class-00000.h5 and so on, sorted by class and number. A file that an
    earlier run of the same job finished is kept. With one worker everything happens in this process.

    Raises DataError when the card has no simulator, a number makes no sense, a job fails, or a process dies.
    """
    jobs = campaign_jobs(card, objects, seed, folder, shard_size, classes)
    if workers < 1:
        raise DataError(f"{workers} workers cannot simulate anything: give at least 1")
    todo = [job for split in jobs.values() for job in split if not is_finished(job)]
    total = sum(job.count for split in jobs.values() for job in split)
    with Progress(f"simulating {card.name}", total, "objects") as progress:
        progress.advance(total - sum(job.count for job in todo))
        if workers == 1:
            for job in todo:
                run_job(job)
                progress.advance(job.count)
        elif todo:
            _run_parallel(todo, min(workers, len(todo)), progress)
    return {split: [job.path for job in of_split] for split, of_split in jobs.items()}


def campaign_jobs(
    card: DatasetCard,
    objects: Mapping[str, int],
    seed: int,
    folder: Path,
    shard_size: int,
    classes: tuple[str, ...] = (),
) -> dict[str, list[Job]]:
    """The jobs of each split; the first classes get one object more where the number does not divide evenly.

    What a class's files hold does not depend on which other classes are made.
    """
    if card.simulator is None:
        raise DataError(f"card '{card.name}' has no simulator: its data must be imported from files")
    if shard_size < 1:
        raise DataError(f"shard_size is {shard_size}: a file holds at least 1 object")
    for name in classes:
        if name not in card.classes:
            raise DataError(f"card '{card.name}' has no class '{name}'{did_you_mean(name, card.classes)}")
    classes = classes or card.classes or (card.domain,)
    jobs: dict[str, list[Job]] = {}
    for split, number in objects.items():
        if number < 0:
            raise DataError(f"{number} objects are asked for in split '{split}'")
        jobs[split] = []
        for position, class_name in enumerate(classes):
            of_class = number // len(classes) + (position < number % len(classes))
            for index, first in enumerate(range(0, of_class, shard_size)):
                path = folder / split / f"{class_name}-{index:05d}.h5"
                job_seed = derived_seed(seed, card.name, split, class_name, index)
                jobs[split].append(Job(card, class_name, min(shard_size, of_class - first), job_seed, path))
    return jobs


def derived_seed(seed: int, *names: str | int) -> int:
    """A seed of its own for every job, from 1 to the largest that Pythia takes."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return 1 + int.from_bytes(digest[:8], "big") % MAX_PYTHIA_SEED


@cache
def software_versions(*packages: str) -> dict[str, str]:
    """Installed versions of these packages: simulated bits are the same only within the same versions."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def is_finished(job: Job) -> bool:
    """Whether the job's file is there, readable, and made by the same job."""
    try:
        with h5py.File(job.path) as f:
            return json.loads(f.attrs["provenance"])["job"] == job.identity
    except (OSError, KeyError, ValueError, TypeError):
        return False


def run_job(job: Job) -> None:
    """Simulate the objects of one job and write its file."""
    clouds, details = _simulate(job)
    write_point_clouds(job.path, clouds, {"job": job.identity, "details": details})


def _simulate(job: Job) -> tuple[PointClouds, dict[str, object]]:
    if isinstance(job.card.simulator, PythiaJets):
        return jets_and_provenance(job.card, job.class_name, job.count, job.seed)
    class_name = job.class_name if job.card.classes else None
    if isinstance(job.card.simulator, Geant4Showers):
        return geant4_showers(job.card, job.count, job.seed, class_name=class_name)
    return showers_and_provenance(job.card, job.count, job.seed, class_name=class_name)


def _software(card: DatasetCard) -> tuple[str, ...]:
    """Packages that the simulated bits depend on."""
    if isinstance(card.simulator, PythiaJets):
        return JET_SOFTWARE
    return GEANT4_SOFTWARE if isinstance(card.simulator, Geant4Showers) else SHOWER_SOFTWARE


def _run_parallel(jobs: list[Job], workers: int, progress: Progress) -> None:
    """Run the jobs in `workers` processes; whatever ends this process, or this function, ends them too."""
    with _workers(workers) as executor:
        with interrupts_held_back():
            running: dict[Future[None], Job] = {executor.submit(run_job, job): job for job in jobs}
        for future in as_completed(running):
            try:
                future.result()
            except BrokenProcessPool:
                raise DataError(
                    "a simulation process died, perhaps for lack of memory; run again with fewer workers: "
                    "finished files are kept"
                ) from None
            progress.advance(running[future].count)


@contextmanager
def _workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when the block is left by an error, or when this process dies in whatever way.

    They hold the read end of a pipe whose write end is ours alone: it closes when we close it, and when we are killed.
    """
    context = multiprocessing.get_context("spawn")
    read_end, write_end = context.Pipe(duplex=False)
    with read_end, write_end:
        executor = ProcessPoolExecutor(number, mp_context=context, initializer=_start_worker, initargs=(read_end,))
        try:
            yield executor
        except BaseException:
            write_end.close()
            executor.shutdown(wait=True, cancel_futures=True)
            raise
        executor.shutdown(wait=True)


def _start_worker(read_end: Connection) -> None:
    """First thing in a worker: watch the pipe to the parent."""
    threading.Thread(target=_end_with_parent, args=(read_end,), daemon=True).start()


def _end_with_parent(read_end: Connection) -> None:
    try:
        read_end.recv()
    except (EOFError, OSError):
        os._exit(1)
