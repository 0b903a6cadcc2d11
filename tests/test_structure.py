"""The rules of the house: one direction of imports, and dvc.yaml names everything that a stage depends on."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
LAYERS = [
    {
        "checksums",
        "code",
        "differences",
        "errors",
        "interruption",
        "intervals",
        "publish",
        "provenance",
        "torchvision_repair",
        "workspace",
    },
    {"doctor"},
    {"dependencies", "params", "params_file", "process", "data"}
    | {
        f"data.{name}"
        for name in (
            "archive",
            "checks",
            "duplicates",
            "images",
            "packed",
            "packing",
            "preprocess",
            "report",
            "signatures",
            "sources",
            "splits",
            "workers",
        )
    }
    | {f"data.{name}" for name in ("containers", "fetch", "layouts", "table", "torchvision_sets", "unpack")},
    {"augment", "batches", "card", "convolutions", "model", "networks", "policies", "pretrained"}
    | {"residency", "transforms", "debug", "loggers", "presets", "summary"},
    {
        "assembly",
        "best_epoch",
        "checkpoint",
        "classifier",
        "distributed",
        "ema",
        "finetuning",
        "finite_loss",
        "graphs",
        "lean_epoch",
        "optimization",
        "progress",
        "threads",
        "training",
    },
    {"crossvalidation", "evaluation", "profiling", "sanity", "verification"},
    {"comparison"},
    {f"comparison.{name}" for name in ("comments", "history", "markup", "review", "revisions", "statistics")},
    {f"comparison.{name}" for name in ("pairing", "verdict")},
    {f"comparison.{name}" for name in ("changes", "flips")},
    {f"comparison.{name}" for name in ("compare", "pictures")},
    {"comparison.report", "model_card"},
]


def imported_modules(path: Path) -> set[str]:
    """Return the library modules that a file imports anywhere, lazily too, as paths below the root."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != "reprise":
            continue
        for depth in range(1, len(parts) + 1):
            base = ROOT / "src" / Path(*parts[:depth])
            files |= {
                str(path.relative_to(ROOT)) for path in (base / "__init__.py", base.with_suffix(".py")) if path.exists()
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


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_lists_every_library_file_that_a_stage_imports(stage):
    script = f"stages/{stage}.py"
    listed = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert listed == {script} | import_closure(ROOT / script)


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


def test_imports_inside_the_library_point_in_one_direction():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for path in (ROOT / "src/reprise").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "src/reprise").with_suffix("").parts).removesuffix(".__init__")
        if name == "__init__":
            continue
        for other in imported_modules(path) - {"src/reprise/__init__.py"}:
            other_name = (
                other.removeprefix("src/reprise/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            )
            assert level[other_name] <= level[name], f"{name} imports {other_name}"
            assert name not in {
                n.removeprefix("src/reprise/").removesuffix(".py").replace("/", ".")
                for n in imported_modules(ROOT / other)
            }, f"{name} and {other_name} import each other"


if __name__ == "__main__":  # prints the lists for dvc.yaml
    for stage in STAGES:
        print(stage, *sorted(import_closure(ROOT / f"stages/{stage}.py")), sep="\n      - ")
