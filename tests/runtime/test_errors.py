"""What a terminal is given: names do nothing there, and who stops reading ends the command quietly."""

import subprocess
import sys

import pytest

from reprise.runtime.errors import UserError, brief, one_line_errors, say, visible
from tests.conftest import ROOT

NASTY = {
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "a\x1b[2Jb": r"a\x1b[2Jb",
    "user\u202egpj.exe": r"user\u202egpj.exe",
    "zero\u200bwidth": r"zero\u200bwidth",
    "back\x08space\rover": r"back\x08space\rover",
    "\x9b31mC1": r"\x9b31mC1",
    "half \ud800": r"half \ud800",
}


@pytest.mark.parametrize(("name", "shown"), NASTY.items())
def test_what_is_not_printable_is_written_as_an_escape_once(name, shown, capsys):
    assert visible(name) == brief(name) == shown
    assert visible(shown) == shown
    say(f"class {name}", file=sys.stderr)
    assert capsys.readouterr().err == f"class {shown}\n"
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise UserError(f"{name}: no such class")
    assert ended.value.code == f"error: {shown}: no such class"


def test_words_of_any_script_and_lines_of_a_table_stay_and_a_line_cannot_pass_for_an_error_of_its_own():
    assert visible("caf\u00e9 \u732b\nnext") == "caf\u00e9 \u732b\nnext"
    assert brief("two\nlines") == r"two\nlines"
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise UserError("cat\nerror: none")
    assert ended.value.code == "error: cat\n  error: none"


@pytest.mark.parametrize("arguments", ["-m reprise data", "-m reprise --help", "src/train.py --print-config"])
def test_who_stops_reading_ends_it_quietly_as_sigpipe_does(arguments):
    command = f"{sys.executable} {arguments} | true; exit ${{PIPESTATUS[0]}}"
    environment = {"PYTHONPATH": "src", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")
