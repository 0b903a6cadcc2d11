"""Run folders for what a person types: everything under one git-ignored `runs/`, no tracked out touched.

`runs/NAME/` holds a finished run (params.yaml, model.safetensors, model.json, train.json, history.csv), `runs/latest`
points at the newest, `runs/data/KEY/` keeps data prepared under other `data.*` than params.yaml's.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import yaml

import reprise.data
from reprise.data.preprocess import preprocess
from reprise.data.sources import download
from reprise.data.workers import available_cpus
from reprise.errors import UserError
from reprise.params import DataParams, Params, load_params
from reprise.publish import Lock, publishing


def prepared_data(root: Path, data: DataParams) -> Path:
    """Return a folder of prepared data for these params, brought up to date first.

    With params.yaml's own `data.*` that is the pipeline's data/processed, by way of `dvc repro preprocess`; with others
    a folder under runs/data, made once. Raises UserError if DVC cannot reproduce, and whatever the stages raise.
    """
    if data == load_params(root / "params.yaml").data:
        # the stages call `python`: let it be this one, also where the environment is not activated
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        command = [sys.executable, "-m", "dvc", "repro", "preprocess"]
        if subprocess.run(command, cwd=root, env=environment, stdout=sys.stderr).returncode:
            raise UserError("`dvc repro preprocess` failed, see above")
        return root / "data/processed"
    folder = root / "runs/data" / _key(data, root / data.path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Lock(folder.parent):  # a second process finds what the first has prepared
        if (folder / "processed").exists():
            return folder / "processed"
        with publishing(folder) as (partial,):
            partial.mkdir()
            download(
                data.name,
                partial / "raw",
                root / data.path,
                root / "data/.downloads",
                data.mirror,
                data.split,
                data.url,
                data.sha256,
            )
            preprocess(
                partial / "raw",
                partial / "processed",
                data.image_size,
                data.val_fraction,
                data.test_fraction,
                data.seed,
                workers=available_cpus(),
                channels=data.channels,
                resize=data.resize,
                on_corrupt=data.on_corrupt,
                on_leak=data.on_leak,
                group=data.group,
                folds=data.folds,
                fold=data.fold,
            )
    return folder / "processed"


def _key(data: DataParams, own: Path) -> str:
    """Return a name for these params, this code and, for the user's own images, the files as they are now."""
    facts = [data.model_dump_json()]
    facts += [path.read_text() for path in sorted(Path(reprise.data.__path__[0]).glob("*.py"))]
    if data.name in ("folder", "archive") and data.url is None:
        files = [own] if own.is_file() else sorted(path for path in own.rglob("*") if path.is_file())
        facts += [f"{path.relative_to(own)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return f"{data.name}-{hashlib.sha256(chr(0).join(facts).encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def write_params(params: Params, path: Path) -> None:
    """Write a run's resolved params, readable by `load_params`."""
    path.write_text(yaml.safe_dump(params.model_dump(), sort_keys=False), encoding="utf-8")


def point_latest(run: Path) -> None:
    """Let `latest` beside the run name it."""
    with publishing(run.with_name("latest")) as (link,):
        link.symlink_to(run.name)


def find_model(target: Path) -> tuple[Path, Path]:
    """Return weights and facts for a run folder, a models folder, or a .safetensors file with its .json beside it."""
    if not target.exists():
        raise UserError(f"{target}: no model there; train one with `dvc repro` or `python src/train.py`")
    weights = target / "model.safetensors" if target.is_dir() else target
    if weights.suffix != ".safetensors":
        raise UserError(f"{target}: expected a run folder or a .safetensors file")
    if not weights.exists():
        raise UserError(f"{weights}: no model there; train one with `dvc repro` or `python src/train.py`")
    return weights, weights.with_suffix(".json")
