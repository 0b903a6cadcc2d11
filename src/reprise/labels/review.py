"""The page on which a person reviews labels, by keyboard. A decision is on the disk before it is answered.

Two books take decisions: corrections of labels go into data/corrections.csv, and unlabelled images move to the folder
of their class.
"""

import asyncio
import base64
import hashlib
import io
import json
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reprise.data.formats.raw import RawArchive, image_id, shown
from reprise.data.prepare.corrections import CORRECTIONS, DROP, HEADER, Correction, read_corrections, replacing
from reprise.data.prepare.decode import BadImageError, decode
from reprise.labels.report import read_own_doubts
from reprise.repo.project import Project
from reprise.repo.revisions import RAW
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError, listed
from reprise.runtime.signals import Stopped
from reprise.runtime.tables import row_writer

SHOWN = 512  # pixels of a side, on the page
PAGE = Path(__file__).with_name("review.html")
Record = dict[str, str]  # a decision as its book has it: at least its label, a class or DROP


@dataclass(frozen=True)
class Candidate:
    """An image to decide on: its name, its label ("" if it has none), what is suggested, why, its file's SHA-256.

    near: names and labels of images like it.
    """

    id: str
    label: str
    suggested: str
    why: str
    sha256: str
    near: Sequence[Sequence[str]] = ()


class Book(Protocol):
    """Keeps decisions on images by their names; `names` are those that it can show and keep."""

    names: set[str]

    def decided(self) -> dict[str, Record]:
        """Return what is decided, by name."""

    def decide(self, name: str, before: Record | None, after: Record | None) -> Record | None:
        """Put one record in the place of another, None where there is none, and return it. It is on the disk then.

        Raises UserError where neither of them is there.
        """

    def read(self, name: str) -> bytes:
        """Return an encoded image."""


class Corrections:
    """Decisions in data/corrections.csv, on images of the raw archive; a record is a line. Lines of other images stay.

    The file is parsed again only where it is not what was read or written last, so that a decision beside thousands
    takes milliseconds. by: who decides; why: {id: reason}.
    """

    def __init__(self, archive: RawArchive, path: Path, by: str, why: dict[str, str]) -> None:
        self.archive, self.path, self.by, self.why = archive, path, by, why
        self.members = {image_id(member): member for member in archive.members}
        self.names = {*self.members}
        self.content, self.rows = b"", dict[str, tuple[Correction, bytes]]()  # of the file; lines as they are in it

    def reread(self) -> None:
        """Read the file, if it is not what was read or written last. Raises UserError as `read_corrections` does."""
        content = self.path.read_bytes() if self.path.exists() else b""
        if not content or content != self.content:
            self.rows = {name: (line, _row(line)) for name, line in read_corrections(self.path).items()}
            self.content = content  # read before the lines: if they are newer, they are read again

    def decided(self) -> dict[str, Record]:
        """Return the lines."""
        self.reread()
        return {name: line._asdict() for name, (line, _) in self.rows.items()}

    def decide(self, name: str, before: Record | None, after: Record | None) -> Record | None:
        """Add, replace or remove a line. after: a whole line, or one without by and why.

        Raises UserError, too, where another image of the same content has another label.
        """
        line = Correction(**{"by": self.by, "why": self.why.get(name, "")} | after | {"id": name}) if after else None
        record = line._asdict() if line else None
        with replacing(self.path, self._unedited) as partial:
            self.reread()
            rows = self.rows.copy()
            refuse_unseen(rows.pop(name)[0]._asdict() if name in rows else None, before, record)
            if line:
                for other, _ in rows.values():  # which `read_corrections` refuses
                    if other.sha256 == line.sha256 and len({other.label, line.label, DROP}) == 3:
                        same = f"{shown(other.id)}, the same image, is {other.label}"
                        raise UserError(f"{same}; decide alike, or drop one of them")
                rows[name] = line, _row(line)
            content = _row(HEADER) + b"".join(rows[each][1] for each in sorted(rows))
            partial.write_bytes(content)
        self.content, self.rows = content, rows
        return record

    def _unedited(self) -> None:
        if self.path.read_bytes() != self.content:
            raise UserError(f"{self.path}: edited at this very moment, which is kept; decide again")

    def read(self, name: str) -> bytes:
        """Return an encoded image of the archive as it was when the page was started."""
        try:
            return self.archive.read(self.members[name])
        except (UserError, OSError):
            why = f"{RAW} is gone or has changed: wait for `dvc repro`, and if this stays, start this page again"
            raise UserError(why) from None


def _row(line: Sequence[str]) -> bytes:
    """Return one line of data/corrections.csv."""
    row_writer(file := io.StringIO())(line)
    return file.getvalue().encode()


def refuse_unseen(now: Record | None, *expected: Record | None) -> None:
    """Raise UserError where a decision is none of those that are expected."""
    if now not in expected:
        raise UserError(f"somebody else has decided: {now['label'] if now else 'nothing, or took it back'}")


class Unlabelled:
    """Decisions on the files of a folder: each moves into the folder of its class beside the labelled images.

    journal: a file of what has moved, for the next page: where each was, and where it is.
    """

    def __init__(self, folder: Path, own: Path, journal: Path) -> None:
        self.folder, self.own, self.journal, self.moved = folder, own, journal, dict[str, Path]()
        for name, paths in (json.loads(journal.read_text("utf-8")) if journal.exists() else {}).items():
            there = [path for path in map(Path, paths) if path.exists() and not (folder / name).exists()]
            self.moved |= {name: there[-1]} if there else {}
        self.names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        self.names |= self.moved.keys()

    def decided(self) -> dict[str, Record]:
        """Return the classes of what has moved."""
        return {name: {"label": path.parent.name} for name, path in self.moved.items()}

    def decide(self, name: str, before: Record | None, after: Record | None) -> Record | None:
        """Move a file to a class, to another one, or back. Raises UserError where a file of this name is there."""
        record = {"label": after["label"]} if after else None
        if record == {"label": DROP}:
            raise UserError("an unlabelled image needs a class; leave out what has none, and go on")
        refuse_unseen(self.decided().get(name), before, record)
        here = self.moved.get(name, self.folder / name)
        target = self.own / record["label"] / Path(name).name if record else self.folder / name
        if here.is_symlink() or not here.is_file():
            raise UserError(f"{here}: gone, or a link; only files are moved")
        if target.exists() and target != here:
            raise UserError(f"{target}: there is such a file already; rename one of them")
        places = {other: [str(path)] for other, path in self.moved.items()} | {name: [str(here), str(target)]}
        with publishing(self.journal) as (partial,):  # first, with both: after a kill the file is in one of them
            partial.write_text(json.dumps(places), encoding="utf-8")
        here.replace(target)
        moved = {other: path for other, path in self.moved.items() if other != name}
        self.moved = moved | ({name: target} if record else {})
        return record

    def read(self, name: str) -> bytes:
        """Return a file's content, wherever it is now."""
        return self.moved.get(name, self.folder / name).read_bytes()


class Review:
    """The service behind the page.

    classes: the labels that there are; project: tells it from pages of others; depth: bits of 16-bit images.
    """

    def __init__(
        self, candidates: Sequence[Candidate], book: Book, classes: Sequence[str], project: str, depth: int = 16
    ) -> None:
        self.candidates, self.book, self.classes, self.project, self.depth = candidates, book, classes, project, depth
        self.writing = asyncio.Lock()

    async def state(self, _: Request) -> Response:
        """Answer GET /state: candidates and classes, which stay."""
        kept = {"classes": list(self.classes), "drop": DROP, "project": self.project}
        return JSONResponse(kept | {"candidates": list(map(vars, self.candidates))})

    async def decided(self, _: Request) -> Response:
        """Answer GET /decided with the records, by name."""
        async with self.writing:
            return JSONResponse(await asyncio.to_thread(self.book.decided))

    def content(self, name: str, sha256: str | None) -> bytes:
        """Return an encoded image. Raises UserError if it has another digest than that."""
        encoded = self.book.read(name)
        if sha256 not in (None, hashlib.sha256(encoded).hexdigest()):
            raise UserError(f"{shown(name)} is another image now than when this page was started; start it again")
        return encoded

    async def image(self, request: Request) -> Response:
        """Answer GET /image?id=NAME with a PNG; with &sha256=DIGEST, of that content alone."""
        name = request.query_params.get("id", "")
        if name not in self.book.names:
            raise HTTPException(404, "no such image")
        encoded = await asyncio.to_thread(self.content, name, request.query_params.get("sha256"))
        pixels = (await asyncio.to_thread(decode, encoded, SHOWN, 3, "fit", self.depth)).pixels
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=1)
        return Response(png.getvalue(), media_type="image/png")

    async def decide(self, request: Request) -> Response:
        """Answer POST /decide with the record once it is on the disk.

        {"project": ..., "id": NAME, "before": the record that the page takes it to have, "after": a record with the
        SHA-256 of the image that was shown}; a record is null where nothing is decided.
        """
        if request.headers.get("content-type") != "application/json":  # what another site's page cannot send
            raise HTTPException(415, "application/json is needed")
        try:
            asked = await request.json()
            name, before, after, project = (asked[key] for key in ("id", "before", "after", "project"))
            known = name in self.book.names and (after is None or after["label"] in (*self.classes, DROP))
            sha256 = after and str(after["sha256"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HTTPException(400, "an id and what is decided are needed") from None
        if project != self.project:
            raise HTTPException(421, "this is another page")
        if not known:
            raise HTTPException(422, "no such image or class")
        async with self.writing:
            if sha256 is not None:
                await asyncio.to_thread(self.content, name, sha256)
            return JSONResponse({"decided": await asyncio.to_thread(self.book.decide, name, before, after)})


def of_doubts(project: Project) -> tuple[list[Candidate], Book, list[str]]:
    """Return the images of `read_own_doubts`, the book of corrections, and the classes of the raw data."""
    rows, archive = read_own_doubts(project)
    by = project.git("config", "user.name", check=False).strip().encode("utf-8", "replace").decode()
    book = Corrections(archive, project.root / CORRECTIONS, by, {row.id: row.why for row in rows})
    candidates = [Candidate(*row[:3], row.why, row.sha256, json.loads(row.near)) for row in rows]
    return candidates, book, archive.source.classes


def class_folders(own: Path, classes: Sequence[str]) -> Path:
    """Return the folder of the user's images that has one for each class, with files alone in it.

    Raises UserError if there is none, or if a CSV has the labels.
    """
    for folder in (own, own / "train"):
        inside = [folder / name for name in classes]
        flat = all(each.is_dir() and not any(below.is_dir() for below in each.iterdir()) for each in inside)
        if flat and not [*own.glob("*.csv"), *folder.glob("*.csv")]:
            return folder
    many = listed(classes)
    raise UserError(f"{own}: has not just a folder of files for each of the classes {many}; only such can be added to")


def run(review: Review, server: socket.socket) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    with suppress(Stopped, KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(application(review), ws="none", log_level="error")).run(sockets=[server])


def application(review: Review) -> Starlette:
    """Return the page and its service as an ASGI application, for names of this machine alone."""
    html = PAGE.read_text("utf-8")
    own = {kind: _digest(re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)[0]) for kind in ("script", "style")}
    policy = f"default-src 'none'; img-src 'self'; connect-src 'self'; script-src {own['script']}; "
    policy += f"style-src {own['style']}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

    async def page(_: Request) -> Response:
        return Response(html, headers={"Content-Security-Policy": policy}, media_type="text/html")

    async def refuse(_: Request, error: Any) -> Response:
        reason, code = getattr(error, "detail", str(error)), getattr(error, "status_code", 409)
        return JSONResponse({"reason": reason}, code)

    routes: list[Any] = [Route("/", page), Route("/decide", review.decide, methods=["POST"])]
    routes += [Route(f"/{each.__name__}", each) for each in (review.state, review.decided, review.image)]
    local = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    handlers: dict[Any, Callable[..., Any]] = dict.fromkeys((HTTPException, UserError, BadImageError, OSError), refuse)
    return Starlette(routes=routes, middleware=[local], exception_handlers=handlers)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
