"""The group that fails is found and no other one, whatever the columns hold; a gate that is missed stops the stage."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import fisher_exact

from reprise.evaluation.gates import check_gates, check_names
from reprise.evaluation.groups import LEVEL, find_groups, group_name, measured, read_members
from reprise.runtime.errors import UserError
from tests.evaluation.test_evaluate import answered

COUNT = 400


def drawn(seed, wrong=0.1):
    """Random images, the values of two cameras and of age, and which images are right, whatever their values."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
    columns = {"camera": generator.integers(1, 5, COUNT).astype(str).tolist()}
    columns["age"] = generator.integers(1, 90, COUNT).astype(str).tolist()
    return images, columns, generator.random(COUNT) >= wrong


def names(found):
    return [group.name for group in found.judged if group.p <= LEVEL]


def test_a_planted_group_is_the_worst_one_with_fishers_p_value():
    images, columns, right = drawn(0)
    planted = np.array(columns["camera"]) == "3"
    right &= ~planted | (np.random.default_rng(1).random(COUNT) < 0.6)
    found = find_groups(images, columns, right)
    assert names(found) == ["camera=3"]  # and none of its pairs, which are no worse than it
    table = [[(right & part).sum(), (~right & part).sum()] for part in (planted, ~planted)]
    exact = fisher_exact(table, alternative="less").pvalue
    assert found.judged[0].p == pytest.approx(exact * len(found.judged), rel=1e-6, abs=0)
    assert (found.judged[0].images, found.judged[0].right) == (planted.sum(), (right & planted).sum())
    assert f"images: camera=3 ({(right & planted).sum()} of {planted.sum()} right)" in found.sentence()


def test_a_pair_is_named_where_neither_of_its_groups_alone_is_at_fault():
    images, columns, right = drawn(0, wrong=0.02)
    columns["light"] = np.random.default_rng(1).choice(["day", "night"], COUNT).tolist()
    planted = (np.array(columns["camera"]) == "3") & (np.array(columns["light"]) == "night")
    found = find_groups(images, columns, right & ~planted)
    pair = next(group for group in found.judged if group.name == "camera=3 & light=night")
    assert (pair.p < 1e-9, pair.right, pair.images) == (True, 0, planted.sum())


def test_without_a_group_that_fails_one_is_named_in_at_most_5_percent_of_runs():
    assert {group.p for group in find_groups(*drawn(0, wrong=0)).judged} == {1.0}
    assert sum(bool(names(find_groups(*drawn(seed)))) for seed in range(40)) <= 5  # binomial, 1 in 30 above 4


def test_what_images_show_is_measured_in_shares_of_white():
    flat, half = np.full((8, 8, 3), 51, np.uint8), np.zeros((8, 8, 3), np.uint8)
    half[:, 4:] = 255
    got = measured(np.stack([flat, half]))
    assert got["brightness"] == pytest.approx([0.2, 0.5], rel=1e-12)
    assert got["contrast"] == [0, pytest.approx(0.5, rel=1e-12)]
    assert got["sharpness"] == [0, pytest.approx((1 / 3) ** 0.5, rel=1e-12)]  # 1 and -1 in 2 of 6 columns


HOSTILE = {
    "id": ([str(number) + "x" for number in range(COUNT)], None),
    "number": ([str(number / 7) for number in range(COUNT)], {"lowest", "low", "high", "highest"}),
    "row": (list(map(str, range(COUNT))), None),  # all distinct: ids
    "holes": (["", "nan", "N/A", *(str(n / 7) for n in range(397))], {"lowest", "low", "high", "highest", "(empty)"}),
    "mostly one": (["5"] * 300 + list(map(str, range(6, 106))), {"lowest", "highest"}),
    "infinite": (["1e999"] * 200 + ["1"] * 200, {"1e999", "1"}),
    "text": (["x" * 81] * 200 + ["y"] * 200, None),
    "c\rr": (["\ra\r\nb"] * 200 + ["c\r"] * 200, {" a \nb", "c "}),
    "formula": (["=1+1"] * 200 + ["'@x"] * 200, {"=1+1", "'@x"}),
    "blank": ([""] * 200 + ["a\nb,\x1b"] * 200, {"(empty)", "a\nb,\x1b"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_column_of_any_content_makes_groups_or_none_and_comes_back_from_the_file(name, tmp_path):
    values, wanted = HOSTILE[name]
    images, _, right = drawn(0)
    found = find_groups(images, {f"={name}": values, "brightness": ["mine", "yours"] * 200}, right)
    assert set(found.members.get(f"={name}".replace("\r", " "), ())) == (wanted or set())
    assert set(found.members["brightness"]) == {"mine", "yours"}
    found.save(tmp_path / "table.csv", tmp_path / "members.csv", list(map(str, range(COUNT))))
    assert read_members((tmp_path / "members.csv").read_text()) == found.members
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert len(rows) == sum(len(group.parts) == 1 for group in found.judged)
    assert all(float(row["low"]) < float(row["accuracy"]) < float(row["high"]) for row in rows)
    mine = next(row for row in rows if row["group"] == "brightness=mine")
    assert float(mine["accuracy"]) == pytest.approx(right[::2].mean(), rel=1e-5)


def test_the_numbers_of_a_quarter_are_whole_where_all_are():
    days = [str(20230101 + 2 * (number // 2)) for number in range(COUNT)]
    found = find_groups(drawn(0)[0], {"day": days, "share": [str(n / 7) for n in range(COUNT)]}, drawn(0)[2])
    assert found.ranges["day=lowest"] == "20230101 to 20230199" and found.ranges["share=highest"] == "42.86 to 57"


def test_no_two_groups_or_pairs_have_one_name():
    parts = ["a", "a=", "a &", "& a", '"a"', "a & a=a", "\\", ""]
    single = [group_name(name, value) for name in parts for value in parts]
    assert len({*single, *(f"{one} & {other}" for one in single for other in single)}) == 8**2 + 8**4


def test_a_gate_is_never_judged_by_another_group_than_it_names_nor_by_a_few_images():
    images, right = drawn(0)[0], np.arange(COUNT) % 4 > 0
    columns = {"a=b": ["c", "d"] * 200, "a": ["b=c"] * 200 + ["d"] * 200, "few": ["x"] * 19 + ["y"] * 20 + ["z"] * 361}
    result = replace(answered([0] * 100 + [1] * 100, [0] * 200), groups=find_groups(images, columns, right))
    check_gates(result, {"group.a=d": 0.65, 'group.a="b=c"': 0.65, "group.few=y": 0.1}, 0.95)
    with pytest.raises(UserError, match=r'gates.group."a=b"=c = 0.65: 100 of 200 images right'):
        check_gates(result, {"group.a=d": 0.65, 'group."a=b"=c': 0.65}, 0.95)
    for none in ("group.a=b=c", "group.few=x", "group.few=y & a=d", "group.a=d & few=z", "group."):
        with pytest.raises(UserError, match=f"evaluate.gates: {none}: no metric .*at least 20 test images"):
            check_gates(result, {none: 1e-9}, 0.95)


def test_a_gate_holds_the_lower_end_of_the_interval_of_classes_groups_and_all():
    result = answered([0] * 100 + [1] * 100, [0] * 100 + [1] * 90 + [0] * 10)
    met = {"accuracy": 0.91, "recall.ant": 0.96, "recall.bee": 0.82, "precision.bee": 0.95}
    check_gates(result, met, 0.95)
    with pytest.raises(UserError) as refused:
        check_gates(result, met | {"accuracy": 0.92, "recall.bee": 0.83, "recall.emu\n": 0.01}, 0.95)
    assert str(refused.value).startswith(
        "evaluate.gates.accuracy = 0.92: 190 of 200 images right, 95 % interval 0.9104 to 0.9726; "
        "evaluate.gates.recall.bee = 0.83: 90 of 100 images right, 95 % interval 0.8256 to 0.9448; "
        "evaluate.gates.recall.emu\\n = 0.01: 0 of 0 images right, 95 % interval 0.0000 to 1.0000; "
        "get a better model or more test images"
    )
    check_gates(result, {"accuracy": 0.92}, 0.8)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("acuracy", "did you mean accuracy?"),
        ("f1", "no metric with an interval, class, or group of at least 20 test images and not all of them; there are"),
        ("recall.bea", "did you mean recall.bee"),
        ("group.brightness=lowes", "did you mean group.brightness=lowest"),
    ],
)
def test_a_gate_of_no_metric_class_or_group_is_refused_as_early_as_it_can_be(gate, said):
    result = answered([0] * 100 + [1] * 100, [0] * 100 + [1] * 100)
    with pytest.raises(UserError) as refused:
        check_gates(result, {gate: 0.1}, 0.95)
    assert str(refused.value).startswith(f"evaluate.gates: {gate}: no metric")
    assert said in str(refused.value)
    if not gate.startswith("group"):
        with pytest.raises(UserError, match=f"evaluate.gates: {gate}: "):
            check_names([gate], result.classes)
