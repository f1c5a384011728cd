"""Muon: the step beside its equation and beside torch's, and what it leaves to the task's own optimiser."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client.muon import Muon, Together, matrices, orthogonalised, take_over
from client.training import _optimizer, one_factor
from fedpara import FedPara, parametrize_
from fedpara.config import read_recipe
from fedpara.errors import ConfigError
from fedpara.layers import factorised_weights
from fedpara.sharing import local_names
from fedpara.task import build_model, build_task
from tests.client.test_training import stepped
from tests.conftest import SMALL

MUON = {"muon_lr": 0.3}


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 40), st.floats(-12, 6), st.integers(0, 99))
def test_directions_stay_and_their_sizes_come_near_one(count, columns, more, size, seed):
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(count, columns + more, columns, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(count, columns, columns, generator=generator))
    values = 10.0**size * (0.05 + torch.rand(count, columns, generator=generator))
    found = left.mT @ orthogonalised(left * values.unsqueeze(1) @ right.mT) @ right
    sizes = found.diagonal(dim1=1, dim2=2)
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3
    torch.testing.assert_close(found, torch.diag_embed(sizes), atol=1e-4, rtol=0)


def test_nothing_to_learn_from_is_no_step():
    assert torch.equal(orthogonalised(torch.zeros(2, 5, 3)), torch.zeros(2, 5, 3))


@pytest.mark.parametrize("shape", [(24, 6), (6, 24), (7, 7)])
def test_a_matrix_moves_as_with_torchs_muon(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = Muon([ours], 0.1)
    other = torch.optim.Muon([theirs], 0.1, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        for own, optimizer in ((ours, one), (theirs, other)):
            own.grad = gradient.clone()
            optimizer.step()
    moved, wanted = ours.detach() - start, theirs.detach() - start
    assert (moved - wanted).norm() < 0.02 * wanted.norm()  # torch's iterates in bfloat16


def test_many_matrices_and_a_core_move_as_each_matrix_alone():
    generator = torch.Generator().manual_seed(0)
    shapes = [(9, 4), (9, 4), (4, 9), (4, 3, 3, 4)]
    factors = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    alone = [nn.Parameter(own.detach().flatten(1).clone()) for own in factors]
    for own, twin in zip(factors, alone, strict=True):
        own.grad = torch.randn(own.shape, generator=generator)
        twin.grad = own.grad.flatten(1)
        Muon([twin], 0.3).step()
    Muon(factors, 0.3).step()
    for own, twin in zip(factors, alone, strict=True):
        torch.testing.assert_close(own.flatten(1), twin)


def test_a_kernel_whose_channels_lie_innermost_moves_as_any_other():
    plain = nn.Parameter(torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    innermost = nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    before = plain.detach().clone()
    for own in (plain, innermost):
        own.grad = torch.ones_like(own) + before
        Muon([own], 0.3).step()
    assert not torch.equal(plain, before)
    torch.testing.assert_close(innermost.detach(), plain.detach())


@pytest.mark.parametrize("parametrization", ["none", "fedpara", "pfedpara", "lowrank"])
def test_matrices_move_at_their_own_rate_and_all_else_as_ever(parametrization):
    recipe = read_recipe(SMALL, {"parametrization": parametrization, "personal_lr": 0.5, "lr": 0.2} | MUON)
    task = build_task(recipe)
    model = build_model(recipe, task)
    plain, doubled = copy.deepcopy(model), copy.deepcopy(model)
    usual = stepped(plain, _optimizer(task, plain, replace(recipe.training, muon_lr=0.0), 0.1))
    twice = stepped(doubled, _optimizer(task, doubled, replace(recipe.training, factor_lr=2.0), 0.1))
    for name, moved in stepped(model, _optimizer(task, model, recipe.training, 0.1)).items():
        torch.testing.assert_close(twice[name], 2 * moved if "original" in name else moved)
        if moved.dim() == 1:
            assert torch.equal(moved, usual[name])
            continue
        matrix, rate = moved.flatten(1), 0.3 * 0.1 / 0.2 * (0.5 if name in local_names(model) else 1)
        assert 0.6 * rate < torch.linalg.matrix_norm(matrix, 2) / (0.2 * max(matrix.shape) ** 0.5) < 1.3 * rate


def test_embeddings_biases_and_norms_are_left_to_the_tasks_optimiser():
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    model = nn.ModuleList([nn.Embedding(9, 8), nn.LSTM(8, 8), nn.LayerNorm((2, 8)), nn.Conv2d(3, 8, 3), attention])
    taken = {id(own) for own in matrices(model)}
    names = {name for name, own in model.named_parameters() if id(own) in taken}
    assert names == {"1.weight_ih_l0", "1.weight_hh_l0", "3.weight", "4.in_proj_weight", "4.out_proj.weight"}


def test_a_factor_that_rests_this_round_does_not_move():
    model = parametrize_(nn.Sequential(nn.Linear(40, 30)), FedPara(gamma=0.5))
    factors = [own for place in factorised_weights(model) for own in place.factors.values()]
    rest = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = Together(rest, take_over(model, rest, 0.1))
    with one_factor(model, 2):
        before = [own.detach().clone() for own in factors]
        optimizer.zero_grad()
        model(torch.randn(3, 40)).square().sum().backward()
        optimizer.step()
    assert [torch.equal(own, old) for own, old in zip(factors, before, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("with_it", [{"strategy": "scaffold"}, {"rank_shares": [1.0, 0.5]}])
def test_what_muon_does_not_go_with_is_refused(with_it):
    with pytest.raises(ConfigError, match="muon_lr"):
        read_recipe(SMALL, with_it | MUON)
