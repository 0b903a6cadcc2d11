"""Put a workspace right after a DVC that was killed: each finding and what is done about it, then doing it.

python src/doctor.py             exit 0: all is well now; 1: DVC still works here, or something is yours to decide
python src/doctor.py --dry-run   only say it
"""

import argparse
from pathlib import Path

from reprise.repo.doctor import examine
from reprise.repo.workspace import Workspace, at_rest
from reprise.runtime.errors import one_line_errors

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = [ROOT / folder for folder in ("data", "models", "metrics", "runs", "runs/data")]


def main() -> int:
    """Examine; say and repair one finding after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print the findings, change nothing")
    dry_run = parser.parse_args().dry_run
    workspace = Workspace.at(ROOT)
    with at_rest(workspace):
        findings = examine(workspace, PUBLISHED)
        for finding in findings:
            print(f"{finding.problem}\n  -> {finding.remedy}", flush=True)
            if finding.repair and not dry_run:
                finding.repair()
    if not findings:
        print("nothing to do")
    return int(any(finding.repair is None for finding in findings))


if __name__ == "__main__":
    with one_line_errors():
        raise SystemExit(main())
