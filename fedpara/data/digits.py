"""The handwritten digits that scikit-learn carries, and the fixed split of data that has none of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .images import ImageData, Split

_SEED = 20_210_806  # fixes which examples are tests; a change makes results incomparable


def stratified_split(labels: NDArray[np.int64], share: float = 0.2) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (train, test), `share` of every class in test, always the same; a class of one is all train."""
    draws = np.random.PCG64(_SEED).random_raw(len(labels))
    order = np.lexsort((draws, labels))
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    tests = np.minimum(np.maximum(np.rint(counts * share), 1), counts - 1)
    is_test = rank < tests[labels[order]]
    return np.sort(order[~is_test]), np.sort(order[is_test])


def load_digits() -> ImageData:
    """The UCI handwritten digits (Alpaydin and Kaynak, 1998): 1,797 images (1, 8, 8), 80 % of each class to train."""
    values, classes = _table()
    pixels = np.rint(values * (255 / 16)).astype(np.uint8)  # 0 to 16 in the source
    everything = Split(torch.from_numpy(pixels).view(-1, 1, 8, 8), torch.from_numpy(classes.astype(np.int64)))
    train, test = (everything.subset(part) for part in stratified_split(classes.astype(np.int64)))
    return ImageData(train, test, tuple("0123456789"), "digits")


def _table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels and classes, from the file in scikit-learn's folder: importing it would cost every process a second."""
    spec = find_spec("sklearn")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn import datasets  # type: ignore[import-untyped]  # of a version that keeps it elsewhere

    values, classes = datasets.load_digits(return_X_y=True)
    return values, classes
