"""A release: the model of a commit gets a version, if every file is as recorded and it is not worse than the last one.

Versions are Git tags as GTO (https://github.com/treeverse/gto) writes them, such as `model@v1.2.0`, so that `gto show`
and `dvc artifacts get` know them.
"""

import json
import re
from collections.abc import Iterator

from reprise.comparison.compare import compare
from reprise.comparison.pairing import OtherDataError
from reprise.repo.project import Project
from reprise.repo.revisions import CONFIDENCE, Revision
from reprise.repo.verify import stale, verify
from reprise.runtime.errors import UserError, first, reason

ARTIFACT = "model"  # in dvc.yaml
WEIGHTS = "models/model.safetensors"


def release(project: Project, version: str, anyway: bool = False) -> Iterator[str]:
    """Tag HEAD's model with a version such as v1.2.0; yield what a person has to know.

    anyway: even if it is worse than the last release, cannot be compared with it, or was not exported. Raises
    UserError, with no tag made, otherwise; also for uncommitted changes, files that are not what dvc.lock records, the
    model of the last release, and a version that exists or is none.
    """
    project.refuse_edits("a release is a commit")
    if wrong := stale(project) or verify(project).mismatches:
        named = first([f"{path}, stage {stage}: {what}" for path, stage, what in wrong], 3)
        raise UserError(f"not what dvc.lock records: {named}; `dvc repro` and commit, or see `make verify`")
    folder = project.prefix.as_posix().removeprefix(".")
    prefix = f"{folder}={ARTIFACT}@v" if folder else f"{ARTIFACT}@v"
    tags = project.git("tag", "--sort=-version:refname", "--list", f"{prefix}[0-9]*").split()
    last = next((tag for tag in tags if re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", tag.removeprefix(prefix))), None)
    head = Revision(project, "HEAD", "HEAD")
    said = _against(project, last, head, anyway) if last else "the first release"
    if not (exported := _is_exported(head)) and not anyway:
        why = "models/export, which a release hands out, has no model: metrics/export.json says why"
        raise UserError(f"{why}; `--anyway` releases it all the same")
    said += "; without an exported model" * (not exported)
    metrics, version = head.metrics, version.removeprefix("v")
    test = ", ".join(f"{name} {metrics.get(name)}" for name in ("accuracy", "loss"))
    message = f"Release v{version} of {ARTIFACT}: test {test}; {said}"
    import gto.api  # it comes with DVC
    from gto.exceptions import GTOException
    from scmrepo.exceptions import SCMError

    name = f"{folder}:{ARTIFACT}" if folder else ARTIFACT
    try:
        gto.api.register(str(project.top), name, "HEAD", f"v{version}", message)
    except GTOException as error:
        raise UserError(f"{version}: {reason(error)}") from None
    except SCMError as error:
        raise UserError(f"{reason(error)}; a tag needs Git's user.name and user.email") from None
    yield message
    yield f"`dvc push && git push origin {prefix}{version}` hands it on"


def _is_exported(revision: Revision) -> bool:
    return bool(json.loads(revision.read("metrics/export.json") or "{}").get("exported"))


def _fitted(revision: Revision) -> str | None:
    """Return the MD5 of what was fitted for the model; None where that is nothing, as before there was such a file."""
    path = revision.out(CONFIDENCE)
    return revision.md5(CONFIDENCE) if path and json.loads(path.read_bytes()).get("images") else None


def _against(project: Project, last: str, head: Revision, anyway: bool) -> str:
    """Return the verdict on HEAD against the last release. Raises UserError if it stands in the way."""
    base = Revision(project, last, project.git("rev-parse", f"{last}^{{commit}}").strip())
    equal = base.md5(WEIGHTS) == head.md5(WEIGHTS) and _fitted(base) == _fitted(head)
    if equal and _is_exported(base) >= _is_exported(head):
        raise UserError(f"the model is that of {last}; train another one, or use that release")
    try:
        found = compare(project, str(base.commit), "HEAD")
    except OtherDataError as error:
        said, refused = f"not comparable with {last}", f"{error}"
    else:
        verdict = found.verdict
        said = f"{verdict.word} against {last}: {verdict.difference:+.4f} accuracy, p {verdict.p:.2g}"
        refused = said if found.regressed else ""
    if refused and not anyway:
        raise UserError(f"{refused}; `--anyway` releases it all the same")
    return said
