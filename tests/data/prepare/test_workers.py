"""However the work ends, no worker stays behind; what a user can do about it stands in one line."""

import os
import shutil
import signal
import sys
from contextlib import suppress
from subprocess import PIPE, Popen

import numpy as np
import pytest

from reprise.data.download.sources import encode_array
from reprise.data.formats.raw import RawImage, write_archive
from reprise.runtime.environment import cpus
from tests.conftest import PARAMS
from tests.data.prepare.test_prepare import raw_images

# A stage with two workers. While one decodes an image of the first batch, and the other is stuck in the last batch,
# something happens. The workers import this file too, so they see what it patches.
STAGE = """
import os, signal, threading
from pathlib import Path
from reprise.data.prepare import packing
from reprise.data.prepare import prepare as module
from reprise.params.load import load_params
from reprise.runtime.errors import one_line_errors
from reprise.runtime.atomic import publishing

decode = packing.decode
first_of_training, last_of_test = 0, 250

def decode_or_die(encoded, *arguments):
    decoded = decode(encoded, *arguments)
    pixels = decoded.pixels
    if pixels[0, 0, 0] == last_of_test:
        with open("meeting", "w"):
            threading.Event().wait()
    if pixels[0, 0, 0] == first_of_training:
        with open("meeting"):
            {happens}
    return decoded

packing.decode = decode_or_die
module.MANY_IMAGES, packing.BATCH_IMAGES = 1, 3

if __name__ == "__main__":
    with one_line_errors(), publishing(Path("out")) as (out,):
        module.preprocess(Path("raw"), out, load_params("params.yaml", ["data.image_size=8"]).data, workers=2)
"""

TIMEOUT = 60  # far beyond what it takes


def images():
    """Yield 20 training images, the first of value 0, and images of other values to validate and to test, 250 last."""
    yield from raw_images(split="train")
    for split, name, value in (("val", "cat", 50), ("val", "dog", 150), ("test", "cat", 60), ("test", "dog", 250)):
        yield RawImage(split, name, "1.ppm", encode_array(np.full((8, 8, 3), value, np.uint8)))


def run_stage(folder, happens):
    """Run the stage until it and all its workers have ended: they hold its output open."""
    write_archive(folder / "raw", "folder", ["cat", "dog"], images())
    shutil.copy(PARAMS, folder / "params.yaml")
    os.mkfifo(folder / "meeting")  # opened by one worker, it waits for the other
    (folder / "stage.py").write_text(STAGE.format(happens=happens))
    options = {"stdout": PIPE, "stderr": PIPE, "text": True, "start_new_session": True}
    stage = Popen([sys.executable, "stage.py"], cwd=folder, **options)
    try:
        _, errors = stage.communicate(timeout=TIMEOUT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(stage.pid, signal.SIGKILL)
    return stage.returncode, errors


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "error: a worker process was killed, most likely because memory"),
        ("raise MemoryError", "error: memory ran out"),
        ("raise OSError(5, 'Input/output error', 'raw/images.zip')", "error: raw/images.zip: Input/output error; "),
    ],
    ids=["killed", "out of memory", "failing disk"],
)
def test_what_ends_a_worker_ends_the_stage_in_one_line_and_leaves_nothing(tmp_path, happens, said):
    code, errors = run_stage(tmp_path, happens)
    assert code == 1
    assert errors.startswith(said)
    assert errors.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["meeting", "params.yaml", "raw", "stage.py"]


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_workers_end_with_their_parent_even_in_the_middle_of_a_task(tmp_path, sent, code):
    happens = f"os.kill(os.getppid(), {sent:d}); threading.Event().wait()"
    assert run_stage(tmp_path, happens)[0] == code
    assert not (tmp_path / "out").exists()


def test_a_bug_in_a_worker_keeps_its_traceback(tmp_path):
    code, errors = run_stage(tmp_path, "raise ZeroDivisionError('a bug')")
    assert code == 1
    assert "in decode_or_die" in errors
    assert errors.endswith("ZeroDivisionError: a bug\n")


def test_only_the_cpus_that_the_process_may_use_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert cpus() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cpus() == 64
