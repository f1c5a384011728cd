"""Photographs on disk: exposures, sizes, shifts, radiance maps; and what is said where one is not what it must be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.tasks.camera.align import agreement, aligned, shift, turn, turned, valid_area
from client.tasks.camera.files import clients, exif_exposure, read_bracket, read_camera, read_photograph
from client.tasks.camera.radiance_file import read_radiance, write_radiance
from client.tasks.camera.scenes import Photograph, picture
from fedpara.errors import DataError


def take(folder, name, stops, *, move=(0, 0), size=(96, 128), exif=True, title="coffee"):
    """A photograph of a built-in picture through x^(1/2.2)."""
    top, left = 40 + move[0], 60 + move[1]
    light = picture(title)[:, top : top + size[0], left : left + size[1]] * 2**stops
    pixels = (light.clamp(0, 1) ** (1 / 2.2) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    tags = Image.Exif()
    tags.get_ifd(0x8769).update({0x829A: 2.0**stops, 0x829D: 4.0, 0x8827: 200})
    more = {"exif": tags.tobytes()} if exif else {}
    Image.fromarray(pixels).save(folder / name, **more, **({"quality": 98} if name.endswith("jpg") else {}))
    return folder / name


def test_exposures_come_from_exif_and_a_table_has_the_word_over_it(tmp_path):
    for stops in (-2, 0, 1):
        take(tmp_path, f"{stops}.jpg", stops)
    assert exif_exposure(tmp_path / "0.jpg") == pytest.approx(math.log2(2 / 16))
    found = read_bracket(tmp_path)
    assert [photo.exposure - found[1].exposure for photo in found] == pytest.approx([-2, 0, 1])
    assert [photo.row for photo in found] == [0, 1, 2]
    (tmp_path / "exposure.csv").write_text("file, Seconds\n-2.jpg,1/60\n0.jpg,0.25\n1.jpg,1\n")
    assert [photo.exposure for photo in read_bracket(tmp_path)] == pytest.approx([math.log2(1 / 60), -2, 0])
    (tmp_path / "exposure.csv").write_text("Exposure_Time;filename\n\n1/60 s;-2.jpg\n0.25;0.jpg\n1 / 1 ;1.jpg\n")
    assert [photo.exposure for photo in read_bracket(tmp_path)] == pytest.approx([math.log2(1 / 60), -2, 0])
    (tmp_path / "exposure.csv").write_text("file,ev\n-2.jpg,3\n0.jpg,1\n1.jpg,2\n")
    assert [photo.name for photo in read_bracket(tmp_path)] == ["0.jpg", "1.jpg", "-2.jpg"]


@pytest.mark.parametrize(
    ("table", "needle"),
    [
        ("file,exposure_seconds\na.png,1\n", "no line for b.png"),
        ("file,exposure_seconds\na.png,1\nb.png,-1\n", "above 0 s"),
        ("file,exposure_seconds\na.png,1\nb.png,1/0\n", "no number"),
        ("file,exposure_seconds\na.png,1\nb.png,nan\n", "above 0 s"),
        ("who,when\na.png,1\n", "expected file and exposure_seconds"),
        ("", "expected file and exposure_seconds"),
        ("\xff\xfe", "expected file and exposure_seconds"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, table, needle):
    take(tmp_path, "a.png", 0)
    take(tmp_path, "b.png", 1)
    (tmp_path / "exposure.csv").write_text(table)
    with pytest.raises(DataError, match=needle):
        read_bracket(tmp_path)


def test_no_exposure_is_an_error_with_a_remedy_but_one_photograph_needs_none(tmp_path):
    take(tmp_path, "a.png", 0, exif=False)
    assert [photo.exposure for photo in read_bracket(tmp_path)] == [0.0]
    take(tmp_path, "b.png", 1)
    with pytest.raises(DataError, match=r"a\.png has no exposure time in its EXIF: put an exposure\.csv"):
        read_bracket(tmp_path)


def test_unequal_sizes_other_views_and_blank_photographs(tmp_path):
    take(tmp_path / "sizes", "a.png", 0)
    take(tmp_path / "sizes", "b.png", 1, size=(96, 100))
    with pytest.raises(DataError, match=r"differ in size \(a.png is 128 x 96 and b.png is 100 x 96 pixels\)"):
        read_bracket(tmp_path / "sizes")
    take(tmp_path / "views", "a.png", 0)
    take(tmp_path / "views", "b.png", 1, title="astronaut")
    with pytest.raises(DataError, match="do not show the same view"):
        read_bracket(tmp_path / "views")
    for stops in (-30, 0, 1, 30):
        take(tmp_path / "blank", f"{stops}.png", stops)
    assert [photo.name for photo in read_bracket(tmp_path / "blank")] == ["0.png", "1.png"]
    for stops in (-30, 30):
        take(tmp_path / "nothing", f"{stops}.png", stops)
    with pytest.raises(DataError, match="all black or all white"):
        read_bracket(tmp_path / "nothing")
    with pytest.raises(DataError, match="all black or all white"):
        read_photograph(tmp_path / "nothing" / "30.png")


@pytest.mark.parametrize("move", [(0, 0), (5, -9), (-14, 3)])
def test_a_bracket_out_of_hand_is_shifted_back(tmp_path, move):
    take(tmp_path, "a.png", -1)
    take(tmp_path, "b.png", 1, move=move)
    first, second = read_bracket(tmp_path)
    assert first.size == second.size == (96 - abs(move[0]), 128 - abs(move[1]))
    developed = [(photo.pixels / 255) ** 2.2 / 2.0**stops for photo, stops in ((first, -1), (second, 1))]
    inside = (first.pixels > 20) & (second.pixels < 250)
    assert float((developed[0] - developed[1]).abs()[inside].mean()) < 0.01


@given(st.integers(-12, 12), st.integers(-12, 12))
def test_a_shift_is_found_whatever_it_is(down, right):
    whole = picture("chelsea").mean(0).numpy() ** (1 / 2.2) * 255
    a = whole[40:168, 60:220]
    b = whole[40 + down : 168 + down, 60 + right : 220 + right]
    assert shift(a, b) == (down, right)


@pytest.mark.parametrize("title", ["coffee", "rocket", "astronaut"])
def test_a_turned_photograph_is_not_the_same_view_and_another_exposure_is(title):
    light = picture(title)

    def grey(turned, stops):
        values = ((light * 2.0**stops).clamp(0, 1) ** (1 / 2.2) * 255).permute(1, 2, 0).round().byte().numpy()
        whole = Image.fromarray(values).rotate(turned, Image.Resampling.BICUBIC)
        return np.asarray(whole, np.float32)[32:-32, 32:-32].mean(2)

    assert agreement(grey(0, -2), grey(0, 2)) > 0.8
    assert shift(grey(0, -2), grey(0, 2)) == (0, 0)
    for degrees in (4, 25, 180):
        with pytest.raises(DataError, match="do not show the same view"):
            shift(grey(0, -1), grey(degrees, 1))
    flat = np.full((64, 64), 90, np.float32)
    assert agreement(flat, flat + 20) is None  # nothing to compare


@given(st.sampled_from(["coffee", "rocket", "astronaut"]), st.floats(-3, 3))
@settings(max_examples=8)
def test_a_photograph_turned_by_little_is_turned_back(title, degrees):
    light = picture(title)[:, :256, :256]
    low, high = ((light * 2.0**stops).clamp(0, 1) ** (1 / 2.2) * 255 for stops in (-1, 1))
    first, second = Photograph(low.round().byte(), -1.0), turned(Photograph(high.round().byte(), 1.0), degrees)
    seen = [photo.pixels.float().mean(0).numpy() for photo in (first, second)]
    found = turn(*seen)
    assert abs(found + degrees) < 0.2 or (found == 0 and abs(degrees) < 1)
    (a, b), _ = aligned([first, second])
    assert a.size == b.size
    assert not found or agreement(*(photo.pixels.float().mean(0).numpy() for photo in (a, b))) > agreement(*seen)


def test_pure_blue_along_an_edge_is_border_and_elsewhere_is_blue():
    pixels = torch.full((3, 20, 20), 100, dtype=torch.uint8)
    pixels[:, 4, 4] = torch.tensor([0, 0, 255], dtype=torch.uint8)
    assert valid_area(pixels) is None
    pixels[:, :, :2] = torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None]
    valid = valid_area(pixels)
    assert int((~valid).sum()) == 41
    cut, _ = aligned([Photograph(pixels, 0.0, valid=valid), Photograph(pixels, 1.0)])
    assert torch.equal(cut[0].valid, valid)


def test_a_folder_of_cameras_is_read_thinned_and_parted(tmp_path):
    for stops in (-3, -1, 0, 1, 3):
        take(tmp_path / "a" / "scenes" / "door", f"{stops}.png", stops, size=(120, 192))
    for stops in (0, 1):
        take(tmp_path / "a" / "scenes" / "wall", f"{stops}.png", stops)
    take(tmp_path / "b" / "scenes" / "alone", "one.jpg", 0)
    assert clients(tmp_path) == ["a", "b"]
    camera = read_camera(tmp_path, "a", 100)
    door, wall = camera.scenes
    assert [photo.size for photo in door.train] == [(60, 96)] * 3
    assert [photo.exposure - door.train[1].exposure for photo in door.held_out] == pytest.approx([-3, 3])
    assert [photo.row for photo in (*door.train, *wall.train)] == [0, 1, 2, 3, 4]
    assert (len(wall.train), len(wall.held_out)) == (2, 0)
    assert len(read_camera(tmp_path, "b", 100).scenes[0].pairs()) == 1  # with itself: a scene to light anew
    assert read_camera(tmp_path / "a", "whoever", 100).scenes[0].name == "door"  # a client's own data folder
    with pytest.raises(DataError, match="no photographs of 'c'"):
        read_camera(tmp_path, "c", 100)
    with pytest.raises(DataError, match="holds no cameras"):
        clients(tmp_path / "a")


@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 5))
def test_a_radiance_file_is_read_as_it_was_written(tmp_path_factory, height, width, seed):
    file = tmp_path_factory.mktemp("hdr") / "a.hdr"
    draw = np.random.default_rng(seed)
    light = np.exp(draw.normal(0, 5, (height, width, 1)) + draw.normal(0, 1, (height, width, 3))).astype(np.float32)
    light[:, : width // 2] = light[0, 0]  # long runs
    light[0, -1] = 0
    write_radiance(file, light)
    found = read_radiance(file)
    assert found.shape == light.shape
    assert (np.abs(found - light) <= light.max(-1, keepdims=True) / 128).all()
    assert not found[0, -1].any()


def test_nonsense_is_no_radiance_map(tmp_path):
    with pytest.raises(DataError, match="nowhere negative"):
        write_radiance(tmp_path / "a.hdr", np.full((2, 2, 3), np.nan))
    write_radiance(tmp_path / "a.hdr", np.random.default_rng(0).random((8, 40, 3)))
    whole = (tmp_path / "a.hdr").read_bytes()
    for content, needle in (
        (b"nothing", "no Radiance file"),
        (whole[:200], "cut off"),
        (whole.replace(b"-Y 8 +X 40", b"-Y 80000 +X 40000"), "expected 1 to"),
    ):
        (tmp_path / "b.hdr").write_bytes(content)
        with pytest.raises(DataError, match=needle):
            read_radiance(tmp_path / "b.hdr")
    with pytest.raises(DataError, match="cannot read"):
        read_radiance(tmp_path / "c.hdr")


def test_the_published_radiance_map_is_read(memorial):
    light = read_radiance(memorial / "memorial.hdr")
    assert light.shape == (768, 512, 3)
    assert np.isfinite(light).all()
    bright = light[..., 1][light[..., 1] > 0]
    assert np.log2(np.quantile(bright, 0.999) / np.quantile(bright, 0.001)) > 12
