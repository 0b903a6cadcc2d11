"""Markdown with escaped text, and its HTML: no name of a class, file or branch becomes markup, a link or a mention."""

import re
from collections.abc import Iterable, Sequence

LINKS = re.compile(r":(?=//)|@|#|(?<=www)\.|(?<=gh)-", re.IGNORECASE)
# anywhere (but `_` within a word), at the beginning of a line, after a number there
ACTIVE = re.compile(
    r"[\\`*{}\[\]#!|~:@$&<>\"']|(?<![^\W_])_|_(?![^\W_])|^[-+=]|(?<=^\d)[.)](?=\s)|(?<=^\d\d)[.)](?=\s)"
)
# controls, breaks, what has no width or turns the direction of writing, halves of surrogates
HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
NUMBER = re.compile(r"[-+]?\d[\d.,]*( .*)?|-?")
STYLE = "body{font:15px sans-serif;max-width:60em;margin:auto}table{border-collapse:collapse}td,th{border:1px solid}"
APART = "&#8203;"  # zero-width space: sites look for mentions and links in the text as shown, after the entities


def text(value: object) -> str:
    """Escape a value for a Markdown cell or sentence, so that it reads as it is; plain words stay unchanged.

    Invisible characters become `?`. Mentions (`@name`), references (`#1`) and addresses get a zero-width space inside.
    """
    shown = HIDDEN.sub("?", str(value))
    active = {found.start() for found in ACTIVE.finditer(shown)}
    linked = {found.start() for found in LINKS.finditer(shown)}
    # entities, not backslashes: in a table, and by every site, those are understood
    return "".join(
        (f"&#{ord(character)};" if index in active | linked else character) + (APART if index in linked else "")
        for index, character in enumerate(shown)
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table, columns of numbers to the right; header and cells are Markdown already (see `text`)."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(*cells, strict=True)) or [()] * len(header)
    rule = ["---:" if column and all(map(NUMBER.fullmatch, column)) else "---" for column in columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *cells])


def html(markdown: str) -> str:
    """Return a Markdown page as one of HTML, which any browser opens; tags in the Markdown are shown, not obeyed."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return f"<!doctype html>\n<meta charset='utf-8'>\n<title>Report</title>\n<style>{STYLE}</style>\n{body}"
