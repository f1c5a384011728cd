"""A damped pendulum: its law as a physics layer, and strips of a camera that looks at it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .layer import Quantity

STRIP = 32  # pixels of a strip
RATE = 10.0  # strips a second
SPOT = 0.12  # width of the bob on the strip, of its length


class Pendulum(nn.Module):
    """θ'' = −ω² sin θ − 2ζ θ', stepped by Störmer–Verlet with the drag taken exactly: 4 steps a strip.

    Its frequency and damping are the client's own; the state is (θ, θ') in rad and rad/s.
    """

    quantities = (Quantity("frequency", "rad/s", 1.0, 7.0), Quantity("damping", "1/s", 0.0, 0.8))
    SUBSTEPS = 4

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(len(self.quantities)))

    def values(self) -> Mapping[str, Tensor]:
        return {own.name: own.of(raw) for own, raw in zip(self.quantities, self.raw, strict=True)}

    def forward(self, state: Tensor, strips: int) -> Tensor:
        """Angles (B, strips) at the next strips, from the state (B, 2) at the last one."""
        values = self.values()
        return integrate(state, values["frequency"], values["damping"], strips, self.SUBSTEPS)

    def regulariser(self) -> Tensor:
        """Nothing is likelier than anything else within the bounds; only their rims are kept off."""
        return 1e-4 * self.raw.square().sum()

    def plot(self, path: Path, truth: Mapping[str, Tensor] | None = None) -> Path:
        """The swing from 60° as learnt, and as it is where that is known, over ten seconds."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        strips = int(10 * RATE)
        start = torch.tensor([[math.pi / 3, 0.0]])
        seconds = torch.arange(1, strips + 1) / RATE
        for values, look in ((self.values(), {"label": "learnt"}), (truth, {"label": "true", "linestyle": "--"})):
            if values:
                with torch.no_grad():
                    swing = integrate(start, values["frequency"], values["damping"], strips, self.SUBSTEPS)
                axes.plot(seconds, swing[0].rad2deg(), **look)
        axes.set(xlabel="s", ylabel="degrees")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        figure.savefig(path, format="svg")
        return path


def integrate(state: Tensor, frequency: Tensor, damping: Tensor, strips: int, substeps: int) -> Tensor:
    """Angles (B, strips) of the pendulum after each 1/RATE s; state (B, 2)."""
    angle, speed = state.unbind(-1)
    step = 1 / RATE / substeps
    drag = torch.exp(-damping * step)  # of half a step: e^(−2ζ·h/2)
    angles = []
    for _ in range(strips):
        for _ in range(substeps):
            speed = drag * speed - step / 2 * frequency**2 * torch.sin(angle)
            angle = angle + step * speed
            speed = drag * (speed - step / 2 * frequency**2 * torch.sin(angle))
        angles.append(angle)
    return torch.stack(angles, -1)


def strips(angles: Tensor) -> Tensor:
    """What a line camera sees of a bob at these angles (...): (..., 32), a bright spot at sin θ."""
    place = torch.linspace(-1.1, 1.1, STRIP)
    return torch.exp(-((place - torch.sin(angles)[..., None]) ** 2) / (2 * SPOT**2))


def film(count: int, length: int, own: tuple[Tensor, Tensor], noise: float, generator: torch.Generator) -> Tensor:
    """Strips (count, length, 32) of a pendulum of this frequency and damping, from random states, with normal noise.

    The law is stepped 16 times finer than the layer steps it.
    """
    frequency, damping = own
    angle = 1.2 * (2 * torch.rand(count, generator=generator) - 1)
    speed = frequency * 1.0 * (2 * torch.rand(count, generator=generator) - 1)
    angles = integrate(torch.stack([angle, speed], -1), frequency, damping, length, 16 * Pendulum.SUBSTEPS)
    clean = strips(angles)
    return clean + noise * torch.randn(clean.shape, generator=generator)
