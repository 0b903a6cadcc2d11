"""Which values of params.yaml differ from the last commit's and from the defaults, and their way back."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from reprise.params.load import FREE, all_keys, flat, near_miss
from reprise.params.presets import edited
from reprise.params.schema import Params
from reprise.runtime.errors import UserError, brief

DEFAULTS = Path(__file__).with_name("defaults.yaml")


def parse(text: str, name: str = "params.yaml") -> dict[str, Any]:
    """Return params as a tree; an empty one for an empty text. Raises UserError for what is no YAML."""
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise UserError(f"{name}: not readable as YAML; `git checkout HEAD -- {name}` puts it back") from None
    return tree if isinstance(tree, dict) else {}


def differing(*trees: dict[str, Any]) -> dict[str, list[str]]:
    """Return {dotted name: the value in each tree, in words} of the params in which trees differ."""
    flats = [flat(tree, whole=FREE) for tree in trees]
    found = {}
    for name in dict.fromkeys(name for values in flats for name in values):
        shown = [_as_text(values[name]) if name in values else "-" for values in flats]
        if len(set(shown)) > 1:
            found[name] = [brief(value, 40) for value in shown]
    return found


def reset(text: str, keys: Sequence[str], committed: str, defaults: dict[str, Any]) -> str:
    """Return the text of a parameter file with other values for some keys, comments and order kept.

    The value is that of the committed text or, if it is that already, the default; a key that is not there goes. Where
    all is as committed then, it is that text, for DVC loses comments beside what it adds to. Raises UserError for a key
    that is nowhere, and where a comment would be lost.
    """
    here = parse(text)
    trees = [tree for tree in (parse(committed), defaults) if tree]
    values = {}
    for key in dict.fromkeys(_whole(here, key) for key in keys):
        now, *others = (_at(tree, key) for tree in (here, *trees))
        if not (now or any(others)):
            raise UserError(f"--reset: there is no parameter {brief(key)!r}{near_miss(key, all_keys(Params))}")
        values[key] = next((value for value in others if _as_text(value) != _as_text(now)), now)

    def put_back(tree: Any) -> None:
        for key, value in values.items():
            *sections, name = key.split(".")
            section = tree
            for part in sections:
                section = section.setdefault(part, {})
            if value:
                section[name] = copy.deepcopy(value[0])
            else:
                section.pop(name, None)

    put_back(here)
    if _as_text(here) == _as_text(parse(committed)) and comments(text) <= comments(committed):
        return committed
    after = edited(text, put_back)
    own_lines = {line.strip() for line in text.splitlines() if line.lstrip().startswith("#")}
    if own_lines <= {line.strip() for line in after.splitlines()}:
        return after
    raise UserError("params.yaml: comments would be lost; edit it, or `git checkout HEAD -- params.yaml`")


def comments(text: str) -> set[str]:
    """Return the comments of a parameter file, and what looks like one."""
    return {line.partition("#")[2] for line in text.splitlines()}


def _as_text(value: Any) -> str:
    """Return a value as text, by which `false` is not 0."""
    return json.dumps(value, sort_keys=True, default=str)


def _whole(tree: dict[str, Any], key: str) -> str:
    """Return a key, or the section around it that is no section in a tree."""
    parts = key.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return next((name for name in around if any(not isinstance(value, dict) for value in _at(tree, name))), key)


def _at(tree: Any, key: str) -> list[Any]:
    """Return the value at a dotted key, in a list; an empty list where there is none."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return []
        tree = tree[part]
    return [tree]
