"""The record beside a model: the same wherever the terms are the same, another as soon as one of them differs."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from reprise.data.formats.packed import load_metadata
from reprise.runtime import provenance
from reprise.runtime.code import closure, code_sha256, code_without_comments, read_code
from reprise.runtime.errors import UserError
from reprise.runtime.provenance import PACKAGES, trace
from reprise.training.result import provenance_of
from tests.conftest import ROOT
from tests.test_structure import STAGES, import_closure

on_linux_x86 = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="reads the names of an x86-64 Linux"
)
TRAINING = ROOT / "src/reprise/training/train.py"


@pytest.fixture(scope="module")
def portable(reproduced_once):
    """The record of the pipeline's training; that another folder's is equal: tests/test_commands.py."""
    return json.loads((reproduced_once.path / "models/model.json").read_text())["provenance"]


def test_the_code_digest_changes_with_each_file_that_training_imports_and_with_no_other(portable):
    name, sources = "src/reprise/training/train.py", read_code(ROOT)
    plain = code_sha256(sources, name)
    assert portable["code_sha256"] == plain
    changed = {
        path for path in sources if code_sha256({**sources, path: sources[path] + b"\nmore = 1\n"}, name) != plain
    }
    assert changed == import_closure(TRAINING) | {name}
    assert {"src/reprise/data/download/sources.py", "src/reprise/evaluation/evaluate.py"} <= sources.keys() - changed


@pytest.mark.parametrize("script", [f"stages/{name}.py" for name in STAGES])
def test_the_closure_of_a_script_is_what_it_imports(script):
    assert closure(read_code(ROOT), script) == import_closure(ROOT / script) | {script}


def test_code_that_is_not_there_has_no_digest():
    assert closure({}, "src/reprise/cli.py") == set()
    with pytest.raises(KeyError):
        code_sha256({}, "src/reprise/cli.py")


SAME = [
    b"x = 1\n",
    b"# a comment\nx = 1  # another\n",
    b'"""A docstring."""\n\n\nx = 1\n',
    b"'''of two\n# lines'''\nx = 1   \n\n",
]
OTHER = [
    b"x = 2\n",
    b"x = 1\ny = 1\n",
    b'x = 1  # a comment\n"text" + f(x)\n',
    b'x = """# text"""\n',
    b'x = """# texts"""\n',
    b"x = '# text'  # a comment\n",
    b"def f():\n    x = 1\n",
    b"if x:\n    x = 1\n",
    b'x = """a\nb"""\n',
    b'x = """a\n\nb"""\n',
    b'x = """a\nb  \n"""\n',
    b'x = """a\nb\n"""\n',
    b"x = 1\n\x0c\nA = 5\n# c",
    b"x = 1\n\x0c\nA = 6\n# c",
]


def test_comments_docstrings_and_blank_lines_are_no_code_and_all_else_is():
    assert len({code_without_comments(source) for source in SAME}) == 1
    assert len({code_without_comments(source) for source in [*SAME, *OTHER]}) == 1 + len(OTHER)


def test_docstrings_of_functions_and_classes_are_no_code():
    documented = b'class A:\n    """Text."""\n\n    x = 1\n\n    def f(self):\n        """More."""  # noqa\n'
    documented += b'        return "kept"\n'
    bare = b'class A:\n    x = 1\n    def f(self):\n        return "kept"\n'
    assert code_without_comments(documented) == code_without_comments(bare) == bare.rstrip()


def test_a_file_that_is_no_python_is_taken_as_it_is():
    assert code_without_comments(b"def f(:\n  (\n# a\n") != code_without_comments(b"def f(:\n  (\n# b\n")


def test_a_library_that_was_edited_while_it_was_loaded_is_no_record(tmp_path, monkeypatch):
    for name, loaded in (("comment", b"# other\n"), ("code", b"x = 1\n")):
        path = "src/reprise/training/train.py"
        monkeypatch.setattr(provenance, "LOADED", {**read_code(ROOT), path: TRAINING.read_bytes() + loaded})
        if name == "comment":
            trace("machine", 1, "cpu", {}, b"", "reprise.training.train")
        else:
            with pytest.raises(UserError, match="edited while this process loaded it"):
                trace("machine", 1, "cpu", {}, b"", "reprise.training.train")


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
        provenance_of(load_metadata(digits), params.model, params.train, None, {})
        for params in (tiny_params(), tiny_params(override))
    )
    terms = {"params_sha256", "threads", "reproducible"}
    assert {name for name in terms if getattr(one, name) == getattr(two, name)} == same
    assert (one.key() == two.key()) == (same == terms)


def test_other_data_are_another_record():
    one, two = (trace("machine", 1, "cpu", {}, data, "reprise.runtime.provenance") for data in (b"1", b"2"))
    assert one.data_sha256 != two.data_sha256
    assert one.key() != two.key()


def processor() -> str:
    """Return the CPU's name, from where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


@on_linux_x86
def test_portable_records_nothing_of_the_machine(portable):
    record = portable
    assert (record["device"], record["threads"], record["cpu_capability"]) == ("cpu", 1, "AVX2")
    assert record["packages"] == {name: version(name).partition("+")[0] for name in PACKAGES}
    assert processor() not in json.dumps(record)


@on_linux_x86
@pytest.mark.parametrize("mode", ["machine", "off"])
def test_machine_and_off_record_the_processor_and_the_build(mode, monkeypatch):
    here = trace(mode, 1, "cpu", {}, b"", "reprise.runtime.provenance")
    assert here.device == processor()
    assert here.packages == {name: version(name) for name in PACKAGES}
    monkeypatch.setattr(provenance, "version", lambda name: f"{version(name).partition('+')[0]}+other")
    assert trace(mode, 1, "cpu", {}, b"", "reprise.runtime.provenance").key() != here.key()
    portable = trace("portable", 1, "cpu", {}, b"", "reprise.runtime.provenance")
    monkeypatch.undo()
    assert trace("portable", 1, "cpu", {}, b"", "reprise.runtime.provenance") == portable
