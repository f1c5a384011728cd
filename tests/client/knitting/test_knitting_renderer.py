"""The renderer, and simulated photographs of what it draws."""

import pytest
import torch

from client.tasks.knitting.instructions import COUNT, MOVES, NAMES, from_behind, mirrored
from client.tasks.knitting.programs import random_programs
from client.tasks.knitting.renderer import CELL, CLEAN, FINE, REACH_X, REACH_Y, Yarn, _continued, _tile, render
from client.tasks.knitting.simulated_real import blurred, mill, photographs
from fedpara.seeds import generator_for

OF = {name: place for place, name in enumerate(NAMES)}


def literal(program, yarn):
    """One program, tile after tile: the highest is seen."""
    side = CELL * FINE
    around = _continued(program[None].long())[0].tolist()
    high, wide = len(around), len(around[0])
    canvas = torch.zeros((high + 2 * REACH_Y) * side, (wide + 2 * REACH_X) * side, dtype=torch.int16)
    for r in range(high):
        for c in range(wide):
            tile = torch.from_numpy(_tile(around[r][c], yarn))
            own = canvas[r * side : r * side + tile.shape[0], c * side : c * side + tile.shape[1]]
            own.copy_(torch.maximum(own, tile))
    top, left = 2 * REACH_Y * side, 2 * REACH_X * side
    rows, columns = program.shape
    shades = (canvas[top : top + rows * side, left : left + columns * side] & 255).float()
    return (shades.view(rows * CELL, FINE, columns * CELL, FINE).mean((1, 3)) + 1e-3).round().to(torch.uint8)


@pytest.mark.parametrize("yarn", [CLEAN, Yarn(radius=0.16, light=-0.4, lean=0.1)])
def test_look_ups_give_what_pasting_tile_after_tile_gives(yarn):
    program = torch.arange(25, dtype=torch.uint8).view(5, 5) % COUNT
    fast, slow = render(program[None], yarn)[0].int(), literal(program, yarn).int()
    assert int((fast - slow).abs().max()) <= 1  # halves round to either side


def test_a_fabric_is_grey_eight_pixels_a_cell_and_the_same_whenever_and_with_whomever_it_is_drawn():
    programs = random_programs(6, generator_for(0))
    drawn = render(programs)
    assert drawn.shape == (6, 160, 160)
    assert drawn.dtype == torch.uint8
    assert torch.equal(render(programs[3:4])[0], drawn[3])
    assert render(torch.zeros(1, 4, 7, dtype=torch.uint8)).shape == (1, 32, 56)


def test_a_mirrored_program_is_a_mirrored_fabric():
    even = Yarn(light=0.0, plies=0.0)  # light from a side and twisted yarn have a hand
    programs = random_programs(4, generator_for(1))
    apart = render(mirrored(programs), even).float() - render(programs, even).flip(-1).float()
    assert float(apart.abs().mean()) < 1.0
    assert float((render(programs, even).float() - render(programs, even).flip(-1).float()).abs().mean()) > 5


def test_the_back_is_the_front_of_the_program_from_behind():
    programs = random_programs(3, generator_for(2))
    assert torch.equal(render(programs, back=True), render(from_behind(programs)))
    assert not torch.equal(render(programs, back=True), render(programs))


def test_every_instruction_looks_unlike_every_other():
    for ground in (0, 1):
        programs = torch.full((COUNT, 5, 5), ground, dtype=torch.uint8)
        programs[:, 2, 2] = torch.arange(COUNT)
        drawn = render(programs).float()
        apart = (drawn[:, None] - drawn[None]).abs().mean((2, 3)) + 100 * torch.eye(COUNT)
        assert float(apart.min()) > 0.2


def test_heads_lean_to_the_side_they_move_to_and_leave_a_hole():
    for own, step in MOVES.items():
        ground = 0 if own < 8 else 1
        programs = torch.full((2, 7, 9), ground, dtype=torch.uint8)
        programs[1, 3, 4] = own
        plain, moved = render(programs).float()
        changed = (moved - plain).abs()[16:40]
        left, right = changed[:, :32].sum(), changed[:, 40:].sum()
        assert (right > 3 * left) if step > 0 else (left > 3 * right)
        hole = moved[20:25, 33:39]  # above the origin
        assert float(hole.min()) < float(plain.min())


def test_of_two_that_cross_the_sign_says_which_is_seen_whole():
    programs = torch.zeros(2, 5, 6, dtype=torch.uint8)
    programs[0, 2, 2:4] = torch.tensor([OF["XR+"], OF["XL-"]])
    programs[1, 2, 2:4] = torch.tensor([OF["XR-"], OF["XL+"]])
    first, second = render(programs, Yarn(light=0.0, plies=0.0)).float()
    assert float((first - second).abs().max()) > 40
    assert float((first - second.flip(-1)).abs().mean()) < 1.0


def test_a_mill_is_drawn_from_its_name_and_the_seed():
    assert mill("mill-1", 0, 0) == mill("mill-1", 0, 0)
    assert mill("mill-1", 0, 0) != mill("mill-1", 0, 1)
    assert mill("mill-1", 0, 0).yarns != mill("mill-2", 0, 0).yarns
    cables = [mill(f"mill-{n}", n, 0).mix.families["cables"] for n in range(4)]
    assert cables[0] == max(cables)
    assert mill("other", -1, 0).mix.families["cables"] < cables[0]
    assert mill("mill-1", 0, 0).title == "mill-1 (simulated)"


def test_simulated_photographs_show_their_program_and_repeat_themselves():
    own = mill("mill-1", 0, 0)
    programs = random_programs(6, generator_for(0), own.mix)
    taken = photographs(programs, own, generator_for(5))
    assert taken.shape == (6, 160, 160)
    assert taken.dtype == torch.uint8
    assert torch.equal(taken, photographs(programs, own, generator_for(5)))
    assert not torch.equal(taken, photographs(programs, own, generator_for(6)))
    # Each is more like the rendering of its own program than of another, behind some blur.
    seen, drawn = (blurred(images[:, None].float(), 2.0).flatten(1) for images in (taken, render(programs)))
    seen, drawn = (x - x.mean(1, keepdim=True) for x in (seen, drawn))
    alike = (seen / seen.norm(dim=1, keepdim=True)) @ (drawn / drawn.norm(dim=1, keepdim=True)).T
    assert float(alike.diagonal().mean()) > float((alike.sum() - alike.diagonal().sum()) / 30) + 0.03


def test_blurring_keeps_the_mean_and_takes_detail():
    images = torch.rand(2, 1, 32, 32, generator=generator_for(0))
    soft = blurred(images, 1.5)
    assert torch.allclose(soft.mean(), images.mean(), atol=0.01)
    assert float(soft.std()) < 0.4 * float(images.std())
