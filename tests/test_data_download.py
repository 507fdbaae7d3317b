"""Downloads, from a server on this machine: broken connections go on, wrong files are refused, none is half there."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pooch.downloaders import ZenodoRepository

from foundation.data.cards import DatasetCard
from foundation.data.download import Patience, archive_files, download, remote_files
from foundation.errors import DataError

BODY = np.random.default_rng(1).bytes(400_000)
OTHER = b"another file"
QUICK = Patience(tries=3, wait_seconds=0.01)
DOI = "10.1234/ABC"


@dataclass
class Server:
    """What the server holds, how it misbehaves, and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    knows_ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    """Bytes of the body after which each of the next answers breaks off."""
    statuses: list[int] = field(default_factory=list)
    """Statuses of the next answers, in place of a file."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of every request."""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers["Range"]))
            body = state.files.get(self.path)
            status = state.statuses.pop(0) if state.statuses else 200 if body is not None else 404
            if status != 200 or body is None:
                self.send_error(status)
                return
            start = 0
            if state.knows_ranges and self.headers["Range"]:
                start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            stop = start + state.breaks.pop(0) if state.breaks else len(body)
            self.wfile.write(body[start:stop])
            self.close_connection = stop < len(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield state
        http.shutdown()


def md5(data: bytes) -> str:
    return "md5:" + hashlib.md5(data).hexdigest()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def card_with(*listed: dict[str, object], doi: str | None = None, manual: str | None = None) -> DatasetCard:
    """A card with these files to be fetched."""
    return DatasetCard.model_validate(
        {
            "name": "small",
            "title": "Small",
            "domain": "jet",
            "tag": "small",
            "licence": "CC0",
            "doi": doi,
            "features": [{"name": "pt", "unit": "GeV"}],
            "files": {"pattern": "*.h5", "download": listed, "manual": manual},
        }
    )


def one_file(server: Server, checksum: str = md5(BODY), **more: object) -> DatasetCard:
    """A card with one file that the server holds."""
    server.files["/a.h5"] = BODY
    return card_with({"name": "a.h5", "url": f"{server.url}/a.h5", "checksum": checksum, **more})


def test_files_are_fetched_once_and_kept_while_their_checksum_is_right(server: Server, tmp_path: Path) -> None:
    server.files |= {"/a": BODY, "/b": OTHER}
    card = card_with(
        {"name": "train/a.h5", "url": f"{server.url}/a", "checksum": md5(BODY), "bytes": len(BODY)},
        {"name": "b.h5", "url": f"{server.url}/b", "checksum": sha256(OTHER)},
    )
    paths = download(card, tmp_path)
    assert paths == [tmp_path / "train" / "a.h5", tmp_path / "b.h5"]
    assert [path.read_bytes() for path in paths] == [BODY, OTHER]
    assert download(card, tmp_path) == paths and len(server.asked) == 2
    paths[1].write_bytes(b"cut")
    assert download(card, tmp_path)[1].read_bytes() == OTHER and server.asked[2:] == [("/b", None)]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a.h5", "b.h5"}


def test_files_can_be_chosen_by_name_or_pattern(server: Server, tmp_path: Path) -> None:
    server.files |= {"/g": BODY, "/q": OTHER}
    card = card_with(
        {"name": "g.h5", "url": f"{server.url}/g", "checksum": md5(BODY)},
        {"name": "q.h5", "url": f"{server.url}/q", "checksum": md5(OTHER)},
    )
    assert download(card, tmp_path, ["q.h5"]) == [tmp_path / "q.h5"]
    assert download(card, tmp_path, ["[g]*"]) == [tmp_path / "g.h5"]
    with pytest.raises(DataError, match=r"card 'small' has no file 'qq.h5' - did you mean 'q.h5'\?"):
        download(card, tmp_path, ["qq.h5"])


def test_a_broken_connection_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.breaks = [200_000, 100_000]
    (path,) = download(one_file(server), tmp_path, patience=QUICK)
    assert path.read_bytes() == BODY
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0 for _, asked in server.asked]
    assert len(starts) == 3 and 0 == starts[0] < starts[1] <= 200_000 and starts[1] < starts[2] <= 300_000


def test_a_server_without_ranges_is_asked_from_the_start(server: Server, tmp_path: Path) -> None:
    server.knows_ranges, server.breaks = False, [200_000]
    (path,) = download(one_file(server), tmp_path, patience=QUICK)
    assert path.read_bytes() == BODY and len(server.asked) == 2


def test_a_transfer_that_fails_for_good_is_continued_by_the_next_command(server: Server, tmp_path: Path) -> None:
    card = one_file(server)
    server.breaks = [200_000, 0, 0]
    with pytest.raises(DataError, match=r"bytes are kept in .*a\.h5\.part: give the same command again to go on"):
        download(card, tmp_path, patience=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5.part"]
    assert len(server.asked) == 3 and not server.breaks  # one that came further, two that did not
    (path,) = download(card, tmp_path, patience=QUICK)
    assert path.read_bytes() == BODY and list(tmp_path.iterdir()) == [path]
    assert server.asked[-1][1] is not None


@pytest.mark.parametrize("left", [b"of an older version", BODY + b"more", BODY])
def test_what_an_earlier_transfer_left_is_never_trusted(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "a.h5.part").write_bytes(left)
    (path,) = download(one_file(server), tmp_path, patience=QUICK)
    assert path.read_bytes() == BODY and list(tmp_path.iterdir()) == [path]


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    card = one_file(server)
    server.statuses = [503, 429]
    assert download(card, tmp_path / "busy", patience=QUICK)[0].read_bytes() == BODY
    server.asked.clear()
    server.files.clear()
    with pytest.raises(DataError, match=r"/a\.h5: the server answers 404 Not Found; see whether the file has moved"):
        download(card, tmp_path / "gone", patience=QUICK)
    assert len(server.asked) == 1 and not list((tmp_path / "gone").iterdir())


def test_a_wrong_checksum_is_told_with_both_sums_and_touches_nothing(server: Server, tmp_path: Path) -> None:
    card = one_file(server, checksum=md5(OTHER))
    (tmp_path / "a.h5").write_bytes(b"what was there before")
    with pytest.raises(DataError, match=f"is {md5(BODY)}, but must be {md5(OTHER)}; nothing of it was kept: try again"):
        download(card, tmp_path, patience=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_bytes() == b"what was there before"


def test_sizes_that_cannot_be_right_are_told_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a file of 400000 bytes, the card one of 5"):
        download(one_file(server, bytes=5), tmp_path, patience=QUICK)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    card = card_with({"name": "a.h5", "url": "http://127.0.0.1:9/a.h5", "checksum": md5(BODY)})
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a\.h5: the connection failed"):
        download(card, tmp_path, patience=Patience(2, 0.01))


@pytest.mark.parametrize("name", ["a/../../x", "/etc/x", "..", "a//b", "./x", "a\\..\\x", "C:x", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    card = card_with({"name": name, "url": "http://127.0.0.1:9/x", "checksum": md5(BODY)})
    with pytest.raises(DataError, match="is not a name below the chosen folder"):
        download(card, tmp_path)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (
            {"url": "http://127.0.0.1:9/x"},
            "gives no checksum for 'a.h5': add it, or fetch http://127.0.0.1:9/x by hand",
        ),
        ({"url": "http://127.0.0.1:9/x", "checksum": "adler32:1"}, "'adler32:1' is not a checksum"),
        ({"url": "file:///etc/hostname", "checksum": md5(BODY)}, "not an address of the web"),
    ],
)
def test_a_card_that_does_not_say_enough_is_refused(listed: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        download(card_with({"name": "a.h5", **listed}), tmp_path)


def test_what_must_be_done_by_hand_is_told() -> None:
    with pytest.raises(DataError, match="cannot be fetched by a program: ask the authors"):
        remote_files(card_with(manual="ask the authors"))
    with pytest.raises(DataError, match="no files.download and no doi"):
        remote_files(card_with())


def dataverse(server: Server, files: dict[str, bytes]) -> None:
    """Let the server speak as a Dataverse archive with these files."""
    records = []
    for number, (name, body) in enumerate(files.items()):
        records.append({"dataFile": {"id": number, "filename": name, "md5": md5(body)[4:]}})
        server.files[f"/api/access/datafile/{number}"] = body
    answer = json.dumps({"data": {"latestVersion": {"files": records}}})
    server.files[f"/api/datasets/:persistentId?persistentId=doi:{DOI}"] = answer.encode()


def test_an_archive_gives_addresses_and_checksums(server: Server, tmp_path: Path) -> None:
    dataverse(server, {"a.h5": BODY, "b.h5": OTHER})
    page = f"{server.url}/dataset.xhtml"
    paths = download(card_with(doi=DOI), tmp_path / "all", archive_url=page)
    assert [path.name for path in paths] == ["a.h5", "b.h5"] and paths[0].read_bytes() == BODY
    (path,) = download(card_with({"name": "sub/b.h5"}, doi=DOI), tmp_path, archive_url=page)
    assert path == tmp_path / "sub" / "b.h5" and path.read_bytes() == OTHER
    with pytest.raises(DataError, match=r"the archive 10\.1234/ABC has no file 'c\.h5'"):
        download(card_with({"name": "c.h5"}, doi=DOI), tmp_path, archive_url=page)
    with pytest.raises(DataError, match=f"must be {md5(OTHER)}"):  # the card is believed first
        download(card_with({"name": "a.h5", "checksum": md5(OTHER)}, doi=DOI), tmp_path, archive_url=page)


def test_an_archive_that_does_not_answer_well_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an archive of Zenodo, Figshare or Dataverse"):
        download(card_with(doi=DOI), tmp_path, archive_url=f"{server.url}/x")
    server.files[f"/api/datasets/:persistentId?persistentId=doi:{DOI}"] = b"{}"
    with pytest.raises(DataError, match="record cannot be read"):
        download(card_with(doi=DOI), tmp_path, archive_url=f"{server.url}/x")


def test_a_record_of_zenodo_is_understood(server: Server) -> None:
    class LocalZenodo(ZenodoRepository):
        base_api_url = f"{server.url}/api/records"

    record = {"files": [{"key": "g.hdf5", "checksum": md5(BODY), "links": {"self": f"{server.url}/g"}}]}
    server.files["/api/records/6975118"] = json.dumps(record).encode()
    files = archive_files(LocalZenodo("10.5281/zenodo.6975118", "https://zenodo.org/records/6975118"))
    assert [(f.name, f.url, f.checksum) for f in files.values()] == [("g.hdf5", f"{server.url}/g", md5(BODY))]
