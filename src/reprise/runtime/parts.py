"""Parts of the user's own, which params name as project/FILE.py:NAME: code in the folder `project/` beside `src/`.

Nothing is loaded from anywhere else; an `__init__.py` is not run. What the user's code raises keeps its traceback.
"""

import sys
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

from reprise.runtime.checksums import listing_md5, md5_listing
from reprise.runtime.code import LOADED, ROOT, code_sha256, read_code
from reprise.runtime.errors import UserError, listed


def is_part(name: str) -> bool:
    """Say whether a name of params.yaml, or a path of `read_code`, is one of `project/`."""
    return name.startswith("project/")


def load_part(part: str, root: Path = ROOT) -> Any:
    """Return what project/FILE.py:NAME names below a root; its files import each other as `from project.FILE import x`.

    Raises UserError, with what there is, if there is no such, and if a link leads out of the folder.
    """
    file, _, name = part.partition(":")
    folder = root.resolve() / "project"
    files = sorted(folder.rglob("*.py"))
    if root.resolve() / file not in files:
        known = listed([path.relative_to(folder.parent).as_posix() for path in files])
        raise UserError(f"{part}: no such part; expected project/FILE.py:NAME, files are: {known or 'none'}")
    if links := [str(path) for path in (folder, *folder.rglob("*")) if path.is_symlink()]:
        raise UserError(f"{links[0]}: a link; only what lies in project/ itself is loaded")
    if list(getattr(sys.modules.get("project"), "__path__", ())) != [str(folder)]:
        for loaded in [each for each in sys.modules if each.partition(".")[0] == "project"]:
            del sys.modules[loaded]
        sys.dont_write_bytecode = True  # Python tells an edited file from its bytecode by second and size alone
        invalidate_caches()
        package = sys.modules["project"] = ModuleType("project")
        package.__path__ = [str(folder)]
    module = import_module(file.removesuffix(".py").replace("/", "."))
    if not hasattr(module, name):
        held = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise UserError(f"{part}: the file has no such name; it has: {listed(held) or 'none'}")
    return getattr(module, name)


def create_part(part: str) -> Any:
    """Return what a part names or, of a class, an object of it, made without arguments."""
    loaded = load_part(part)
    return loaded() if isinstance(loaded, type) else loaded


def part_sha256(part: str, root: Path = ROOT) -> str | None:
    """Return a digest of a part's file and those of `project/` that it imports; None without that file."""
    file = part.partition(":")[0]
    sources = {path: code for path, code in read_code(root).items() if is_part(path)}
    return code_sha256(sources, file) if file in sources else None


def project_md5() -> str:
    """Return DVC's digest of `project/`. Raises UserError if this process may have loaded something else."""
    if any(is_part(path) for path, _ in read_code(ROOT).items() ^ LOADED.items()):
        raise UserError("project/ was edited while this process loaded it; start it again")
    return listing_md5(md5_listing(ROOT / "project"))
