"""The rules of the house: packages import in one direction, and dvc.yaml names the ones that a stage uses."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
ORDER = [
    *("runtime", "params", "data.formats", "data.download", "data.prepare", "augment", "loader", "model"),
    *("training", "evaluation", "repo", "comparison", "diagnostics", "cli"),
]
# names of other packages that begin with an underscore, and why there is no other way
PRIVATE: dict[str, str] = {}


def imported_modules(path: Path) -> set[str]:
    """Return the files of the library that a file imports anywhere, lazily too, relative to the root."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = set()
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1 if parts[0] == "reprise" else 0):
            base = SRC / Path(*parts[:depth])
            files |= {
                str(file.relative_to(ROOT)) for file in (base / "__init__.py", base.with_suffix(".py")) if file.exists()
            }
    return files


def import_closure(path: Path) -> set[str]:
    closure: set[str] = set()
    todo = imported_modules(path)
    while todo:
        module = todo.pop()
        closure.add(module)
        todo |= imported_modules(ROOT / module) - closure
    return closure


def package(file: str) -> str:
    """Return the package of ORDER that a file of the library belongs to; "" for the outermost `__init__.py`s."""
    name = file.removeprefix("src/reprise/").replace("/", ".")
    return max((known for known in ORDER if name.startswith(f"{known}.")), key=len, default="")


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_of_a_stage_hold_all_that_it_imports_and_it_needs_each_of_them(stage):
    script = f"stages/{stage}.py"
    deps = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "stages/"))]
    closure = {file for file in import_closure(ROOT / script) if file != "src/reprise/data/__init__.py"} | {script}
    assert [file for file in closure if not any(file == dep or file.startswith(f"{dep}/") for dep in deps)] == []
    assert [dep for dep in deps if not any(file == dep or file.startswith(f"{dep}/") for file in closure)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_declares_exactly_the_parameters_that_a_stage_reads(stage):
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    chains = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read = {chain.removeprefix("params.") for chain in chains if chain.startswith("params.")}
    declared = set(STAGES[stage]["params"])
    covered = {name for name in read if any(name == key or name.startswith(f"{key}.") for key in declared)}
    prefixes = {
        name for name in read if any(key.startswith(f"{name}.") for key in declared)
    }  # `params.data` of `.name`
    assert read - covered - prefixes == set()
    assert {key for key in declared if key not in read and not any(n.startswith(f"{key}.") for n in read)} == set()
    whole = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "params"]
    assert len(whole) == 1 + sum(
        isinstance(n, ast.Attribute) and ast.unparse(n.value) == "params" for n in ast.walk(tree)
    )


def test_packages_import_in_one_direction():
    for path in (SRC / "reprise").rglob("*.py"):
        own = package(str(path.relative_to(ROOT)))
        for other in filter(None, map(package, imported_modules(path))):
            assert own == "" or ORDER.index(other) <= ORDER.index(own), f"{path.relative_to(SRC)} imports {other}"


def test_files_of_a_package_do_not_import_each_other_in_a_circle():
    files = {str(path.relative_to(ROOT)) for path in (SRC / "reprise").rglob("*.py") if path.name != "__init__.py"}
    for file in files:
        assert file not in import_closure(ROOT / file), f"{file} imports itself, by way of others"
