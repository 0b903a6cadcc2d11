"""Show the test metrics over the commits of this branch, as a table and as a picture.

python src/history.py                 accuracy, loss, F1 and calibration error -> runs/history.svg
python src/history.py ece flops       these metrics
"""

import argparse
import sys
from pathlib import Path

from reprise.comparison.history import chosen, history, picture, table
from reprise.repo.workspace import Workspace
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import one_line_errors

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Read the commits, print the table, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metric", nargs="*", help="a metric of metrics/test.json")
    workspace = Workspace.at(ROOT)
    points = history(workspace)
    names = chosen(points, parser.parse_args().metric)
    with publishing(ROOT / "runs/history.svg") as (page,):
        page.write_text(picture(points, names), encoding="utf-8")
    print(table(points, names))
    print(f"history: {len(points):,} points -> runs/history.svg")
    if workspace.git("rev-parse", "--is-shallow-repository").strip() == "true":
        print("history: a shallow clone, earlier commits are missing: `git fetch --unshallow`", file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main()
