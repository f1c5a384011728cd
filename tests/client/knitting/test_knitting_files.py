"""Mills' own photographs and programs on disk: what is read, and what is refused with which words."""

import numpy as np
import pytest
import torch
from PIL import Image

from client.tasks.knitting.files import mills, program_png, read_mill, read_program, read_test
from client.tasks.knitting.instructions import PALETTE
from client.tasks.knitting.programs import random_programs
from client.tasks.knitting.renderer import render
from fedpara.errors import DataError
from fedpara.seeds import generator_for


def make_mill(folder, pairs=5, alone=2, *, size=160, seed=0, stitches=(20, 20)):
    """Photographs, JPEG in colour, of which the first have programs."""
    programs = random_programs(pairs + alone, generator_for(seed), size=stitches)
    for part in ("real", "instruction"):
        (folder / part).mkdir(parents=True)
    for place, (program, fabric) in enumerate(zip(programs, render(programs), strict=True)):
        grey = Image.fromarray(fabric.numpy()).resize((size, size))
        Image.merge("RGB", [grey] * 3).save(folder / "real" / f"swatch{place}.jpg", quality=95)
        if place < pairs:
            (folder / "instruction" / f"swatch{place}.png").write_bytes(program_png(program))
    return programs


def test_a_program_is_read_as_it_was_written(tmp_path):
    programs = random_programs(3, generator_for(0))
    for place, program in enumerate(programs):
        file = tmp_path / f"{place}.png"
        file.write_bytes(program_png(program))
        assert torch.equal(read_program(file), program)
        with Image.open(file) as image:
            assert image.mode == "P"
            image.convert("RGB").save(file)  # its colours say as much
        assert torch.equal(read_program(file), program)


def test_numbers_count_whatever_the_palette(tmp_path):
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), "P")
    image.putpalette([5, 5, 5] * 256)
    image.save(tmp_path / "a.png")
    assert read_program(tmp_path / "a.png").flatten().tolist() == list(range(16))


@pytest.mark.parametrize(
    ("pixels", "mode", "says"),
    [
        (np.full((20, 20), 17, np.uint8), "L", "the number 17 at row 0, column 0 is no instruction"),
        (np.zeros((20, 20, 3), np.uint8), "RGB", "the colour at row 0, column 0 is no instruction"),
        (np.zeros((2, 20), np.uint8), "L", "is 20 x 2 pixels: a program has one pixel a stitch"),
        (np.zeros((500, 20), np.uint8), "L", "one pixel a stitch"),
    ],
)
def test_what_is_no_program_is_refused(tmp_path, pixels, mode, says):
    Image.fromarray(pixels, mode).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=says) as error:
        read_program(tmp_path / "a.png")
    assert "a.png" in str(error.value)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        read_program(tmp_path / "a.png")


def test_a_mill_has_pairs_photographs_alone_and_pairs_held_out(tmp_path):
    programs = make_mill(tmp_path / "north", size=240)
    found = read_mill(tmp_path, "north", 0.4, 0)
    assert len(found.photographs) == len(found.programs) == 3
    assert len(found.held_photographs) == len(found.held_programs) == 2
    assert found.alone.shape == (2, 160, 160)
    own = {tuple(program.flatten().tolist()) for program in (*found.programs, *found.held_programs)}
    assert own == {tuple(program.flatten().tolist()) for program in programs[:5]}
    fabric = render(found.programs).float()
    assert float((fabric - found.photographs.float()).abs().mean()) < 20  # each beside its own program
    again = read_mill(tmp_path, "north", 0.4, 0)
    assert torch.equal(again.held_programs, found.held_programs)
    assert read_mill(tmp_path / "north", "whoever", 0.4, 0).alone.shape == (2, 160, 160)


def test_lists_say_who_is_held_out(tmp_path):
    programs = make_mill(tmp_path / "north")
    (tmp_path / "north" / "test.txt").write_text("# mine\nswatch1.jpg\nswatch3\n\n")
    found = read_mill(tmp_path, "north", 0.9, 0)
    assert torch.equal(found.held_programs, programs[[1, 3]])
    assert torch.equal(found.programs, programs[[0, 2, 4]])
    (tmp_path / "north" / "train.txt").write_text("swatch0\nswatch1\n")
    assert torch.equal(read_mill(tmp_path, "north", 0.9, 0).programs, programs[:1])
    (tmp_path / "north" / "train.txt").write_text("swatch9\n")
    with pytest.raises(DataError, match=r"train\.txt names swatch9, of which there is no photograph with a program"):
        read_mill(tmp_path, "north", 0.9, 0)


def test_mills_are_folders_with_photographs_and_test_is_nobodys(tmp_path):
    for name in ("south", "north", "test"):
        make_mill(tmp_path / name, 2, 0)
    assert mills(tmp_path) == ["north", "south"]
    assert read_test(tmp_path).photographs.shape == (2, 160, 160)
    assert read_test(tmp_path / "north") is None
    with pytest.raises(DataError, match="holds no mills: expected"):
        mills(tmp_path / "north" / "real")


def test_of_one_pair_none_is_held_out(tmp_path):
    make_mill(tmp_path / "north", 1, 0)
    assert len(read_mill(tmp_path, "north", 0.9, 0).held_photographs) == 0


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no photographs of 'north': expected .*north/real"):
        read_mill(tmp_path, "north", 0.2, 0)
    make_mill(tmp_path / "north", 2, 1)
    (tmp_path / "north" / "real" / "swatch1.jpg").unlink()
    with pytest.raises(DataError, match=r"swatch1\.png has no photograph: put swatch1\.jpg into"):
        read_mill(tmp_path, "north", 0.2, 0)
    for file in (tmp_path / "north" / "instruction").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"has no programs: put instruction/NAME\.png"):
        read_mill(tmp_path, "north", 0.2, 0)


def test_programs_of_two_sizes_are_refused(tmp_path):
    make_mill(tmp_path / "north", 2, 0)
    file = tmp_path / "north" / "instruction" / "swatch1.png"
    file.write_bytes(program_png(random_programs(1, generator_for(0), size=(12, 12))[0]))
    with pytest.raises(DataError, match=r"is 12 x 12 stitches, .* 20 x 20: give all one size"):
        read_mill(tmp_path, "north", 0.0, 0)


def test_colours_are_told_apart():
    assert len({tuple(colour) for colour in PALETTE}) == 17
