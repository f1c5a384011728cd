"""What every engine runs: one network, one hundred clients' images, one way to train. Needs torch and numpy alone."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIENTS, EXAMPLES, TEST = 100, 50, 1000
COHORT, ROUNDS, BATCH, RATE = 10, 10, 10, 0.05
Images = tuple[Tensor, Tensor]


class Network(nn.Sequential):
    """Two convolutions and two linear layers for 32 × 32 × 3 images; 579,402 parameters."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10)),
        )


def network() -> Network:
    """The first model, the same wherever it is made."""
    torch.manual_seed(0)
    return Network()


class Workload:
    """The images of a file that `write` made."""

    def __init__(self, file: str | Path) -> None:
        with np.load(file) as arrays:
            self._images, self._labels, images, labels = (
                torch.from_numpy(arrays[name]) for name in ("images", "labels", "test_images", "test_labels")
            )
        self.test: Images = images, labels

    def client(self, place: int) -> Images:
        return self._images[place], self._labels[place]


def write(file: Path, train: Images, test: Images) -> None:
    """The first images of a data set, dealt out in order: uint8, (clients, examples, 3, 32, 32)."""
    images, labels = (part[: CLIENTS * EXAMPLES].unflatten(0, (CLIENTS, EXAMPLES)).numpy() for part in train)
    np.savez(file, images=images, labels=labels, test_images=test[0][:TEST], test_labels=test[1][:TEST])


def cohort(round: int) -> list[int]:
    return sorted(np.random.default_rng(round).choice(CLIENTS, COHORT, replace=False).tolist())


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def train(model: nn.Module, data: Images) -> None:
    """One epoch of plain SGD in random order, in place."""
    images, labels = data
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for batch in torch.randperm(len(labels)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(scaled(images[batch])), labels[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Images) -> float:
    images, labels = data
    return float((model(scaled(images)).argmax(1) == labels).float().mean())


def tell(event: str, **values: float) -> None:
    """A line for the benchmark: what happened, and when."""
    print(json.dumps({"event": event, "time": time.time(), **values}), flush=True)


def arguments() -> tuple[Workload, int]:
    """The workload file and the number of processes from the command line."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return Workload(sys.argv[1]), int(sys.argv[2])
