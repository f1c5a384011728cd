"""Who holds what, as counts, text and pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from fedpara.data import IID, Dirichlet, Split, holdings, partition


def split_of(labels: list[int] | np.ndarray) -> Split:
    values = torch.as_tensor(labels)
    return Split(torch.zeros(len(values), 1, 1, 1, dtype=torch.uint8), values)


def test_counts_equal_a_literal_loop():
    split = split_of(np.arange(300) * 7 % 11 % 5)
    parts = partition(split, Dirichlet(0.3, min_size=1), clients=8, seed=3)
    held = holdings(split, parts)
    expected = np.zeros((8, 5), np.int64)
    for i, name in enumerate(parts.clients):
        for example in parts.indices(name):
            expected[i, int(split.labels[example])] += 1
    np.testing.assert_array_equal(held.counts, expected)
    np.testing.assert_array_equal(held.sizes, parts.sizes)
    assert held.classes == ("0", "1", "2", "3", "4")


def test_effective_labels():
    held = holdings(split_of([0, 0, 0, 0]), partition(split_of([0] * 4), IID(), clients=2, seed=0), ["a", "b", "c"])
    assert held.effective_labels.tolist() == [1.0, 1.0]
    even = holdings(split_of([0, 1, 2]), partition(split_of([0, 1, 2]), IID(), clients=1, seed=0))
    assert even.effective_labels == pytest.approx([3.0])


def test_table_is_aligned_and_cut():
    split = split_of(np.arange(5000) % 3)
    held = holdings(split, partition(split, IID(), clients=30, seed=0), ["airplane", "b", "a very long name"])
    lines = held.table(limit=4).split("\n")
    assert lines[0].startswith("30 clients, 5,000 examples: 166 to 167 each (median 167), 3 of 3 classes")
    assert lines[1].split() == ["client", "examples", "airplane", "b", "a", "very", "lo…"]
    assert len(lines) == 7
    assert len({len(line) for line in lines[1:6]}) == 1
    assert lines[6] == "… and 26 more"
    assert len(held.table(limit=100).split("\n")) == 32


def test_table_of_many_classes_names_the_largest():
    split = split_of([*range(40), 7, 7])
    held = holdings(split, partition(split, IID(), clients=1, seed=0))
    assert held.table().split("\n")[2].split() == ["client-0000", "42", "40", "38.8", "7", "7%"]


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (7, 10), (50, 20), (60, 10), (5, 100), (900, 40)])
def test_plot(tmp_path, clients, classes):
    split = split_of(np.arange(9000) % classes)
    held = holdings(split, partition(split, Dirichlet(1.0, min_size=1, top_up=True), clients=clients, seed=0))
    held.plot(tmp_path / "held.png")
    with Image.open(tmp_path / "held.png") as image:
        assert image.size[0] > 1000
        assert np.asarray(image.convert("L")).std() > 5
