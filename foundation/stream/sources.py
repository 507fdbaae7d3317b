"""Files that lie elsewhere: behind a URL that fsspec knows, or behind a command that prints them (`pipe:`)."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import select
import shlex
import signal
import subprocess
import tempfile
import threading
import weakref
from abc import abstractmethod
from dataclasses import replace
from functools import partial
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from fsspec import get_filesystem_class
from fsspec.asyn import reset_lock, sync
from fsspec.config import conf
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.stream.patience import MissingFile, Patience, Unfinished, describe
from foundation.stream.storage import COPY_AGAIN, PIPE, Expected, Storage, array_in

PART_BYTES = 8 << 20
"""A whole file is fetched in parts of this size, so that a cut connection costs one part and not the file."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
COMMAND_TRIES = 3
SHELL_WORDS = {"|", "||", "&", "&&", ";", ">", ">>", "<"}

_connections: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_of_parents: list[Any] = []


def _begin_in_child() -> None:
    # fsspec means to do this itself, but makes another variable anew (seen in 2026.9.0)
    reset_lock()
    # never collected: to close them, fsspec would wait for a thread that only the parent has
    _of_parents.extend(_connections.values())


os.register_at_fork(after_in_child=_begin_in_child)


class RangesIgnored(DataError):
    """The server sends whole files only."""


class Source(Storage):
    """A storage that can also hand over whole files, for a cache to keep."""

    ranges = True
    """Whether parts of a file can be read alone."""

    def __init__(self, folder: str, patience: Patience = Patience()) -> None:  # noqa: B008 (frozen)
        self.patience = patience
        super().__init__(folder)

    @abstractmethod
    def fetch(self, name: str, file: IO[bytes]) -> None:
        """Write a whole file into `file`, which is empty or as long as `expect` said, and check it against that."""

    def array(self, name: str) -> NDArray[Any]:
        with tempfile.TemporaryFile() as file:
            try:
                self.fetch(name, file)
                file.flush()
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise DataError(
                    f"{self.where(name)}: no room for it in {tempfile.gettempdir()} ({error.strerror}): set TMPDIR"
                ) from None
        return array_in(data, self.where(name))

    def check(self, name: str, file: IO[bytes]) -> None:
        """Compare a fetched file with what `expect` announced."""
        expected = self._expected.get(name, Expected(file.tell(), ""))
        if file.tell() != expected.size:
            raise DataError(
                f"{self.where(name)}: has {file.tell()} bytes, the manifest says {expected.size}: {COPY_AGAIN}"
            )
        file.flush()
        file.seek(0)
        if expected.sha256 and hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:  # type: ignore[arg-type]
            raise DataError(f"{self.where(name)}: its sha256 is not what the manifest says: {COPY_AGAIN}")


class UrlSource(Source):
    """Range requests through fsspec, each tried again while its failure is one that passes."""

    _of_this_process = ("_files", "_lock")

    def __init__(self, folder: str, patience: Patience = Patience()) -> None:  # noqa: B008 (frozen)
        self.protocol = folder.split("://")[0]
        super().__init__(folder, patience)
        try:
            # now, not at the first request: a child forked while a thread imports would wait for that thread for ever
            get_filesystem_class(self.protocol)
        except ImportError as error:
            extra = EXTRAS.get(self.protocol)
            remedy = f": pip install 'foundation-hep[{extra}]'" if extra else ""
            raise DataError(f"{self.where('')}: {self.protocol}:// cannot be read here ({error}){remedy}") from None
        except ValueError as error:
            raise DataError(f"{self.where('')}: {error}") from None

    def begin(self) -> None:
        self._files: Any = None
        self._lock = threading.Lock()

    def where(self, name: str) -> str:
        parts = urlsplit(self._url(name))
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))

    def read(self, name: str, start: int, stop: int) -> memoryview:
        if start == stop:
            return memoryview(b"")
        data = self._part(name, start, stop)
        if len(data) > stop - start:
            raise RangesIgnored(
                f"{self.where(name)}: this server ignores range requests and sent {len(data)} bytes instead of "
                f"{stop - start}: give a cache folder (cache: ...), or use another server"
            )
        return memoryview(data)

    def read_all(self, name: str) -> bytes:
        return self.patience.call(partial(self._ask, "cat_file", name), self.where(name))

    def size(self, name: str) -> int:
        info = self.patience.call(partial(self._ask, "info", name), self.where(name))
        if info.get("type") == "directory":
            raise MissingFile(f"{self.where(name)}: is a folder, not a file")
        if info.get("size") is None:
            raise DataError(f"{self.where(name)}: the server does not tell its size: use another server")
        return int(info["size"])

    def exists(self, name: str) -> bool:
        try:
            self.patience.call(partial(self._ask, "info", name), self.where(name))
        except MissingFile:
            return False
        return True

    def fetch(self, name: str, file: IO[bytes]) -> None:
        size = self._expected[name].size if name in self._expected else self.size(name)
        while file.tell() < size:
            start = file.tell()
            data = self._part(name, start, min(start + PART_BYTES, size))
            # a server without range requests sends the whole file at once
            file.write(data)
            if len(data) > PART_BYTES:
                break
        self.check(name, file)

    def _part(self, name: str, start: int, stop: int) -> bytes:
        return self.patience.call(partial(self._ask_part, name, start, stop), self.where(name))

    def _ask_part(self, name: str, start: int, stop: int, seconds: float) -> bytes:
        data = self._ask("cat_file", name, seconds, start=start, end=stop)
        if len(data) < stop - start:
            size = self._ask("info", name, seconds).get("size")
            if size is not None and size < stop:
                raise DataError(f"{self.where(name)}: has {size} bytes, {stop} are needed: {COPY_AGAIN}")
            raise Unfinished(f"{len(data)} of {stop - start} bytes came")
        return data

    def _ask(self, method: str, name: str, seconds: float, **arguments: Any) -> Any:
        files = self._filesystem()
        path = files._strip_protocol(self._url(name))
        if not files.async_impl:
            return getattr(files, method)(path, **arguments)
        return sync(files.loop, getattr(files, "_" + method), path, timeout=seconds, **arguments)

    def _url(self, name: str) -> str:
        parts = urlsplit(self.folder)
        if parts.scheme in ("http", "https"):  # a query (a token) stays behind the path
            return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))
        return f"{self.folder.rstrip('/')}/{name}"

    def _filesystem(self) -> Any:
        with self._lock:
            if self._files is None:
                self._files = self._connect()
            return self._files

    def _connect(self) -> Any:
        try:
            files, _ = url_to_fs(self.folder, skip_instance_cache=True, **_options(self.protocol))
        except ValueError as error:
            raise DataError(f"{self.where('')}: {describe(error)}") from None
        if hasattr(files, "retries"):
            files.retries = 1  # tries of its own would multiply ours
        _connections[id(files)] = files
        return files


def _options(protocol: str) -> dict[str, Any]:
    """What fsspec's file systems are told, beside the user's own configuration of fsspec."""
    users = conf.get(protocol, {})
    if protocol in ("http", "https"):
        headers = {"Accept-Encoding": "identity"} | users.get("headers", {})
        # trust_env: proxies and .netrc, as every other program does
        return {"headers": headers, "client_kwargs": {"trust_env": True} | users.get("client_kwargs", {})}
    if protocol in ("s3", "s3a"):
        retries = {"retries": {"total_max_attempts": 1}}
        return {"use_listings_cache": False, "config_kwargs": retries | users.get("config_kwargs", {})}
    return {}


class CommandSource(Source):
    """WebDataset's `pipe:`: a command whose output is a file; `{name}` stands for the file's name.

    Unlike WebDataset's it is run as it stands, without a shell: a recipe names a program, and not a text to be run.
    """

    ranges = False

    def __init__(self, folder: str, patience: Patience = Patience()) -> None:  # noqa: B008 (frozen)
        if "{name}" not in folder:
            raise DataError(
                f"{folder}: write {{name}} where the command takes the file's name (pipe:cat /data/{{name}})"
            )
        try:
            self.command = shlex.split(folder.removeprefix(PIPE))
        except ValueError as error:
            raise DataError(f"{folder}: {error}") from None
        if SHELL_WORDS & set(self.command):
            raise DataError(f"{folder}: it is run without a shell: put pipes and redirections into a script")
        super().__init__(folder, replace(patience, most_tries=COMMAND_TRIES))

    def where(self, name: str) -> str:
        return self.folder.replace("{name}", name)

    def read(self, name: str, start: int, stop: int) -> memoryview:
        raise DataError(f"{self.where(name)}: the output of a command cannot be read in parts: give a cache folder")

    def read_all(self, name: str) -> bytes:
        file = io.BytesIO()
        self.patience.call(partial(self._run, name, file), self.where(name))
        return file.getvalue()

    def size(self, name: str) -> int:
        return self._expected[name].size if name in self._expected else len(self.read_all(name))

    def exists(self, name: str) -> bool:
        """Whether the command succeeds: it cannot say why it does not."""
        try:
            self._run(name, io.BytesIO(), self.patience.attempt_seconds)
        except Unfinished:
            return False
        return True

    def fetch(self, name: str, file: IO[bytes]) -> None:
        self.patience.call(partial(self._run, name, file), self.where(name))
        self.check(name, file)

    def _run(self, name: str, file: IO[bytes], seconds: float) -> None:
        """Run the command once; `seconds` is how long it may be silent."""
        file.seek(0)
        file.truncate()
        with tempfile.TemporaryFile() as said:
            command = [word.replace("{name}", name) for word in self.command]
            try:
                # a session of its own: the program and all it started are ended together
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, start_new_session=True
                )
            except OSError as error:
                raise DataError(f"{self.where(name)}: {command[0]} cannot be run ({error.strerror})") from None
            try:
                _copy(process, file, seconds)
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise Unfinished(f"the command did not end within {seconds:g} s of its last output") from None
            finally:
                _end(process)
            if status == 0:
                return
            said.seek(0)
            why = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise Unfinished(f"the command ended with status {status} ({why})")


def _copy(process: subprocess.Popen[bytes], file: IO[bytes], silence: float) -> None:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    while True:
        if not poll.poll(silence * 1000):
            raise Unfinished(f"the command said nothing for {silence:g} s")
        data = os.read(descriptor, 1 << 20)
        if not data:
            return
        file.write(data)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    process.stdout.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
