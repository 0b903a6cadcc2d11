"""A download arrives whole or not at all, whatever the server does; a real one on loopback does it."""

import hashlib
import http.server
import os
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from reprise.data.download import fetch as fetch_module
from reprise.data.download.fetch import TRIES, fetch
from reprise.data.download.sources import download
from reprise.data.formats.raw import RawArchive
from reprise.runtime.errors import UserError
from tests.conftest import data_params
from tests.data.download.test_layouts import IMAGE, pack_zip

CONTENT = bytes(range(256)) * 4000  # 1 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Answers each request with the next of `answers`, the last one for ever; notes what was asked for.

    An answer is a status, or a dict: `content`; `stop`, after how many bytes of the body to hang up; `ranges`, whether
    Range is heeded; `length`, `etag`, what it says of the file; `to`, where it redirects; `raw`, all that it
    sends; `for_ever`, what it sends again and again after that.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked, self.over = [{}], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/set%20one.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if isinstance(answer, int):
            self.send_response(answer)
            if answer == 302:
                self.send_header("Location", "/moved.zip")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if "raw" in answer:
            self.wfile.write(answer["raw"])
            with suppress(OSError):  # who asked has hung up
                while "for_ever" in answer and not self.server.over.wait(0.01):
                    self.wfile.write(answer["for_ever"])
            return
        if "to" in answer:
            self.send_response(302)
            self.send_header("Location", answer["to"])
            self.end_headers()
            return
        content, etag = answer.get("content", CONTENT), answer.get("etag", '"one"')
        current = answer.get("heedless") or self.headers.get("If-Range") == etag
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and answer.get("ranges", True) and current else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if etag:
            self.send_header("ETag", etag)
        if answer.get("length", True):
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + answer.get("stop", len(content))])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def fetched(server, tmp_path):
    """Fetch with these answers; return the bytes that arrived, what was asked for, and the pauses."""

    def fetched(*answers, sha256=SHA256):
        server.answers[:] = answers
        pauses = []
        content = fetch(server.url, sha256, tmp_path / "downloads", pauses.append)[0].read_bytes()
        assert len(os.listdir(tmp_path / "downloads")) == 1  # nothing but the file itself
        return content, server.asked, pauses

    return fetched


BREAK = {"stop": 300_000}


OTHER = BREAK | {"content": b"z" * 900_000}
NO_TAG, WEAK = {"etag": ""}, {"etag": 'W/"weak"'}
REST, AGAIN = "bytes=300000-", [1]
TRIED = {
    "goes on where it broke off": ([BREAK, BREAK, {}], [None, REST, "bytes=600000-"], [1, 1]),
    "a server without ranges sends all of it again": ([BREAK, {"ranges": False}], [None, REST], AGAIN),
    "without a version to ask for": ([BREAK | NO_TAG, NO_TAG], [None, None], AGAIN),
    "with a weak one": ([BREAK | WEAK, WEAK], [None, None], AGAIN),
    "If-Range not heeded, as the ETag says": (
        [OTHER, {"etag": '"two"', "heedless": True}, {}],
        [None, REST, None],
        None,
    ),
    "If-Range not heeded, as the checksum says": ([OTHER, {"heedless": True}, {}], [None, REST, None], None),
    "a part longer than the file": ([BREAK, 416, {}], [None, REST, None], [1, 2]),
    "what may pass is waited for ever longer": ([429, 500, 503, {}], [None] * 4, [1, 2, 4]),
    "redirected": ([302, {}], [None, None], []),
}


@pytest.mark.parametrize(("answers", "asked", "pauses"), TRIED.values(), ids=TRIED)
def test_the_file_arrives_whole_by_these_requests(fetched, answers, asked, pauses):
    content, *how = fetched(*answers)
    assert content == CONTENT
    assert how == [asked, pauses or how[1]]


def test_a_file_that_has_arrived_is_not_fetched_again_unless_it_was_damaged(fetched, tmp_path):
    assert fetched({}) == fetched({})
    (path,) = (tmp_path / "downloads").iterdir()
    assert path.name.endswith("-set_one.zip")
    path.write_bytes(CONTENT[:-1])
    content, asked, _ = fetched({})
    assert (content, len(asked)) == (CONTENT, 2)


def test_a_file_that_changes_between_tries_is_never_mixed(fetched):
    other = b"z" * len(CONTENT)
    changed = {"content": other, "etag": '"two"'}
    assert fetched(BREAK, changed, sha256=None)[0] == other


def refusal(fetched, tmp_path, *answers, **options):
    with pytest.raises(UserError) as caught:
        fetched(*answers, **options)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "downloads").iterdir() if path.suffix == ".zip"]
    return str(caught.value)


def test_what_will_not_pass_is_refused_at_once(fetched, server, tmp_path):
    said = refusal(fetched, tmp_path, 404)
    assert said == f"data.url = {server.url}: HTTP 404 Not Found; check the address"
    assert len(server.asked) == 1
    assert "infinite loop" in refusal(fetched, tmp_path, 302)


def test_it_gives_up_when_no_try_gets_further_and_a_later_run_goes_on(fetched, server, tmp_path):
    said = refusal(fetched, tmp_path, BREAK, {"stop": 0})
    assert "could not be downloaded (300,000 of 1,024,000 bytes came; 300,000 bytes so far); check the network" in said
    assert len(server.asked) == TRIES
    assert fetched({})[1][TRIES:] == ["bytes=300000-"]


def test_a_body_of_unknown_length_is_checked_by_its_checksum(fetched, tmp_path):
    assert fetched({"length": False})[0] == CONTENT
    (tmp_path / "downloads").joinpath(os.listdir(tmp_path / "downloads")[0]).unlink()
    assert f"came with the SHA-256 {hashlib.sha256(CONTENT[:9]).hexdigest()}, not {SHA256}" in refusal(
        fetched, tmp_path, {"length": False, "stop": 9}
    )


def test_an_altered_file_and_a_page_are_refused_and_nothing_is_kept(fetched, server, tmp_path):
    assert f"not {SHA256}; correct data.sha256" in refusal(fetched, tmp_path, {"content": CONTENT[:-1] + b"x"})
    said = refusal(fetched, tmp_path, {"content": b"\r\n<html>Please log in</html>"}, sha256=None)
    assert f"data.url = {server.url}: an HTML page came, not an archive" in said
    assert os.listdir(tmp_path / "downloads") == []


@pytest.mark.parametrize(
    "to",
    [
        "http://a..b/x.zip", f"http://{'a' * 300}.com/x", "http://[::1/x", "http://127.0.0.1:x/", "file:///etc/passwd",
        "http://127.0.0.1:99999999/", "gopher://x", "//", "data:,x", "http://127.0.0.1:\xb2/", "http://\xb2/",
    ],
)  # fmt: skip
def test_a_redirection_to_no_address_ends_in_one_line(fetched, server, tmp_path, to):
    said = refusal(fetched, tmp_path, {"to": to})
    assert said.startswith(f"data.url = {server.url}: ")


@pytest.mark.parametrize("url", ["http://a..b/x.zip", f"http://{'a' * 300}.com/x.zip", "http://.../x", "http://%00/x"])
def test_an_impossible_host_is_refused_at_once(tmp_path, url):
    with pytest.raises(UserError, match="not an address") as caught:
        fetch(url, None, tmp_path, lambda seconds: pytest.fail("tried again"))
    assert "\n" not in str(caught.value)


def answer(*headers, status="200 OK", body=CONTENT):
    lines = [f"HTTP/1.0 {status}", *headers, "", ""]
    return {"raw": "\r\n".join(lines).encode("latin-1") + body}


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", "0x10", "x"])
def test_a_length_that_is_no_number_counts_for_nothing(fetched, length):
    assert fetched(answer(f"Content-Length: {length}"))[0] == CONTENT


@pytest.mark.parametrize("said", [f"{'0' * 5000}-5/6", f"0-5/{'9' * 5000}", "\xb2-5/6", "x", ""])
def test_a_part_at_no_place_is_not_taken(fetched, tmp_path, said):
    part = answer(f"Content-Range: bytes {said}", status="206 Partial Content")
    assert "the server did not say which part it sent" in refusal(fetched, tmp_path, part)


def test_what_the_disk_has_no_room_for_is_refused_before_and_a_body_without_end_when_it_is_full(
    fetched, tmp_path, monkeypatch
):
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    said = refusal(fetched, tmp_path, {})
    assert "is 1,024,000 bytes long; there is room for 500,000 and their images; free some space" in said
    assert "does not end; there is room for 500,000" in refusal(fetched, tmp_path, {"length": False})
    assert sum(path.stat().st_size for path in (tmp_path / "downloads").iterdir()) < 100  # a name of a version


CRAWLING = {
    "a header": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers of a later answer": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a length of a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1;", b"x"),
    "lines after the body": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"x: y\r\n"),
    "the body": (b"HTTP/1.1 200 OK\r\n\r\nx", b"x"),
}


@pytest.mark.parametrize("start, rest", CRAWLING.values(), ids=CRAWLING)
def test_an_answer_that_crawls_for_ever_is_given_up(fetched, server, tmp_path, monkeypatch, start, rest):
    monkeypatch.setattr(fetch_module, "PERIOD", 0.1)
    said = refusal(fetched, tmp_path, {"raw": start, "for_ever": rest})
    assert "(fewer than 65,536 bytes in 0 s; " in said
    assert len(server.asked) == TRIES


def test_what_a_server_says_does_nothing_in_a_terminal(fetched, capsys):
    fetched(answer(status="503 \x1b[2J\x9b31mgone"), {})
    assert capsys.readouterr().err == r"download: HTTP 503 \x1b[2J\x9b31mgone, after 0 bytes; again in 1 s" + "\n"


def test_no_server_and_no_address_end_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"could not be downloaded \(<urlopen error .*refused>; 0 bytes so far\)"):
        fetch("http://127.0.0.1:9/x.zip", None, tmp_path, lambda seconds: None)
    for url in ("http://127.0.0.1:x/y.zip", "http://[::1/y.zip"):
        with pytest.raises(UserError, match="not an address"):
            fetch(url, None, tmp_path, lambda seconds: None)


def test_the_raw_archive_says_where_it_came_from_and_a_damaged_one_is_not_kept(server, tmp_path):
    packed = pack_zip(IMAGE, tmp_path / "own.zip").read_bytes()

    def brought(content):
        server.answers[:] = [{"content": content}]
        return download(data_params(name="archive", url=server.url), tmp_path / "raw", tmp_path / "downloads")

    with pytest.raises(UserError, match=f"{server.url}: cut short or damaged"):
        brought(packed[:-30])
    assert os.listdir(tmp_path / "downloads") == []
    source = brought(packed)
    assert source.origin == {"url": server.url, "sha256": hashlib.sha256(packed).hexdigest()}
    assert RawArchive(tmp_path / "raw").source == source
