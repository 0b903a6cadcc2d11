"""Resolves params on this machine: device, precision, loggers, weights, and this process's rank among several."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from reprise.params.schema import LoggerName, Precision, TrainParams
from reprise.runtime.device import device, resolve_reproducible
from reprise.runtime.errors import UserError
from reprise.runtime.provenance import Reproducible


def resolve_device(params: TrainParams) -> Literal["cuda", "cpu"]:
    """Return the device to train on. Raises UserError where `train.accelerator` asks for a GPU that is missing."""
    found = device(resolve_reproducible(params.reproducible))
    if params.accelerator == "gpu" and found == "cpu":
        raise UserError("train.accelerator = gpu: torch finds none here; choose auto or cpu")
    return "cpu" if params.accelerator == "cpu" else found


def check_loggers(names: Iterable[LoggerName]) -> None:
    """Raise UserError, with the command that installs it, for a logger that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"train.loggers: {name} is not installed; `pip install -e '.[{name}]'`, or leave it out")


def watched_weights(path: str, folder: Path) -> Path:
    """Return the path of `model.weights`. Raises UserError unless it is in the folder, which the pipeline watches."""
    if not Path(path).resolve().is_relative_to(folder.resolve()):
        way_out = "copy it there, or use `python src/train.py`, which takes weights from anywhere"
        raise UserError(f"model.weights = {path}: the pipeline watches {folder} alone; {way_out}")
    return Path(path)


def rank(params: TrainParams) -> int:
    """Return this process's number among those of one training, as torchrun, SLURM or Lightning's launcher tell it.

    Raises UserError where torchrun or SLURM have started other processes than the params ask for.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or slurm():
        if params.devices != "auto":
            check_launched(params.devices, params.num_nodes)
        return int(os.environ["RANK" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_PROCID"])
    if params.devices == 1 and params.num_nodes == 1:
        return 0
    local = int(os.environ.get("LOCAL_RANK", 0))
    return local if params.devices == "auto" else int(os.environ.get("NODE_RANK", 0)) * params.devices + local


def check_launched(devices: int, num_nodes: int) -> None:
    """Raise UserError if torchrun or SLURM have started other processes than `devices` on each of `num_nodes`."""
    wanted = f"train.devices * train.num_nodes = {devices} * {num_nodes}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        started = int(os.environ["WORLD_SIZE"])
        if started != devices * num_nodes:
            raise UserError(f"torchrun has started {started} processes, but {wanted}; make them equal")
    elif slurm():
        started = int(os.environ["SLURM_NTASKS"])
        on_each, nodes = os.environ.get("SLURM_NTASKS_PER_NODE"), os.environ.get("SLURM_NNODES", str(num_nodes))
        # Lightning wants to be told, too, how several are spread
        if started != devices * num_nodes or (started > 1 and (on_each, nodes) != (str(devices), str(num_nodes))):
            what = f"SLURM has started {started} tasks (--nodes={nodes} --ntasks-per-node={on_each}), but {wanted}"
            use = f"use srun --nodes={num_nodes} --ntasks-per-node={devices}, or unset SLURM_NTASKS"
            raise UserError(f"{what}; {use}: Lightning starts them")


def slurm() -> bool:
    """Say whether srun has started this process, by Lightning's rule: a shell in an interactive job starts its own."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def resolve_precision(precision: Precision, reproducible: Reproducible) -> Literal["fp32", "bf16"]:
    """Return the precision of training; auto: bf16 on a GPU that has it. Raises UserError for `portable` bf16."""
    import torch

    if precision == "bf16" and reproducible == "portable":
        why = "gives other bits on other CPUs, which train.reproducible = portable rules out"
        way_out = "choose precision fp32 or auto, or reproducible machine or off"
        raise UserError(f"train.precision = bf16 {why}; {way_out}")
    if precision == "auto":
        return "bf16" if device(reproducible) == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"
    return precision
