"""HTTP downloads that arrive whole or not at all: retried, resumed where they broke off, verified, kept.

A part lies under `NAME.partial` beside `NAME.partial.tag`, which holds the ETag or date of its version: the server
is asked for the rest of that version only (RFC 9110, If-Range), and anything else starts again.
"""

import hashlib
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote
from urllib.request import Request, urlopen

from tqdm import tqdm

from reprise.data.formats.images import kind_of
from reprise.runtime.atomic import Lock
from reprise.runtime.checksums import file_sha256, naming
from reprise.runtime.errors import UserError, reason, say

TRIES = 5  # without LEAST bytes more, one after the other
TIMEOUT = 30  # seconds without a byte
PERIOD, LEAST = 60.0, 1 << 16  # seconds, and the bytes that have to come in them
CHUNK = 1 << 18
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP errors that may be over soon


class BrokenOffError(Exception):
    """A try that ended early; the message is the reason."""


def fetch(url: str, sha256: str | None, folder: Path, sleep: Callable[[float], None] = time.sleep) -> tuple[Path, str]:
    """Download a file into `folder`, where it is kept for the next time; return its path and its SHA-256.

    sha256: only the file with this checksum is accepted; None: any. A try that fails is repeated after 1, 2, 4, 8
    seconds, and resumes where the last one broke off. Raises UserError for an address without such a file, an HTML
    page, another checksum, or when no try gets further.
    """
    sha256 = sha256 and sha256.lower()
    file_name = unquote(re.split("[?#]", url)[0]).rpartition("/")[2]
    name = re.sub(r"[^\w.-]", "_", file_name)[-80:] or "archive"
    key = hashlib.sha256(f"{url}\n{sha256}".encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}-{name}"
    with Lock(path):  # a second process finds what the first has brought
        if path.exists():
            if (seen := file_sha256(path)) == (sha256 or seen):
                return path, seen
            path.unlink()  # damaged since
        return path, _fetch(url, sha256, path, sleep)


def _fetch(url: str, sha256: str | None, path: Path, sleep: Callable[[float], None]) -> str:
    """Download until the file is whole or no try gets further; return its SHA-256."""
    partial = Partial(path)
    failures, most = 0, -1
    while True:
        try:
            resumed = _try(url, partial)
            if (seen := file_sha256(partial.path)) == (sha256 or seen):
                partial.path.replace(path)
                partial.discard()
                return seen
            partial.discard()
            if not resumed:
                raise UserError(
                    f"data.url = {url}: came with the SHA-256 {seen}, not {sha256}; correct data.sha256, or data.url"
                )
            said = "the parts do not fit together"
        except HTTPError as error:
            said = " ".join(f"HTTP {error.code} {error.reason}".split())
            if error.code not in PASSING:
                raise UserError(f"data.url = {url}: {said}; check the address") from None
        except (InvalidURL, ValueError) as error:  # ValueError: an impossible host, also of a redirection
            raise UserError(f"data.url = {url}: not an address, or it leads to none ({error}); correct it") from None
        except (OSError, HTTPException, BrokenOffError) as error:
            if isinstance(error, OSError) and error.filename:  # of the disk, not of the network
                raise
            said = reason(error)
        failures = 1 if partial.size >= most + LEAST else failures + 1
        most = max(most, partial.size)
        if failures >= TRIES:
            raise UserError(
                f"data.url = {url}: could not be downloaded ({said}; {partial.size:,} bytes so far); check the "
                "network and run it again, which goes on from there, or bring the file here and set data.path to it"
            )
        seconds = 2 ** (failures - 1)
        say(f"download: {said}, after {partial.size:,} bytes; again in {seconds} s", file=sys.stderr)
        sleep(seconds)


class Partial:
    """What has arrived so far of the file at `path`, and the ETag or date of the version that it is a part of."""

    def __init__(self, path: Path) -> None:
        self.path, self.tag = (path.with_name(f"{path.name}.{suffix}") for suffix in ("partial", "partial.tag"))

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> str:
        """The ETag or date of the version; empty if there is nothing to resume."""
        return self.tag.read_text(encoding="latin-1") if self.size and self.tag.exists() else ""

    def start(self, version: str) -> None:
        """Begin again with a version."""
        self.discard()
        with naming(self.tag):
            self.tag.write_text(version, encoding="latin-1")

    def discard(self) -> None:
        """Remove the part and its tag."""
        self.path.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


def _try(url: str, partial: Partial) -> bool:
    """Fetch the rest of the file, or all of it; return whether it was the rest. Raises BrokenOffError if it ended."""
    wanted = partial.version
    have = partial.size if wanted else 0
    headers = {"User-Agent": "reprise"} | ({"Range": f"bytes={have}-", "If-Range": wanted} if have else {})
    try:
        with _crawling_ends(partial), urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
            start, total = _extent(response)
            etag = response.headers.get("ETag", "")  # a weak one names no version to the byte
            version = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
            if start and (start != have or version not in ("", wanted)):
                partial.discard()
                raise BrokenOffError("the server sent a part of something else")
            if not start:
                partial.start(version)
            _receive(response, url, partial, start, total)
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        partial.discard()
        raise BrokenOffError("the server has no such part") from None
    if total is not None and partial.size != total:
        raise BrokenOffError(f"{partial.size:,} of {total:,} bytes came")
    return start > 0


@contextmanager
def _crawling_ends(partial: Partial) -> Iterator[None]:
    """Raise BrokenOffError where too few bytes of the body come, be it that only headers do; in the main thread."""
    seen = partial.size

    def look(*_: object) -> None:
        nonlocal seen
        if partial.size < seen + LEAST:
            raise BrokenOffError(f"fewer than {LEAST:,} bytes in {PERIOD:.0f} s")
        seen = partial.size

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, PERIOD, PERIOD)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """Return where the body starts in the file, and the file's length if the server states it."""
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        content_range = response.headers.get("Content-Range", "").strip()
        said = re.fullmatch(r"bytes ([0-9]{1,15})-[0-9]+/([0-9]{1,15}|\*)", content_range)
        if said is None:
            raise BrokenOffError("the server did not say which part it sent")
        return int(said[1]), None if said[2] == "*" else int(said[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch("[0-9]{1,15}", length) else None


def _receive(response: HTTPResponse, url: str, partial: Partial, start: int, total: int | None) -> None:
    """Append the body to the part, with a progress bar on a terminal.

    Raises UserError for an HTML page, and for more than half of the free disk: the images need as much again.
    """
    most = start + shutil.disk_usage(partial.path.parent).free // 2
    bar = tqdm(desc="download", initial=start, total=total, unit="B", unit_scale=True, leave=False, disable=None)
    with bar, partial.path.open("ab") as file:
        chunk = b" "
        while max(file.tell(), total or 0) <= most and (chunk := response.read1(CHUNK)):
            if not file.tell() and kind_of(chunk) == "HTML":
                partial.discard()
                raise UserError(
                    f"data.url = {url}: an HTML page came, not an archive (an error, or a page to log in on?); open it "
                    "in a browser and take the address of the file itself"
                )
            with naming(partial.path):
                file.write(chunk)
            bar.update(len(chunk))
        with naming(partial.path):
            file.flush()
    if chunk:
        if not total:
            partial.discard()
        size = f"is {total:,} bytes long" if total else "does not end"
        raise UserError(f"data.url = {url}: {size}; there is room for {most:,} and their images; free some space")
