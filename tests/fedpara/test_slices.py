"""Rank slices: a narrower model is the first columns of every factor, and columns are averaged by who holds them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fedpara as fp
from fedpara.errors import ConfigError, UpdateError
from fedpara.slices import LEAST, SlicedMean, at_share, columns, cut, drop_common_, narrow_, nest_, rank_sides
from tests import reference

SHARES = (1.0, 0.5, 0.25, 0.1)


def network(config=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(48, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 100), nn.Linear(100, 4))
    return fp.parametrize_(model, config or fp.FedPara(gamma=0.5), filter_fn=lambda module, name: name != "4")


@pytest.mark.parametrize("config", [fp.FedPara(gamma=0.5), fp.PFedPara(gamma=0.5), fp.LowRank(gamma=0.9)], ids=str)
@pytest.mark.parametrize("share", SHARES)
def test_a_narrow_model_is_the_first_columns(config, share):
    whole, narrow = network(config), narrow_(network(config), share)
    sides = rank_sides(whole)
    expected = cut(whole.state_dict(), sides, share)
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        for side in sides.get(name, ()):
            assert tensor.shape[side] == columns(whole.state_dict()[name].shape[side], share)
    assert narrow(torch.randn(2, 48, 3, 3)).shape == (2, 4)
    if isinstance(config, fp.FedPara):
        x1, y1, x2, y2 = (expected[f"3.parametrizations.weight.original{index}"] for index in range(4))
        torch.testing.assert_close(narrow[3].weight, reference.fedpara((x1, y1), (x2, y2)))
    smaller = sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in whole.parameters())
    assert smaller is (share < 1)


@given(st.lists(st.tuples(st.sampled_from(SHARES), st.integers(1, 50), st.integers(0, 2**20)), min_size=1, max_size=5))
def test_each_column_is_averaged_over_those_that_hold_it(updates):
    model = network()
    whole, sides = {name: tensor.clone() for name, tensor in model.state_dict().items()}, rank_sides(model)
    mean = SlicedMean(whole, sides)
    taken = []
    for share, weight, seed in updates:
        generator = torch.Generator().manual_seed(seed)
        moved = {
            name: own + torch.randn(own.shape, generator=generator) if own.is_floating_point() else own + seed % 7
            for name, own in whole.items()
        }
        taken.append((cut(moved, sides, share), weight))
        mean.add(taken[-1][0], weight, share)
    assert mean.count == len(updates)
    for name, found in mean.result(whole).items():
        for place in [(0,) * found.ndim, tuple(size - 1 for size in found.shape), tuple(n // 2 for n in found.shape)]:
            held = [
                (s[name][place], w) for s, w in taken if all(p < n for p, n in zip(place, s[name].shape, strict=True))
            ]
            value = (
                sum(v.double() * w for v, w in held) / sum(w for _, w in held) if held else whole[name][place].double()
            )
            value = value if found.is_floating_point() else value.round()
            assert float(found[place]) == pytest.approx(float(value), rel=1e-4, abs=1e-5)


def test_an_update_of_another_rank_is_refused_and_changes_nothing():
    model = network()
    whole, sides = model.state_dict(), rank_sides(model)
    mean = SlicedMean(whole, sides)
    with pytest.raises(UpdateError, match="another model"):
        mean.add(cut(whole, sides, 0.5), 1, 0.25)
    assert mean.count == 0
    mean.add(whole, 1)
    for name, tensor in mean.result(whole).items():
        assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_a_share_is_above_nothing_and_at_most_everything(share):
    with pytest.raises(ConfigError, match="rank share"):
        narrow_(network(), share)


@pytest.mark.parametrize("config", [fp.FedPara(gamma=0.5), fp.LowRank(gamma=0.9)], ids=str)
def test_a_nested_model_begins_as_its_first_columns_of_the_variance_that_the_whole_had(config):
    plain, whole = network(config), nest_(network(config), 0.25)
    narrow = narrow_(nest_(network(config), 0.25), 0.25)
    for layer in (0, 3):
        torch.testing.assert_close(whole[layer].weight, narrow[layer].weight)
        ratio = float(whole[layer].weight.detach().std() / plain[layer].weight.detach().std())
        assert 0.4 < ratio < 2.5  # of variances that are equal in expectation, with few columns left to draw
    whole(torch.randn(8, 48, 3, 3)).square().sum().backward()
    for name in ("0", "3"):
        factors = [tensor for key, tensor in whole.named_parameters() if key.startswith(f"{name}.param")]
        assert any(bool(factor.grad[(factor == 0)].any()) for factor in factors)  # the others can learn


@pytest.mark.parametrize("config", [fp.FedPara(gamma=0.5), fp.LowRank(gamma=0.9)], ids=str)
def test_a_wide_model_trains_as_the_narrow_one_that_others_hold(config):
    whole, narrow = network(config), narrow_(network(config), 0.25)
    sides, inputs = rank_sides(whole), torch.randn(8, 48, 3, 3)
    narrow(inputs).square().sum().backward()
    with at_share(whole, 0.25) as model:
        model(inputs).square().sum().backward()
    assert whole(inputs).shape == (8, 4)  # whole again
    gradients = dict(narrow.named_parameters())
    for name, factor in whole.named_parameters():
        expected = torch.zeros_like(factor)
        first = gradients[name].grad
        expected[tuple(slice(size) for size in first.shape)] = first
        torch.testing.assert_close(factor.grad, expected, msg=name)
        assert name not in sides or factor.shape != first.shape or factor.shape[1] <= LEAST


def test_a_step_at_each_of_two_shares_adds_up_and_an_error_leaves_the_model_whole():
    whole, inputs = network(), torch.randn(8, 48, 3, 3)
    alone = network()
    alone(inputs).sum().backward()
    with at_share(whole, 1.0):
        whole(inputs).sum().backward()
    for factor, other in zip(whole.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(factor.grad, other.grad)
    parameters = [id(factor) for factor in whole.parameters()]
    with pytest.raises(RuntimeError), at_share(whole, 0.5):
        whole(torch.randn(8, 1, 3, 3))
    assert [id(factor) for factor in whole.parameters()] == parameters
    half = narrow_(network(), 0.5)
    with at_share(half, 0.25):  # of the whole model's ranks, not of this one's
        assert half[3].parametrizations.weight[0].rank == narrow_(network(), 0.25)[3].parametrizations.weight[0].rank


def test_what_is_common_keeps_no_gradient_of_a_wide_model():
    whole, inputs = network(), torch.randn(8, 48, 3, 3)
    whole(inputs).square().sum().backward()
    before = {name: factor.grad.clone() for name, factor in whole.named_parameters()}
    sides, narrow = rank_sides(whole), narrow_(network(), 0.25).state_dict()
    drop_common_(whole, 0.25)
    for name, factor in whole.named_parameters():
        if name not in sides:
            assert factor.grad is None, name
            continue
        common = tuple(slice(size) for size in narrow[name].shape)
        assert not factor.grad[common].any(), name
        before[name][common] = 0
        assert torch.equal(factor.grad, before[name]), name
    assert any(factor.grad is not None and factor.grad.any() for factor in whole.parameters())
