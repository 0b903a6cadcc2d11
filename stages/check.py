"""Stage 0: refuse params that are not allowed, before a later stage has lost its outs to DVC, which removes them first.

The out never changes, so that no stage runs anew because of it.
"""

from contextlib import suppress
from pathlib import Path

from reprise.params.dependencies import Dependencies, load_record, param_values, record_path
from reprise.params.load import load_params
from reprise.params.reset import DEFAULTS
from reprise.params.schema import Params
from reprise.runtime.atomic import publishing
from reprise.runtime.environment import before_torch
from reprise.runtime.errors import UserError, one_line_errors

# what timm and torchmetrics judge; that takes seconds, and is not asked for the last model's values and the defaults
BUILDING = (
    *("model.", "data.image_size", "data.channels", "evaluate.metrics"),
    *("train.optimizer", "train.schedule", "train.layer_decay", "train.reproducible"),
)


def main() -> None:
    """Read the params, have timm judge its own, publish."""
    dependencies = Dependencies.of_stage("check")
    with publishing(Path("data/records/check.txt"), check=dependencies.check) as (out,):
        params = dependencies.begin()
        if "project/" in str(params) or not is_known(params):
            before_torch(params.train.threads, params.train.reproducible)
            import torch

            from reprise.evaluation.evaluate import extra_metric
            from reprise.training.setup import check_settings

            weights = Path(params.model.weights)
            given = weights.is_file() or any(path.name[0] != "." for path in weights.glob("*"))
            try:
                check_settings(params, given)
                for name in params.evaluate.metrics:
                    if not name.startswith("project/"):
                        extra_metric(name, torch.full((4, 4), 0.25), torch.arange(4))
            except UserError as error:
                way_out = "put back what it was: `reprise params` shows it, `reprise params --reset KEY` does it"
                raise UserError(f"{error}\n{way_out}") from None
        out.write_text("params.yaml is allowed\n", encoding="utf-8")


def is_known(params: Params) -> bool:
    """Return whether the published model was built with the same settings, or they are the defaults."""
    known: dict[str, object] = dict(param_values(load_params(DEFAULTS)))
    asked = {name: value for name, value in param_values(params).items() if name.startswith(BUILDING)}
    if asked.items() <= known.items():
        return True
    for stage in ("preprocess", "train", "evaluate"):
        with suppress(FileNotFoundError, ValueError):
            record = load_record(Path(record_path(stage)))
            known |= record.params if record else {}
    return asked.items() <= known.items()


if __name__ == "__main__":
    with one_line_errors():
        main()
