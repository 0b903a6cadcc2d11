"""Outs appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from reprise.errors import UserError, one_line_errors
from reprise.publish import publishing


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
    scrap = tmp_path / ".out.99999.partial"
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
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_user_can_cause_ends_in_one_line(error, code):
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    assert caught.value.code == code or caught.value.code.startswith(code)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(OSError, match="bad descriptor"), one_line_errors():
        raise OSError(errno.EBADF, "bad descriptor")


def test_the_private_path_of_a_living_process_is_left_alone(tmp_path):
    theirs = tmp_path / f".out.{os.getppid()}.partial"
    theirs.mkdir()
    with publishing(tmp_path / "out") as (partial,):
        partial.write_text("new")
    assert theirs.is_dir()


def test_every_file_is_synced_before_it_appears(tmp_path, monkeypatch):
    synced = []

    def record(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", record)
    with publishing(tmp_path / "out") as (partial,):
        partial.mkdir()
        (partial / "a").write_text("new")
    assert synced == [f"{partial}/a", str(partial), str(tmp_path)]
