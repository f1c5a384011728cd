"""What the report shows of a trained reader: figures by instruction, and photographs beside what was read of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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


def exhibits(model: Knitter, test: Taken, folder: Path, *, simulated: bool) -> Sequence[Exhibit]:
    """A table and a picture, which is written into ``folder``."""
    said, true = read_all(model, test.photographs), test.programs.long()
    values, ground = score(said, true).values(), modal(true).view(-1, 1, 1).expand_as(true)
    plain = score(ground, true).values()
    kind = "simulated photographs of a mill that nobody trained on" if simulated else "the photographs in test/"
    summary = (
        f"Full {100 * values['accuracy']:.2f} %, foreground {100 * values['foreground']:.2f} %, "
        f"{100 * values['violations']:.2f} % of the cells break a rule; "
        f"each program's most frequent instruction everywhere: {100 * plain['accuracy']:.2f} % / 0 %"
    )
    table = f"{summary}\n\n{by_instruction(confusion(said, true), NAMES)}"
    picture = _picture(model, test, said, folder / "read.png")
    return [
        Exhibit(f"{len(true)} {kind}, by instruction", table=table),
        Exhibit(
            ("Simulated photographs" if simulated else "Photographs")
            + ", what was read, the fabric drawn from that, the true program, what is wrong in black",
            picture,
        ),
    ]


def read_all(model: Knitter, photographs: Tensor) -> Tensor:
    """Programs as read, int64 (n, rows, columns)."""
    with torch.no_grad():
        return torch.cat([model(scaled(part)).argmax(1) for part in photographs.split(16)])


def _picture(model: Knitter, test: Taken, said: Tensor, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    true = test.programs.long()
    kinds = [len(torch.unique(program)) for program in true]
    chosen = sorted(range(len(true)), key=lambda place: -kinds[place])[:: max(1, len(true) // (2 * SHOWN))][:SHOWN]
    heads = ["photograph", "refined", "read", "drawn from it", "true", "wrong"]
    if model.refiner is None:
        heads.remove("refined")
    figure = Figure(figsize=(1.9 * len(heads), 2.0 * len(chosen)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(chosen), len(heads), squeeze=False)
    for line, place in zip(grid, chosen, strict=True):
        photograph = scaled(test.photographs[place : place + 1])
        with torch.no_grad():
            refined = model.refined(photograph)
        shown = {
            "photograph": photograph[0, 0].numpy(),
            "refined": refined[0, 0].numpy(),
            "read": coloured(said[place]),
            "drawn from it": render(said[place : place + 1])[0].numpy(),
            "true": coloured(true[place]),
            "wrong": (said[place] == true[place]).numpy(),
        }
        for axes, head in zip(line, heads, strict=True):
            axes.imshow(shown[head], cmap="gray", **({"vmin": 0, "vmax": 1} if head == "wrong" else {}))
            axes.set_axis_off()
            if line is grid[0]:
                axes.set_title(head, fontsize=9)
    figure.savefig(path)
    return path
