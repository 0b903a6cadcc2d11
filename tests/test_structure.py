"""The rules of the house: packages import in one direction, and dvc.yaml names the ones that a stage uses."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from reprise.params.schema import PrepareParams, SourceParams

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
ORDER = [
    *("runtime", "params", "data.formats", "data.download", "data.prepare", "augment", "loader", "model"),
    *(
        "features",
        "training",
        "evaluation",
        "export",
        "inference",
        "repo",
        "comparison",
        "search",
        "labels",
        "diagnostics",
        "commands",
        "cli",
    ),
]
# names of other packages that begin with an underscore, as regular expressions, and why there is no other way
PRIVATE = {
    r"_foreach_copy_": "torch copies many tensors in one kernel by this name alone; CUDA graphs need it",
    r"_(forward|backward)(_pre)?_hooks|_post_accumulate_grad_hooks": "torch shows hooks of a module nowhere else",
    r"_hub": "timm's own download of weights, into the cache that timm uses",
    r"_samples|_images|_labels|_characters": "where torchvision's data sets keep files, labels and names of classes",
}


@cache
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
    todo = set(imported_modules(path))
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


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "check"])  # which looks at all
def test_dvc_yaml_declares_exactly_the_parameters_that_a_stage_reads(stage):
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    chains = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {chain.removeprefix("params.") for chain in chains if chain.startswith("params.")}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "params"]
    assert len(names) == 1 + sum(
        chain.count(".") == 1 for chain in chains if chain.startswith("params.")
    )  # never whole
    read = {name for name in read if not any(other.startswith(f"{name}.") for other in read)}  # `data` of `data.name`
    for part, section in {"data.source": SourceParams, "data.prepare": PrepareParams}.items():
        if any(name == part or name.startswith(f"{part}.") for name in read):
            read = {name for name in read if not f"{name}.".startswith(f"{part}.")}
            read |= {f"data.{field}" for field in section.model_fields}
    declared = set(STAGES[stage]["params"])
    assert {name for name in read if not {name, name.partition(".")[0]} & declared} == set()
    assert {name for name in declared if not any(f"{other}.".startswith(f"{name}.") for other in read)} == set()


def test_packages_import_in_one_direction():
    for path in (SRC / "reprise").rglob("*.py"):
        own = package(str(path.relative_to(ROOT)))
        for other in filter(None, map(package, imported_modules(path))):
            assert own == "" or ORDER.index(other) <= ORDER.index(own), f"{path.relative_to(SRC)} imports {other}"


def test_files_of_a_package_do_not_import_each_other_in_a_circle():
    files = {str(path.relative_to(ROOT)) for path in (SRC / "reprise").rglob("*.py") if path.name != "__init__.py"}
    for file in files:
        assert file not in import_closure(ROOT / file), f"{file} imports itself, by way of others"


def underscored(path: Path) -> set[str]:
    """Return the names that begin with one underscore and that a file takes from objects it has not defined itself.

    Attributes of anything but `self` and `cls`, parts of imports, and strings in a function that calls `getattr`.
    """
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used: set[str] = set()
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(value=ast.Name(id="os"), attr="_exit") | ast.Attribute(attr="_asdict" | "_replace"):
                pass  # documented; the latter two are of every NamedTuple
            case ast.Attribute(attr=name):
                used.add(name)
            case ast.Import(names=names):
                used |= {part for alias in names for part in alias.name.split(".")}
            case ast.ImportFrom(module=module, names=names):
                parts = (module or "").split(".")
                used |= {*parts, *(alias.name for alias in names)} if parts[0] != "reprise" else set()
            case ast.FunctionDef() if "getattr(" in ast.unparse(node):
                strings = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                used |= {value for value in strings if isinstance(value, str) and value.isidentifier()}
            case ast.keyword(value=ast.Constant(value=str(value))) if value.isidentifier():
                used.add(value)
    return {name for name in used - defined if re.fullmatch(r"_[A-Za-z]\w*", name)}


def test_only_the_listed_names_of_other_packages_begin_with_an_underscore():
    used = {name for folder in (SRC, ROOT / "stages") for path in folder.rglob("*.py") for name in underscored(path)}
    assert {name for name in used if not any(re.fullmatch(known, name) for known in PRIVATE)} == set()
    assert [known for known in PRIVATE if not any(re.fullmatch(known, name) for name in used)] == []
    assert len(PRIVATE) <= 5


def test_what_hides_a_name_of_another_package_is_found(tmp_path):
    file = tmp_path / "file.py"
    lines = ["import a._b", "from c._d import _e", "f()._g", "def h(x): return getattr(x, '_i')", "j(names='_k')"]
    file.write_text("\n".join([*lines, "class L:\n    def _m(self): self._n = other._m()", "from reprise.o import _p"]))
    assert underscored(file) == {"_b", "_d", "_e", "_g", "_i", "_k"}


# arguments of lightning-hydra-template's module, and those of torchmetrics' and timm's interfaces
MANY_ARGUMENTS = {"LitClassifier.__init__", "ChunkedClassifier.__init__", "MNISTLitModule.__init__"}


def test_files_and_functions_are_short_and_take_few_arguments():
    too_much = []
    for path in [*SRC.rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        text = path.read_text()
        too_much += [path.name] * (text.count("\n") > 350)
        for owner in ast.walk(ast.parse(text)):
            for node in ast.iter_child_nodes(owner):
                if isinstance(node, ast.FunctionDef):
                    name = f"{getattr(owner, 'name', path.stem)}.{node.name}"
                    given = [
                        each.arg for each in (*node.args.args, *node.args.kwonlyargs) if each.arg not in ("self", "cls")
                    ]
                    too_much += [name] * (node.end_lineno - node.lineno > 60)
                    too_much += [name] * (len(given) > 7 and name not in MANY_ARGUMENTS)
    assert too_much == []
