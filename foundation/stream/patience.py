"""How long a failing server is asked again, and which failures are worth it."""

from __future__ import annotations

import errno
import random
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from foundation.console import warn
from foundation.errors import DataError

Answer = TypeVar("Answer")

ASK_AGAIN = {408, 425, 429}
"""HTTP statuses below 500 that pass: timeout, too early, too many requests."""
PASSING_NAMES = {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "gaierror"}
"""Dropped or refused connections as aiohttp, botocore and the name server call them. aiohttp finds half an answer to be
of status 400, so these count before any status."""
PASSING_ERRNO = {errno.EIO, errno.EBUSY, errno.EREMOTEIO, errno.ENETUNREACH, errno.EHOSTUNREACH}
CREDENTIALS = "set the credentials that this protocol reads (environment, its own files, fsspec's configuration)"

# not the global generator: its state belongs to the user, and retries must not change what a run computes
_jitter = random.SystemRandom()


class Unfinished(Exception):
    """An answer that came, but not whole: worth asking again."""


class MissingFile(DataError):
    """The server says that there is no such file."""


@dataclass(frozen=True)
class Patience:
    """Waits between tries double from `first_wait` to `longest_wait` seconds, each cut by up to half at random."""

    attempt_seconds: float = 60.0
    total_seconds: float = 300.0
    most_tries: int = 20
    first_wait: float = 0.5
    longest_wait: float = 30.0

    def call(self, action: Callable[[float], Answer], where: str) -> Answer:
        """`action(seconds it may take)`, again while it fails in a way that passes.

        Raises DataError naming `where`: at once for a file that is missing or refused, else when time or tries are up.
        """
        started, tries = time.monotonic(), 0
        while True:
            tries += 1
            left = self.total_seconds - (time.monotonic() - started)
            try:
                return action(max(0.001, min(self.attempt_seconds, left)))
            except DataError:
                raise
            except Exception as error:
                if not passes(error):
                    raise refusal(where, error) from error
                cause = error
            wait = min(self.longest_wait, self.first_wait * 2 ** (tries - 1)) * _jitter.uniform(0.5, 1.0)
            spent = time.monotonic() - started
            if tries >= self.most_tries or spent + wait > self.total_seconds:
                raise DataError(
                    f"{where}: not read; tried {tries} times in {spent:.1f} s, the last time: {describe(cause)}; "
                    "check the server and the network, then start again: a training goes on from its last checkpoint"
                ) from cause
            if tries == 3:
                warn(f"{where}: tried {tries} times ({describe(cause)}); trying for {self.total_seconds:.0f} s in all")
            time.sleep(wait)


def passes(error: BaseException) -> bool:
    """Whether asking again may help."""
    chain = _chain(error)
    if any(isinstance(e, ssl.CertificateError) for e in chain) or "ClientConnectorCertificateError" in _names(chain):
        return False
    if any(isinstance(e, Unfinished | TimeoutError | ConnectionError) for e in chain) or PASSING_NAMES & _names(chain):
        return True
    status = _status(chain)
    if status is not None:
        return status in ASK_AGAIN or status >= 500
    return isinstance(error, OSError) and error.errno in PASSING_ERRNO


def refusal(where: str, error: BaseException) -> DataError:
    """What a user is told about a failure that does not pass."""
    chain = _chain(error)
    status = _status(chain)
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return MissingFile(f"{where}: missing; check the address, or copy the dataset there again")
    if status in (401, 403) or isinstance(error, PermissionError):
        return DataError(f"{where}: access refused ({describe(error)}): {CREDENTIALS}")
    if any("Credentials" in name for name in _names(chain)):
        return DataError(f"{where}: no credentials found ({describe(error)}): {CREDENTIALS}")
    if status == 416:
        return DataError(f"{where}: shorter than the manifest says; copy the file there again")
    return DataError(f"{where}: cannot be read: {describe(error)}")


def describe(error: BaseException) -> str:
    """One line about a failure, without tokens that its address may hold."""
    chain = _chain(error)
    if isinstance(error, FileNotFoundError) and len(chain) > 1:  # what fsspec makes of any failure to ask for a size
        return describe(chain[1])
    status = None if PASSING_NAMES & _names(chain) else _status(chain)
    if status is not None:
        text = getattr(chain[-1], "message", "") or str(error.args[-1] if error.args else "")
        return f"HTTP status {status}" if "://" in text or not text else f"HTTP status {status}, {text}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, Unfinished):
        return str(error)
    return re.sub(r"(?<=://)[^/\s]*@|\?\S+", "", f"{type(error).__name__}: {error}").rstrip(": ")


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _names(chain: list[BaseException]) -> set[str]:
    return {base.__name__ for error in chain for base in type(error).__mro__}


def _status(chain: list[BaseException]) -> int | None:
    """The HTTP status behind an error: aiohttp keeps it in `status`, gcsfs in `code`, botocore in `response`."""
    for error in chain:
        response = getattr(error, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        for status in (getattr(error, "status", None), getattr(error, "code", None), metadata.get("HTTPStatusCode")):
            if isinstance(status, int) and status >= 100:
                return status
    return None
