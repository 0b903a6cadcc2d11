"""`reprise serve`: a model behind HTTP.

POST /predict takes one image as its body, or several as multipart/form-data; /model is the model card with what answers
promise, /metrics what Prometheus reads, / a page for people; openapi.json describes them. What is too large, too slow,
too much or no image is refused with a status of its own and {"reason": one line}.
"""

import asyncio
import json
import logging
import signal
import socket
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client as prometheus
import uvicorn
from PIL import Image
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from reprise.data.formats.images import HEAD, READ, kind_of
from reprise.data.prepare.decode import FORMATS
from reprise.inference.batching import Batched
from reprise.inference.predict import Model, Prediction
from reprise.inference.sources import decode_task
from reprise.runtime.errors import UserError, reason, visible
from reprise.runtime.signals import Stopped

DECODED, COMPUTED = 8, 64  # images that a thread takes at once, at most: the first one waits for the others
CONNECTIONS = 900  # at once, at most, as a process may open 1,024 files by default; others are answered with 503
PIXELS = 64_000_000  # of a request, at most: the one thread decodes them in one or two seconds
SCANS = 100  # of a JPEG, at most, for the same reason; a progressive one has about ten
STOP_S = 45  # from a signal to the end, at most
ANSWER_S = 30  # from a body's last byte to the answer, at most
POLICY = (  # of the page: its own script and style by their SHA-256, this service, and nothing else
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; img-src blob:; connect-src 'self'"
    "; script-src 'sha256-mpH3q7ttUHYzpq0sWvSdW9/tuOkF29j/8y8ePtm80P4='"
    "; style-src 'sha256-BIHsOwOuIVu+8yS0lqTh2wf1BCJzgG6hs9F7Rlb7xC0='"
)


class Service:
    """A model that answers requests. One thread decodes, which bounds the memory, and another one computes.

    body: bytes of a request; images: of one; requests: accepted at once; seconds: for a request to arrive.
    """

    def __init__(
        self, model: Model, body: int = 16 << 20, images: int = 64, requests: int = 128, seconds: float = 10
    ) -> None:
        self.model, self.at_work = model, 0
        self.body, self.images, self.requests, self.seconds = body, images, requests, seconds
        self.decode = Batched(partial(decode_task, model.card.preprocessing), DECODED)
        self.compute = Batched(self._compute, COMPUTED)
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self.answers = prometheus.Counter("reprise_answers", "Of /predict and refusals", ["status"], registry=registry)
        self.time = prometheus.Histogram("reprise_predict_seconds", "Of a request to /predict", registry=registry)
        self.batches = prometheus.Summary("reprise_batch_images", "Images computed together", registry=registry)
        prometheus.Gauge("reprise_requests", "At work", registry=registry).set_function(lambda: self.at_work)

    def _compute(self, images: list[np.ndarray]) -> Any:
        self.batches.observe(len(images))
        return self.model.answers(np.stack(images)) if images else []

    async def predict(self, request: Request) -> Response:
        """Answer POST /predict."""
        top = request.query_params.get("top", "5")
        if not (top.isascii() and top.isdigit() and len(top) < 10):
            raise HTTPException(422, "top: a number of classes is needed, such as 5")
        if self.at_work >= self.requests:
            raise HTTPException(503, f"{self.at_work} requests are at work; ask again", {"Retry-After": "1"})
        self.at_work += 1
        try:
            with self.time.time():
                images = await self._received(request)
                async with asyncio.timeout(ANSWER_S):
                    loop = asyncio.get_running_loop()
                    if why := await loop.run_in_executor(self.decode.thread, too_much, images):
                        raise HTTPException(422, why)
                    found = await asyncio.gather(*(self._answer(each, int(top)) for each in images))
        except (TimeoutError, MemoryError):
            raise HTTPException(503, "too much to do or too little memory; ask again", {"Retry-After": "9"}) from None
        finally:
            self.at_work -= 1
        answers: dict[str, Any] = {"predictions": [each.plain() for each in found]}
        if any(each.label is not None for each in found):
            return self.reply(answers, 200)
        status = 422 if any(kind_of(image[:HEAD]) in READ for _, image in images) else 415
        return self.reply({"reason": found[0].reason} | answers, status)

    async def _answer(self, image: tuple[str, bytes], top: int) -> Prediction:
        name, pixels = await self.decode(image)
        if isinstance(pixels, str):
            return Prediction(name, reason=pixels)
        return self.model.prediction(name, await self.compute(pixels), top)

    async def _received(self, request: Request) -> list[tuple[str, bytes]]:
        """Return names and bytes of the images of a request. Raises HTTPException for limits and malformed bodies."""
        size, end = 0, b""

        async def receive() -> Any:
            nonlocal size, end
            message = await request.receive()
            chunk = message.get("body", b"")
            size, end = size + len(chunk), (end + chunk[-99:])[-99:]
            if size > self.body:
                raise HTTPException(413, f"a body of more than {self.body:,} bytes")
            return message

        limited = Request(request.scope, receive)
        try:
            async with asyncio.timeout(self.seconds):
                if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                    return [("0", await limited.body())]
                async with limited.form(max_files=self.images, max_fields=0) as form:
                    files = [file for _, file in form.multi_items() if not isinstance(file, str)]
                    images = [(visible(file.filename or ""), await file.read()) for file in files]
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {self.seconds:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the body is cut off") from None
        except (UnicodeError, LookupError):
            raise HTTPException(400, "a charset that the names of the form are not in") from None
        boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
        if not images or not end.rstrip().endswith(b"--%s--" % boundary):
            raise HTTPException(400, "a form without images, or without its end")
        return images

    async def metrics(self, _: Request) -> Response:
        """Answer GET /metrics."""
        return Response(prometheus.generate_latest(self.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    async def refuse(self, _: Request, error: Any) -> Response:
        """Answer where an HTTPException was raised."""
        return self.reply({"reason": error.detail}, error.status_code, error.headers)

    def reply(self, content: Any, status: int, headers: Any = None) -> Response:
        """Return an answer, counted."""
        self.answers.labels(status).inc()
        return JSONResponse(content, status, headers)


def too_much(images: list[tuple[str, bytes]]) -> str:
    """Return why the images of a request, names and bytes, would take too long to decode; "" if they would not."""
    pixels = 0
    for _, encoded in images:
        if encoded.count(b"\xff\xda") > SCANS and kind_of(encoded[:HEAD]) == "JPEG":
            return f"a JPEG of more than {SCANS} scans"
        with warnings.catch_warnings(action="ignore"):  # of a large image
            try:
                width, height = Image.open(BytesIO(encoded), formats=FORMATS).size
                pixels += width * height
            except Image.DecompressionBombError:
                pixels += PIXELS + 1
            except Exception:  # whatever hostile bytes provoke: decoding says what is wrong
                continue
    return f"more than {PIXELS // 10**6} megapixels" if pixels > PIXELS else ""


def application(model: Model, **limits: Any) -> Starlette:
    """Return the service as an ASGI application; limits: see `Service`."""
    service = Service(model, **limits)
    described = model.card.model_dump(mode="json") | {"confidence": model.confidence.promises()}
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/metrics", service.metrics),
        Route("/health", fixed('{"status": "ok"}')),
        Route("/model", fixed(json.dumps(described))),
        Route("/openapi.json", fixed(Path(__file__).with_name("openapi.json").read_text("utf-8"))),
        Route("/", fixed(Path(__file__).with_name("serve.html").read_text("utf-8"), "text/html")),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: service.refuse})


def fixed(content: str, kind: str = "application/json") -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that always answers with this content."""

    async def endpoint(_: Request) -> Response:
        return Response(content, headers={"Content-Security-Policy": POLICY}, media_type=kind)

    return endpoint


class Patient(H11Protocol):
    """A connection that is closed where the head of a request does not arrive in 5 to 10 s."""

    def connection_made(self, transport: Any) -> None:
        """Begin to watch."""
        super().connection_made(transport)
        self.loop.call_later(self.timeout_keep_alive, self.look, None)

    def look(self, seen: object) -> None:
        """Close the connection if no request has begun since the last look; `seen`: the last request at that time."""
        if self.cycle is seen and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        if not self.transport.is_closing():
            self.loop.call_later(self.timeout_keep_alive, self.look, self.cycle)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises UserError, for a port in use among others."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        options = "--port" if host == "127.0.0.1" else "--host or --port"
        raise UserError(f"{host}, port {port}: {reason(error)}; name another by {options}") from None


def run(model: Model, server: socket.socket, **limits: Any) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C, and answer the requests accepted by then. limits: see `Service`."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # what it says is the answer, too
    settings: dict[str, Any] = {"http": Patient, "ws": "none", "log_level": "error", "limit_concurrency": CONNECTIONS}
    config = uvicorn.Config(application(model, **limits), timeout_graceful_shutdown=STOP_S, **settings)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with suppress(Stopped):  # uvicorn sends itself the signal again, once it has stopped
        uvicorn.Server(config).run(sockets=[server])
