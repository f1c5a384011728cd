"""A camera's own photographs on disk: scenes/<scene>/*.jpg with EXIF, or with an exposure.csv beside them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from fedpara.data.folder import image_files, read_image
from fedpara.errors import DataError

from .align import aligned, valid_area
from .scenes import Camera, Photograph, Scene

TABLES = ("exposure.csv", "exposures.csv")
FILE = ("file", "filename")
SECONDS, STOPS = ("exposure_seconds", "exposure_time", "seconds", "exposure", "time"), ("ev",)
_EXIF, _TIME, _APERTURE, _ISO = 0x8769, 0x829A, 0x829D, 0x8827
CLIPPED = 0.999  # a photograph with so large a share of black or white channels tells nothing


def read_bracket(folder: Path) -> list[Photograph]:
    """The photographs of one folder, least exposed first, aligned, each with its nominal exposure in EV.

    An exposure.csv (columns file and exposure_seconds, or file and ev) has the word over EXIF. Photographs that are all
    black or all white are left out.

    Raises:
        DataError: no image, no exposure known, sizes differ, no common view, or nothing but black and white.
    """
    paths = image_files(folder)
    exposures = _exposures(folder, paths)
    found = [_photograph(path, exposures[path]) for path in paths]
    first = found[0]
    for photo in found:
        if photo.size != first.size:
            sizes = " and ".join(f"{own.name} is {own.size[1]} x {own.size[0]}" for own in (first, photo))
            raise DataError(f"the photographs of {folder} differ in size ({sizes} pixels): give them one size")
    usable = [photo for photo in found if not is_blank(photo.pixels)]
    if not usable:
        raise DataError(f"every photograph of {folder} is all black or all white: nothing of the scene is in them")
    usable.sort(key=lambda photo: photo.exposure)
    return [replace(photo, row=row) for row, photo in enumerate(aligned(usable)[0])]


def read_photograph(path: Path) -> Photograph:
    """One photograph, of which only relative exposures are asked: its own counts as 0 EV.

    Raises:
        DataError: it cannot be read, or is all black or all white.
    """
    photo = _photograph(path, 0.0)
    if is_blank(photo.pixels):
        raise DataError(f"{path} is all black or all white: nothing of the scene is in it")
    return photo


def read_camera(root: Path, name: str, size: int) -> Camera:
    """A client's scenes for training, every k-th pixel of photographs so that none is longer than ``size``.

    Of four exposures or more the least and the most are held out, of three the most. Photographs alone in their scene
    serve as scenes for synthetic variation.

    Raises:
        DataError: there is no scene, or one cannot be read.
    """
    folder = root / name / "scenes" if (root / name / "scenes").is_dir() else root / "scenes"
    if not folder.is_dir():
        raise DataError(f"no photographs of '{name}': expected {root / name / 'scenes'}/SCENE/*.jpg")
    places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not places:
        raise DataError(f"{folder} holds no folder of photographs: expected {folder}/SCENE/*.jpg")
    scenes, rows = [], 0
    for place in places:
        taken = [_thinned(photo, size) for photo in read_bracket(place)]
        train, held = _parted(taken)
        scenes.append(Scene(place.name, [replace(photo, row=rows + n) for n, photo in enumerate(train)], held))
        rows += len(train)
    return Camera(name, scenes)


def clients(root: Path) -> list[str]:
    """Names of the folders under ``root`` that hold scenes. Raises DataError where there is none."""
    found = sorted(path.parent.name for path in root.glob("*/scenes") if path.is_dir())
    if not found:
        raise DataError(f"{root} holds no cameras: expected {root}/CAMERA/scenes/SCENE/*.jpg")
    return found


def is_blank(pixels: Tensor) -> bool:
    """Whether all of it is black, or all of it white, but for stray pixels."""
    return max(float((pixels <= 1).float().mean()), float((pixels >= 254).float().mean())) > CLIPPED


def _parted(photographs: list[Photograph]) -> tuple[list[Photograph], list[Photograph]]:
    """What is trained on and what is held out, of photographs by exposure."""
    distinct = len({photo.exposure for photo in photographs})
    if distinct >= 4:
        return photographs[1:-1], [photographs[0], photographs[-1]]
    return (photographs[:-1], photographs[-1:]) if distinct == 3 else (photographs, [])


def _photograph(path: Path, exposure: float) -> Photograph:
    pixels = read_image(path, 3)
    return Photograph(pixels, exposure, valid=valid_area(pixels), name=path.name)


def _thinned(photo: Photograph, size: int) -> Photograph:
    """Every k-th pixel. A mean of neighbours would be one of responses, which no exposure of theirs has."""
    step = -(-max(photo.size) // size)
    valid = None if photo.valid is None else photo.valid[::step, ::step].contiguous()
    return replace(photo, pixels=photo.pixels[:, ::step, ::step].contiguous(), valid=valid)


def _exposures(folder: Path, paths: Sequence[Path]) -> dict[Path, float]:
    """Nominal exposures in EV: from the table where there is one, else from EXIF; alone, a photograph needs none."""
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is not None:
        known = _table(table)
        for path in paths:
            if path.name not in known:
                raise DataError(f"{table} has no line for {path.name}: add it, or move the photograph elsewhere")
        return {path: known[path.name] for path in paths}
    found = {path: exif_exposure(path) for path in paths}
    missing = [path for path, exposure in found.items() if exposure is None]
    if missing and len(paths) > 1:
        raise DataError(
            f"{missing[0]} has no exposure time in its EXIF: "
            f"put an exposure.csv beside it (file,exposure_seconds; then for example {missing[0].name},1/60)"
        )
    return {path: exposure or 0.0 for path, exposure in found.items()}


def _table(file: Path) -> dict[str, float]:
    """File names and their exposures in EV."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        delimiter = next((mark for mark in ";\t" if lines and mark in lines[0] and "," not in lines[0]), ",")
        rows = list(csv.DictReader(lines, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    header = [str(name).strip().lower() for name in (rows[0] if rows else {})]
    named = next((name for name in FILE if name in header), None)
    column = next((name for name in (*SECONDS, *STOPS) if name in header), None)
    if named is None or column is None:
        raise DataError(f"{file} has the columns {header}: expected file and exposure_seconds, or file and ev")
    found = {}
    for row in rows:
        cells = {str(name).strip().lower(): str(value or "").strip() for name, value in row.items()}
        found[cells[named]] = _stops(cells[column], column, f"{file}, {cells[named]}")
    return found


def _stops(text: str, column: str, where: str) -> float:
    try:
        number = text.removesuffix("s").strip() if column in SECONDS else text
        value = float(Fraction(number.replace(" ", ""))) if "/" in number else float(number)
    except (ValueError, ZeroDivisionError):
        raise DataError(f"{where}: {column} = {text!r} is no number; give seconds such as 0.5 or 1/60") from None
    if not math.isfinite(value) or (column in SECONDS and value <= 0):
        raise DataError(f"{where}: {column} = {text!r}; an exposure takes a time above 0 s")
    return math.log2(value) if column in SECONDS else value


def exif_exposure(path: Path) -> float | None:
    """log2(t · ISO/100 / N²) in EV from EXIF's exposure time t (s), ISO speed and aperture N; None without a time."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            tags = image.getexif().get_ifd(_EXIF)
        time = float(tags[_TIME])
        speed = tags.get(_ISO, 100)
        speed = float(speed[0] if isinstance(speed, tuple) else speed)
        aperture = float(tags.get(_APERTURE, 1))
    except Exception:  # absent, or nonsense: cameras write many kinds
        return None
    if not all(math.isfinite(value) and value > 0 for value in (time, speed, aperture)):
        return None
    return math.log2(time * speed / 100 / aperture**2)
