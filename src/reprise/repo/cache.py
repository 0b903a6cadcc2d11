"""Files out of DVC's cache, fetched from the remote where the cache lacks them."""

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from reprise.repo.project import Project
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError, reason


def cache_path(project: Project, md5: str) -> Path:
    """Return where DVC's cache keeps a file with this MD5, whether it has it or not."""
    return Path(project.dvc_repo.cache.local.oid_to_path(md5))


def cached(project: Project, md5: str) -> Path | None:
    """Return the cache's file with this MD5, fetched from the remote if need be; None if neither has it.

    Raises UserError if the cache's file is not what its name says.
    """
    path = cache_path(project, md5)
    if not path.exists():
        _fetch(project, md5)
    if not path.exists():
        return None
    with path.open("rb") as file:
        if hashlib.file_digest(file, "md5").hexdigest() != md5.removesuffix(".dir"):
            raise UserError(f"{path}: altered since DVC stored it; remove it, then `dvc pull` or `dvc repro`")
    return path


def _fetch(project: Project, md5: str) -> None:
    """Copy one file from the default remote into the cache, if there is such a remote and it has the file."""
    from dvc.exceptions import DvcException

    try:
        remote = project.dvc_repo.cloud.get_remote_odb(None, "fetch")
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
        with publishing(cache_path(project, md5)) as (partial,):
            shutil.copyfile(copy, partial)
            partial.chmod(0o444)
