"""A project: the folder with dvc.yaml and .dvc, which is a Git repository or lies in one; its git, its dvc, its cache.

Git's commands run in that folder, so that paths are relative to it wherever in the repository it lies.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reprise.runtime.errors import UserError, listed, reason

EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]+/.+")  # the ref of a finished one


def environment() -> dict[str, str]:
    """Return the environment for DVC: `python`, as stages call it, is this interpreter, activated or not."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


@dataclass(frozen=True)
class Project:
    """A project by the path of its root."""

    root: Path

    @classmethod
    def find(cls, folder: Path) -> "Project":
        """Return the project that a folder is, or lies in. Raises UserError if there is none."""
        for root in (folder.resolve(), *folder.resolve().parents):
            if (root / "dvc.yaml").is_file() and (root / ".dvc").is_dir():
                project = cls(root)
                if project.git("rev-parse", "--show-toplevel", check=False):
                    return project
        raise UserError(f"{folder}: not in a Git and DVC repository, a folder with dvc.yaml and .dvc; `git clone` one")

    @cached_property
    def top(self) -> Path:
        """The root of the Git work tree that the project lies in."""
        return Path(self.git("rev-parse", "--show-toplevel").removesuffix("\n"))

    @cached_property
    def whole(self) -> "Project":
        """The Git work tree, for paths from its root."""
        return Project(self.top)

    @property
    def prefix(self) -> Path:
        """Where the project lies in the Git work tree."""
        return self.root.relative_to(self.top)

    @cached_property
    def dvc_repo(self) -> Any:
        """DVC's own view of the project, loaded when it is asked for."""
        from dvc.repo import Repo

        return Repo(str(self.root))

    @property
    def is_shallow(self) -> bool:
        """Whether Git lacks earlier commits."""
        return self.git("rev-parse", "--is-shallow-repository").strip() == "true"

    def git(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        """Return what git prints; if it fails, raise UserError or, without `check`, return ""."""
        return self._run(["git", "--literal-pathspecs", *arguments], check, stdin)

    def dvc(self, *arguments: str) -> str:
        """Return what dvc prints; raise UserError if it fails."""
        return self._run([sys.executable, "-m", "dvc", *arguments])

    def dvc_shown(self, *arguments: str) -> bool:
        """Run dvc, with all that it prints on stderr; return whether it succeeded."""
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=self.root, env=environment(), stdout=sys.stderr).returncode == 0

    def _run(self, command: list[str], check: bool = True, stdin: str | None = None) -> str:
        given = None if stdin is None else stdin.encode("utf-8", "surrogateescape")
        done = subprocess.run(command, cwd=self.root, env=environment(), capture_output=True, input=given)
        if check and done.returncode:
            raise UserError(f"`{' '.join(command)}` failed: {done.stderr.decode(errors='replace').strip()}")
        return "" if done.returncode else done.stdout.decode("utf-8", "surrogateescape")

    def cache_path(self, md5: str) -> Path:
        """Return where DVC's cache keeps the file with this MD5, whether it has it or not."""
        return Path(self.dvc_repo.cache.local.oid_to_path(md5))

    def cached(self, md5: str) -> Path | None:
        """Return the cache's file with this MD5, fetched from the remote if need be; None if neither has it.

        Raises UserError if the cache's file is not what its name says, or if the remote cannot be read.
        """
        path = self.cache_path(md5)
        if not path.exists():
            self._fetch(md5, path)
        if not path.exists():
            return None
        with path.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != md5.removesuffix(".dir"):
                raise UserError(f"{path}: altered since DVC stored it; remove it, then `dvc pull` or `dvc repro`")
        return path

    def _fetch(self, md5: str, path: Path) -> None:
        """Copy one file from the default remote into the cache, if there is such a remote and it has the file."""
        from dvc.exceptions import DvcException

        from reprise.runtime.atomic import publishing  # needs a package, `reprise --help` none

        try:
            remote = self.dvc_repo.cloud.get_remote_odb(None, "fetch")
        except DvcException:  # none is configured
            return
        except ImportError as error:  # "s3 is supported, but requires 'dvc-s3' to be installed"
            raise UserError(f"the DVC remote cannot be read: {error}; `pip install` it") from None
        with TemporaryDirectory(prefix="compare-") as folder:
            copy = Path(folder) / "copy"
            try:
                remote.fs.get_file(remote.oid_to_path(md5), str(copy))
            except (FileNotFoundError, DvcException):
                return
            except Exception as error:  # each kind of remote has its own
                raise UserError(f"the DVC remote cannot be read ({reason(error)}); see `dvc remote list`") from None
            with publishing(path) as (partial,):
                shutil.copyfile(copy, partial)
                partial.chmod(0o444)

    def git_path(self, name: str) -> Path:
        """Return where Git keeps a file of its own."""
        return self.root / self.git("rev-parse", "--git-path", name).removesuffix("\n")

    def changed(self, *arguments: str) -> list[str]:
        """Return the paths of the project that `git diff` lists."""
        listed = self.git("diff", "--name-only", "--no-renames", "--relative", "-z", *arguments, check=False)
        return [path for path in listed.split("\0") if path]

    def refuse_edits(self, why: str, *apart: str) -> None:
        """Raise UserError if tracked files of the work tree have uncommitted changes; why: that matters.

        apart: folders of the project that do not matter.
        """
        allowed = tuple(f"{self.prefix / folder}/" for folder in apart)
        if changed := [path for path in self.whole.changed("HEAD") if not path.startswith(allowed)]:
            raise UserError(f"uncommitted changes ({listed(changed, 3)}): {why}; `git commit` or `git stash` first")

    def refs(self, prefix: str) -> dict[str, str]:
        """Return {name: commit} of the refs below a prefix, the oldest commit first."""
        form = "--format=%(refname) %(objectname)"
        listed = self.git("for-each-ref", "--sort=creatordate", form, prefix).splitlines()
        return dict(line.split(" ") for line in listed)

    def read(self, path: str, commit: str | None = None) -> str:
        """Return the text of a file in a commit or, without one, in the working tree; "" if there is no such file."""
        if commit is not None:
            return self.git("show", f"{commit}:./{path}", check=False)
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self.root / path).read_bytes().decode("utf-8", "surrogateescape")
        return ""

    def short(self, path: Path) -> str:
        """Return a path as a person in the root would type it."""
        return os.path.relpath(path, self.root)
