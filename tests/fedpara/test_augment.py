"""Synthetic variants of images."""

import math

import numpy as np
import pytest
import torch

from fedpara.data import Augmentation, augment
from fedpara.errors import ConfigError

ALL = Augmentation(shift=2, flip=0.5, rotate=15, scale=0.1, shear=5, elastic=1, cutmix=0.5)
EACH = [
    Augmentation(shift=3),
    Augmentation(flip=True),
    Augmentation(rotate=30),
    Augmentation(scale=0.3),
    Augmentation(shear=20),
    Augmentation(elastic=2),
    Augmentation(cutmix=1),
    ALL,
    Augmentation(shift=2, rotate=15, elastic=1, pad="reflect"),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 12, channels: int = 3, height: int = 9, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, channels, height, width, generator=generator(99)), torch.arange(n) % 5


def test_all_off_changes_nothing():
    images, labels = batch()
    out, targets = augment(images, labels, Augmentation(), 5, generator())
    assert torch.equal(out, images)
    assert torch.equal(targets, labels)


@pytest.mark.parametrize("config", EACH)
@pytest.mark.parametrize(
    "shape", [(12, 3, 9, 7), (1, 1, 1, 1), (3, 1, 1, 4), (2, 2, 2, 2), (0, 1, 5, 5), (1, 3, 32, 32)]
)
def test_shapes_range_and_no_surprises(config, shape):
    images, labels = batch(*shape)
    before = images.clone()
    out, targets = augment(images, labels, config, 5, generator())
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert torch.isfinite(out).all()
    assert torch.equal(images, before)
    if shape[0]:
        assert out.min() >= 0
        assert out.max() <= images.max() + 1e-5
    if config.cutmix:
        assert targets.shape == (shape[0], 5)
        assert torch.allclose(targets.sum(1), torch.ones(shape[0]))
        assert (targets >= 0).all()
    else:
        assert torch.equal(targets, labels)


@pytest.mark.parametrize("config", EACH)
def test_the_generator_decides(config):
    images, labels = batch(40)
    first, second, other = (augment(images, labels, config, 5, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(dtype):
    images, labels = batch()
    expected, targets = augment(images, labels, ALL, 5, generator())
    out, soft = augment(images.to(dtype), labels, ALL, 5, generator())
    assert out.dtype == soft.dtype == dtype
    # float16 grids move by a fraction of a pixel, so the pictures agree on the whole only
    assert (out.float() - expected).abs().mean() < 0.05
    assert torch.allclose(soft.float(), targets, atol=0.01)


def test_runs_where_the_images_are():
    images, labels = (value.to("meta") for value in batch())
    for config in EACH:
        out, targets = augment(images, labels, config, 5, generator())
        assert out.device.type == targets.device.type == "meta"
        assert out.shape == images.shape


def test_flips_are_exact():
    images, labels = batch(200)
    out, _ = augment(images, labels, Augmentation(flip=0.3), 5, generator())
    flipped = (out == images.flip(-1)).flatten(1).all(1)
    same = (out == images).flatten(1).all(1)
    assert (flipped ^ same).all()
    assert 35 < int(flipped.sum()) < 85
    out, _ = augment(images, labels, Augmentation(flip=1), 5, generator())
    assert torch.equal(out, images.flip(-1))


def literal_shift(image: torch.Tensor, dy: int, dx: int, pad: str) -> torch.Tensor:
    """Every pixel by itself; "reflect" walks back and forth over the image, each edge pixel twice."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            sy, sx = y + dy, x + dx
            if pad == "reflect":
                ys = [*range(height), *reversed(range(height))]
                xs = [*range(width), *reversed(range(width))]
                out[:, y, x] = image[:, ys[sy % (2 * height)], xs[sx % (2 * width)]]
            elif 0 <= sy < height and 0 <= sx < width:
                out[:, y, x] = image[:, sy, sx]
    return out


@pytest.mark.parametrize("pad", ["zero", "reflect"])
@pytest.mark.parametrize(("shift", "height", "width"), [(2, 6, 5), (7, 3, 4), (1, 1, 1)])
def test_shifts_equal_a_literal_loop(pad, shift, height, width):
    images, labels = batch(40, 2, height, width)
    out, _ = augment(images, labels, Augmentation(shift=shift, pad=pad), 5, generator())
    moves = range(-shift, shift + 1)
    found = set()
    for before, after in zip(images, out, strict=True):
        fits = [(dy, dx) for dy in moves for dx in moves if torch.equal(after, literal_shift(before, dy, dx, pad))]
        assert fits
        found.update(fits)
    if shift == 2:
        assert {dy for dy, _ in found} == {dx for _, dx in found} == set(moves)


@pytest.mark.parametrize("size", [8, 9])
def test_a_quarter_turn_is_exact(monkeypatch, size):
    images, labels = batch(4, 1, size, size)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(*shape))
    out, _ = augment(images, labels, Augmentation(rotate=90), 5, generator())
    turned = [images.rot90(k, (2, 3)) for k in (1, 3)]
    assert min((out - each).abs().max() for each in turned) < 1e-4


def test_rotation_keeps_shapes_on_wide_images(monkeypatch):
    # A disc stays a disc: its extent is the same both ways although the image is twice as wide as high.
    y, x = torch.meshgrid(torch.arange(20) - 9.5, torch.arange(40) - 19.5, indexing="ij")
    disc = ((y**2 + x**2) < 36).float()[None, None]
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(*shape))
    for config in (Augmentation(rotate=90), Augmentation(rotate=45)):
        out, _ = augment(disc, torch.zeros(1, dtype=torch.int64), config, 1, generator())
        mass = out[0, 0] / out.sum()
        assert float((mass * x**2).sum()) == pytest.approx(float((mass * y**2).sum()), rel=0.02)
        assert float(out.sum() / disc.sum()) == pytest.approx(1, rel=0.02)


def test_scale_and_shear_move_what_they_say(monkeypatch):
    y, x = torch.meshgrid(torch.arange(41) - 20.0, torch.arange(41) - 20.0, indexing="ij")
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(*shape))
    label = torch.zeros(1, dtype=torch.int64)
    square = ((y.abs() < 5.5) & (x.abs() < 5.5)).float()[None, None]
    out, _ = augment(square, label, Augmentation(scale=0.5), 1, generator())
    assert float(out.sum() / square.sum()) == pytest.approx(1.5**2, rel=0.1)
    out, _ = augment(square, label, Augmentation(shear=30), 1, generator())
    assert float(out.sum() / square.sum()) == pytest.approx(1, rel=0.05)
    centres = (out[0, 0] * x).sum(1)[16:25] / out[0, 0].sum(1)[16:25]
    slopes = centres.diff().abs()
    assert float(slopes.mean()) == pytest.approx(math.tan(math.radians(30)), rel=0.1)


def test_elastic_displacement_is_of_the_size_asked_for_and_smooth():
    ramp = torch.arange(32.0).expand(32, 32)
    images = torch.stack((ramp, ramp.T))[None].repeat(400, 1, 1, 1)
    out, _ = augment(images, torch.zeros(400, dtype=torch.int64), Augmentation(elastic=1.0), 1, generator())
    moved = (out - images)[:, :, 8:24, 8:24]  # away from the edges, where nothing comes in
    assert float(moved[:, 0].std()) == pytest.approx(1, rel=0.1)
    assert float(moved[:, 1].std()) == pytest.approx(1, rel=0.1)
    assert abs(float(moved.mean())) < 0.1
    assert float(moved.diff(dim=-1).abs().max()) < 1


def test_warps_keep_a_constant_image_with_reflection():
    images = torch.full((6, 1, 12, 12), 0.7)
    config = Augmentation(shift=3, rotate=40, scale=0.3, shear=20, elastic=3, pad="reflect")
    out, _ = augment(images, torch.zeros(6, dtype=torch.int64), config, 1, generator())
    assert torch.allclose(out, images)


def test_what_one_operation_does_is_independent_of_the_others():
    images, labels = batch(30)
    both, _ = augment(images, labels, Augmentation(flip=0.5, elastic=1e-9, cutmix=0.0), 5, generator())
    alone, _ = augment(images, labels, Augmentation(flip=0.5), 5, generator())
    assert torch.allclose(both, alone, atol=1e-5)


@pytest.mark.parametrize(("n", "height", "width"), [(50, 8, 6), (2, 5, 5), (1, 4, 4), (30, 1, 1)])
def test_cutmix_targets_are_the_true_pixel_shares(n, height, width):
    # Every image is one flat colour of its own, so each pixel tells which image it is from.
    images = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 2, height, width).contiguous()
    out, targets = augment(images, torch.arange(n), Augmentation(cutmix=1.0), n, generator())
    for i in range(n):
        assert torch.equal(out[i, 0], out[i, 1])
        shares = np.bincount(out[i, 0].flatten().int(), minlength=n) / (height * width)
        assert targets[i].tolist() == pytest.approx(shares.tolist(), abs=1e-6)
        assert (shares > 0).sum() <= 2


def test_cutmix_pastes_rectangles_at_the_asked_rate_and_never_itself():
    images = torch.arange(400).float().view(400, 1, 1, 1).expand(400, 1, 10, 10).contiguous()
    out, _ = augment(images, torch.arange(400), Augmentation(cutmix=0.4), 400, generator())
    foreign = out != images
    pasted = foreign.flatten(1).any(1)
    assert 110 < int(pasted.sum()) < 200
    for mask in foreign[pasted][:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shift": -1},
        {"shift": 1.5},
        {"flip": 1.1},
        {"flip": -0.1},
        {"rotate": -5},
        {"rotate": 200},
        {"scale": 1},
        {"shear": 90},
        {"elastic": -1},
        {"elastic": float("inf")},
        {"elastic": float("nan")},
        {"cutmix": 2},
        {"pad": "mirror"},
    ],
)
def test_wrong_amounts(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        Augmentation(**wrong)


def test_flip_may_be_a_boolean():
    assert Augmentation(flip=True).flip == 0.5
    assert Augmentation(flip=False).flip == 0.0


def test_wrong_batches():
    images, labels = batch()
    for wrong in ((images.to(torch.uint8), labels, 5), (images[0], labels, 5), (images, labels[:3], 5)):
        with pytest.raises(ConfigError, match="expected"):
            augment(wrong[0], wrong[1], ALL, wrong[2], generator())
    with pytest.raises(ConfigError, match="num_classes is 0"):
        augment(images, labels, ALL, 0, generator())
    with pytest.raises(ConfigError, match=r"expected int64 \(12,\)"):
        augment(images, labels.float(), ALL, 5, generator())
