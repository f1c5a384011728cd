"""Inverse knitting: machine instructions read from a photograph of fabric, mills' photographs beside synthetic ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedpara.config import Training, setting
from fedpara.data.holdings import Holdings
from fedpara.errors import ConfigError, DataError
from fedpara.task import Batch, ClientData, Examples, Exhibit, Metrics, Task, TensorExamples, register_task

from . import files
from .examples import Swatches, Taken, simulated
from .instructions import COUNT, NAMES, mirrored
from .judging import Score, aligned, score
from .losses import adversarial, cell_weights, cross_entropy, perceptual, shifted_cross_entropy, syntax
from .network import Knitter, scaled
from .programs import random_programs
from .renderer import render
from .simulated_real import Mill, mill
from .use import Apply, read_file

AT_ONCE = 16  # photographs judged together
UNSEEN = "unseen-mill"  # whose photographs nobody trains on


@dataclass(frozen=True)
class Options:
    """The recipe's [knitting] table."""

    photographs: str = setting(
        "simulated",
        "simulated: mills of simulated photographs; folder: MILL/real/",
        choices=("simulated", "folder"),
    )
    width: int = setting(24, "channels of the reader; 64 is the paper's", low=4)
    depth: int = setting(6, "residual blocks of the reader and of the refiner", low=1)
    plus: bool = setting(False, "Img2prog++: finer grids beside the cells")
    refiner: int = setting(0, "channels of the refiner and the discriminator; 0: none, 64: the paper's", low=0)
    pairs: int = setting(64, "simulated photographs of a mill with their programs", low=1)
    alone: int = setting(0, "simulated photographs of a mill without programs", low=0)
    samples: int = setting(128, "photographs that a mill looks at in an epoch, however many it has", low=1)
    alpha: float = setting(0.5, "weight of the synthetic, 1 - alpha that of photographs", low=0, high=1)
    ground: float = setting(0.1, "weight of a program's most frequent instruction", low=0, high=1)
    shifts: bool = setting(True, "photographs may lie a cell beside their programs: the least loss of nine shifts")
    adversarial: float = setting(0.2, "weight of the adversarial losses, where there is a refiner", low=0)
    perceptual: float = setting(0.0, "weight of refined photographs' likeness to renderings of their programs", low=0)
    syntax: float = setting(0.0, "weight of the penalty on what cannot be knitted", low=0)
    pseudo: float = setting(0.0, "weight of photographs without programs, by what is read of them", low=0)
    threshold: float = setting(0.95, "confidence from which a cell so read is believed", low=0, high=1)
    holdout: float = setting(0.2, "share of a folder's pairs to judge on, where it has no test.txt", low=0, high=0.9)

    def __post_init__(self) -> None:
        if self.perceptual and not self.refiner:
            raise ConfigError(
                f"perceptual = {self.perceptual} teaches the refiner, and there is none: give refiner = 12"
            )
        if self.alpha == 1 and self.refiner:
            raise ConfigError("alpha = 1 leaves photographs out, and a refiner learns from nothing else: lower alpha")


@register_task("knitting")
class Knitting(Task):
    """Inverse knitting: the machine's instructions from a photograph of fabric; each client is a mill."""

    Options = Options
    Apply = Apply
    options: Options

    def model(self) -> Knitter:
        return Knitter(self.options.width, self.options.depth, self.options.plus, self.options.refiner)

    @property
    def folder(self) -> Path:
        """Where mills' own photographs lie."""
        if not self.data_dir:
            raise DataError("photographs = 'folder' needs data-dir: the folder of MILL/real and MILL/instruction")
        return Path(self.data_dir).expanduser()

    def population(self, clients: int) -> Sequence[str]:
        if self.options.photographs == "folder":
            return files.mills(self.folder)[:clients]
        return [f"mill-{n + 1}" for n in range(clients)]

    @cached_property
    def _known(self) -> dict[str, Taken]:
        return {}

    def mill(self, name: str, clients: int) -> Mill:
        """A simulated mill's ranges."""
        names = self.population(clients)
        return mill(name, names.index(name) if name in names else -1, self.seed)

    def taken(self, client: str, clients: int) -> Taken:
        """What a mill has, made or read once."""
        if client not in self._known:
            if self.options.photographs == "folder":
                self._known[client] = files.read_mill(self.folder, client, self.options.holdout, self.seed)
            else:
                own = self.mill(client, clients)
                self._known[client] = simulated(own, self.seed, self.options.pairs, self.options.alone, HELD)
        return self._known[client]

    def client_data(self, client: str, clients: int) -> ClientData:
        own = self.taken(client, clients)
        train = Swatches(own.photographs, own.programs, own.alone, self.options.samples)
        held = TensorExamples((own.held_photographs, own.held_programs)) if len(own.held_photographs) else None
        return ClientData(train, held)

    @cached_property
    def _test(self) -> Taken | None:
        if self.options.photographs == "folder":
            return files.read_test(self.folder)
        return simulated(self.mill(UNSEEN, 0), self.seed, TEST, 0, 0)

    def server_data(self) -> Examples | None:
        """Simulated photographs of a mill that is no client; of folders, test/ if there is one."""
        return None if self._test is None else TensorExamples((self._test.photographs, self._test.programs))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Photographs and their programs, half of them mirrored; as many renderings of random programs with theirs.

        Then, where there are photographs without programs, these as they are and disturbed.
        """
        photographs, programs, *alone = batch
        flipped = torch.rand(len(photographs), generator=generator) < 0.5
        photographs = torch.where(flipped.view(-1, 1, 1), photographs.flip(-1), photographs)
        programs = torch.where(flipped.view(-1, 1, 1), mirrored(programs), programs)
        known = random_programs(len(photographs), generator, size=(programs.shape[1], programs.shape[2]))
        made = [scaled(photographs), programs, scaled(render(known)), known]
        if alone:
            weak = scaled(alone[0])
            noise = 0.1 * torch.randn(weak.shape, generator=generator)
            gain = 0.6 + 0.6 * torch.rand(len(weak), 1, 1, 1, generator=generator)
            made += [weak, (gain * weak + noise).clamp(-1, 1)]
        return tuple(made)

    def optimizer(self, model: nn.Module, training: Training, lr: float) -> torch.optim.Optimizer:
        """Adam with β1 = 0.5, as Kaspar et al.; `momentum` does not matter."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=lr, betas=(0.5, 0.999), weight_decay=training.weight_decay)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """α CE(renderings) + (1 − α) MILCE(photographs, refined), and the optional rest; see `losses`."""
        knitter, how = cast(Knitter, model), self.options
        photographs, programs, rendered, known, *alone = batch
        seen = knitter.refined(photographs) if how.alpha < 1 else photographs[:0]
        made = rendered if how.alpha > 0 else rendered[:0]
        logits = knitter.reader(torch.cat([seen, made]))
        of_photographs, of_renderings = logits.split([len(seen), len(made)])
        loss = logits.new_zeros(())
        if len(made):
            loss = loss + how.alpha * cross_entropy(of_renderings, known, cell_weights(known, how.ground)).mean()
        if len(seen):
            own = shifted_cross_entropy if how.shifts else cross_entropy
            loss = loss + (1 - how.alpha) * own(of_photographs, programs, cell_weights(programs, how.ground)).mean()
        if how.syntax:
            loss = loss + how.syntax * syntax(logits)
        told, refined = programs, seen
        if alone and (how.pseudo or knitter.refiner is not None):
            believed, sure, clearer = self._read_alone(knitter, alone[0])
            if how.pseudo:
                weights = cell_weights(believed, how.ground) * sure
                again = cross_entropy(knitter(alone[1]), believed, weights)
                loss = loss + how.pseudo * (again * sure.mean((1, 2))).mean()
            if knitter.refiner is not None:
                told, refined = torch.cat([told, believed.to(told.dtype)]), torch.cat([refined, clearer])
        if knitter.discriminator is not None and how.adversarial:
            judged = adversarial(knitter.discriminator, refined, told, rendered, known)
            loss = loss + how.adversarial * judged
        if how.perceptual:
            aims = scaled(render(programs.cpu())).to(seen)
            loss = loss + how.perceptual * perceptual(seen, aims)
        return loss

    def _read_alone(self, knitter: Knitter, photographs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is read of photographs without programs, where it is believed (0 or 1), and the photographs refined."""
        clearer = knitter.refined(photographs)
        with torch.no_grad():
            sure, read = knitter.reader(clearer.detach()).softmax(1).max(1)
        return read, (sure >= self.options.threshold).to(sure.dtype), clearer

    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> Metrics:
        """Full and foreground accuracy at the program's own place, and at the best of nine shifts; see `judging`."""
        read, programs, losses = [], [], []
        for indices in torch.arange(len(examples)).split(AT_ONCE):
            photographs, own = (part.to(device) for part in examples.batch(indices))
            logits = model(scaled(photographs))
            losses.append(cross_entropy(logits, own, torch.ones(own.shape, device=device)).cpu())
            read.append(logits.argmax(1).cpu())
            programs.append(own.cpu())
        said, true = torch.cat(read), torch.cat(programs).long()
        values = score(said, true).values() | {"loss": float(torch.cat(losses).mean())}
        beside: Score = aligned(said, true)
        values |= {f"{name}_aligned": value for name, value in beside.values().items() if name != "violations"}
        return Metrics(len(true), values)

    def example_input(self) -> Batch:
        """Two renderings."""
        return (scaled(render(random_programs(2, torch.Generator().manual_seed(0)))),)

    def holdings(self, clients: int) -> Holdings:
        """The instructions of each mill's programs."""
        names = tuple(self.population(clients))
        cells = [self.taken(name, clients).programs.flatten().long() for name in names]
        return Holdings(names, NAMES, np.stack([torch.bincount(own, minlength=COUNT).numpy() for own in cells]))

    def exhibits(self, model: nn.Module, folder: Path) -> Sequence[Exhibit]:
        from .exhibits import exhibits

        if self._test is None:
            return ()
        simulated_ones = self.options.photographs == "simulated"
        return exhibits(cast(Knitter, model), self._test, simulated=simulated_ones)

    def apply(self, model: nn.Module, source: Path | None, output: Path | None, options: Apply) -> Sequence[str]:
        """INPUT is a photograph of fabric, a front seen upright, cut to whole stitches; OUTPUT the program, a .png.

        The program has a pixel a stitch, in palette colours whose numbers are the instructions. Beside it come its
        chart with a legend (-chart.png), the fabric drawn from it (-fabric.png) and how sure each cell is
        (-confidence.png, -confidence.csv).
        """
        return read_file(model, source, output, options)


HELD = 16  # pairs that a simulated mill judges on
TEST = 96  # photographs of the unseen mill
