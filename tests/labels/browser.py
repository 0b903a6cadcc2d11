"""The review page, served by a process of its own, and Chromium in front of it."""

import io
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

in_chromium = pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver")
CLASSES = ["<b>cat", "dog"]
WHY = {"<b>cat/00000.png": "ears"}
SERVE = f"""
import hashlib, socket, sys
from pathlib import Path
from reprise.data.formats.raw import RawArchive
from reprise.labels.review import Candidate, Corrections, Review, Unlabelled, run
folder, classes, candidates = Path(sys.argv[1]), {CLASSES}, []
if (folder / "raw").exists():
    book = Corrections(RawArchive(folder / "raw"), folder / "corrections.csv", "someone", {WHY})
    names = book.names
else:
    book = Unlabelled(folder / "unlabelled", folder / "own", folder / "moved")
    names = book.names - book.moved.keys()
for name in sorted(names, key=lambda name: name[-9:]):
    label, sha256 = name.rpartition("/")[0], hashlib.sha256(book.read(name)).hexdigest()
    candidates.append(Candidate(name, label, classes[label != "dog"], "other class", sha256, [(name, label)]))
server = socket.create_server(("127.0.0.1", int(sys.argv[2])))
print("ready", flush=True)
run(Review(candidates, book, classes, str(folder)), server)
"""


def encoded(number):
    """Return a PNG of 8 x 8 pixels by chance."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


class Server:
    """The page of a folder, at a port that stays when it is killed and started again."""

    def __init__(self, folder):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.start()

    def start(self):
        command = [sys.executable, "-c", SERVE, str(self.folder), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout.readline()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@contextmanager
def browsing(folder):
    """Yield a browser that shows the page of a folder, and its server."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    server = Server(folder)
    try:
        with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
            browser.get(f"http://127.0.0.1:{server.port}/")
            until(browser, "count", "decided")
            yield browser, server
    finally:
        server.kill()


def until(browser, element, part):
    """Wait until an element has this in its text."""
    WebDriverWait(browser, 60).until(lambda each: part in each.find_element(By.ID, element).text)


def settled(browser):
    """Wait until the server has confirmed or refused all decisions."""
    WebDriverWait(browser, 60).until(lambda each: each.execute_script("return document.body.dataset.waiting") == "0")


def press(browser, *keys):
    """Type into whatever has the focus."""
    browser.switch_to.active_element.send_keys(*keys)
