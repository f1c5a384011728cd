"""One door to every data set."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from .cifar import load_cifar
from .digits import load_digits
from .files import data_roots
from .folder import load_folder
from .hub import load_hf, load_torchvision
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
    name: str,
    *,
    folder: Path | None = None,
    download: bool = True,
    image_size: int | None = None,
    columns: Sequence[str] = (),
) -> ImageData:
    """A data set by name (`DATASETS`), read from its official files, downloaded when no root holds them.

    folder: the data root or the data set's own folder; then $FEDPARA_DATA and the cache (~/.cache/fedpara) are
    searched. For "folder" it is the folder of class folders, and image_size (pixels) makes its images one size.
    "hf:NAME" is a data set of Hugging Face `datasets` (its name on the Hub, or a folder), of which `columns` are image,
    label and owner; "torchvision:NAME" one of torchvision; both take image_size (`fedpara.data.hub`).
    Raises ConfigError for an argument, DataError for files that are missing or damaged.
    """
    size = (image_size, image_size) if image_size else None
    library, _, spec = name.partition(":")
    if columns and library != "hf":
        raise ConfigError(f"columns = {list(columns)} is for data sets 'hf:NAME', and the data set is {name!r}")
    if library == "hf" and spec:
        return load_hf(spec, data_roots(folder), size, columns)
    if library == "torchvision" and spec:
        return load_torchvision(spec, data_roots(folder), size)
    name = _ALIASES.get(name, name)
    if name not in DATASETS:
        near = difflib.get_close_matches(name, (*DATASETS, *_ALIASES), n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"there is no data set {name!r}. {hint}Known: {', '.join(DATASETS)}, hf:NAME, torchvision:NAME"
        )
    if image_size is not None and (name != "folder" or image_size < 1):
        raise ConfigError(
            f"image_size is {image_size} for {name!r}; it is for 'folder', 'hf:' and 'torchvision:', 1 or more pixels"
        )
    if name == "digits":
        return load_digits()
    if name == "folder":
        if folder is None:
            raise ConfigError("the data set 'folder' needs folder=..., the folder that holds the class folders")
        return load_folder(Path(folder).expanduser(), image_size)
    return _OFFICIAL[name](name, data_roots(folder), download=download)
