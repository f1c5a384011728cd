"""Training with few labels: which are kept, what a step sees, what the loss is."""

import pytest
import torch
import torch.nn.functional as F

from fedpara.config import read_recipe
from fedpara.task import build_model, build_task
from tests.conftest import SMALL


def recipe(**changes):
    return read_recipe(SMALL, changes)


def test_a_share_of_the_labels_is_known_and_every_image_is_seen():
    task = build_task(recipe(labelled=0.1, **{"classification.semi.ratio": 4}))
    whole = build_task(recipe())
    for client in task.population(4):
        data, full = task.client_data(client, 4), whole.client_data(client, 4)
        assert torch.equal(data.train.images, full.train.tensors[0])
        assert torch.equal(data.held_out.tensors[1], full.held_out.tensors[1])
        assert len(data.train.known) == round(0.1 * len(full.train))
        images, labels, pool = data.train.batch(torch.arange(32))
        assert len(images) == len(labels) == 8
        assert torch.equal(pool, full.train.tensors[0][:32])
        known = {image.numpy().tobytes() for image in full.train.tensors[0][data.train.known]}
        assert {image.numpy().tobytes() for image in images} <= known
    again = build_task(recipe(labelled=0.1))
    first = task.population(4)[0]
    assert torch.equal(again.client_data(first, 4).train.known, task.client_data(first, 4).train.known)


def test_a_fraction_of_the_examples_is_used_and_the_held_out_ones_stay():
    fifth, whole = build_task(recipe(fraction=0.2)), build_task(recipe())
    for client in whole.population(4):
        some, full = fifth.client_data(client, 4), whole.client_data(client, 4)
        assert len(some.train) == round(0.2 * len(full.train))
        assert torch.equal(some.held_out.tensors[0], full.held_out.tensors[0])
        have = {image.numpy().tobytes() for image in full.train.tensors[0]}
        assert all(image.numpy().tobytes() in have for image in some.train.tensors[0])


@pytest.mark.parametrize("threshold", [0.11, 0.3, 1.0])
def test_the_loss_is_fixmatchs(threshold):
    chosen = recipe(labelled=0.1, parametrization="none", **{"threshold": threshold, "weight": 0.7})
    task = build_task(chosen)
    model = build_model(chosen, task)
    with torch.no_grad():
        model.layers[5].weight.mul_(8)  # so that some predictions are surer than others
    data = task.client_data(task.population(4)[0], 4)
    batch = task.prepare(data.train.batch(torch.arange(32)), torch.Generator().manual_seed(1))
    images, labels, weak, strong = batch
    assert weak.shape == strong.shape
    assert not torch.equal(weak, strong)
    expected = F.cross_entropy(model(images), labels)
    q = model(weak).softmax(1).detach()
    for b in range(len(strong)):  # Sohn et al. 2020, Equation 4
        if float(q[b].max()) >= threshold:
            expected = expected + 0.7 / len(strong) * F.cross_entropy(model(strong[b : b + 1]), q[b].argmax()[None])
    loss = task.loss(model, batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (float(loss.detach()) > float(F.cross_entropy(model(images), labels).detach())) is (threshold < 1)


def test_without_weight_the_unlabelled_are_left_out():
    task = build_task(recipe(labelled=0.1, weight=0))
    data = task.client_data(task.population(4)[0], 4)
    assert len(task.prepare(data.train.batch(torch.arange(8)), torch.Generator())) == 2
