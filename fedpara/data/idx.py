"""The idx format of MNIST and its relatives, and the data sets that come in it."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .download import Remote
from .files import Layout, damaged, locate
from .images import ImageData, Split

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_WRITER_FILES = ("qmnist-train-labels-idx2-int", "qmnist-test-labels-idx2-int")
_TYPES: dict[int, np.dtype[np.integer]] = {
    0x08: np.dtype("u1"),
    0x0C: np.dtype(">i4"),
}  # type code in the magic number -> values, high byte first
_SIDE = 28

_MNIST = Layout(("MNIST/raw", "MNIST", "mnist", "raw", ""), _FILES, (".gz", ""))
_FASHION = Layout(("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "raw", ""), _FILES, (".gz", ""))
_WRITERS = Layout(("QMNIST/raw", "QMNIST", "qmnist", "raw", ""), _WRITER_FILES, (".gz", ""))

# Checksums of the files at the addresses, as published there (Fashion-MNIST and QMNIST: in the project's own
# repository or in torchvision).
_MNIST_REMOTES = tuple(
    Remote(
        (
            f"https://ossci-datasets.s3.amazonaws.com/mnist/{file}.gz",
            f"https://storage.googleapis.com/cvdf-datasets/mnist/{file}.gz",
        ),
        f"sha256:{checksum}",
        "MNIST/raw",
        f"{file}.gz",
    )
    for file, checksum in zip(
        _FILES,
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        strict=True,
    )
)
_FASHION_REMOTES = tuple(
    Remote(
        (
            f"https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/{file}.gz",
            f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{file}.gz",
        ),
        f"md5:{checksum}",
        "FashionMNIST/raw",
        f"{file}.gz",
    )
    for file, checksum in zip(
        _FILES,
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        strict=True,
    )
)
_WRITER_REMOTES = tuple(
    Remote(
        (f"https://raw.githubusercontent.com/facebookresearch/qmnist/master/{file}.gz",),
        f"md5:{checksum}",
        "QMNIST/raw",
        f"{file}.gz",
    )
    for file, checksum in zip(
        _WRITER_FILES, ("0058f8dd561b90ffdd0f734c6a30e5e4", "5b5b05890a5e13444e108efe57b788aa"), strict=True
    )
)

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# MNIST and Fashion-MNIST share their file names; their first training labels tell one from the other.
_FIRST_LABELS = {
    "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7),
    "fashion-mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9),
}


def read_idx(path: Path, code: int, shape: Sequence[int | None]) -> NDArray[np.integer]:
    """One idx file, gzipped when its name ends in .gz (format: the MNIST page of LeCun, Cortes and Burges).

    code: 0x08 for bytes, 0x0C for int32. shape: the expected one, None where any size does. Raises DataError.
    """
    data = _read_bytes(path)
    magic = bytes((0, 0, code, len(shape)))
    if data[:4] != magic:
        raise damaged(path, f"starts with {data[:4].hex(' ') or 'nothing'}, expected the idx magic {magic.hex(' ')}")
    start = 4 + 4 * len(shape)
    if len(data) < start:
        raise damaged(path, f"has {len(data)} bytes, expected a header of {start}")
    found = struct.unpack(f">{len(shape)}I", data[4:start])
    if 0 in found or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        wanted = " x ".join("N" if want is None else str(want) for want in shape)
        raise damaged(path, f"holds {' x '.join(map(str, found))} values, expected {wanted}")
    expected = start + math.prod(found) * _TYPES[code].itemsize
    if len(data) != expected:
        raise damaged(path, f"has {len(data):,} bytes, expected {expected:,} by its header")
    return np.frombuffer(data, _TYPES[code], offset=start).reshape(found)


def _read_bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"cannot be read ({error})") from error


def load_mnist(name: str, roots: Sequence[Path], *, download: bool) -> ImageData:
    """MNIST (LeCun et al., 1998) or Fashion-MNIST (Xiao et al., 2017): images (N, 1, 28, 28). Raises DataError."""
    fashion = name == "fashion-mnist"
    layout, remotes = (_FASHION, _FASHION_REMOTES) if fashion else (_MNIST, _MNIST_REMOTES)
    _, paths = locate(name, (layout,), remotes, roots, download=download)
    train = _read_split(paths[_FILES[0]], paths[_FILES[1]])
    test = _read_split(paths[_FILES[2]], paths[_FILES[3]])
    for other, labels in _FIRST_LABELS.items():
        if other != name and tuple(train.labels[: len(labels)].tolist()) == labels:
            raise damaged(paths[_FILES[1]], f"is {other}, not {name}: keep the two in folders of their own")
    return ImageData(train, test, _CLOTHES if fashion else _DIGITS, name)


def _read_split(images: Path, labels: Path) -> Split:
    pixels = read_idx(images, 0x08, (None, _SIDE, _SIDE))
    classes = read_idx(labels, 0x08, (None,))
    if len(classes) != len(pixels):
        raise damaged(labels, f"holds {len(classes):,} labels, expected {len(pixels):,} as {images.name} has images")
    if classes.max() > 9:
        raise damaged(labels, f"holds the label {classes.max()}, expected 0 to 9")
    # The bytes read are immutable and torch wants memory it may write to: hence the copy.
    return Split(torch.from_numpy(pixels.copy()).unsqueeze(1), torch.from_numpy(classes.astype(np.int64)))


def load_writers(name: str, roots: Sequence[Path], *, download: bool) -> ImageData:
    """MNIST with the writer of each digit as its owner, from QMNIST's labels (Yadav and Bottou, 2019).

    No writer is in both train and test. Raises DataError.
    """
    mnist = load_mnist("mnist", roots, download=download)
    _, paths = locate(name, (_WRITERS,), _WRITER_REMOTES, roots, download=download)
    train = _with_writers(mnist.train, paths[_WRITER_FILES[0]])
    test = _with_writers(mnist.test, paths[_WRITER_FILES[1]])
    return ImageData(train, test, mnist.classes, name)


def _with_writers(split: Split, path: Path) -> Split:
    rows = read_idx(path, 0x0C, (None, 8))  # class, NIST series, writer, ...: in MNIST's order
    if len(rows) < len(split):
        raise damaged(path, f"holds {len(rows):,} rows, expected at least {len(split):,}, one for each MNIST image")
    columns: Tensor = torch.from_numpy(rows[: len(split), :3].astype(np.int64))
    wrong = torch.nonzero(columns[:, 0] != split.labels)
    if len(wrong):
        row = int(wrong[0])
        raise damaged(
            path, f"row {row} is of class {int(columns[row, 0])}, expected {int(split.labels[row])} as in MNIST"
        )
    return Split(split.images, split.labels, columns[:, 2].contiguous())
