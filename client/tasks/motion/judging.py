"""Samples to judge magnifiers on, made at fixed seeds with the exact truth, by size of motion and level of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedpara.seeds import generator_for
from fedpara.task import Batch

from .generator import Frames, Ranges, even_plan, photographed, render
from .losses import ssim
from .objects import Collection

SIZES = (0.02, 0.04, 0.1, 0.2, 0.5, 1.0)  # motion from A to B, pixels
NOISES = (0.0, 0.1, 0.3)  # levels, see generator.noisy: 0.1 and 0.3 are 1.1 and 3.4 grey levels in a white area
JUDGED = (0.1, 0.2, 0.5, 1.0)  # the sizes that the measure is the mean of
CROP = 96  # side of the frames
AT_ONCE = 8

Method = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # A, B, α, motion → the magnified frame


@dataclass
class Judged:
    """`count` samples from an owner's images, each with its own motion and noise; the same whenever they are made.

    Each row of `cases` is a motion in pixels and a level of noise; samples take them in turn.
    """

    own: Collection
    cases: Sequence[tuple[float, float]]
    count: int
    magnified: float
    seed: int

    def __len__(self) -> int:
        return self.count

    @cached_property
    def motion(self) -> Tensor:
        """The motion from A to B of each sample, pixels."""
        return torch.tensor([self.cases[place % len(self.cases)][0] for place in range(self.count)])

    @cached_property
    def frames(self) -> Frames:
        """Every sample. The same scenes come with every case."""
        ranges = Ranges(CROP, math.inf, math.inf, self.magnified, (2, 6))
        parts = [self._scene(scene, ranges) for scene in range(-(-self.count // len(self.cases)))]
        joined = (torch.cat([getattr(part, name) for part in parts])[: self.count] for name in Frames.__annotations__)
        return Frames(*joined)

    def _scene(self, scene: int, ranges: Ranges) -> Frames:
        """One scene with every case: its motions differ in nothing but their size."""
        drawn = []
        for motion, noise in self.cases:
            generator = generator_for(self.seed, "motion: judge", scene)
            plan = even_plan(torch.tensor([motion]), torch.tensor([noise]), ranges, generator, first=scene)
            places = torch.tensor([scene % len(self.own.images)])
            drawn.append(photographed(render(self.own, places, plan, ranges, generator), plan, generator))
        return Frames(*(torch.cat([getattr(part, name) for part in drawn]) for name in Frames.__annotations__))

    def batch(self, indices: Tensor) -> Batch:
        """Frames A and B, the truth, α and the motion."""
        frames = self.frames
        return tuple(part[indices] for part in (frames.a, frames.b, frames.truth, frames.alpha, self.motion))


def score(method: Method, judged: Judged, device: torch.device) -> tuple[Tensor, Tensor]:
    """SSIM and L1 of each sample, (count,).

    Within `magnified` pixels of the border the truth shows what no frame has seen: that is not looked at.
    """
    border = math.ceil(judged.magnified)
    inner = (..., slice(border, -border), slice(border, -border))
    alike, apart = [], []
    for indices in torch.arange(len(judged)).split(AT_ONCE):
        a, b, truth, alpha, motion = (part.to(device) for part in judged.batch(indices))
        drawn, aim = (((frame[inner] + 1) / 2).clamp(0, 1) for frame in (method(a, b, alpha, motion), truth))
        alike.append(ssim(drawn, aim).cpu())
        apart.append((drawn - aim).abs().mean((1, 2, 3)).cpu())
    return torch.cat(alike), torch.cat(apart)


def by_case(values: Tensor, judged: Judged) -> list[float]:
    """The mean of each case."""
    return [float(values[place :: len(judged.cases)].mean()) for place in range(len(judged.cases))]
