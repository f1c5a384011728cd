"""Mills' own photographs on disk: MILL/real/*.jpg, MILL/instruction/*.png, and lists of who is in which part.

A program is a picture with a pixel a stitch, the top of the fabric above. With a palette, its numbers are the
instructions whatever the colours; without one, its colours are those of `instructions.PALETTE`. Photographs without a
program of their name are used as such. test.txt (or val.txt) names the pairs that are held out, one a line without or
with suffix; train.txt, where it is there too, those trained on. Without lists a share of the pairs is held out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedpara.data.folder import image_files, read_image
from fedpara.errors import DataError
from fedpara.seeds import generator_for

from .examples import Taken
from .instructions import COUNT, PALETTE
from .renderer import CELL

HELD_LISTS, TRAIN_LIST = ("test.txt", "val.txt"), "train.txt"
LEAST = 4  # cells a side of a program


def mills(root: Path) -> list[str]:
    """Names of the folders under ``root`` with photographs, but for test. Raises DataError where there is none."""
    found = sorted(path.parent.name for path in root.glob("*/real") if path.is_dir() and path.parent.name != "test")
    if not found:
        raise DataError(f"{root} holds no mills: expected {root}/MILL/real/*.jpg and {root}/MILL/instruction/*.png")
    return found


def read_mill(root: Path, name: str, holdout: float, seed: int) -> Taken:
    """A mill's photographs and programs: those of ``root``/name, or of ``root`` itself where there is no such folder.

    Raises:
        DataError: a file is missing or not what it should be; which one, and what to do.
    """
    folder = root / name if (root / name / "real").is_dir() else root
    if not (folder / "real").is_dir():
        raise DataError(f"no photographs of '{name}': expected {root / name}/real/*.jpg")
    photographs = {path.stem: path for path in image_files(folder / "real")}
    programs = {path.stem: path for path in _programs_in(folder)}
    lonely = sorted(set(programs) - set(photographs))
    if lonely:
        raise DataError(
            f"{programs[lonely[0]]} has no photograph: put {lonely[0]}.jpg into {folder / 'real'}, or remove it"
        )
    pairs = sorted(programs)
    if not pairs:
        raise DataError(f"{folder} has no programs: put instruction/NAME.png there for some of its photographs")
    held = _held(folder, pairs, holdout, seed)
    train = [pair for pair in _listed(folder / TRAIN_LIST, pairs) or pairs if pair not in held]
    if not train:
        raise DataError(f"{folder}: every pair is held out by its lists: leave some to train on")
    read = {pair: read_pair(photographs[pair], programs[pair]) for pair in [*train, *held]}
    first = read[train[0]][1].shape
    for pair, (_, program) in read.items():
        if program.shape != first:
            have, want = (f"{size[1]} x {size[0]}" for size in (program.shape, first))
            raise DataError(f"{programs[pair]} is {have} stitches, {programs[train[0]]} {want}: give all one size")
    size = (first[0] * CELL, first[1] * CELL)
    alone = [read_image(photographs[name], 1, size)[0] for name in sorted(set(photographs) - set(programs))]
    parts = [torch.stack(part) for part in zip(*(read[pair] for pair in train), strict=True)]
    parts += [torch.stack(alone) if alone else torch.empty(0)]
    parts += (
        [torch.stack(part) for part in zip(*(read[pair] for pair in held), strict=True)]
        if held
        else [torch.empty(0), torch.empty(0)]
    )
    return Taken(*parts)


def read_test(root: Path) -> Taken | None:
    """What is in ``root``/test, to judge the common network on; None where there is no such folder."""
    return read_mill(root, "test", 0.0, 0) if (root / "test" / "real").is_dir() else None


def read_pair(photograph: Path, program: Path) -> tuple[Tensor, Tensor]:
    """A photograph in grey, eight pixels a stitch of its program, uint8; and the program, uint8."""
    grid = read_program(program)
    return read_image(photograph, 1, (grid.shape[0] * CELL, grid.shape[1] * CELL))[0], grid


def read_program(path: Path) -> Tensor:
    """A program from a picture, uint8 (rows, columns).

    Raises:
        DataError: it cannot be read, is no program, or has numbers or colours of no instruction; and where.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in ("P", "L"):
                grid = np.array(image, np.int64)
            else:
                grid = _by_colour(np.array(image.convert("RGB"), np.int64))
    except Exception as error:  # Pillow raises many kinds of error for damaged files
        raise DataError(f"{path} cannot be read as a picture ({error}). Replace it or remove it") from None
    if min(grid.shape) < LEAST or max(grid.shape) > 400:
        raise DataError(
            f"{path} is {grid.shape[1]} x {grid.shape[0]} pixels: a program has one pixel a stitch, such as 20 x 20"
        )
    wrong = np.argwhere((grid < 0) | (grid >= COUNT))
    if len(wrong):
        row, column = wrong[0]
        what = f"number {grid[row, column]}" if grid[row, column] >= 0 else "colour"
        raise DataError(
            f"{path}: the {what} at row {row}, column {column} is no instruction: they are 0 to {COUNT - 1} with a "
            "palette, or the palette's colours"
        )
    return torch.from_numpy(grid.astype(np.uint8))


def program_png(program: Tensor) -> bytes:
    """A program as a PNG with the palette, as `read_program` takes it."""
    import io

    from PIL import Image

    image = Image.fromarray(program.to(torch.uint8).numpy(), "P")
    image.putpalette([value for colour in PALETTE for value in colour])
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _by_colour(pixels: np.ndarray) -> np.ndarray:
    """Instructions of colours (h, w, 3); -1 where a colour is not of the palette."""
    apart = np.abs(pixels[:, :, None] - np.array(PALETTE)[None, None]).sum(-1)
    return np.where(apart.min(-1) == 0, apart.argmin(-1), -1)


def _programs_in(folder: Path) -> list[Path]:
    inside = folder / "instruction"
    return image_files(inside) if inside.is_dir() and any(inside.iterdir()) else []


def _held(folder: Path, pairs: list[str], holdout: float, seed: int) -> list[str]:
    """The pairs that are held out: a list's, else a share drawn by the seed; of a single pair none."""
    for name in HELD_LISTS:
        if listed := _listed(folder / name, pairs):
            return listed
    count = min(round(holdout * len(pairs)), len(pairs) - 1)
    order = torch.randperm(len(pairs), generator=generator_for(seed, "held out", folder.name))
    return sorted(pairs[int(place)] for place in order[:count])


def _listed(path: Path, pairs: list[str]) -> list[str]:
    """The pairs named in a list, which may be empty or absent. Raises DataError for a name that there is not."""
    if not path.is_file():
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    names = [Path(line).name for line in lines if line and not line.startswith("#")]
    found = [name if name in pairs else Path(name).stem for name in names]
    for name in found:
        if name not in pairs:
            raise DataError(f"{path} names {name}, of which there is no photograph with a program: remove the line")
    return found
