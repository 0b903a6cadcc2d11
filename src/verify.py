"""Check that the workspace and DVC's cache hold the bytes that dvc.lock records; name every file that differs.

    python src/verify.py

Hashes everything anew (DVC itself trusts a corrupted cache) and ends with the commands that put it right.
"""

import argparse
import sys
from pathlib import Path

from reprise.repo.verify import verify
from reprise.runtime.errors import one_line_errors

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Hash, compare, print; exit with 1 if anything differs."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = verify(ROOT)
    checked = f"{found.stages} stages, {found.files:,} files, {found.bytes:,} bytes hashed"
    if not found.findings:
        print(f"verify: {checked}: workspace and cache are what dvc.lock records")
        return
    print(*found.findings, sep="\n")
    print(f"verify: {checked}: {len(found.findings)} not as dvc.lock records. The way out, in this order:")
    print(*(f"  {command}" for command in found.repairs), sep="\n")
    sys.exit(1)


if __name__ == "__main__":
    with one_line_errors():
        main()
