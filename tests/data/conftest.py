"""A disk that is full for one file."""

import io
import os
from pathlib import Path

import pytest


@pytest.fixture
def full_disk(monkeypatch):
    """Call it with a file's name: what is written to a file of that name meets the real error of a full disk."""
    real = io.open

    def open_(file, mode="r", *arguments, **options):
        full = not isinstance(file, int) and Path(file).name == name and ("w" in mode or "+" in mode)
        return real("/dev/full" if full else file, mode, *arguments, **options)

    def fill(file_name):
        nonlocal name
        name = file_name
        monkeypatch.setattr(io, "open", open_)
        # /dev/full has no room to reserve; so that the error is that of writing
        monkeypatch.delattr(os, "posix_fallocate", raising=False)

    name = ""
    return fill
