"""`reprise serve`: a model behind HTTP.

POST /predict takes one image as its body, or several as multipart/form-data; /model is the model card, /metrics what
Prometheus reads, / a page for people. What is no request, too large, too slow or too much is refused with a status of
its own and {"reason": one line}, before it costs memory.
"""

import asyncio
import base64
import hashlib
import logging
import re
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, cast

import prometheus_client as prometheus
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from reprise.data.formats.images import HEAD, READ, kind_of
from reprise.inference.batching import Batcher
from reprise.inference.predict import Model
from reprise.runtime.errors import UserError, brief, reason
from reprise.runtime.signals import Stopped

PAGE = Path(__file__).with_name("serve.html")
CONNECTIONS = 2_000  # open at once, at most; further ones are answered with 503
ANSWER_S = 30  # from a request's last byte to its answer
HELD = 16  # bodies of the largest size that are in memory at once, at most
AGAIN = {"Retry-After": "1"}
Message = MutableMapping[str, Any]
REFUSALS = {
    400: "an empty or malformed body",
    408: "the body did not arrive in time",
    413: "a body, or a number of images, above the limits",
    415: "no image that can be read",
    422: "a damaged image, or a wrong query",
    503: "too much to do: ask again after a second",
}


@dataclass(frozen=True)
class Limits:
    """body: bytes; images: of one request; queue: images accepted and not yet answered; seconds: to receive a body."""

    body: int = 16 << 20
    images: int = 64
    queue: int = 256
    seconds: float = 10


class Answer(BaseModel):
    """The answer for one image, or the reason why there is none; `top`: classes and probabilities, likeliest first."""

    name: str
    label: str | None
    probability: float | None
    top: list[tuple[str, float]]
    reason: str


class Answers(BaseModel):
    """Answers in the order of the images."""

    predictions: list[Answer]


class Refusal(BaseModel):
    """Why a request is not answered."""

    reason: str


class Service:
    """What requests share: the batches, what is in memory, and the counts for Prometheus."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.limits, self.held, self.images = limits, 0, 0
        self.registry = prometheus.CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        prometheus.ProcessCollector(registry=self.registry)
        self.requests = prometheus.Counter("reprise_requests", "Requests answered, by status", ["status"], **kept)
        self.seconds = prometheus.Histogram("reprise_predict_seconds", "From a request's head to its answer", **kept)
        buckets = (1, 2, 4, 8, 16, 32, 64)
        batches = prometheus.Histogram("reprise_batch_images", "Images computed together", buckets=buckets, **kept)
        waiting = prometheus.Gauge("reprise_waiting_images", "Images accepted and not yet answered", **kept)
        waiting.set_function(lambda: self.images)
        self.batcher = Batcher(model, batches.observe)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield a request's body, and count its bytes until it is answered. Raises HTTPException for limits."""
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                self._check(int(request.headers.get("content-length", 0)))
                async for chunk in request.stream():
                    chunks.append(chunk)
                    size += len(chunk)
                    self.held += len(chunk)
                    self._check(size)
            body = b"".join(chunks)
            chunks.clear()
            yield body
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {self.limits.seconds:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the body is cut off") from None
        finally:
            self.held -= size

    def _check(self, size: int) -> None:
        if size > self.limits.body:
            raise HTTPException(413, f"a body of more than {self.limits.body:,} bytes")
        if self.held > HELD * self.limits.body:
            raise HTTPException(503, "too many bodies at once; ask again", AGAIN)

    async def answer(self, images: list[tuple[str, bytes]], top: int) -> list[dict[str, Any]]:
        """Return the answer for each image. Raises HTTPException where too many wait."""
        if self.images + len(images) > self.limits.queue:
            raise HTTPException(503, f"{self.images} images are waiting; ask again", AGAIN)
        self.images += len(images)
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await asyncio.gather(*(self.batcher.predict(name, image, top) for name, image in images))
        except TimeoutError:
            raise HTTPException(503, f"not computed within {ANSWER_S} s; ask again", AGAIN) from None
        finally:
            self.images -= len(images)
        return [each.plain() for each in found]


def images_of(body: bytes, content_type: str, most: int) -> list[tuple[str, bytes]]:
    """Return names and bytes of the images of a body: all of it or, of multipart/form-data, its files.

    Raises HTTPException for a malformed body, none or too many images.
    """
    kind, options = parse_options_header(content_type)
    images: list[tuple[str, bytes]] = []
    ended: list[bool] = []

    def add(name: bytes | None, content: bytes | None) -> None:
        if len(images) == most:
            raise HTTPException(413, f"more than {most} images in one request")
        images.append(((name or b"").decode("utf-8", "replace"), content or b""))

    if kind == b"multipart/form-data":
        try:
            parser = FormParser(
                kind.decode(),
                lambda field: add(field.field_name, field.value),
                lambda file: add(file.file_name, cast(BytesIO, file.file_object).getvalue()),
                lambda: ended.append(True),
                options.get(b"boundary"),
                config={"MAX_MEMORY_FILE_SIZE": len(body)},
            )
            parser.write(body)
            parser.finalize()
        except FormParserError as error:
            raise HTTPException(400, f"no multipart/form-data: {brief(reason(error))}") from None
        if not ended:
            raise HTTPException(400, "no multipart/form-data: the end is missing")
    elif body:
        add(b"0", body)
    if not images:
        raise HTTPException(400, "no image in the body")
    return images


def application(model: Model, limits: Limits) -> Callable[..., Awaitable[None]]:
    """Return the service as an ASGI application."""
    service, page = Service(model, limits), PAGE.read_text(encoding="utf-8")
    parts = re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    digests = {kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in parts}
    allowed = "; ".join(f"{kind}-src 'sha256-{digest}'" for kind, digest in digests.items())
    policy = f"default-src 'none'; {allowed}; img-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    its_headers = {"Content-Security-Policy": f"{policy}; frame-ancestors 'none'", "Referrer-Policy": "no-referrer"}
    card = model.card.model_dump_json()
    app = FastAPI(title="Reprise", description="An image classifier.", docs_url=None, redoc_url=None)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": text} for status, text in REFUSALS.items()
    }
    of_image = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"images": {"type": "array", "items": of_image}}}
    content = {"image/*": {"schema": of_image}, "multipart/form-data": {"schema": form}}
    described = {"requestBody": {"required": True, "content": content}}

    @app.post("/predict", response_model=Answers, responses=responses, openapi_extra=described)
    async def predict(request: Request, top: Annotated[int, Query(ge=1)] = 5) -> Response:
        """Classify one image, the body, or several, the parts of multipart/form-data."""
        with service.seconds.time():
            async with service.body(request) as body:
                images = images_of(body, request.headers.get("content-type", ""), limits.images)
                answers = await service.answer(images, top)
        if any(answer["label"] is not None for answer in answers):
            return JSONResponse({"predictions": answers})
        status = 422 if any(kind_of(image[:HEAD]) in READ for _, image in images) else 415
        return JSONResponse({"reason": answers[0]["reason"], "predictions": answers}, status)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the service answers."""
        return {"status": "ok"}

    @app.get("/model", response_class=JSONResponse)
    async def model_card() -> Response:
        """Return the model card: classes, preprocessing, training, digests."""
        return Response(card, media_type="application/json")

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(prometheus.generate_latest(service.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, headers=its_headers, media_type="text/html")

    @app.exception_handler(StarletteHTTPException)
    async def refuse(_: Request, error: StarletteHTTPException) -> Response:
        return JSONResponse({"reason": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_query(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"reason": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    async def counted(scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                service.requests.labels(message["status"]).inc()
                message["headers"].append((b"x-content-type-options", b"nosniff"))
            await send(message)

        await app(scope, receive, sending)

    return counted


class Patient(H11Protocol):
    """A connection that is closed where the head of a request does not arrive in time."""

    head_s = 10.0

    def connection_made(self, transport: Any) -> None:
        """Begin to watch."""
        super().connection_made(transport)
        self.loop.call_later(self.head_s, self.look, None)

    def look(self, seen: object) -> None:
        """Close the connection if no request has begun since the last look, at which it had had `seen`."""
        if self.transport.is_closing():
            return
        if self.cycle is seen and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        else:
            self.loop.call_later(self.head_s, self.look, self.cycle)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens. Raises UserError, for a port in use among others."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family, backlog=CONNECTIONS) as server:
            yield server
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{host}:{port}: {getattr(error, 'strerror', error)}; name another by --host and --port"
        ) from None


def run(model: Model, server: socket.socket, limits: Limits) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were accepted by then are answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * CONNECTIONS)), hard))
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # what it says is the answer, too
    config = uvicorn.Config(
        application(model, limits),
        http=Patient,
        ws="none",
        lifespan="off",
        log_level="critical",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=ANSWER_S,
        server_header=False,
    )
    with suppress(Stopped):  # uvicorn sends itself the signal again, once it has stopped
        uvicorn.Server(config).run(sockets=[server])
