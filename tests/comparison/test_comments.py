"""One comment per pull request, on either site, that can do no harm: against loopback servers that behave like them."""

import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reprise.comparison.comments import MARKER, GitHub, GitLab, harmless, post, post_page, shortened
from reprise.runtime.errors import UserError


class Site:
    """What both sites have in common: comments with numbers and authors, pages, a token, a limit, a log."""

    def __init__(self, kind, comments=(), limit=2_000):
        self.kind, self.limit, self.log = kind, limit, []
        self.comments = [{"id": number, "who": who, "text": text} for number, (who, text) in enumerate(comments, 1)]

    def shown(self, comment):
        if self.kind == "github":
            address = f"https://example.invalid/pull/7#issuecomment-{comment['id']}"
            return {**comment, "user": {"login": comment["who"]}, "body": comment["text"], "html_url": address}
        return {**comment, "author": {"username": comment["who"]}, "body": comment["text"], "system": False}

    def answer(self, method, path, query, headers, content):
        self.log.append(method)
        sent = headers["Authorization"] if self.kind == "github" else headers["PRIVATE-TOKEN"]
        if sent != ("Bearer secret" if self.kind == "github" else "secret"):
            return 401, {"message": "Bad credentials"}
        if path == "/user":
            return (403, {"message": "not a user"}) if self.kind == "github" else (200, {"username": "reviewer"})
        if path == "/projects/42/merge_requests/7":
            return 200, {"web_url": "https://example.invalid/merge_requests/7"}
        if content and len(content["body"]) > self.limit:
            return 422, {"message": "body is too long"}
        if method == "GET":
            size, page = (int(re.search(rf"\b{key}=(\d+)", query)[1]) for key in ("per_page", "page"))
            return 200, [self.shown(comment) for comment in self.comments[size * (page - 1) : size * page]]
        if method == "POST":
            who = "github-actions[bot]" if self.kind == "github" else "reviewer"
            self.comments.append({"id": len(self.comments) + 1, "who": who, "text": content["body"]})
            return 201, self.shown(self.comments[-1])
        comment = self.comments[int(path.rpartition("/")[2]) - 1]
        comment["text"] = content["body"]
        return 200, self.shown(comment)


@contextmanager
def serving(answer):
    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            length = int(self.headers["Content-Length"] or 0)
            content = json.loads(self.rfile.read(length)) if length else None
            path, _, query = self.path.partition("?")
            code, said = answer(self.command, path, query, self.headers, content)
            data = json.dumps(said).encode()
            self.send_response(code)
            if code == 302:
                self.send_header("Location", said)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_PUT = reply  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def platform(kind, api, token="secret", limit=2_000):
    return GitHub(api, "own/er", 7, token, limit) if kind == "github" else GitLab(api, "42", 7, token, limit)


BOTH = pytest.mark.parametrize("kind", ["github", "gitlab"])
OWN = {"github": "github-actions[bot]", "gitlab": "reviewer"}


@BOTH
def test_the_second_review_replaces_the_first_and_touches_nobody_elses_comment(kind):
    others = [("somebody", "hello")] * 130 + [("mallory", f"{MARKER}\nall is well")]
    site = Site(kind, others)
    with serving(site.answer) as api:
        first = post(platform(kind, api), "## one")
        second = post(platform(kind, api), "## two")
    assert first == second
    assert first.endswith("132")
    assert [(comment["who"], comment["text"]) for comment in site.comments] == [
        *others,
        (OWN[kind], f"{MARKER}\n## two"),
    ]
    assert site.log.count("POST") == 1


@BOTH
def test_a_long_report_is_cut_at_a_line_to_what_the_site_takes(kind):
    site = Site(kind)
    report = "\n".join(["# title", "<details>", *(f"| row {number} |" for number in range(900)), "</details>"])
    with serving(site.answer) as api:
        post(platform(kind, api), report)
    (comment,) = site.comments
    assert 1_900 < len(comment["text"]) <= 2_000
    assert comment["text"].count("<details>") == comment["text"].count("</details>") == 1
    assert re.search(r"\n\| row \d+ \|\n</details>\n\n\*Cut here: ", comment["text"])


def test_what_fits_stays_whole_and_what_has_no_lines_is_cut_all_the_same():
    assert shortened("x" * 300, 300) == "x" * 300
    assert len(shortened("x" * 301, 300)) <= 300
    assert shortened("x" * 301, 300).startswith("x")
    assert (GitHub("", "", 1, "").limit, GitLab("", "", 1, "").limit) == (65_536, 1_000_000)


@BOTH
def test_a_refusal_gives_the_sites_reason_and_never_the_token(kind):
    with serving(Site(kind).answer) as api, pytest.raises(UserError) as caught:
        post(platform(kind, api, token="wrong"), "text")
    assert "401" in str(caught.value)
    assert "Bad credentials" in str(caught.value)
    assert "wrong" not in str(caught.value)


@BOTH
def test_no_site_is_one_line_and_a_redirect_does_not_carry_the_token_away(kind):
    with pytest.raises(UserError, match="is the address right, and the site up"):
        post(platform(kind, "http://127.0.0.1:9"), "text")
    elsewhere = Site(kind)
    with (
        serving(elsewhere.answer) as away,
        serving(lambda *_: (302, f"{away}/user")) as api,
        pytest.raises(UserError, match="302"),
    ):
        post(platform(kind, api), "text")
    assert elsewhere.log == []


@pytest.mark.parametrize(
    ("written", "posted"),
    [
        ("cc @everyone", "cc @\u200beveryone"),
        ("&#64;all &commat;all &#x40;all", "&#64;\u200ball &commat;\u200ball &#x40;\u200ball"),
        ("fixes #12, GH-12, !12", "fixes #\u200b12, GH-\u200b12, !\u200b12"),
        ("&#124; stays an entity", "&#124; stays an entity"),
        ("# 1 heading", "# 1 heading"),
        ("a <!-- hides the rest", "a &lt;!-- hides the rest"),
        ("<script>x</script><img src=x>", "&lt;script>x&lt;/script>&lt;img src=x>"),
        ("<details><summary>more</summary>\n\nx\n</details>", "<details><summary>more</summary>\n\nx\n</details>"),
        ("<details open onclick=x>", "&lt;details open onclick=x>"),
        ("![curves](curves.svg) ![x][y]", "curves !\u200b[x]\u200b[y]"),
        ("fine\n/approve\n  /merge\r\n/close", "fine\n\u200b/approve\n  \u200b/merge\n\u200b/close"),
        ("a/b 3 < 4", "a/b 3 &lt; 4"),
        ('see &5, ~bug, ~"two words", %3, $4, ^alert#5', None),
        ("> /close\n> > /merge\n- /label ~x\n1. /approve", None),
        ("https://evil.example/o/r/issues/5 www.evil.example HTTPS&#58;//e.example https&colon;//e.example", None),
        ('[x](//evil.example) [y]: /evil [z][y] [issue:5] [epic:6] *iteration:"x" GL-7', None),
        ("95 % of 3 & 4 ~ 5 [0.1, 0.2]", "95 % of 3 & 4 ~ 5 [0.1, 0.2]"),
    ],
)
def test_a_comment_mentions_nobody_commands_nothing_and_hides_nothing(written, posted):
    shown = harmless(written)
    assert shown == (posted or shown)
    assert shown.replace("\u200b", "").replace("&lt;", "<") == written.replace("\r", "") or "![" in written
    active = r"[&%$!](?=\d)|(?<!&)#(?=\d)|[~%](?=[\w\"])|^[\s>\d.-]*/|\](?=[(\[:])|\[(?=\w+:)|:(?=/)|www\.(?=\w)"
    active += r"|\*(?=it)|(?:gl|gh)-(?=\d)|(?:&#58;|&colon;)(?=/)"
    assert not re.findall(active, shown, re.MULTILINE | re.IGNORECASE), shown


def test_only_links_to_the_run_itself_stay():
    own = "https://git.example/own/er/actions/runs/"
    link = f"[artifact of this run]({own}17#artifacts)"
    assert harmless(f"Pictures: {link}", own) == f"Pictures: {link}"
    for other in (
        link.replace("git.example", "evil.example"),
        f"[a]({own}1@evil.example)",
        f"[a]({own}1?x=//e.example)",
    ):
        assert "](" not in harmless(other, own)
    assert "](" not in harmless(link)


def test_a_page_is_a_small_file_of_its_own(tmp_path):
    page, secret = tmp_path / "comment.md", tmp_path / "secret"
    environment = {"GITHUB_API_URL": "http://127.0.0.1:9", "GITHUB_REPOSITORY": "o/r", "GITHUB_TOKEN": "t"}
    environment |= {"PULL_REQUEST": "7"}
    secret.write_text("TOKEN")
    ways = [
        lambda: page.symlink_to(secret),
        lambda: page.symlink_to("/dev/zero"),
        lambda: page.symlink_to("/proc/self/environ"),
        lambda: page.hardlink_to(secret),
        lambda: os.mkfifo(page),
        lambda: page.mkdir(),
        lambda: page.write_bytes(b"x" * 4_000_001),
        lambda: None,
    ]
    for way in ways:
        way()
        with pytest.raises(UserError, match=r"comment\.md: (no page|not posted)"):
            post_page(page, environment)
        if page.is_dir():
            page.rmdir()
        else:
            page.unlink(missing_ok=True)
    with pytest.raises(UserError, match="zero: not posted"):
        post_page(Path("/dev/zero"), environment)
    page.write_bytes(b"fine \xff")
    with pytest.raises(UserError, match="is the address right, and the site up"):
        post_page(page, environment)
