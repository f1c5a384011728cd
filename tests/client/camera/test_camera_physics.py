"""Image formation: the equations written literally beside the fast code, and what a physics layer promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.tasks.camera import response
from client.tasks.camera.image_formation import STOP, CameraLayer, View, radius_squared, trusted, vignetting
from client.tasks.physics.layer import PhysicsLayer, describe
from fedpara.errors import DataError
from fedpara.seeds import generator_for


def rising(seed):
    """A random response (1, 3, 257)."""
    return response.curve(torch.randn(1, 3, 256, generator=generator_for(seed, "test")))


def literal_response(x, knots):
    """f(X): 257 knots at (k/256)^2.2, linear in X^(1/2.2), slope 0.01 above 1."""
    u = x ** (1 / 2.2)
    if u >= 1:
        return 1 + 0.01 * (u - 1)
    k = int(u * 256)
    return knots[k] + (u * 256 - k) * (knots[k + 1] - knots[k])


def literal_trust(c):
    if c < 0.15:
        return 1 - ((0.15 - c) / 0.15) ** 2
    return 1 - ((c - 0.9) / 0.1) ** 2 if c > 0.9 else 1.0


def test_a_new_camera_has_the_response_of_gamma_2_2():
    x = torch.tensor([0.001, 0.01, 0.2, 0.5, 1.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    values = response.expose(x.log(), CameraLayer(1).values()["response"][None])
    assert torch.allclose(values, x ** (1 / 2.2), atol=1e-6)


@given(st.integers(0, 50), st.floats(1e-5, 20.0))
def test_the_response_is_the_literal_one(seed, x):
    knots = rising(seed)
    found = response.expose(torch.full((1, 3, 1, 1), math.log(x)), knots)
    for channel in range(3):
        assert float(found[0, channel]) == pytest.approx(literal_response(x, knots[0, channel].tolist()), abs=2e-5)


@given(st.integers(0, 50))
def test_every_curve_rises_from_0_to_1_and_developing_undoes_exposing(seed):
    knots = rising(seed)
    assert bool((knots.diff(dim=-1) > 0).all())
    assert torch.allclose(knots[..., [0, -1]], torch.tensor([0.0, 1.0]).expand(1, 3, 2), atol=1e-5)
    pixels = (torch.arange(1, 256) / 255).view(1, 1, 1, 255).expand(1, 3, 1, 255)
    assert torch.allclose(response.expose(response.develop(pixels, knots), knots), pixels, atol=2e-4)


def test_the_inverse_is_differentiable_in_the_knots():
    logits = torch.zeros(3, 256, dtype=torch.float64, requires_grad=True)
    levels = torch.tensor([20, 100, 200])

    def picked(own):
        return response.inverse(response.curve(own))[:, levels]

    assert torch.autograd.gradcheck(picked, (logits + 0.1 * torch.sin(torch.arange(768.0).view(3, 256)),), eps=1e-5)


@given(st.floats(0, 1))
def test_trust_falls_with_the_square_of_the_distance(c):
    assert float(trusted(torch.tensor(c, dtype=torch.float64))) == pytest.approx(literal_trust(c), abs=1e-9)


def test_vignetting_is_the_polynomial_in_the_even_powers_of_the_radius():
    radius = radius_squared(4, 6)
    y, x = 1.5, 2.5  # the first pixel's middle, from the picture's
    assert float(radius[0, 0]) == pytest.approx((y * y + x * x) / (2 * 2 + 3 * 3))
    terms = torch.tensor([-0.3, -0.1])
    r = float(radius[0, 0]) ** 0.5
    assert float(vignetting(radius, terms)[0, 0]) == pytest.approx(1 - 0.3 * r**2 - 0.1 * r**4, abs=1e-6)
    window = radius_squared(2, 2, top=1, left=3, whole=(4, 6))
    assert torch.equal(window, radius[1:3, 3:5])
    assert float(vignetting(torch.tensor(1.0), torch.tensor([-1.0, -1.0]))) == pytest.approx(0.1)  # clamped


def test_forming_and_developing_an_image_follow_the_equation():
    camera = CameraLayer(2)
    with torch.no_grad():
        camera.balance[1] = torch.tensor([0.3, 0.0, -0.1])
        camera.offset[1] = 0.07
        camera.falloff[:] = torch.tensor([-0.2, 0.05])
        # Smooth, as cameras are: between the 256 values of eight bits the inverse is a table's.
        camera.logits += 0.5 * torch.sin(torch.linspace(0, 6, 256) + torch.arange(3)[:, None])
    values = camera.values()
    radius = radius_squared(3, 4)[None, None]
    view = camera.view(torch.tensor([1.0]), torch.tensor([1]), radius)
    radiance = torch.full((1, 3, 3, 4), 0.05)
    image = camera(radiance.log(), view)
    gain = 2 ** (1.0 + values["exposure"][1] + values["white_balance"][1, 2])
    light = 0.05 * float((gain * vignetting(radius, values["vignetting"])[0, 0, 0, 0]).detach())
    literal = literal_response(light, values["response"][2].tolist())
    assert float(image[0, 2, 0, 0].detach()) == pytest.approx(literal, abs=1e-5)
    assert torch.allclose(camera.develop(image, view).exp(), radiance, rtol=2e-3)
    exact = camera.view(torch.tensor([1.0]), torch.tensor([1]), radius, exact=True)
    assert torch.allclose(view.log_gain - exact.log_gain, STOP * values["exposure"][1], atol=1e-6)
    nobody = camera.view(torch.tensor([0.0]), torch.tensor([-1]), torch.zeros(1, 1, 1, 1))
    assert torch.equal(nobody.log_gain, torch.zeros(1, 3, 1, 1))


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_quantities_never_leave_their_bounds_and_the_gauge_holds(raw, other):
    camera = CameraLayer(3)
    with torch.no_grad():
        for parameter in camera.parameters():
            parameter.flatten()[::2] = raw
            parameter.flatten()[1::2] = other
    values = {name: value.detach() for name, value in camera.values().items()}
    assert torch.allclose(values["white_balance"].sum(-1), torch.zeros(3), atol=1e-5)
    for quantity in camera.quantities:
        half = (quantity.high - quantity.low) if quantity.name == "white_balance" else 0  # a mean is taken off
        assert float(values[quantity.name].min()) >= quantity.low - half - 1e-5
        assert float(values[quantity.name].max()) <= quantity.high + half + 1e-5


def test_the_camera_is_a_physics_layer_with_a_plot(tmp_path):
    camera = CameraLayer(2)
    assert isinstance(camera, PhysicsLayer)
    assert float(camera.regulariser()) == pytest.approx(0.0, abs=1e-6)
    truth = {"response": rising(0)[0], "vignetting": torch.tensor([-0.2, 0.0])}
    assert "<svg" in camera.plot(tmp_path / "camera.svg", truth).read_text()
    assert "vignetting: +0.000 +0.000" in describe(camera)


def test_clipped_pixels_still_have_a_gradient():
    light = torch.full((1, 3, 1, 1), 1.0, requires_grad=True)  # ln X = 1: over the full sensor
    response.expose(light, CameraLayer(1).values()["response"][None]).sum().backward()
    assert bool((light.grad > 0).all())


@pytest.mark.parametrize("measured", [False, True])
def test_random_responses_rise_and_differ(measured, request, tmp_path):
    file = request.getfixturevalue("emor") if measured else None
    drawn = response.random_responses(6, generator_for(3, "responses"), file)
    assert drawn.shape == (6, 3, 257)
    assert bool((drawn.diff(dim=-1) > 0).all())
    assert torch.allclose(drawn[..., [0, -1]], torch.tensor([0.0, 1.0]).expand(6, 3, 2), atol=1e-6)
    assert response.rmse(drawn[0], drawn[1]) > 0.005
    again = response.random_responses(6, generator_for(3, "responses"), file)
    assert torch.equal(drawn, again)


def test_a_falling_response_and_a_broken_basis_are_refused(tmp_path):
    with pytest.raises(DataError, match="falls somewhere"):
        response.knots_of(torch.linspace(0, 1, 5), torch.tensor([0, 0.5, 0.4, 0.8, 1.0]))
    (tmp_path / "emor.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no response basis"):
        response.random_responses(1, generator_for(0), tmp_path / "emor.npz")


def test_a_view_is_a_response_and_a_gain():
    assert View._fields == ("response", "log_gain")
