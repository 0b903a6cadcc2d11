"""Dependencies of a stage: the same from its start to the moment its outputs appear, and recorded with them.

DVC hashes dependencies and params after a command has ended, so an edit made meanwhile would be recorded as what was
used. Here a stage compares params, code and inputs with those it began with, just before it publishes, and records them
in one of its outputs, which reveals even an edit between that moment and DVC's hashing.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML

from reprise.params.load import FREE, flat, load_params, read_yaml, validated
from reprise.params.schema import Params
from reprise.runtime.checksums import listing_md5, md5_listing, read_sealed, write_sealed
from reprise.runtime.code import LOADED, ROOT, closure, code_sha256, code_without_comments, read_code
from reprise.runtime.errors import UserError, first

PARAMS = Path("params.yaml")
KEPT = "Undo it and run the same command again: what is trained is kept, and is published without training again. "


class Record(BaseModel):
    """What a stage was run with.

    params: by dotted name. code_sha256: of the script and the library files that it imports, without comments and
    docstrings. inputs: {path: MD5 as DVC gives it}.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    params: dict[str, Any]
    code_sha256: str
    inputs: dict[str, str]

    def save(self, path: Path) -> None:
        """Write it as a sealed document."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, self.model_dump(mode="json"))

    def differences(self, root: Path, stage: str, params: Params, inputs: Mapping[str, str]) -> list[str]:
        """Return what differs from the record: params, the code below `root`, and `inputs`, {path: MD5} where known."""
        different = other_params(self.params, param_values(params))
        different += ["its code"] * (code_sha256(read_code(root), f"stages/{stage}.py") != self.code_sha256)
        return different + [path for path, md5 in self.inputs.items() if inputs.get(path, md5) != md5]


def param_values(params: Params) -> dict[str, Any]:
    """Return all params by dotted name; a free-form section (`model.kwargs`) is one value."""
    return flat(params.model_dump(mode="json"), whole=FREE)


def other_params(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the params of `then` that have another value now, by dotted name, each with both values."""
    names = sorted(name for name, value in then.items() if now.get(name) != value)
    return [f"{PARAMS} {name} (was {then[name]}, is {now.get(name, 'gone')})" for name in names]


def record_path(stage: str) -> str:
    """Return the output that holds a stage's record, relative to the root."""
    return "models/model.json" if stage == "train" else f"data/records/{stage}.json"


def load_record(path: Path) -> Record | None:
    """Read a stage's record; None where another version has written none. Raises ValueError if it is altered."""
    content = read_sealed(path)
    try:
        return Record.model_validate(content.get("record", content))
    except ValidationError:
        return None


class Dependencies:
    """Params, code and inputs of a script as they are when `begin` is called; `check` compares with them.

    script: relative to the root; it and what it imports are the code. inputs: files and folders. names: the sections
    and params that it reads. kept: what a refused run leaves for the next one, a part of the message; `forget` removes
    it, and is called if images have changed that it may have seen in both states.
    """

    def __init__(
        self, script: str, inputs: Iterable[str] = (), names: Iterable[str] = (), root: Path = Path(), kept: str = ""
    ) -> None:
        self.script, self.root, self.kept = script, root, kept
        self.inputs, self.names = list(inputs), tuple(f"{name}." for name in names)
        self.forget: Callable[[], None] = lambda: None

    @classmethod
    def of_stage(cls, name: str, root: Path = Path(), kept: str = "") -> Self:
        """Return those of a stage, as dvc.yaml lists them."""
        stage = _stages(root)[name]
        code = ("src/", "stages/", "data/records/")  # and the out of `check`, which never changes
        data = [dep for dep in stage["deps"] if not dep.startswith(code)]
        return cls(f"stages/{name}.py", data, stage["params"], root, kept)

    def begin(self, given: Params | None = None) -> Params:
        """Look at everything, and return the params: those given, else params.yaml's, which must then not change.

        Raises UserError for params that are not allowed, and for code that has changed since the script was started.
        """
        self.sources = LOADED if self.root.resolve() == ROOT else read_code(self.root)
        tree = read_yaml(self.root / PARAMS) if given is None else {}
        self.written, params = self._own(flat(tree)), given or validated(tree, PARAMS.name)
        self.all_params, values = params, param_values(params)
        self.params = self._own(values)
        own = params.data.is_own  # other data sets do not look at data.path
        paths = [path for path in self.inputs if own or path != "${data.path}"]
        paths = [re.sub(r"\$\{(.+?)\}", lambda name: str(values[name[1]]), path) for path in paths]
        self.listings = {path: md5_listing(self.root / path) for path in paths}
        self.check_code()
        return params

    def check_code(self) -> None:
        """Raise UserError if code was edited while it was loaded; to be called again after further imports."""
        self._refuse(self._changed_code())

    def check_earlier(self, stage: str) -> None:
        """Raise UserError if the record of the stage before differs from what there is now.

        Not so for a frozen stage, whose outputs are to stay as they are, and where the record is missing or altered.
        """
        path = self.root / record_path(stage)
        with suppress(FileNotFoundError, ValueError):
            record = load_record(path)
            different = record.differences(self.root, stage, self.all_params, self.record().inputs) if record else []
            if different and not _stages(self.root)[stage].get("frozen"):
                anew = f"`dvc repro --force --single-item {stage}` makes it anew"
                raise UserError(f"{path}: made with something else than there is now: {first(different, 5)}; {anew}")

    def record(self) -> Record:
        """Return what `begin` saw."""
        inputs = {path: listing_md5(listing) for path, listing in self.listings.items()}
        return Record(params=self.params, code_sha256=code_sha256(self.sources, self.script), inputs=inputs)

    def check(self) -> None:
        """Raise UserError, naming what has changed, unless everything that matters is as it was."""
        inputs = []
        for path, before in self.listings.items():
            now = md5_listing(self.root / path)
            files = sorted(file for file in before.keys() | now if before.get(file) != now.get(file))
            inputs += [f"{path}/{file}" if file else path for file in files]
        seen = any(Path(path).name.startswith(("train_", "val_")) for path in inputs)
        if seen:
            self.forget()
        self._refuse([*self._changed_params(), *self._changed_code(), *inputs], "" if seen else self.kept)

    def _refuse(self, changed: list[str], kept: str = "") -> None:
        if changed:
            why = "nothing is published, for it would be recorded as what it is not"
            way_out = f"{kept}To go on with what there is now, run the same command again"
            raise UserError(f"changed while this ran: {first(changed, 5)}; {why}. {way_out}")

    def _own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if f"{name}.".startswith(self.names)}

    def _changed_params(self) -> list[str]:
        try:
            if not self.written or self._own(flat(read_yaml(self.root / PARAMS))) == self.written:
                return []  # also where a value of another stage is no longer allowed
            return other_params(self.params, param_values(load_params(self.root / PARAMS)))
        except UserError as error:
            return [str(error)]

    def _changed_code(self) -> list[str]:
        then, now = self.sources, read_code(self.root)
        changed = {path for path in then.keys() | now if then.get(path) != now.get(path)}
        needed = changed and changed & (closure(then, self.script) | closure(now, self.script))
        old, new = ({path: code_without_comments(code.get(path, b"")) for path in needed} for code in (then, now))
        return sorted(path for path in needed if old[path] != new[path])


def _stages(root: Path) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(root / "dvc.yaml")["stages"]
