"""Any folder of class-named folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .digits import stratified_split
from .images import ImageData, Split

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
# By name, because Pillow would otherwise try every format it knows on a file, some through other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"})
_Files = list[tuple[Path, int]]  # each image and its label


def load_folder(root: Path, image_size: int | None = None) -> ImageData:
    """Images under root/train/<class>/ and root/test/<class>/, or under root/<class>/ (80 % of each class to train).

    Images (N, C, H, W): C is 1 when all are grey, else 3. image_size (pixels): the shorter side is scaled to it and the
    middle square kept; without it all images must have one size. Raises DataError with the file's name.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. Expected {_EXPECTED}")
    whole = not (root / "train").is_dir()
    base = root if whole else root / "train"
    classes = tuple(path.name for path in _folders(base))
    if len(classes) < 2:
        found = f"only the class {classes[0]}" if classes else "no class folders"
        raise DataError(f"{base} holds {found}; two or more are needed. Expected {_EXPECTED}")
    train = _list(base, classes)
    if whole:
        indices = stratified_split(np.array([label for _, label in train], np.int64))
        train, test = ([train[i] for i in part] for part in indices)
    else:
        test = _list(_test_folder(root), classes)
    if not test:
        raise DataError(f"{root} leaves no image for testing. Give every class two images or more")
    channels = 1 if all(_is_grey(path) for path, _ in train + test) else 3
    size = (image_size, image_size) if image_size is not None else None
    images = _read_all([path for path, _ in train + test], channels, size)
    labels = torch.tensor([label for _, label in train + test])
    cut = len(train)
    return ImageData(Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:]), classes, root.resolve().name)


_EXPECTED = "train/<class>/*.png and test/<class>/*.png, or <class>/*.png"


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _test_folder(root: Path) -> Path:
    for name in ("test", "val"):
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root} has train/ but no test/. Add test/<class>/, or put the class folders in {root} itself")


def _list(base: Path, classes: Sequence[str]) -> _Files:
    unknown = [path.name for path in _folders(base) if path.name not in classes]
    if unknown:
        raise DataError(
            f"{base} holds the class {unknown[0]}, which train/ does not have. Add it there or remove it here"
        )
    files: _Files = []
    for label, name in enumerate(classes):
        if not (base / name).is_dir():
            continue  # a class without test images is allowed
        paths = (path for path in (base / name).iterdir() if not path.name.startswith("."))
        images = sorted(path for path in paths if path.suffix.lower() in _SUFFIXES)
        if not images:
            raise DataError(f"{base / name} holds no images ({', '.join(sorted(_SUFFIXES))}). Add some or remove it")
        files += [(path, label) for path in images]
    return files


def _is_grey(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.mode in _GREY_MODES
    except Exception as error:  # Pillow raises many kinds of error for damaged files
        raise _unreadable(path, error) from error


def _read_all(paths: Sequence[Path], channels: int, size: tuple[int, int] | None) -> Tensor:
    first = read_image(paths[0], channels, size)
    images = torch.empty((len(paths), *first.shape), dtype=torch.uint8)
    for i, path in enumerate(paths):
        image = read_image(path, channels, size)
        if image.shape != first.shape:
            have, want = (f"{shape[2]}x{shape[1]}" for shape in (image.shape, first.shape))
            raise DataError(f"{path} is {have} pixels, {paths[0]} is {want}. Set image_size to bring all to one size")
        images[i] = image
    return images


def image_files(source: Path) -> list[Path]:
    """The image at this path, or all images directly in this folder, by name. Raises DataError where there is none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"nothing is at {source}: give an image or a folder of images")
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in _SUFFIXES and path.name[0] != ".")
    if not found:
        raise DataError(f"{source} holds no images ({', '.join(sorted(_SUFFIXES))})")
    return found


def read_image(path: Path, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """One image, turned as its EXIF says, as uint8 (channels, H, W); its middle scaled to size (H, W).

    Raises:
        DataError: the file is no image that can be read.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as source:
            return as_pixels(source, channels, size)
    except Exception as error:  # as above
        raise _unreadable(path, error) from error


def as_pixels(source: Image.Image, channels: int | None, size: tuple[int, int] | None = None) -> Tensor:
    """A picture of Pillow, turned as its EXIF says, as uint8 (channels, H, W); its middle scaled to size (H, W).

    Without ``channels`` it has one where it is grey, else three.
    """
    from PIL import Image, ImageOps

    channels = channels or (1 if source.mode in _GREY_MODES else 3)
    image: Image.Image = ImageOps.exif_transpose(source)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    pixels = np.array(image, np.uint8)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as an image ({error}). Replace it or remove it")
