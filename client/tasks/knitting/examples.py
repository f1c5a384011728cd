"""A mill's photographs: with their programs, without, and held out; of a simulated mill or from its own folder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpara.seeds import generator_for
from fedpara.task import Batch

from .programs import random_programs
from .simulated_real import Mill, photographs


@dataclass(frozen=True, eq=False)
class Swatches:
    """Photographs and their programs, uint8 (n, h, w) and (n, h/8, w/8), and photographs alone.

    An epoch has ``samples`` steps through them, however many there are, so that mills with few train as long.
    A batch is: photographs, programs, and where there are any as many photographs alone.
    """

    photographs: Tensor
    programs: Tensor
    alone: Tensor
    samples: int

    def __len__(self) -> int:
        return self.samples

    def batch(self, indices: Tensor) -> Batch:
        own = indices % len(self.photographs)
        pairs = self.photographs[own], self.programs[own]
        return (*pairs, self.alone[indices % len(self.alone)]) if len(self.alone) else pairs


@dataclass(frozen=True, eq=False)
class Taken:
    """What a mill has: photographs with programs to train on, photographs alone, and pairs held out."""

    photographs: Tensor
    programs: Tensor
    alone: Tensor
    held_photographs: Tensor
    held_programs: Tensor


def simulated(own: Mill, seed: int, pairs: int, alone: int, held: int) -> Taken:
    """Simulated photographs of a mill's own designs. A smaller number of pairs are the first of a larger."""
    parts = []
    for purpose, count in (("pairs", pairs), ("alone", alone), ("held", held)):
        drawn, taken = [], []
        for start in range(0, count, 8):  # in eights, each from a generator of its own
            generator = generator_for(seed, "swatches", own.name, purpose, start)
            programs = random_programs(8, generator, own.mix)
            drawn.append(programs)
            taken.append(photographs(programs, own, generator))
        parts.append([torch.cat(own_part)[:count] if count else torch.empty(0) for own_part in (taken, drawn)])
    (photos, programs), (lonely, _), (held_photos, held_programs) = parts
    return Taken(photos, programs, lonely, held_photos, held_programs)
