"""A pendulum between two black boxes: what a line camera will see of it, each client with a pendulum of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.config import Training, setting
from fedpara.errors import FedparaError
from fedpara.seeds import generator_for
from fedpara.task import Batch, ClientData, Examples, Exhibit, Metrics, Task, TensorExamples, register_task

from .layer import PhysicsLayer, describe
from .pendulum import STRIP, Pendulum, film

SEEN = 6  # strips that the state is told from
AHEAD = 10  # strips ahead that are trained on
BEYOND = 30  # strips ahead that are judged
HELD_OUT = 64  # swings that a client judges on


@dataclass(frozen=True)
class Options:
    """The recipe's [physics] table."""

    swings: int = setting(96, "films that a client trains on", low=1)
    noise: float = setting(0.1, "deviation of the camera's noise, the bob being 1", low=0)
    constraint: str = setting("pendulum", "what stands between the networks", choices=("pendulum", "none"))
    hidden: int = setting(64, "hidden units of both networks", low=4)
    law_rate: float = setting(10.0, "learning rate of the pendulum's quantities, as a multiple of lr", above=0)


class Swing(NamedTuple):
    """A client's pendulum as it is."""

    frequency: Tensor  # rad/s
    damping: Tensor  # 1/s


class Between(nn.Module):
    """Encoder → law → decoder: strips (B, 6, 32) to the next ones (B, n, 32). ``law`` is the client's own."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(SEEN * STRIP, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )
        self.law: PhysicsLayer = Pendulum()
        self.decoder = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, STRIP)
        )

    def forward(self, seen: Tensor, ahead: int = BEYOND) -> Tensor:
        angles = self.law(self.encoder(seen.flatten(1)), ahead)
        return self.decoder(torch.stack([torch.sin(angles), torch.cos(angles)], -1))


class Recurrent(nn.Module):
    """The same without a law: a state of 16 numbers that a learnt map takes from strip to strip.

    ``law`` is its last layer, the client's own, so that it too can tell one pendulum from another.
    """

    STATE = 16

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(SEEN * STRIP, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, self.STATE),
        )
        self.inner = nn.Linear(self.STATE, hidden)
        self.law = nn.Linear(hidden, self.STATE)
        self.decoder = nn.Sequential(
            nn.Linear(self.STATE, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, STRIP)
        )

    def forward(self, seen: Tensor, ahead: int = BEYOND) -> Tensor:
        state, states = self.encoder(seen.flatten(1)), []
        for _ in range(ahead):
            state = state + self.law(F.relu(self.inner(state)))
            states.append(state)
        return self.decoder(torch.stack(states, 1))


@register_task("physics")
class Physics(Task):
    """A pendulum between two networks: a second law in place of the camera's; each client has a pendulum of its own."""

    Options = Options
    options: Options
    measure = "beyond_psnr"

    def model(self) -> nn.Module:
        return Between(self.options.hidden) if self.options.constraint == "pendulum" else Recurrent(self.options.hidden)

    def population(self, clients: int) -> Sequence[str]:
        return [f"pendulum-{n + 1}" for n in range(clients)]

    def swing(self, client: str) -> Swing:
        """A client's true pendulum: some 0.25 to 2.4 m long, damped within 3 to 20 s."""
        draw = torch.rand(2, generator=generator_for(self.seed, "pendulum", client))
        return Swing(2.0 + 4.2 * draw[0], 0.05 + 0.3 * draw[1])

    @lru_cache(maxsize=64)  # noqa: B019  a task lives as long as its process
    def client_data(self, client: str, clients: int) -> ClientData:
        own, generator = self.swing(client), generator_for(self.seed, "film", client)
        train = film(self.options.swings, SEEN + AHEAD, own, self.options.noise, generator)
        judged = film(HELD_OUT, SEEN + BEYOND, own, 0.0, generator)
        given = judged[:, :SEEN] + self.options.noise * torch.randn(HELD_OUT, SEEN, STRIP, generator=generator)
        truth = torch.stack(own).expand(HELD_OUT, -1)
        return ClientData(TensorExamples((train,)), TensorExamples((given, judged[:, SEEN:], truth)))

    def example_input(self) -> Batch:
        return (torch.rand(2, SEEN, STRIP, generator=generator_for(self.seed, "example")),)

    def optimizer(self, model: nn.Module, training: Training, lr: float) -> torch.optim.Optimizer:
        """Adam; the law's two numbers, far from where they begin, at a larger rate."""
        own = [p for name, p in model.named_parameters() if name.startswith("law.")]
        common = [p for name, p in model.named_parameters() if not name.startswith("law.")]
        rate = self.options.law_rate if self.options.constraint == "pendulum" else 1.0
        return torch.optim.Adam([{"params": common}, {"params": own, "lr": rate * lr}], lr=lr)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        (strips,) = batch
        loss = F.mse_loss(model(strips[:, :SEEN], AHEAD), strips[:, SEEN:])
        return loss + model.law.regulariser() if isinstance(model, Between) else loss

    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> Metrics:
        """PSNR in dB of strips as far ahead as was trained on, and beyond; with a law, its error in per cent."""
        given, wanted, truth = (part.to(device) for part in examples.batch(torch.arange(len(examples))))
        error = (model(given) - wanted).square()
        parts = {"psnr": error[:, :AHEAD], "beyond_psnr": error[:, AHEAD:]}
        values = {name: -10 * float(part.mean().log10()) for name, part in parts.items()}
        values["loss"] = float(error.mean())
        if isinstance(model, Between):
            learnt = torch.stack(list(model.law.values().values()))
            off = 100 * (learnt / truth[0] - 1).abs()
            values |= {"frequency_error": float(off[0]), "damping_error": float(off[1])}
        return Metrics(len(examples), values)

    def exhibits(self, model: nn.Module, folder: Path) -> Sequence[Exhibit]:
        """The first client's swing as learnt, beside the true one."""
        client = self.population(1)[0]
        try:
            own = self.personal(client) if self.personal else model
        except FedparaError:  # it was never asked
            return ()
        if not isinstance(own, Between):
            return ()
        truth = self.swing(client)._asdict()
        table = f"learnt\n{describe(own.law)}\ntrue\n" + "\n".join(f"{k}: {float(v):+.3f}" for k, v in truth.items())
        return [Exhibit(f"{client}: a swing from 60 degrees", own.law.plot(folder / "swing.svg", truth), table)]
