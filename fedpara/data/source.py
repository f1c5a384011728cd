"""One door to every data set."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..errors import ConfigError
from .cifar import load_cifar
from .digits import load_digits
from .files import data_roots
from .folder import load_folder
from .idx import load_mnist, load_writers
from .images import ImageData

_OFFICIAL = {
    "mnist": load_mnist,
    "fashion-mnist": load_mnist,
    "qmnist-writers": load_writers,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
}
_ALIASES = {"mnist-writers": "qmnist-writers"}
DATASETS = ("digits", *_OFFICIAL, "folder")


def load_dataset(
    name: str, *, folder: Path | None = None, download: bool = True, image_size: int | None = None
) -> ImageData:
    """A data set by name (`DATASETS`), read from its official files, downloaded when no root holds them.

    folder: the data root or the data set's own folder; then $FEDPARA_DATA and the cache (~/.cache/fedpara) are
    searched. For "folder" it is the folder of class folders, and image_size (pixels) makes its images one size.
    Raises ConfigError for an argument, DataError for files that are missing or damaged.
    """
    name = _ALIASES.get(name, name)
    if name not in DATASETS:
        near = difflib.get_close_matches(name, (*DATASETS, *_ALIASES), n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no data set {name!r}. {hint}Known: {', '.join(DATASETS)}")
    if image_size is not None and (name != "folder" or image_size < 1):
        raise ConfigError(f"image_size is {image_size} for {name!r}; it is for 'folder' only, 1 or more pixels")
    if name == "digits":
        return load_digits()
    if name == "folder":
        if folder is None:
            raise ConfigError("the data set 'folder' needs folder=..., the folder that holds the class folders")
        return load_folder(Path(folder).expanduser(), image_size)
    return _OFFICIAL[name](name, data_roots(folder), download=download)
