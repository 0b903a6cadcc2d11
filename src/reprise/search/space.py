"""The definition of a sweep, sweeps/NAME.yaml: which params are tried, how they are chosen, and what decides.

What comes out of a training by `train` and is seen by validation data can be an objective, never the test split.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic.json_schema import SkipJsonSchema

from reprise.params.load import load_params, parse, read_yaml
from reprise.params.sections import Section
from reprise.runtime.errors import UserError, brief

Direction = Literal["maximize", "minimize"]
DIRECTIONS: dict[str, Direction] = {"val_accuracy": "maximize", "val_loss": "minimize", "flops": "minimize"}
# by a seed a setting is only luckier; data: only what leaves the same images in the validation split
SEARCHED = re.compile(
    r"model\..+|train\.(?!(seed|threads|devices|num_nodes|select)$).+|data\.(image_size|resize|channels|depth)"
)
ALLOWED = "model.*, train.* (but seed, threads, devices, num_nodes, select), data.image_size, data.resize"
FUNCTION = re.compile(r"\s*(log|float|int)\(([-+.\de, ]*)\)\s*")
FORMS = "log(low, high), float(low, high), int(low, high), int(low, high, step), a|b|c or a list"
Scalar = str | bool | int | float | None


def distribution(given: Any) -> BaseDistribution:
    """Return Optuna's distribution for one of FORMS, as text, list or single value. Raises ValueError for any other."""
    if found := FUNCTION.fullmatch(str(given)):
        given = [float(part) for part in found[2].split(",")]
        low, high, *step = given
        kind: Any = IntDistribution if found[1] == "int" else FloatDistribution
        scale = kind(low, high, found[1] == "log", *step[:1])
        if given != [scale.low, scale.high, scale.step][: len(given)]:
            raise ValueError("int takes whole numbers, and steps have to end at high")
        return cast(BaseDistribution, scale)
    if isinstance(given, str):
        given = [parse(part, brief(given)) for part in given.split("|")]
    choices = given if isinstance(given, list) else [given]
    if any(each in choices[:number] for number, each in enumerate(choices)):
        raise ValueError("a choice is there twice (1, 1.0 and true are equal)")
    return CategoricalDistribution(tuple(choices))


AsText = WithJsonSchema({"type": ["string", "number", "boolean", "null", "array"], "description": FORMS})


class Definition(Section):
    """A sweep by its name; all but `trials` stays as it was when it began."""

    model_config = ConfigDict(title="sweep", arbitrary_types_allowed=True)

    name: SkipJsonSchema[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]]
    trials: int = Field(20, description="how many, pruned and failed ones too; a grid ends earlier", ge=1, le=100_000)
    sampler: Literal["tpe", "random", "grid", "nsga2"] = Field("tpe", description="of Optuna; nsga2: two objectives")
    seed: int = Field(0, description="of the choices; every trial trains with train.seed", ge=0, lt=2**32)
    pruner: Literal["none", "median", "hyperband"] = Field("none", description="of Optuna: ends hopeless trainings")
    metrics: list[Literal["val_accuracy", "val_loss", "flops"]] = Field(
        ["val_accuracy"], alias="objectives", description="never of the test split", min_length=1, max_length=2
    )
    space: dict[str, Annotated[BaseDistribution, BeforeValidator(distribution), AsText]] = Field(min_length=1)
    when: dict[str, dict[str, Scalar]] = Field({}, description="tried only beside these values of parameters above it")
    repeat: dict[Literal["train.seed", "data.fold"], list[int]] = Field(
        {}, description="a trial trains with each of these; its objectives are the means", max_length=1
    )
    commit: str | None = Field(None, description="written when the sweep begins: all trials have its code and params")
    digest: str | None = Field(None, description="written when the sweep begins: of all else here but `trials`")

    shared: bool = Field(False, description="written when the sweep begins with --storage", repr=False)

    @classmethod
    def load(cls, path: Path, **changes: Any) -> Self:
        """Read the file NAME.yaml, with these changes. Raises UserError with a line for each mistake."""
        tree = {**(read_yaml(path) if path.exists() or "space" not in changes else {}), **changes, "name": path.stem}
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            wrong = [(".".join(map(str, each["loc"])), each) for each in error.errors()]
            lines = [f"{path.name}: {where} = {brief(str(each['input']))}: {each['msg']}" for where, each in wrong]
            raise UserError("\n".join([*lines, f"{path.name}: what a parameter may be: {FORMS}"])) from None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.pruner != "none" and self.metrics not in (["val_accuracy"], ["val_loss"]):
            raise ValueError("a pruner takes one objective, which changes from epoch to epoch")
        if any(not values or len(set(values)) < len(values) for values in self.repeat.values()):
            raise ValueError("repeat: different values, at least one")
        if self.sampler == "grid" and any(isinstance(each, FloatDistribution) for each in self.space.values()):
            raise ValueError("a grid needs choices, a|b|c or int(low, high)")
        if self.sampler == "grid" and self.shared:
            raise ValueError("several machines could try the same of a grid; without --storage, or sampler: random")
        keys = list(self.space)
        for key, conditions in self.when.items():
            above = keys[: keys.index(key)] if key in keys else []
            for other, value in conditions.items():
                if other not in above or value not in getattr(self.space[other], "choices", ()):
                    raise ValueError(f"when: {key}: no parameter above it has the choice {other} = {value}")
        return self

    @property
    def objectives(self) -> list[tuple[str, Direction]]:
        """Return [(metric, "maximize" or "minimize")]."""
        return [(metric, DIRECTIONS[metric]) for metric in self.metrics]

    @property
    def runs(self) -> list[dict[str, int]]:
        """Return the params of each training of a trial that `repeat` sets; the last one's results are the trial's."""
        return [{key: value} for key, values in self.repeat.items() for value in values] or [{}]

    def deciding(self) -> str:
        """Return the checksum of all that decides the trials; `trials` only says how many."""
        text = repr(self.model_copy(update={"trials": 0, "digest": None})) + "shared" * self.shared
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, params: Path) -> None:
        """Raise UserError for a parameter that is not searched, or a value of it that params.yaml may not have."""
        for key, each in self.space.items():
            if not SEARCHED.fullmatch(key):
                raise UserError(f"{self.name}: {key} is the same for all trials, to compare them; allowed: {ALLOWED}")
            values = list(getattr(each, "choices", ()))
            if isinstance(each, FloatDistribution | IntDistribution):
                values = [each.low, each.high]
            if isinstance(each, FloatDistribution):
                values.append(each.low + 0.382 * (each.high - each.low))  # no whole number
            for value in values:
                load_params(params, [f"{key}={json.dumps(value)}"])
        for run in self.runs:
            load_params(params, [f"{key}={value}" for key, value in run.items()])


def json_schema() -> str:
    """Return the JSON schema of a sweep's file, for completion and checks in an editor."""
    schema = Definition.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("sweep.schema.json").write_text(json_schema(), encoding="utf-8")
