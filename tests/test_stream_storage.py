"""Where shards lie: local folders, range requests, the cache of a node, commands; and everything that fails there."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from foundation.errors import DataError
from foundation.stream import sources, storage
from foundation.stream.cached_storage import CachedStorage
from foundation.stream.patience import Patience
from foundation.stream.shard_cache import ShardCache, Urgency
from foundation.stream.sources import CommandSource, Source, UrlSource
from foundation.stream.storage import LocalStorage, open_storage

from byte_server import ByteServer

QUICK = Patience(attempt_seconds=0.4, total_seconds=10, first_wait=0.01, longest_wait=0.02)
fork = multiprocessing.get_context("fork")


def shard(number: int, size: int = 10_000) -> bytes:
    return np.random.default_rng(number).bytes(size)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def in_child(work: Callable[[], object]) -> object:
    """What `work` gives in a forked process."""
    mine, its = fork.Pipe()
    child = fork.Process(target=lambda: its.send(work()))
    child.start()
    assert mine.poll(20), "the child gives no answer"
    answer = mine.recv()
    child.join()
    return answer


# Local folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "set"
    path.mkdir()
    for i in range(3):
        (path / f"{i}.tar").write_bytes(shard(i))
    return path


def test_local_reads_parts_and_whole_files(folder: Path) -> None:
    local = open_storage(folder)
    assert local.local and bytes(local.read("1.tar", 10, 500)) == shard(1)[10:500]
    assert local.read("1.tar", 10, 500).readonly and len(local.read("1.tar", 7, 7)) == 0
    assert local.read_all("2.tar") == shard(2) and local.size("2.tar") == 10_000
    assert local.exists("0.tar") and not local.exists("9.tar")
    assert local.where("0.tar") == str(folder / "0.tar")
    assert bytes(open_storage(f"file://{folder}").read("0.tar", 0, 5)) == shard(0)[:5]


@pytest.mark.parametrize("array", [np.arange(12, dtype=np.uint16), np.asfortranarray(np.eye(3)), np.zeros((0, 4))])
def test_local_array_is_mapped_and_read_only(folder: Path, array: np.ndarray) -> None:
    (folder / "a.npy").write_bytes(npy(array))
    read = open_storage(folder).array("a.npy")
    assert np.array_equal(read, array) and read.dtype == array.dtype and not read.flags.writeable


def test_local_array_of_records(folder: Path) -> None:
    records = np.zeros(5, [("offset", "<u8"), ("crc32", "<u4")])
    records["crc32"] = np.arange(5)
    (folder / "a.npy").write_bytes(npy(records))
    assert np.array_equal(open_storage(folder).array("a.npy"), records)


def test_array_that_is_none_is_refused(folder: Path) -> None:
    (folder / "objects.npy").write_bytes(npy(np.array([{}, []], object)))
    (folder / "cut.npy").write_bytes(npy(np.arange(100))[:-1])
    (folder / "empty.npy").write_bytes(b"")
    for name, why in {"objects": "Python objects", "cut": "too few", "empty": "0 bytes"}.items():
        with pytest.raises(DataError, match=rf"{name}\.npy.*{why}"):
            open_storage(folder).array(f"{name}.npy")
    with pytest.raises(DataError, match=r"0\.tar: not a \.npy file"):
        open_storage(folder).array("0.tar")


def test_local_file_that_is_not_as_announced(folder: Path) -> None:
    local = open_storage(folder)
    local.expect("0.tar", 9_999)
    with pytest.raises(DataError, match=r"0\.tar: has 10000 bytes, the manifest says 9999"):
        local.read("0.tar", 0, 1)
    for ask in (lambda: local.read("9.tar", 0, 1), lambda: local.read_all("9.tar"), lambda: local.size("9.tar")):
        with pytest.raises(DataError, match=r"9\.tar: missing"):
            ask()
    with pytest.raises(DataError, match=r"1\.tar: bytes 0-10001 asked for, the file has 10000"):
        local.read("1.tar", 0, 10_001)


def test_local_file_that_is_cut_while_open_is_an_error_not_a_crash(folder: Path) -> None:
    local = open_storage(folder)
    local.read("0.tar", 0, 1)
    os.truncate(folder / "0.tar", 10)
    with pytest.raises(DataError, match="the file has 10"):
        local.read("0.tar", 0, 10_000)


@pytest.mark.parametrize("name, sha", [("../0.tar", ""), ("/etc/passwd", ""), ("0.tar", "../../outside")])
def test_a_manifest_cannot_lead_outside_of_the_folder(folder: Path, name: str, sha: str) -> None:
    with pytest.raises(DataError, match="not a file name and sha256"):
        open_storage(folder).expect(name, 1, sha)


def test_few_shards_stay_open_and_views_live_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "OPEN_SHARDS", 1)
    local = LocalStorage(str(folder))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    view = local.read("0.tar", 0, 10_000)
    for i in (1, 2, 1, 2):
        local.read(f"{i}.tar", 0, 1)
    assert bytes(view) == shard(0)
    del view
    assert before is None or len(os.listdir("/proc/self/fd")) == before + 1


def test_local_from_threads_a_fork_and_a_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "OPEN_SHARDS", 2)
    local = LocalStorage(str(folder))
    wrong: list[int] = []

    def read(seed: int) -> bool:
        for i in np.random.default_rng(seed).integers(0, 3, 300):
            if bytes(local.read(f"{i}.tar", 5, 50)) != shard(int(i))[5:50]:
                wrong.append(seed)
        return not wrong

    threads = [threading.Thread(target=read, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    assert in_child(lambda: read(9)) is True  # while threads hold and let go the lock
    for thread in threads:
        thread.join()
    assert not wrong
    assert bytes(pickle.loads(pickle.dumps(local)).read("1.tar", 0, 9)) == shard(1)[:9]


# Range requests


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ByteServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "PART_BYTES", 4_000)
    served = ByteServer()
    served.files = {f"{i}.tar": shard(i) for i in range(6)} | {"a.npy": npy(np.arange(9))}
    yield served
    served.close()


@pytest.fixture
def remote(server: ByteServer) -> UrlSource:
    return UrlSource(server.url, QUICK)


def test_ranges_over_http(server: ByteServer) -> None:
    remote = open_storage(server.url)
    assert not remote.local and bytes(remote.read("1.tar", 100, 200)) == shard(1)[100:200]
    assert server.sent["1.tar"] == 100
    assert remote.read_all("2.tar") == shard(2) and remote.size("2.tar") == 10_000
    assert remote.exists("1.tar") and not remote.exists("9.tar")
    assert np.array_equal(remote.array("a.npy"), np.arange(9)) and len(remote.read("1.tar", 4, 4)) == 0


@pytest.mark.parametrize("faults", [[500, 503], [429], ["cut", "cut"], ["slow"], ["short"], [502, "cut", "slow"]])
def test_what_passes_is_tried_again(server: ByteServer, remote: UrlSource, faults: list[int | str]) -> None:
    server.faults["1.tar"] = list(faults)
    if "short" in faults:
        server.faults["1.tar"].insert(1, "cut")  # the question for the size
    assert bytes(remote.read("1.tar", 100, 200)) == shard(1)[100:200]
    assert server.times("1.tar") == len(faults) + 1


@pytest.mark.parametrize("status, why", [(404, "missing"), (403, "access refused"), (401, "credentials"), (400, "400")])
def test_what_does_not_pass_fails_at_once(server: ByteServer, remote: UrlSource, status: int, why: str) -> None:
    server.faults["1.tar"] = [status] * 2
    with pytest.raises(DataError, match=rf"{server.url}/1\.tar: .*{why}"):
        remote.read("1.tar", 0, 100)
    assert server.times("1.tar") == 1


def test_giving_up_says_where_what_and_how_often(server: ByteServer) -> None:
    server.faults["1.tar"] = [500] * 90 + [503] * 10
    few = Patience(total_seconds=10, most_tries=4, first_wait=0.01)
    with pytest.raises(DataError, match=rf"{server.url}/1\.tar: not read; tried 4 times in .* HTTP status 500"):
        UrlSource(server.url, few).read("1.tar", 0, 100)
    short = Patience(total_seconds=0.3, first_wait=0.02)
    with pytest.raises(DataError, match=r"tried [3-9] times in 0\.\d s"):
        UrlSource(server.url, short).read("1.tar", 0, 100)
    server.faults["1.tar"] = ["slow"] * 9
    with pytest.raises(DataError, match="no answer in time"):
        UrlSource(server.url, Patience(attempt_seconds=0.1, most_tries=2, first_wait=0.01)).read("1.tar", 0, 100)


def test_a_server_that_is_not_there(server: ByteServer) -> None:
    url = server.url
    server.close()
    gone = UrlSource(url, Patience(most_tries=2, first_wait=0.01))
    for ask in (lambda: gone.read("1.tar", 0, 9), lambda: gone.exists("1.tar"), lambda: gone.size("1.tar")):
        with pytest.raises(DataError, match=r"tried 2 times .*Cannot connect"):
            ask()


def test_a_failing_server_is_not_a_missing_file(server: ByteServer) -> None:
    server.faults["1.tar"] = [500] * 100
    with pytest.raises(DataError, match="HTTP status 500"):
        UrlSource(server.url, Patience(most_tries=2, first_wait=0.01)).exists("1.tar")


def test_a_remote_file_that_was_cut(server: ByteServer, remote: UrlSource) -> None:
    with pytest.raises(DataError, match=r"1\.tar: has 10000 bytes, 10001 are needed"):
        remote.read("1.tar", 9_000, 10_001)
    with pytest.raises(DataError, match=r"1\.tar: shorter than the manifest says"):
        remote.read("1.tar", 10_000, 10_001)
    remote.expect("a.npy", 10_000)
    with pytest.raises(DataError, match=r"a\.npy: has \d+ bytes, 4000 are needed"):
        remote.array("a.npy")


def test_a_server_without_ranges_is_named(server: ByteServer, remote: UrlSource) -> None:
    server.ranges = False
    with pytest.raises(DataError, match="ignores range requests.*cache"):
        remote.read("1.tar", 5, 100)
    assert np.array_equal(remote.array("a.npy"), np.arange(9))


def test_tokens_and_passwords_stay_out_of_messages(server: ByteServer) -> None:
    url = server.url.replace("127", "user:secret@127") + "?token=secret"
    assert bytes(UrlSource(url, QUICK).read("1.tar", 0, 9)) == shard(1)[:9]
    for status in (404, 403, 500):
        server.faults["2.tar"] = [status] * 9
        with pytest.raises(DataError) as error:
            UrlSource(url, Patience(most_tries=2, first_wait=0.01)).read("2.tar", 0, 9)
        assert "secret" not in str(error.value) and "127.0.0.1" in str(error.value)


def test_retries_leave_the_users_random_numbers_alone(server: ByteServer, remote: UrlSource) -> None:
    import random

    state = random.getstate()
    server.faults["1.tar"] = [500, 500]
    remote.read("1.tar", 0, 9)
    assert random.getstate() == state


def test_remote_from_threads_a_fork_and_a_pickle(remote: UrlSource) -> None:
    def read() -> bool:
        return all(bytes(remote.read(f"{i}.tar", 5, 50)) == shard(i)[5:50] for i in range(6))

    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(read())) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert in_child(read) is True  # while the parent's connections are in use
    assert in_child(lambda: in_child(read)) is True
    for thread in threads:
        thread.join()
    assert answers == [True] * 4 and read()
    assert bytes(pickle.loads(pickle.dumps(remote)).read("1.tar", 0, 9)) == shard(1)[:9]


def test_any_url_that_fsspec_knows(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/set/1.tar", shard(1))
    remote = open_storage("memory://set")
    assert bytes(remote.read("1.tar", 3, 9)) == shard(1)[3:9] and not remote.exists("2.tar")
    assert remote.where("1.tar") == "memory://set/1.tar"
    with pytest.raises(DataError, match="nosuch://"):
        open_storage("nosuch://set").read("1.tar", 0, 1)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"pip install 'foundation-hep\[gcs\]'"):
        open_storage("gs://bucket/set").read("1.tar", 0, 1)


# The cache


def cached(source: Source, folder: Path, limit: int = 10**6) -> CachedStorage:
    remote = CachedStorage(source, ShardCache(folder, limit))
    for i in range(6):
        remote.expect(f"{i}.tar", 10_000, sha256(shard(i)))
    return remote


def kept(folder: Path) -> set[int]:
    """Numbers of the shards that are in the cache."""
    return {i for i in range(6) if (folder / f"{sha256(shard(i))}.tar").exists()}


def test_reading_fetches_shards_in_the_background(server: ByteServer, remote: UrlSource, tmp_path: Path) -> None:
    storage = cached(remote, tmp_path)
    assert bytes(storage.read("1.tar", 5, 50)) == shard(1)[5:50]
    until(lambda: kept(tmp_path) == {1})
    server.files.clear()
    assert bytes(storage.read("1.tar", 0, 10_000)) == shard(1)
    again = cached(UrlSource(server.url, QUICK), tmp_path)
    assert bytes(again.read("1.tar", 9_000, 10_000)) == shard(1)[9_000:] and "cached as" in again.where("1.tar")
    with pytest.raises(DataError, match="10000"):
        again.read("1.tar", 0, 10_001)


def test_open_storage_with_a_cache_keeps_arrays(server: ByteServer, tmp_path: Path) -> None:
    storage = open_storage(server.url, tmp_path / "new" / "cache", cache_bytes=10**6)
    data = server.files["a.npy"]
    storage.expect("a.npy", len(data), sha256(data))
    assert np.array_equal(storage.array("a.npy"), np.arange(9))
    server.files.clear()
    assert np.array_equal(storage.array("a.npy"), np.arange(9)) and storage.exists("a.npy")


def test_will_need_fetches_ahead(server: ByteServer, remote: UrlSource, tmp_path: Path) -> None:
    storage = cached(remote, tmp_path)
    storage.will_need([f"{i}.tar" for i in range(6)])
    until(lambda: kept(tmp_path) == set(range(6)))
    assert all(server.times(f"{i}.tar") == 3 for i in range(6))  # parts of 4,000 bytes, each once
    assert not list(tmp_path.glob("*.part"))


def test_processes_share_one_download(server: ByteServer, remote: UrlSource, tmp_path: Path) -> None:
    storage = cached(remote, tmp_path)
    remote.ranges = False  # so that every reader waits for the shard

    def read() -> None:
        assert all(bytes(storage.read(f"{i}.tar", 0, 10_000)) == shard(i) for i in range(6))

    children = [fork.Process(target=read) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
        assert child.exitcode == 0
    assert server.sent == {f"{i}.tar": 10_000 for i in range(6)}


def test_the_oldest_use_goes_first(remote: UrlSource, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=30_000)

    def fetch(i: int, urgency: Urgency) -> bool:
        return cache.fetch(f"{sha256(shard(i))}.tar", 10_000, lambda file: write(file, i), urgency) is not None

    def write(file: IO[bytes], i: int) -> None:
        file.write(shard(i))

    for i in (0, 1, 2):
        assert fetch(i, Urgency.IDLE)
        time.sleep(0.01)
    assert fetch(0, Urgency.NOW)  # used again: 1 is the oldest now
    assert not fetch(3, Urgency.IDLE) and kept(tmp_path) == {0, 1, 2}  # all were read since the cache was opened
    assert fetch(3, Urgency.SOON) and kept(tmp_path) == {0, 2, 3}
    time.sleep(0.01)
    cache = ShardCache(tmp_path, limit=30_000)  # the next run
    assert fetch(4, Urgency.IDLE) and kept(tmp_path) == {0, 3, 4}


def test_what_is_in_use_is_never_removed(remote: UrlSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hold() -> None:
        mapped = ShardCache(tmp_path, 20_000).open(f"{sha256(shard(0))}.tar")
        ready.set()
        done.wait()
        assert mapped is not None and mapped[:] == shard(0)

    storage = cached(remote, tmp_path, 20_000)
    storage.will_need(["0.tar"])
    until(lambda: kept(tmp_path) == {0})
    ready, done = fork.Event(), fork.Event()
    child = fork.Process(target=hold)
    child.start()
    assert ready.wait(20)
    for i in (1, 2, 3):
        storage.will_need([f"{i}.tar"])
        until(lambda i=i: kept(tmp_path) == {0, i})
    done.set()
    child.join()
    assert child.exitcode == 0
    storage.will_need(["4.tar"])
    until(lambda: kept(tmp_path) == {3, 4})


def test_shards_in_use_may_exceed_the_limit(
    remote: UrlSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = cached(remote, tmp_path, 15_000)
    remote.ranges = False
    views = [storage.read(f"{i}.tar", 0, 10_000) for i in range(3)]
    assert [bytes(v) for v in views] == [shard(i) for i in range(3)] and kept(tmp_path) == {0, 1, 2}
    assert capsys.readouterr().err.count("grow beyond its limit") == 1


@pytest.mark.parametrize("damage", [b"", shard(1)[:-1], shard(1)[:-1] + b"x"])
def test_a_shard_that_is_not_as_announced_is_not_kept(
    server: ByteServer, remote: UrlSource, tmp_path: Path, damage: bytes
) -> None:
    server.files["1.tar"] = damage
    storage = cached(remote, tmp_path)
    remote.ranges = False
    with pytest.raises(DataError, match=r"1\.tar: .*(the manifest says|are needed)") as error:
        storage.read("1.tar", 0, 1)
    assert server.url in str(error.value) and not [p for p in tmp_path.iterdir() if p.name != ".lock"]


def test_a_failure_in_the_background_is_told_and_reading_goes_on(
    server: ByteServer, remote: UrlSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = cached(remote, tmp_path)
    storage.expect("1.tar", 10_000, sha256(b"another"))
    for _ in range(3):
        assert bytes(storage.read("1.tar", 5, 50)) == shard(1)[5:50]
        until(lambda: not storage._fetching)
    assert capsys.readouterr().err.count("sha256 is not what the manifest says") == 1
    assert server.times("1.tar") == 3 + 3


def test_a_server_without_ranges_works_with_a_cache(server: ByteServer, remote: UrlSource, tmp_path: Path) -> None:
    server.ranges = False
    storage = cached(remote, tmp_path)
    assert all(bytes(storage.read(f"{i}.tar", 5, 50)) == shard(i)[5:50] for i in range(6))
    assert server.times("5.tar") == 1


def test_a_killed_download_counts_for_nothing(server: ByteServer, remote: UrlSource, tmp_path: Path) -> None:
    storage = cached(UrlSource(server.url, Patience()), tmp_path)
    storage.source.ranges = False
    server.faults["1.tar"] = [None, "slow"]  # the second part never comes
    child = fork.Process(target=lambda: storage.read("1.tar", 0, 1))
    child.start()
    until(lambda: server.times("1.tar") == 2)
    waiting = cached(remote, tmp_path)
    waiting.will_need(["1.tar"])  # somebody else is at it: left to them
    until(lambda: not waiting._fetching and not waiting._wanted)
    assert kept(tmp_path) == set() and server.times("1.tar") == 2
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert kept(tmp_path) == set() and len(list(tmp_path.glob("*.part"))) == 1
    waiting.source.ranges = False
    assert bytes(waiting.read("1.tar", 0, 10_000)) == shard(1)
    assert kept(tmp_path) == {1} and not list(tmp_path.glob("*.part"))


def test_a_child_does_not_hold_the_locks_of_a_killed_parent(
    server: ByteServer, remote: UrlSource, tmp_path: Path
) -> None:
    """A forked worker that outlives its parent, which was fetching a shard."""
    server.faults["1.tar"] = ["slow"]
    mine, its = fork.Pipe()

    def parent() -> None:
        storage = cached(UrlSource(server.url, Patience()), tmp_path)
        storage.will_need(["1.tar"])
        until(lambda: any(p.stat().st_size == 10_000 for p in tmp_path.glob("*.part")))
        if os.fork() == 0:
            its.send(os.getpid())
            time.sleep(60)
        time.sleep(60)

    process = fork.Process(target=parent)
    process.start()
    assert mine.poll(20)
    orphan = mine.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    try:
        remote.ranges = False
        assert bytes(cached(remote, tmp_path).read("1.tar", 0, 10_000)) == shard(1)
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_what_a_killed_download_left_is_removed_for_others(remote: UrlSource, tmp_path: Path) -> None:
    (tmp_path / "0123.tar.part").write_bytes(bytes(30_000))
    storage = cached(remote, tmp_path, 20_000)
    storage.will_need(["1.tar"])
    until(lambda: kept(tmp_path) == {1})
    assert not list(tmp_path.glob("*.part"))


def test_a_cache_that_cannot_be_written(remote: UrlSource, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = cached(remote, tmp_path / "file" / "cache")
    remote.ranges = False
    with pytest.raises(DataError, match="cannot be used as a cache"):
        storage.read("1.tar", 0, 1)


def test_a_full_disk_is_told(remote: UrlSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 500))
    storage = cached(remote, tmp_path)
    remote.ranges = False
    with pytest.raises(DataError, match="500 bytes are free, 10000 are needed"):
        storage.read("1.tar", 0, 1)


def test_cache_after_a_fork_and_a_pickle(remote: UrlSource, tmp_path: Path) -> None:
    storage = cached(remote, tmp_path)
    storage.will_need(["0.tar", "1.tar"])

    def read() -> bool:
        return all(bytes(storage.read(f"{i}.tar", 5, 50)) == shard(i)[5:50] for i in range(6))

    assert in_child(read) is True and read()
    assert bytes(pickle.loads(pickle.dumps(storage)).read("1.tar", 0, 9)) == shard(1)[:9]


# Commands


def test_the_output_of_a_command(folder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    storage = open_storage(f"pipe:sh -c 'echo $0 >> {calls}; cat {folder}/$0' {{name}}", tmp_path / "cache")
    storage.expect("1.tar", 10_000, sha256(shard(1)))
    for _ in range(3):
        assert bytes(storage.read("1.tar", 10, 20)) == shard(1)[10:20]
    assert calls.read_text().split() == ["1.tar"]
    assert storage.read_all("2.tar") == shard(2) and storage.exists("2.tar") and not storage.exists("9.tar")
    with pytest.raises(DataError, match=r"pipe:sh .* 2\.tar: no sha256"):
        storage.read("2.tar", 0, 1)


def test_a_command_needs_a_cache_and_a_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give a cache folder"):
        open_storage("pipe:cat {name}")
    with pytest.raises(DataError, match=r"write \{name\}"):
        open_storage("pipe:cat /data", tmp_path)
    with pytest.raises(DataError, match="without a shell: put pipes and redirections into a script"):
        open_storage("pipe:curl host/{name} | gunzip", tmp_path)
    with pytest.raises(DataError, match="quotation"):
        open_storage("pipe:cat '{name}", tmp_path)


def test_a_command_that_fails(folder: Path, tmp_path: Path) -> None:
    script = f"echo x >> {tmp_path}/tries; head -c 9 {folder}/$0; echo no route >&2; exit 3"
    source = CommandSource(f"pipe:sh -c '{script}' {{name}}", QUICK)
    storage = cached(source, tmp_path / "cache")
    with pytest.raises(DataError, match=r"tried 3 times .*ended with status 3 \(no route\)"):
        storage.read("1.tar", 0, 1)
    assert len((tmp_path / "tries").read_text().split()) == 3 and kept(tmp_path / "cache") == set()
    with pytest.raises(DataError, match=r"no-such-program cannot be run \(No such file"):
        CommandSource("pipe:no-such-program {name}", QUICK).read_all("1.tar")
    with pytest.raises(DataError, match=r"1\.tar: has 9 bytes, the manifest says 10000"):
        cached(CommandSource(f"pipe:head -c 9 {folder}/{{name}}", QUICK), tmp_path / "cache").read("1.tar", 0, 1)


def test_a_command_that_hangs_is_ended_with_all_it_started(folder: Path, tmp_path: Path) -> None:
    source = CommandSource(f"pipe:sh -c 'sleep 77 & echo $! >> {tmp_path}/pids; wait' {{name}}", QUICK)
    with pytest.raises(DataError, match="tried 3 times .*said nothing for 0.4 s"):
        source.read_all("1.tar")
    for pid in (tmp_path / "pids").read_text().split():
        until(lambda pid=pid: not _runs(int(pid)))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


# Object stores


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install 'foundation-hep[test-s3]')")
    server = pytest.importorskip("moto.server", reason="moto is not installed (pip install 'foundation-hep[test-s3]')")
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir(f"shards-{port}")
    for i in range(6):
        files.pipe(f"shards-{port}/set/{i}.tar", shard(i))
    yield f"s3://shards-{port}/set"
    s3.stop()


def test_s3(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = open_storage(bucket)
    assert bytes(remote.read("1.tar", 100, 200)) == shard(1)[100:200] and remote.size("1.tar") == 10_000
    assert remote.read_all("2.tar") == shard(2) and remote.exists("2.tar") and not remote.exists("9.tar")
    assert in_child(lambda: bytes(remote.read("3.tar", 100, 200))) == shard(3)[100:200]
    with pytest.raises(DataError, match=rf"{bucket}/9\.tar: missing"):
        remote.read("9.tar", 0, 1)
    with pytest.raises(DataError, match="shorter than the manifest says"):
        remote.read("1.tar", 10_000, 10_001)
    storage = cached(UrlSource(bucket), tmp_path)
    assert bytes(storage.read("1.tar", 5, 50)) == shard(1)[5:50]
    until(lambda: kept(tmp_path) == {1})
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=rf"{bucket}/1\.tar: no credentials found"):
        open_storage(bucket).read("1.tar", 0, 1)


def test_s3_that_fails(server: ByteServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The byte server in the place of S3: it knows no bucket, but a file of the same path, and how to fail."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.removesuffix("/set"))
    remote = UrlSource("s3://set", QUICK)
    for faults in ([500, 503], ["slow"], ["cut"], [429]):
        server.faults["1.tar"] = list(faults)
        server.asked.clear()
        assert bytes(remote.read("1.tar", 100, 200)) == shard(1)[100:200]
        assert server.times("1.tar") == len(faults) + 1
    server.faults["1.tar"] = [403]
    with pytest.raises(DataError, match=r"s3://set/1\.tar: access refused"):
        remote.read("1.tar", 0, 9)
