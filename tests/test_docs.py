"""Markdown names only files and headings that exist; so do the comments of params.yaml and of the presets."""

import posixpath
import re
import subprocess
from fnmatch import fnmatch
from urllib.parse import unquote

import pytest

from tests.conftest import BLOCK, ROOT

pytestmark = pytest.mark.product
LISTED = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
TRACKED = {name for name in LISTED.split("\0") if (ROOT / name).is_file()}
FOLDERS = {name[:end] for name in TRACKED for end, letter in enumerate(name) if letter == "/"} | {"."}
# a user's own pages under data/ and the generated models/README.md, which names the user's classes, are not ours
DOCS = sorted(name for name in TRACKED if name.endswith(".md") and not name.startswith(("data/", "models/", "runs/")))
SETTINGS = ["params.yaml", *sorted(name for name in TRACKED if fnmatch(name, "presets/*.yaml"))]
FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^ *\[[^\]]+\]: *<?([^\s>]+)|\b(?:href|src)=\"([^\"]+)\"", re.MULTILINE)
PATH = re.compile(r"(?<![\w./-])(?:src|stages|tests|docs|benchmarks|presets)/[\w./*-]*")


def exists(name):
    return name in TRACKED | FOLDERS or ("*" in name and any(fnmatch(each, name) for each in TRACKED))


def slugs(markdown):
    """Return the anchors of the headings, as GitHub forms them: a repeated one gets -1, -2, ..."""
    found, seen = set(), {}
    for heading in re.findall(r"^#{1,6} +(.+?)[ #]*$", FENCE.sub("", markdown), re.MULTILINE):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # of a link, its text
        slug = re.sub(r"[^\w -]", "", shown.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return found


def read(name):
    return (ROOT / name).read_text()


def broken_links(name, markdown):
    """Return the links of a page that lead to no tracked file or to no heading."""
    broken = []
    for target in map("".join, LINK.findall(CODE.sub("", FENCE.sub("", markdown)))):
        if re.match(r"[a-z][a-z+.-]*:", target):  # https:, mailto:
            continue
        path, _, anchor = target.partition("#")
        where = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(path))) if path else name
        text = markdown if where == name else read(where) if anchor and where in TRACKED else ""
        if not (where == name or exists(where)) or (anchor and anchor not in slugs(text)):
            broken.append(target)
    return broken


def missing_paths(markdown):
    """Return the paths of this repository in code spans and blocks that do not exist."""
    code = [match[0] for match in FENCE.finditer(markdown)]
    code += [match[2] for match in CODE.finditer(FENCE.sub("", markdown))]
    paths = {path.rstrip("./") for text in code for path in PATH.findall(text)}
    return sorted(path for path in paths if not exists(path))


def untested(page, taken):
    """Return the blocks of code of a page whose language no test takes, and which do not say why."""
    found = list(BLOCK.finditer(page))
    assert len(found) == page.count("```") / 2 == len(FENCE.findall(page)), "a block in another form"
    return [match["text"] for match in found if not match["why"] and match["language"] not in taken]


def pointers(settings):
    """Return (key of the line, file) for each `see FILE` in a comment of a YAML file; key: "" where there is none."""
    found, parents = [], []
    for line in settings.splitlines():
        before, _, comment = line.partition("#")
        key = re.match(r"( *)(\w+):", before)
        if key:
            parents = [*parents[: len(key[1]) // 2], key[2]]
        for file in re.findall(r"\bsee ([\w./-]*[./A-Z][\w./-]*)", comment):
            found.append((".".join(parents) if key else "", file.rstrip(".")))
    return found


@pytest.mark.parametrize("name", DOCS)
def test_every_link_leads_to_a_file_and_a_heading_and_every_path_in_code_exists(name):
    assert broken_links(name, read(name)) == []
    assert missing_paths(read(name)) == []


@pytest.mark.parametrize("name", DOCS)
def test_every_block_of_code_is_taken_by_a_test_or_says_why_not(name):
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert untested(read(name), re.findall(rf'\bblocks\("{re.escape(name)}", "(\w+)"\)', tests)) == []


@pytest.mark.parametrize("name", SETTINGS)
def test_a_comment_points_to_a_file_that_exists_and_says_something_of_the_parameter(name):
    for key, file in pointers(read(name)):
        assert exists(file), f"{name}: see {file}"
        assert key in read(file), f"{name}: {file} says nothing of {key}"


def test_a_broken_link_path_or_pointer_is_found():
    page = "# A `b`, c\n# A b, c\n[1](#a-b-c) [2](#a-b-c-1) [3](#a-b-c-2) [4](../README.md#your-project)\n"
    page += "[5](../README.md#no) [6](README.md) [7](https://a.b/c#d)\n```\n# not one [8](no.md)\n```\n[9](#not-one)"
    assert broken_links("docs/page.md", page) == ["#a-b-c-2", "../README.md#no", "README.md", "#not-one"]
    why = "<!-- not run by a test: a picture -->\n```a\n1\n```\n"
    assert untested(why + "```a\n2\n```\n ```sh\n3\n ```\n```\n4\n```", ["sh"]) == ["2\n", "4\n"]
    code = "`python src/train.py x=1` `stages/*.py` `src/reprise/` `tests/no.py::test`\n```sh\npython src/no.py\n```\n"
    assert missing_paths(code + "src/not-code.py") == ["src/no.py", "tests/no.py"]
    found = pointers("# see README.md.\na:\n  b: 1  # see docs/x.md\n  c: 1  # see below\nd: 2  # see NOTES")
    assert found == [("", "README.md"), ("a.b", "docs/x.md"), ("d", "NOTES")]
