"""Data sets, presets and params, and checks before a training."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from reprise.commands.registry import OVERRIDES, argument, command, here
from reprise.runtime.errors import UserError, say

if TYPE_CHECKING:
    from reprise.model.artifact import Origin
    from reprise.repo.project import Project


@command()
def data(options: Namespace) -> None:
    """List the data sets that data.name can be.

    With classes, images, splits and variants of each, and whether data.mirror works.
    """
    from reprise.data.download.torchvision_sets import LEFT_OUT, TORCHVISION_SETS

    line = "{:<21}{:>7}{:>11}  {:<18}{:<8}{}"
    say(line.format("data.name", "classes", "images", "splits", "mirror", "data.split (the first is the default)"))
    say(line.format("digits", 10, "1,797", "unsplit", "-", ""))
    say(line.format("folder", "", "", "yours", "-", "your own images at data.path"))
    say(line.format("archive", "", "", "yours", "-", "the same in a .zip, .tar or .tar.gz, at data.path or data.url"))
    for name, row in TORCHVISION_SETS.items():
        mirror = "yes" if row.mirror else "-"
        rest = "; ".join(filter(None, [", ".join(row.variants or ()), row.note]))
        say(line.format(name, f"{row.classes:,}", f"{row.images:,}", ", ".join(row.splits), mirror, rest).rstrip())
    say("\nNot of use here, of torchvision's:")
    for why, names in LEFT_OUT.items():
        say(f"  {why}: {', '.join(names)}")


@command(argument("name", nargs="?", help="the preset to write into params.yaml; none: list them"))
def preset(options: Namespace) -> None:
    """List the presets, or write one into params.yaml.

    reprise preset
    reprise preset mnist-99

    Values change, comments stay, and what changed is shown. `python src/train.py --preset mnist-99` uses one for a run
    and leaves params.yaml alone.
    """
    from reprise.params.presets import describe, rewrite

    root = here().root
    if options.name is None:
        say("\n\n".join(f"{path.stem}\n{describe(path)}" for path in sorted((root / "presets").glob("*.yaml"))))
    else:
        say(rewrite(root / "params.yaml", root / "presets", options.name))


@command(argument("--reset", nargs="*", metavar="KEY", help="put these back; without a name, all"))
def params(options: Namespace) -> int:
    """Show which parameters differ from the last commit and from the defaults, and put them back.

    reprise params
    reprise params --reset train.lr model.name

    A value goes back to the last commit's or, if it is that already, to the default. Outs that a failed stage has lost
    come back with it, from DVC's cache and the last commit; nothing else changes.
    """
    from reprise.params.presets import replace
    from reprise.params.reset import DEFAULTS, differing, parse, reset
    from reprise.repo.revisions import restore_outs
    from reprise.repo.verify import stale

    project = here()
    path = project.root / "params.yaml"
    text = project.read(path.name)
    if not text:
        raise UserError("params.yaml: no such file, or an empty one; `git checkout HEAD -- params.yaml` brings it back")
    committed = project.read(path.name, "HEAD")
    trees = [parse(committed), parse(DEFAULTS.read_text(encoding="utf-8"))]
    if options.reset is None:
        found = differing(parse(text), *trees)
        for name, (value, before, default) in found.items():
            say(f"{name}: {value} ({f'last commit {before}, ' if value != before else ''}default {default})")
        if not found:
            say("all params are those of the last commit, and the defaults")
        return 0
    keys = options.reset or list(differing(parse(text), trees[0]))
    say(replace(path, reset(text, keys, committed, trees[1])) or "params.yaml: nothing to put back")
    if restored := restore_outs(project):
        say(f"came back: {', '.join(restored)}")
    allowed = project.dvc_shown("repro", "--quiet", "--single-item", "check")
    if allowed and stale(project):
        say("`dvc repro` makes the results of these params; those that were made before come from DVC's cache")
    return int(not allowed)


@command(argument("model", help="a model of timm's, with a tag of weights or without"))
def weights(options: Namespace) -> None:
    """Fetch timm's pretrained weights of a model into data/weights, where DVC tracks them.

    reprise weights resnet18.a1_in1k

    Where a network is; a team without one then has them by `dvc pull`, and the pipeline never asks the hub. What is
    there already is verified instead: to fetch anew, remove the folder and its .dvc file.
    """
    path, origin = fetched(here(), options.model)
    say(f"weights: {origin.source}, revision {origin.revision}, SHA-256 {origin.sha256} -> {path}")
    say(f"set model.name={options.model} model.pretrained=false model.weights={path}; to share it, commit {path}.dvc")


def fetched(project: "Project", model: str) -> tuple[str, "Origin"]:
    """Return the folder, tracked by DVC, with timm's weights of a model, fetched if need be, and their origin."""
    from reprise.model.networks import timm_name
    from reprise.model.pretrained import fetch_weights

    path = f"data/weights/{timm_name(model)}"
    folder, tracked = project.root / path, project.root / f"{path}.dvc"
    if tracked.exists() and not folder.exists():
        raise UserError(f"{path}: DVC tracks it; `dvc pull {path}` brings it")
    origin = fetch_weights(model, folder)
    if not tracked.exists():
        project.dvc("add", path)
    return path, origin


@command(OVERRIDES)
def sanity(options: Namespace) -> int:
    """Check data and network before a long training.

    Takes parameters as src/train.py does. Exits with 1 if a check failed.
    """
    return print_sanity(inputs_of_training(options))


@command(OVERRIDES)
def profile(options: Namespace) -> int:
    """Say where a training step's time goes.

    And how near the training comes to a bare loop. Takes parameters as src/train.py does; keeps nothing.
    """
    return print_profile(inputs_of_training(options))


def inputs_of_training(options: Namespace) -> tuple[Any, ...]:
    """Return the arguments of `train` for params.yaml with the overrides; load torch."""
    from reprise.params.load import load_params
    from reprise.repo.runs import ready_to_train

    project = here()
    return ready_to_train(project, load_params(project.root / "params.yaml", options.overrides))


def print_sanity(inputs: tuple[Any, ...]) -> int:
    """Print the checks of data and network, by the arguments of `train`; return the exit code."""
    from reprise.diagnostics.sanity import sanity, table

    checks = sanity(*inputs)
    say(table(checks))
    return int(not all(check.passed for check in checks))


def print_profile(inputs: tuple[Any, ...]) -> int:
    """Print the times of a training step, by the arguments of `train`; return 0."""
    from reprise.diagnostics.profile import profile

    say(profile(*inputs).table())
    return 0
