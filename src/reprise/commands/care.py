"""The project as a whole: verified, run anew, repaired, cleaned, begun and updated."""

import sys
from argparse import Namespace

from reprise.commands.registry import OVERRIDES, argument, command, here
from reprise.runtime.errors import say


@command(argument("name", help="the project's name, on its README and its model's card"))
def start(options: Namespace) -> None:
    """Make a clone of Reprise a project of your own, in one commit.

    Records in reprise.json the version it begins with. The results on digits go; the README becomes the project's, that
    of Reprise is docs/reprise.md.
    """
    from reprise.repo.versions import start

    say(f"start: {start(here(), options.name)}; `git show --stat` lists what that changed")


@command(
    argument("source", nargs="?", help="remote, address or folder of Reprise (as reprise.json has it)"),
    argument("--to", metavar="VERSION", default="", help="this version (the newest)"),
)
def update(options: Namespace) -> None:
    """Merge a newer version of Reprise into your project, in one commit.

    reprise update                          the newest version of where this project was cloned from
    reprise update ../reprise --to 1.2.0

    Values of params.yaml stay, new keys come in; data/, project/, metrics/, dvc.lock, README.md and the model's card
    are not touched. Exits with 1 where other files conflict, with the merge unfinished.
    """
    from reprise.repo.versions import update

    for line in update(here(), options.source, options.to):
        say(f"update: {line}")


@command(argument("--epochs", type=int, default=2, metavar="N", help="of the short trainings (2)"))
def keep(options: Namespace) -> None:
    """Keep the trained model after a change of the code, if a short training shows that no bit changes.

    Trains for a few epochs by the code that trained the model and by the last commit's, on your data and params. Where
    weights, history and metrics are the same bytes, dvc.lock and the model's card record that, and `dvc repro` does not
    train again. Exits with 1, and nothing is recorded, if they differ, or if params or data have changed as well.
    """
    from reprise.repo.keep import keep

    for line in keep(here(), options.epochs):
        say(f"keep: {line}")


@command()
def verify(options: Namespace) -> int:
    """Name every file that is not as dvc.lock records it.

    Hashes workspace and cache anew (DVC itself trusts a corrupted cache) and ends with the commands that put it right.
    Exits with 1 if anything differs.
    """
    from reprise.repo.verify import verify

    found = verify(here())
    for path, stage, what in found.mismatches:
        say(f"{path}, stage {stage}: {what}")
    said = "workspace and cache are what dvc.lock records"
    if found.mismatches:
        said = f"{len(found.mismatches)} not as dvc.lock records. The way out, in this order:"
    say(f"verify: {len(found.stages)} stages, {len(found.hashes):,} files, {found.bytes:,} bytes hashed: {said}")
    for line in found.repairs:
        say(f"  {line}")
    return int(bool(found.mismatches))


@command(OVERRIDES)
def reproduce(options: Namespace) -> None:
    """Prove that `dvc repro` gives the same bytes every time, by running it twice.

    reprise reproduce                   with the params of the commit
    reprise reproduce train.epochs=2    with some changed, e.g. to be quicker

    Two fresh clones of the commit, each with an empty cache of its own, differ in folder, time zone, locale, umask,
    hash seed, order of directories and number of CPUs (and with it of workers). All outs are compared byte for byte,
    and then dvc.lock. Takes two runs of the pipeline, and the disk space of two, in the system's temporary folder.
    """
    from reprise.repo.reproduce import reproduce

    if first := reproduce(here(), options.overrides):
        sys.exit(f"reproduce: the two runs differ, first in {first}")


@command(
    argument("--dry-run", action="store_true", help="print the findings, change nothing"),
    argument("--check", action="store_true", help="only say in a line whether it is needed"),
)
def doctor(options: Namespace) -> int:
    """Put a workspace right after a DVC that was killed.

    Says each finding and what is done about it, and does it. Exits with 0 if all is well now, with 1 if DVC still works
    here, or something is yours to decide.
    """
    from reprise.repo.doctor import examine, repairs
    from reprise.repo.processes import at_rest

    project = here(check=options.check)
    if options.check:
        return 0
    published = [project.root / folder for folder in ("data", "models", "metrics", "runs", "runs/data")]
    found = []
    with at_rest(project):
        for leftover in (examine if options.dry_run else repairs)(project, published):
            say(f"{leftover.problem}\n  -> {leftover.remedy}")
            found.append(leftover.repair)
            if leftover.repair and not options.dry_run:
                leftover.repair()
    if not found:
        say("nothing to do")
    return int(None in found)


@command(
    argument("--yes", action="store_true", help="remove what may go"),
    argument("--checkpoints", action="store_true", help="those of stopped trainings may go as well"),
)
def clean(options: Namespace) -> int:
    """Say what takes space on the disk, and remove what no commit and no experiment needs.

    reprise clean          what there is, and what of it may go
    reprise clean --yes    remove that

    Exits with 1 if DVC could not clean its cache.
    """
    from reprise.repo.disk import holdings, size
    from reprise.repo.processes import at_rest

    project = here()
    with at_rest(project):  # DVC's collection takes its lock itself, after this
        places = holdings(project, options.checkpoints)
    failed = False
    for path, taken, what, remove in places:
        if remove and options.yes:
            failed |= remove() is False
            what = f"{(taken - size(path)) / 2**20:,.1f} MiB removed"
        say(f"{taken / 2**20:10,.1f} MiB  {project.short(path)}: {what}")
    return int(failed)
