"""A team's own project: what a clone of Reprise becomes, and newer versions of Reprise merged into it.

The project's RECORD names the version and commit that it has. A merge is three-way, with the tree of that commit as the
base, and ends as one commit of the project; histories need not be related.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reprise.data.prepare.corrections import CORRECTIONS, HEADER
from reprise.params.load import load_params
from reprise.params.presets import edited
from reprise.repo.processes import at_rest
from reprise.repo.project import Project
from reprise.repo.verify import stale_code  # now: after a merge, an import would find the new version
from reprise.runtime.errors import UserError, listed

RECORD, PARAMS, README = "reprise.json", "params.yaml", "README.md"
DEFAULTS = "src/reprise/params/defaults.yaml"
RESULTS = ("dvc.lock", "metrics", "models/README.md")
OWN = (*RESULTS, "data", "project", README)  # the team's, which no update touches
SCRATCH = "refs/reprise/scratch"


def start(project: Project, name: str) -> str:
    """Commit the beginning of a project of this name; return the commit's message.

    Results, README and the card's title become its own. Nothing changes if it raises UserError: for a project that was
    started before, and for uncommitted changes.
    """
    if project.read(RECORD):
        raise UserError(f"{RECORD}: this project was started already; `reprise update` merges a newer version")
    project.refuse_edits("what begins is a commit")
    commit, tree = project.git("rev-parse", "HEAD", "HEAD:./").split()
    version = tomllib.loads(project.read("pyproject.toml", "HEAD"))["project"]["version"]
    source = project.git("remote", "get-url", "origin", check=False).strip()
    files = _reprise(project, tree, {"version": version, "commit": commit, "tree": tree, "source": source})
    files[PARAMS] = edited(project.read(PARAMS, "HEAD"), lambda params: params["evaluate"].update(title=name))
    files[README] = Path(__file__).with_name("readme.txt").read_text("utf-8").format(name=name, version=version)
    message = f"Start {name} from Reprise {version}"
    project.git("merge", "--quiet", "--ff-only", _commit(project, message, dict.fromkeys(RESULTS) | files, commit))
    return message


def update(project: Project, source: str | None = None, to: str = "") -> Iterator[str]:
    """Merge a version, the newest without `to`; yield what a person has to know, line by line.

    source: a Git remote, address or folder with Reprise; None: as recorded. Raises UserError, with nothing changed, if
    there is no such version or nothing to do, and for files that conflict, which Git leaves with the pick unfinished.
    """
    project.refuse_edits("the update is a commit")
    load_params(project.root / PARAMS)
    old = json.loads(project.read(RECORD, "HEAD") or "{}")
    if not old or not (source := source or old["source"]):
        way_out = "`reprise update ADDRESS` says where Reprise is" if old else "`reprise start NAME` begins a project"
        raise UserError(f"{RECORD} has no source to update from: {way_out}")
    new = old | _fetched(project, source, to)
    if new["tree"] == old["tree"] or not project.git("cat-file", "-t", old["tree"], check=False):
        why = f"commit {old['commit']} is not here; `git fetch` it"
        raise UserError(f"{RECORD}: {why if new['tree'] != old['tree'] else 'this version is here already'}")
    base, head = (YAML().load(project.whole.read(DEFAULTS, each["tree"])) for each in (old, new))
    ours, said = project.read(PARAMS, "HEAD"), list[str]()
    theirs = edited(ours, lambda params: said.extend(merge_defaults(params, head, base)))
    message, change = f"Update Reprise {old['version']} to {new['version']}", ""
    for record, params in (old, ours), (new, theirs if said else ours):
        files = dict.fromkeys(OWN) | _reprise(project, record["tree"], record) | {PARAMS: params}
        lacks = record is new and not project.read(CORRECTIONS, "HEAD")  # which the stages need
        files |= {CORRECTIONS: ",".join(HEADER) + "\n"} if lacks else {}
        change = _commit(project, message, files, change, record["tree"])
    with at_rest(project):
        try:
            project.git("cherry-pick", change)
        except UserError as error:
            conflicts = listed(project.changed("--diff-filter=U"), 50)
            resolve = "edit and `git add` them, then `git cherry-pick --continue`; `git cherry-pick --abort` undoes all"
            raise UserError(f"conflicts in {conflicts}: {resolve}" if conflicts else str(error)) from None
    yield from (message, *said)
    if stages := stale_code(project) if project.read("dvc.lock") else {}:
        yield f"`dvc repro` has to run {', '.join(stages)} again, and what depends on their outs"
        if "train" in stages:
            yield "`reprise keep` keeps the trained model where a short training shows that no bit changes"


def _fetched(project: Project, source: str, to: str) -> dict[str, str]:
    """Fetch a version, the newest without `to`; return it as it is recorded. Raises UserError without one."""
    newest_first = ("ls-remote", "--refs", "--sort=-version:refname", "--", source, "refs/tags/v[0-9]*")
    versions = [line.partition("refs/tags/v")[2] for line in project.git(*newest_first).splitlines()]
    version = to.removeprefix("v") or next(iter(versions), "")
    if version not in versions:
        raise UserError(f"{source} has no version {version}; it has {listed(versions) or 'no tag like v1.0.0'}")
    project.git("fetch", "--quiet", "--no-tags", "--", source, f"refs/tags/v{version}")
    commit, tree = project.git("rev-parse", "FETCH_HEAD^{commit}", "FETCH_HEAD^{tree}").split()
    return {"version": version, "commit": commit, "tree": tree}


def merge_defaults(tree: Any, new: Any, old: Any, section: str = "") -> Iterator[str]:
    """Give params the keys that defaults have gained, with comments and each after the one before; drop those lost.

    Yields a line for each.
    """
    for key in [key for key in tree if key in old and key not in new]:
        yield f"{PARAMS}: {section}{key} is gone, it was {tree.pop(key)}"
    place = 0
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict) and not key.endswith("kwargs"):
            yield from merge_defaults(tree[key], value, old.get(key) or {}, f"{section}{key}.")
        elif key not in tree and key not in old:
            tree.insert(place, key, value)
            tree.ca.items.update({key: new.ca.items[key]} if key in new.ca.items else {})
            yield f"{PARAMS}: {section}{key} is new, at its default {value}"
        place = list(tree).index(key) + 1 if key in tree else place


def _reprise(project: Project, tree: str, record: Mapping[str, str]) -> dict[str, str | None]:
    """Return the files that a project has of Reprise otherwise: the record, and its README in docs/ with its links."""
    manual = re.sub(r"\]\((?!\w+:|#)", "](../", project.whole.read(README, tree))
    return {RECORD: json.dumps(record, indent=2) + "\n", "docs/reprise.md": manual}


def _commit(project: Project, message: str, files: Mapping[str, str | None], parent: str, tree: str = "") -> str:
    """Return a new commit with these texts by path (None: gone, folders too); no branch, index or file changes.

    The other files are the parent's or, in the project's folder, those of the tree.
    """

    def data(content: str) -> str:
        return f"data {len(content.encode('utf-8', 'surrogateescape'))}\n{content}\n"

    lines = f"commit {SCRATCH}\nmark :1\ncommitter {project.git('var', 'GIT_COMMITTER_IDENT')}{data(message)}"
    lines += f"from {parent}\n" if parent else ""
    lines += f"M 040000 {tree} {project.prefix.as_posix().removeprefix('.')}\n" if tree else ""
    for path, content in files.items():
        place = (project.prefix / path).as_posix()
        lines += f"D {place}\n" if content is None else f"M 100644 inline {place}\n{data(content)}"
    made = project.git("fast-import", "--quiet", "--force", stdin=f"{lines}\nget-mark :1\n").strip()
    project.git("update-ref", "-d", SCRATCH)
    return made
