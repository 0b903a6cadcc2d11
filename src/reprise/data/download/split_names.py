"""Names of splits as people write them: `Training`, `test_set`, `seg_train`, `valid`, `holdout`."""

import re
from collections import defaultdict
from collections.abc import Iterable

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
ADDED = "is|sets?|split|data|dataset|images?|imgs?|photos|pictures|folder"
GLUED = re.compile(f"({'|'.join(WORDS)})({ADDED})")  # testset


def named_split(name: str) -> tuple[str, str]:
    """Return the split that a name holds ("" for none or two) and its other words, lower case, without ADDED."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[^\W\dA-Z_]+|[A-Z]+", name)]
    words = [glued[1] if (glued := GLUED.fullmatch(word)) else word for word in words]
    found = {WORDS[word] for word in words if word in WORDS}
    others = [word for word in words if word not in WORDS and not re.fullmatch(ADDED, word)]
    return found.pop() if len(found) == 1 else "", " ".join(others)


def plain_split(name: str) -> str:
    """Return the split that a name stands for and nothing else; "" for any other name."""
    split, others = named_split(name)
    return "" if others else split


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Return {name: split} of those folders that are plainly splits beside each other: train and another, alike."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        split, others = named_split(name)
        if split:
            groups[others][name] = split
    return next((group for group in groups.values() if {"train"} < set(group.values())), {})
