"""params.yaml means what the user typed, and what it does not allow is refused by name."""

import builtins
import re
import tempfile
import time
import types
import typing
from operator import attrgetter
from pathlib import Path
from typing import get_args, get_origin

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import modify_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reprise.data.download.torchvision_sets import TORCHVISION_SETS
from reprise.params.backbone import FROZEN, TUNED
from reprise.params.load import as_yaml, flat, help_text, load_params
from reprise.params.schema import DataParams, Params, json_schema
from reprise.runtime.errors import UserError
from tests.conftest import PARAMS, ROOT


def edited(tmp_path, old, new):
    path = tmp_path / "params.yaml"
    text = PARAMS.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        load_params(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "written", "key", "read"),
    [
        # what `-S train.lr=1e-5` leaves; plain YAML 1.1 reads a text
        *(("lr: 0.003", f"lr: {text}", "train.lr", 1e-5) for text in ("1e-05", "1e-5")),
        ("lr: 0.003", "lr: .5", "train.lr", 0.5),
        ("lr: 0.003", "lr: 1", "train.lr", 1.0),
        ("lr: 0.003", "lr: '0.25'", "train.lr", 0.25),
        *(
            ("name: test_resnet", f"name: {name}", "model.name", name.strip("'"))
            for name in ("no", "123", "true", "null_net", "on", "1:30", "'1e5'", "'007'")
        ),
        *(
            (f"{key}: {old}", f"{key}: {written}", f"{section}.{key}", read)
            for section, key, old in (("model", "pretrained", "false"), ("train.augment", "flip", "auto"))
            for written, read in {"no": False, "yes": True, "False": False, "on": True, "1": True}.items()
        ),
        *(("mirror: ", f"mirror: {blank} ", "data.mirror", None) for blank in ("", "null", "~")),
    ],
)
def test_a_value_means_what_was_typed_by_the_type_of_its_parameter(tmp_path, old, written, key, read):
    value = attrgetter(key)(load_params(edited(tmp_path, old, written)))
    assert value == read
    assert isinstance(value, type(read))


def test_a_blank_is_refused_where_a_value_is_needed(tmp_path):
    assert "train.lr = null is not allowed: expected a number > 0" in refusal(edited(tmp_path, "lr: 0.003", "lr:"))


def test_free_form_arguments_get_the_types_of_yaml_1_2(tmp_path):
    block = "kwargs:\n    drop_rate: 1e-1\n    depths: [1, 2]\n    act: no\n    flag: true\n    none:\n"
    kwargs = load_params(edited(tmp_path, "kwargs: {}", block)).model.kwargs
    assert kwargs == {"drop_rate": 0.1, "depths": [1, 2], "act": "no", "flag": True, "none": None}


def test_overrides_reach_nested_and_free_form_keys():
    given = ["train.augment.rotate=0", "+model.kwargs.drop_rate=0.2", "model.kwargs.a.b=1", "train.schedule_kwargs.x=1"]
    params = load_params(PARAMS, given)
    assert params.train.schedule_kwargs == {"x": 1}
    assert params.train.augment.rotate == 0
    assert params.model.kwargs == {"drop_rate": 0.2, "a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epoch=3", "there is no parameter 'train.epoch'; did you mean 'train.epochs'?"),
        ("lr=3", "there is no parameter 'lr'; did you mean 'train.lr'?"),
        ("train.lr.x=3", "there is no parameter 'train.lr.x'"),
        ("train.lr", "an override is written key=value"),
        ("train.lr=[1", "not readable as YAML"),
        ("train.lr=nan", "train.lr = 'nan' is not allowed: expected a number > 0 and <= 100"),
        ("train.threads=0", "train.threads = 0 is not allowed: expected a whole number >= 1 and <= 256 or auto"),
        ("train.epochs=2.5", "train.epochs = 2.5 is not allowed: expected a whole number >= 1"),
        ("data.name=cifar", "did you mean 'cifar10'?"),
        ("data.name=FashionMNIST", "did you mean 'fashion_mnist'?"),
        ("data.url=ftp://x/y.zip", "data.url = 'ftp://x/y.zip' is not allowed: expected text or null (http:// or"),
        ("data.sha256=abc", "data.sha256 = 'abc' is not allowed: expected text or null (checksum of the archive, 64"),
        ("data.url=https://x/y.zip", "url and sha256 are for data.name: archive, not digits; set it, or leave them"),
        ("train.warmup_epochs=12", "warmup_epochs = 12: expected less than epochs = 12, and 0 with"),
        ("train.schedule=cosin", "did you mean 'cosine'?"),
        ("train.clip_grad=0", "train.clip_grad = 0 is not allowed: expected a number or null > 0"),
        ("train.loggers=[tensorbord]", "train.loggers.0 = 'tensorbord' is not allowed: expected a list, each one of"),
        ("train=3", "train = 3 is not allowed: expected a section"),
        ("model.kwargs=3", "model.kwargs = 3 is not allowed: expected a section"),
        ("data.val_fraction=0.9", "val_fraction + test_fraction must be below 1"),
        ("data.channels=2", "data.channels = 2 is not allowed: expected one of auto, 1, 3"),
        ("data.group=(", "data.group: ( is not a regular expression: missing ), unterminated subpattern at position 0"),
        ("data.folds=1", "data.folds = 1 is not allowed: expected a whole number or null >= 2 and <= 1000"),
        ("train.augment.flip=maybe", "train.augment.flip = 'maybe' is not allowed: expected true or false or auto"),
        (
            "train.augment.policy=auto",
            "policy = 'auto' is not allowed: expected one of none, randaugment, trivialaugment",
        ),
        ("train.augment.resized_crop=1", "augment.resized_crop = 1 is not allowed: expected a number >= 0 and < 1"),
        ("data.fold=3", "fold = 3 is not allowed: expected 0 as long as folds is null"),
        (
            "train.augment.crop=4 train.augment.resized_crop=0.5",
            "train.augment: crop and resized_crop both cut a window out of the image; set one of them to 0",
        ),
        ("train.backbone=frozen train.ema=0.9", "train: ema = 0.9: not with backbone = frozen; set it to null"),
        ("evaluate.gates.accuracy=1", "evaluate.gates.accuracy = 1 is not allowed: Input should be less than 1"),
        ("train.head=prototypes", 'head = prototypes: not with backbone = tune; set it to "linear"'),
    ],
)
def test_a_wrong_override_is_refused_with_its_key_and_what_is_allowed(override, said):
    assert said in refusal(PARAMS, override.split())


def test_every_wrong_value_is_named_at_once():
    message = refusal(PARAMS, ["train.lr=abc", "train.seed=-1"])
    assert "train.lr = 'abc'" in message
    assert "train.seed = -1" in message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  epochs: 12\n", "", "train.epochs is missing: expected a whole number"),
        ("  epochs:", "  epoch: 1\n  epochs:", "train.epoch: there is no such parameter; did you mean 'train.epochs'?"),
        ("  epochs:", "  lr: 1\n  epochs:", 'found duplicate key "lr"'),
        ("train:", "train: [", "not readable as YAML in line"),
        ("evaluate:", "evaluation:", "evaluation: there is no such parameter; did you mean 'evaluate'?"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, old, new, said):
    assert said in refusal(edited(tmp_path, old, new))


def test_a_missing_or_empty_or_binary_file_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    assert "git checkout" in refusal(path)
    path.write_text("")
    assert "expected the sections data, model, train, evaluate" in refusal(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(path)


def test_the_committed_schema_is_current_and_named_in_the_first_line():
    first = PARAMS.read_text().splitlines()[0]
    schema = ROOT / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.read_text() == json_schema(), "run `make schema`"


def test_the_names_of_data_sets_are_those_that_can_be_downloaded():
    names = get_args(DataParams.model_fields["name"].annotation)
    assert set(names) == {"digits", "folder", "archive", *TORCHVISION_SETS}


def test_help_has_a_line_for_every_parameter_with_value_meaning_type_and_bounds():
    lines = help_text(load_params(PARAMS, ["train.lr=0.25"])).splitlines()
    assert {line.split(" = ")[0].strip() for line in lines} == flat(yaml.safe_load(PARAMS.read_text())).keys()
    assert "  train.lr = 0.25: learning rate at its peak (a number > 0 and <= 100)" in lines
    channels = '  data.channels = "auto": 1: gray, 3: RGB, auto: 1 where all images are gray, otherwise 3 (one of'
    assert channels in "\n".join(lines)
    assert [line for line in lines if ": None (" in line or ":  (" in line] == []


# --- properties ---

TREE = yaml.safe_load(PARAMS.read_text())
# YAML's rarer line breaks, which DVC's writer leaves bare, are no part of any name
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=20)
# what reads as null, a switch or a number in model.kwargs is not a text there, quoted or not
PLAIN = TEXT.filter(lambda text: not re.search("^(|~|null|yes|no|on|off|true|false)$|[0-9]", text, re.IGNORECASE))
FREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NOT_BLANK = TEXT.filter(lambda text: text not in ("", "~", "null", "Null", "NULL"))
SPECIAL = {  # what a pattern allows, and what no other value forbids
    "data.url": st.none() | st.from_regex("https?://[!-~]{1,9}", fullmatch=True),
    "data.mirror": st.none() | st.from_regex("https?://[!-~]{1,9}", fullmatch=True),
    "data.sha256": st.none() | st.from_regex("[0-9a-fA-F]{64}", fullmatch=True),
    **dict.fromkeys(["data.path", "model.weights"], TEXT.filter(lambda text: text and "\0" not in text)),
    "evaluate.gates": st.dictionaries(TEXT, st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=3),
    "data.group": st.sampled_from([None, "patient", r"^(\d+)_[a-z]", "1"]),
    **dict.fromkeys(["data.val_fraction", "data.test_fraction"], st.floats(0, 0.49, exclude_min=True)),
    "model.name": TEXT.filter(bool) | st.sampled_from(["no", "null", "1e5", "007", "~", "0x1f", "1:30"]),
    "train.accelerator": st.sampled_from(["auto", "cpu"]),
    "train.loss": st.sampled_from(["focal", "project/a.py:b"]),
    **dict.fromkeys(["train.callbacks", "train.augment.own"], st.lists(st.just("project/a.py:b"), max_size=2)),
    **dict.fromkeys(["data.fold", "train.warmup_epochs"], st.just(0)),
    **dict.fromkeys(["train.devices", "train.num_nodes"], st.just(1)),
}


def allowed(kind, constraints=(), key=""):
    """Return a strategy for the values of a type of the schema, with its constraints."""
    if key in SPECIAL:
        return SPECIAL[key]
    parts = get_args(kind)
    bounds = {
        name: getattr(item, name) for item in constraints for name in ("ge", "gt", "le", "lt") if hasattr(item, name)
    }
    least, most = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if hasattr(kind, "model_fields"):
        prefix = f"{key}." if key else ""
        return st.fixed_dictionaries(
            {
                name: allowed(field.annotation, field.metadata, prefix + name)
                for name, field in kind.model_fields.items()
            }
        )
    match get_origin(kind) or kind:
        case typing.Literal:
            return st.sampled_from(parts)
        case typing.Annotated:
            return allowed(parts[0], parts[1].metadata)
        case typing.Union | types.UnionType:
            return st.one_of([allowed(part, constraints) for part in parts])
        case builtins.list:
            return st.lists(allowed(*parts), max_size=3)
        case builtins.dict:
            return st.dictionaries(TEXT, FREE, max_size=3)
        case builtins.int:
            return st.integers(least, most if "lt" not in bounds else most - 1)
        case builtins.float:
            finite = {"allow_nan": False, "allow_infinity": False}
            return st.floats(least, most, exclude_min="gt" in bounds, exclude_max="lt" in bounds, **finite)
    return {bool: st.booleans(), str: NOT_BLANK, type(None): st.none()}[kind]


def fitting(tree):
    """Set what other values forbid."""
    if tree["data"]["name"] != "archive":
        tree["data"] |= {"url": None, "sha256": None}
    if tree["train"]["schedule"] == "none":
        tree["train"]["schedule_kwargs"] = {}
    tree["review"]["require"] = ["accuracy >= 0.5", "train.val_loss<=-1"][: len(tree["review"]["require"])]
    if tree["train"]["augment"]["resized_crop"]:
        tree["train"]["augment"]["crop"] = 0
    frozen = tree["train"]["backbone"] == "frozen"
    tree["train"] |= FROZEN | {"balance": "weights", "precision": "auto"} if frozen else TUNED
    tree["train"]["augment"] |= {"mixup": 0, "cutmix": 0} if frozen else {}
    return tree


TREES = allowed(Params).map(fitting)


def quick(examples):
    slow = [HealthCheck.too_slow]  # to draw from the whole schema, on a busy machine
    return settings(deadline=None, derandomize=True, max_examples=examples, suppress_health_check=slow)


def outcome(content, overrides=()):
    """Load bytes, or a text, as params.yaml; return the params or the refusal, whose form is checked."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            return load_params(path, overrides)
        except UserError as error:
            lines = str(error).split("\n")
    assert len(lines) <= 21
    assert max(map(len, lines)) < 700
    assert all(line.isprintable() for line in lines)
    return lines


@quick(15)
@given(TREES)
def test_whatever_is_allowed_comes_back_from_yaml_and_from_the_file_as_dvc_rewrites_it(tree):
    params = Params.model_validate(tree)
    assert repr(outcome(as_yaml(params))) == repr(params)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(PARAMS.read_bytes())
        with modify_yaml(path) as kept:  # comments and order stay
            for section, values in tree.items():
                kept[section].update(values)
        assert repr(load_params(path)) == repr(params)


def test_what_an_experiment_sets_arrives(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(PARAMS.read_bytes())
    given = ["train.lr=1e-5", "model.name=no", "data.mirror=null", "model.pretrained=yes", "train.weight_decay='0.25'"]
    apply_overrides(path, [*given, "+model.kwargs.drop_rate=1e-05", "train.augment.flip=1", "train.seed='007'"])
    params = load_params(path)
    assert (params.train.lr, params.train.weight_decay, params.train.seed) == (1e-5, 0.25, 7)
    assert (params.model.name, params.model.pretrained, params.train.augment.flip) == ("no", True, True)
    assert (params.data.mirror, params.model.kwargs) == (None, {"drop_rate": 1e-5})


@quick(40)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_end_in_params_or_a_refusal(content):
    outcome(content)


SNIPPETS = [
    "[", "]", "{", "}", ":", "- ", "? ", "&a ", "*a", "!!int ", "!!python/name:os.system ", "! ", "%YAML 1.1\n",
    "---\n", "...\n", "|\n", ">\n", "'", '"', "#", "\t", "\n", "  ", "<<: ", ".nan", "-.inf", "1e999", "0x1F",
    "9" * 400, "~", "\x00", "\x1b[2J", "\x85", "\ufeff", '"\\ud800"', '"\\UFFFFFFFF"', "@", "`", ",", "train:",
    "lr: 1\n",
]  # fmt: skip


@quick(25)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(SNIPPETS)), min_size=1, max_size=6))
def test_a_mangled_file_ends_in_params_or_a_refusal(changes):
    text = PARAMS.read_text()
    for place, dropped, snippet in changes:
        at = int(place * len(text))
        text = text[:at] + snippet + text[at + dropped :]
    outcome(text)


LEAVES = [
    ("data", "name"), ("data", "mirror"), ("data", "seed"), ("model", "name"), ("model", "pretrained"),
    ("model", "kwargs"), ("train", "lr"), ("train", "augment"), ("train", "augment", "flip"), ("train", "reproducible"),
    ("evaluate",), ("train", "unheard"), ("unheard",),
]  # fmt: skip


@quick(25)
@given(
    st.sampled_from(LEAVES),
    FREE | st.floats() | st.dates() | st.binary(max_size=9) | st.sets(st.integers(), max_size=3),
)
def test_a_value_of_any_type_ends_in_params_or_a_line_with_its_key(leaf, value):
    tree = yaml.safe_load(PARAMS.read_text())
    place = tree
    for section in leaf[:-1]:
        place = place[section]
    place[leaf[-1]] = value
    read = outcome(yaml.safe_dump(tree))
    assert isinstance(read, Params) or all(".".join(leaf) in line for line in read)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(12)
)


HOSTILE = {
    "alias bomb": (BOMB, "in line 1: an alias stands for more than one value"),
    "alias of itself": ("train: &a {x: *a}", "an alias stands for more than one value"),
    "alias of nothing": ("train: *nowhere", "found undefined alias 'nowhere'"),
    "brackets": ("[" * 100_000, "maximum depth"),
    "indentation": ("a:\n" + "".join(" " * n + "a:\n" for n in range(1, 1000)), "maximum depth"),
    "dashes": ("- " * 50_000, "maximum depth"),
    "braces": ("model: {kwargs: " + "{a: " * 900, "maximum depth"),
    "no such character": ('a: "\\UFFFFFFFF"', "not readable as YAML"),
    "no such version": (f"%YAML {'1' * 5000}.1\n--- a", "not readable as YAML"),
    "escape sequence": ("a: \x1b[2J", "not readable as YAML: unacceptable character"),
    "long key": (f"? {'k' * 100_000}\n: 1\n" * 2, "(100,059 characters)"),
    "key twice": ("".join(f"key{n}: 1\n" for n in range(900)) + "key1: 2\n", 'found duplicate key "key1"'),
    "many keys": ("".join(f"key{n}: 1\n" for n in range(900)), "and 884 more"),
    "700,000 keys and lists": ("k: []\n" * 700_000, "in line 1000: more than 2,000 values"),
    "a list as key": ("? [a, b]\n: 1", "there is no such parameter"),
    "two documents": ("a: 1\n---\nb: 2", "found another document"),
    "no section": ("- a\n- b", "expected the sections"),
    "Latin 1": (b"data: \xff", "not UTF-8"),
    "UTF-16": ("data".encode("utf-16"), "not UTF-8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused_at_once(name, monkeypatch):
    monkeypatch.setattr("reprise.params.load.MOST_VALUES", 2_000)
    document, said = HOSTILE[name]
    started = time.process_time()
    assert said in "\n".join(outcome(document))
    assert time.process_time() - started < 5


@pytest.mark.parametrize("tag", ["apply:os.system [touch X]", "apply:os.system {args: [touch X]}", "name:os.system ''"])
def test_a_tag_runs_no_code_and_makes_no_object(tmp_path, tag):
    tag = tag.replace("X", str(tmp_path / "made"))
    for arguments in [
        (edited(tmp_path, "lr: 0.003", f"lr: !!python/object/{tag}"),),
        (edited(tmp_path, "kwargs: {}", f"kwargs: {{a: !!python/object/{tag}}}"),),
        (PARAMS, [f"train.lr=!!python/object/{tag}"]),
    ]:
        assert "could not determine a constructor for the tag" in refusal(*arguments)
    assert not (tmp_path / "made").exists()


def test_an_alias_of_one_value_is_that_value(tmp_path):
    path = edited(tmp_path, "  seed: 0  ", "  seed: &seed 7  ")
    path.write_text(re.sub(r"(?m)^  seed: 0 ", "  seed: *seed ", path.read_text()))
    params = load_params(path)
    assert (params.data.seed, params.train.seed) == (7, 7)


@pytest.mark.parametrize("value", ["x" * 1_000_000, "'" + "line\n\n" * 10_000 + "'", "[" + "x, " * 2_000 + "]"])
def test_a_wrong_value_of_any_length_is_not_printed_whole_and_takes_one_line(value):
    text = PARAMS.read_text().replace("schedule: onecycle", "schedule: 1").replace("image_size: 32", "image_size: 7")
    first, second, third = outcome(text.replace("lr: 0.003", f"lr: {value}"))
    assert "data.image_size = 7 is not allowed" in first
    assert re.search(r"train\.lr = .{80}\.\.\. \([0-9,]+ characters\) is not allowed", second)
    assert "train.schedule = 1 is not allowed" in third


@pytest.mark.parametrize("value", ["1e999", "-.inf", ".nan", "[1, {b: .nan}]"])
def test_a_number_that_is_none_is_refused_in_free_form_values_too(value):
    said = refusal(PARAMS, [f"model.kwargs.a={value}"])
    assert re.search(r"model\.kwargs\.a.* is not allowed: Input should be a finite", said)


def test_a_number_without_end_is_not_read():
    assert "not readable as YAML: Exceeds the limit" in refusal(PARAMS, [f"train.lr={'9' * 5000}"])


KEYS = ["train.lr", "model.name", "model.kwargs", "model.kwargs.a.b", "data.mirror", "train", "", ".", "nothing"]
VALUES = TEXT | st.lists(st.sampled_from(SNIPPETS), max_size=4).map("".join)


@quick(25)
@given(st.lists(st.builds("{}={}".format, st.sampled_from(KEYS) | TEXT, VALUES) | TEXT, min_size=1, max_size=3))
def test_any_overrides_end_in_params_or_a_refusal(overrides):
    outcome(PARAMS.read_bytes(), overrides)


@pytest.mark.parametrize(
    "override", ["x" * 1_000_000, "x" * 1_000_000 + "=1", "train.lr=[" + "x" * 1_000_000, "a\nb=1"]
)
def test_the_refusal_of_an_override_is_one_short_line(override):
    assert len(outcome(PARAMS.read_bytes(), [override])) == 1
