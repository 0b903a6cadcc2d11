"""params.yaml, presets and overrides as Params; every mistake in them in words, with what is allowed.

A file is read without guessing types: each scalar stays the text that was typed, to be read by the type of its field.
"""

import difflib
import json
import types
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from reprise.params.schema import NULLS, Params, Section
from reprise.runtime.errors import UserError, brief

DEEPEST = 20  # levels of a file
MOST_LINES = 20  # of a message
FREE = ("model.kwargs", "train.optimizer_kwargs", "train.schedule_kwargs")  # sections of the user's own keys


def load_params(path: Path | str, overrides: Iterable[str] = (), preset: Path | None = None) -> Params:
    """Read a parameter file, with a preset's values and then `key=value` overrides (dotted keys) on top.

    Raises UserError with one line per wrong value: full key, value, what is allowed, a suggestion for a near miss.
    """
    path = Path(path)
    tree = read_yaml(path)
    if preset:
        overlay(tree, read_yaml(preset))
    for override in overrides:
        _override(tree, override)
    return validated(tree, path.name)


def validated(tree: dict[str, Any], name: str) -> Params:
    """Return the params of a tree that `read_yaml` gave. Raises UserError, beginning with the file's name."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        lines = [f"{name}: {_explain(detail)}" for detail in wrong[:MOST_LINES]]
        if len(wrong) > MOST_LINES:
            lines.append(f"{name}: and {len(wrong) - MOST_LINES:,} more")
        raise UserError("\n       ".join(lines)) from None


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested params with dotted names; an empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def overlay(tree: dict[str, Any], values: dict[str, Any]) -> None:
    """Set some values of a nested tree; free-form ones (`model.kwargs`) are replaced whole: they belong together."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict) and not key.endswith("kwargs"):
            overlay(tree[key], value)
        else:
            tree[key] = value


def help_text(params: Params) -> str:
    """Return a line for every parameter: its value here, what it means, what it may hold."""
    values: dict[str, Any] = {}
    for key in all_keys(Params):
        *sections, name = key.split(".")
        values[key] = getattr(values[".".join(sections)] if sections else params, name)
    return "\n".join(
        f"  {key} = {json.dumps(value)}: {field.description} ({_type_in_words(annotation)}{_bounds(field)})"
        for key, value in values.items()
        if not isinstance(value, Section)
        for annotation, field in [_field(key)]
    )


class _TextLoader(yaml.BaseLoader):
    """Every scalar stays the text that was typed, whatever its tag; a key given twice is an error.

    A few aliases of aliased sections could stand for billions of values, so an alias is one value only.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        mark = self.peek_event().start_mark
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels", problem_mark=mark)
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="an alias stands for more than one value", problem_mark=mark)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            twice = Counter(key.value for key, _ in node.value).most_common(1)[0][0]
            raise yaml.MarkedYAMLError(
                problem=f"the key '{brief(twice)}' stands there twice", problem_mark=node.start_mark
            )
        return mapping


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _TextLoader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}: not readable as YAML{line}: {brief(str(error.problem), 200)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two from absurd \U and %YAML
        raise UserError(f"{where}: not readable as YAML: {brief(str(error).splitlines()[0], 200)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a parameter file as a tree whose values are the text that was typed. Raises UserError if it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it with `git checkout -- {path.name}`") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; restore it with `git checkout -- {path.name}`") from None
    tree = _parse(text, path.name)
    if not isinstance(tree, dict):
        raise UserError(f"{path.name}: expected the sections {', '.join(Params.model_fields)}; found none")
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key of the tree; only the free-form `*kwargs` may gain keys."""
    key, equals, text = override.partition("=")
    key = key.lstrip("+")
    if not equals or not key:
        raise UserError(f"'{brief(override)}': an override is written key=value, e.g. train.epochs=3")
    *sections, name = key.split(".")
    free = len(sections) >= 2 and ".".join(sections[:2]) in FREE
    place: Any = tree
    for depth, section in enumerate(sections):
        if free and depth >= 1 and isinstance(place, dict) and place.get(section, "") in NULLS:
            place[section] = {}
        place = place.get(section) if isinstance(place, dict) else None
    known = isinstance(place, dict) and (name in place or free)
    if not known or len(sections) >= DEEPEST:
        raise UserError(f"{brief(override)}: there is no parameter '{brief(key)}'{_near(key, all_keys(Params))}")
    place[name] = _parse(text, brief(override)) if text else ""


def all_keys(section: type[Section], prefix: str = "") -> list[str]:
    """Return the dotted names of all parameters and sections below a section."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += all_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _near(word: str, words: Iterable[str]) -> str:
    spelled = {known.lower(): known for known in words}
    near = difflib.get_close_matches(word.lower(), spelled, n=1, cutoff=0.6)
    if not near:  # the right name in the wrong section
        last = word.lower().rpartition(".")[2]
        near = [known for known in spelled if known.rpartition(".")[2] == last][:1]
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""


def _explain(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    value = detail["input"]
    if detail["type"] == "missing":
        section, _, name = key.rpartition(".")
        return f"{key} is missing{_allowed(key)}; add `{name}:` to the section {section or 'at the top'}"
    if detail["type"] == "extra_forbidden":
        return f"{brief(key)}: there is no such parameter{_near(key, all_keys(Params))}"
    if detail["type"] == "value_error":
        return f"{key}: {detail['ctx']['error']!s}" if key else str(detail["ctx"]["error"])
    near = ""
    if detail["type"] == "literal_error" and isinstance(value, str):
        near = _near(value, map(str, get_args(_field(key)[0])))
    shown = "a section" if isinstance(value, dict) else brief(repr(value))
    return f"{key} = {shown} is not allowed{_allowed(key)}{near}"


def _field(key: str) -> tuple[Any, Any]:
    """Return the annotation and the FieldInfo of a dotted key (of its nearest known ancestor, in free-form values)."""
    annotation: Any = Params
    field: Any = None
    for name in key.split("."):
        if not (isinstance(annotation, type) and issubclass(annotation, Section) and name in annotation.model_fields):
            break
        field = annotation.model_fields[name]
        annotation = field.annotation
    return annotation, field


def _allowed(key: str) -> str:
    """Say in words what a key may hold, from its type, bounds and help."""
    annotation, field = _field(key)
    if field is None:
        return ""
    meaning = f" ({field.description})" if field.description else ""
    return f": expected {_type_in_words(annotation)}{_bounds(field)}{meaning}"


def _bounds(field: Any) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _type_in_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(choice).lower() for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return f"a list, each {_type_in_words(get_args(annotation)[0])}"
    if get_origin(annotation) is Annotated:
        return _type_in_words(get_args(annotation)[0])
    if get_origin(annotation) in (types.UnionType, Union):
        return " or ".join(_type_in_words(part) for part in get_args(annotation))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(annotation, "a section with keys and values")
