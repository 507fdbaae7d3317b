"""Get a dataset's files: from the addresses of its card, or from the archive of its DOI (Zenodo, Figshare, Dataverse).

pooch knows the archives and the checksums. The transfer is our own, because pooch starts anew whenever a connection
breaks: here a broken transfer waits in `NAME.part` and goes on from there, in this run or in the next.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from foundation import __version__
from foundation.console import Progress, say
from foundation.data.card_format import Download
from foundation.data.cards import DatasetCard
from foundation.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import requests
    from pooch.downloaders import DataRepository

TIMEOUT_SECONDS = (15.0, 60.0)
"""For the connection, and between two pieces of the answer."""
HEADERS = {"User-Agent": f"foundation-hep/{__version__}", "Accept-Encoding": "identity"}
CHUNK_BYTES = 1 << 16
LONGEST_WAIT_SECONDS = 60.0
MAY_PASS = {408, 425, 429, 500, 502, 503, 504}
"""Answers of a server that may be better in a moment."""
CHECKSUM = re.compile(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file to be fetched: its name below the folder, its address and its checksum, "md5:..." or "sha256:..."."""

    name: str
    url: str
    checksum: str
    bytes: int | None = None


@dataclass(frozen=True)
class Patience:
    """How often a transfer that makes no headway is tried, and the first wait; every further wait is twice as long."""

    tries: int = 5
    wait_seconds: float = 2.0


DEFAULT_PATIENCE = Patience()


class _Interrupted(Exception):
    """The server or the network failed in a way that may pass."""


def download(
    card: DatasetCard,
    to: Path,
    files: Sequence[str] = (),
    archive_url: str | None = None,
    patience: Patience = DEFAULT_PATIENCE,
) -> list[Path]:
    """Fetch the files of a card into the folder `to`; those that are there with the right checksum are kept.

    files:       names, or patterns of names, of the files wanted; all of them where it is empty
    archive_url: address of the archive's page, where doi.org is not to be asked for it

    Returns the paths, in the order of the card. Raises DataError when a file cannot be had, is not what the card says,
    or does not fit on the disk; what was there before is still there then.
    """
    paths = []
    for file in remote_files(card, files, archive_url):
        path = to / file.name
        if path.is_file() and checksum_of(path, file.checksum) == file.checksum:
            say(f"  {path}: already there, the checksum is right")
        else:
            _fetch(file, path, patience)
            say(f"  {path}: {path.stat().st_size} bytes, the checksum is right")
        paths.append(path)
    return paths


def remote_files(card: DatasetCard, files: Sequence[str] = (), archive_url: str | None = None) -> list[RemoteFile]:
    """The files of a card that are named in `files` (all without), their addresses and checksums.

    The archive of the card's DOI is asked for what the card does not say; without a list, all its files are taken.
    """
    listed = card.files.download if card.files else ()
    manual = card.files.manual if card.files else None
    if not listed and manual:
        raise DataError(f"the files of '{card.name}' cannot be fetched by a program: {manual}")
    if not listed and not card.doi:
        raise DataError(f"card '{card.name}' does not say where its files are: it has no files.download and no doi")
    silent = not listed or any(file.url is None or file.checksum is None for file in listed)
    archive = archive_files(_repository(card.doi, archive_url)) if silent and card.doi else {}
    wanted = listed or tuple(Download(name=name) for name in archive)
    return [_complete(card, file, archive) for file in _chosen(card, wanted, files)]


def archive_files(repository: DataRepository) -> dict[str, RemoteFile]:
    """All files of an archive, by name, as its own record gives them."""
    import requests

    found = SimpleNamespace(registry={})  # all that pooch fills of a Pooch
    try:
        repository.populate_registry(found)
        return {name: RemoteFile(name, repository.download_url(name), sums) for name, sums in found.registry.items()}
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the archive's record cannot be read ({error!r}); try again later") from error


def checksum_of(path: Path, like: str) -> str:
    """Checksum of a file in the manner of `like`: "md5:..." or "sha256:..."."""
    import pooch

    algorithm = like.partition(":")[0]
    return f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"


def _repository(doi: str, archive_url: str | None) -> DataRepository:
    """Which kind of archive holds this DOI; pooch asks doi.org, and then the archive."""
    import requests
    from pooch import downloaders

    settings = {"timeout": TIMEOUT_SECONDS, "headers": HEADERS}
    kinds = (downloaders.FigshareRepository, downloaders.ZenodoRepository, downloaders.DataverseRepository)
    try:
        if archive_url is None:
            return downloaders.doi_to_repository(doi, **settings)
        found = (kind.initialize(doi, archive_url, **settings) for kind in kinds)
        repository = next((repository for repository in found if repository is not None), None)
    except (requests.RequestException, ValueError) as error:
        raise DataError(f"the archive of doi {doi} cannot be asked for its files ({error}); try again later") from error
    if repository is None:
        raise DataError(f"{archive_url}: not an archive of Zenodo, Figshare or Dataverse that holds doi {doi}")
    return repository


def _chosen(card: DatasetCard, listed: Sequence[Download], patterns: Sequence[str]) -> list[Download]:
    for pattern in patterns:
        if not any(fnmatch(file.name, pattern) for file in listed):
            known = [file.name for file in listed]
            raise DataError(f"card '{card.name}' has no file '{pattern}'{did_you_mean(pattern, known)}")
    return [file for file in listed if not patterns or any(fnmatch(file.name, pattern) for pattern in patterns)]


def _complete(card: DatasetCard, file: Download, archive: Mapping[str, RemoteFile]) -> RemoteFile:
    """A file of the card with what the archive says of it; the card is believed first."""
    _check_name(card, file.name)
    there = archive.get(file.name) or archive.get(PurePosixPath(file.name).name)
    url, checksum = file.url or (there and there.url), file.checksum or (there and there.checksum)
    if not url:
        near = did_you_mean(file.name, archive)
        raise DataError(f"card '{card.name}': the archive {card.doi or ''} has no file '{file.name}'{near}")
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"card '{card.name}': '{url}' is not an address of the web; it must begin with https://")
    if not checksum:
        raise DataError(f"card '{card.name}' gives no checksum for '{file.name}': add it, or fetch {url} by hand")
    if not CHECKSUM.fullmatch(checksum):
        raise DataError(f"card '{card.name}': '{checksum}' is not a checksum; write md5:... or sha256:...")
    return RemoteFile(file.name, url, checksum, file.bytes)


def _check_name(card: DatasetCard, name: str) -> None:
    """Nothing is ever written outside the chosen folder, whatever a card or an archive says."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name or ":" in parts[0]:
        raise DataError(f"card '{card.name}': '{name}' is not a name below the chosen folder")


def _fetch(file: RemoteFile, path: Path, patience: Patience) -> None:
    """Bring one file under its final name, if what came has the right checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    continued = _size(part) > 0
    _transfer(file, part, patience)
    got = checksum_of(part, file.checksum)
    if got != file.checksum and continued:
        say(f"  {part}: what was left of an earlier transfer does not fit; starting anew")
        part.unlink()
        _transfer(file, part, patience)
        got = checksum_of(part, file.checksum)
    if got != file.checksum:
        part.unlink()
        raise DataError(
            f"{file.url}: the checksum of what came is {got}, but must be {file.checksum}; nothing of it was kept: try "
            "again, and if it stays so, see whether the dataset has a new version that the card does not know"
        )
    os.replace(part, path)


def _transfer(file: RemoteFile, part: Path, patience: Patience) -> None:
    """Fill `part` to the end, going on after interruptions as long as each try brings it further than all before."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            return _receive(file, part)
        except _Interrupted as error:
            failures = failures + 1 if _size(part) <= furthest else 1
            furthest = max(furthest, _size(part))
            if failures >= patience.tries:
                raise DataError(
                    f"{file.url}: {error}; {_size(part)} bytes are kept in {part}: give the same command again to go on"
                ) from error
            time.sleep(min(patience.wait_seconds * 2 ** (failures - 1), LONGEST_WAIT_SECONDS))


def _receive(file: RemoteFile, part: Path) -> None:
    """One request for what `part` still lacks."""
    import requests

    have = _size(part)
    if have and have == file.bytes:
        return
    headers = HEADERS | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(file.url, stream=True, headers=headers, timeout=TIMEOUT_SECONDS) as answer:
            if have and answer.status_code == requests.codes.requested_range_not_satisfiable:
                return _nothing_more(file, part, answer)
            _check_status(file, answer)
            start, total = _start_and_total(answer, part)
            _check_size(file, part, start, total)
            with Progress(part.stem, total or 0, "bytes") as progress, open(part, "r+b" if start else "wb") as out:
                out.seek(start)
                progress.advance(start)
                for chunk in answer.iter_content(CHUNK_BYTES):
                    out.write(chunk)
                    progress.advance(len(chunk))
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _Interrupted(f"the connection failed ({error})") from error
    except requests.RequestException as error:
        raise DataError(f"{file.url}: cannot be fetched ({error})") from error
    if total is not None and _size(part) != total:
        raise _Interrupted(f"the connection ended after {_size(part)} of {total} bytes")


def _check_status(file: RemoteFile, answer: requests.Response) -> None:
    status = f"the server answers {answer.status_code} {answer.reason}"
    if answer.status_code in MAY_PASS:
        raise _Interrupted(status)
    if answer.status_code not in (200, 206):
        raise DataError(f"{file.url}: {status}; see whether the file has moved, and correct the card")


def _start_and_total(answer: requests.Response, part: Path) -> tuple[int, int | None]:
    """Where in the file the answer begins, and the size of the whole file where the server says it.

    A server that knows no ranges sends the whole file, which is then taken from the start.
    """
    if answer.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != _size(part):
            part.unlink()
            raise _Interrupted("the server sent another piece of the file than was asked for")
        return _size(part), None if match[2] == "*" else int(match[2])
    length = answer.headers.get("Content-Length")
    # Of an answer that is packed for the way, the length says nothing about the file.
    return 0, int(length) if length and "Content-Encoding" not in answer.headers else None


def _check_size(file: RemoteFile, part: Path, start: int, total: int | None) -> None:
    if total is None:
        return
    if file.bytes is not None and total != file.bytes:
        raise DataError(
            f"{file.url}: the server has a file of {total} bytes, the card one of {file.bytes}: see whether the "
            "dataset has a new version that the card does not know"
        )
    free = shutil.disk_usage(part.parent).free
    if total - start > free:
        raise DataError(f"{part.parent}: {free} bytes are free, but {file.name} needs {total - start} more")


def _nothing_more(file: RemoteFile, part: Path, answer: requests.Response) -> None:
    """The server has nothing after what we have: that is all, or we have something else."""
    if answer.headers.get("Content-Range") != f"bytes */{_size(part)}":
        part.unlink()
        raise _Interrupted("what was left of an earlier transfer is longer than the file")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
