"""Both networks, the loss and the measure."""

import pytest
import torch
from skimage.metrics import structural_similarity
from torch.nn.functional import l1_loss

import fedpara as fp
from client.tasks.motion.losses import magnification_loss, ssim
from client.tasks.motion.network import NETWORKS, build


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def frames(*size, seed=0):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(params=sorted(NETWORKS))
def model(request):
    torch.manual_seed(0)
    return build(request.param).eval()


def test_the_papers_network_has_its_parameters_and_the_light_one_is_light():
    assert count(build("paper")) == 918_928
    assert count(build("light")) <= 100_000


@pytest.mark.parametrize(("name", "times"), [("light", 3.05), ("paper", 4.5)])
def test_fedpara_sends_a_third_or_less(name, times):
    dense = count(build(name))
    model = fp.parametrize_(build(name), fp.FedPara(ratio=0.325) if name == "light" else fp.FedPara(gamma=0.2))
    assert count(model) * times < dense


def test_a_frame_comes_out_in_its_size(model):
    a, b = frames(20, 28), frames(20, 28, seed=1)
    with torch.no_grad():
        assert model(a, b, torch.tensor([1.0, 5.0])).shape == a.shape


def test_the_manipulator_adds_alpha_times_as_much(model):
    """M' = M_b + h(α g(M_b − M_a)); without biases it grows in proportion to α."""
    with torch.no_grad():
        (_, before), (_, shape) = model.encode(frames(24, 24)), model.encode(frames(24, 24, seed=1))
        one, four = (model.manipulate(shape, shape - before, torch.full((2,), alpha)) - shape for alpha in (1.0, 4.0))
        expected = model.act(torch.relu(model.look(shape - before)))
        none = model.manipulate(shape, shape - before, torch.zeros(2))
    assert torch.allclose(one, expected, atol=1e-5)
    assert torch.allclose(four, 4 * one, atol=1e-4)
    assert torch.equal(none, shape)
    assert one.abs().max() > 1e-3


def test_alpha_zero_and_what_is_still_are_given_back_by_the_light_network():
    torch.manual_seed(0)
    model, a, b = build("light"), frames(24, 24), frames(24, 24, seed=1)
    with torch.no_grad():
        assert torch.allclose(model(a, b, torch.zeros(2)), b, atol=1e-6)
        assert torch.allclose(model(b, b, torch.full((2,), 100.0)), b, atol=1e-6)
        assert not torch.allclose(model(a, b, torch.ones(2)), b, atol=1e-3)


def test_no_pixel_looks_further_than_reach(model):
    """What tiles depend on: a change beyond `reach` changes nothing."""
    side = 2 * model.reach + 24
    a, b = frames(8, side)[:1], frames(8, side, seed=1)[:1]
    other = b.clone()
    middle = side // 2
    other[..., middle + 4 + model.reach :] += 1
    other[..., : middle - model.reach] += 1
    alpha = torch.full((1,), 3.0)
    with torch.no_grad():
        here = (..., slice(middle, middle + 4))
        assert torch.allclose(model(a, b, alpha)[here], model(a, other, alpha)[here], atol=1e-5)


def test_the_loss_is_the_papers(model):
    a, b, truth, coloured, truth_coloured = (frames(16, 16, seed=seed) for seed in range(5))
    alpha = torch.tensor([2.0, 7.0])
    with torch.no_grad():
        found = magnification_loss(model, (a, b, truth, coloured, truth_coloured, alpha), 0.1)
        (texture_a, _), (texture_b, shape_b) = model.encode(a), model.encode(b)
        (texture_c, shape_c), (texture_y, _) = model.encode(coloured), model.encode(truth_coloured)
        apart = l1_loss(texture_a, texture_b) + l1_loss(texture_c, texture_y) + l1_loss(shape_b, shape_c)
        expected = l1_loss(model(a, b, alpha), truth) + 0.1 * apart
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("size", [(40, 31), (11, 64)])
def test_ssim_is_that_of_scikit_image(size, noise):
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.rand(3, 3, 6, 6, generator=generator), size, mode="bicubic")
    first = smooth.clamp(0, 1).double()
    second = (first + noise * torch.randn(first.shape, generator=generator)).clamp(0, 1)
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "channel_axis": 0}
    expected = [structural_similarity(x.numpy(), y.numpy(), **how) for x, y in zip(first, second, strict=True)]
    assert ssim(first, second).tolist() == pytest.approx(expected, abs=1e-6)
