"""The page of `reprise labels --review`: what it says is decided is on the disk, whatever happens to the server."""

import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from reprise.data.formats.raw import RawArchive, RawImage, image_id, write_archive
from reprise.data.prepare.corrections import DROP, HEADER, Correction, add_corrections, read_corrections
from reprise.labels.report import HEADER as REPORT
from reprise.labels.review import Unlabelled
from reprise.runtime.errors import UserError
from reprise.runtime.tables import write_csv

CLASSES = ["<b>cat", "dog"]
SERVE = """
import sys
from pathlib import Path
import uvicorn
from reprise.data.formats.raw import RawArchive, image_id
from reprise.labels.review import Candidate, Corrections, Review, application
folder, port = Path(sys.argv[1]), int(sys.argv[2])
archive = RawArchive(folder / "raw")
ids = list(map(image_id, archive.members))
of = {each: each.split("/")[0] for each in ids}
near = [(ids[0], of[ids[0]])]
classes = archive.source.classes
other = {classes[0]: classes[1], classes[1]: classes[0]}
candidates = [Candidate(each, of[each], other[of[each]], "other class", near) for each in ids]
book = Corrections(archive, folder / "corrections.csv", "someone", {each: "other class" for each in ids})
uvicorn.run(application(Review(candidates, book, classes, str(folder))), port=port, log_level="error")
"""


def encoded(number):
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    def make(count):
        images = [
            RawImage("unsplit", CLASSES[number % 2], f"{number:05}.png", encoded(number)) for number in range(count)
        ]
        write_archive(tmp_path / "raw", "own", CLASSES, images)
        (tmp_path / "corrections.csv").write_text(",".join(HEADER) + "\n")
        add_corrections(tmp_path / "corrections.csv", [Correction("gone/1.png", "0" * 64, "dog")])
        return tmp_path

    return make


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def serving(folder, port):
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(folder), str(port)])
    try:
        with httpx.HTTPTransport(retries=9) as transport, httpx.Client(transport=transport) as client:
            while True:
                try:
                    client.get(f"http://127.0.0.1:{port}/state")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def browsing(port):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        browser.get(f"http://127.0.0.1:{port}/")
        WebDriverWait(browser, 60).until(lambda each: "image 1 of" in each.find_element(By.ID, "count").text)
        yield browser


def settled(browser):
    WebDriverWait(browser, 60).until(lambda each: each.execute_script("return document.body.dataset.waiting") == "0")


def press(browser, keys):
    browser.find_element(By.TAG_NAME, "body").send_keys(keys)


@pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver")
def test_each_key_does_what_its_button_says(folder, port):
    path = folder(6)
    with serving(path, port), browsing(port) as browser:
        press(browser, "akd")
        press(browser, "r")
        browser.switch_to.active_element.send_keys("dog", Keys.ENTER)
        press(browser, "au")
        settled(browser)
        shown = browser.find_element(By.ID, "label").text
        log = [each for each in browser.get_log("browser") if "Content Security" in each["message"]]
        sizes = browser.execute_script("return [...document.images].map(each => each.naturalWidth)")
    rows = read_corrections(path / "corrections.csv")
    first = Correction("<b>cat/00000.png", hashlib.sha256(encoded(0)).hexdigest(), "dog", "someone", "other class")
    decided = {"<b>cat/00000.png": "dog", "dog/00001.png": "dog", "<b>cat/00002.png": DROP, "dog/00003.png": "dog"}
    assert {name: row.label for name, row in rows.items()} == decided | {"gone/1.png": "dog"}
    assert rows[first.id] == first
    assert shown == "<b>cat" and log == []  # of the image whose decision was taken back
    assert sizes == [512, 512]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver")
def test_a_thousand_decisions_by_keyboard_and_none_is_lost_though_the_server_is_killed(folder, port):
    path, wanted = folder(1000), []
    with browsing_while_killed(path, port) as (browser, restart):
        for part in range(20):
            keys = "akd"[part % 3] * 50
            wanted += keys
            press(browser, keys)
            if part in (4, 11, 12):
                restart()
        settled(browser)
        assert "1000 decided" in browser.find_element(By.ID, "count").text
    rows = {name: row.label for name, row in read_corrections(path / "corrections.csv").items()}
    labels = [CLASSES[number % 2] for number in range(1000)]
    does = {"a": lambda label: CLASSES[1 - CLASSES.index(label)], "k": lambda label: label, "d": lambda label: DROP}
    expected = [does[key](label) for key, label in zip(wanted, labels, strict=True)]
    assert [rows[f"{label}/{number:05}.png"] for number, label in enumerate(labels)] == expected


@pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver")
def test_a_refused_decision_is_named_and_those_behind_it_are_saved(folder, port):
    path = folder(6)
    server = serving(path, port)
    process = server.__enter__()
    with browsing(port) as browser:
        process.kill()
        process.wait()
        press(browser, "akdak")
        hers = Correction("dog/00001.png", hashlib.sha256(encoded(1)).hexdigest(), "<b>cat", "Ada", "seen")
        add_corrections(path / "corrections.csv", [hers])
        with serving(path, port):
            settled(browser)
            assert "dog/00001.png: somebody else has decided" in browser.find_element(By.ID, "refused").text
    server.__exit__(None, None, None)
    rows = read_corrections(path / "corrections.csv")
    assert rows.pop("dog/00001.png") == hers
    assert [row.label for row in rows.values()] == ["dog", DROP, "<b>cat", "<b>cat", "dog"]  # by id; gone/1.png is last


@contextmanager
def browsing_while_killed(path, port):
    """Yield a browser, and what kills the server with SIGKILL and starts it again."""
    servers = [serving(path, port)]
    process = servers[0].__enter__()

    def restart():
        nonlocal process
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        servers.append(serving(path, port))
        process = servers[-1].__enter__()

    try:
        with browsing(port) as browser:
            yield browser, restart
    finally:
        for each in servers:
            each.__exit__(None, None, None)


def test_other_sites_and_nonsense_decide_nothing(folder, port):
    path = folder(2)
    with serving(path, port), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        name = client.get("/state").json()["candidates"][0]["id"]
        right = {"project": str(path), "id": name, "label": "dog", "before": None}
        assert client.post("/decide", content=b'{"id": 1}', headers={"content-type": "text/plain"}).status_code == 415
        assert client.post("/decide", json=right, headers={"host": "evil.example"}).status_code == 400
        for wrong in ({}, [], *(right | wrong for wrong in ({"label": "horse"}, {"id": "../x"}, {"id": [1]}))):
            assert client.post("/decide", json=wrong).status_code in (400, 422), wrong
        assert client.post("/decide", json=right | {"project": "other"}).status_code == 421
        assert client.get("/image", params={"id": "../corrections.csv"}).status_code == 404
        assert list(read_corrections(path / "corrections.csv")) == ["gone/1.png"]
        assert client.post("/decide", json=right).json() == {"decided": "dog"}
        assert list(read_corrections(path / "corrections.csv")) == [name, "gone/1.png"]


def test_an_unlabelled_image_moves_to_its_class_and_back_and_replaces_nothing(tmp_path):
    folder, own = tmp_path / "unlabelled", tmp_path / "own"
    for path in (folder, own / "cat", own / "dog"):
        path.mkdir(parents=True)
    (folder / "one.png").write_bytes(b"1")
    (own / "dog/one.png").write_bytes(b"other")
    book = Unlabelled(folder, own, tmp_path / "moved")
    with pytest.raises(UserError, match="such a file already"):
        book.decide("one.png", "dog")
    book.decide("one.png", "cat")
    assert (own / "cat/one.png").read_bytes() == b"1" and book.decided() == {"one.png": "cat"}
    book = Unlabelled(folder, own, tmp_path / "moved")  # after a kill
    assert book.decided() == {"one.png": "cat"} and book.read("one.png") == b"1"
    book.decide("one.png", None)
    assert (folder / "one.png").read_bytes() == b"1" and book.decided() == {}
    (folder / "link.png").symlink_to("one.png")
    with pytest.raises(UserError, match="gone, or a link"):
        book.decide("link.png", "cat")
    assert (own / "dog/one.png").read_bytes() == b"other"


@contextmanager
def page(clone, *options):
    """Yield a client of `reprise labels`."""
    command = [sys.executable, "-m", "reprise", "labels", *options, "--port", "0"]
    with subprocess.Popen(
        command, cwd=clone.path, env=clone.environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            address = process.stdout.readline().split(" at ")[1].partition(",")[0]
            with httpx.Client(base_url=address, timeout=60) as client:
                yield client
        finally:
            process.terminate()
        assert process.wait() == 0


@pytest.mark.slow
def test_the_command_serves_doubts_and_unlabelled_images_and_no_second_page(reproduced):
    archive = RawArchive(reproduced.path / "data/raw")
    digits, rows = [], []
    for member in list(archive.members)[:2]:
        digits.append(image_id(member))
        sha256 = hashlib.sha256(archive.read(member)).hexdigest()
        rows.append([digits[-1], digits[-1].split("/")[0], "7", "0.1", "other class", sha256, "[]"])
    (reproduced.path / "runs/labels").mkdir(parents=True)
    write_csv(reproduced.path / "runs/labels/labels.csv", REPORT, rows)
    with page(reproduced, "--review") as client:
        assert [each["id"] for each in client.get("/state").json()["candidates"]] == digits
        refused = reproduced.run("python", "-m", "reprise", "labels", "--review", "--port", "0", check=False)
        assert refused.returncode == 1 and "another page is open" in refused.stderr
        asked = {"project": client.get("/state").json()["project"], "label": "7", "before": None}
        assert client.post("/decide", json=asked | {"id": digits[1]}).json() == {"decided": "7"}
        assert client.post("/decide", json=asked | {"id": digits[1], "label": "3"}).status_code == 409  # not seen
        assert client.get("/image", params={"id": digits[0]}).headers["content-type"] == "image/png"
    assert reproduced.run("git", "diff", "--stat").stdout.split()[0] == "data/corrections.csv"
    assert [row.label for row in read_corrections(reproduced.path / "data/corrections.csv").values()] == ["7"]

    rows[0][5] = "0" * 64
    write_csv(reproduced.path / "runs/labels/labels.csv", REPORT, rows)
    said = reproduced.run("python", "-m", "reprise", "labels", "--review", check=False).stderr
    assert "runs/labels is of other data than data/raw" in said

    own, unlabelled = reproduced.path / "data/own", reproduced.path / "data/unlabelled"
    unlabelled.mkdir()
    for number in range(3):
        (unlabelled / f"{number}.png").write_bytes(encoded(number))
    (unlabelled / "bad.png").write_bytes(b"no image")
    said = reproduced.run("python", "-m", "reprise", "labels", "--next", "2", check=False).stderr
    assert "data.name = digits: images get labels in folders of classes" in said
    reproduced.set("data.name=folder")
    said = reproduced.run("python", "-m", "reprise", "labels", "--next", "2", check=False).stderr
    assert "has not just a folder of files for each of the classes" in said
    for name in range(10):
        (own / str(name)).mkdir()
    with page(reproduced, "--next", "2") as client:
        first, second = (each["id"] for each in client.get("/state").json()["candidates"])
        asked = {"project": client.get("/state").json()["project"], "id": first, "before": None}
        assert client.post("/decide", json=asked | {"label": DROP}).status_code == 409
        assert client.post("/decide", json=asked | {"label": "3"}).status_code == 200
        assert client.get("/image", params={"id": first}).status_code == 200
    assert (own / "3" / first).is_file() and not (unlabelled / first).exists() and (unlabelled / second).is_file()
