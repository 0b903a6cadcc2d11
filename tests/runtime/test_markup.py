"""Whatever a class, a file or a branch is called, it reads as it is and does nothing."""

import html

import pytest

from reprise.runtime.markup import table, text

NASTY = [
    "<img src=x onerror=alert(1)>", "![x](http://a.b/c)", "[x](javascript:y)", "a|b", "a`b`", "*a* _b_ ~c~", "$x$",
    "@team look", "fixes #12", "see GH-12", "http://evil.example/x", "WWW.evil.example", "a@b.example", "&lt;b&gt;",
    "\\|",
]  # fmt: skip


@pytest.mark.parametrize("value", NASTY)
def test_what_could_be_markup_is_shown_as_it_is(value):
    escaped = text(value)
    assert html.unescape(escaped).replace("\u200b", "") == value
    assert not set(escaped.replace("&#", "").replace(";", "")) & set("<>|`*[]@#!$\\&\"'")
    seen = html.unescape(escaped)
    for link in ("@team", "#12", "GH-12", "://", "WWW.evil", "@b"):
        assert link not in seen


@pytest.mark.parametrize(
    "value", ["cat", "train.lr", "models/model.json", "1e-05", "a_b", "well-known", "0.95", "p = 0.05 (of 3)"]
)
def test_plain_words_stay_as_they_are(value):
    assert text(value) == value


def test_what_cannot_be_seen_or_breaks_a_line_is_a_question_mark():
    assert text("a\nb\r\x00c\u202ed\u200be\ud800") == "a?b??c?d?e?"


def test_a_table_keeps_numbers_to_the_right_and_its_cells_as_given():
    assert table(["a", "b", "c"], [["x", 1, "-0.5"], [text("y|z"), "2,000", "-"]]).splitlines() == [
        "| a | b | c |",
        "| --- | ---: | ---: |",
        "| x | 1 | -0.5 |",
        "| y&#124;z | 2,000 | - |",
    ]
    assert table(["a", "b"], []).splitlines() == ["| a | b |", "| --- | --- |"]
