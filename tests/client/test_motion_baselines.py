"""The classical magnifiers on motions of which the answer is known."""

import math

import pytest
import torch

from client.tasks.motion import baselines
from client.tasks.motion.baselines import BASELINES, linear, none, phase
from client.tasks.motion.losses import ssim

SIDE = 64


def pattern(right, seed=0):
    """A sum of waves of 6 to 32 pixels, moved right by so many pixels: exactly."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)) - right, indexing="ij")
    image = torch.zeros(1, 3, SIDE, SIDE)
    for _ in range(12):
        length, angle, turn = (torch.rand(3, generator=generator) * torch.tensor([26, math.pi, 6.28])).tolist()
        k = 2 * math.pi / (6 + length)
        wave = torch.sin(k * (math.cos(angle) * columns + math.sin(angle) * rows) + turn)
        image += 0.1 * torch.rand(1, 3, 1, 1, generator=generator) * wave
    return image


def similar(first, second, border=12):
    inner = (..., slice(border, -border), slice(border, -border))
    return float(ssim((first[inner] + 1) / 2, (second[inner] + 1) / 2))


def magnify(method, motion, alpha):
    return method(pattern(0), pattern(motion), torch.tensor([float(alpha)]), torch.tensor([motion]))


@pytest.mark.parametrize("name", BASELINES)
def test_alpha_zero_and_a_still_scene_give_the_frame_back(name):
    a, b = pattern(0), pattern(0.5)
    zero, motion = torch.zeros(1), torch.full((1,), 0.5)
    assert torch.allclose(BASELINES[name](a, b, zero, motion), b, atol=1e-4)
    assert torch.allclose(BASELINES[name](b, b, torch.full((1,), 20.0), motion), b, atol=1e-4)


@pytest.mark.parametrize(("motion", "alpha"), [(0.1, 19), (0.2, 9), (0.5, 3)])
def test_the_phase_based_one_moves_a_translated_pattern_further(motion, alpha):
    truth = pattern((1 + alpha) * motion)
    found = similar(magnify(phase, motion, alpha), truth)
    assert found > 0.95
    assert found > similar(magnify(none, motion, alpha), truth) + 0.05


def test_the_linear_one_is_first_order():
    """Where (1 + α) δ is far under an eighth of the wavelength it is right; beyond, the phase-based one is better."""
    small, large = pattern(0.2), pattern(4.0)
    assert similar(magnify(linear, 0.05, 3), small) > 0.995
    assert similar(magnify(linear, 0.05, 3), small) > similar(magnify(none, 0.05, 3), small)
    assert similar(magnify(linear, 0.5, 7), large) < similar(magnify(phase, 0.5, 7), large) - 0.1


def test_bands_and_orientations_sum_to_one():
    low, bands, high = baselines._radial((30, 41))
    total = low.square() + high.square() + sum(band.square() for band in bands)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
    around = torch.linspace(-math.pi, math.pi, 50)
    rows, columns = torch.round(200 * torch.sin(around)), torch.round(200 * torch.cos(around))
    halves = sum(part.square() for part in baselines._oriented((401, 401)))
    both = [halves[int(y), int(x)] + halves[-int(y), -int(x)] for y, x in zip(rows, columns, strict=True)]
    assert torch.allclose(torch.stack(both), torch.ones(50), atol=1e-4)
