"""Scenes that move: exact by construction, as the paper draws them, and the same from the same seed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.tasks.motion.generator import (
    COLOUR,
    KINDS,
    Plan,
    Ranges,
    _sampled,
    dithered,
    even_plan,
    noisy,
    photographed,
    random_plan,
    recoloured,
    render,
)
from client.tasks.motion.objects import Collection, cut_out, outlines

RANGES = Ranges(crop=32, alpha=50, motion=10, magnified=5, objects=(2, 4))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def own():
    images = [
        torch.randint(256, (3, *size), generator=seeded(place)) for place, size in enumerate([(90, 120), (70, 64)])
    ]
    return Collection([image.to(torch.uint8) for image in images])


def plan(kind, shift, alpha, objects=0):
    """One scene in which everything moves alike."""
    shifts = torch.tensor(shift, dtype=torch.float32).expand(1, 1 + objects, 2)
    ones = torch.ones(1)
    return Plan(
        torch.tensor([kind]), alpha * ones, shifts, torch.ones(1, objects, dtype=torch.bool), ones, ones, 0 * ones
    )


def test_a_sampled_pixel_is_the_sum_of_the_sources_gaussians():
    layers = torch.rand(2, 3, 9, 9, generator=seeded())
    middle, moved = torch.tensor([[4.2, 3.9], [5.0, 4.5]]), torch.randn(3, 2, 2, generator=seeded(1))
    zoom, sigma = torch.tensor([[1.3, -1.3], [1.0, 1.0]]), torch.tensor([0.8, 0.6])
    found = _sampled(layers, moved, middle, zoom, sigma, side=7)
    for frame, sample, row, column in [(0, 0, 0, 0), (1, 0, 3, 5), (2, 1, 6, 2)]:
        expected = torch.zeros(3)
        place, step = middle[sample] + moved[frame, sample], zoom[sample]
        width = (sigma[sample] * step.abs()).clamp(min=0.7)
        at = (torch.tensor([row, column]) + 0.5 - place) * step + 4
        for y in range(9):
            for x in range(9):
                far = (((at - torch.tensor([y, x])) / width) ** 2).sum()
                weight = math.exp(-0.5 * far) / float(2 * math.pi * width[0] * width[1])
                expected += weight * layers[sample, :, y, x]
        assert torch.allclose(found[frame, sample, :, row, column], expected, atol=1e-5)


@pytest.mark.parametrize("objects", [0, 3])
@pytest.mark.parametrize(("shift", "alpha"), [((0.0, 1.0), 3.0), ((1.0, 0.0), 2.0), ((-0.5, 0.25), 3.0)])
def test_the_truth_is_the_scene_moved_further(own, shift, alpha, objects):
    frames = render(own, torch.tensor([0]), plan(0, shift, alpha, objects), RANGES, seeded())
    again = render(
        own, torch.tensor([0]), plan(0, [(1 + alpha) * part for part in shift], 0.0, objects), RANGES, seeded()
    )
    assert torch.allclose(frames.truth, again.b, atol=1e-6)
    down, right = (round((1 + alpha) * part) for part in shift)
    moved = torch.roll(frames.a, (down, right), (2, 3))
    inner = (..., slice(5, -5), slice(5, -5))  # beyond, something new came in
    assert torch.allclose(frames.truth[inner], moved[inner], atol=2e-3)
    assert not torch.allclose(frames.truth, frames.a, atol=0.05)


def test_what_is_static_stays_and_what_moves_does_so_alone(own):
    generator = seeded(3)
    drawn = random_plan(60, RANGES, 0.3, generator)
    frames = render(own, torch.arange(60) % 2, drawn, RANGES, generator)
    for kind in range(len(KINDS)):
        chosen = drawn.kind == kind
        still = (frames.a - frames.truth)[chosen].abs().amax((1, 2, 3)) < 1e-6
        assert still.all() == (kind == 3)
    moving = drawn.kind == 4
    assert (drawn.shift[moving, 0] == 0).all()
    changed = (frames.a - frames.truth)[moving].abs().amax(1) > 1e-3
    assert 0.02 < changed.float().mean() < 0.9  # the objects alone


@given(
    st.integers(0, 2**31),
    st.floats(0.5, 200),
    st.floats(0.1, 12),
    st.floats(1, 30),
    st.tuples(st.integers(1, 5), st.integers(0, 5)),
)
def test_plans_stay_within_their_ranges(seed, alpha, motion, magnified, objects):
    ranges = Ranges(32, alpha, motion, magnified, (objects[0], sum(objects)))
    drawn = random_plan(40, ranges, 0.3, seeded(seed))
    size = drawn.shift.norm(dim=-1)
    assert (drawn.alpha >= 0).all()
    assert (drawn.alpha <= alpha * 1.001).all()
    assert (size <= motion * 1.001).all()
    assert ((1 + drawn.alpha)[:, None] * size <= magnified * 1.001).all()
    assert (drawn.noise <= 0.3).all()
    number = drawn.shown.sum(1)[drawn.kind != 1]
    assert ((number >= ranges.objects[0]) & (number <= ranges.objects[1])).all()
    assert not drawn.shown[drawn.kind == 1].any()


def test_plans_for_judging_move_everything_by_the_size_that_was_asked_for():
    sizes = torch.tensor([0.02, 0.1, 1.0, 0.5])
    drawn = even_plan(sizes, torch.zeros(4), RANGES, seeded())
    moved = drawn.shift.norm(dim=-1)
    assert torch.allclose(moved[:3], sizes[:3, None].expand(3, 5))
    assert torch.allclose(moved[3, 1:], sizes[3].expand(4))
    assert moved[3, 0] == 0
    assert torch.allclose((1 + drawn.alpha) * sizes, torch.full((4,), 5.0))


def test_noise_is_that_of_the_paper():
    grey = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 200, 200)
    found = (noisy(grey, torch.tensor([0.3, 0.3, 0.1]), seeded()) - grey).std((1, 2, 3))
    expected = torch.tensor([0.0, 0.3 * math.sqrt(1 / 127.5), 0.1 * math.sqrt(2 / 127.5)])
    assert torch.allclose(found, expected, rtol=0.02)


def test_dither_keeps_what_eight_bits_would_lose():
    value = 0.3
    found = dithered(torch.full((1, 3, 300, 300), value), seeded())
    levels = (found + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert len(levels.round().unique()) == 2
    assert float(found.mean()) == pytest.approx(value, abs=2e-4)
    assert dithered(torch.tensor([[[[-3.0, 3.0]]]]), seeded()).tolist() == [[[[-1.0, 1.0]]]]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(own):
    def made(seed):
        generator = seeded(seed)
        drawn = random_plan(6, RANGES, 0.3, generator)
        frames = photographed(render(own, torch.arange(6) % 2, drawn, RANGES, generator), drawn, generator)
        return torch.cat([frames.a, frames.b, frames.truth])

    torch.manual_seed(5)
    first = made(1)
    torch.manual_seed(6)
    assert torch.equal(first, made(1))
    assert not torch.equal(first, made(2))


def test_another_colour_is_one_shift_of_each_channel_on_both_frames(own):
    frames = render(own, torch.tensor([1]), plan(1, (0.0, 1.0), 2.0), RANGES, seeded())
    b, truth = recoloured(frames, seeded(1))
    shift = (b - frames.b).mean((2, 3), keepdim=True)
    assert torch.allclose(b - frames.b, shift.expand_as(b), atol=1e-6)
    assert torch.allclose(truth - frames.truth, shift.expand_as(b), atol=1e-6)
    assert 0 < shift.abs().max() <= COLOUR
    assert len(shift.flatten().unique()) == 3


def test_images_that_are_too_small_are_enlarged():
    tiny = Collection([torch.full((3, 20, 30), 100, dtype=torch.uint8)])
    frames = render(tiny, torch.tensor([0]), plan(1, (0.0, 1.0), 2.0), RANGES, seeded())
    assert torch.allclose(frames.truth, torch.full_like(frames.truth, 100 / 127.5 - 1), atol=0.01)


def test_objects_of_masks_are_used_and_premultiplied():
    red = torch.zeros(3, 64, 64, dtype=torch.uint8)
    red[0] = 255
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[10:30, 20:50] = 1
    cut = cut_out(red, mask)
    assert cut.shape == (4, 20, 30)
    own = Collection([torch.zeros(3, 64, 64, dtype=torch.uint8)], [cut])
    found = own.objects(40, 32, seeded())
    coloured = found[:, 0].amax((1, 2)) > 0.5
    assert 8 < coloured.sum() < 32  # half of them
    assert (found[:, :3] <= found[:, 3:] + 1e-6).all()
    assert found[coloured][:, 0].sum((1, 2)) == pytest.approx(found[coloured][:, 3].sum((1, 2)), rel=1e-4)


def test_outlines_are_shapes_in_one_piece_that_end_before_their_window():
    found = outlines(50, 32, seeded())
    assert (found[:, 0, 16, 16] == 1).float().mean() > 0.9
    assert found[..., 0, 0].max() == 0
    area = found.mean((1, 2, 3))
    assert area.min() > 0.03
    assert area.max() < 0.8
    assert area.std() > 0.03
