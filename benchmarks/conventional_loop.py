"""What people use today: PIL transforms per sample in a DataLoader, torchmetrics per step, Lightning's progress bar.

    python benchmarks/conventional_loop.py PROCESSED MODEL BATCH_SIZE THREADS WORKERS

Written as templates write it. Prints images/s of the second epoch.
"""

import sys
import time
from pathlib import Path
from typing import Any

# before torchvision, which it repairs where that was not built for this torch
import reprise.model.networks  # noqa: F401

# isort: split
import lightning
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms

from reprise.data.formats.packed import load_metadata, load_split


class Images(Dataset):
    """One PIL image at a time, transformed."""

    def __init__(self, processed: Path) -> None:
        metadata, split = load_metadata(processed), load_split(processed, "train")
        self.images, self.labels = split.images.copy(), split.labels.tolist()
        size, colour = metadata.image_size, metadata.channels == 3
        crop = [transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip()] if colour else []
        self.transform = transforms.Compose(
            [*crop, transforms.ToTensor(), transforms.Normalize(metadata.mean, metadata.std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        return self.transform(Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])), self.labels[index]


class Module(lightning.LightningModule):
    """Loss and accuracy as metric objects, logged in each step."""

    def __init__(self, network: torch.nn.Module, steps: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
        self.train_loss, self.train_acc = MeanMetric(), MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        images, labels = batch
        logits = self.network(images)
        loss = self.criterion(logits, labels)
        self.train_loss(loss)
        self.train_acc(logits.argmax(dim=1), labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_start(self) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.started

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule, as ours are."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.003)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=self.steps, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    processed, name, batch_size, threads, workers = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    torch.set_num_threads(threads)
    images = Images(processed)
    loader = DataLoader(
        images, batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    channels = load_metadata(processed).channels
    module = Module(timm.create_model(name, num_classes=10, in_chans=channels), 2 * len(loader))
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(module, loader)
    print(len(loader) * batch_size / module.seconds)


if __name__ == "__main__":
    main()
