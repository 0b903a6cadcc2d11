"""`reprise params`: what differs, and one value put back without touching anything else."""

import pytest
import yaml

from reprise.params.reset import DEFAULTS, differing, parse, reset
from reprise.runtime.errors import UserError

TEXT = DEFAULTS.read_text()
DEFAULT = parse(TEXT)


@pytest.mark.parametrize(
    ("line", "wrong", "key"),
    [
        ("  lr: 0.003  ", "  lr: fast   ", "train.lr"),
        ("  lr: 0.003  ", "  lr: 0.0030000001  ", "train.lr"),
        ("  kwargs: {}  ", "  kwargs: {drop_rate: [1, 2]}  ", "model.kwargs"),
        ("  kwargs: {}  ", "  kwargs: {drop_rate: 0.5}  ", "model.kwargs.drop_rate"),
        ("  schedule_kwargs: {}  ", "  schedule_kwargs:\n    a: 1\n  ", "train.schedule_kwargs"),
        ("  group:   ", "  group: 'a: [c'   ", "data.group"),
        ("    rotate: 10   ", "    rotate: true   ", "train.augment.rotate"),
        ("\nevaluate:", "\n  lrr: 3\nevaluate:", "train.lrr"),
        ("\nevaluate:", "\nextra:\n  deep: 1\nevaluate:", "extra"),
    ],
)
def test_one_value_goes_back_and_no_other_line_changes(line, wrong, key):
    assert line in TEXT
    text = TEXT.replace(line, wrong, 1)
    name, *rest = differing(parse(text), DEFAULT)
    assert name.startswith(key) or key.startswith(name)
    assert not rest
    back = reset(text, [key], TEXT, {})
    assert parse(back) == DEFAULT
    assert back == TEXT
    remarked = text.replace("optimizer: adamw ", "optimizer: adamw # mine:")
    if key == "train.schedule_kwargs":  # ruamel.yaml would drop the comment below the section
        with pytest.raises(UserError, match="comments would be lost"):
            reset(remarked, [key], TEXT, {})
        return
    back = reset(remarked, [key], TEXT, {})
    assert (parse(back), "# mine:" in back) == (DEFAULT, True)


def test_a_value_that_the_commit_has_too_goes_back_to_the_default():
    committed = TEXT.replace("lr: 0.003", "lr: 0.5")
    changed = committed.replace("lr: 0.5", "lr: 0.7")
    assert yaml.safe_load(reset(changed, ["train.lr"], committed, DEFAULT))["train"]["lr"] == 0.5
    assert parse(reset(committed, ["train.lr"], committed, DEFAULT)) == DEFAULT
    shown = differing(parse(changed), parse(committed), DEFAULT)
    assert shown == {"train.lr": ["0.7", "0.5", "0.003"]}


@pytest.mark.parametrize(
    ("committed", "now", "keys", "value"),
    [
        ("rotate: 0  ", "rotate: false  ", ["train.augment.rotate"], 0),  # false is not 0
        ("rotate: 0  ", "rotate: fast  ", ["train.augment.rotate"] * 2, 0),  # named twice
        ("rotate: 0  ", "rotate: fast  ", ["train", "train.augment.rotate"], 0),  # the section and a key of it
    ],
)
def test_the_committed_value_comes_back_however_it_is_asked_for(committed, now, keys, value):
    before = TEXT.replace("rotate: 10 ", committed)
    back = parse(reset(TEXT.replace("rotate: 10 ", now), keys, before, DEFAULT))
    assert repr(back["train"]["augment"]["rotate"]) == repr(value)
    assert back == parse(before)


@pytest.mark.parametrize("scalar", ["augment: none", "augment:"])
def test_a_section_that_became_a_scalar_comes_back_whole(scalar):
    start, end = TEXT.index("  augment:"), TEXT.index("  start_size:")
    text = f"{TEXT[:start]}  {scalar}\n{TEXT[end:]}"
    assert reset(text, ["train.augment.rotate"], TEXT, DEFAULT) == TEXT


def test_without_a_commit_the_default_comes_back_and_no_comment_of_ones_own_goes():
    wrong = TEXT.replace("lr: 0.003", "lr: fast")
    assert parse(reset(wrong, ["train.lr"], "", DEFAULT)) == DEFAULT
    own = TEXT.replace("\nevaluate:", "  lrr: 1\n\n# my note\nevaluate:")
    with pytest.raises(UserError, match="comments would be lost"):
        reset(own, ["train.lrr"], TEXT, DEFAULT)
    with pytest.raises(UserError, match="not readable as YAML"):
        reset("train: [", ["train.lr"], TEXT, DEFAULT)


def test_a_key_that_is_nowhere_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"there is no parameter 'train\.lrr'; did you mean 'train\.lr'"):
        reset(TEXT, ["train.lrr"], TEXT, DEFAULT)
