"""Train with some params changed, without touching the pipeline's outs.

    python src/train.py train.epochs=1 model.name=resnet18
    python src/train.py --profile

Prepared data are brought up to date first; the result is a folder under runs/, and `runs/latest` points at it.
"""

import argparse
from datetime import datetime
from pathlib import Path

from reprise.errors import one_line_errors
from reprise.params import load_params
from reprise.process import after_torch, before_torch
from reprise.publish import publishing
from runs import point_latest, prepared_data, write_params

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Read the params and the overrides, train, keep the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="a parameter of params.yaml and its new value"
    )
    parser.add_argument("--profile", action="store_true", help="only say where a step's time goes")
    arguments = parser.parse_args()
    params = load_params(ROOT / "params.yaml", arguments.overrides)
    before_torch(params.train.threads, params.train.reproducible)
    processed = prepared_data(ROOT, params.data)
    from reprise.training import train

    after_torch(params.train.threads, params.train.reproducible)
    if arguments.profile:
        from reprise.profiling import profile

        print(profile(processed, params.model, params.train).table())
        return
    weights = ROOT / params.model.weights
    result = train(processed, params.model, params.train, ROOT / "runs/checkpoints", weights)
    run = ROOT / "runs" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"[:-3]
    with publishing(run) as (folder,):
        folder.mkdir()
        write_params(params, folder / "params.yaml")
        result.save(*(folder / name for name in ("model.safetensors", "model.json", "train.json", "history.csv")))
    result.discard_checkpoints()
    point_latest(run)
    print(f"train: {result.summary()} -> {run.relative_to(ROOT)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
