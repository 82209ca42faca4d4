"""Downloads from a server of our own, which cuts, hangs, lies and lacks as mirrors do."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import pytest

from metarun.data.download import fetch
from metarun.types import InputError, Place

DATA = Random(0).randbytes(300_000)
MD5 = hashlib.md5(DATA).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "data.zip"


class Asked(BaseHTTPRequestHandler):
    """One question, answered by `Server.answers`."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Range"]))
        self.server.answers[self.path](self)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def start(self) -> int:
        """The first byte that was asked for."""
        return int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def head(self, status: int, length: int, **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for key, value in more.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()


Answer = Callable[[Asked], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.over = threading.Event()

    def add(self, answer: Answer, folder: str = "a") -> str:
        """The address of a file that is answered so."""
        self.answers[f"/{folder}/{NAME}"] = answer
        return f"http://127.0.0.1:{self.server_port}/{folder}/{NAME}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.over.set()
        made.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def gives(data: bytes = DATA, ranges: bool = True) -> Answer:
    """A server as most are."""

    def answer(asked: Asked) -> None:
        start = asked.start() if ranges else 0
        if start >= len(data):
            asked.head(416, 0, Content_Range=f"bytes */{len(data)}")
        elif start:
            asked.head(206, len(data) - start, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
            asked.wfile.write(data[start:])
        else:
            asked.head(200, len(data))
            asked.wfile.write(data)

    return answer


def cuts(at: int, then: Answer) -> Answer:
    """Promises all, gives `at` bytes, and the next time does as `then`."""
    turns = iter([True])

    def answer(asked: Asked) -> None:
        if next(turns, False):
            asked.head(200, len(DATA))
            asked.wfile.write(DATA[:at])
            asked.close_connection = True
        else:
            then(asked)

    return answer


def lacks(asked: Asked) -> None:
    asked.send_error(404)


def hangs(after: int | None = None) -> Answer:
    """Says nothing, or nothing more after some bytes."""

    def answer(asked: Asked) -> None:
        if after is not None:
            asked.head(200, len(DATA))
            asked.wfile.write(DATA[:after])
        assert isinstance(asked.server, Server)
        asked.server.over.wait(30)

    return answer


def there(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.exists() else {}


def got(tmp_path: Path, *urls: str, checksum: str | None = MD5, patience: float = 5.0) -> bytes:
    path = fetch(NAME, urls, checksum, tmp_path / "data", Place(tmp_path), patience=patience)
    assert path == tmp_path / "data" / NAME
    assert there(tmp_path / "data") == {NAME: len(DATA)}
    return path.read_bytes()


def refusal(
    tmp_path: Path, *urls: str, checksum: str | None = MD5, patience: float = 5.0, offline: bool = False
) -> str:
    with pytest.raises(InputError) as caught:
        fetch(NAME, urls, checksum, tmp_path / "data", Place(tmp_path, offline), patience=patience)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leave(tmp_path: Path, part: bytes) -> None:
    """As an earlier process did that was stopped."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{NAME}.part").write_bytes(part)


# What comes of it


@pytest.mark.parametrize("checksum", [MD5, MD5.upper(), SHA256, None])
def test_a_file_is_downloaded_whole_and_once(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], checksum: str | None
) -> None:
    url = server.add(gives())
    assert got(tmp_path, url, checksum=checksum) == DATA
    assert f"downloading {NAME} (0.3 MB) from 127.0.0.1:{server.server_port}\n" == capsys.readouterr().err
    assert got(tmp_path, url, checksum=checksum) == DATA
    assert len(server.asked) == 1


def test_what_was_cut_is_gone_on_with(tmp_path: Path, server: Server) -> None:
    url = server.add(cuts(100_000, then=gives()))
    assert got(tmp_path, url) == DATA
    assert [asked for _, asked in server.asked] == [None, "bytes=100000-"]


def test_without_a_checksum_too_while_it_is_the_same_process(tmp_path: Path, server: Server) -> None:
    assert got(tmp_path, server.add(cuts(100_000, then=gives())), checksum=None) == DATA
    assert server.asked[1][1] == "bytes=100000-"


def test_what_an_earlier_process_left_is_gone_on_with(tmp_path: Path, server: Server) -> None:
    leave(tmp_path, DATA[:200_000])
    assert got(tmp_path, server.add(gives())) == DATA
    assert [asked for _, asked in server.asked] == ["bytes=200000-"]


def test_but_not_where_nobody_knows_the_checksum(tmp_path: Path, server: Server) -> None:
    leave(tmp_path, b"of another version")
    assert got(tmp_path, server.add(gives()), checksum=None) == DATA
    assert [asked for _, asked in server.asked] == [None]


def test_a_server_that_knows_no_ranges_gives_it_all_again(tmp_path: Path, server: Server) -> None:
    leave(tmp_path, DATA[:200_000])
    assert got(tmp_path, server.add(gives(ranges=False))) == DATA


@pytest.mark.parametrize("left", [b"?" * 1000, b"?" * len(DATA), b"?" * (len(DATA) + 1), DATA + b"?"])
def test_what_was_left_of_another_file_is_begun_anew(tmp_path: Path, server: Server, left: bytes) -> None:
    leave(tmp_path, left)
    assert got(tmp_path, server.add(gives())) == DATA
    assert server.asked[-1][1] is None


def test_what_was_left_may_be_whole(tmp_path: Path, server: Server) -> None:
    leave(tmp_path, DATA)
    assert got(tmp_path, server.add(gives())) == DATA
    assert len(server.asked) == 1


def test_the_next_mirror_is_asked_where_one_lacks_it(tmp_path: Path, server: Server) -> None:
    assert got(tmp_path, server.add(lacks, "a"), server.add(gives(DATA[:-1]), "b"), server.add(gives(), "c")) == DATA
    assert [path for path, _ in server.asked] == [f"/{folder}/{NAME}" for folder in "abc"]


@pytest.mark.parametrize("after", [None, 100_000])
def test_a_mirror_that_hangs_is_given_up(tmp_path: Path, server: Server, after: int | None) -> None:
    began = time.perf_counter()
    assert got(tmp_path, server.add(hangs(after), "a"), server.add(gives(), "b"), patience=0.1) == DATA
    assert time.perf_counter() - began < 5
    assert server.asked[-1][1] == (f"bytes={after}-" if after else None)


def test_a_slow_mirror_is_waited_for(tmp_path: Path, server: Server) -> None:
    def trickles(asked: Asked) -> None:
        asked.head(200, len(DATA))
        for part in range(10):
            asked.wfile.write(DATA[part * len(DATA) // 10 : (part + 1) * len(DATA) // 10])
            time.sleep(0.07)

    assert got(tmp_path, server.add(trickles), patience=0.4) == DATA


def test_of_two_at_once_one_downloads(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    begun = threading.Event()

    def slowly(asked: Asked) -> None:
        begun.set()
        time.sleep(0.2)
        gives()(asked)

    url = server.add(slowly)
    first = threading.Thread(target=got, args=(tmp_path, url))
    first.start()
    assert begun.wait(5)
    assert got(tmp_path, url) == DATA
    first.join()
    assert len(server.asked) == 1
    assert f"{NAME} is being prepared by another process" in capsys.readouterr().err


# When there is none to be had


def test_when_all_fail_each_reason_is_told_and_where_to_put_it(tmp_path: Path, server: Server) -> None:
    urls = server.add(lacks, "a"), server.add(gives(b"?" * 20), "b"), server.add(hangs(), "c")
    message = refusal(tmp_path, *urls, "http://127.0.0.1:1/d", "nonsense", patience=0.2)
    wrong = hashlib.md5(b"?" * 20).hexdigest()
    reasons = (
        f"{urls[0]}: HTTP 404 Not Found; ",
        f"{urls[1]}: wrong checksum, {wrong}; ",
        f"{urls[2]}: no answer for 0.2 seconds; ",
        "http://127.0.0.1:1/d: [Errno 111] Connection refused; ",
        "nonsense: unknown url type: 'nonsense')",
    )
    assert "".join(reasons) in message
    assert f"put the file into {tmp_path / 'data'} by hand, as {NAME} (md5 {MD5})" in message
    assert not there(tmp_path / "data")


def test_what_has_come_is_kept_for_the_next_time(tmp_path: Path, server: Server) -> None:
    assert "no answer" in refusal(tmp_path, server.add(hangs(100_000)), patience=0.1)
    assert there(tmp_path / "data") == {f"{NAME}.part": 100_000}
    assert got(tmp_path, server.add(gives())) == DATA
    assert server.asked[-1][1] == "bytes=100000-"


def test_but_not_without_a_checksum(tmp_path: Path, server: Server) -> None:
    refusal(tmp_path, server.add(hangs(100_000)), patience=0.1, checksum=None)
    assert not there(tmp_path / "data")


def test_a_mirror_that_cuts_again_and_again_is_given_up(tmp_path: Path, server: Server) -> None:
    def empty(asked: Asked) -> None:
        asked.head(200, len(DATA))
        asked.close_connection = True

    assert "cut short 3 times, after 0 bytes at last" in refusal(tmp_path, server.add(empty), checksum=None)
    assert len(server.asked) == 3


def test_offline_asks_nobody(tmp_path: Path, server: Server) -> None:
    url = server.add(gives())
    message = refusal(tmp_path, url, offline=True)
    assert all(part in message for part in ("data.offline=true", str(tmp_path / "data"), f"as {NAME}", MD5, url))
    assert not server.asked
    assert not (tmp_path / "data").exists()


def test_a_file_put_there_by_hand_is_taken_if_it_is_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / NAME
    path.write_bytes(DATA)
    assert fetch(NAME, ["unused"], SHA256, tmp_path / "data", Place(tmp_path, offline=True)) == path
    path.write_bytes(DATA[:-1])
    message = refusal(tmp_path, "unused", checksum=SHA256)
    assert f"{path} is not the published file: its sha256 is {hashlib.sha256(DATA[:-1]).hexdigest()}" in message
    assert there(tmp_path / "data") == {NAME: len(DATA) - 1}, "it is not ours to take away"


def test_it_is_read_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / NAME).write_bytes(DATA)
    for _ in range(2):
        assert got(tmp_path, "unused") == DATA
        monkeypatch.setattr("metarun.data.download._digest", lambda *args: pytest.fail("read again"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, server: Server) -> None:
    (tmp_path / "data").write_text("in the way")
    message = refusal(tmp_path, server.add(gives()))
    assert f"{tmp_path / 'data'} cannot hold {NAME}" in message
    assert not server.asked


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, server: Server) -> None:
    (tmp_path / "data").mkdir(mode=0o500)
    assert "Permission denied" in refusal(tmp_path, server.add(gives()))
