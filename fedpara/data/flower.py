"""Who gets what by a partitioner of Flower Datasets, where that is installed."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from ..config import nearest
from ..errors import ConfigError
from ..extras import named, optional
from .images import Split
from .partition import Partition, collect, generator, permutation


def flower_partition(split: Split, spec: str, *, clients: int, seed: int) -> Partition:
    """The parts that a partitioner of `flwr_datasets.partitioner` makes, in its order; examples in none are nobody's.

    Args:
        spec: the class's name, with or without "Partitioner" at its end, and its arguments: ``Dirichlet:alpha=0.3``.
            It is given ``num_partitions``, ``partition_by`` ("label", or "owner" for natural ids) and ``seed`` where it
            takes them.
        clients: parts wanted.
        seed: of the order in which it is shown the examples, too.

    Raises:
        ConfigError: flwr_datasets is not installed, has no such partitioner, or it makes other parts than wanted.
    """
    library = optional("flwr_datasets.partitioner", "hf", f"flwr:{spec}")
    datasets = optional("datasets", "hf", f"flwr:{spec}")
    name, arguments = named(spec)
    full = name if name.endswith("Partitioner") else f"{name}Partitioner"
    if full not in library.__all__:
        raise ConfigError(f"Flower Datasets has no {full}{nearest(full, library.__all__)}")
    kind = getattr(library, full)
    order = permutation(len(split), generator(seed, "partition"))
    columns: dict[str, Any] = {"place": order, "label": split.labels.numpy()[order]}
    if split.owners is not None:
        columns["owner"] = split.owners.numpy()[order]
    by = "owner" if "NaturalId" in full else "label"
    ours = {"num_partitions": clients, "partition_by": by, "seed": seed % 2**32}
    takes = inspect.signature(kind).parameters
    try:
        partitioner = kind(**{key: value for key, value in ours.items() if key in takes} | arguments)
        partitioner.dataset = datasets.Dataset.from_dict(columns)
        count = partitioner.num_partitions
        parts = [np.asarray(partitioner.load_partition(part)["place"], np.int64) for part in range(count)]
    except Exception as error:  # of many kinds, for arguments that it does not take or cannot meet
        raise ConfigError(f"partition = 'flwr:{spec}': {' '.join(str(error).split())}") from error
    if count != clients or not all(map(len, parts)):
        filled = sum(1 for part in parts if len(part))
        raise ConfigError(
            f"partition = 'flwr:{spec}' makes {count:,} parts, {filled:,} of them not empty, and the recipe has "
            f"clients = {clients:,}: change one of them"
        )
    owner = np.full(len(split), -1, np.int64)
    for client, part in enumerate(parts):
        owner[part] = client
    return collect(owner, tuple(f"client-{client:04d}" for client in range(clients)))
