"""`reprise serve`: the model's own answers over HTTP, one line for what it refuses, and no hostile body stops it."""

import asyncio
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
from PIL import Image

from reprise import load_model
from reprise.inference.serve import POLICY, application
from tests.conftest import ROOT

LIGHT = """
import sys
for name in "torch torchvision timm scipy sklearn lightning torchmetrics dvc onnx".split():
    sys.modules[name] = None
from reprise.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def serving(model, *options, python=("-c", LIGHT), path=ROOT / "src"):
    """Yield address and process of a service that may import neither torch nor Lightning nor DVC."""
    command = [sys.executable, *python, "serve", "--port", "0", "--model", str(model), *options]
    environment = {"PYTHONPATH": str(path), "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, cwd=model.parent, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().removeprefix("serve: ").strip(), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def model(project):
    return project.path / "models/export/model.onnx"


@pytest.fixture(scope="module")
def service(model):
    with serving(model, "--timeout", "1", "--max-mb", "1") as (address, process):
        yield address
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def images(project, expected):
    return {name: (project.path / "data/own" / name).read_bytes() for name in expected}


def part(name, content):
    return "images", (name, content)


def test_one_image_and_several_are_answered_as_by_the_model_in_the_form_that_openapi_json_states(
    service, model, images
):
    wanted = [each.plain() for each in load_model(model).predict(list(images.values())[:3], top=2)]
    good = list(images.items())[:3]
    form = [part(name, content) for name, content in good] + [part("<b>.jpg", b"no image")]
    one = httpx.post(f"{service}/predict?top=2", content=good[0][1])
    several = httpx.post(f"{service}/predict?top=2", files=form)
    assert (one.status_code, several.status_code) == (200, 200)
    assert one.json()["predictions"] == [wanted[0] | {"name": "0"}]
    *answers, bad = several.json()["predictions"]
    assert answers == [each | {"name": name} for each, (name, _) in zip(wanted, good, strict=True)]
    assert (bad["name"], bad["label"], bad["reason"]) == ("<b>.jpg", None, "not an image, or its beginning is damaged")
    described = httpx.get(f"{service}/openapi.json").json()
    jsonschema.validate(several.json(), {"$ref": "#/components/schemas/Answers", **described})
    refused = httpx.post(f"{service}/predict", content=b"x")
    assert str(refused.status_code) in described["paths"]["/predict"]["post"]["responses"]
    jsonschema.validate(refused.json(), {"$ref": "#/components/schemas/Refusal", **described})
    assert all(httpx.get(service + path).status_code == 200 for path in described["paths"] if path != "/predict")
    assert httpx.get(f"{service}/model").json() == json.loads(load_model(model).card.model_dump_json())


def test_with_torch_many_at_once_get_the_digits_of_evaluation(project, expected, images):
    loaded = load_model(project.path / "models", runtime="torch")

    async def ask():
        transport = httpx.ASGITransport(application(loaded))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await asyncio.gather(*(client.post("/predict?top=3", content=each) for each in images.values()))

    for name, answer in zip(images, asyncio.run(ask()), strict=True):
        top = dict(answer.json()["predictions"][0]["top"])
        digits = [top[label] for label in loaded.card.classes]
        assert digits == pytest.approx([float(cell) for cell in expected[name][1:]], abs=1e-5)


def test_prometheus_reads_answers_by_status_and_batches(service, images):
    def value(name):
        return float(re.search(rf"^{re.escape(name)} (.*)$", httpx.get(f"{service}/metrics").text, re.MULTILINE)[1])

    httpx.post(f"{service}/predict", content=next(iter(images.values())))
    before = [value('reprise_answers_total{status="200"}'), value("reprise_batch_images_sum")]
    httpx.post(f"{service}/predict", files=[part("a", each) for each in list(images.values())[:7]])
    after = [value('reprise_answers_total{status="200"}'), value("reprise_batch_images_sum")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 7]
    assert value("process_resident_memory_bytes") > 1e7


BOMB = io.BytesIO()
Image.new("1", (60_000, 60_000)).save(BOMB, "PNG")
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n'


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"content": b""}, 415, "empty file"),
        ({"content": b"<html>"}, 415, "not an image, but HTML by its content"),
        ({"content": b"\xff\xd8\xff damaged"}, 422, "not an image, or its beginning is damaged"),
        ({"content": BOMB.getvalue()}, 422, "a decompression bomb"),
        ({"content": bytes(1_000_001)}, 413, "a body of more than 1,000,000 bytes"),
        ({"files": [part("a", b"x")] * 65}, 400, "Maximum number of files is 64"),
        ({"files": {}, "data": {"a": "text"}, "headers": FORM}, 400, "a form without images, or without its end"),
        ({"content": PART + b"whole\r\n" + PART + b"cut", "headers": FORM}, 400, "without its end"),
        ({"content": b"--c", "headers": FORM}, 400, "Invalid multipart"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"content": b"x", "params": {"top": "-1"}}, 422, "top: a number of classes is needed"),
    ],
)
def test_a_bad_request_is_refused_with_its_status_and_a_line(asked, status, said, service):
    answer = httpx.post(f"{service}/predict", **asked)
    assert answer.status_code == status and said in answer.json()["reason"]
    assert "\n" not in answer.json()["reason"]


def test_beyond_so_many_requests_at_once_one_is_asked_to_come_again(model, images):
    loaded, begun, go_on = load_model(model), threading.Event(), threading.Event()
    run = loaded.run
    loaded.run = lambda batch: (begun.set(), go_on.wait(60), run(batch))[2]

    async def ask():
        app, body = application(loaded, requests=1), next(iter(images.values()))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            first = asyncio.create_task(client.post("/predict", content=body))
            await asyncio.to_thread(begun.wait, 60)
            refused = await client.post("/predict", content=body)
            go_on.set()
            return (await first).status_code, refused, (await client.post("/predict", content=body)).status_code

    first, refused, later = asyncio.run(ask())
    assert (first, refused.status_code, later) == (200, 503, 200)
    assert refused.headers["retry-after"] == "1" and "ask again" in refused.json()["reason"]


def test_hostile_connections_are_answered_with_4xx_or_cut_off_and_health_goes_on(service, images):
    good = next(iter(images.values()))
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: "
    hostile = [
        *(head + f"{len(body)}\r\n\r\n".encode() + body for body in (BOMB.getvalue(), good[:99], b"PK\x03\x04" + good)),
        head + b"900000\r\n\r\n" + good,  # the rest never comes
        head + b"-1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nX: " + b"x" * 100_000,
        b"POST /predict HTTP/1.1\r\n",  # nor does the rest of the head
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"8000\r\n%b\r\n" % bytes(32768) * 99,
        os.urandom(999),
        good,
    ]

    def attack(content):
        with socket.create_connection((urlsplit(service).hostname, urlsplit(service).port), timeout=40) as connection:
            try:
                connection.sendall(content)
                return connection.recv(12)
            except ConnectionError:
                return b""

    with ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(attack, hostile[number % len(hostile)]) for number in range(50)]
        while not all(answer.done() for answer in answers):
            assert httpx.get(f"{service}/health").json() == {"status": "ok"}
    assert {answer.result()[:10] for answer in answers} <= {b"HTTP/1.1 4", b""}
    assert httpx.post(f"{service}/predict", content=good).status_code == 200


def test_on_sigterm_an_accepted_request_is_answered_and_the_exit_code_is_0(model, images):
    body = next(iter(images.values()))
    with serving(model) as (address, process):
        place = urlsplit(address).hostname, urlsplit(address).port
        with socket.create_connection(place, timeout=60) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(99).startswith(b"HTTP/1.1 100")  # it is being read
            process.terminate()
            with pytest.raises(ConnectionRefusedError):
                while True:
                    socket.create_connection(place).close()
            connection.sendall(body)
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert process.wait(60) == 0


def test_a_port_in_use_and_a_broken_model_are_one_line(model, service, tmp_path):
    (tmp_path / "model.onnx").write_bytes(model.read_bytes()[:-9])
    port = str(urlsplit(service).port)
    for options, said in {
        ("--model", str(model), "--port", port): "Address already in use",
        ("--model", str(tmp_path / "model.onnx"), "--port", "0"): "altered, or not exported by Reprise",
        ("--port", "70000"): "port must be 0-65535",
        ("--timeout", "0"): "have to be above 0",
    }.items():
        done = subprocess.run([sys.executable, "-m", "reprise", "serve", *options], capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == ""
        assert said in done.stderr and done.stderr.count("\n") == 1


def test_a_person_chooses_an_image_on_the_page_and_sees_its_class(service, images, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (driver_path := shutil.which("chromedriver")):
        pytest.skip("no chromedriver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=390,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    name = "<img src=x onerror=alert(1)>.jpg"
    (tmp_path / name).write_bytes(next(iter(images.values())))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    wanted = httpx.post(f"{service}/predict", content=next(iter(images.values()))).json()["predictions"][0]
    with webdriver.Chrome(options, webdriver.ChromeService(driver_path)) as browser:
        browser.get(service)
        browser.find_element("css selector", "input").send_keys(f"{tmp_path / name}\n{tmp_path / 'bad.jpg'}")
        browser.implicitly_wait(60)
        reason = browser.find_element("css selector", "li p[role=alert]").text  # of the second, the last to come
        shown = [each.text for each in browser.find_elements("css selector", "li:last-child div")]
        assert [line.split("\n")[0] for line in shown] == [label for label, _ in wanted["top"]]
        assert shown[0].endswith(f"{100 * wanted['probability']:.1f} %")
        assert browser.find_element("css selector", "li:last-child h2").text == name
        assert reason == "not an image, or its beginning is damaged"
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert [each for each in browser.get_log("browser") if "Content Security" in each["message"]] == []
    assert httpx.get(service).headers["content-security-policy"] == POLICY and "unsafe" not in POLICY


def test_benchmark_shows_both_runtimes(project):
    done = project.run("python", "-m", "reprise", "benchmark")
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header[0] == "runtime" and [row[0] for row in rows] == ["onnx", "torch"]
    for _, p50, p99, rate, batch in rows:
        assert (
            0 < float(p50) <= float(p99) and float(rate.replace(",", "")) > 1000 / float(p50) * 0.5 and int(batch) > 0
        )
    assert project.clean()


@pytest.mark.slow
def test_a_wheel_has_all_that_the_service_needs(model, images, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "installed"), str(wheel)], check=True)
    with serving(model, path=tmp_path / "installed") as (address, _):
        assert httpx.post(f"{address}/predict", content=next(iter(images.values()))).status_code == 200
        assert "<title>" in httpx.get(address).text
