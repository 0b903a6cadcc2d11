"""Evaluate the published model, or another one, on the test split of the data that it was trained on.

python src/eval.py                                  the model that `dvc repro` published
python src/eval.py runs/latest                      a run of src/train.py, or a .safetensors file with its .json
python src/eval.py weights.pth model.name=resnet18 --normalization timm
                                                    bare weights, averaged ones too, on the data of params.yaml
python src/eval.py model.name=resnet18.a1_in1k model.pretrained=true

The metrics of a run also go to the loggers that it was trained with. A gate that is missed (`evaluate.gates`) is an
error, after the table.
"""

import argparse
from pathlib import Path

from reprise.model.artifact import load_card
from reprise.params.load import load_params
from reprise.repo.doctor import say_if_needed
from reprise.repo.project import Project
from reprise.repo.runs import find_model, prepared_data
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import UserError, one_line_errors, say

PROJECT = Project(Path(__file__).resolve().parent.parent)


def main() -> None:
    """Find the model and its data, evaluate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="*", metavar="MODEL", help="run folder or file; with key=value, see above")
    normalization = "of bare weights: data, timm, or MEAN/STD, e.g. 0.5/0.5 or 0.49,0.48,0.45/0.23,0.22,0.23"
    parser.add_argument("--normalization", help=normalization)
    arguments = parser.parse_intermixed_args()
    say_if_needed(PROJECT)
    given = arguments.given
    overrides = [each for each in given if "=" in each]
    paths = [Path(each) for each in given if "=" not in each]
    if len(paths) > 1:
        raise UserError(f"{paths[1]}: one model at a time")
    path = paths[0] if paths else None
    bare = any(each.startswith("model.") for each in overrides)
    if arguments.normalization and not bare:
        raise UserError("--normalization: a model of Reprise says its own; it is for bare weights, with model.name=...")
    weights, card_path = (path or PROJECT.root, Path()) if bare else find_model(path or PROJECT.root / "models")
    of_run = weights.with_name("params.yaml")
    is_run = not bare and of_run.exists()
    params = load_params(of_run if is_run else PROJECT.root / "params.yaml", overrides)
    terms = params.train if bare else load_card(card_path).provenance
    before_torch(terms.threads, terms.reproducible)
    processed = prepared_data(PROJECT, params.data)
    from reprise.evaluation.bare import bare_model
    from reprise.evaluation.evaluate import evaluate
    from reprise.evaluation.fitting import fit_confidence
    from reprise.evaluation.gates import check_gates
    from reprise.model.backbone import load_model

    after_torch(terms.threads, terms.reproducible)
    if bare:
        weights = path or PROJECT.root / params.model.weights
        network, card = bare_model(params, weights, processed, arguments.normalization)
    else:
        network, card = load_model(weights, card_path)
    asked = params.evaluate
    fitted = fit_confidence(network, card, processed, asked)
    result = evaluate(network, card, processed, asked.batch_size, asked.calibration_bins, asked.metrics, fitted)
    name, data = card.architecture.model_name, card.training.data
    say(f"eval: {name} ({weights}) on {len(result.ids):,} test images of {data}")
    say(result.table())
    if is_run and params.train.loggers:
        from reprise.training.loggers import create_loggers

        run = weights.resolve().parent
        for logger in create_loggers(params.train.loggers, run, run.name):
            logger.log_metrics({f"test/{key}": value for key, value in result.metrics.items() if value is not None})
            logger.finalize("success")
    check_gates(result, asked.gates, asked.gate_confidence)


if __name__ == "__main__":
    with one_line_errors():
        main()
