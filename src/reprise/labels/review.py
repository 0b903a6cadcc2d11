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
from dataclasses import asdict, dataclass
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

from reprise.data.formats.raw import RawArchive, image_id
from reprise.data.prepare.corrections import CORRECTIONS, DROP, Correction, add_corrections, read_corrections
from reprise.data.prepare.decode import BadImageError, decode
from reprise.labels.report import read_doubts
from reprise.repo.project import Project
from reprise.repo.revisions import RAW
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError, listed
from reprise.runtime.signals import Stopped

SHOWN = 512  # pixels of a side, on the page
PAGE = Path(__file__).with_name("review.html")


@dataclass(frozen=True)
class Candidate:
    """An image to decide on: its name, its label ("" if it has none), what is suggested, and why; images like it."""

    id: str
    label: str
    suggested: str
    why: str
    near: Sequence[Sequence[str]] = ()  # names and labels


class Book(Protocol):
    """Keeps decisions on images by their names."""

    def decided(self) -> dict[str, str]:
        """Return {name: label or DROP} of what is decided."""

    def decide(self, name: str, label: str | None) -> None:
        """Keep a decision, DROP for an image that is to go, None to take it back. It is on the disk afterwards."""

    def read(self, name: str) -> bytes:
        """Return an encoded image."""


class Corrections:
    """Decisions in data/corrections.csv, on images of the raw archive. Lines of other images stay.

    by: who decides; why: {id: reason}. A line that was there at first comes back whole with its label.
    """

    def __init__(self, archive: RawArchive, path: Path, by: str, why: dict[str, str]) -> None:
        self.archive, self.path, self.by, self.why = archive, path, by, why
        self.first = read_corrections(path)
        self.members = {image_id(member): member for member in archive.members}

    def decided(self) -> dict[str, str]:
        """Return {name: label or DROP} of the lines."""
        return {name: line.label for name, line in read_corrections(self.path).items()}

    def decide(self, name: str, label: str | None) -> None:
        """Add, replace or remove a line."""
        sha256, why = self.sha256(name), self.why.get(name, "")
        line, first = Correction(name, sha256, label or "", self.by, why), self.first.get(name)
        line = first if first and first.label == label else line
        add_corrections(self.path, [line] if label else [], without=[name])

    def sha256(self, name: str) -> str:
        """Return the digest of an image's file."""
        return hashlib.sha256(self.read(name)).hexdigest()

    def read(self, name: str) -> bytes:
        """Return an encoded image of the archive."""
        return self.archive.read(self.members[name])


class Unlabelled:
    """Decisions on the files of a folder: each moves into the folder of its class beside the labelled images.

    journal: a file of what has moved, for the next page.
    """

    def __init__(self, folder: Path, own: Path, journal: Path) -> None:
        self.folder, self.own, self.journal = folder, own, journal
        moved = json.loads(journal.read_text("utf-8")) if journal.exists() else {}
        self.moved = {name: Path(path) for name, path in moved.items() if not (folder / name).exists()}

    def decided(self) -> dict[str, str]:
        """Return {name: class} of what has moved."""
        return {name: path.parent.name for name, path in self.moved.items()}

    def decide(self, name: str, label: str | None) -> None:
        """Move a file to a class, to another one, or back. Raises UserError where a file of this name is there."""
        if label == DROP:
            raise UserError("an unlabelled image needs a class; leave out what has none, and go on")
        here = self.moved.get(name, self.folder / name)
        target = self.folder / name if label is None else self.own / label / Path(name).name
        if here.is_symlink() or not here.is_file():
            raise UserError(f"{here}: gone, or a link; only files are moved")
        if target.exists() and target != here:
            raise UserError(f"{target}: there is such a file already; rename one of them")
        moved = {other: path for other, path in self.moved.items() if other != name}
        moved |= {name: target} if label is not None else {}
        with publishing(self.journal) as (partial,):  # first: what has not moved after a kill is still in its folder
            partial.write_text(json.dumps({other: str(path) for other, path in moved.items()}), encoding="utf-8")
        here.replace(target)
        self.moved = moved

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
        self.names = {each.id for each in candidates} | book.decided().keys()
        self.shown = self.names | {name for each in candidates for name, _ in each.near}
        self.writing = asyncio.Lock()

    async def state(self, _: Request) -> Response:
        """Answer GET /state: candidates, classes, and what is decided."""
        found = {
            "classes": list(self.classes),
            "drop": DROP,
            "project": self.project,
            "candidates": [asdict(each) for each in self.candidates],
        }
        return JSONResponse(found | {"decided": self.book.decided()})

    async def image(self, request: Request) -> Response:
        """Answer GET /image?id=NAME with a PNG."""
        name = request.query_params.get("id", "")
        if name not in self.shown:
            raise HTTPException(404, "no such image")
        try:
            encoded = await asyncio.to_thread(self.book.read, name)
            pixels = (await asyncio.to_thread(decode, encoded, SHOWN, 3, "fit", self.depth)).pixels
        except (BadImageError, UserError, OSError) as error:
            raise HTTPException(404, str(error)) from None
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=1)
        return Response(png.getvalue(), media_type="image/png")

    async def decide(self, request: Request) -> Response:
        """Answer POST /decide once the decision is on the disk.

        {"project": ..., "id": NAME, "label": CLASS, DROP or null, "before": the label that the page takes it to have}
        """
        if request.headers.get("content-type") != "application/json":  # what another site's page cannot send
            raise HTTPException(415, "application/json is needed")
        try:
            asked = await request.json()
            name, label, before, project = (asked[key] for key in ("id", "label", "before", "project"))
            known = name in self.names and label in (*self.classes, DROP, None)
        except (ValueError, KeyError, TypeError):
            raise HTTPException(400, "an id and a label are needed") from None
        if project != self.project:
            raise HTTPException(421, "this is another page")
        if not known:
            raise HTTPException(422, "no such image or class")
        async with self.writing:
            try:
                now = (await asyncio.to_thread(self.book.decided)).get(name)
                if now not in (before, label):
                    raise UserError(f"somebody else has decided: {now}")
                if now != label:
                    await asyncio.to_thread(self.book.decide, name, label)
            except (UserError, OSError) as error:
                raise HTTPException(409, str(error)) from None
        return JSONResponse({"decided": label})


def of_doubts(project: Project) -> tuple[list[Candidate], Book, list[str]]:
    """Return the images in runs/labels/labels.csv, the book of corrections, and the classes of the raw data.

    Raises UserError for a list of other data, or of images whose content was another one.
    """
    rows, archive = read_doubts(project.root / "runs/labels/labels.csv"), RawArchive(project.root / RAW)
    by = project.git("config", "user.name", check=False).strip()
    book = Corrections(archive, project.root / CORRECTIONS, by, {row.id: row.why for row in rows})
    same = {row.id for row in rows if row.id in book.members and book.sha256(row.id) == row.sha256}
    if other := [row.id for row in rows if row.id not in same]:
        raise UserError(
            f"runs/labels is of other data than data/raw: {listed(other)}; `dvc repro`, then `reprise labels`"
        )
    candidates = [Candidate(row.id, row.label, row.suggested, row.why, json.loads(row.near)) for row in rows]
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
        return JSONResponse({"reason": error.detail}, error.status_code)

    routes: list[Any] = [Route("/", page), Route("/state", review.state), Route("/image", review.image)]
    routes.append(Route("/decide", review.decide, methods=["POST"]))
    local = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    handlers: dict[Any, Callable[..., Any]] = {HTTPException: refuse}
    return Starlette(routes=routes, middleware=[local], exception_handlers=handlers)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
