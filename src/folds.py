"""Summarise the cross-validations among the current commit's experiments: mean and standard deviation over the folds.

dvc exp run --queue -S data.folds=5 -S 'data.fold=0,1,2,3,4'
dvc queue start
python src/folds.py
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from reprise.repo.crossvalidation import finished_runs, summarise
from reprise.runtime.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Ask DVC for the experiments, print the tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError("`dvc exp show` failed, see above")
    summary = summarise(finished_runs(json.loads(done.stdout)))
    if not summary:
        raise UserError(
            "this commit has no finished experiment with data.folds; queue them with "
            "dvc exp run --queue -S data.folds=5 -S 'data.fold=0,1,2,3,4', then `dvc queue start`"
        )
    print(summary)


if __name__ == "__main__":
    with one_line_errors():
        main()
