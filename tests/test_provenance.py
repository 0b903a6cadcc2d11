"""The record beside a model: the same wherever the terms are the same, another as soon as one of them differs."""

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from reprise import provenance
from reprise.data.packed import load_metadata
from reprise.debug import Debug
from reprise.provenance import PACKAGES, library_files, trace
from reprise.training import _provenance
from tests.conftest import ROOT
from tests.test_structure import import_closure

on_linux_x86 = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="reads the names of an x86-64 Linux"
)
TRAINING = ROOT / "src/reprise/training.py"

# prints the record of a mode; told to, also those of copies of the package with one byte more in one file each
RECORD = """
import json, sys
from pathlib import Path
from reprise.process import after_torch, before_torch
before_torch(1, sys.argv[1])
import reprise.training
after_torch(1, sys.argv[1])
from reprise.provenance import trace

def record():
    return trace(sys.argv[1], 1, "cpu", {"b": 1, "a": [2, 3]}, b"data", "reprise.training").model_dump()

package = Path(reprise.training.__file__).parent
records = {"": record()}
for path in sorted(package.rglob("*.py")) if "each" in sys.argv else []:
    content = path.read_bytes()
    path.write_bytes(content + b"\\n")
    records[str(path.relative_to(package.parent.parent))] = record()
    path.write_bytes(content)
print(json.dumps(records))
"""


def records(folder: Path, *arguments: str, **environment: str) -> dict[str, dict]:
    """Return the records of a process of its own, with a copy of the package in a folder."""
    shutil.copytree(ROOT / "src/reprise", folder / "src/reprise", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", RECORD, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "src"), "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    return records(tmp_path_factory.mktemp("one"), "portable", "each", PYTHONHASHSEED="1", TZ="UTC")


def test_two_processes_in_two_folders_record_the_same(portable, tmp_path):
    elsewhere = records(tmp_path / "elsewhere", "portable", PYTHONHASHSEED="2", TZ="Asia/Tokyo", LC_ALL="C")
    assert elsewhere == {"": portable[""]}


def test_the_code_digest_changes_with_each_file_that_training_imports_and_with_no_other(portable):
    plain = portable[""]
    changed = {path for path, record in portable.items() if record["code_sha256"] != plain["code_sha256"]}
    assert changed == import_closure(TRAINING) | {"src/reprise/training.py"}
    assert {"src/reprise/data/sources.py", "src/reprise/evaluation.py"} <= portable.keys() - changed
    for record in portable.values():
        assert record | {"code_sha256": ""} == plain | {"code_sha256": ""}


def test_the_recorded_files_are_those_that_the_stage_depends_on():
    files = library_files("reprise.training")
    recorded = {str(path.relative_to(ROOT)) for path in files.values()}
    stage = import_closure(ROOT / "stages/train.py")
    only_the_stage_needs = stage - import_closure(TRAINING) - {"src/reprise/training.py"}
    assert recorded == stage - only_the_stage_needs
    assert files["reprise.data.packed"] == ROOT / "src/reprise/data/packed.py"


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("train.checkpoint_every.epochs=7", {"params_sha256", "threads", "reproducible"}),
        ("train.checkpoint_every.minutes=0.5", {"params_sha256", "threads", "reproducible"}),
        ("train.loggers=[wandb]", {"params_sha256", "threads", "reproducible"}),
        ("train.lr=0.001", {"threads", "reproducible"}),
        ("model.kwargs.drop_rate=0.1", {"threads", "reproducible"}),
        ("train.threads=2", {"params_sha256", "reproducible"}),
    ],
)
def test_what_changes_no_bits_changes_no_record(override, same, digits, tiny_params):
    one, two = (
        _provenance("machine", load_metadata(digits), params.model, params.train, None, Debug())
        for params in (tiny_params(), tiny_params(override))
    )
    terms = {"params_sha256", "threads", "reproducible"}
    assert {name for name in terms if getattr(one, name) == getattr(two, name)} == same
    assert (one.key() == two.key()) == (same == terms)


def test_other_data_are_another_record():
    one, two = (trace("machine", 1, "cpu", {}, data, "reprise.provenance") for data in (b"1", b"2"))
    assert one.data_sha256 != two.data_sha256
    assert one.key() != two.key()


def processor() -> str:
    """Return the CPU's name, from where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


@on_linux_x86
def test_portable_records_nothing_of_the_machine(portable):
    record = portable[""]
    assert (record["device"], record["threads"], record["cpu_capability"]) == ("cpu", 1, "AVX2")
    assert record["packages"] == {name: version(name).partition("+")[0] for name in PACKAGES}
    assert processor() not in json.dumps(record)


@on_linux_x86
@pytest.mark.parametrize("mode", ["machine", "off"])
def test_machine_and_off_record_the_processor_and_the_build(mode, monkeypatch):
    here = trace(mode, 1, "cpu", {}, b"", "reprise.provenance")
    assert here.device == processor()
    assert here.packages == {name: version(name) for name in PACKAGES}
    monkeypatch.setattr(provenance, "version", lambda name: f"{version(name).partition('+')[0]}+other")
    assert trace(mode, 1, "cpu", {}, b"", "reprise.provenance").key() != here.key()
    portable = trace("portable", 1, "cpu", {}, b"", "reprise.provenance")
    monkeypatch.undo()
    assert trace("portable", 1, "cpu", {}, b"", "reprise.provenance") == portable
