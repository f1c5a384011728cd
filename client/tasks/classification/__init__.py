"""Image classification on the client's own images and synthetic variations of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.config import setting
from fedpara.data import (
    IID,
    Augmentation,
    ByOwner,
    Dirichlet,
    Holdings,
    ImageData,
    LabelsPerClient,
    Partition,
    Shards,
    Spec,
    augment,
    holdings,
    load_dataset,
    partition,
    split_holdout,
)
from fedpara.models import build_model
from fedpara.task import Batch, ClientData, Examples, Metrics, Task, TensorExamples, register_task

EVALUATION_BATCH = 256
# Published channel means and deviations of the training sets; (0.5, 0.25) for any other images.
SCALES = {
    "mnist": ((0.1307,), (0.3081,)),
    "mnist-writers": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@dataclass(frozen=True)
class Options:
    """The recipe's [classification] table."""

    dataset: str = setting("digits", "digits, mnist, fashion-mnist, mnist-writers, cifar10, cifar100 or folder")
    image_size: int = setting(0, "side that images of a folder are resized to; 0: as they are", low=0)
    model: str = setting("cnn", "2nn, cnn, vgg16 or resnet18")
    norm: str = setting(
        "", "normalisation of cnn or resnet18; empty: its default", choices=("", "none", "group", "batch")
    )
    hidden: int = setting(0, "hidden units of cnn; 0: its default", low=0)
    partition: str = setting("iid", "who gets what", choices=("iid", "dirichlet", "labels", "shards", "owner"))
    alpha: float = setting(0.5, "concentration of the Dirichlet partition: small is uneven", above=0)
    labels: int = setting(2, "labels a client of the labels partition, shards of the shards partition", low=1)
    holdout: float = setting(0.1, "share of a client's examples on which it judges the global model", low=0, high=0.9)
    augment: Augmentation = field(default_factory=Augmentation)


@register_task("classification")
class Classification(Task):
    """Image classification on the client's own images and synthetic variations of them."""

    Options = Options
    options: Options

    @cached_property
    def images(self) -> ImageData:
        """The data set, read once for each process."""
        folder = Path(self.data_dir).expanduser() if self.data_dir else None
        return load_dataset(self.options.dataset, folder=folder, image_size=self.options.image_size or None)

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation by channel for values in [0, 1]: constants, the same on every machine."""
        mean, std = SCALES.get(self.options.dataset, ((0.5,), (0.25,)))
        return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)

    def model(self) -> nn.Module:
        _, channels, height, width = self.images.train.images.shape
        chosen = {"norm": self.options.norm, "hidden": self.options.hidden}
        return build_model(
            self.options.model,
            num_classes=len(self.images.classes),
            in_channels=channels,
            image_size=(height, width),
            **{name: value for name, value in chosen.items() if value},
        )

    @lru_cache(maxsize=2)  # noqa: B019  a task lives as long as its process
    def split(self, clients: int) -> Partition:
        """Who holds which training examples."""
        specs: dict[str, Spec] = {
            "iid": IID(),
            "dirichlet": Dirichlet(self.options.alpha),
            "labels": LabelsPerClient(self.options.labels),
            "shards": Shards(self.options.labels),
            "owner": ByOwner(),
        }
        return partition(self.images.train, specs[self.options.partition], clients=clients, seed=self.seed)

    def population(self, clients: int) -> Sequence[str]:
        return self.split(clients).clients

    def client_data(self, client: str, clients: int) -> ClientData:
        indices = self.split(clients).indices(client)
        parts = split_holdout(indices, self.options.holdout, seed=self.seed, client=client)
        train, held_out = (torch.from_numpy(part) for part in parts)
        pixels, labels = self.images.train.images, self.images.train.labels
        own = TensorExamples((pixels[train], labels[train]))
        return ClientData(own, TensorExamples((pixels[held_out], labels[held_out])) if len(held_out) else None)

    def server_data(self) -> Examples | None:
        return TensorExamples((self.images.test.images, self.images.test.labels))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        images, labels = batch
        classes = len(self.images.classes)
        images, targets = augment(images.float() / 255, labels, self.options.augment, classes, generator)
        return self._scaled(images), targets

    def example_input(self) -> Batch:
        return (self._scaled(self.images.test.images[:4].float() / 255),)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, targets = batch  # class indices, or shares of classes where samples were mixed
        return F.cross_entropy(model(images), targets)

    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> Metrics:
        loss = correct = torch.zeros((), device=device, dtype=torch.float64)
        for indices in torch.arange(len(examples)).split(EVALUATION_BATCH):
            images, labels = (part.to(device) for part in examples.batch(indices))
            logits = model(self._scaled(images.float() / 255))
            loss = loss + F.cross_entropy(logits, labels, reduction="sum")
            correct = correct + (logits.argmax(1) == labels).sum()
        count = len(examples)
        return Metrics(count, {"accuracy": float(correct) / count, "loss": float(loss) / count})

    def holdings(self, clients: int) -> Holdings:
        return holdings(self.images.train, self.split(clients), self.images.classes)

    def _scaled(self, images: Tensor) -> Tensor:
        mean, std = self.scale
        return (images - mean.to(images.device)) / std.to(images.device)
