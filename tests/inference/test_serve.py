"""`reprise serve`: the model's own answers over HTTP, one line for what it refuses, and no hostile body stops it."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from io import BytesIO
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
from PIL import Image
from selenium import webdriver

from reprise import load_model
from reprise.inference.serve import POLICY, application
from tests.conftest import ROOT, fresh_clone

sys.path.insert(0, str(ROOT / "benchmarks"))
from serve import POST, attack, hostile_requests

LIGHT = """
import sys
for name in "torch torchvision timm scipy sklearn lightning torchmetrics dvc onnx".split():
    sys.modules[name] = None
from reprise.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def serving(model, *options, path=ROOT / "src"):
    """Yield address and process of a service that may import neither torch nor Lightning nor DVC."""
    command = [sys.executable, "-c", LIGHT, "serve", "--port", "0", "--model", str(model), *options]
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
    return [(project.path / "data/own" / name).read_bytes() for name in expected]


def test_one_image_and_several_are_answered_as_by_the_model_in_the_form_that_is_described(service, model, images):
    wanted = [each.plain() for each in load_model(model).predict(images[:3], top=2)]
    one = httpx.post(f"{service}/predict?top=2", content=images[0])
    form = [("images", (str(place), each)) for place, each in enumerate([*images[:3], b"no image"])]
    several = httpx.post(f"{service}/predict?top=2", files=form)
    assert (one.status_code, several.status_code) == (200, 200)
    *answers, bad = several.json()["predictions"]
    assert answers == json.loads(json.dumps(wanted)) and one.json()["predictions"] == answers[:1]
    assert (bad["label"], bad["reason"]) == (None, "not an image, or its beginning is damaged")
    described = httpx.get(f"{service}/openapi.json").json()
    jsonschema.validate(several.json(), {"$ref": "#/components/schemas/Answers", **described})
    refused = httpx.post(f"{service}/predict", content=b"x")
    assert str(refused.status_code) in described["paths"]["/predict"]["post"]["responses"]
    jsonschema.validate(refused.json(), {"$ref": "#/components/schemas/Refusal", **described})
    assert all(httpx.get(service + path).status_code == 200 for path in described["paths"] if path != "/predict")
    assert httpx.get(f"{service}/model").json() == load_model(model).card.model_dump(mode="json") | {"confidence": None}
    assert 'reprise_answers_total{status="200"}' in httpx.get(f"{service}/metrics").text


def asked_at_once(model, bodies, **limits):
    """Return the answers to requests that are made at once, in this process."""

    async def ask():
        transport = httpx.ASGITransport(application(model, **limits))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await asyncio.gather(*(client.post("/predict?top=3", content=each) for each in bodies))

    return asyncio.run(ask())


def test_with_torch_many_at_once_get_the_digits_of_evaluation(project, expected, images):
    model = load_model(project.path / "models", runtime="torch")
    for row, answer in zip(expected.values(), asked_at_once(model, images, requests=len(images)), strict=True):
        top = dict(answer.json()["predictions"][0]["top"])
        assert [top[label] for label in model.card.classes] == pytest.approx(list(map(float, row[1:])), abs=1e-5)


def test_beyond_so_many_requests_at_once_one_is_asked_to_come_again(model, images):
    first, *others = asked_at_once(load_model(model), images[:3], requests=1)
    assert [first.status_code, *(each.status_code for each in others)] == [200, 503, 503]
    assert others[0].headers["retry-after"] == "1" and "ask again" in others[0].json()["reason"]


TYPE = "multipart/form-data; boundary=b"
FORM = {"Content-Type": TYPE}
LARGE = BytesIO()
Image.new("1", (8001, 8000)).save(LARGE, "PNG")
HALF = BytesIO()
Image.new("1", (6000, 6000)).save(HALF, "PNG")
PART = b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n'


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"content": b""}, 415, "empty file"),
        ({"content": b"<html>"}, 415, "not an image, but HTML by its content"),
        ({"content": b"\xff\xd8\xff damaged"}, 422, "not an image, or its beginning is damaged"),
        ({"content": LARGE.getvalue()}, 422, "more than 64 megapixels"),
        ({"content": bytes(1_000_001)}, 413, "a body of more than 1,000,000 bytes"),
        ({"files": [("a", ("a", b"x"))] * 65}, 400, "Maximum number of files is 64"),
        ({"content": b"--b--\r\n", "headers": FORM}, 400, "a form without images"),
        ({"content": PART + b"whole\r\n" + PART + b"cut", "headers": FORM}, 400, "without its end"),
        ({"content": PART + b"whole\r\n" + PART + b"cut--", "headers": FORM}, 400, "without its end"),
        ({"content": PART + b"x\r\n--b--", "headers": {"Content-Type": f"{TYPE}; charset=punycode"}}, 400, "charset"),
        ({"files": [("a", ("a", HALF.getvalue()))] * 2}, 422, "more than 64 megapixels"),
        ({"content": b"\xff\xd8\xff" + b"\xff\xda" * 101}, 422, "a JPEG of more than 100 scans"),
        ({"content": b"x", "params": {"top": "-1"}}, 422, "top: a number of classes is needed"),
    ],
)
def test_a_bad_request_is_refused_with_its_status_and_a_line(asked, status, said, service):
    answer = httpx.post(f"{service}/predict", **asked)
    assert answer.status_code == status and said in answer.json()["reason"]
    assert "\n" not in answer.json()["reason"]


def test_hostile_bodies_are_answered_with_4xx_or_cut_off_and_health_goes_on(service, images):
    kinds = hostile_requests(images[0])
    counts, _ = asyncio.run(attack(urlsplit(service).port, [kinds[each % len(kinds)] for each in range(50)], 50))
    assert set(counts) <= {"400", "408", "413", "415", "422", "cut off"} and sum(counts.values()) == 50
    assert httpx.post(f"{service}/predict", content=images[0], timeout=60).status_code == 200


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_on_a_signal_an_accepted_request_is_answered_and_the_exit_code_is_0(signum, model, images):
    with serving(model) as (address, process):
        place = "127.0.0.1", urlsplit(address).port
        with socket.create_connection(place, timeout=60) as connection:
            connection.sendall(POST + f"Expect: 100-continue\r\nContent-Length: {len(images[0])}\r\n\r\n".encode())
            assert connection.recv(99).startswith(b"HTTP/1.1 100")  # it is being read
            process.send_signal(signum)
            with pytest.raises(ConnectionRefusedError):
                while True:
                    socket.create_connection(place).close()
            connection.sendall(images[0])
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert process.wait(60) == 0


def test_a_port_in_use_and_a_broken_model_are_one_line(model, service, tmp_path):
    (tmp_path / "model.onnx").write_bytes(model.read_bytes()[:-9])
    port = str(urlsplit(service).port)
    for options, said in {
        ("--model", str(model), "--port", port): "Address already in use",
        ("--model", str(tmp_path / "model.onnx"), "--port", "0"): "altered, or not exported by Reprise",
        ("--port", "70000"): "port must be 0-65535",
    }.items():
        done = subprocess.run([sys.executable, "-m", "reprise", "serve", *options], capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == ""
        assert said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver")
def test_a_person_chooses_an_image_on_the_page_and_sees_its_class(service, images, tmp_path):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=390,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    name = "<img src=x onerror=alert(1)>.jpg"
    (tmp_path / name).write_bytes(images[0])
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    wanted = httpx.post(f"{service}/predict", content=images[0]).json()["predictions"][0]
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        browser.get(service)
        browser.find_element("css selector", "input").send_keys(f"{tmp_path / name}\n{tmp_path / 'bad.jpg'}")
        browser.implicitly_wait(60)
        reason = browser.find_element("css selector", "li p[role=alert]").text  # of the second, the last to come
        shown = [each.text for each in browser.find_elements("css selector", "li:last-child div")]
        assert shown == [f"{label}\n{100 * share:.1f} %" for label, share in wanted["top"]]
        assert browser.find_element("css selector", "li:last-child h2").text == name
        assert reason == "not an image, or its beginning is damaged"
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert [each for each in browser.get_log("browser") if "Content Security" in each["message"]] == []
    assert httpx.get(service).headers["content-security-policy"] == POLICY and "unsafe" not in POLICY


def test_benchmark_shows_both_runtimes(project):
    _, *rows = [line.split() for line in project.run("python", "-m", "reprise", "benchmark").stdout.splitlines()]
    assert [row[0] for row in rows] == ["onnx", "torch"] and project.clean()
    assert all(0 < float(p50) <= float(p99) and float(rate.replace(",", "")) > 0 for _, p50, p99, rate, _ in rows)


@pytest.mark.slow
def test_a_wheel_has_all_that_the_service_needs(model, images, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    clone = fresh_clone(tmp_path / "clone")
    subprocess.run(
        [*pip, "wheel", str(clone.path), "--no-deps", "--no-build-isolation", "-w", str(tmp_path)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "installed"), str(wheel)], check=True)
    with serving(model, path=tmp_path / "installed") as (address, _):
        assert httpx.get(address).status_code == 200  # the page is a file of its own
