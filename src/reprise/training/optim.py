"""Optimizers and learning rate schedules by timm's names; one-cycle, plateau and the fused kernels are torch's.

Norms and biases are never decayed. Each parameter group carries a learning rate of its own, which every schedule
scales: lower for earlier layers (`layer_decay`) and for everything but the classifier (`backbone_lr`).
timm's Muon is made to orthogonalize in fp32 on CPUs: one without bf16 takes 4 to 32 times as long in bf16.
"""

import inspect
from typing import Any

import timm.optim.muon
import torch
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from reprise.params.schema import Reproducibility, TrainParams
from reprise.runtime.errors import UserError, nearest
from reprise.training.callbacks.finetuning import classifier_parameters

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # on CPUs and GPUs
# arguments of timm's that make the parameter groups, which are made here
DECIDED = set(inspect.signature(timm.optim.create_optimizer_v2).parameters) - {"momentum", "foreach", "kwargs"}
_orthogonal: Any = timm.optim.muon.zeropower_via_newtonschulz


def orthogonal(gradient: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return timm's approximation of the nearest orthogonal matrix to a gradient (rows, columns), in fp32 on CPUs."""
    if gradient.device.type == "cpu":
        kwargs.setdefault("dtype", torch.float32)
    return _orthogonal(gradient, *args, **kwargs)


timm.optim.muon.zeropower_via_newtonschulz = orthogonal  # type: ignore[assignment]  # Muon has no argument for it


def create_optimizer(network: nn.Module, params: TrainParams, parameters: object = None) -> Optimizer:
    """Return the optimizer for a timm model (or any module), fused where torch has that.

    parameters: those of the network, which `LitClassifier` hands over; names and layers decide the groups instead.
    Raises UserError for a name that timm does not know, cannot make here, or that refuses `optimizer_kwargs`.
    """
    kind = _check(params.optimizer, params.reproducible)
    if decided := DECIDED & set(params.optimizer_kwargs):
        raise UserError(f"train.optimizer_kwargs.{min(decided)}: not here, train.* has what decides it; remove it")
    kwargs = dict(params.optimizer_kwargs)
    # fused SGD wants a momentum of every weight or of none: not so once a frozen backbone joins in
    if kind in FUSED and not (kind is torch.optim.SGD and params.freeze_epochs):
        kwargs = {"fused": True} | kwargs
    try:
        groups = _parameter_groups(network, params)
        return timm.optim.create_optimizer_v2(groups, opt=params.optimizer, lr=params.lr, **kwargs)
    except ImportError as error:
        raise UserError(f"train.optimizer = {params.optimizer}: {error}; install it or choose another") from None
    except (TypeError, ValueError, RuntimeError) as error:
        given = "".join(f" {key}={value!r}" for key, value in params.optimizer_kwargs.items())
        what = f"timm cannot make it with optimizer_kwargs{given} ({error})"
        raise UserError(f"train.optimizer = {params.optimizer}: {what}") from None


def _check(name: str, reproducible: Reproducibility) -> Any:
    """Return timm's class of an optimizer; raise UserError, with the nearest names or the reason, if it cannot train.

    The class is a dotted name where another package has it.
    """
    base, names = name.removeprefix("lookahead_"), [str(known) for known in timm.optim.list_optimizers()]
    if base not in names:
        near = nearest(base, names)
        hint = f"did you mean {' or '.join(near)}?" if near else "`timm.optim.list_optimizers()` names them all"
        raise UserError(f"train.optimizer = {name!r} is not an optimizer of timm; {hint}")
    info = timm.optim.get_optimizer_info(base)
    if info.second_order:
        raise UserError(f"train.optimizer = {name}: it needs second derivatives, which this loop does not compute")
    if base.startswith("kron") and reproducible not in ("machine", "off"):
        raise UserError(f"train.optimizer = {name}: it is compiled for each machine; set train.reproducible: machine")
    if isinstance(info.opt_class, str) and not torch.cuda.is_available():
        package = info.opt_class.partition(".")[0]
        raise UserError(f"train.optimizer = {name}: it is {package}'s, which needs a CUDA GPU; timm's own need none")
    return info.opt_class


def _parameter_groups(network: nn.Module, params: TrainParams) -> list[dict[str, Any]]:
    undecayed: set[str] = getattr(network, "no_weight_decay", set)()  # e.g. position embeddings
    layers: dict[str, Any] = {} if params.layer_decay is None else {"layer_decay": params.layer_decay}
    groups_of = timm.optim.param_groups_layer_decay if layers else timm.optim.param_groups_weight_decay
    groups = groups_of(network, params.weight_decay, no_weight_decay_list=undecayed, **layers)
    head = classifier_parameters(network) if params.backbone_lr != 1 else set()
    parts = []
    for group in groups:
        lr = params.lr * group.pop("lr_scale", 1.0)
        for factor, chosen in ((params.backbone_lr, False), (1.0, True)):
            weights = [weight for weight in group["params"] if (weight in head) is chosen]
            if weights:
                parts.append({**group, "params": weights, "lr": lr * factor})
    return parts


def create_schedule(optimizer: Optimizer, params: TrainParams, steps: int) -> LRScheduler | ReduceLROnPlateau:
    """Return the schedule (any but none) of the groups' learning rates; steps: optimizer steps in an epoch.

    plateau steps after each epoch with what it monitors, any other after each optimizer step. step and multistep decay
    at defaults of the training unless `schedule_kwargs` says otherwise. Raises UserError for what they do not take.
    """
    epochs, warmup = params.epochs, params.warmup_epochs
    kwargs: dict[str, Any] = dict(params.schedule_kwargs)
    try:
        if params.schedule == "plateau":
            if words := [key for key, value in kwargs.items() if isinstance(value, str) and "mode" not in key]:
                raise TypeError(f"{words[0]} is no number")  # torch finds out when the loss stalls
            # "min": of a loss
            return ReduceLROnPlateau(optimizer, "min", **{"factor": 0.1, "patience": 3, **kwargs})
        if params.schedule == "onecycle":
            if warmup:
                kwargs = {"pct_start": warmup / epochs, **kwargs}
            peaks = [group["lr"] for group in optimizer.param_groups]
            return OneCycle(optimizer, peaks, total_steps=epochs * steps, **{"cycle_momentum": False, **kwargs})
        after = epochs - warmup
        defaults: dict[str, dict[str, Any]] = {
            "step": {"decay_epochs": after / 3},
            "multistep": {"decay_milestones": [after / 3, 2 * after / 3]},
            "poly": {"decay_rate": 1.0},  # timm's name for the power
            "rsqrt": {"stable_timescale": warmup or 1},
        }
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=params.schedule,
            num_epochs=after,
            warmup_epochs=warmup,
            warmup_prefix=True,
            step_on_epochs=False,
            updates_per_epoch=steps,
            **(defaults.get(params.schedule, {}) | kwargs),
        )
        return TimmSchedule(optimizer, schedule)
    except (TypeError, ValueError, AssertionError, ZeroDivisionError) as error:
        given = f"epochs = {epochs}, warmup_epochs = {warmup}, schedule_kwargs = {params.schedule_kwargs} ({error})"
        raise UserError(f"train.schedule = {params.schedule}: not possible with {given}") from None


class OneCycle(OneCycleLR):
    """torch's one-cycle schedule, with constant rates after its last step, where torch would let them rise again."""

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps; all else follows from the params."""
        return {"last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return each group's learning rate after `last_epoch` steps."""
        if self.last_epoch >= self.total_steps:
            return [group["lr"] for group in self.optimizer.param_groups]
        return super().get_lr()


class TimmSchedule(LRScheduler):
    """A schedule of timm's, a function of the number of optimizer steps, in torch's interface."""

    def __init__(self, optimizer: Optimizer, schedule: Any) -> None:
        self.schedule = schedule
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return each group's learning rate after `last_epoch` steps."""
        self.schedule.step_update(self.last_epoch)
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps; all else follows from the params."""
        return {"last_epoch": self.last_epoch}
