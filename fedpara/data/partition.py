"""Which client holds which examples. The same seed gives the same answer on every platform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..seeds import derive
from .images import Split

_Ints = NDArray[np.int64]
_TRIES = 50


@dataclass(frozen=True)
class IID:
    """Every client gets an equal random share; sizes differ by at most one."""


@dataclass(frozen=True)
class Dirichlet:
    """Each class is shared out in proportions drawn from Dirichlet(alpha) (Yurochkin et al., 2019).

    min_size: examples that every client gets at least (2: one to train on, one to hold out), reached by drawing again,
    50 times at most, or with top_up by taking what is missing from the largest clients. capped: a client that already
    holds its even share N / clients gets none of the later classes, which evens out the sizes (as in FedML, He et al.,
    2020). Raises ConfigError.
    """

    alpha: float = 0.5
    min_size: int = 2
    top_up: bool = False
    capped: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"alpha is {self.alpha}; it must be above 0 (0.1: very uneven, 0.5: uneven, 100: even)")
        if self.min_size < 1:
            raise ConfigError(f"min_size is {self.min_size}; every client needs 1 example or more")


@dataclass(frozen=True)
class Shards:
    """Examples sorted by label are cut into equal shards, dealt `shards` to a client (McMahan et al., 2017, §3).

    Raises ConfigError.
    """

    shards: int = 2

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ConfigError(f"shards is {self.shards}; every client needs 1 shard or more")


@dataclass(frozen=True)
class LabelsPerClient:
    """Every client holds exactly `labels` classes; a class is shared evenly by the clients that hold it.

    Raises ConfigError.
    """

    labels: int = 2

    def __post_init__(self) -> None:
        if self.labels < 1:
            raise ConfigError(f"labels is {self.labels}; every client needs 1 class or more")


@dataclass(frozen=True)
class ByOwner:
    """One client for each natural owner, such as a writer, named "<prefix>-<owner>".

    With fewer clients than owners the seed chooses which, and the examples of the others belong to nobody.
    """

    prefix: str = "writer"


Spec = IID | Dirichlet | Shards | LabelsPerClient | ByOwner
PARTITIONS: Mapping[str, type[Spec]] = {
    "iid": IID,
    "dirichlet": Dirichlet,
    "shards": Shards,
    "labels": LabelsPerClient,
    "owner": ByOwner,
}


@dataclass(frozen=True, eq=False)
class Partition:
    """Client names, and the examples of each: order[offsets[i] : offsets[i + 1]] for client i, ascending."""

    clients: tuple[str, ...]
    order: _Ints
    offsets: _Ints

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def sizes(self) -> _Ints:
        """Examples of each client, int64 (clients,)."""
        return np.diff(self.offsets)

    def indices(self, client: str | int) -> _Ints:
        """The examples of a client, by name or position, int64. Raises ConfigError."""
        position = self._positions.get(client) if isinstance(client, str) else client
        if position is None or not 0 <= position < len(self):
            known = f"{self.clients[0]} … {self.clients[-1]}" if self.clients else "none"
            raise ConfigError(f"there is no client {client!r} among the {len(self)} of this partition ({known})")
        return self.order[self.offsets[position] : self.offsets[position + 1]].copy()

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.clients)}


def partition(split: Split, spec: Spec, *, clients: int | None = None, seed: int) -> Partition:
    """Assigns every example to exactly one client (`ByOwner` with fewer clients than owners leaves some to nobody).

    clients: how many; None, for `ByOwner` only, means all owners. Raises ConfigError.
    """
    rng = generator(seed, "partition")
    if isinstance(spec, ByOwner):
        return _by_owner(split, spec, clients, rng)
    labels = split.labels.numpy()
    if clients is None or clients < 1:
        raise ConfigError(f"clients is {clients}; say how many clients share the data, 1 or more")
    if clients > len(labels):
        raise ConfigError(
            f"{clients:,} clients cannot share {len(labels):,} examples; use {len(labels):,} clients or fewer"
        )
    match spec:
        case IID():
            owner = _iid(len(labels), clients, rng)
        case Dirichlet():
            owner = _dirichlet(labels, spec, clients, rng)
        case Shards():
            owner = _shards(labels, spec.shards, clients, rng)
        case LabelsPerClient():
            owner = _labels(labels, spec.labels, clients, rng)
    return collect(owner, tuple(f"client-{i:04d}" for i in range(clients)))


def split_holdout(indices: _Ints, share: float, seed: int, client: str) -> tuple[_Ints, _Ints]:
    """One client's examples as (train, held out), drawn from the seed and the client's name; both ascending.

    share: of the examples held out, in [0, 1). Above 0, at least one is held out and one left to train; a single
    example is trained on. Raises ConfigError.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"holdout is {share}; it must be at least 0 and below 1, such as 0.2")
    if len(indices) == 0:
        raise ConfigError(f"{client} has no examples; every client needs one to train on")
    shuffled = indices[permutation(len(indices), generator(seed, "holdout", client))]
    held = min(max(round(share * len(indices)), 1), len(indices) - 1) if share > 0 else 0
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """A generator of its own for a purpose."""
    return np.random.Generator(np.random.PCG64(derive(seed, *purpose)))


def permutation(n: int, rng: np.random.Generator) -> _Ints:
    """0 … n - 1 in random order."""
    # By sorting raw bits, which numpy promises never to change; it does not promise that for Generator.permutation.
    return np.argsort(rng.bit_generator.random_raw(n), kind="stable").astype(np.int64)


def collect(owner: _Ints, names: tuple[str, ...]) -> Partition:
    """The partition that gives example i to client owner[i], or to nobody where that is -1."""
    held = np.flatnonzero(owner >= 0)
    order = held[np.argsort(owner[held], kind="stable")]
    offsets = np.zeros(len(names) + 1, np.int64)
    np.cumsum(np.bincount(owner[held], minlength=len(names)), out=offsets[1:])
    return Partition(names, order, offsets)


def _evenly(n: int, parts: int) -> _Ints:
    """0 … parts - 1, in order, each as often as n / parts allows."""
    return np.arange(n, dtype=np.int64) * parts // n


def _iid(n: int, clients: int, rng: np.random.Generator) -> _Ints:
    owner = np.empty(n, np.int64)
    owner[permutation(n, rng)] = _evenly(n, clients)
    return owner


def _shards(labels: _Ints, shards: int, clients: int, rng: np.random.Generator) -> _Ints:
    n, pieces = len(labels), shards * clients
    if pieces > n:
        raise ConfigError(
            f"{clients:,} clients x {shards} shards are more than the {n:,} examples; use fewer clients or fewer shards"
        )
    shuffled = permutation(n, rng)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    owner = np.empty(n, np.int64)
    owner[by_label] = (permutation(pieces, rng) // shards)[_evenly(n, pieces)]
    return owner


def _by_owner(split: Split, spec: ByOwner, clients: int | None, rng: np.random.Generator) -> Partition:
    if split.owners is None:
        raise ConfigError('this data has no natural owners; use "qmnist-writers", or another kind of partition')
    owners, of_example = np.unique(split.owners.numpy(), return_inverse=True)
    if clients is None:
        clients = len(owners)
    if not 1 <= clients <= len(owners):
        raise ConfigError(f"clients is {clients}; the data has {len(owners):,} owners, so 1 to {len(owners):,} clients")
    chosen = np.sort(permutation(len(owners), rng)[:clients])
    position = np.full(len(owners), -1, np.int64)
    position[chosen] = np.arange(clients)
    return collect(position[of_example], tuple(f"{spec.prefix}-{owner:04d}" for owner in owners[chosen].tolist()))


def _dirichlet(labels: _Ints, spec: Dirichlet, clients: int, rng: np.random.Generator) -> _Ints:
    needed = clients * spec.min_size
    if needed > len(labels):
        raise ConfigError(
            f"{clients:,} clients with {spec.min_size} examples or more need {needed:,}; there are {len(labels):,}. "
            "Use fewer clients or a smaller min_size"
        )
    shuffled = permutation(len(labels), rng)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1].tolist()
    owner = np.empty(len(labels), np.int64)
    fewest = 0
    for _ in range(1 if spec.top_up else _TRIES):
        drawn, sizes = _draw(counts, spec, clients, rng)
        if spec.top_up:
            drawn = _top_up(drawn, sizes, spec.min_size, rng)
        elif sizes.min() < spec.min_size:
            fewest = max(fewest, int(sizes.min()))
            continue
        owner[by_label] = drawn
        return owner
    raise ConfigError(
        f"no draw of {_TRIES} gave each of {clients:,} clients {spec.min_size} examples (alpha {spec.alpha}; the best "
        f"left one with {fewest}). Use fewer clients, a larger alpha, a smaller min_size, or top_up = true, which "
        "takes what is missing from the largest clients"
    )


def _draw(counts: list[int], spec: Dirichlet, clients: int, rng: np.random.Generator) -> tuple[_Ints, _Ints]:
    """The client of each example (N,), examples sorted by class, and the size of each client."""
    sizes = np.zeros(clients, np.int64)
    parts = []
    for count in counts:
        shares = rng.dirichlet(np.full(clients, spec.alpha))
        if spec.capped:
            shares = _open_to(shares, sizes * clients < sum(counts))
        ends = np.rint(np.cumsum(shares) * count).astype(np.int64)
        ends[-1] = count  # the sum of the shares may round to just below 1
        given = np.diff(ends, prepend=0)
        sizes += given
        parts.append(np.repeat(np.arange(clients), given))
    return np.concatenate(parts), sizes


def _open_to(shares: NDArray[np.float64], is_open: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The shares with closed clients at none, summing to 1 again."""
    shares = np.where(is_open, shares, 0.0)
    if not shares.any():  # a small alpha can leave all of a class to closed clients
        shares = is_open.astype(np.float64)
    return np.asarray(shares / shares.sum(), np.float64)


def _top_up(owner: _Ints, sizes: _Ints, min_size: int, rng: np.random.Generator) -> _Ints:
    """Gives every client min_size examples or more, out of those that the largest hold above a common level."""
    missing = np.maximum(min_size - sizes, 0)
    low, high = min_size, int(sizes.max())
    while low < high:  # the highest level above which enough is held
        level = (low + high + 1) // 2
        if np.maximum(sizes - level, 0).sum() >= missing.sum():
            low = level
        else:
            high = level - 1
    shuffled = permutation(len(owner), rng)
    by_client = shuffled[np.argsort(owner[shuffled], kind="stable")]
    rank = np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner[by_client]]
    surplus = by_client[rank >= low]
    taken = surplus[permutation(len(surplus), rng)[: missing.sum()]]
    owner = owner.copy()
    owner[taken] = np.repeat(np.arange(len(sizes)), missing)
    return owner


def _labels(labels: _Ints, each: int, clients: int, rng: np.random.Generator) -> _Ints:
    present, label = np.unique(labels, return_inverse=True)
    classes = len(present)
    if each > classes:
        raise ConfigError(f"labels is {each}; the data has {classes} classes, so a client can hold 1 to {classes}")
    if clients * each < classes:
        raise ConfigError(
            f"{clients} clients with {each} classes each leave some of the {classes} classes to nobody; use "
            f"{-(-classes // each)} clients or more, or more labels"
        )
    dealt = _deal(classes, each, clients, rng)
    holders = np.argsort(dealt.ravel(), kind="stable") // each  # the clients that hold class 0, then class 1, ...
    holding = np.bincount(dealt.ravel(), minlength=classes)
    counts = np.bincount(label, minlength=classes)
    short = np.flatnonzero(counts < holding)
    if len(short):
        raise ConfigError(
            f"class {present[short[0]]} has {counts[short[0]]} examples for {holding[short[0]]} clients; "
            "use fewer clients or fewer labels"
        )
    shuffled = permutation(len(labels), rng)
    by_label = shuffled[np.argsort(label[shuffled], kind="stable")]
    shares = [_evenly(n, k) for n, k in zip(counts.tolist(), holding.tolist(), strict=True)]
    starts = np.cumsum(holding) - holding
    owner = np.empty(len(labels), np.int64)
    owner[by_label] = holders[np.concatenate(shares) + np.repeat(starts, counts)]
    return owner


def _deal(classes: int, each: int, clients: int, rng: np.random.Generator) -> _Ints:
    """Distinct classes for every client, (clients, each), every class as often as any other, give or take one round.

    Clients go in blocks of as many as there are classes: in a block, client i holds places i + shift of a random order
    of the classes, for `each` random shifts, so that the block holds every class `each` times.
    """
    blocks = -(-clients // classes)
    orders = np.stack([permutation(classes, rng) for _ in range(blocks)])
    shifts = np.stack([permutation(classes, rng)[:each] for _ in range(blocks)])
    places = np.arange(classes)[None, :, None] + shifts[:, None, :]
    rest = clients % classes
    if rest:  # an unfilled block is dealt in turn, which covers all classes that it can
        places[-1, :rest] = np.arange(rest * each).reshape(rest, each)
    dealt = np.take_along_axis(orders[:, None, :], places % classes, axis=2)
    return dealt.reshape(-1, each)[:clients]
