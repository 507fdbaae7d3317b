"""The folder of a campaign while it runs: what it is, and the parts that are finished.

campaign.json   what every object follows from; a campaign that would make others is refused
FIRST.h5        the objects from number FIRST on, as point clouds; there whole or not at all
calibration.json  factors, once they are found

Any process may end at any moment: what is there is whole, and what is not there is made again, with the same content.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from foundation.data.files import read_point_clouds, write_point_cloud_parts
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, TrainingError
from foundation.generate.corrections import Calibration
from foundation.generate.generator import Generated
from foundation.stream.whole_files import written_whole

SCHEMA = "foundation/campaign/1"
IDENTITY, CALIBRATION = "campaign.json", "calibration.json"
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.02, 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Objects first .. last - 1 of a campaign."""

    first: int
    last: int

    @property
    def file(self) -> str:
        """Name of its file; in the order of the parts."""
        return f"{self.first:012d}.h5"

    @property
    def index(self) -> np.ndarray:
        """Numbers of its objects."""
        return np.arange(self.first, self.last)


def parts_of(objects: int, at_once: int) -> list[Part]:
    """All parts of a campaign."""
    return [Part(first, min(first + at_once, objects)) for first in range(0, objects, at_once)]


@dataclass(frozen=True)
class CampaignFolder:
    """A folder and the campaign that it is of: its identity (JSON) and its parts."""

    path: Path
    identity: dict[str, Any]
    parts: Sequence[Part]

    @property
    def digest(self) -> str:
        """sha256 of the identity: parts carry it."""
        return digest_of(self.identity)

    def enter(self) -> None:
        """Make the folder, or see that it is of this campaign. Raises DataError where it is of another one."""
        if not (self.path / IDENTITY).is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            # by every rank: whoever comes last writes the same
            write_text(self.path / IDENTITY, json.dumps(self.identity, indent=1))
        try:
            found = json.loads((self.path / IDENTITY).read_text())
            assert isinstance(found, dict)
        except (OSError, ValueError, AssertionError):
            raise DataError(
                f"{self.path / IDENTITY}: damaged; remove the folder {self.path.name} to begin this campaign anew"
            ) from None
        require_same(found, self.identity, self.path)

    def done(self, part: Part) -> dict[str, Any] | None:
        """Counts of a finished part (`report`, `seconds`); None where it is not there, or not whole."""
        try:
            with h5py.File(self.path / part.file) as f:
                found: dict[str, Any] = json.loads(f.attrs["provenance"])
                whole = found["campaign"] == self.digest and len(f["labels"]) == part.last - part.first
                return found if whole else None
        except (OSError, KeyError, ValueError, TypeError):
            return None

    def write(self, part: Part, made: Generated, seconds: float) -> None:
        """Keep a part."""
        content: dict[str, object] = {"campaign": self.digest, "report": made.report, "seconds": seconds}
        clouds = made.clouds
        write_point_cloud_parts(self.path / part.file, [clouds], len(clouds), len(clouds.points), content, synced=True)

    def clouds(self) -> Iterator[PointClouds]:
        """The clouds of all parts, a part at a time."""
        return (read_point_clouds(self.path / part.file) for part in self.parts)

    def points(self) -> int:
        """Points of all parts."""
        total = 0
        for part in self.parts:
            with h5py.File(self.path / part.file) as f:
                total += len(f["points"])
        return total

    def calibration(self) -> Calibration | None:
        """The factors, where they are found already."""
        try:
            found = json.loads((self.path / CALIBRATION).read_text())
            return Calibration(tuple(found["edges"]), tuple(found["factors"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_calibration(self, calibration: Calibration) -> None:
        """Keep the factors for the other ranks, and for a later run."""
        content = {"edges": calibration.edges, "factors": calibration.factors}
        write_text(self.path / CALIBRATION, json.dumps(content, indent=1))

    def remove(self) -> None:
        """Remove the folder: the result is written."""
        shutil.rmtree(self.path, ignore_errors=True)


def digest_of(identity: dict[str, Any]) -> str:
    """sha256 of what a campaign is."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def require_same(found: dict[str, Any], wanted: dict[str, Any], where: Path) -> None:
    """Refuse what is of another campaign, and say in what it differs."""
    old, new = _flat(found), _flat(json.loads(json.dumps(wanted)))
    different = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if different:
        key = different[0]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise DataError(
            f"{where}: of another campaign, which differs in {key} ({_short(old.get(key))}, now {_short(new.get(key))})"
            f"{more}; choose another name for the result, or remove {where.name}"
        )


def _flat(data: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) and value else {before + key: value}
    return found


def _short(value: Any) -> str:
    text = "not there" if value is None else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all, also where several processes do so at the same time."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    with written_whole(part) as f:
        f.write(text.encode())
    os.replace(part, path)


def wait_for(look: Callable[[], T | None]) -> T:
    """Look again and again until there is something that another rank makes."""
    launcher, pause = os.getppid(), FIRST_WAIT_SECONDS
    while (found := look()) is None:
        if os.getppid() != launcher:
            raise TrainingError("the launcher of this process is gone, so nobody will end this wait")
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_WAIT_SECONDS)
    return found
