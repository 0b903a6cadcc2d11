"""One comment on a pull request (GitHub) or merge request (GitLab), posted once and updated from then on.

Needs the standard library alone: the job that holds a token to write comments installs nothing and runs no code of the
pull request. So what it posts is not to be trusted: `harmless` takes out of it what a site would act on.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprise.runtime.errors import UserError

MARKER = "<!-- reprise review -->"  # invisible first line: how the comment is found again
TAGS = re.compile(r"<(?!/?(?:details|summary|sub|sup|b|br)>)")
PICTURE = re.compile(r"!\[([^]\n]*)\]\([^)\n]*\)")
# what mentions and refers, however it is written; `&#35;` and the like are entities, no references
ACTIVE = re.compile(
    r"@|&commat;|&#0*64;?|&#x0*40;?|&num;|&#0*35;?|&#x0*23;?|(?:#(?!(?<=&#)\d+;)|(?<=\bgh)-)(?=\d)|!(?=[\d[])",
    re.IGNORECASE,
)
APART = "\u200b"  # zero-width space
PER_PAGE = 100
TIMEOUT = 30  # seconds


def post(platform: "GitHub | GitLab", markdown: str) -> str:
    """Post the comment, or update the one that is there; return its address. Raises UserError if the site refuses."""
    body = f"{MARKER}\n{shortened(harmless(markdown), platform.limit - len(MARKER) - 1)}"
    for number, text in platform.comments():
        if text.startswith(MARKER):
            return platform.replace(number, body)
    return platform.add(body)


def harmless(markdown: str) -> str:
    """Return Markdown that mentions nobody, refers to no issue, commands nothing, hides nothing and loads nothing.

    Pictures give way to their descriptions: a comment cannot show those that lie beside a report. HTML is shown as
    text, except for the tags that fold a section. A line that begins with `/` would be a command to GitLab.
    """
    without = PICTURE.sub(r"\1", markdown.replace("\r", ""))
    without = TAGS.sub("&lt;", without)
    without = ACTIVE.sub(rf"\g<0>{APART}", without)
    return re.sub(r"^(\s*)/", rf"\1{APART}/", without, flags=re.MULTILINE)


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
class GitHub:
    """A pull request, by number. api: e.g. https://api.github.com; repository: OWNER/NAME."""

    api: str
    repository: str
    number: int
    token: str
    limit: int = 65_536

    def comments(self) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of the comments that this token's owner has written."""
        try:
            own = self._call("GET", "/user")["login"]
        except UserError:  # the token of a workflow is no user's
            own = "github-actions[bot]"
        for item in pages(self, f"/repos/{self.repository}/issues/{self.number}/comments"):
            if item["user"] and item["user"]["login"] == own:
                yield item["id"], item["body"] or ""

    def add(self, body: str) -> str:
        """Write a new comment; return its address."""
        where = f"/repos/{self.repository}/issues/{self.number}/comments"
        return str(self._call("POST", where, {"body": body})["html_url"])

    def replace(self, number: int, body: str) -> str:
        """Put another text into a comment; return its address."""
        where = f"/repos/{self.repository}/issues/comments/{number}"
        return str(self._call("PATCH", where, {"body": body})["html_url"])

    def _call(self, method: str, path: str, content: object = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/vnd.github+json"}
        return call(method, self.api + path, headers, content)


@dataclass(frozen=True)
class GitLab:
    """A merge request, by its number in the project. api: e.g. https://gitlab.com/api/v4; project: its id."""

    api: str
    project: str
    number: int
    token: str
    limit: int = 1_000_000

    def comments(self) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of the comments that this token's owner has written."""
        own = self._call("GET", "/user")["username"]
        for item in pages(self, f"/projects/{self.project}/merge_requests/{self.number}/notes"):
            if item["author"]["username"] == own and not item["system"]:
                yield item["id"], item["body"]

    def add(self, body: str) -> str:
        """Write a new comment; return its address."""
        return self._write("POST", "", body)

    def replace(self, number: int, body: str) -> str:
        """Put another text into a comment; return its address."""
        return self._write("PUT", f"/{number}", body)

    def _write(self, method: str, path: str, body: str) -> str:
        where = f"/projects/{self.project}/merge_requests/{self.number}"
        note = self._call(method, f"{where}/notes{path}", {"body": body})["id"]
        return f"{self._call('GET', where)['web_url']}#note_{note}"

    def _call(self, method: str, path: str, content: object = None) -> Any:
        return call(method, self.api + path, {"PRIVATE-TOKEN": self.token}, content)


def pages(platform: GitHub | GitLab, path: str) -> Iterator[Any]:
    """Yield every item of a list that comes page by page."""
    page, items = 1, [None]
    while page == 1 or len(items) == PER_PAGE:
        items = platform._call("GET", f"{path}?per_page={PER_PAGE}&page={page}")
        yield from items
        page += 1


def post_page(page: Path, environment: Mapping[str, str]) -> str:
    """Post a page by what CI sets in the environment; return the comment's address. Raises UserError if it lacks it."""
    if not page.exists():
        raise UserError(f"{page}: no such page; `make review` writes it")
    names = {
        GitHub: ("GITHUB_API_URL", "GITHUB_REPOSITORY", "PULL_REQUEST", "GITHUB_TOKEN"),
        GitLab: ("CI_API_V4_URL", "CI_MERGE_REQUEST_PROJECT_ID", "CI_MERGE_REQUEST_IID", "REVIEW_TOKEN"),
    }
    site = GitLab if "CI_API_V4_URL" in environment else GitHub
    if lacking := [name for name in names[site] if not environment.get(name)]:
        raise UserError(f"{', '.join(lacking)}: not set; posting needs {', '.join(names[site])} in the environment")
    api, project, number, token = (environment[name] for name in names[site])
    return post(site(api, project, int(number), token), page.read_text(encoding="utf-8"))


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the token is for the address it was given with."""

    def redirect_request(self, *_: Any) -> None:
        return None


def call(method: str, address: str, headers: dict[str, str], content: object) -> Any:
    """Send JSON, return the JSON that comes back. Raises UserError with the site's reason, never with the token."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(
        address, data, {"Content-Type": "application/json", "User-Agent": "reprise", **headers}, method=method
    )
    where = f"{method} {address.partition('?')[0]}"
    try:
        with urllib.request.build_opener(_StayHere).open(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        reason = error.read(500).decode(errors="replace").replace("\n", " ").strip()
        raise UserError(
            f"{where}: {error.code} {reason or error.reason}; the token needs the right to write comments"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {getattr(error, 'reason', error)}; is the address right, and the site up?") from None
