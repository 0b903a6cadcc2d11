"""`reprise predict`: rows for all that is handed in, one line for what cannot be."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def reprise(project, tmp_path):
    """Call it with arguments: the command in a folder with the exported model and two images, one of them broken."""
    shutil.copy(project.path / "models/export/model.onnx", tmp_path)
    (tmp_path / "images").mkdir()
    shutil.copy(project.path / "data/own/cat/0.jpg", tmp_path / "images/=1.jpg")
    (tmp_path / "images/broken.jpg").write_bytes(b"broken")

    def run(*arguments, given=b"", stdout=subprocess.PIPE):
        command = [sys.executable, "-m", "reprise", "predict", *arguments, "--model", "model.onnx"]
        env = {"PYTHONPATH": str(ROOT / "src")}
        return subprocess.run(command, cwd=tmp_path, env=env, input=given, stdout=stdout, stderr=subprocess.PIPE)

    return run


def test_a_broken_image_is_a_row_and_only_strict_fails(reprise, tmp_path):
    (tmp_path / "out.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("out.csv")
    done = reprise("images", "--out", "link.csv")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.endswith(b"predict: 2 images, 1 of them cannot be used (see the reasons) -> link.csv\n")
    header, good, bad = csv.reader(io.StringIO((tmp_path / "out.csv").read_text(), newline=""))
    assert header == ["id", "predicted", "p(=emu)", "p(cat)", "p(dog)", "reason"]
    assert good[0] == "'=1.jpg" and sum(map(float, good[2:5])) == pytest.approx(1, abs=1e-5)  # no formula
    assert bad == ["broken.jpg", "", "", "", "", "not an image, or its beginning is damaged"]
    assert reprise("images", "--strict").returncode == 1
    assert reprise("images/=1.jpg", "--strict").returncode == 0


def test_the_formats_say_the_same(reprise, tmp_path):
    table = reprise("images", "--top", "2").stdout.decode().splitlines()
    good, bad = map(json.loads, reprise("images", "--top", "2", "--format", "jsonl").stdout.splitlines())
    assert [len(good["top"]), good["label"], good["reason"]] == [2, good["top"][0][0], ""]
    assert table[0] == "=1.jpg  " + "  ".join(f"{name} {p:.4f}" for name, p in good["top"])
    assert table[1] == f"broken.jpg  {bad['reason']}" and bad["label"] is None


def test_standard_input_is_an_image_or_an_archive(reprise, tmp_path):
    image = (tmp_path / "images/=1.jpg").read_bytes()
    (row,) = reprise("-", given=image).stdout.decode().splitlines()
    archive = shutil.make_archive(tmp_path / "images", "zip", tmp_path / "images")
    rows = reprise("-", given=Path(archive).read_bytes()).stdout.decode().splitlines()
    assert [rows[0].split()[1:], len(rows)] == [row.split()[1:], 2]


def test_a_terminal_is_sent_no_controls_from_a_name(reprise, tmp_path):
    (tmp_path / "images/\x1b[31m.jpg").write_bytes(b"")
    terminal, stdout = os.openpty()
    assert reprise("images", "--format", "csv", stdout=stdout).returncode == 0
    assert b"\\x1b[31m.jpg" in (shown := os.read(terminal, 10_000)) and b"\x1b" not in shown


OUT = {"": "'.': a folder", "images": "'images': a folder", "to-pipe": "'to-pipe': a folder"}
OUT |= {"list.csv": "'list.csv': a", "to-model": "to-model: would", "images/broken.jpg": "images/broken.jpg: would"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-"], "-: no data on standard input"),
        (["missing.jpg"], "missing.jpg: no such file or folder"),
        ([""], "'': no such file or folder"),
        (["empty"], "empty is an empty folder"),
        (["texts"], "texts holds no images (JPEG, "),
        (["images", "cut.zip"], "cut.zip: cut short or damaged"),
        (["list.csv"], "list.csv: no column for the file (filename, "),
        (["images", "--top", "0"], "--top 0: has to be above 0"),
        *((["images/broken.jpg", "--out", out], f"--out {said}") for out, said in OUT.items()),
    ],
)
def test_what_cannot_be_predicted_is_one_line_and_leaves_the_file_as_it_was(arguments, said, reprise, tmp_path):
    for name in ("empty", "texts"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts/a.txt").write_text("no image")
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "list.csv").write_text("name,age\na.jpg,3\n")
    (tmp_path / "out.csv").write_text("as it was")
    (tmp_path / "list.csv").chmod(0o444)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to("pipe")
    (tmp_path / "to-model").symlink_to("model.onnx")
    done = reprise(*(["--out", "out.csv"] if "--out" not in arguments else []), *arguments)
    assert done.returncode == 1
    assert [line for line in done.stderr.decode().splitlines() if line.strip()][-1].startswith(f"error: {said}")
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "out.csv").read_text() == "as it was"
    assert (tmp_path / "to-pipe").is_fifo() and (tmp_path / "to-model").is_symlink()
    assert (tmp_path / "images/broken.jpg").read_bytes() == b"broken"
