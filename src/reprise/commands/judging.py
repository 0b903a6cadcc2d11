"""Is it better, and does it hold: comparisons, reviews, the course of experiments."""

import hashlib
import os
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from reprise.commands.registry import argument, command, here
from reprise.runtime.errors import UserError, first, say

if TYPE_CHECKING:
    from reprise.repo.project import Project


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


@command(
    argument("version", help="such as v1.2.0"),
    argument("--anyway", action="store_true", help="even if it is worse than the last release, or not comparable"),
)
def release(options: Namespace) -> None:
    """Give the model of the last commit a version: a Git tag such as model@v1.2.0, as GTO writes it.

    Refused where files are not what dvc.lock records, and where the model is that of the last release or, by the paired
    comparison, worse. `gto show` lists the versions, `dvc artifacts get` fetches one.
    """
    from reprise.comparison.release import release

    for line in release(here(), options.version, options.anyway):
        say(f"release: {line}")


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
    say(f"history: test metrics, {len(points):,} point{'s' * (len(points) != 1)} -> runs/history.svg")
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


# Ten well-known data sets have 3.3 % of wrong labels on average and 10 % at most (Northcutt, Athalye and Mueller,
# NeurIPS Datasets and Benchmarks 2021): models that disagree with more labels than that are mostly wrong themselves.
AGREED = 0.9
FEW = 10  # suggestions that one may accept after a look at their pictures


def number(text: str) -> int:
    """Return a number, the largest for `all`."""
    return sys.maxsize if text == "all" else max(0, int(text))


@command(
    argument("--folds", type=int, default=5, help="of the cross-validation (default: %(default)s)"),
    argument("--accept", type=number, metavar="N", help="take over the first N suggestions, or all; train nothing"),
    argument("--review", action="store_true", help="decide on a page, by keyboard"),
    argument("--next", type=int, metavar="N", help="label N images of data/unlabelled on that page"),
    argument("--port", type=int, default=8001, help="of the page, on this machine alone (8001; 0: any that is free)"),
)
def labels(options: Namespace) -> None:
    """Find labels that are probably wrong, by models that have not seen the images.

    reprise labels                train what is missing of five folds -> runs/labels
    reprise labels --accept 10    write the first 10 suggestions of runs/labels/labels.csv into data/corrections.csv
    reprise labels --accept all   all of them, if the models agree with 90 % of the labels
    reprise labels --review       the page: http://127.0.0.1:8001
    reprise labels --next 100     the 100 images of data/unlabelled from which the model would learn most

    `git diff` shows the corrections; commit them, and `dvc repro` trains with them.
    """
    from reprise.data.prepare.corrections import CORRECTIONS, read_corrections
    from reprise.labels.report import doubts, write_report
    from reprise.labels.run import examine
    from reprise.repo.trials import workspace
    from reprise.runtime.atomic import publishing

    project = here()
    folder, decided = project.root / "runs/labels", read_corrections(project.root / CORRECTIONS)
    modes = options.review + (options.next is not None) + (options.accept is not None)
    if modes > 1 or (options.next is not None and options.next < 1):
        raise UserError("labels: --review, --next N of 1 and more, or --accept, one at a time")
    if options.review or options.next is not None:
        return review_labels(project, options.next, options.port)
    if options.accept is not None:
        return accept(project, options.accept, set(decided))
    project.refuse_edits("the folds are experiments of the last commit")
    with workspace(project, project.git("rev-parse", "HEAD").strip()) as tree, publishing(folder) as (partial,):
        summary = write_report(found := examine(project, tree, options.folds), doubts(found, decided), partial)
    say(f"labels: {summary} -> {project.short(folder / 'labels.md')}")


def accept(project: "Project", most: int, decided: set[str]) -> None:
    """Write the first suggestions into data/corrections.csv; warn of images of the test split. decided: ids without.

    Raises UserError, and writes nothing, for a list of other data than data/raw, for a class DROP, and for more than
    FEW by models that agree with less than AGREED of the labels.
    """
    from reprise.data.formats.packed import load_split
    from reprise.data.prepare.corrections import CORRECTIONS, Correction, add_corrections, refuse_class_drop
    from reprise.labels.report import read_agreed, read_own_doubts

    folder, path = project.root / "runs/labels", project.root / CORRECTIONS
    doubts, archive = read_own_doubts(project)
    refuse_class_drop(path, archive.source.classes)
    rows = [row for row in doubts if row.suggested and row.id not in decided]
    taken, agreed = rows[:most], read_agreed(folder / "summary.json")
    if len(taken) > FEW and agreed < AGREED:
        much = f"labels: the models agree with {agreed:.1%} of the labels; below {AGREED:.0%} most suggestions are"
        raise UserError(f"{much} wrong: --accept at most {FEW}, or decide on each with `reprise labels --review`")
    by, why = project.git("config", "user.name", check=False).strip(), "reprise labels: was {0.label}, score {0.score}"
    add_corrections(path, [Correction(row.id, row.sha256, row.suggested, by, why.format(row)) for row in taken])
    say(f"labels: {len(taken):,} of {len(rows):,} suggestions -> {CORRECTIONS}; `dvc repro` uses them")
    with suppress(UserError):  # nothing is prepared yet
        if test := {row.id for row in taken}.intersection(load_split(project.root / "data/processed", "test").ids):
            say(f"labels: warning: {len(test):,} of them are of the test split: they measure the model", sys.stderr)


def review_labels(project: "Project", count: int | None, port: int) -> None:
    """Serve the page on which labels are reviewed or, with a count, so many unlabelled images get theirs."""
    from reprise.data.prepare.corrections import CORRECTIONS, refuse_class_drop
    from reprise.inference.predict import load_model
    from reprise.inference.serve import listening
    from reprise.labels import review
    from reprise.labels.next import to_label
    from reprise.params.load import load_params
    from reprise.runtime.atomic import Lock
    from reprise.runtime.environment import cpus

    lock, data = Lock(project.root / "runs/labels-page"), load_params(project.root / "params.yaml").data
    lock.path.parent.mkdir(exist_ok=True)
    if not lock.acquire(wait=False):
        raise UserError("labels: another page is open on this project; end it first")
    depth = data.depth if isinstance(data.depth, int) else 16
    with listening("127.0.0.1", port) as server:
        if count and data.name != "folder":
            raise UserError(f"data.name = {data.name}: images get labels in folders of classes, data.name: folder")
        if count:
            model = load_model(project.root / "models", runtime="torch", project=project.root)
            folder, classes = project.root / "data/unlabelled", model.card.classes
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; put the images there that are to get labels")
            own = review.class_folders(project.root / data.path, classes)
            book: review.Book = review.Unlabelled(folder, own, project.root / "runs/labels-moved.json")
            done = book.names and book.names == book.decided().keys()  # all have moved; they can still be taken back
            candidates, left_out = ([], []) if done else to_label(model, folder, count, cpus())
            if left_out:
                say(f"labels: {len(left_out):,} images left out: {first(left_out, 3, '; ')}", file=sys.stderr)
        else:
            candidates, book, classes = review.of_doubts(project)
        refuse_class_drop(project.root / CORRECTIONS, classes)
        say(f"labels: {len(candidates):,} images at http://127.0.0.1:{server.getsockname()[1]}, Ctrl-C ends")
        page = hashlib.sha256(f"{project.root} {bool(count)}".encode()).hexdigest()
        review.run(review.Review(candidates, book, classes, page, depth), server)
