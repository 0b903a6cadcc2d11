"""Presets: small overlays on params.yaml for a known purpose; each file's first comment states its cost and result."""

import difflib
import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from reprise.params.load import load_params, overlay
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError


def find_preset(folder: Path, name: str) -> Path:
    """Return the file of a preset in the folder. Raises UserError with the names there are."""
    presets = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in presets:
        raise UserError(f"there is no preset {name!r}; there are {', '.join(presets) or f'none in {folder}'}")
    return presets[name]


def describe(preset: Path) -> str:
    """Return the comment at the top of a preset."""
    lines = preset.read_text(encoding="utf-8").splitlines()
    body = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:body])


def applied(preset: Path, params: Path) -> str:
    """Return the text of params.yaml with the preset's values, its comments and order kept.

    Raises UserError, as `load_params` does, if the outcome is not allowed.
    """
    load_params(params, preset=preset)
    values = YAML(typ="safe").load(preset)
    return edited(params.read_text(encoding="utf-8"), lambda tree: overlay(tree, values))  # with one kind of line end


def edited(text: str, change: Callable[[Any], object]) -> str:
    """Return a parameter file after a change of its tree, with its comments and order.

    Raises UserError where comments are in the way, so that it would read as something else.
    """
    yaml = YAML()
    yaml.width = 4096  # no value is folded
    tree: Any = yaml.load(text)
    change(tree)
    out = io.StringIO()
    yaml.dump(tree, out)
    with suppress(YAMLError):
        if YAML(typ="safe", pure=True).load(out.getvalue()) == tree:
            return out.getvalue()
    raise UserError("params.yaml: comments are in the way; edit it, or `git checkout HEAD -- params.yaml`")


def rewrite(params: Path, folder: Path, name: str) -> str:
    """Write a preset of the folder into params.yaml; return what that has changed, as a diff."""
    changed = replace(params, applied(find_preset(folder, name), params))
    return changed or f"params.yaml has the values of {name} already"


def replace(params: Path, after: str) -> str:
    """Write the text of params.yaml; return what that has changed, as a diff."""
    before = params.read_text(encoding="utf-8")
    with publishing(params) as (partial,):
        partial.write_text(after, encoding="utf-8")
    titles = "params.yaml before", "params.yaml now"
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), *titles, lineterm="", n=0))
