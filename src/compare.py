"""Say whether one revision's model is better than another's, what changed, and which images broke.

python src/compare.py                       the workspace against main
python src/compare.py main try-resnet18     branches, tags, commits, names of DVC experiments
python src/compare.py v1.0 workspace --fail-on regression

Writes report.md and its pictures. Exits with 0; with --fail-on regression with 3 where HEAD is worse than BASE or has
metrics that are no numbers.
"""

import argparse
import sys
from pathlib import Path

from reprise.comparison.compare import compare
from reprise.comparison.report import summary, write
from reprise.repo.revisions import WORKSPACE
from reprise.runtime.errors import one_line_errors

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Compare, write the report, print the short version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="main", help="compared with (main)")
    parser.add_argument("head", nargs="?", default=WORKSPACE, help="what is new (workspace)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/compare", help="folder for the report (runs/compare)")
    parser.add_argument("--seeds", action="store_true", help="judge by all experiments over train.seed")
    parser.add_argument("--fail-on", choices=["regression"], help="exit with 3 on a regression")
    arguments = parser.parse_args()
    found = compare(ROOT, arguments.base, arguments.head, arguments.seeds)
    page = write(found, arguments.out)
    print(summary(found))
    print(f"compare: {found.head} against {found.base} -> {page}")
    if arguments.fail_on and found.regressed:
        sys.exit(3)


if __name__ == "__main__":
    with one_line_errors():
        main()
