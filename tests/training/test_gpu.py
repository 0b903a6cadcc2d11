"""On a GPU: `machine` gives the same bytes in two processes and after a crash, and says which GPU it was.

The first tests need a GPU and are skipped, visibly, where there is none; the others show without one what a GPU meets.
"""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only

from reprise.data.formats.packed import PackedSplit, load_metadata
from reprise.loader.batches import Process, TrainBatches
from reprise.params.resolve import rank, resolve_precision
from reprise.runtime.errors import UserError
from reprise.runtime.signals import StopSignals
from reprise.training import module as classifier
from reprise.training.checkpoint import Position, Resumption
from reprise.training.distributed import ddp_strategy, processes
from reprise.training.setup import lit_classifier
from reprise.training.steps import BatchObserver
from reprise.training.train import Options, StatelessDropout, train
from tests.conftest import TINY, augmentation, batch_params
from tests.training.processes import SCRIPT, environment

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0"}
FOUR = ["train.devices=2", "train.num_nodes=2"]
SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_NODEID": "1"}


def trained(processed, out, *overrides, crash_at=-1, exit_code=0, **changes):
    """Train in a process of its own; return what it wrote, by name, and what it said."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", SCRIPT, processed, out, f"exit 0 {crash_at}"]
    command += [*TINY, "model.kwargs.drop_rate=0.3", *overrides]
    done = subprocess.run(command, env=environment(**changes), capture_output=True, text=True, timeout=300)
    assert done.returncode == exit_code, done.stderr[-3000:]
    return {path.name: path.read_bytes() for path in out.glob("*.*")}, done.stderr


@pytest.fixture
def two_gpus(monkeypatch):
    """Let torch believe in two GPUs; return the list of those that the process takes."""
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    return taken


@pytest.mark.gpu
@pytest.mark.parametrize("crash_at", [5, 15])
def test_a_training_that_crashed_on_a_gpu_ends_in_the_same_bytes(crash_at, digits, tmp_path):
    settings = ["train.reproducible=machine", "train.checkpoint_every.minutes=0"]
    whole, _ = trained(digits, tmp_path / "whole", *settings)
    trained(digits, tmp_path / "crashed", *settings, crash_at=crash_at, exit_code=3)
    resumed, said = trained(digits, tmp_path / "crashed", *settings)
    assert f"continuing in epoch {crash_at // 11 + 1}, step {crash_at % 11 + 1}\n" in said
    assert resumed == whole


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("overrides", "times"),
    [
        (["train.precision=bf16", "train.augment.mixup=0.2", "train.start_size=16"], 2),
        (["train.precision=bf16", "train.ema=0.9"], 1),
        (["train.accumulate=2", "train.clip_grad=0.1", "train.freeze_epochs=1"], 2),
    ],
)
def test_replayed_graphs_end_in_the_bytes_of_single_kernels(overrides, times, digits, tmp_path):
    settings = ["train.reproducible=machine", *overrides]
    replayed, said = trained(digits, tmp_path / "replayed", *settings)
    assert said.count("recorded\n") == times
    plain, said = trained(digits, tmp_path / "plain", *settings, PATCH="steps.recordable = lambda module: False")
    assert "recorded" not in said
    assert len(replayed) == 4
    assert replayed == plain


READING = """
untouched_loss = classifier.LitClassifier.forward_loss


def reading(self, batch):
    assert batch[0].abs().max().item() > 0
    return untouched_loss(self, batch)


classifier.LitClassifier.forward_loss = reading
"""


@pytest.mark.gpu
def test_a_model_that_reads_from_the_gpu_is_trained_without_graphs(digits, tmp_path):
    settings = ["train.reproducible=machine", "train.precision=bf16"]
    trained_so, said = trained(digits, tmp_path / "reading", *settings, PATCH=READING)
    assert said.count("steps run without CUDA graphs, slower: called a synchronizing CUDA operation\n") == 1
    assert "recorded" not in said
    plain, _ = trained(digits, tmp_path / "plain", *settings, PATCH="steps.recordable = lambda module: False")
    assert trained_so == plain


@pytest.mark.gpu
def test_two_processes_on_a_gpu_give_the_same_bytes_and_auto_means_machine(digits, tmp_path):
    auto, _ = trained(digits, tmp_path / "auto", "train.reproducible=auto")
    machine, _ = trained(digits, tmp_path / "machine", "train.reproducible=machine")
    assert len(auto) == 4
    assert auto == machine
    provenance = json.loads(auto["model.json"])["provenance"]
    assert provenance["reproducible"] == "machine"
    assert provenance["device"].startswith(f"{torch.cuda.get_device_name()}, CUDA ")


class NeverWaits(BatchObserver):
    """From the third step of the last epoch to its tenth, an operation that waits for the GPU is an error."""

    def before_batch(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch + 1 == trainer.max_epochs and batch_idx == 2:
            torch.cuda.set_sync_debug_mode("error")

    def after_batch(self, trainer, pl_module, loss, batch_idx):
        if batch_idx == 9:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "overrides",
    [
        ["train.precision=bf16"],
        ["train.clip_grad=1.0", "train.accumulate=2", "train.ema=0.9"],
        ["train.augment.mixup=0.2", "train.augment.cutmix=1.0", "train.balance=weights", "train.optimizer=sgd"],
    ],
)
def test_no_step_waits_for_the_gpu(overrides, digits, tiny_params, monkeypatch):
    monkeypatch.setattr(classifier, "PENDING_BATCHES", 3)  # counting is a part of it
    params = tiny_params("train.reproducible=off", *overrides)
    try:
        result = train(digits, params.model, params.train, options=Options(callbacks=[NeverWaits()]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(result.history) == 2


CHANGES = [
    {"crop": 2},
    {"flip": True},
    {"rotate": 15, "scale": 0.1, "shift": 0.1},
    {"resized_crop": 0.5},
    {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    {"cutout": 0.5},
    {"mixup": 0.2, "cutmix": 1.0},
]


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [*CHANGES, {"policy": "randaugment"}, {"policy": "trivialaugment"}], ids="-".join)
def test_no_batch_waits_for_the_gpu_and_all_are_those_of_the_cpu(changes, digits):
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    split = PackedSplit(images, np.arange(64) % 10, [])
    metadata = load_metadata(digits).model_copy(update={"channels": 3, "mean": [0.4] * 3, "std": [0.2] * 3})
    metadata = metadata.model_copy(update={"image_size": 16})
    sizes = {} if changes.get("policy") else {"image_sizes": [12]}
    made = {}
    for device in ("cpu", "cuda"):
        batches = TrainBatches(split, metadata, batch_params(16, augmentation(**changes)), Process(device), **sizes)
        for mode in ("default", "error") if device == "cuda" else ():  # the first time, libraries are loaded
            torch.cuda.set_sync_debug_mode(mode)
            try:
                list(batches)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        made[device] = [tuple(part.cpu() for part in batch) for batch in batches]
    for (images, targets), (theirs, their_targets) in zip(made["cuda"], made["cpu"], strict=True):
        torch.testing.assert_close(targets, their_targets)
        if changes.get("policy"):  # there, a rounding may move a pixel by a whole level
            assert (images - theirs).abs().mean() < 0.01
        else:
            torch.testing.assert_close(images, theirs, atol=1e-3, rtol=0)


def test_a_resumed_state_goes_where_the_module_is(tiny_params):
    params = tiny_params().train
    state = {"module": lit_classifier(torch.nn.Linear(2, 2), 2, params, 10).state_dict(), "schedulers": []}
    lit = lit_classifier(torch.nn.Linear(2, 2), 2, params, 10).to("meta")  # stands in for a GPU
    optimizer = torch.optim.SGD(lit.parameters(), momentum=0.9)
    state["optimizer"] = optimizer.state_dict()
    resumption = Resumption(None, params.checkpoint_every, None, None, StopSignals(), None, None)
    resumption.resumed = Position(0, 5, 5), state
    resumption.on_train_epoch_start(
        SimpleNamespace(is_global_zero=True, world_size=1, optimizers=[optimizer], lr_scheduler_configs=[]), lit
    )
    assert {name for name in lit.state_dict() if not name.startswith("net.")}, "the metrics' counts travel along"
    assert {tensor.device.type for tensor in lit.state_dict().values()} == {"meta"}


def test_a_model_without_deterministic_kernels_is_refused_in_one_line(digits, tiny_params, monkeypatch):
    def as_some_pooling_on_a_gpu(*args):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))

    monkeypatch.setattr(StatelessDropout, "before_batch", as_some_pooling_on_a_gpu)
    params = tiny_params()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(UserError, match=r"the model needs put_, which gives other bits .* or off"):
            train(digits, params.model, params.train)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("precision", "reproducible", "bf16_here", "expected"),
    [
        ("auto", "machine", True, "bf16"),
        ("auto", "off", True, "bf16"),
        ("auto", "machine", False, "fp32"),
        ("auto", "portable", True, "fp32"),
        ("fp32", "machine", True, "fp32"),
        ("bf16", "machine", False, "bf16"),
    ],
)
def test_precision_auto_is_bf16_where_a_gpu_computes_in_it(precision, reproducible, bf16_here, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16_here)
    assert resolve_precision(precision, reproducible) == expected


@pytest.mark.parametrize(
    ("overrides", "launcher", "gpu", "number"),
    [
        (["train.devices=2"], {"LOCAL_RANK": "1"}, 1, 1),
        (["train.devices=auto"], {"LOCAL_RANK": "1"}, 1, 1),
        (FOUR, {"NODE_RANK": "1", "LOCAL_RANK": "1"}, 1, 3),
        (FOUR, TORCHRUN | {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, 1, 3),
        (FOUR[:1], SLURM | TORCHRUN | {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 1, 1),
        # dealt out over the machines in turn: --distribution=cyclic
        (FOUR, SLURM | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, 0, 1),
        (["train.devices=1", "train.num_nodes=2"], {"NODE_RANK": "1"}, 0, 1),
    ],
)
def test_rank_and_gpu_of_a_process_are_those_that_lightning_gives_it(
    overrides, launcher, gpu, number, tiny_params, launched, two_gpus, monkeypatch
):
    launched(launcher)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning changes it
    params = tiny_params(*overrides).train
    devices = processes(params, "cuda")
    trainer = Trainer(
        accelerator="cuda", devices=devices, num_nodes=params.num_nodes, strategy=ddp_strategy(params), logger=False
    )
    assert two_gpus == [gpu]
    assert trainer.strategy.root_device == torch.device("cuda", gpu)
    assert trainer.global_rank == rank(params) == number


@pytest.mark.parametrize(
    ("devices", "launcher", "message"),
    [
        ("3", {}, "train.devices = 3: there are 2 GPUs; choose at most that"),
        ("auto", TORCHRUN | {"WORLD_SIZE": "4"}, "torchrun has started 4 processes, but .* = 2 . 1; make them equal"),
    ],
)
def test_more_processes_than_gpus_are_one_line(devices, launcher, message, tiny_params, launched, two_gpus):
    launched(launcher)
    with pytest.raises(UserError, match=f"^{message}$"):
        processes(tiny_params(f"train.devices={devices}").train, "cuda")
    assert two_gpus == []
