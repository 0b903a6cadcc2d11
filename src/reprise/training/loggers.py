"""Loggers beside the tracked files, by name: Lightning's own, each an optional extra that is imported only when named.

Their services and offline modes are set as each of them documents it (WANDB_MODE, MLFLOW_TRACKING_URI, ...); without
settings everything stays in files. None changes a result.
"""

from collections.abc import Callable, Collection
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from reprise.params.resolve import check_loggers
from reprise.params.schema import LoggerName


def create_loggers(names: Collection[LoggerName], folder: Path, run: str) -> list[Logger]:
    """Return a logger for each name, with its files in `folder/NAME`; run: the name that a service shows.

    Raises UserError for one that is not installed.
    """
    check_loggers(names)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    return [CREATE[name](folder / name, run) for name in dict.fromkeys(names)]


def _mlflow(folder: Path, run: str) -> Logger:
    import mlflow

    # MLflow 3 refuses folders of files, Lightning's default: a data base where no server is named
    named = mlflow.is_tracking_uri_set()
    uri = mlflow.get_tracking_uri() if named else f"sqlite:///{folder.resolve()}/mlflow.db"
    artifacts = None if named else str(folder.resolve() / "artifacts")
    return MLFlowLogger("reprise", run_name=run, tracking_uri=uri, artifact_location=artifacts)


def _dvclive(folder: Path, run: str) -> Logger:
    from dvclive.lightning import DVCLiveLogger

    # as it comes, it rewrites the root's dvc.yaml, makes an experiment, and removes what an earlier part logged
    return DVCLiveLogger(run, dir=str(folder), resume=True, report=None, save_dvc_exp=False, dvcyaml=None)


CREATE: dict[LoggerName, Callable[[Path, str], Logger]] = {
    "tensorboard": lambda folder, run: TensorBoardLogger(folder, name=None, version=""),
    "wandb": lambda folder, run: WandbLogger(project="reprise", name=run, save_dir=folder),
    "mlflow": _mlflow,
    "dvclive": _dvclive,
}


class LearningRate(Callback):
    """Logs the largest learning rate at the end of each epoch, beside the losses, before a user's callbacks look."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rate as `lr`."""
        pl_module.log("lr", max(group["lr"] for group in trainer.optimizers[0].param_groups))
