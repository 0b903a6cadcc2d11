"""One comment on a pull request (GitHub) or merge request (GitLab), posted once and updated from then on.

Needs the standard library alone: the job that holds a token to write comments installs nothing and runs no code of the
pull request. What it posts is not to be trusted: `harmless` removes from it what a site would act on.
"""

import json
import os
import re
import stat
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from reprise.runtime.errors import UserError

MARKER = "<!-- reprise review -->"  # invisible first line: how the comment is found again
TAGS = re.compile(r"<(?!/?(?:details|summary|sub|sup|b|br)>)")
PICTURE = re.compile(r"!\[([^]\n]*)\]\([^)\n]*\)")
# what mentions, refers and links, however it is written: `&#35;` is an entity, not a reference to an issue
ENTITY = r"&(?:commat|num|colon|sol|period|excl|amp|dollar|percnt);|&#0*(?:64|35|58|47|46|33|38|126|36|37)(?!\d);?"
ENTITY += r"|&#x0*(?:40|23|3a|2f|2e|21|26|7e|24|25)(?![\da-f]);?"
ACTIVE = re.compile(
    rf"@|{ENTITY}|(?:#(?!(?<=&#)\d+;)|(?<=\bgh)-|(?<=\bgl)-|[&$^])(?=\d)|!(?=[\d[])|[~%](?=[\w\"])|\^(?=alert)"
    r"|\[(?=\w+:)|\*(?=iteration:)|:(?=/)|(?<=\bwww)\.|\](?=[(\[:])|^[\s>*+\d.)-]*(?=/)",
    re.IGNORECASE | re.MULTILINE,
)
APART = "\u200b"  # zero-width space
MOST = 4_000_000  # bytes of a page: more than a comment of any site
PER_PAGE = 100
TIMEOUT = 30  # seconds


def post(platform: "GitHub | GitLab", markdown: str, link: str = "") -> str:
    """Post the comment, or update the one that is there; return its address. Raises UserError if the site refuses.

    link: how the addresses begin to which the comment may link.
    """
    body = f"{MARKER}\n{shortened(harmless(markdown, link), platform.limit - len(MARKER) - 1)}"
    own = (number for number, text in platform.comments() if text.startswith(MARKER))
    return platform.write(body, next(own, None))


def harmless(markdown: str, link: str = "") -> str:
    """Return Markdown that mentions nobody, refers to nothing, commands nothing, hides nothing and loads nothing.

    Pictures are replaced by their descriptions: a comment cannot show those that lie beside a report. HTML is shown as
    text, except for the tags that fold a section. A line that begins with `/`, also within a quotation or a list, would
    be a command to GitLab. Addresses are text, but for links to those that begin with `link`.
    """
    without = TAGS.sub("&lt;", PICTURE.sub(r"\1", markdown.replace("\r", "")))
    own = re.compile(rf"(\[[\w ]+\]\({re.escape(link)}[\w/#-]*\))" if link else "(?!)()")
    return "".join(
        part if number % 2 else ACTIVE.sub(rf"\g<0>{APART}", part) for number, part in enumerate(own.split(without))
    )


def shortened(markdown: str, limit: int) -> str:
    """Return Markdown of at most `limit` characters: whole lines, then a note that the rest is missing."""
    if len(markdown) <= limit:
        return markdown
    note = "\n\n*Cut here: a comment may not be longer. The whole report is in the artifact.*\n"
    closing = "\n</details>"
    room = limit - len(note) - len(closing) * markdown.count("<details>")
    kept = markdown[: markdown.rfind("\n", 0, room)] if "\n" in markdown[:room] else markdown[:room]
    return kept + closing * (kept.count("<details>") - kept.count("</details>")) + note


@dataclass(frozen=True)
class Site:
    """A pull or merge request, by the address of the site's API, project and number; limit: characters of a comment."""

    api: str
    project: str
    number: int
    token: str
    limit: int
    headers: ClassVar[dict[str, str]]  # {} stands for the token
    variables: ClassVar[tuple[str, ...]]  # in which CI has api, project, number and token
    author: ClassVar[tuple[str, str]]  # the keys of a comment's author, and of their name

    def call(self, method: str, path: str, content: object = None) -> Any:
        """Send JSON to a path below the API, return the JSON that comes back. Raises UserError as `send` does."""
        headers = {name: value.format(self.token) for name, value in self.headers.items()}
        return send(method, self.api + path, headers, content)

    def comments_by(self, name: str, path: str) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of the comments of one author in a list that comes page by page."""
        who, called = self.author
        for page in count(1):
            items = self.call("GET", f"{path}?per_page={PER_PAGE}&page={page}")
            for item in items:
                if item[who] and item[who][called] == name and not item.get("system"):
                    yield item["id"], item["body"] or ""
            if len(items) < PER_PAGE:
                return


@dataclass(frozen=True)
class GitHub(Site):
    """A pull request. api: e.g. https://api.github.com; project: OWNER/NAME."""

    limit: int = 65_536
    variables = ("GITHUB_API_URL", "GITHUB_REPOSITORY", "PULL_REQUEST", "GITHUB_TOKEN")
    headers: ClassVar = {"Authorization": "Bearer {}", "Accept": "application/vnd.github+json"}
    author = ("user", "login")

    def comments(self) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of the comments that this token's owner has written."""
        try:
            own = self.call("GET", "/user")["login"]
        except UserError:  # the token of a workflow is no user's
            own = "github-actions[bot]"
        return self.comments_by(own, f"/repos/{self.project}/issues/{self.number}/comments")

    def write(self, body: str, comment: int | None = None) -> str:
        """Write a new comment, or replace the text of one, by its number; return its address."""
        path = f"comments/{comment}" if comment else f"{self.number}/comments"
        method = "PATCH" if comment else "POST"
        return str(self.call(method, f"/repos/{self.project}/issues/{path}", {"body": body})["html_url"])


@dataclass(frozen=True)
class GitLab(Site):
    """A merge request. api: e.g. https://gitlab.com/api/v4; project: its id."""

    limit: int = 1_000_000
    variables = ("CI_API_V4_URL", "CI_MERGE_REQUEST_PROJECT_ID", "CI_MERGE_REQUEST_IID", "REVIEW_TOKEN")
    headers: ClassVar = {"PRIVATE-TOKEN": "{}"}
    author = ("author", "username")

    @property
    def place(self) -> str:
        """The path of the merge request below the API."""
        return f"/projects/{self.project}/merge_requests/{self.number}"

    def comments(self) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of the comments that this token's owner has written."""
        return self.comments_by(self.call("GET", "/user")["username"], f"{self.place}/notes")

    def write(self, body: str, comment: int | None = None) -> str:
        """Write a new comment, or replace the text of one, by its number; return its address."""
        method, path = ("PUT", f"notes/{comment}") if comment else ("POST", "notes")
        note = self.call(method, f"{self.place}/{path}", {"body": body})["id"]
        return f"{self.call('GET', self.place)['web_url']}#note_{note}"


def post_page(page: Path, environment: Mapping[str, str]) -> str:
    """Post a page by the variables that CI sets; return the comment's address. Raises UserError if one is missing."""
    text = read_page(page)
    site: type[GitHub | GitLab] = GitLab if "CI_API_V4_URL" in environment else GitHub
    if lacking := [name for name in site.variables if not environment.get(name)]:
        raise UserError(f"{', '.join(lacking)}: not set; posting needs {', '.join(site.variables)} in the environment")
    api, project, number, token = (environment[name] for name in site.variables)
    if not number.isdecimal():
        raise UserError(f"{site.variables[2]}={number}: expected the number of a request")
    runs = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/", "{CI_PROJECT_URL}/-/jobs/"
    known = defaultdict(str, environment)
    links = [run.format_map(known) for run in runs if "://" in run.format_map(known)]
    return post(site(api, project, int(number), token), text, next(iter(links), ""))


def read_page(page: Path) -> str:
    """Return the text of a page that is not to be trusted. Raises UserError for all but a file of its own."""
    try:
        file = os.open(page, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"{page}: no page ({error.strerror}); a file that `make review` writes is posted") from None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size > MOST:
            raise UserError(f"{page}: not posted: expected a file, no device or link, of at most {MOST:,} bytes")
        return os.read(file, MOST).decode(errors="replace")
    finally:
        os.close(file)


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token is for the address it was given with."""

    def redirect_request(self, *_: Any) -> None:
        return None


def send(method: str, address: str, headers: dict[str, str], content: object) -> Any:
    """Send JSON, return the JSON that comes back. Raises UserError with the site's reason, never with the token."""
    data = None if content is None else json.dumps(content).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "reprise", **headers}
    request = urllib.request.Request(address, data, headers, method=method)
    request_line = f"{method} {address.partition('?')[0]}"
    try:
        with urllib.request.build_opener(_StayHere).open(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read(500).decode(errors="replace").replace("\n", " ").strip() or error.reason
        way_out = "the token needs the right to write comments"
        raise UserError(f"{request_line}: {error.code} {said}; {way_out}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise UserError(f"{request_line}: {why}; is the address right, and the site up?") from None
