"""Many objects of a dataset from a model: in memory, or in files by parts, over ranks and workers, and resumable.

Parts of some thousand objects are made by whoever comes to them, in any order: what is in a part follows from the
model, the settings and its objects' numbers alone. A campaign that was killed goes on where it stood.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.console import Progress, say, warn
from foundation.data.cards import DatasetCard
from foundation.data.dask_workers import running
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.generate.campaign_folder import CampaignFolder, Part, parts_of, wait_for
from foundation.generate.conditions import clouds_of, objects_of_file
from foundation.generate.corrections import INCIDENT, Calibration, calibration_of
from foundation.generate.decoding import decoded, energy_sums
from foundation.generate.generator import COUNTS, Generated, Wanted
from foundation.generate.opening import Opened, device_name, generator_of, identity_of, open_campaign
from foundation.generate.own_format import own_places, try_own_format
from foundation.generate.request_config import CampaignSettings
from foundation.generate.results import Outputs, write_report, write_results
from foundation.generate.sampling_config import SamplingConfig
from foundation.model.transformer import Transformer
from foundation.tokens.layout import Layout
from foundation.tokens.tokenizer import Tokenizer

__all__ = ["Generated", "Outputs", "decoded", "generate", "run_campaign"]
PART_POINTS, MOST_OF_A_PART = 2_000_000, 4096
"""Points of a part, about, and its objects, at most: what a killed campaign has to make again."""
APART = 2**60
"""Number of the first object that a calibration is fitted on; a campaign has none so far on."""


def generate(
    model: Transformer,
    layout: Layout,
    tokenizer: Tokenizer,
    card: DatasetCard,
    labels: NDArray[np.int64],
    conditions: NDArray[np.float32],
    *,
    seed: int,
    config: SamplingConfig,
    batch: int = 0,
) -> Generated:
    """Generate one cloud per label [B] (-1: any class) and row of conditions [B, C] (NaN: any), in memory.

    The result for object i depends on the model, the seed and i only, not on `batch`: objects that are sampled at the
    same time, 0 for as many as suit the sampler.
    """
    if len(labels) == 0:
        raise DataError("nothing to generate: no objects were asked for")
    generator = generator_of(model, layout, tokenizer, card, seed, config, batch)
    parts = parts_of(len(labels), part_size(config))
    wanted = [Wanted(p.index, labels[p.first : p.last], conditions[p.first : p.last]) for p in parts]
    with Progress(f"generate {card.tag}", len(labels), "objects") as progress:
        made = dict(generator.parts(wanted, progress.advance))
    clouds = PointClouds.concatenate([made[number].clouds for number in range(len(parts))])
    return Generated(clouds, _summed([one.report for one in made.values()]))


def part_size(config: SamplingConfig) -> int:
    """Objects of a part."""
    return int(np.clip(PART_POINTS // config.max_points, 50, MOST_OF_A_PART))


@dataclass(frozen=True)
class Job:
    """What a worker must know to make parts; it travels as a pickle."""

    home: str
    settings: str
    slots: int
    folder: CampaignFolder
    calibration: Calibration | None = None

    @property
    def opened(self) -> Opened:
        """The campaign, with what is done to objects after they are drawn."""
        opened = open_campaign(self.home, self.settings, self.slots)
        generator = replace(opened.generator, reject=opened.settings.reject, calibration=self.calibration)
        return replace(opened, generator=generator)


def run_campaign(
    home: Path,
    settings: CampaignSettings,
    outputs: Outputs,
    *,
    source: str = "",
    slots: int = 0,
    workers: int = 1,
    scheduler: str | None = None,
    part_objects: int = 0,
) -> dict[str, Any] | None:
    """Generate the objects of a campaign with the model in the folder `home`, and write its files and its report.

    source:       what the model is called in the files
    slots:        objects that are sampled at the same time, 0 for as many as suit the sampler
    workers, scheduler: processes of this machine, or the address of a running Dask cluster, as for imports
    part_objects: objects of a part; 0 chooses

    Under a launcher (accelerate, torchrun) each rank makes its share of the parts; rank 0 joins them. Returns the
    report, on ranks above 0 None. Raises DataError where the folder or the files are of another campaign.
    """
    opened = open_campaign(str(home.resolve()), settings.model_dump_json(), slots)
    identity = identity_of(home, opened, part_objects or part_size(settings.sampling))
    parts = parts_of(settings.objects, identity["part_objects"])
    folder = CampaignFolder(outputs.parts.resolve(), identity, parts)
    report = outputs.finished(identity)
    if report is None:
        folder.enter()
        if _rank() == 0 and outputs.own is not None:
            _require_own_format(opened, outputs)
        job = Job(str(home.resolve()), settings.model_dump_json(), slots, folder, _calibration(opened, folder))
        _make_parts(job, parts[_rank() :: _ranks()], workers, scheduler)
        report = _finish(opened.card, job, outputs, source) if _rank() == 0 else outputs.finished(identity)
    if report is not None:
        # also on a rank that came late, when the others had ended: it may have made the folder anew
        folder.remove()
    return report if _rank() == 0 else None


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _require_own_format(opened: Opened, outputs: Outputs) -> None:
    places, longest = own_places(opened.card), opened.settings.sampling.max_points
    if places is not None and places < longest:
        raise DataError(
            f"files of '{opened.card.name}' have {places} places, but objects of up to {longest} points are asked for: "
            f"set max_points to {places}"
        )
    try_own_format(opened.card, opened.example(), outputs.assume)


def _make_parts(job: Job, parts: Sequence[Part], workers: int, scheduler: str | None) -> None:
    todo = [part for part in parts if job.folder.done(part) is None]
    objects = sum(part.last - part.first for part in parts)
    kept = objects - sum(part.last - part.first for part in todo)
    if kept and todo:
        say(f"  {kept} objects are there from an earlier run")
    share = f" (rank 0 of {_ranks()})" if _ranks() > 1 else ""
    with Progress(f"generate {job.opened.card.tag}{share}", objects, "objects", kept) as progress:
        if workers == 1 and scheduler is None:
            _make(job, todo, progress)
        elif todo:
            with running(workers, scheduler) as run:
                for place, _ in run(partial(make_part, job), todo):
                    progress.advance(todo[place].last - todo[place].first)


def _make(job: Job, parts: Sequence[Part], progress: Progress | None = None) -> None:
    """Make parts in this process. They are one stream of objects: none waits for the last ones of the part before."""
    opened, began = job.opened, time.monotonic()
    advance = (lambda objects: None) if progress is None else progress.advance
    for number, made in opened.generator.parts(map(opened.wanted, parts), advance):
        now = time.monotonic()
        job.folder.write(parts[number], made, now - began)
        began = now


def make_part(job: Job, part: Part) -> None:
    """Make one part in a worker, which has one core."""
    import torch

    torch.set_num_threads(1)
    if job.folder.done(part) is None:
        _make(job, [part])


# Calibration: found by rank 0 before the first part


def _calibration(opened: Opened, folder: CampaignFolder) -> Calibration | None:
    if opened.settings.calibrate is None:
        return None
    found = folder.calibration()
    if found is None and _rank() == 0:
        found = _fitted_calibration(opened)
        folder.keep_calibration(found)
    return found or wait_for(folder.calibration)


def _fitted_calibration(opened: Opened) -> Calibration:
    """Factors from showers that are generated like those of a truth file, and are not among the campaign's."""
    calibrate, card = opened.settings.calibrate, opened.card
    assert calibrate is not None
    objects = objects_of_file(card, calibrate.truth)
    sums = np.concatenate([energy_sums(clouds) for clouds in clouds_of(card, Path(calibrate.truth))])
    column = [c.name for c in card.conditions].index(INCIDENT)
    # spread over the file, which may be sorted by energy
    rows = np.linspace(0, len(sums) - 1, min(calibrate.objects, len(sums))).astype(np.int64)
    wanted = Wanted(APART + np.arange(len(rows)), objects.labels[rows], objects.conditions[rows])
    generator = replace(opened.generator, reject=opened.settings.reject)
    with Progress(f"calibrate {card.tag}", len(rows), "objects") as progress:
        ((_, made),) = generator.parts([wanted], progress.advance)
    generated = made.clouds.condition(INCIDENT), energy_sums(made.clouds)
    return calibration_of((objects.conditions[:, column], sums), generated, calibrate.bins)


# The end, on rank 0


def _finish(card: DatasetCard, job: Job, outputs: Outputs, source: str) -> dict[str, Any]:
    """Wait for the parts of all ranks, join them, and write the report."""
    folder = job.folder
    done = [wait_for(partial(folder.done, part)) for part in folder.parts]
    counts = _summed([one["report"] for one in done])
    facts: dict[str, Any] = {"generated_by": source or job.home, "weights": folder.identity["weights"]}
    facts["seed"] = folder.identity["settings"]["seed"]
    if job.calibration is not None:
        edges, factors = job.calibration.edges, job.calibration.factors
        facts["calibration"] = {"edges_of_incident_energy": edges, "factors": factors}
    files, left_out = write_results(card, folder, outputs, facts | counts)
    counts |= left_out
    seconds = max(sum(one["seconds"] for one in done), 1e-9)
    speed = {"process_seconds": round(seconds, 3), "objects_per_process_second": round(counts["objects"] / seconds, 3)}
    speed |= {"at_once": min(job.opened.generator.sampler.slots, counts["objects"]), "device": device_name()}
    report = facts | {"counts": counts} | speed | {"files": [path.name for path in files], "campaign": folder.identity}
    if "rejected" in counts:
        report["rejection_rate"] = counts["rejected"] / (counts["rejected"] + counts["objects"])
    write_report(outputs, report)
    _warn(card.tag, counts)
    return report


def _summed(reports: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report)
    return {name: total[name] for name in COUNTS if name in total} | dict(total)


def _warn(tag: str, counts: Mapping[str, int]) -> None:
    """Say what a user must not overlook."""
    cut = counts["reached_max_points"]
    if cut > 0.001 * counts["objects"]:
        warn(
            f"{cut} of {counts['objects']} objects of '{tag}' ended at the most points they may have: raise max_points"
        )
    if counts.get("not_accepted"):
        warn(f"{counts['not_accepted']} objects of '{tag}' were rejected at every try; the last try was kept")
