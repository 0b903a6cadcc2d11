"""What `train.backbone` goes with: a frozen one leaves most ways of training without a meaning."""

import json
from typing import Any

FROZEN: dict[str, Any] = {
    **{"loss": "cross_entropy", "ema": None, "freeze_epochs": 0, "layer_decay": None, "backbone_lr": 1.0},
    **{"start_size": None, "early_stopping": None, "compile": False, "devices": 1, "num_nodes": 1},
    **{"callbacks": [], "loggers": []},
}
TUNED: dict[str, Any] = {"head": "linear", "feature_views": 1}


def check_backbone(train: Any) -> None:
    """Raise ValueError for `train` params that do not go with its backbone: a user shall not think that they count."""
    for name, only in (FROZEN if train.backbone == "frozen" else TUNED).items():
        if (value := getattr(train, name)) != only:
            raise ValueError(f"{name} = {value}: not with backbone = {train.backbone}; set it to {json.dumps(only)}")
    if train.backbone == "frozen" and train.precision == "bf16":
        raise ValueError("precision = bf16: not with backbone = frozen, whose features are fp32; set it to auto")
    if train.backbone == "frozen" and (train.augment.mixup or train.augment.cutmix or train.balance == "sampling"):
        raise ValueError("backbone = frozen: no mixup, cutmix or balance = sampling; balance = weights is possible")
