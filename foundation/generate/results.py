"""The files that a campaign leaves: its parts joined in order, in constant memory, and a report beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.console import say
from foundation.data.cards import DatasetCard
from foundation.data.files import write_point_cloud_parts
from foundation.errors import DataError
from foundation.generate.campaign_folder import CampaignFolder, require_same
from foundation.generate.own_format import write_own_format
from foundation.stream.whole_files import write_json

REPORT, PARTS = ".json", ".parts"
"""Added to the name of the first file."""


@dataclass(frozen=True)
class Outputs:
    """Which files to write: point clouds of the platform, the dataset's own format, or both.

    assume: quantity -> value for all objects, where the own format needs what the clouds do not have
    """

    foundation: Path | None = None
    own: Path | None = None
    assume: Mapping[str, float] = field(default_factory=dict)

    @property
    def first(self) -> Path:
        """The file that the report and the folder of the parts are named after."""
        path = self.foundation or self.own
        assert path is not None
        return path

    @property
    def report(self) -> Path:
        """The report."""
        return self.first.with_name(self.first.name + REPORT)

    @property
    def parts(self) -> Path:
        """The folder of the parts, which is removed at the end."""
        return self.first.with_name(self.first.name + PARTS)

    def finished(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The report, where this campaign has ended before. Raises DataError where the files are of another one."""
        try:
            report: dict[str, Any] = json.loads(self.report.read_text())
            found, files = report["campaign"], report["files"]
        except (OSError, ValueError, KeyError, TypeError):
            there = [path for path in (self.foundation, self.own) if path is not None and path.exists()]
            if there and not self.parts.is_dir():
                raise DataError(
                    f"{there[0]}: exists already, and is not overwritten; choose another name, or remove it"
                ) from None
            return None
        require_same(found, identity, self.first)
        return report if all((self.first.parent / name).is_file() for name in files) else None


def write_results(
    card: DatasetCard, folder: CampaignFolder, outputs: Outputs, provenance: dict[str, Any]
) -> tuple[list[Path], dict[str, int]]:
    """Join all parts; the files, and counts of what only the own format leaves out."""
    files: list[Path] = []
    left_out: dict[str, int] = {}
    if outputs.foundation is not None:
        objects = folder.parts[-1].last
        write_point_cloud_parts(outputs.foundation, folder.clouds(), objects, folder.points(), provenance, synced=True)
        files.append(outputs.foundation)
    if outputs.own is not None:
        attributes = {"provenance": json.dumps(provenance, sort_keys=True)}
        # what a killed run leaves there goes with the folder
        scratch = folder.path / "own" / outputs.own.name
        written, notes, left_out = write_own_format(card, folder.clouds, scratch, outputs.assume, attributes)
        files += [path.replace(outputs.own.with_name(path.name)) for path in written]
        for note in notes:
            say(f"  {outputs.own.name}: {note}")
    return files, {name: n for name, n in left_out.items() if n}


def write_report(outputs: Outputs, report: dict[str, Any]) -> None:
    """Write the report; with it the campaign is finished."""
    write_json(outputs.report, report)
