"""The folders of trainings that a person starts: all below one git-ignored `runs/`, and no tracked out is touched.

`runs/NAME/` holds params.yaml and train.log of a run and, once it is finished, its RESULT; `runs/latest` points at the
newest finished run; `runs/checkpoints/` keeps the state from which an unfinished run goes on; `runs/data/KEY/` holds
data prepared with other `data.*` than those of params.yaml.
"""

import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import reprise.data
from reprise.data.download.sources import download
from reprise.data.prepare.corrections import CORRECTIONS
from reprise.data.prepare.prepare import preprocess
from reprise.params.dependencies import Dependencies, load_record, other_params, record_path
from reprise.params.load import as_yaml, flat, load_params
from reprise.params.schema import DataParams, ModelParams, Params, TrainParams
from reprise.repo.project import Project
from reprise.runtime.atomic import Lock, publishing, remove
from reprise.runtime.checksums import listing_md5, md5_listing
from reprise.runtime.environment import after_torch, before_torch, cpus
from reprise.runtime.errors import UserError, visible
from reprise.runtime.signals import Stopped

RESULT = ("model.safetensors", "model.json", "train.json", "history.csv")


def ready_to_train(project: Project, params: Params) -> tuple[Path, ModelParams, TrainParams, Path]:
    """Set what torch reads when it loads, bring the data up to date, load torch; return the arguments of `train`.

    They are the folder of prepared data, the params of model and training, and the path of pretrained weights.
    """
    before_torch(params.train.threads, params.train.reproducible)
    processed = prepared_data(project, params.data)
    import reprise.training.train  # noqa: F401

    after_torch(params.train.threads, params.train.reproducible)
    return processed, params.model, params.train, project.root / params.model.weights


def prepared_data(project: Project, data: DataParams) -> Path:
    """Return a folder of prepared data for these params, brought up to date first.

    With the `data.*` of params.yaml that is the pipeline's data/processed, after `dvc repro preprocess`; with others a
    folder under runs/data, made once. Raises UserError if DVC cannot reproduce, and whatever the stages raise.
    """
    root = project.root
    if data == load_params(root / "params.yaml").data:
        (root / "runs").mkdir(exist_ok=True)
        with Lock(root / "runs/preprocess"):  # the processes of one training come here together
            if not project.dvc_shown("repro", "preprocess"):
                raise UserError("`dvc repro preprocess` failed, see above")
        record = load_record(root / record_path("preprocess"))
        if record and (other := other_params(record.params, flat({"data": data.model_dump(mode="json")}))):
            raise UserError(f"edited while data/processed was made: {', '.join(other)}; run the same command again")
        return root / "data/processed"
    (root / "runs/data").mkdir(parents=True, exist_ok=True)
    with Lock(root / "runs/data"):  # a second process finds what the first has prepared
        folder = root / "runs/data" / _key(data, root / data.path, root / CORRECTIONS)
        if (folder / "processed").exists():
            return folder / "processed"
        own = [os.path.relpath(root / data.path, root)] if data.is_own else []
        dependencies = Dependencies("src/reprise/repo/runs.py", [*own, CORRECTIONS], root=root)
        dependencies.begin(load_params(root / "params.yaml"))
        with publishing(folder, check=dependencies.check) as (partial,):
            partial.mkdir()
            download(data, partial / "raw", root / "data/.downloads", root)
            preprocess(partial / "raw", partial / "processed", data, cpus(), root / CORRECTIONS)
    return folder / "processed"


def _key(data: DataParams, own: Path, corrections: Path) -> str:
    """Return a folder's name for these params, this code, the corrections and, of own images, the files as they are."""
    parts = [data.model_dump_json(), listing_md5(md5_listing(corrections))]
    parts += [path.read_text() for path in sorted(Path(reprise.data.__path__[0]).rglob("*.py"))]
    if data.is_own:
        files = sorted(path for path in (own, *own.rglob("*")) if path.is_file())
        parts += [f"{path.relative_to(own)} {path.stat().st_size} {path.stat().st_ctime_ns}" for path in files]
    return f"{data.name}-{hashlib.sha256(chr(0).join(parts).encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


@contextmanager
def run_folder(runs: Path, params: Params, run: Path | None = None, debug: bool = False) -> Iterator[Path]:
    """Yield a run's folder, locked, with its params.yaml; what is printed meanwhile is added to its train.log.

    It is the run given, else an unfinished one of the same params, else a new one. A run in a debug mode is always a
    new one, and is never resumed. After a UserError no new folder is left, unless a logger has written into it.
    """
    runs.mkdir(parents=True, exist_ok=True)
    begun = [] if debug else [found for found in _unfinished(runs) if _has_params(found, params)]
    candidates = [run] if run else begun
    new = runs / (f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"[:-3] + "-debug" * debug)
    for folder in [*candidates, new]:
        lock = Lock(folder)
        if lock.acquire(wait=folder in (run, new)):
            break
    try:
        if run and _is_finished(run) and _has_params(run, params):
            raise UserError(f"{run.name}: this run is finished with these params, perhaps by another process")
        folder.mkdir(exist_ok=True)
        if folder == new:
            with publishing(folder / "params.yaml") as (partial,):
                write_params(params, partial)
        with (folder / "train.log").open("ab", buffering=0) as file:

            def log(text: str) -> None:
                with suppress(OSError):  # on a full disk the log has gaps: it ends no training that can still be saved
                    file.write(text.encode("utf-8", "replace"))

            try:
                with redirect_stdout(_Copied(sys.stdout, log)), redirect_stderr(_Copied(sys.stderr, log)):
                    yield folder
            except BaseException as error:
                short = f"stopped by {error.name}" if isinstance(error, Stopped) else f"error: {visible(str(error))}"
                log(f"{short}\n" if isinstance(error, UserError | Stopped) else traceback.format_exc())
                raise
    except UserError:
        files = {path.name for path in folder.rglob("*") if path.is_file()}
        if folder == new and files == {"params.yaml", "train.log"}:
            remove(folder)
        raise
    finally:
        lock.release()


def find_finished(runs: Path, name: str) -> Path:
    """Return the finished run of this name or path, the newest for "". Raises UserError if there is none."""
    run = (runs / Path(name or "latest").name).resolve()
    if not _is_finished(run):
        raise UserError(f"{name or 'runs/latest'}: no finished run; an unfinished one goes on as it was begun")
    return run


def find_unfinished(runs: Path, name: str) -> Path:
    """Return the run of this name or path, the newest for "". Raises UserError if there is none to go on with."""
    unfinished = _unfinished(runs)
    if not unfinished and not name:
        raise UserError("there is no run to go on with: every run is finished")
    run = (runs / Path(name).name).resolve() if name else unfinished[0]
    if _is_finished(run):
        raise UserError(f"{name}: this run is finished: evaluate it, or train it for more epochs with train.epochs=N")
    if run not in unfinished:
        known = ", ".join(run.name for run in unfinished) or "none"
        raise UserError(f"{name}: there is no such run; unfinished are {known}")
    return run


def _unfinished(runs: Path) -> list[Path]:
    """Return the runs without a whole result, the newest first."""
    found = {path.parent.resolve() for path in runs.glob("*/params.yaml")}
    return sorted((run for run in found if not _is_finished(run) and not run.name.endswith("-debug")), reverse=True)


def _is_finished(run: Path) -> bool:
    """Return whether all of the result is there: a kill may come between two of its files."""
    return all((run / name).exists() for name in RESULT)


def _has_params(run: Path, params: Params) -> bool:
    with suppress(UserError):  # begun by another version
        return load_params(run / "params.yaml") == params
    return False


class _Copied:
    """A stream whose whole lines also go to a log; of a line that was redrawn, like a progress bar, its last state."""

    def __init__(self, stream: TextIO, log: Callable[[str], None]) -> None:
        self.stream, self.log, self.line = stream, log, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        self.log("".join(f"{line.rpartition(chr(13))[2]}\n" for line in lines))
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def write_params(params: Params, path: Path) -> None:
    """Write the resolved params of a run, for `load_params` to read."""
    path.write_text(as_yaml(params), encoding="utf-8")


def point_latest(run: Path) -> None:
    """Make the link `latest` beside the run point at it."""
    with publishing(run.with_name("latest")) as (link,):
        link.symlink_to(run.name)


def find_model(target: Path) -> tuple[Path, Path]:
    """Return the paths of weights and card for a folder of a run or of models, or for a .safetensors file.

    Raises UserError if there is no model.
    """
    weights = target / "model.safetensors" if target.is_dir() else target
    if weights.exists() and weights.suffix != ".safetensors":
        raise UserError(f"{target}: expected a run folder or a .safetensors file")
    if not weights.exists():
        known = "with `dvc repro`, or with `python src/train.py` and evaluate it: `python src/eval.py runs/latest`"
        raise UserError(f"{weights}: no model there; train one {known}")
    return weights, weights.with_suffix(".json")
