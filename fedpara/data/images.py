"""What every reader returns: labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images: uint8 (N, C, H, W), int64 (N,) and, where the data has them, int64 natural owners (N,).

    Raises DataError when the three do not fit together.
    """

    images: Tensor
    labels: Tensor
    owners: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise DataError(
                f"images are {self.images.dtype} {tuple(self.images.shape)}; expected torch.uint8 (N, C, H, W)"
            )
        for name, values in (("labels", self.labels), ("owners", self.owners)):
            if values is not None and (values.dtype != torch.int64 or values.shape != (len(self),)):
                raise DataError(
                    f"{name} are {values.dtype} {tuple(values.shape)}; expected torch.int64 ({len(self)},), "
                    "one for each image"
                )

    def __len__(self) -> int:
        return self.images.shape[0]

    def subset(self, indices: Tensor | NDArray[np.int64]) -> Split:
        """The examples at `indices` (int64), in that order."""
        indices = torch.as_tensor(indices)
        owners = None if self.owners is None else self.owners[indices]
        return Split(self.images[indices], self.labels[indices], owners)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: training and test images of equal shape, and the name of each class."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    name: str
