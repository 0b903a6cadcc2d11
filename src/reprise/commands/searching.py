"""Which setting, which network: searches whose trials are experiments of DVC."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from reprise.commands.registry import argument, command, here
from reprise.commands.settings import fetched
from reprise.runtime.errors import UserError, say


@command(argument("models", nargs="*", metavar="MODEL", help="of timm, or MODEL=PATH (those of data/weights)"))
def backbones(options: Namespace) -> None:
    """Rank pretrained networks on your training data, each frozen, under a linear head.

    reprise backbones                                          those whose weights are in data/weights
    reprise backbones resnet18.a1_in1k                         fetched there, where a network is
    reprise backbones vit_tiny_patch16_224=data/weights/vit.safetensors

    By accuracy on the validation split, with the interval of the difference to the best one, size and seconds. Each is
    an experiment, which `dvc exp apply` takes over; what was tried before is in DVC's cache. Writes runs/backbones.
    """
    from reprise.params.load import load_params
    from reprise.runtime.environment import before_torch

    project = here()
    train = load_params(project.root / "params.yaml").train
    before_torch(train.threads, train.reproducible)
    from reprise.runtime.markup import html
    from reprise.search.backbones import candidates, picture, rank, ranking

    models = candidates(project.root, options.models, lambda name: fetched(project, name)[0])
    found = rank(project, models, lambda line: say(f"backbones: {line}", sys.stderr))
    folder = project.root / "runs/backbones"
    page = f"# Which backbone?\n\n{ranking(found)}\n\n![Validation accuracy over parameters](backbones.svg)\n"
    (folder / "backbones.svg").write_text(picture(found), encoding="utf-8")
    (folder / "report.md").write_text(page, encoding="utf-8")
    (folder / "report.html").write_text(html(page), encoding="utf-8")
    say(f"{ranking(found)}\nbackbones: {len(found)} tried -> {project.short(folder / 'report.md')}")


@command(
    argument("what", nargs="+", metavar="FILE | key=values", help="sweeps/NAME.yaml, or what each parameter may be"),
    argument("--name", default="sweep", help="of a sweep given by parameters (sweep)"),
    argument("--trials", type=int, metavar="N", help="how many (20)"),
    argument("--confirm", type=int, choices=range(3, 21), metavar="SEEDS", help="compare the best with the baseline"),
    argument("--apply", action="store_true", help="write the best into params.yaml"),
    argument("--jobs", type=int, default=1, metavar="N", help="trials at a time (1)"),
    argument("--storage", metavar="FOLDER | URL", help="by which several machines share the sweep"),
)
def sweep(options: Namespace) -> None:
    """Try settings, each as an experiment of DVC, and find the best on validation data.

    reprise sweep sweeps/example.yaml
    reprise sweep --trials 20 'train.lr=log(1e-4,1e-1)' 'model.name=resnet18|resnet34' sampler=random

    The second writes sweeps/sweep.yaml. A parameter: a|b|c, log(low,high), float(low,high), int(low,high,step), or one
    value. Whatever ends a sweep, the same command goes on. The test split is not looked at. See docs/sweeps.md.
    """
    from reprise.params.load import parse
    from reprise.search.confirm import conclude
    from reprise.search.study import begin
    from reprise.search.sweep import run_sweep

    project, changes = here(), {} if options.trials is None else dict[str, Any](trials=options.trials)
    changes |= {"shared": True} if options.storage else {}
    if "=" in options.what[0]:
        name, given = options.name, dict(text.partition("=")[::2] for text in options.what)
        changes |= {key: parse(text, key) for key, text in given.items() if "." not in key}
        changes["space"] = {key: text for key, text in given.items() if "." in key}
    else:
        name = Path(options.what[0]).stem
        if len(options.what) > 1 or Path(options.what[0]).resolve() != project.root / f"sweeps/{name}.yaml":
            raise UserError(f"{' '.join(options.what)}: give one file sweeps/NAME.yaml, or parameters key=values")
    definition = begin(project, name, changes)
    if definition.shared and not options.storage:
        raise UserError(f"{name}: this sweep is shared by several machines; give its --storage")
    found = run_sweep(project, definition, options.jobs, options.storage)
    conclude(project, definition, found, options.confirm, options.apply)
