"""Train with some params changed, without touching the pipeline's outs.

    python src/train.py train.epochs=1 model.name=resnet18
    python src/train.py --profile

Prepared data are brought up to date first; the result is a folder under runs/ with params.yaml, the log of what was
printed, history.csv, train.json, the model and its last checkpoint, and `runs/latest` points at it. A run that was
stopped or killed goes on where it was, by the same command or by --resume; a finished one goes on for more epochs:

    python src/train.py --resume runs/latest train.epochs=20
"""

import argparse
from pathlib import Path

from reprise.commands.settings import print_profile, print_sanity
from reprise.params.dependencies import KEPT, Dependencies
from reprise.params.load import help_text, load_params
from reprise.params.presets import find_preset
from reprise.params.resolve import rank
from reprise.params.schema import Params
from reprise.repo import runs
from reprise.repo.doctor import say_if_needed
from reprise.repo.project import Project
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError, one_line_errors, say

PROJECT = Project(Path(__file__).resolve().parent.parent)
RUNS, PARAMS, PRESETS = PROJECT.root / "runs", PROJECT.root / "params.yaml", PROJECT.root / "presets"


def main() -> int:
    """Read the params and the overrides, train, keep the run; return the exit code."""
    options = arguments()
    resumed, params = what_to_train(options)
    if options.print_config:
        print(runs.as_yaml(params), end="")
        return 0
    number = rank(params.train)
    if not number:
        say_if_needed(PROJECT)
    inputs = runs.ready_to_train(PROJECT, params)
    if options.profile or options.sanity:
        return print_profile(inputs) if options.profile else print_sanity(inputs)
    from reprise.training.debug import Debug
    from reprise.training.loggers import create_loggers
    from reprise.training.result import LAST
    from reprise.training.train import Options, train

    processed, model, settings, weights = inputs
    batches = 1 if options.fast_dev_run else options.overfit
    debug = Debug(options.limit, batches, options.overfit is not None, options.detect_anomaly)
    if options.fast_dev_run or number:  # of several processes, the first one keeps the run
        result = train(processed, model, settings, weights=weights, options=Options(debug=debug, rank=number))
        if not number:
            say(f"train: {result.summary()}; a fast run for bugs, nothing is kept")
        return 0
    scratch = None if debug.deciding() else RUNS / "checkpoints"
    watched = [PROJECT.short(processed), params.model.weights, "project"]
    dependencies = Dependencies("stages/train.py", watched, ["model", "train"], PROJECT.root, KEPT)
    dependencies.begin(params)
    with runs.run_folder(RUNS, params, resumed, debug=scratch is None) as run:
        loggers = create_loggers(params.train.loggers, run, run.name)
        watching = Options(loggers=loggers, debug=debug, origin=run if resumed and options.overrides else None)
        result = train(processed, model, settings, scratch, weights, watching)
        names = [*runs.RESULT, LAST, "params.yaml"] if result.checkpoints else runs.RESULT
        with publishing(*(run / name for name in names), check=dependencies.check) as files:
            dependencies.forget = result.discard_checkpoints
            result.save(*files[: len(runs.RESULT)], record=dependencies.record())
            if result.checkpoints:
                result.checkpoints.keep(files[-2])
                runs.write_params(params, files[-1])
        result.discard_checkpoints()
        runs.point_latest(run)
        say(f"train: {result.summary()} -> {PROJECT.short(run)}")
        if debug.overfit:
            right = result.history[-1].train_accuracy  # validation needs more steps to settle batch norm
            say(f"overfit: {right:.1%} right, {'succeeded' if right == 1 else 'FAILED: train longer or find the bug'}")
    return 0


def arguments() -> argparse.Namespace:
    """Read the command line; `--help` lists every parameter."""
    epilog = f"parameters, as they stand in params.yaml:\n{help_text(load_params(PARAMS))}"
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog, formatter_class=text)
    quick = parser.add_mutually_exclusive_group()
    add, add_quick = parser.add_argument, quick.add_argument
    add("overrides", nargs="*", metavar="key=value", help="a parameter of params.yaml and its new value")
    add("--preset", metavar="NAME", help="start from the values of presets/NAME.yaml")
    add("--resume", nargs="?", const="", metavar="RUN", help="go on with RUN, or the last one")
    add("--print-config", action="store_true", help="print all params as they would be used, and stop")
    add_quick("--fast-dev-run", action="store_true", help="one batch of each split, one epoch, nothing kept")
    add_quick("--overfit", type=int, metavar="N", help="train and validate on the same N batches")
    add("--limit", type=float, default=1.0, metavar="F", help="use this share of the training and validation images")
    add_quick("--sanity", action="store_true", help="check data and network instead; exit code 1: a check failed")
    add_quick("--profile", action="store_true", help="only say where a step's time goes")
    add("--detect-anomaly", action="store_true", help="name the operation that first gives NaN (slow)")
    options = parser.parse_intermixed_args()
    if (options.sanity or options.profile) and (options.limit != 1 or options.detect_anomaly):
        parser.error("--sanity and --profile look at the training as it is: no --limit and no --detect-anomaly")
    return options


def what_to_train(options: argparse.Namespace) -> tuple[Path | None, Params]:
    """Return the run to go on with, if there is one, and the params."""
    if options.resume is not None:
        if "=" in options.resume:
            options.overrides, options.resume = [options.resume, *options.overrides], ""
        if options.preset or not all(each.startswith("train.epochs=") for each in options.overrides):
            raise UserError("--resume goes on with a run as it was begun: the only parameter it takes is train.epochs")
        if options.fast_dev_run or options.overfit is not None or options.limit != 1:
            raise UserError("--resume goes on with a run as it was begun: a debug mode begins one of its own")
        run = (runs.find_finished if options.overrides else runs.find_unfinished)(RUNS, options.resume)
        return run, load_params(run / "params.yaml", options.overrides)
    preset = find_preset(PRESETS, options.preset) if options.preset else None
    overrides = options.overrides + ["train.epochs=1", "train.warmup_epochs=0"] * options.fast_dev_run
    return None, load_params(PARAMS, overrides, preset)


if __name__ == "__main__":
    with one_line_errors():
        raise SystemExit(main())
