"""Stage 3: train, and publish the best epoch's model, its history and its metrics.

With train.devices > 1 Lightning starts copies of this script: they train along and leave the rest to the first.
"""

import os
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

from reprise.params.dependencies import KEPT, Dependencies
from reprise.params.load import load_params
from reprise.params.resolve import rank, watched_weights
from reprise.runtime.atomic import publishing
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import one_line_errors

# in the folder of a queued or --temp experiment DVC names the repository, where the scratch outlives that folder
RUNS = Path(os.environ.get("DVC_ROOT", ".")) / "runs"


def main() -> None:
    """Read the params, train, publish."""
    models, metrics = Path("models"), Path("metrics")
    targets = models / "model.safetensors", models / "model.json", metrics / "train.json", metrics / "history.csv"
    number = rank(load_params("params.yaml").train)
    dependencies = Dependencies.of_stage("train", kept=KEPT)
    with nullcontext() if number else publishing(*targets, check=dependencies.check) as outs:
        params = dependencies.begin()
        weights = watched_weights(params.model.weights, Path("data/weights"))
        dependencies.check_earlier("preprocess")
        before_torch(params.train.threads, params.train.reproducible)
        from reprise.training.loggers import create_loggers
        from reprise.training.train import Options, train

        after_torch(params.train.threads, params.train.reproducible)
        dependencies.check_code()
        name = f"repro-{datetime.now():%Y-%m-%d_%H-%M-%S}"
        loggers = [] if number else create_loggers(params.train.loggers, RUNS / "logs" / name, name)
        options = Options(loggers=loggers, rank=number, course=outs[3] if outs else None)
        data, scratch = Path("data/processed"), RUNS / "checkpoints"
        result = train(data, params.model, params.train, scratch, weights, options)
        if outs is None:
            return
        dependencies.forget = result.discard_checkpoints
        result.save(*outs, record=dependencies.record())
    result.discard_checkpoints()
    print(f"train: {result.summary()} -> models")


if __name__ == "__main__":
    with one_line_errors():
        main()
