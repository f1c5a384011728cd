"""A budget of the whole model against one γ for every layer: `python -m simulations.benchmarks.budget --help`.

γ sets the ranks of one model; the other gets payload_bytes = what the first one sends, so it never sends more. Compared
are test accuracies: after equal training from fresh factors (plain SGD, each way at the better of the learning rates,
which is picked on training images held out), and right after fit=True and merge_ of a trained dense model, untrained
since. Each seed draws its own weights and batches, the same for both. MNIST is looked for in $FEDPARA_DATA.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.cost import size
from fedpara.data import load_dataset
from fedpara.models import build_model
from fedpara.parametrize import Config, FedPara, LowRank, describe, merge_, parametrize_

RATES = (0.05, 0.1, 0.2)
HELD_OUT = 0.1  # of the training images, to pick the learning rate on
KINDS = {"fedpara": FedPara, "lowrank": LowRank}


@dataclass(frozen=True)
class Problem:
    """A model, its images, and steps of training: from fresh factors, and of the dense model that is fitted."""

    model: str
    dataset: str
    steps: int
    dense_steps: int
    batch: int = 32


PROBLEMS = (
    Problem("2nn", "mnist", 1000, 3000),
    Problem("cnn", "mnist", 300, 400),
    Problem("cnn", "digits", 600, 600),
)


@dataclass(frozen=True)
class Images:
    """Normalised images and their labels: to train on, to pick the learning rate on, to judge on."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @staticmethod
    def load(dataset: str) -> Images:
        """Read a data set; the images held out are the same for every seed."""
        data = load_dataset(dataset)
        pixels = data.train.images.float() / 255
        mean, std = pixels.mean(), pixels.std()
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        held_out, train = order.tensor_split([int(HELD_OUT * len(order))])
        pixels, labels = (pixels - mean) / std, data.train.labels
        test = (data.test.images.float() / 255 - mean) / std
        return Images((pixels[train], labels[train]), (pixels[held_out], labels[held_out]), (test, data.test.labels))


@torch.no_grad()
def accuracy(model: nn.Module, examples: tuple[Tensor, Tensor]) -> float:
    """Per cent of the examples that a copy of the model, merged, gets right."""
    merged = merge_(copy.deepcopy(model)).eval()
    parts = zip(*(tensor.split(500) for tensor in examples), strict=True)
    return 100 * sum(int((merged(images).argmax(1) == labels).sum()) for images, labels in parts) / len(examples[0])


def train(model: nn.Module, images: Images, batch: int, *, steps: int, rate: float, seed: int) -> nn.Module:
    """Plain SGD; the gradient's norm is cut at 2."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    pixels, labels = images.train
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (batch,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels[chosen]), labels[chosen]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
    return model


def fresh(problem: Problem, images: Images, config: Config | None, seed: int) -> nn.Module:
    """The problem's model from a seed, parametrized if there is a config."""
    torch.manual_seed(seed)
    _, channels, *sides = images.train[0].shape
    model = build_model(problem.model, num_classes=10, in_channels=channels, image_size=tuple(sides))
    return model if config is None else parametrize_(model, config)


def rivals(kind: str, gamma: float, problem: Problem, images: Images) -> dict[str, Config]:
    """One γ, and a budget of as many bytes."""
    config = KINDS[kind]
    one = config(gamma=gamma)
    return {"one γ": one, "budget": config(payload_bytes=size(fresh(problem, images, one, 0)).payload_bytes)}


def after_training(problem: Problem, images: Images, config: Config, seeds: range) -> tuple[nn.Module, list[float]]:
    """A model of this config and its accuracies, a seed each, at the learning rate that the images held out prefer."""
    held_out: dict[float, float] = {}
    tested: dict[float, list[float]] = {}
    for rate in RATES:
        models = [
            train(
                fresh(problem, images, config, seed), images, problem.batch, steps=problem.steps, rate=rate, seed=seed
            )
            for seed in seeds
        ]
        held_out[rate] = statistics.fmean(accuracy(model, images.held_out) for model in models)
        tested[rate] = [accuracy(model, images.test) for model in models]
    return models[0], tested[max(RATES, key=held_out.__getitem__)]


def after_fit(config: Config, dense: list[nn.Module], images: Images) -> tuple[nn.Module, list[float]]:
    """A model of this config and the accuracies of the dense models, each fitted and merged."""
    models = [
        parametrize_(copy.deepcopy(model), config, fit=True, generator=torch.Generator().manual_seed(0))
        for model in dense
    ]
    return models[0], [accuracy(model, images.test) for model in models]


def row(problem: Problem, gamma: float | None, way: str, model: nn.Module, found: list[float]) -> str:
    """One line of the table."""
    ranks = " ".join("–" if layer.rank is None else str(layer.rank) for layer in describe(model))
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    sets = "–" if gamma is None else f"{gamma:g}"
    cells = (f"{problem.model}, {problem.dataset}", sets, way, f"{size(model).payload_bytes:,}", ranks)
    return f"| {' | '.join(cells)} | {statistics.fmean(found):.2f} ± {spread:.2f} |"


def measure(problem: Problem, what: str, kind: str, gammas: list[float], seeds: range) -> Iterator[str]:
    """The rows of one problem."""
    images = Images.load(problem.dataset)
    dense: list[nn.Module] = []
    if what == "fit":
        for seed in seeds:
            model = fresh(problem, images, None, seed)
            dense.append(train(model, images, problem.batch, steps=problem.dense_steps, rate=0.1, seed=seed))
        yield row(problem, None, "dense", dense[0], [accuracy(model, images.test) for model in dense])
    for gamma in gammas:
        for way, config in rivals(kind, gamma, problem, images).items():
            if what == "fit":
                yield row(problem, gamma, way, *after_fit(config, dense, images))
            else:
                yield row(problem, gamma, way, *after_training(problem, images, config, seeds))


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [f"{problem.model}-{problem.dataset}" for problem in PROBLEMS]
    parser.add_argument("--what", choices=("fresh", "fit"), nargs="+", default=["fresh", "fit"])
    parser.add_argument("--problem", choices=names, nargs="+", default=names)
    parser.add_argument("--kind", choices=KINDS, default="fedpara")
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for what in chosen.what:
        print(f"\n{what}: {chosen.kind}, {chosen.seeds} seeds, mean ± standard deviation\n")
        print("| problem | γ | ranks by | bytes | ranks (– dense) | accuracy, % |\n|---|---|---|---|---|---|")
        for name, problem in zip(names, PROBLEMS, strict=True):
            if name in chosen.problem:
                for line in measure(problem, what, chosen.kind, chosen.gamma, range(chosen.seeds)):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
