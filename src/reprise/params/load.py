"""Reads params.yaml, presets and overrides as Params; explains every mistake in them, with what is allowed."""

import functools
import io
import json
import types
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import Node, ScalarNode

from reprise.params.schema import Params
from reprise.params.sections import Section
from reprise.runtime.errors import UserError, brief, nearest, reason

DEEPEST = 20  # levels of a file
MOST_VALUES = 50_000  # of a file: seconds
MOST_LINES = 20  # of a message
# sections of the user's own keys
FREE = ("model.kwargs", "train.optimizer_kwargs", "train.schedule_kwargs", "evaluate.gates")


def load_params(path: Path | str, overrides: Iterable[str] = (), preset: Path | None = None) -> Params:
    """Read a parameter file, with a preset's values and then `key=value` overrides (dotted keys) on top.

    Raises UserError with one line per wrong value: full key, value, what is allowed, a suggestion for a near miss.
    """
    path = Path(path)
    tree = read_yaml(path)
    if preset:
        overlay(tree, read_yaml(preset))
    changed = list(overrides)
    override(tree, changed)
    return validated(tree, path.name, kept=not (changed or preset))


def validated(tree: dict[str, Any], name: str, kept: bool = True) -> Params:
    """Return the params of a tree that `read_yaml` gave. Raises UserError, beginning with the file's name.

    kept: whether all values stand in the file, so that the message says how each is put back.
    """
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        details: dict[str, ErrorDetails] = {}
        for detail in error.errors(include_url=False):  # of a union there is an error for each member
            details.setdefault(_field(detail["loc"])[0], detail)
        lines = []
        for key, detail in list(details.items())[:MOST_LINES]:
            way_out = f"; `reprise params --reset {brief(key)}` puts it back" if kept and key else ""
            lines.append(f"{name}: {_explain(detail)}{way_out}")
        if len(details) > MOST_LINES:
            lines.append(f"{name}: and {len(details) - MOST_LINES:,} more")
        raise UserError("\n       ".join(lines)) from None


def flat(tree: dict[str, Any], prefix: str = "", whole: Collection[str] = ()) -> dict[str, Any]:
    """Return nested params by dotted name; an empty section is a value, and so is each that `whole` names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        divided = isinstance(value, dict) and value and name not in whole
        found |= flat(value, f"{name}.", whole) if divided else {name: value}
    return found


def overlay(tree: dict[str, Any], values: dict[str, Any]) -> None:
    """Set some values of a nested tree; free-form sections (`model.kwargs`) are replaced whole."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict) and not str(key).endswith("kwargs"):
            overlay(tree[key], value)
        else:
            tree[key] = value


def help_text(params: Params) -> str:
    """Return a line for every parameter: its value here, what it means, what it may hold."""
    lines = []
    for key in all_keys(Params):
        value: Any = functools.reduce(getattr, key.split("."), params)
        _, kind, field = _field(key.split("."))
        if field and not isinstance(value, Section):
            lines.append(f"  {key} = {json.dumps(value)}: {field.description} ({_in_words(kind, field)})")
    return "\n".join(lines)


def as_yaml(params: Params) -> str:
    """Return all params as the text of a params.yaml, which reads as the same params."""
    text = io.StringIO()
    YAML().dump(params.model_dump(), text)
    return text.getvalue()


class _Composer(Composer):
    """Accepts MOST_VALUES, and an alias only of a single one: a few nested ones of lists could stand for billions."""

    values = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.values += 1
        if self.values > MOST_VALUES:
            raise ComposerError(None, None, f"more than {MOST_VALUES:,} values", self.parser.peek_event().start_mark)
        return super().compose_node(parent, index)

    def return_alias(self, a: Node) -> Node:
        if not isinstance(a, ScalarNode):
            raise ComposerError(None, None, "an alias stands for more than one value", a.start_mark)
        return a


def parse(text: str, name: str) -> Any:
    """Return a YAML 1.2 document. Raises UserError, beginning with its name, if it is none."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.max_depth = _Composer, DEEPEST
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{name}: not readable as YAML{line}: {brief(str(error.problem), 200)}") from None
    except Exception as error:  # whatever hostile text provokes in the parser
        raise UserError(f"{name}: not readable as YAML: {brief(reason(error), 200)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a parameter file as a tree, read as YAML 1.2. Raises UserError if it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        wrong = "no such file" if isinstance(error, FileNotFoundError) else "not UTF-8 text"
        raise UserError(f"{path}: {wrong}; restore it with `git checkout -- {path.name}`") from None
    tree = parse(text, path.name)
    if not isinstance(tree, dict):
        raise UserError(f"{path.name}: expected the sections {', '.join(Params.model_fields)}; found none")
    return tree


def override(tree: dict[str, Any], changes: Iterable[str]) -> None:
    """Set dotted keys of the tree, by `key=value`; only the free-form `*kwargs` may gain keys."""
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.lstrip("+")
        if not equals or not key:
            raise UserError(f"'{brief(change)}': an override is written key=value, e.g. train.epochs=3")
        *sections, name = key.split(".")
        free = len(sections) >= 2 and ".".join(sections[:2]) in FREE
        place: Any = tree
        for depth, section in enumerate(sections):
            if free and depth and isinstance(place, dict):
                place[section] = {} if place.get(section) is None else place[section]
            place = place.get(section) if isinstance(place, dict) else None
        known = isinstance(place, dict) and (name in place or free)
        if not known or len(sections) >= DEEPEST:
            raise UserError(f"{brief(change)}: there is no parameter '{brief(key)}'{near_miss(key, all_keys(Params))}")
        place[name] = parse(text, brief(change))


def all_keys(section: type[Section], prefix: str = "") -> list[str]:
    """Return the dotted names of all parameters and sections below a section."""
    keys = []
    for name, field in section.model_fields.items():
        below: Any = field.annotation
        keys += [prefix + name, *(all_keys(below, f"{prefix}{name}.") if _is_section(below) else [])]
    return keys


def near_miss(word: str, words: list[str]) -> str:
    """Suggest a name: one that is spelled alike, or the right one in the wrong section."""
    last = word.rpartition(".")[2]
    near = nearest(word, words, 1) or [known for known in words if known.rpartition(".")[2] == last]
    return f"; did you mean {near[0]!r}?" if near else ""


def _explain(detail: ErrorDetails) -> str:
    key, kind, field = _field(detail["loc"])
    value = detail["input"]
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return f"{brief(key)}: there is no such parameter{near_miss(key, all_keys(Params))}"
    if detail["type"] == "value_error":
        return f"{key}: {detail['ctx']['error']!s}" if key else str(detail["ctx"]["error"])
    meaning = f" ({field.description})" if field and field.description else ""
    allowed = f"expected {_in_words(kind, field)}{meaning}"
    if detail["type"] == "missing":
        section, _, name = key.rpartition(".")
        return f"{key} is missing: {allowed}; add `{name}:` to the section {section or 'at the top'}"
    if get_origin(kind) is dict and detail["type"] != "dict_type":
        allowed = detail["msg"]  # of something in it
    near = ""
    if detail["type"] == "literal_error" and isinstance(value, str):
        near = near_miss(value, [str(choice) for choice in get_args(kind)])
    shown = "a section" if isinstance(value, dict) else "null" if value is None else brief(repr(value))
    return f"{brief(key)} = {shown} is not allowed: {allowed}{near}"


def _field(loc: Sequence[int | str]) -> tuple[str, Any, FieldInfo | None]:
    """Return the dotted key of a place in Params; type and field of it, or of its nearest ancestor in the schema.

    The names that pydantic gives to what it has tried there, such as the members of a union, are left out of the key.
    """
    kind: Any = Params
    field, depth = None, 0
    while depth < len(loc) and _is_section(kind) and loc[depth] in kind.model_fields:
        field = kind.model_fields[loc[depth]]
        kind, depth = field.annotation, depth + 1
    below = loc[depth:]
    if not _is_section(kind):
        below = below[::2] if get_origin(kind) in (list, dict) else ()
    return ".".join(map(str, [*loc[:depth], *below])), kind, field


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _in_words(kind: Any, field: FieldInfo | None = None) -> str:
    """Return what a type allows, with the bounds of a field."""
    origin, parts = get_origin(kind), get_args(kind)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    said = words.get(kind, "a section with keys and values")
    if origin is Annotated:
        return _in_words(*parts)
    if origin is Literal:
        said = "one of " * (len(parts) > 1) + ", ".join(map(str, parts))
    elif origin is list:
        said = f"a list, each {_in_words(parts[0])}"
    elif origin in (types.UnionType, Union):
        said = " or ".join(map(_in_words, parts))
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    held = field.metadata if field else []
    bounds = [f"{sign} {getattr(item, name)}" for item in held for name, sign in signs.items() if hasattr(item, name)]
    return said + (f" {' and '.join(bounds)}" if bounds else "")
