"""Data sets in their official layouts, how clients share them, and synthetic variants of a client's own images."""

from .augment import Augmentation, augment
from .flower import flower_partition
from .holdings import Holdings, holdings
from .images import ImageData, Split
from .partition import (
    IID,
    PARTITIONS,
    ByOwner,
    Dirichlet,
    LabelsPerClient,
    Partition,
    Shards,
    Spec,
    partition,
    split_holdout,
)
from .source import DATASETS, load_dataset

__all__ = [
    "DATASETS",
    "IID",
    "PARTITIONS",
    "Augmentation",
    "ByOwner",
    "Dirichlet",
    "Holdings",
    "ImageData",
    "LabelsPerClient",
    "Partition",
    "Shards",
    "Spec",
    "Split",
    "augment",
    "flower_partition",
    "holdings",
    "load_dataset",
    "partition",
    "split_holdout",
]
