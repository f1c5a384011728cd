"""A trained reader on a photograph of one's own: the program, its chart, the fabric drawn from it, how sure it is."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.checkpoint import replace_file
from fedpara.config import setting
from fedpara.data.folder import read_image
from fedpara.errors import ConfigError, DataError

from .charts import chart, confidence_map
from .files import program_png
from .instructions import COUNT, NAMES
from .knittability import violations
from .network import Knitter, scaled
from .renderer import CELL, render

FEWEST_PIXELS = 4  # of a photograph, a stitch
SKEW = 1.2  # how far a photograph's shape may be from that of its stitches
FLAT = 2.0  # grey levels of deviation below which nothing is in a photograph
CLEARER = 0.1  # mean confidence by which another rotation must be ahead to be named


@dataclass(frozen=True)
class Apply:
    """What fedpara apply takes besides a photograph and where its program goes."""

    rows: int = setting(20, "stitches that the photograph shows from top to bottom", low=4, high=400)
    columns: int = setting(20, "stitches that it shows from left to right", low=4, high=400)
    rotate: int = setting(0, "degrees to turn it clockwise first, after its EXIF", choices=(0, 90, 180, 270))
    crop: bool = setting(False, "cut its middle to the shape of the stitches, where it has another")


def read_file(model: nn.Module, source: Path | None, output: Path | None, options: Apply) -> list[str]:
    """Write what is read of a photograph; lines that say so.

    Raises:
        DataError: there is no input or output, or the photograph is none of so many stitches.
    """
    if source is None or output is None:
        raise DataError("give a photograph and where its program goes: photo.jpg program.png")
    if output.suffix.lower() != ".png":
        raise DataError(f"{output}: a program is written as .png, a pixel a stitch; name OUTPUT so")
    if output.resolve() == source.resolve():
        raise DataError(f"{output} is the photograph itself: name another output")
    if not output.parent.is_dir():
        raise DataError(f"no folder {output.parent}: create it first")
    if not isinstance(model, Knitter):
        raise ConfigError(f"a {type(model).__name__} reads no stitches: give a run of the task 'knitting'")
    photograph = _upright(source, options)
    shares = read(model, photograph, options.rows, options.columns)
    sure, program = shares.max(0)
    wrong = violations(program)
    beside = {part: output.with_name(f"{output.stem}-{part}") for part in PARTS}
    contents = {
        output: program_png(program),
        beside["chart.png"]: chart(program, wrong),
        beside["fabric.png"]: _png(render(program[None])[0]),
        beside["confidence.png"]: confidence_map(sure),
        beside["confidence.csv"]: _table(program, sure),
    }
    for path, content in contents.items():
        replace_file(path, content)
    names = torch.bincount(program.flatten(), minlength=COUNT)
    lines = [
        f"{source.name}: {options.rows} x {options.columns} stitches, mean confidence {float(sure.mean()):.2f}, "
        f"{int((sure < 0.5).sum())} cells below 0.5",
        "  ".join(f"{NAMES[place]} {int(names[place])}" for place in names.argsort(descending=True) if names[place]),
        _knittable(wrong),
        *_other_way(model, photograph, options, float(sure.mean())),
        f"written: {', '.join(map(str, contents))}",
    ]
    return lines


PARTS = ("chart.png", "fabric.png", "confidence.png", "confidence.csv")


def read(model: nn.Module, photograph: Tensor, rows: int, columns: int) -> Tensor:
    """Probabilities of instructions (17, rows, columns) of a photograph, uint8 (h, w) of any size."""
    size = (rows * CELL, columns * CELL)
    fitted = F.interpolate(photograph[None, None].float(), size, mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        shares: Tensor = model(scaled(fitted[0].round().to(torch.uint8)))[0].softmax(0)
    return shares


def _upright(source: Path, options: Apply) -> Tensor:
    """The photograph in grey, turned and cut as asked, uint8 (h, w)."""
    photograph = read_image(source, 1)[0].rot90(-options.rotate // 90)
    height, width = photograph.shape
    skew = (width / height) / (options.columns / options.rows)
    if not 1 / SKEW <= skew <= SKEW:
        if not options.crop:
            raise DataError(
                f"{source} is {width} x {height} pixels and said to show {options.columns} x {options.rows} stitches: "
                "cut it to whole stitches, give --rows and --columns, or --crop true for its middle"
            )
        wide = min(width, round(height * options.columns / options.rows))
        high = min(height, round(width * options.rows / options.columns))
        top, left = (height - high) // 2, (width - wide) // 2
        photograph = photograph[top : top + high, left : left + wide]
        height, width = photograph.shape
    if height < FEWEST_PIXELS * options.rows or width < FEWEST_PIXELS * options.columns:
        raise DataError(
            f"{source} shows {options.columns} x {options.rows} stitches on {width} x {height} pixels: "
            f"{FEWEST_PIXELS} pixels a stitch are the least; give a larger photograph"
        )
    if float(photograph.float().std()) < FLAT:
        raise DataError(f"{source} is of one grey all over: there are no stitches in it")
    return photograph


def _other_way(model: nn.Module, photograph: Tensor, options: Apply, own: float) -> list[str]:
    """A line where the photograph reads more surely when it is turned."""
    if options.rows != options.columns:
        return []
    turned = {
        angle: float(read(model, photograph.rot90(-angle // 90), options.rows, options.columns).amax(0).mean())
        for angle in (90, 180, 270)
    }
    angle = max(turned, key=lambda angle: turned[angle])
    if turned[angle] < own + CLEARER:
        return []
    again = (options.rotate + angle) % 360
    return [
        f"turned by {angle} degrees it reads more surely ({turned[angle]:.2f} against {own:.2f}): if it lies on its "
        f"side or on its head, give --rotate {again}"
    ]


def _knittable(wrong: list) -> str:  # type: ignore[type-arg]
    if not wrong:
        return "knittable: no rule is broken"
    first = wrong[0]
    more = f", and {len(wrong) - 1} more, marked in the chart" if len(wrong) > 1 else ""
    return f"not knittable: row {first.row}, column {first.column}: {first.text}{more}"


def _table(program: Tensor, sure: Tensor) -> bytes:
    rows = [
        f"{row},{column},{NAMES[int(program[row, column])]},{float(sure[row, column]):.4f}"
        for row in range(program.shape[0])
        for column in range(program.shape[1])
    ]
    return ("\n".join(["row,column,instruction,confidence", *rows]) + "\n").encode()


def _png(grey: Tensor) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(grey.numpy()).save(content, "PNG")
    return content.getvalue()
