"""`reprise serve` under load, beside LitServe's example with the same model; hostile bodies; start.

    python benchmarks/serve.py [--litserve PYTHON] [--seconds 60] [--turns 3]

Claims, with the default model (`test_resnet` at 32 pixels; untrained, which changes no time): 64 clients on loopback,
each with one request at a time, see no error, every answer is the model's own prediction within 1e-5, the service's
memory stays within 10 % from a quarter of the time on, and its throughput is at least that of LitServe; 1,000 hostile
bodies are answered by 4xx or cut off in time while /health answers; the first answer comes after less than 4 s with
torch and 1.5 s with ONNX. PYTHON: an interpreter that has LitServe and what Reprise needs. Contenders take turns; the
result is in benchmarks/README.md.
"""

import argparse
import asyncio
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from measure import ROOT, machine
from predict import make_model

CLIENTS = 64
LITSERVE = """
import sys
import litserve as ls
import numpy as np
from fastapi import UploadFile
from reprise.inference.predict import load_model
from reprise.inference.sources import pixels

class Classifier(ls.LitAPI):
    def setup(self, device):
        self.model = load_model(sys.argv[1])
    def decode_request(self, request: UploadFile):
        return pixels(request.file.read(), self.model.card.preprocessing)
    def batch(self, inputs):
        return np.stack(inputs)
    def predict(self, images):
        return self.model.probabilities(images if images.ndim == 4 else images[None])
    def unbatch(self, output):
        return list(output)
    def encode_response(self, output):
        return {"predictions": [self.model.prediction("0", np.squeeze(output), 10).plain()]}

if __name__ == "__main__":
    batch = int(sys.argv[3])
    api = Classifier(max_batch_size=batch, batch_timeout=0.005 if batch > 1 else 0)
    ls.LitServer(api, accelerator="cpu").run(port=int(sys.argv[2]), log_level="error", generate_client_file=False)
"""


def make_images(count: int) -> list[bytes]:
    """Return JPEGs of 32 pixels that resemble photos in size."""
    generator, files = np.random.default_rng(0), []
    for _ in range(count):
        image = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).resize((32, 32))
        image.save(file := io.BytesIO(), "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def request_of(body: bytes, kind: str = "multipart/form-data; boundary=b") -> bytes:
    """Return a whole request; by default the body is the file of a form, as LitServe needs it."""
    if kind.startswith("multipart"):
        head = b'--b\r\nContent-Disposition: form-data; name="request"; filename="0"\r\n\r\n'
        body = head + body + b"\r\n--b--\r\n"
    head = f"POST /predict?top=10 HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return status and body of a response."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def load(port: int, requests: list[bytes], expected: list[dict[str, float]], seconds: float) -> list[float]:
    """Ask with CLIENTS clients for so long; return the seconds of each answer. Each answer is checked."""
    end, times = time.perf_counter() + seconds, []

    async def client(place: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            writer.write(requests[place % len(requests)])
            status, body = await answer(reader)
            assert status == 200, (status, body)
            top = dict(json.loads(body)["predictions"][0]["top"])
            wanted = expected[place % len(requests)]
            assert top.keys() == wanted.keys() and all(abs(top[name] - wanted[name]) < 1e-5 for name in top)
            times.append(time.perf_counter() - start)
            place += CLIENTS + 1
        writer.close()

    await asyncio.gather(*(client(place) for place in range(CLIENTS)))
    return times


class Server:
    """A service as a child process, and the seconds until its first answer."""

    def __init__(self, command: list[str], port: int, request: bytes, expected: dict[str, float]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        start, self.port = time.perf_counter(), port
        command = [str(port) if part == "PORT" else part for part in command]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env=environment | {"PYTHONPATH": str(ROOT / "src")}
        )
        while True:
            try:
                asyncio.run(load(port, [request] * CLIENTS, [expected] * CLIENTS, 0.001))
                break
            except OSError:
                if self.process.poll() is not None or time.perf_counter() > start + 60:
                    sys.exit(f"{' '.join(command)}: does not answer")
                time.sleep(0.02)
        self.first_answer_s = time.perf_counter() - start

    def memory_mb(self) -> float:
        """Return the resident memory of its processes."""
        parent = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (parent, *parent.children(recursive=True))) / 2**20

    def stop(self) -> int:
        """Ask it to end; return its exit code."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            for each in children:
                if each.is_running():
                    each.kill()


POST = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
ENDLESS = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def hostile_requests(good: bytes) -> list[bytes]:
    """Return one request of each hostile kind; ENDLESS is followed by bytes without end, see `attack`."""
    bomb = io.BytesIO()
    Image.new("1", (17_000, 17_000)).save(bomb, "PNG")
    archive, parts = b"PK\x03\x04" + bytes(500), b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 9_999
    form = f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(parts)}\r\n\r\n".encode()
    return [
        *(request_of(body, "image/jpeg") for body in (bomb.getvalue(), good[: len(good) // 2], archive + good, b"")),
        *(request_of(body, "application/json") for body in (b"{}", b"<script>", good[:3] + os.urandom(999))),
        request_of(b"GIF89a" + os.urandom(99)),
        request_of(b""),
        POST + form + parts,
        POST + b"Content-Length: 99999999\r\n\r\n" + good,  # the rest of the body never comes
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"X: " + b"x" * 100_000,
        POST,  # nor does the rest of the head
        ENDLESS,
        os.urandom(3000),
    ]


async def attack(port: int, requests: list[bytes], at_once: int = 100) -> tuple[dict[str, int], float]:
    """Return how often each status came, or the end of the connection, and the slowest /health, in seconds."""
    counts: dict[str, int] = {}
    slowest, turn = 0.0, asyncio.Semaphore(at_once)

    async def go_on(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            await writer.drain()

    async def one(request: bytes) -> None:
        async with turn:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            more = asyncio.create_task(go_on(writer)) if request == ENDLESS else None
            try:
                async with asyncio.timeout(60):
                    said = (await reader.readline()).decode()[9:12] or "cut off"
            except TimeoutError:
                said = "not cut off"
            except OSError:
                said = "cut off"
            if more:
                more.cancel()
                await asyncio.gather(more, return_exceptions=True)
            counts[said] = counts.get(said, 0) + 1
            writer.close()

    async def health() -> None:
        nonlocal slowest
        while sum(counts.values()) < len(requests):
            start = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await answer(reader))[0] == 200
            writer.close()
            slowest = max(slowest, time.perf_counter() - start)
            await asyncio.sleep(0.05)

    await asyncio.gather(health(), *map(one, requests))
    return counts, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litserve", metavar="PYTHON")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--hostile", type=int, default=1_000)
    parser.add_argument("--kinds", nargs="*", default=["torch", "onnx"])
    parser.add_argument("--option", action="append", default=[], help="of `reprise serve`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("torch", "onnx"):
            (folder / kind).mkdir()
        make_model(folder / "torch")
        shutil.move(folder / "torch/model.onnx", folder / "onnx")
        (folder / "contender.py").write_text(LITSERVE)
        from reprise.inference.predict import load_model

        images = make_images(256)
        requests = [request_of(image) for image in images]
        expected = [dict(each.top) for each in load_model(folder / "onnx").predict(images, top=10)]
        print(f"{machine()}\n\n| contender | answers/s | p50 ms | p99 ms | memory MB | first answer s |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
        ours = [sys.executable, "-m", "reprise", "serve", *arguments.option, "--port", "PORT", "--model"]
        contenders = {f"reprise, {kind}": [*ours, str(folder / kind)] for kind in arguments.kinds}
        if arguments.litserve:
            for kind in arguments.kinds:
                for batch in ("1", "64"):
                    command = [arguments.litserve, str(folder / "contender.py"), str(folder / kind), "PORT", batch]
                    contenders[f"LitServe, {kind}, max_batch_size {batch}"] = command
        rows: dict[str, list[list[float]]] = {contender: [] for contender in contenders}
        port = 20_000 + os.getpid() % 20_000
        for _ in range(arguments.turns):
            for contender, command in contenders.items():
                port += 1
                server = Server(command, port, requests[0], expected[0])
                first = asyncio.run(load(port, requests, expected, arguments.seconds / 4))
                before = server.memory_mb()
                times = asyncio.run(load(port, requests, expected, arguments.seconds * 3 / 4))
                grown = server.memory_mb()
                code = server.stop()
                assert "LitServe" in contender or (code == 0 and grown < 1.1 * before), (code, before, grown)
                rate = len(times) / (arguments.seconds * 3 / 4)
                p50, p99 = (1000 * float(np.percentile(times, share)) for share in (50, 99))
                rows[contender].append([rate, p50, p99, grown, server.first_answer_s])
                assert first
        for contender, measured in rows.items():
            rate, p50, p99, memory, first = map(statistics.median, zip(*measured, strict=True))
            print(f"| {contender} | {rate:,.0f} | {p50:.1f} | {p99:.1f} | {memory:.0f} | {first:.2f} |", flush=True)
        if arguments.hostile:
            server = Server(contenders["reprise, onnx"], port + 1, requests[0], expected[0])
            kinds = hostile_requests(images[0])
            before = server.memory_mb()
            bodies = [kinds[place % len(kinds)] for place in range(arguments.hostile)]
            counts, slowest = asyncio.run(attack(server.port, bodies))
            memory = f"{before:.0f} MB before, {server.memory_mb():.0f} after"
            print(f"\nhostile: {counts}; slowest /health {1000 * slowest:.0f} ms; {memory}; exit code {server.stop()}")


if __name__ == "__main__":
    main()
