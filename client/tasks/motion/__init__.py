"""Motion magnification, trained on synthetic motion of the client's own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from fedpara.config import Training, setting
from fedpara.device import find_device
from fedpara.errors import ConfigError
from fedpara.task import Batch, ClientData, Examples, Exhibit, Metrics, Task, register_task

from . import photographs
from .footage import Apply, magnify_file
from .gallery import exhibits, network_method
from .generator import Ranges, photographed, random_plan, recoloured, render
from .judging import JUDGED, Judged, score
from .losses import magnification_loss
from .network import Magnifier, build
from .objects import Collection

JUDGE_SEED = 0  # the same samples whatever the run's seed: runs are compared on them
JUDGE_NOISES = (0.0, 0.1)
SCENES = 6  # that the server judges on, each with every motion and noise
OWN_SCENES = 4  # that a client judges on


@dataclass(frozen=True)
class Options:
    """The recipe's [motion] table. Lengths are in pixels."""

    dataset: str = setting(
        "photographs",
        "photographs: scikit-image's and scikit-learn's; folder: clips/<client>/",
        choices=("photographs", "folder"),
    )
    model: str = setting("light", "light, or paper: the network of Oh et al.", choices=("light", "paper"))
    crop: int = setting(64, "side of a training frame, a multiple of 4", low=32, high=1024)
    samples: int = setting(400, "samples that a client makes in an epoch", low=1)
    alpha: float = setting(100.0, "largest magnification in training", above=0)
    motion: float = setting(10.0, "largest motion in training", above=0)
    magnified: float = setting(10.0, "largest magnified motion in training, and the one judged at", low=1, high=30)
    objects: tuple[int, ...] = setting((7, 15), "fewest and most objects in a scene")
    noise: float = setting(0.3, "largest level of noise; built-in clients have it evenly from little to this", low=0)
    regulariser: float = setting(0.1, "weight of the losses that part texture from shape", low=0)
    holdout: float = setting(0.2, "share of a client's images on which it judges the global model", low=0, high=0.5)
    generate_on: str = setting("cpu", "where samples are made: cpu, cuda or auto")

    def __post_init__(self) -> None:
        if self.crop % 4:
            raise ConfigError(f"crop = {self.crop} must be a multiple of 4: {self.crop - self.crop % 4} is")
        if len(self.objects) != 2 or not 0 < self.objects[0] <= self.objects[1]:
            raise ConfigError(f"objects = {list(self.objects)}: give the fewest and the most in a scene, as [7, 15]")

    @property
    def ranges(self) -> Ranges:
        fewest, most = self.objects
        return Ranges(self.crop, self.alpha, self.motion, self.magnified, (fewest, most))


@dataclass(frozen=True)
class Scenes:
    """Samples to be made of one of the task's collections: a batch says which collection and image."""

    collection: int
    images: int
    samples: int

    def __len__(self) -> int:
        return self.samples

    def batch(self, indices: Tensor) -> Batch:
        """Places, (n, 2): of the collection, and of the image that makes the background."""
        return (torch.stack([torch.full_like(indices, self.collection), indices % self.images], 1),)


@register_task("motion")
class Motion(Task):
    """Motion magnification, trained on synthetic motion of the client's own images."""

    Options = Options
    Apply = Apply
    measure = "ssim"
    options: Options

    @cached_property
    def _collections(self) -> list[Collection]:
        """Of every client served here, in the order in which they came."""
        return []

    @cached_property
    def _known(self) -> dict[str, ClientData]:
        return {}

    @cached_property
    def device(self) -> torch.device:
        """Where samples are made."""
        return find_device(self.options.generate_on)

    def model(self) -> Magnifier:
        return build(self.options.model)

    def population(self, clients: int) -> Sequence[str]:
        if self.options.dataset == "folder":
            return photographs.folder_population(self.data_dir, clients)
        return photographs.builtin_population(clients)

    def client_data(self, client: str, clients: int) -> ClientData:
        if client not in self._known:
            self._known[client] = self._made(client, clients)
        return self._known[client]

    def _made(self, client: str, clients: int) -> ClientData:
        noise = self.options.noise
        if self.options.dataset == "folder":
            images = photographs.folder_images(photographs.clips(self.data_dir) / client)
        else:
            images = photographs.builtin_images(client, clients)
            noise *= (self.population(clients).index(client) + 1) / clients
        train, held_out = images.split(self.options.holdout)
        self._collections.append(train.collection(noise, self.device))
        own = Scenes(len(self._collections) - 1, len(train.images), self.options.samples)
        if held_out is None:
            return ClientData(own)
        cases = [(size, noise / 2) for size in JUDGED]
        judged = self._judged(held_out.collection(noise, torch.device("cpu")), cases, OWN_SCENES)
        return ClientData(own, judged)

    def server_data(self) -> Examples:
        cases = [(size, noise) for size in JUDGED for noise in JUDGE_NOISES]
        return self._judged(self.test_collection, cases, SCENES)

    @cached_property
    def test_collection(self) -> Collection:
        """Images that no client owns."""
        return photographs.test_images(self.data_dir).collection(0.0, torch.device("cpu"))

    def _judged(self, own: Collection, cases: Sequence[tuple[float, float]], scenes: int) -> Judged:
        return Judged(own, cases, scenes * len(cases), self.options.magnified, JUDGE_SEED)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Frames A and B, the truth, B and the truth with another colour, and α: a fresh sample in every step."""
        (places,) = batch
        own, ranges = self._collections[int(places[0, 0])], self.options.ranges
        plan = random_plan(len(places), ranges, own.noise, generator)
        frames = photographed(render(own, places[:, 1], plan, ranges, generator), plan, generator)
        return frames.a, frames.b, frames.truth, *recoloured(frames, generator), frames.alpha

    def example_input(self) -> Batch:
        a, b, _, alpha, _ = self.server_data().batch(torch.arange(2))
        return a, b, alpha

    def optimizer(self, model: nn.Module, training: Training, lr: float) -> torch.optim.Optimizer:
        """Adam, as Oh et al.; `momentum` does not matter."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.99), weight_decay=training.weight_decay)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return magnification_loss(cast(Magnifier, model), batch, self.options.regulariser)

    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> Metrics:
        """Mean SSIM and L1 on [0, 1] to the true magnification, within the border that no frame has seen."""
        alike, apart = score(network_method(model), cast(Judged, examples), device)
        return Metrics(len(examples), {"ssim": float(alike.mean()), "loss": float(apart.mean())})

    def exhibits(self, model: nn.Module, folder: Path) -> Sequence[Exhibit]:
        return exhibits(model, self.test_collection, self.options.magnified, JUDGE_SEED)

    def apply(self, model: nn.Module, source: Path | None, output: Path | None, options: Apply) -> Sequence[str]:
        """INPUT is a video file or a folder of frames, of any size; OUTPUT likewise (a name without suffix: a folder).

        Its motion is magnified (1 + alpha) times.
        """
        return magnify_file(model, source, output, options)
