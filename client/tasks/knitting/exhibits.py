"""What the report shows of a trained reader: figures by instruction, and photographs beside what was read of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedpara.task import Exhibit

from .charts import coloured
from .examples import Taken
from .instructions import NAMES, modal
from .judging import by_instruction, confusion, score
from .network import Knitter, scaled
from .renderer import render

SHOWN = 4  # photographs in the picture


def exhibits(model: Knitter, test: Taken, *, simulated: bool) -> Sequence[Exhibit]:
    """Figures by instruction, and photographs beside what was read of them."""
    said, true = read_all(model, test.photographs), test.programs.long()
    ground = modal(true).view(-1, 1, 1).expand_as(true)
    readers = {"this network": said, "each program's most frequent instruction everywhere": ground}
    scores = [["", "full", "foreground", "cells that break a rule"]]
    for name, read in readers.items():
        values = score(read, true).values()
        scores.append([name, *(f"{100 * values[key]:.2f} %" for key in ("accuracy", "foreground", "violations"))])
    kind = "simulated photographs of a mill that nobody trained on" if simulated else "the photographs in test/"
    shown = "Simulated photographs" if simulated else "Photographs"
    return [
        Exhibit(f"{len(true)} {kind}", rows=scores),
        Exhibit("By instruction", rows=by_instruction(confusion(said, true), NAMES)),
        Exhibit(
            f"{shown}, what was read, the fabric drawn from that, the true program, what is wrong in black",
            pictures=_pictures(model, test, said),
        ),
    ]


def read_all(model: Knitter, photographs: Tensor) -> Tensor:
    """Programs as read, int64 (n, rows, columns)."""
    with torch.no_grad():
        return torch.cat([model(scaled(part)).argmax(1) for part in photographs.split(16)])


def _pictures(model: Knitter, test: Taken, said: Tensor) -> dict[str, list[tuple[str, Tensor]]]:
    true = test.programs.long()
    kinds = [len(torch.unique(program)) for program in true]
    chosen = sorted(range(len(true)), key=lambda place: -kinds[place])[:: max(1, len(true) // (2 * SHOWN))][:SHOWN]
    rows = {}
    for number, place in enumerate(chosen, start=1):
        photograph = scaled(test.photographs[place : place + 1])
        pictures = {"photograph": test.photographs[place] / 255}
        if model.refiner is not None:
            with torch.no_grad():
                pictures["refined"] = (model.refined(photograph)[0, 0] + 1) / 2
        pictures |= {
            "read": _colours(said[place]),
            "drawn from it": render(said[place : place + 1])[0] / 255,
            "true": _colours(true[place]),
            "wrong": (said[place] == true[place]).float(),
        }
        rows[f"Photograph {number}"] = list(pictures.items())
    return rows


def _colours(program: Tensor) -> Tensor:
    """A program in the palette's colours, (3, rows, columns) in [0, 1]."""
    return torch.from_numpy(coloured(program)).permute(2, 0, 1) / 255
