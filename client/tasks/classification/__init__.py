"""Image classification on the client's own images and synthetic variations of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.checkpoint import replace_file
from fedpara.config import nearest, setting
from fedpara.data import (
    IID,
    PARTITIONS,
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
    flower_partition,
    holdings,
    load_dataset,
    partition,
    split_holdout,
)
from fedpara.data.folder import image_files, read_image
from fedpara.errors import ConfigError, DataError
from fedpara.models import build_model
from fedpara.seeds import generator_for
from fedpara.task import Batch, ClientData, Examples, Metrics, Task, TensorExamples, register_task

EVALUATION_BATCH = {"cpu": 256}  # images whose activations stay in a core's cache
EVALUATION_BATCH_ELSEWHERE = 1024
# Published channel means and deviations of the training sets; (0.5, 0.25) for any other images.
SCALES = {
    "mnist": ((0.1307,), (0.3081,)),
    "mnist-writers": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@dataclass(frozen=True)
class Semi:
    """Training with few labels: the [classification.semi] table."""

    labelled: float = setting(1.0, "share of each client's training examples whose labels it knows", above=0, high=1)
    threshold: float = setting(0.95, "probability from which a prediction serves as a label", above=0, high=1)
    weight: float = setting(1.0, "weight of the loss on unlabelled examples; 0: leave them out", low=0)
    ratio: int = setting(1, "unlabelled examples in a step for each labelled one", low=1)
    strong: Augmentation = field(default_factory=lambda: STRONG)


# What a prediction must stand: as far as an image can be bent and still be told apart.
STRONG = Augmentation(shift=3, rotate=30, scale=0.25, shear=20, elastic=1.0)


@dataclass(frozen=True)
class Options:
    """The recipe's [classification] table."""

    dataset: str = setting(
        "digits",
        "digits, mnist, fashion-mnist, mnist-writers, cifar10, cifar100, folder, hf:NAME or torchvision:NAME",
    )
    image_size: int = setting(0, "side that images of a folder, hf: or torchvision: are resized to; 0: as is", low=0)
    columns: tuple[str, ...] = setting((), "of hf: data: image, label and owner; empty: told from their types")
    model: str = setting("cnn", "2nn, cnn, vgg8, vgg16, resnet18, timm:NAME, or FILE.py:FUNCTION that returns one")
    norm: str = setting(
        "", "normalisation of cnn or resnet18; empty: its default", choices=("", "none", "group", "batch")
    )
    hidden: int = setting(0, "hidden units of cnn; 0: its default", low=0)
    width: int = setting(0, "channels of the first stage of a vgg or resnet18; 0: 64, as published", low=0)
    partition: str = setting(
        "iid", "who gets what: iid, dirichlet, labels, shards, owner, or flwr:NAME:ARGUMENTS of Flower Datasets"
    )
    alpha: float = setting(0.5, "concentration of the Dirichlet partition: small is uneven", above=0)
    labels: int = setting(2, "labels a client of the labels partition, shards of the shards partition", low=1)
    fraction: float = setting(1.0, "share of each client's training examples that it uses", above=0, high=1)
    holdout: float = setting(0.1, "share of a client's examples on which it judges the global model", low=0, high=0.9)
    augment: Augmentation = field(default_factory=Augmentation)
    semi: Semi = field(default_factory=Semi)

    def __post_init__(self) -> None:
        if self.partition not in PARTITIONS and not self.partition.startswith("flwr:"):
            known = (*PARTITIONS, "flwr:NAME")
            raise ConfigError(
                f"partition = '{self.partition}' is not one of {', '.join(known)}{nearest(self.partition, known)}"
            )


@dataclass(frozen=True)
class Apply:
    """What fedpara apply takes besides an image or a folder of images, and the CSV file that it writes."""

    top: int = setting(1, "classes named for each image, the likeliest first", low=1)


@dataclass(frozen=True)
class PartlyLabelled:
    """A client's examples, of which it knows some labels: a batch joins labelled ones with any."""

    images: Tensor
    labels: Tensor
    known: Tensor  # places of the labelled ones
    ratio: int

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Batch:
        """Labelled images, their labels, and the images at ``indices``, `ratio` times as many, taken as unlabelled.

        Which labelled ones follows from the indices, in random order themselves: all come up equally often.
        """
        indices = indices.to(self.images.device, non_blocking=True)
        chosen = self.known[indices[: -(-len(indices) // self.ratio)] % len(self.known)]
        return self.images[chosen], self.labels[chosen], self.images[indices]

    def to(self, device: torch.device) -> PartlyLabelled:
        """The same on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("images", "labels", "known")})


@register_task("classification")
class Classification(Task):
    """Image classification on the client's own images and synthetic variations of them."""

    Options = Options
    Apply = Apply
    options: Options

    @cached_property
    def images(self) -> ImageData:
        """The data set, read once for each process."""
        folder = Path(self.data_dir).expanduser() if self.data_dir else None
        return load_dataset(
            self.options.dataset,
            folder=folder,
            image_size=self.options.image_size or None,
            columns=self.options.columns,
        )

    @lru_cache(maxsize=4)  # noqa: B019  as below
    def scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation by channel for values in [0, 1]: constants, the same on every machine."""
        mean, std = SCALES.get(self.options.dataset, ((0.5,), (0.25,)))
        return torch.tensor(mean, device=device).view(1, -1, 1, 1), torch.tensor(std, device=device).view(1, -1, 1, 1)

    def model(self) -> nn.Module:
        _, channels, height, width = self.images.train.images.shape
        chosen = {"norm": self.options.norm, "hidden": self.options.hidden, "width": self.options.width}
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
        kind, _, spec = self.options.partition.partition(":")
        if kind == "flwr":
            return flower_partition(self.images.train, spec, clients=clients, seed=self.seed)
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
        train = self._some(train, self.options.fraction, "fraction", client)
        pixels, labels = self.images.train.images, self.images.train.labels
        own: Examples = TensorExamples((pixels[train], labels[train]))
        if self.options.semi.labelled < 1:
            known = self._some(torch.arange(len(train)), self.options.semi.labelled, "labelled", client)
            own = PartlyLabelled(pixels[train], labels[train], known, self.options.semi.ratio)
        return ClientData(own, TensorExamples((pixels[held_out], labels[held_out])) if len(held_out) else None)

    def _some(self, places: Tensor, share: float, purpose: str, client: str) -> Tensor:
        """A share of these, at least one, drawn from the seed and the client's name; in their order."""
        if share == 1:
            return places
        count = max(1, round(share * len(places)))
        order = torch.randperm(len(places), generator=generator_for(self.seed, purpose, client))
        return places[order[:count].sort().values]

    def server_data(self) -> Examples | None:
        return TensorExamples((self.images.test.images, self.images.test.labels))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        images, labels, *more = batch
        images, targets = self._augmented(images, labels, self.options.augment, generator)
        if not (more and self.options.semi.weight):
            return images, targets
        unknown = torch.zeros(len(more[0]), dtype=torch.long, device=labels.device)
        weak, _ = self._augmented(more[0], unknown, replace(self.options.augment, cutmix=0), generator)
        strong, _ = self._augmented(more[0], unknown, replace(self.options.semi.strong, cutmix=0), generator)
        return images, targets, weak, strong

    @property
    def prepare_recordable(self) -> bool:
        return self.options.semi.labelled == 1

    def _augmented(
        self, images: Tensor, labels: Tensor, how: Augmentation, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        images, targets = augment(images.float() / 255, labels, how, len(self.images.classes), generator)
        return self._scaled(images), targets

    def example_input(self) -> Batch:
        return (self._scaled(self.images.test.images[:4].float() / 255),)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy; with unlabelled examples ``+ weight · FixMatch``.

        FixMatch (Sohn et al., NeurIPS 2020, Equation 4): the mean over the unlabelled of
        1[max q ≥ τ] H(argmax q, p(strong)), q the prediction for the weakly augmented image.
        """
        images, targets, *more = batch  # class indices, or shares of classes where samples were mixed
        loss = F.cross_entropy(model(images), targets)
        if not more:
            return loss
        weak, strong = more
        with torch.no_grad():
            sure, guesses = model(weak).softmax(1).max(1)
        taken = sure >= self.options.semi.threshold
        if not taken.any():
            return loss
        unlabelled = F.cross_entropy(model(strong[taken]), guesses[taken], reduction="sum") / len(strong)
        return loss + self.options.semi.weight * unlabelled

    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> Metrics:
        loss = correct = torch.zeros((), device=device, dtype=torch.float64)
        size = EVALUATION_BATCH.get(device.type, EVALUATION_BATCH_ELSEWHERE)
        for indices in torch.arange(len(examples)).split(size):
            images, labels = (part.to(device) for part in examples.batch(indices))
            logits = model(self._scaled(images.float() / 255))
            loss = loss + F.cross_entropy(logits, labels, reduction="sum")
            correct = correct + (logits.argmax(1) == labels).sum()
        count = len(examples)
        return Metrics(count, {"accuracy": float(correct) / count, "loss": float(loss) / count})

    def holdings(self, clients: int) -> Holdings:
        return holdings(self.images.train, self.split(clients), self.images.classes)

    def apply(self, model: nn.Module, source: Path | None, output: Path | None, options: Apply) -> Sequence[str]:
        """INPUT is an image or a folder of images, of any size; OUTPUT, a CSV file, is optional.

        Each is scaled to the size that the network was trained on, and its middle is looked at.
        """
        if source is None:
            raise DataError("no input: give an image or a folder of images")
        _, channels, height, width = self.images.train.images.shape
        rows = []
        for path in image_files(source):
            image = read_image(path, channels, (height, width))
            with torch.no_grad():
                likely = (
                    model(self._scaled(image[None].float() / 255))
                    .softmax(1)[0]
                    .topk(min(options.top, len(self.images.classes)))
                )
            rows += [
                (path.name, self.images.classes[place], f"{probability:.4f}")
                for probability, place in zip(likely.values.tolist(), likely.indices.tolist(), strict=True)
            ]
        if output:
            text = io.StringIO()
            csv.writer(text).writerows([("file", "class", "probability"), *rows])
            replace_file(output, text.getvalue().encode())
        return [*("  ".join(row) for row in rows), *([f"written: {output}"] if output else [])]

    def _scaled(self, images: Tensor) -> Tensor:
        mean, std = self.scale(images.device)
        return (images - mean) / std
