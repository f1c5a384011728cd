"""Partitions of examples among clients, and each client's held-out part."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpara.data import (
    IID,
    PARTITIONS,
    ByOwner,
    Dirichlet,
    LabelsPerClient,
    Shards,
    Split,
    load_dataset,
    partition,
    split_holdout,
)
from fedpara.errors import ConfigError


def split_of(labels, owners=None) -> Split:
    values = torch.as_tensor(np.asarray(labels, np.int64))
    owners = None if owners is None else torch.as_tensor(np.asarray(owners, np.int64))
    return Split(torch.zeros(len(values), 1, 1, 1, dtype=torch.uint8), values, owners)


TEN = split_of(np.arange(2000) % 10)
SPECS = [
    IID(),
    Dirichlet(0.5),
    Dirichlet(0.1, min_size=1, top_up=True),
    Dirichlet(0.3, capped=True, min_size=1),
    Shards(2),
    LabelsPerClient(3),
]


def check_exact(parts, n: int) -> None:
    everything = np.concatenate([parts.indices(name) for name in parts.clients])
    np.testing.assert_array_equal(np.sort(everything), np.arange(n))


specs = st.one_of(
    st.just(IID()),
    st.builds(
        Dirichlet,
        alpha=st.floats(0.01, 100),
        min_size=st.integers(1, 4),
        top_up=st.booleans(),
        capped=st.booleans(),
    ),
    st.builds(Shards, shards=st.integers(1, 4)),
    st.builds(LabelsPerClient, labels=st.integers(1, 6)),
)


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    spec=specs,
    clients=st.integers(1, 20),
    seed=st.integers(),
)
def test_every_example_has_exactly_one_client(labels, spec, clients, seed):
    try:
        parts = partition(split_of(labels), spec, clients=clients, seed=seed)
    except ConfigError:
        return
    assert len(parts) == clients == len(set(parts.clients))
    check_exact(parts, len(labels))
    assert parts.sizes.min() >= getattr(spec, "min_size", 1)
    again = partition(split_of(labels), spec, clients=clients, seed=seed)
    np.testing.assert_array_equal(again.order, parts.order)
    np.testing.assert_array_equal(again.offsets, parts.offsets)


@settings(max_examples=60, deadline=None)
@given(owners=st.lists(st.integers(0, 9), min_size=1, max_size=60), clients=st.integers(1, 10), seed=st.integers())
def test_owners_keep_their_examples(owners, clients, seed):
    split = split_of([0] * len(owners), owners)
    everyone = partition(split, ByOwner(), seed=seed)
    check_exact(everyone, len(owners))
    assert everyone.clients == tuple(f"writer-{owner:04d}" for owner in sorted(set(owners)))
    if clients > len(set(owners)):
        with pytest.raises(ConfigError, match="owners, so 1 to"):
            partition(split, ByOwner(), clients=clients, seed=seed)
        return
    some = partition(split, ByOwner("speaker"), clients=clients, seed=seed)
    assert len(some) == clients
    for name in some.clients:
        owner = int(name.removeprefix("speaker-"))
        assert some.indices(name).tolist() == [i for i, o in enumerate(owners) if o == owner]


def test_which_owners_depends_on_the_seed():
    split = split_of([0] * 100, range(100))
    first, second = (partition(split, ByOwner(), clients=5, seed=seed) for seed in (0, 1))
    assert first.clients != second.clients


@pytest.mark.parametrize("spec", SPECS)
def test_the_seed_decides(spec):
    first, second, other = (partition(TEN, spec, clients=20, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.order, second.order)
    assert not np.array_equal(first.order, other.order)


# Written down once. Dirichlet is left to numpy's own promise: its gamma draws are floating point.
IID_ORDER = [0, 1, 6, 10, 3, 4, 5, 11, 2, 7, 8, 9]
SHARDS_ORDER = [0, 3, 6, 9, 2, 5, 8, 11, 1, 4, 7, 10]
HELD_OUT = [3, 8, 9]


def test_the_same_on_every_platform():
    small = split_of(np.arange(12) % 3)
    assert partition(small, IID(), clients=3, seed=7).order.tolist() == IID_ORDER
    assert partition(small, Shards(1), clients=3, seed=7).order.tolist() == SHARDS_ORDER
    assert split_holdout(np.arange(10), 0.3, 7, "client-0001")[1].tolist() == HELD_OUT


def test_iid_sizes_differ_by_one_at_most():
    sizes = partition(TEN, IID(), clients=17, seed=0).sizes
    assert sizes.max() - sizes.min() <= 1


def test_alpha_sets_how_uneven_the_classes_are():
    def largest_share(alpha: float) -> float:
        parts = partition(TEN, Dirichlet(alpha, min_size=1), clients=10, seed=0)
        shares = [np.bincount(TEN.labels[parts.indices(i)], minlength=10).max() / n for i, n in enumerate(parts.sizes)]
        return float(np.mean(shares))

    assert largest_share(0.1) > 0.4 > largest_share(1.0) > largest_share(1000.0)
    assert largest_share(1000.0) < 0.13


def test_capped_sizes_are_more_even():
    split = split_of(np.arange(20_000) % 10)
    plain = partition(split, Dirichlet(0.5), clients=50, seed=0).sizes
    capped = partition(split, Dirichlet(0.5, capped=True), clients=50, seed=0).sizes
    assert capped.std() < plain.std()


def test_too_small_shares_are_drawn_again_then_an_error():
    assert partition(TEN, Dirichlet(0.5, min_size=20), clients=20, seed=0).sizes.min() >= 20
    with pytest.raises(ConfigError, match=r"no draw of 50 gave each of 200 clients 5 examples .* top_up = true"):
        partition(TEN, Dirichlet(0.05, min_size=5), clients=200, seed=0)
    topped = partition(TEN, Dirichlet(0.05, min_size=5, top_up=True), clients=200, seed=0)
    assert topped.sizes.min() == 5
    check_exact(topped, 2000)


def test_top_up_moves_no_more_than_is_missing():
    tight = partition(split_of([0] * 40), Dirichlet(0.05, min_size=2, top_up=True), clients=20, seed=0)
    assert tight.sizes.tolist() == [2] * 20


def test_shards_are_equal_and_of_few_labels():
    parts = partition(TEN, Shards(2), clients=100, seed=0)
    assert set(parts.sizes.tolist()) == {20}
    assert max(len(np.unique(TEN.labels[parts.indices(i)])) for i in range(100)) <= 2


@pytest.mark.parametrize(("clients", "labels"), [(10, 1), (5, 2), (7, 3), (37, 2), (100, 4), (1, 10), (23, 10)])
def test_exactly_k_labels(clients, labels):
    parts = partition(TEN, LabelsPerClient(labels), clients=clients, seed=0)
    held = [np.unique(TEN.labels[parts.indices(i)]) for i in range(clients)]
    assert {len(each) for each in held} == {labels}
    holders = np.bincount(np.concatenate(held), minlength=10)
    assert holders.max() - holders.min() <= labels
    check_exact(parts, 2000)


def test_label_sets_vary():
    parts = partition(TEN, LabelsPerClient(2), clients=100, seed=0)
    assert len({tuple(np.unique(TEN.labels[parts.indices(i)])) for i in range(100)}) > 20


def test_labels_need_not_be_consecutive():
    split = split_of([3, 3, 90, 90, 90, 12, 12])
    for spec in (LabelsPerClient(1), Dirichlet(1.0, min_size=1), Shards(1), IID()):
        check_exact(partition(split, spec, clients=3, seed=0), 7)


@pytest.mark.parametrize(
    ("spec", "clients", "message"),
    [
        (IID(), 0, "clients is 0; say how many"),
        (IID(), -3, "clients is -3"),
        (Shards(), None, "clients is None"),
        (IID(), 2001, "2,001 clients cannot share 2,000 examples; use 2,000 clients or fewer"),
        (Shards(3), 1000, "more than the 2,000 examples"),
        (Dirichlet(min_size=3), 1000, "need 3,000; there are 2,000"),
        (LabelsPerClient(11), 5, "the data has 10 classes"),
        (LabelsPerClient(1), 9, "use 10 clients or more"),
        (LabelsPerClient(10), 300, "has 200 examples for 300 clients"),
        (ByOwner(), 3, "no natural owners"),
    ],
)
def test_impossible_requests(spec, clients, message):
    with pytest.raises(ConfigError, match=message):
        partition(TEN, spec, clients=clients, seed=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dirichlet", {"alpha": 0}),
        ("dirichlet", {"alpha": -1.0}),
        ("dirichlet", {"alpha": float("nan")}),
        ("dirichlet", {"alpha": float("inf")}),
        ("dirichlet", {"min_size": 0}),
        ("shards", {"shards": 0}),
        ("labels", {"labels": 0}),
    ],
)
def test_impossible_specs(kind, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        PARTITIONS[kind](**options)


def test_indices_by_name_and_position_are_the_callers_own():
    parts = partition(TEN, IID(), clients=12, seed=0)
    assert parts.clients[7] == "client-0007"
    np.testing.assert_array_equal(parts.indices("client-0007"), parts.indices(7))
    parts.indices(7)[:] = -1
    assert parts.indices(7).min() >= 0
    for wrong in ("client-0012", 12, -1):
        with pytest.raises(ConfigError, match=r"among the 12 .*client-0000 … client-0011"):
            parts.indices(wrong)


def test_a_hundred_thousand_clients():
    n = 200_000
    split = split_of(np.arange(n) % 10, np.arange(n) // 2)
    for spec in (IID(), Dirichlet(1.0, min_size=1, top_up=True), Shards(2), LabelsPerClient(2), ByOwner()):
        parts = partition(split, spec, clients=100_000, seed=0)
        assert parts.sizes.sum() == n
        assert parts.sizes.min() >= 1
        assert len(parts.indices(parts.clients[-1])) >= 1


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 60), share=st.floats(0, 0.99), seed=st.integers(), client=st.text())
def test_holdout(n, share, seed, client):
    indices = np.arange(n) * 3 + 5
    train, held = split_holdout(indices, share, seed, client)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), indices)
    assert len(train) >= 1
    assert len(held) >= (share > 0 and n > 1)
    assert abs(len(held) - share * n) <= 1
    again = split_holdout(indices, share, seed, client)
    np.testing.assert_array_equal(again[1], held)


def test_holdout_differs_between_clients():
    indices = np.arange(100)
    held = [split_holdout(indices, 0.2, 0, f"client-{i:04d}")[1].tolist() for i in range(5)]
    assert len(set(map(tuple, held))) == 5


def test_holdout_errors():
    with pytest.raises(ConfigError, match="client-0003 has no examples"):
        split_holdout(np.empty(0, np.int64), 0.2, 0, "client-0003")
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="holdout is"):
            split_holdout(np.arange(4), share, 0, "client-0003")


def test_on_real_digits():
    train = load_dataset("digits").train
    check_exact(partition(train, Dirichlet(0.5), clients=20, seed=0), len(train))
