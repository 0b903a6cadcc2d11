"""Stage 0: refuse params and corrections that are not allowed, before a later stage has lost its outs to DVC.

DVC removes them before it runs that stage. The out never changes, so that no stage runs anew because of it.
"""

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

from reprise.params.dependencies import Dependencies, load_record, param_values, record_path
from reprise.params.load import load_params
from reprise.params.reset import DEFAULTS
from reprise.params.resolve import check_loggers, watched_weights
from reprise.params.schema import Params
from reprise.runtime.atomic import publishing
from reprise.runtime.checksums import listing_md5
from reprise.runtime.environment import before_torch
from reprise.runtime.errors import UserError, one_line_errors

# what timm, torchmetrics and the network judge; that takes seconds, and is not asked for the last model's values and
# the defaults
BUILDING = re.compile(
    r"evaluate\.(budget|gates|metrics|coverage|risk)|model\.|data/weights|data\.(image_size|channels)"
    r"|train\.(backbone|compile|optimizer|schedule|layer_decay|reproducible|precision|start_size|augment\.(crop|hue|saturation))"
)
WEIGHTS, CORRECTIONS = Path("data/weights"), "data/corrections.csv"


def main() -> None:
    """Read the params, have the library judge them, publish."""
    dependencies = Dependencies.of_stage("check")
    with publishing(Path("data/records/check.txt"), check=dependencies.check) as (out,):
        params = dependencies.begin()
        try:
            check(params, dependencies.record().inputs)
        except UserError as error:
            way_out = "put back what it was: `reprise params` shows it, `reprise params --reset KEY` does it"
            raise UserError(f"{error}\n{way_out}") from None
        if dependencies.record().inputs[CORRECTIONS] != last_used().get(CORRECTIONS):
            check_corrections()
        out.write_text("params.yaml is allowed\n", encoding="utf-8")


def check(params: Params, inputs: dict[str, str]) -> None:
    """Raise UserError for params that a later stage would refuse; inputs: {path: MD5}, with data/weights among them."""
    weights = watched_weights(params.model.weights, WEIGHTS)
    train, values, known = params.train, param_values(params), last_used()
    check_loggers(train.loggers)
    if params.data.split or params.data.mirror:
        from reprise.data.download.sources import check_source

        check_source(params.data.source)
    # always looked at: GPUs, which this machine may lack, code of the user's own, a batch of one image
    gpus = train.accelerator == "gpu" or train.devices not in (1, "auto")
    always = gpus or "project/" in str(params) or train.batch_size == 1
    asked = {name: value for name, value in (values | inputs).items() if BUILDING.match(name)}
    default = param_values(load_params(DEFAULTS)) | {str(WEIGHTS): listing_md5({})}
    if always or not (asked.items() <= default.items() or asked.items() <= (default | known).items()):
        before_torch(train.threads, train.reproducible)
        from reprise.data.formats.packed import load_metadata, load_split
        from reprise.evaluation.evaluate import check_budget, check_metrics
        from reprise.evaluation.fitting import check_images
        from reprise.evaluation.gates import check_names
        from reprise.training.setup import check_settings

        data, prepared = {name: value for name, value in values.items() if name.startswith("data.")}, None
        if not params.data.is_own and data.items() <= known.items():  # the same public data set, prepared alike
            with suppress(UserError):
                prepared = load_metadata(Path("data/processed"))
        check_names(params.evaluate.gates, prepared.classes if prepared else None)
        network = check_settings(params, weights, prepared)
        if network is not None:  # with more classes than two, if they are not known yet, it needs more
            parameters = sum(weight.numel() for weight in network.parameters())
            check_budget({"parameters": parameters, "size_mb": 4e-6 * parameters}, params.evaluate.budget)
        check_metrics(params.evaluate.metrics)
        if prepared and (params.evaluate.coverage or params.evaluate.risk):
            images = Counter(load_split(Path("data/processed"), "val").labels.tolist())
            check_images(prepared.classes, [images[label] for label in range(len(prepared.classes))], params.evaluate)


def check_corrections() -> None:
    """Raise UserError for corrections that are no table, or do not fit the raw data, if these are there already."""
    from reprise.data.formats.raw import RawArchive
    from reprise.data.prepare.corrections import apply_corrections, read_corrections

    read_corrections(Path(CORRECTIONS))
    download = Dependencies.of_stage("download")
    try:
        archive = RawArchive(Path("data/raw"))
        download.begin()
        download.check_earlier("download")
    except UserError:
        return  # it brings the data first, or other data
    apply_corrections(Path(CORRECTIONS), archive)


def last_used() -> dict[str, object]:
    """Return the params and inputs that the stages have run with, from their records."""
    used: dict[str, object] = {}
    for stage in ("download", "preprocess", "train", "evaluate"):
        with suppress(FileNotFoundError, ValueError):
            record = load_record(Path(record_path(stage)))
            used |= record.params | record.inputs if record else {}
    return used


if __name__ == "__main__":
    with one_line_errors():
        main()
