"""Outs appear whole or not at all."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError, one_line_errors
from reprise.runtime.signals import Stopped


def test_nothing_is_visible_before_the_end(tmp_path):
    target = tmp_path / "deep" / "out.txt"
    with publishing(target) as (partial,):
        partial.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["out.txt"]


def test_an_error_leaves_the_old_outs_and_no_scrap(tmp_path):
    file, folder = tmp_path / "out.txt", tmp_path / "out"
    file.write_text("old")
    folder.mkdir()
    (folder / "a").write_text("old")
    with pytest.raises(ValueError, match="boom"), publishing(file, folder) as (new_file, new_folder):
        new_file.write_text("new")
        new_folder.mkdir()
        (new_folder / "a").write_text("new")
        raise ValueError("boom")
    assert file.read_text() == "old"
    assert (folder / "a").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["out", "out.txt"]


def test_a_target_that_the_block_forgot_publishes_none_of_them(tmp_path):
    written, forgotten = tmp_path / "written", tmp_path / "forgotten"
    with pytest.raises(FileNotFoundError), publishing(written, forgotten) as (partial, _):
        partial.write_text("new")
    assert os.listdir(tmp_path) == []


def test_a_folder_replaces_a_folder_whole(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale").write_text("old")
    with publishing(target) as (partial,):
        partial.mkdir()
        (partial / "fresh").write_text("new")
    assert os.listdir(target) == ["fresh"]


def test_the_scrap_of_a_killed_process_is_cleared(tmp_path):
    (tmp_path / ".out.lock").write_text("99999\n")
    (tmp_path / ".out.replaced.partial").write_text("old")
    scrap = tmp_path / ".out.partial"
    scrap.mkdir()
    (scrap / "half").write_text("")
    with publishing(tmp_path / "out") as (partial,):
        partial.write_text("new")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("params.yaml: train.lr"), "error: params.yaml: train.lr"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), "error: out: No space left on device"),
        (OSError(errno.EFBIG, "File too large", "out"), "error: out: File too large; the file system or a limit"),
        (OSError(errno.EIO, "Input/output error", "in"), "error: in: Input/output error; the disk or its connection"),
        (MemoryError(), "error: out of memory"),
        (Stopped(signal.SIGTERM), 143),
    ],
)
def test_what_a_user_can_cause_ends_in_one_line(error, code):
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    assert caught.value.code == code or caught.value.code.startswith(code)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(OSError, match="bad descriptor"), one_line_errors():
        raise OSError(errno.EBADF, "bad descriptor")


WRITER = """
import sys
from pathlib import Path
from reprise.runtime.atomic import publishing
with publishing(Path(sys.argv[1])) as (partial,):
    print("inside", flush=True)
    partial.write_text(sys.stdin.readline())
"""


def writer(target: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, target], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, bufsize=1
    )


def test_a_second_writer_waits_for_the_first_and_says_so(tmp_path):
    target = tmp_path / "out"
    first, second = writer(target), None
    assert first.stdout.readline() == "inside\n"
    second = writer(target)
    assert second.stderr.readline() == f"waiting for process {first.pid}, which is at work on {target}\n"
    first.communicate("first")
    assert target.read_text() == "first"
    assert second.stdout.readline() == "inside\n", "only now it is its turn"
    second.communicate("second")
    assert target.read_text() == "second"
    assert os.listdir(tmp_path) == ["out"]


def test_a_killed_writer_holds_nobody_up_and_leaves_nothing_behind(tmp_path):
    first = writer(tmp_path / "out")
    first.stdout.readline()
    first.kill()
    first.wait()
    second = writer(tmp_path / "out")
    _, said = second.communicate("second", timeout=60)
    assert said == ""
    assert os.listdir(tmp_path) == ["out"]


def test_many_writers_at_once_take_turns(tmp_path):
    target = tmp_path / "out"
    code = """
import sys
from pathlib import Path
from reprise.runtime.atomic import publishing
for _ in range(50):
    with publishing(Path(sys.argv[1])) as (partial,):
        count = int(Path(sys.argv[1]).read_text())
        partial.write_text(str(count + 1))
"""
    target.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, target], stderr=DEVNULL) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert target.read_text() == "200", "no turn was lost"
    assert os.listdir(tmp_path) == ["out"]


def test_waiting_for_oneself_is_refused(tmp_path):
    with publishing(tmp_path / "out") as (partial,):
        partial.write_text("new")
        with pytest.raises(RuntimeError, match=r"already held .* in this thread"), publishing(tmp_path / "out"):
            pass


def test_a_file_system_without_locks_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"out.lock: cannot be locked \(No locks available\)"),
        publishing(tmp_path / "out"),
    ):
        pass


def published_by_a_child(folder, contents, dies_at):
    """Publish folders in a process of its own, which dies at that call of the system; return its exit code."""
    child, left = os.fork(), dies_at
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def count(event, _):
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        with publishing(*(folder / name for name in contents)) as partials:
            for partial, content in zip(partials, contents.values(), strict=True):
                partial.mkdir()
                (partial / "content").write_bytes(content)
        os._exit(0)
    finally:
        os._exit(1)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    old=st.dictionaries(st.sampled_from("abc"), st.binary(max_size=20), min_size=1),
    new=st.dictionaries(st.sampled_from("abc"), st.binary(max_size=20), min_size=1),
    dies_at=st.integers(0, 30),
)
def test_whatever_call_of_the_system_is_the_last_every_name_holds_all_of_the_old_or_all_of_the_new(
    old, new, dies_at, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("publish")
    for name, content in old.items():
        (folder / name).mkdir()
        (folder / name / "content").write_bytes(content)
    died = published_by_a_child(folder, new, dies_at)
    assert died in (0, -signal.SIGKILL)
    for name in set(old) | set(new):
        found = folder / name / "content"
        allowed = {content[name] for content in (old, new) if name in content}
        if found.exists():
            assert found.read_bytes() in allowed
        else:  # the moment between the two renames, or never there
            assert not (folder / name).exists()
            assert died == -signal.SIGKILL
    assert published_by_a_child(folder, new, 10**6) == 0
    assert {name: (folder / name / "content").read_bytes() for name in new} == new
    assert sorted(os.listdir(folder)) == sorted(set(old) | set(new))


def test_every_file_is_synced_before_it_appears(tmp_path, monkeypatch):
    synced = []

    def record(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", record)
    with publishing(tmp_path / "out") as (partial,):
        partial.mkdir()
        (partial / "a").write_text("new")
    assert synced == [f"{partial}/a", str(partial), str(tmp_path)]


def two_folders(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "old").write_text("old")
    return one, two


def test_a_signal_between_two_renames_waits_until_all_outs_are_there(tmp_path, monkeypatch):
    one, two = two_folders(tmp_path)
    replace = Path.replace

    def interrupted(self, target):
        os.kill(os.getpid(), signal.SIGTERM)
        return replace(self, target)

    with pytest.raises(Stopped) as stopped, publishing(one, two) as partials:
        for partial in partials:
            partial.mkdir()
        monkeypatch.setattr(Path, "replace", interrupted)
    assert stopped.value.code == 143
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    assert [os.listdir(folder) for folder in (one, two)] == [[], []]


def test_a_file_never_replaces_a_folder(tmp_path):
    one, two = two_folders(tmp_path)
    with pytest.raises(UserError, match=f"^{two}: a folder, where a file is to be"), publishing(one, two) as partials:
        partials[0].mkdir()
        partials[1].touch()
    assert [os.listdir(folder) for folder in (one, two)] == [["old"], ["old"]]


def test_a_folder_that_has_made_way_comes_back_when_the_rename_fails(tmp_path, monkeypatch):
    one, two = two_folders(tmp_path)

    def refuse(self, target):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(target))

    with pytest.raises(OSError, match="Permission denied"), publishing(one, two) as partials:
        for partial in partials:
            partial.mkdir()
        monkeypatch.setattr(Path, "replace", refuse)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    assert [os.listdir(folder) for folder in (one, two)] == [["old"], ["old"]]
