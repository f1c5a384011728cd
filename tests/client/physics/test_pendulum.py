"""The second physics layer: the law against its equation, and a federation of pendulums."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import fedpara as fp
from client.tasks.physics import Between, Recurrent
from client.tasks.physics.layer import PhysicsLayer, Quantity, describe
from client.tasks.physics.pendulum import RATE, Pendulum, film, integrate, strips
from fedpara.app import find_recipe
from fedpara.config import read_recipe
from fedpara.report import write
from fedpara.seeds import generator_for
from tests.conftest import Silent


def literal(angle, speed, frequency, damping, *, seconds, steps):
    """θ'' = −ω² sin θ − 2ζ θ', by small midpoint steps."""
    h = seconds / steps

    def slope(a, v):
        return v, -(frequency**2) * math.sin(a) - 2 * damping * v

    for _ in range(steps):
        da, dv = slope(angle, speed)
        da, dv = slope(angle + h / 2 * da, speed + h / 2 * dv)
        angle, speed = angle + h * da, speed + h * dv
    return angle


@given(st.floats(-1.5, 1.5), st.floats(-3, 3), st.floats(2, 6.2), st.floats(0, 0.4))
def test_the_law_is_the_equation(angle, speed, frequency, damping):
    numbers = torch.tensor([angle, speed, frequency, damping], dtype=torch.float64)
    found = integrate(numbers[None, :2], numbers[2], numbers[3], 10, Pendulum.SUBSTEPS)
    exact = literal(angle, speed, frequency, damping, seconds=10 / RATE, steps=2000)
    assert float(found[0, -1]) == pytest.approx(exact, abs=0.05)
    finer = integrate(numbers[None, :2], numbers[2], numbers[3], 10, 64)
    assert float(finer[0, -1]) == pytest.approx(exact, abs=5e-4)


@given(st.floats(-100, 100))
def test_a_quantity_stays_within_its_bounds(raw):
    quantity = Quantity("a", "m", -1.0, 3.0)
    assert -1.0 <= float(quantity.of(torch.tensor(raw))) <= 3.0
    assert float(quantity.of(torch.tensor(quantity.raw(2.5)))) == pytest.approx(2.5, abs=1e-5)
    assert float(quantity.of(torch.tensor(0.0))) == 1.0


def test_the_pendulum_is_a_physics_layer_with_a_plot(tmp_path):
    law = Pendulum()
    assert isinstance(law, PhysicsLayer)
    assert not isinstance(torch.nn.Linear(2, 2), PhysicsLayer)
    assert "frequency: +4.000 rad/s" in describe(law)
    truth = {"frequency": torch.tensor(3.0), "damping": torch.tensor(0.1)}
    assert "<svg" in law.plot(tmp_path / "swing.svg", truth).read_text()


def test_its_gradients_are_those_of_differences():
    law = Pendulum().double()
    state = torch.tensor([[0.7, -0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda own: law(own, 4), (state,))
    (law(state, 8) ** 2).sum().backward()
    assert bool(law.raw.grad.ne(0).all())


def test_a_strip_shows_the_bob_where_it_is():
    seen = strips(torch.tensor([0.0, math.pi / 2, -math.pi / 2]))
    places = torch.linspace(-1.1, 1.1, 32)[seen.argmax(-1)]
    assert torch.allclose(places, torch.tensor([0.0, 1.0, -1.0]), atol=0.08)
    own = (torch.tensor(3.0), torch.tensor(0.1))
    assert torch.equal(*(film(3, 5, own, 0.1, generator_for(1)) for _ in range(2)))


SMALL = {"clients": 2, "cohort": 2, "rounds": 10, "workers": 1, "swings": 48, "lr_decay": 0.9, "epochs": 4}


def test_a_federation_finds_each_pendulum_and_sends_none(tmp_path):
    recipe = read_recipe(find_recipe("pendulum"), SMALL)
    result = fp.simulate(recipe, folder=tmp_path / "run", observer=Silent())
    first, last = result.rounds[0], result.rounds[-1]
    assert last["client_frequency_error"] < 0.5 * first["client_frequency_error"]
    assert last["client_psnr"] > first["client_psnr"]
    own = [load_file(max(path.glob("round-*"))) for path in (result.folder / "clients").glob("*/pendulum-*")]
    assert len(own) == 2
    assert all(set(tensors) == {"law.raw"} for tensors in own)
    on_server = load_file(next((result.folder / "checkpoint").glob("*.safetensors")))
    assert not any("law" in name for name in on_server)
    assert "a swing from 60 degrees" in write(result).read_text()
    learnt = [float(result.model(name).law.values()["frequency"]) for name in ("pendulum-1", "pendulum-2")]
    assert abs(learnt[0] - learnt[1]) > 0.1


def test_without_the_law_it_trains_too_and_is_no_smaller(tmp_path):
    recipe = read_recipe(find_recipe("pendulum"), SMALL | {"rounds": 2, "constraint": "none"})
    result = fp.simulate(recipe, folder=tmp_path / "run", observer=Silent())
    assert result.rounds[-1]["train_loss"] < result.rounds[0]["train_loss"]
    sizes = [sum(p.numel() for p in model.parameters()) for model in (Between(64), Recurrent(64))]
    assert sizes[0] < sizes[1]
