"""The review page of a folder, served by a process of its own, and Chromium in front of it."""

import hashlib
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from reprise.data.formats.raw import RawArchive, encode_array
from reprise.labels.review import Candidate, Corrections, Review, Unlabelled, run

in_chromium = pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver")
CLASSES = ["<b>cat", "dog"]


def encoded(number):
    """Return a PPM of 8 x 8 pixels by chance; all have one size."""
    return encode_array(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8))


def digest(content):
    return hashlib.sha256(content).hexdigest()


def review(folder):
    """Return the page of corrections, if a folder has raw data, or else of its unlabelled images."""
    if (folder / "raw").exists():
        book = Corrections(RawArchive(folder / "raw"), folder / "corrections.csv", "someone", {"dog/00001.ppm": "ears"})
        names = book.names
    else:
        book = Unlabelled(folder / "unlabelled", folder / "own", folder / "moved")
        names = book.names - book.moved.keys()
    candidates, near = [], [(name, "dog") for name in names if name == "<b>cat/00000.ppm"]
    for name in sorted(names, key=lambda name: name[-9:]):
        label = name.rpartition("/")[0]
        other = CLASSES[label != "dog"]
        candidates.append(Candidate(name, label, other, "other class", digest(book.read(name)), near))
    return Review(candidates, book, CLASSES, str(folder))


class Server:
    """The page, at a port that stays when the process is killed and started again."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.command = [sys.executable, "-m", __name__, folder, str(self.port)]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE)
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
            until(browser, "image 1 of")
            yield browser, server
    finally:
        server.kill()


def until(browser, said):
    """Wait until the page says this somewhere."""
    WebDriverWait(browser, 60).until(lambda each: said in each.find_element("tag name", "body").text)


def settled(browser):
    """Wait until the server has confirmed or refused all decisions."""
    WebDriverWait(browser, 300).until(lambda each: each.execute_script("return document.body.dataset.waiting") == "0")


def press(browser, *keys):
    """Type into whatever has the focus."""
    browser.switch_to.active_element.send_keys(*keys)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as listening:
        print("ready", flush=True)
        run(review(Path(sys.argv[1])), listening)
