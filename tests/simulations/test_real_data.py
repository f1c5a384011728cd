"""The recipes on real data, where $FEDPARA_DATA names it: short runs that show the way is open."""

import dataclasses

import pytest
import torch

import fedpara as fp
from client.tasks.classification import Classification
from fedpara.app import find_recipe
from fedpara.config import read_recipe
from fedpara.cost import size
from fedpara.sharing import shared_state
from fedpara.task import TensorExamples, build_model, build_task
from tests.conftest import Silent


@pytest.fixture
def cifar(real_data):
    if not any((real_data / name).is_dir() for name in ("cifar-10-batches-bin", "cifar-10-batches-py")):
        pytest.skip("FEDPARA_DATA holds no CIFAR-10 in an official layout")


def simulate(name, folder, **changes):
    return fp.simulate(read_recipe(find_recipe(name), changes), folder=folder, observer=Silent())


def test_mnist_writers_are_539_people_and_learn(real_data, tmp_path):
    recipe = read_recipe(find_recipe("mnist-writers"))
    population = build_task(recipe).population(recipe.clients)
    assert len(set(population)) == 539
    run = simulate("mnist-writers", tmp_path / "run", rounds=3, cohort=6, epochs=2, evaluate_every=3)
    assert run.rounds[-1]["accuracy"] > 0.4  # chance is 0.1
    assert run.rounds[-1]["dropped"] == []
    assert 3 * run.rounds[-1]["total"] < run.rounds[-1]["dense_total"]


def test_mnist_writers_sends_three_times_less_than_its_dense_twin_through_the_same_codecs(real_data):
    recipe = read_recipe(find_recipe("mnist-writers"))
    task = build_task(recipe)
    ours = size(build_model(recipe, task), codec=recipe.uplink)
    twin = size(build_model(recipe, task, parametrization="none"), codec=recipe.uplink)
    assert twin.payload_bytes > 3 * ours.payload_bytes


def test_pfedpara_sends_three_times_less_than_fedper(real_data):
    recipe = read_recipe(find_recipe("mnist-writers-personal"))
    fedper = dataclasses.replace(recipe, parametrization="none", local=("head",))
    sent = [
        sum(t.numel() for t in shared_state(build_model(own, build_task(own))).values()) for own in (recipe, fedper)
    ]
    assert 3 * sent[0] <= sent[1]


def test_personal_models_of_writers_learn(real_data, tmp_path):
    run = simulate("mnist-writers-personal", tmp_path / "run", rounds=6, clients=6, cohort=6)
    assert run.rounds[-1]["client_accuracy"] > 0.6
    assert len(run.clients) == 6


def test_a_tenth_of_the_labels_is_enough_to_begin(real_data, tmp_path):
    run = simulate("mnist-writers-few-labels", tmp_path / "run", rounds=4, cohort=6, evaluate_every=4)
    assert run.rounds[-1]["accuracy"] > 0.3
    assert run.rounds[-1]["dropped"] == []


@pytest.mark.slow
def test_cifar10_with_vgg16_trains_two_rounds(cifar, tmp_path, monkeypatch):
    whole = Classification.server_data
    monkeypatch.setattr(  # of 10,000 images, which take two cores minutes
        Classification, "server_data", lambda task: TensorExamples(whole(task).batch(torch.arange(1000)))
    )
    run = simulate("cifar10-iid", tmp_path / "run", rounds=2, cohort=2, epochs=1, evaluate_every=2)
    assert [row["replies"] for row in run.rounds] == [2, 2]
    assert run.rounds[-1]["loss"] < 5
    # γ = 0.1: 1.55 M parameters of 4 bytes each way, but for the first broadcast, which is a seed (Table 5).
    assert run.rounds[-1]["up"] == pytest.approx(2 * 4 * 1.55e6, rel=0.01)
    assert run.rounds[0]["down"] == 2 * 16
    assert 9.5 < run.rounds[-1]["dense_total"] / run.rounds[-1]["total"] < 10.0


@pytest.mark.parametrize(("recipe", "even"), [("cifar10-iid", True), ("cifar10-dirichlet", False)])
def test_cifar10_is_shared_among_a_hundred_clients(cifar, recipe, even):
    recipe = read_recipe(find_recipe(recipe))
    counts = build_task(recipe).holdings(recipe.clients).counts
    assert counts.shape == (100, 10)
    assert counts.sum() == 50_000
    assert (counts.sum(1) == 500).all() == even


def test_size_of_the_papers_setting(cifar):
    recipe = read_recipe(find_recipe("cifar10-iid"))
    counted = size(build_model(recipe, build_task(recipe)))
    assert counted.parameters == pytest.approx(1.55e6, abs=0.01e6)
    assert counted.dense_parameters == pytest.approx(15.25e6, abs=0.01e6)
