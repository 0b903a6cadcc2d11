"""A planted group of test images that fails is found as the worst, and none is named where there is none.

    python benchmarks/groups.py

A logistic regression on scikit-learn's digits, of which the test images (900 of 1,797, drawn anew in each run) come
from five cameras at random. A run in which a group or pair is called worse than the rest where none is, is a false
alarm, of which 5 % are allowed. Then camera 3 is made to fail, by wrong labels or by blurred images, and `camera=3` has
to be the worst group. Groups are searched as the stage `evaluate` does it: the camera, which stands for a column of a
user's CSV, brightness, contrast and sharpness (measured after the blur), and pairs. The result is in
benchmarks/README.md.
"""

import argparse
import time

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from measure import machine
from reprise.evaluation.groups import LEVEL, Group, find_groups

TEST, CAMERAS, FAILS = 900, 5, 3


def failing(seed: int, blur: float = 0, wrong: float = 0, shuffled: bool = False) -> list[Group]:
    """Return the groups that are called worse than the rest, the worst first.

    blur: of the failing camera's images, standard deviation in pixels of 8 x 8; wrong: share of its answers that are
    made wrong. shuffled: which answers are right is dealt out at random, so that no group of any kind is worse.
    """
    generator = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    order = generator.permutation(len(images))
    test, train = order[:TEST], order[TEST:]
    model = LogisticRegression(C=0.01, max_iter=1000).fit(images[train].reshape(-1, 64), labels[train])
    cameras = generator.integers(1, CAMERAS + 1, TEST)
    seen, fails = images[test], cameras == FAILS
    seen[fails] = gaussian_filter(seen[fails], (0, blur, blur)) if blur else seen[fails]
    right = (model.predict(seen.reshape(-1, 64)) == labels[test]) & ~(fails & (generator.random(TEST) < wrong))
    right = generator.permutation(right) if shuffled else right
    pixels = (seen * 255 / 16).round().astype(np.uint8)[..., None]
    found = find_groups(pixels, {"camera": cameras.astype(str).tolist()}, right)
    return [group for group in found.judged if group.p <= LEVEL]


def main() -> None:
    """Run and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    runs = parser.parse_args().runs
    print(machine())
    start = time.process_time()
    false = [failing(seed, shuffled=True) for seed in range(runs)]
    print(f"answers dealt out at random: {sum(map(bool, false))} of {runs} runs name a group")
    alike = [failing(seed) for seed in range(runs)]
    cameras = sum(any("camera" in group.name for group in found) for found in alike)
    print(f"cameras alike: {cameras} of {runs} runs name one of a camera, {sum(map(bool, alike))} any group")
    for planted in ({"wrong": 0.1}, {"wrong": 0.15}, {"wrong": 0.3}, {"blur": 0.7}, {"blur": 0.85}, {"blur": 1.0}):
        results = [failing(seed, **planted) for seed in range(runs)]
        own = [group for found in results for group in found if group.name == f"camera={FAILS}"]
        worst = sum(bool(found) and found[0].name == f"camera={FAILS}" for found in results)
        others = sum(
            any("camera" in each.name and f"camera={FAILS}" not in each.parts for each in found) for found in results
        )
        accuracy = sum(group.right for group in own) / max(1, sum(group.images for group in own))
        print(
            f"{planted}: worst in {worst}, named in {len(own)} of {runs} runs, there with accuracy {accuracy:.3f}; "
            f"another camera named in {others}"
        )
    print(f"{time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
