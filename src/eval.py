"""Evaluate the published model, or another one, on the test split of the data that it was trained on.

python src/eval.py                 the model that `dvc repro` published
python src/eval.py runs/latest     a run of src/train.py, or any .safetensors file with its .json beside it
"""

import argparse
from pathlib import Path

from reprise.model.artifact import load_card
from reprise.params.load import load_params
from reprise.repo.project import Project
from reprise.repo.runs import find_model, prepared_data
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import one_line_errors, say

PROJECT = Project(Path(__file__).resolve().parent.parent)


def main() -> None:
    """Find the model and its data, evaluate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = PROJECT.root / "models"
    parser.add_argument("model", nargs="?", type=Path, default=models, help="a run folder or .safetensors file")
    weights, card_path = find_model(parser.parse_args().model)
    of_run = weights.with_name("params.yaml")
    params = load_params(of_run if of_run.exists() else PROJECT.root / "params.yaml")
    trained = load_card(card_path).provenance
    before_torch(trained.threads, trained.reproducible)
    processed = prepared_data(PROJECT, params.data)
    from reprise.evaluation.evaluate import evaluate
    from reprise.model.backbone import load_model

    after_torch(trained.threads, trained.reproducible)
    network, card = load_model(weights, card_path)
    settings = params.evaluate
    result = evaluate(network, card, processed, settings.batch_size, settings.calibration_bins, settings.metrics)
    name, data = card.architecture.model_name, card.training.data
    say(f"eval: {name} ({weights}) on {len(result.ids):,} test images of {data}")
    say(result.table())


if __name__ == "__main__":
    with one_line_errors():
        main()
