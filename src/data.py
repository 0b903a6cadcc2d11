"""List the data sets that data.name can be: classes, images, splits, variants, and whether data.mirror works.

python src/data.py
"""

import argparse

from reprise.data.download.torchvision_sets import LEFT_OUT, TORCHVISION_SETS


def main() -> None:
    """Print the table, and what of torchvision is not in it."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    line = "{:<21}{:>7}{:>11}  {:<18}{:<8}{}"
    print(line.format("data.name", "classes", "images", "splits", "mirror", "data.split (the first is the default)"))
    print(line.format("digits", 10, "1,797", "unsplit", "-", ""))
    print(line.format("folder", "", "", "yours", "-", "your own images at data.path"))
    print(line.format("archive", "", "", "yours", "-", "the same in a .zip, .tar or .tar.gz, at data.path or data.url"))
    for name, row in TORCHVISION_SETS.items():
        mirror = "yes" if row.mirror else "-"
        rest = "; ".join(filter(None, [", ".join(row.variants or ()), row.note]))
        print(line.format(name, f"{row.classes:,}", f"{row.images:,}", ", ".join(row.splits), mirror, rest).rstrip())
    print("\nNot of use here, of torchvision's:")
    print(*(f"  {reason}: {', '.join(names)}" for reason, names in LEFT_OUT.items()), sep="\n")


if __name__ == "__main__":
    main()
