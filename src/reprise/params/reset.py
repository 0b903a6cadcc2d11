"""Which values of params.yaml differ from the last commit's and from the defaults, and their way back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reprise.params.load import FREE, all_keys, flat, near_miss
from reprise.params.presets import edited
from reprise.params.schema import Params
from reprise.runtime.errors import UserError, brief

DEFAULTS = Path(__file__).with_name("defaults.yaml")


def parse(text: str) -> dict[str, Any]:
    """Return params as a tree; an empty one for text that is none."""
    tree = YAML(typ="safe", pure=True).load(text)
    return tree if isinstance(tree, dict) else {}


def differing(*trees: dict[str, Any]) -> dict[str, list[str]]:
    """Return {dotted name: the value in each tree, in words} of the params in which trees differ."""
    flats = [flat(tree, whole=FREE) for tree in trees]
    found = {}
    for name in dict.fromkeys(name for values in flats for name in values):
        if any(_at(values, name, whole=True) != _at(flats[0], name, whole=True) for values in flats):
            shown = (json.dumps(values[name], default=str) if name in values else "-" for values in flats)
            found[name] = [brief(value, 40) for value in shown]
    return found


def reset(text: str, keys: Sequence[str], committed: str, defaults: dict[str, Any]) -> str:
    """Return the text of a parameter file with other values for some keys, comments and order kept.

    The value is that of the committed text or, if it is that already, the default; a key that is not there goes. Where
    all is as committed then, it is that text, for DVC loses comments beside what it adds to. Raises UserError for a key
    that is nowhere.
    """
    trees = parse(committed), defaults

    def put_back(here: Any) -> None:
        for key in keys:
            now, *others = (_at(tree, key) for tree in (here, *trees))
            if not (now or any(others)):
                hint = near_miss(key, all_keys(Params))
                raise UserError(f"--reset: there is no parameter {brief(key)!r}{hint}")
            *sections, name = key.split(".")
            section = here
            for part in sections:
                section = section[part] if isinstance(section.get(part), dict) else section.setdefault(part, {})
            there = next((value for value in others if value != now), now)
            if there:
                section[name] = there[0]
            else:
                section.pop(name)

    target = parse(text)
    put_back(target)
    return committed if target == trees[0] and comments(text) <= comments(committed) else edited(text, put_back)


def comments(text: str) -> set[str]:
    """Return the comments of a parameter file, and what looks like one."""
    return {line.partition("#")[2] for line in text.splitlines()}


def _at(tree: Any, key: str, whole: bool = False) -> list[Any]:
    """Return the value at a dotted key, in a list; an empty list where there is none. whole: the key is one name."""
    for part in [key] if whole else key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return []
        tree = tree[part]
    return [tree]
