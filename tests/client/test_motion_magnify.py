"""A network on a stream of frames: tiles without seams, three ways to say what moves, bounded memory."""

import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfilt

from client.tasks.motion.footage import LONGEST, Slices
from client.tasks.motion.magnify import Band, SinceFirst, SinceLast, magnified, tiles
from client.tasks.motion.network import NETWORKS, build
from fedpara.errors import ConfigError


def film(count, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(256, (3, height, width), generator=generator).to(torch.uint8) for _ in range(count)]


@pytest.fixture(params=sorted(NETWORKS))
def model(request):
    torch.manual_seed(1)
    return build(request.param).eval()


def test_tiles_give_what_the_whole_frame_gives(model):
    frames = film(2, 72, 2 * model.reach + 70)
    (_, whole), (_, tiled) = (list(magnified(model, frames, 2.0, SinceFirst, core=core)) for core in (10_000, 64))
    assert len(tiles(72, 2 * model.reach + 72, model.reach, 64)) > 4
    assert (whole.int() - tiled.int()).abs().max() <= 1  # a rounding
    assert (whole != frames[1]).any()


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (17, 30), (33, 64)])
def test_any_size_comes_out_as_it_went_in(model, size):
    out = list(magnified(model, film(2, *size), 1.0, SinceLast))
    assert [frame.shape for frame in out] == [(3, *size)] * 2
    assert out[0].dtype == torch.uint8


def test_grey_stays_grey_and_colour_is_left_alone(model):
    frames = film(2, 24, 32)
    grey = [frame[:1].expand(3, -1, -1) for frame in frames]
    *_, colourless = magnified(model, grey, 20.0, SinceFirst)
    assert torch.equal(colourless, colourless[:1].expand(3, -1, -1))
    assert not torch.equal(colourless, grey[1])
    *_, coloured = magnified(model, frames, 20.0, SinceFirst)
    assert not torch.equal(coloured, coloured[:1].expand(3, -1, -1))


def test_tiles_cover_every_pixel_once():
    seen = torch.zeros(1100, 700, dtype=torch.int)
    for tile in tiles(1100, 700, 48):
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
        assert all(side % 4 == 0 for side in tile.around[:2])
    assert (seen == 1).all()


def test_static_looks_at_the_first_frame_and_dynamic_at_the_last():
    torch.manual_seed(1)
    model, (first, second, third) = build("light").eval(), film(3, 32, 32)
    alpha = torch.full((1,), 3.0)

    def direct(a, b):
        a, b = (frame[None].float() / 127.5 - 1 for frame in (a, b))
        with torch.no_grad():
            return ((model(a, b, alpha)[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    static = list(magnified(model, [first, second, third], 3.0, SinceFirst))
    dynamic = list(magnified(model, [first, second, third], 3.0, SinceLast))
    assert torch.equal(static[0], first)
    assert torch.equal(static[2], direct(first, third))
    assert torch.equal(dynamic[2], direct(second, third))
    assert not torch.equal(static[2], dynamic[2])


@pytest.mark.parametrize(("low", "high", "fps"), [(0.4, 3.0, 30.0), (0.04, 0.4, 30.0), (1.0, 2.0, 24.0)])
def test_the_band_is_scipys(low, high, fps):
    signal = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    band = Band(low, high, fps)
    found = torch.stack([band(sample) for sample in signal])
    sections = butter(2, [low, high], btype="bandpass", fs=fps, output="sos")
    expected = sosfilt(sections, (signal - signal[0]).numpy(), axis=0)
    assert np.allclose(found.numpy(), expected, atol=1e-9)


def test_the_band_passes_its_middle_and_neither_what_is_still_nor_what_is_faster():
    def passed(frequency):
        band = Band(0.5, 2.0, 30.0)
        time = torch.arange(900) / 30
        return max([abs(float(band(5 + torch.sin(2 * torch.pi * frequency * t)))) for t in time][400:])

    assert passed(1.0) == pytest.approx(1, abs=0.1)
    assert passed(0.0) < 1e-6
    assert passed(10.0) < 0.05


@pytest.mark.parametrize(("low", "high"), [(0, 3), (3, 0.4), (1, 1), (0.4, 15), (-1, 2)])
def test_a_band_that_cannot_be_is_refused(low, high):
    with pytest.raises(ConfigError, match="0 < low < high < 15"):
        Band(low, high, 30.0)


def test_what_is_held_does_not_grow_with_the_video():
    """Frames are asked for one at a time, after the one before came out."""
    torch.manual_seed(1)
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield film(1, 16, 16, seed=asked)[0]

    stream = magnified(build("light").eval(), endless(), 2.0, lambda: Band(0.4, 3, 30))
    for place in range(20):
        next(stream)
        assert asked == place + 1
    slices = Slices(3)
    for frame in film(5, 4, 8) * (LONGEST // 2):
        slices.add(frame, frame)
    assert LONGEST / 2 <= len(slices._pairs) <= LONGEST
    assert slices.picture().shape == (3, 4 + 4 + 4, len(slices._pairs))


def test_a_slice_is_a_column_over_time():
    slices, frames = Slices(5), film(6, 4, 8)
    for frame in frames:
        slices.add(frame, 255 - frame)
    picture = slices.picture()
    for time, frame in enumerate(frames):
        assert torch.equal(picture[:, :4, time], frame[:, :, 5])
        assert torch.equal(picture[:, 8:, time], 255 - frame[:, :, 5])
