"""A training in a process of its own, at a step of which something happens to it."""

import os
import socket
from pathlib import Path

from tests.conftest import ROOT, TINY

# no layer here knows its batch, so two processes and two accumulated batches differ by rounding alone
PLAIN = [
    *(*TINY, "model.name=mlp", "model.kwargs.drop_rate=0.2", "train.ema=0.9", "train.schedule=constant"),
    *("train.optimizer=sgd", "train.lr=0.01", "train.batch_size=5"),
]
TWO = ("train.devices=2",)
RESULT = ("history.csv", "model.safetensors", "model.json")

# arguments: prepared data, where the result goes, "WHAT WHO STEP", overrides of params.yaml. WHAT: exit, a signal, or
# exec: runs EVENT of the environment; WHO: the rank of a process, each or group. PATCH in the environment is run before
# the training
SCRIPT = """
import os, signal, sys
from pathlib import Path
from reprise.params.load import load_params
from reprise.params.resolve import rank
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import one_line_errors

with one_line_errors():
    data, out, event, *overrides = sys.argv[1:]
    params = load_params(Path(ROOT) / "params.yaml", overrides)
    number = rank(params.train)
    before_torch(params.train.threads, params.train.reproducible)
    from reprise.training import cuda_graphs as graphs, module as classifier, steps
    from reprise.training.train import Options, StatelessDropout, train
    after_torch(params.train.threads, params.train.reproducible)
    exec(os.environ.get("PATCH", ""))
    (what, who, step), out = event.split(), Path(out)
    record, before_batch = graphs.record, StatelessDropout.before_batch

    def counted(*passes):
        replays = record(*passes)
        print("recorded", file=sys.stderr)
        return replays

    def happens(self, trainer, *args):
        if trainer.global_step == int(step):
            if what == "exit" and who == str(number):
                os._exit(3)
            if what == "exec" and who == str(number):
                exec(os.environ["EVENT"])
            if what.startswith("SIG") and who in (str(number), "each"):
                os.kill(os.getpid(), signal.Signals[what])
            if who == "group" and number == 0:
                os.killpg(0, signal.Signals[what])
        before_batch(self, trainer, *args)

    graphs.record, StatelessDropout.before_batch = counted, happens
    result = train(Path(data), params.model, params.train, out / "scratch", options=Options(rank=number))
    if number == 0:
        result.save(*(out / name for name in ("model.safetensors", "model.json", "train.json", "history.csv")))
        result.discard_checkpoints()
""".replace("ROOT", repr(str(ROOT)))


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of such a process: this one's, without what the tests set for themselves."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    return inherited | {"PYTHONPATH": str(ROOT / "src")} | changes


def read(out: Path) -> dict[str, bytes]:
    """Return the files of a result, by name."""
    return {name: (out / name).read_bytes() for name in RESULT}


def free_port() -> str:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])
