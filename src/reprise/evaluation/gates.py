"""Gates: bars that the published model has to reach, each with the lower end of an interval."""

from collections.abc import Collection, Iterable, Mapping

from reprise.evaluation.evaluate import Evaluation
from reprise.evaluation.groups import SMALLEST
from reprise.runtime.errors import UserError, brief, listed, nearest
from reprise.runtime.intervals import wilson


def check_names(gates: Iterable[str], classes: Iterable[str] | None = None) -> None:
    """Raise UserError for a gate of no known kind and, where the classes are known, for one of another class."""
    names = [gate.partition(".")[2] for gate in gates] if classes is None else list(classes)
    known = ["accuracy", *(f"{kind}.{name}" for kind in ("recall", "precision") for name in names)]
    _refuse_others([gate for gate in gates if not gate.startswith("group.")], known)


def check_gates(found: Evaluation, gates: Mapping[str, float], level: float) -> None:
    """Raise UserError, naming each miss, where the lower end of Wilson's interval at this level is below a gate.

    A class without test images, or that is never predicted, reaches none. Raises UserError as `check_names` does, and
    for a group that is unknown or has fewer images than SMALLEST.
    """
    counts = {"accuracy": (int(found.confusion.diag().sum()), len(found.labels))}
    for name, right, images, claimed in found.class_counts():
        counts |= {f"recall.{name}": (right, images), f"precision.{name}": (right, claimed)}
    counts |= {f"group.{group.name}": (group.right, group.images) for group in found.groups.judged}
    _refuse_others(gates, counts)
    missed = []
    for gate, bar in gates.items():
        low, high = wilson(*counts[gate], level)
        if not low >= bar:
            said = "{:,} of {:,} images right, {:.6g} % interval {:.4f} to {:.4f}"
            missed.append(f"evaluate.gates.{brief(gate)} = {bar}: {said.format(*counts[gate], 100 * level, low, high)}")
    if missed:
        raise UserError(f"{'; '.join(missed)}; get a better model or more test images, or lower the bar")


def _refuse_others(gates: Iterable[str], known: Collection[str]) -> None:
    for gate in gates:
        if gate not in known:
            near = nearest(gate, known)
            hint = f"did you mean {listed(near)}?" if near else f"there are {listed(list(known))}"
            why = f"no metric with an interval, class, or group of at least {SMALLEST} test images and not all of them"
            raise UserError(f"evaluate.gates: {brief(gate)}: {why}; {hint}")
