"""`reprise COMMAND`: what a person types beyond src/train.py and src/eval.py, on the project in the working directory.

Each command imports what it needs when it is called, so that the help is quick, `doctor` works where torch does not,
and `review --post` needs the standard library alone.
"""

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprise.runtime.errors import UserError, one_line_errors, say

if TYPE_CHECKING:
    from reprise.repo.project import Project

Command = Callable[[Namespace], int | None]
Argument = tuple[tuple[str, ...], dict[str, Any]]
COMMANDS: list[tuple[Command, tuple[Argument, ...]]] = []


def argument(*names: str, **options: Any) -> Argument:
    """Return names and options of an argument, for `ArgumentParser.add_argument`."""
    return names, options


OVERRIDES = argument("overrides", nargs="*", metavar="key=value", help="a parameter of params.yaml and its new value")


def command(*arguments: Argument) -> Callable[[Command], Command]:
    """Make a function a subcommand: its docstring is the help, what it returns the exit code."""

    def add(run: Command) -> Command:
        COMMANDS.append((run, arguments))
        return run

    return add


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code."""
    parser = ArgumentParser(
        prog="reprise",
        description="Judge and repair the project in the working directory. `reprise COMMAND --help` tells more.",
        epilog="`python src/train.py key=value` trains without the pipeline, `python src/eval.py` measures a model.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for run, its_arguments in COMMANDS:
        text = cleandoc(str(run.__doc__))
        sub = commands.add_parser(
            run.__name__, help=text.splitlines()[0], description=text, formatter_class=RawDescriptionHelpFormatter
        )
        sub.set_defaults(run=run)
        for names, settings in its_arguments:
            sub.add_argument(*names, **settings)
    with one_line_errors():
        options: Namespace = parser.parse_args(arguments)
        return int(options.run(options) or 0)


def here(check: bool = True) -> "Project":
    """Return the project that the working directory lies in; say so if a killed DVC left it in need of `doctor`."""
    from reprise.repo.doctor import say_if_needed
    from reprise.repo.project import Project

    project = Project.find(Path.cwd())
    if check:
        say_if_needed(project)
    return project


@command(
    argument("base", nargs="?", default="main", help="compared with (main)"),
    argument("head", nargs="?", default="workspace", help="what is new (workspace)"),
    argument("--out", type=Path, help="folder for the report (runs/compare)"),
    argument("--seeds", action="store_true", help="judge by all experiments over train.seed"),
    argument("--fail-on", choices=["regression"], help="exit with 3 on a regression"),
)
def compare(options: Namespace) -> int:
    """Say whether one revision's model is better than another's.

    reprise compare                       the workspace against main
    reprise compare main try-resnet18     branches, tags, commits, names of DVC experiments
    reprise compare v1.0 workspace --fail-on regression

    Says what changed and which images broke; writes report.md and its pictures. Exits with 0; with --fail-on regression
    with 3 where HEAD is worse than BASE or has metrics that are no numbers.
    """
    from reprise.comparison.compare import compare
    from reprise.comparison.report import summary, write

    project = here()
    found = compare(project, options.base, options.head, options.seeds)
    page = write(found, options.out or project.root / "runs/compare")
    say(summary(found))
    say(f"compare: {found.head} against {found.base} -> {page}")
    return 3 if options.fail_on and found.regressed else 0


@command(
    argument("--base", metavar="BRANCH", help="the branch to merge into (that of the pull request, or main)"),
    argument("--remote", default="origin", help="the Git remote that has it (default: %(default)s)"),
    argument("--reproduce", action="store_true", help="run every stage anew"),
    argument("--fail-on", choices=["regression"], help="exit with 1 also if the model is worse"),
    argument("--out", type=Path, help="folder to write to (runs/review)"),
    argument("--post", type=Path, metavar="PAGE", help="only post this page"),
)
def review(options: Namespace) -> int:
    """Review the branch that is checked out, as CI does, on one page.

    reprise review                                   against main: runs/review/comment.md, report and pictures
    reprise review --base develop --reproduce        against another branch; run the whole pipeline anew first
    reprise review --post runs/review/comment.md     post the page as a comment, or update the one that is there

    Outs come from the DVC remote or, where none is set up, from the pipeline itself. Exits with 1 if dvc.lock is stale,
    if the results do not come out again, or if the comparison fails. Posting needs no packages, and these variables,
    which CI sets: on GitHub GITHUB_API_URL, GITHUB_REPOSITORY, GITHUB_TOKEN and PULL_REQUEST (its number), on GitLab
    CI_API_V4_URL, CI_MERGE_REQUEST_PROJECT_ID, CI_MERGE_REQUEST_IID and REVIEW_TOKEN.
    """
    if options.post:
        from reprise.comparison.comments import post_page

        say(f"review: posted, {post_page(options.post, os.environ)}")
        return 0
    from reprise.comparison.review import artifact_link, merge_base, review
    from reprise.repo.revisions import Revision

    project, variables = here(), os.environ
    out = options.out or project.root / "runs/review"
    named = (variables.get(name) for name in ("GITHUB_BASE_REF", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME"))
    base = merge_base(project, options.remote, options.base or next(filter(None, named), "main"))
    if not options.base and base.commit == project.git("rev-parse", "HEAD").strip() and not project.changed("HEAD"):
        parent = project.git("rev-parse", "--verify", "--quiet", "HEAD^", check=False).strip()  # on main itself
        base = Revision(project, "HEAD^", parent) if parent else base
    artifact = artifact_link(project.short(out), variables)
    page, passed = review(project, base, out, artifact, options.reproduce, bool(options.fail_on))
    path = out / "comment.md"
    path.write_text(page, encoding="utf-8")
    say(page)
    say(f"review: {'passed' if passed else 'FAILED'} -> {path}", file=sys.stderr)
    return int(not passed)


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
def clean(options: Namespace) -> None:
    """Say what takes space on the disk, and remove what no commit and no experiment needs.

    reprise clean          what there is, and what of it may go
    reprise clean --yes    remove that
    """
    from reprise.repo.disk import holdings, size
    from reprise.repo.processes import at_rest

    project = here()
    with at_rest(project):  # DVC's collection takes its lock itself, after this
        places = holdings(project, options.checkpoints)
    for path, taken, what, remove in places:
        if remove and options.yes:
            remove()
            what = f"{(taken - size(path)) / 2**20:,.1f} MiB removed"
        say(f"{taken / 2**20:10,.1f} MiB  {project.short(path)}: {what}")


@command()
def experiments(options: Namespace) -> None:
    """List the experiments of this commit: what each changed, and what it reached on which split.

    `dvc exp show` lists them with every parameter, `dvc exp apply NAME` takes one over.
    """
    from reprise.comparison.history import EXPERIMENT_METRICS, experiment_points, table

    say(table(experiment_points(here()), EXPERIMENT_METRICS, "experiment"))


@command(argument("metric", nargs="*", help="a metric of metrics/test.json"))
def history(options: Namespace) -> None:
    """Show the test metrics over the commits of this branch, as table and picture.

    reprise history                 accuracy, loss, F1 and calibration error -> runs/history.svg
    reprise history ece flops       these metrics
    """
    from reprise.comparison.history import chosen, history, picture, table
    from reprise.runtime.atomic import publishing

    project = here()
    points = history(project)
    names = chosen(points, options.metric)
    with publishing(project.root / "runs/history.svg") as (page,):
        page.write_text(picture(points, names), encoding="utf-8")
    say(table(points, names))
    say(f"history: {len(points):,} point{'s' * (len(points) != 1)} -> runs/history.svg")
    if project.is_shallow:
        say("history: a shallow clone, earlier commits are missing: `git fetch --unshallow`", file=sys.stderr)


@command()
def folds(options: Namespace) -> None:
    """Show mean and deviation over the folds of this commit's cross-validations.

    dvc exp run --queue -S data.folds=5 -S 'data.fold=0,1,2,3,4'
    dvc queue start
    reprise folds
    """
    from reprise.repo.crossvalidation import finished_runs, summarize

    if not (summary := summarize(finished_runs(here()))):
        queue = "dvc exp run --queue -S data.folds=5 -S 'data.fold=0,1,2,3,4', then `dvc queue start`"
        raise UserError(f"this commit has no finished experiment with data.folds; queue them with {queue}")
    say(summary)


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
        for name, (value, committed, default) in differing(parse(text), *trees).items():
            before = f"last commit {committed}, " if value != committed else ""
            say(f"{name}: {value} ({before}default {default})")
        return 0
    keys = options.reset or list(differing(parse(text), trees[0]))
    say(replace(path, reset(text, keys, committed, trees[1])) or "params.yaml: nothing to put back")
    if restored := restore_outs(project):
        say(f"came back: {', '.join(restored)}")
    allowed = project.dvc_shown("repro", "--quiet", "--single-item", "check")
    if allowed and stale(project):
        say("`dvc repro` makes the results of these params; those that were made before come from DVC's cache")
    return int(not allowed)


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
