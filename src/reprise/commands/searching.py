"""Which setting, which network: searches whose trials are experiments of DVC."""

import sys
from argparse import Namespace

from reprise.commands.registry import argument, command, here
from reprise.commands.settings import fetched
from reprise.runtime.errors import say


@command(argument("models", nargs="*", metavar="MODEL", help="of timm, or MODEL=PATH (those of data/weights)"))
def backbones(options: Namespace) -> None:
    """Rank pretrained networks on your training data, each frozen, under a linear head.

    reprise backbones                                          those whose weights are in data/weights
    reprise backbones resnet18.a1_in1k                         fetched there, where a network is
    reprise backbones vit_tiny_patch16_224=data/weights/vit.safetensors

    By accuracy on the validation split, with the interval of the difference to the best one, size and seconds. Each is
    an experiment, which `dvc exp apply` takes over; a second call tries what is new. Writes runs/backbones.
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
