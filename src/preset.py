"""List the presets, or rewrite params.yaml with one: its values change, its comments stay, the difference is shown.

    python src/preset.py
    python src/preset.py mnist-99

`python src/train.py --preset mnist-99` uses one for a run and leaves params.yaml alone.
"""

import argparse
import difflib
from pathlib import Path

from reprise.params.presets import applied, describe, find_preset
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import one_line_errors

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Print the presets, or apply one and print what changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="the preset to write into params.yaml; none: list them")
    name = parser.parse_args().name
    if name is None:
        print("\n\n".join(f"{path.stem}\n{describe(path)}" for path in sorted((ROOT / "presets").glob("*.yaml"))))
        return
    params = ROOT / "params.yaml"
    preset = find_preset(ROOT / "presets", name)
    before, after = params.read_text(encoding="utf-8"), applied(preset, params)
    with publishing(params) as (partial,):
        partial.write_text(after, encoding="utf-8")
    titles = "params.yaml", f"params.yaml with {name}"
    difference = difflib.unified_diff(before.splitlines(), after.splitlines(), *titles, lineterm="", n=0)
    print("\n".join(difference) or f"params.yaml has the values of {name} already")


if __name__ == "__main__":
    with one_line_errors():
        main()
