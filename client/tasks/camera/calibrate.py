"""Self-calibration of one camera from a bracket, and the radiance that the bracket holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from fedpara.seeds import generator_for

from . import response
from .image_formation import CameraLayer, View, trusted
from .network import SelfCalibrating
from .predict import develop, in_tiles
from .scenes import Photograph

STEPS, PAIRS, PIXELS, RATE = 400, 8, 2048, 0.05
ONE_BALANCE = 4e-3  # a bracket has one white balance, unless it says clearly that it has not


def calibrate(photographs: Sequence[Photograph], seed: int = 0, steps: int = STEPS) -> CameraLayer:
    """A camera fitted to an aligned bracket: what two photographs x and y tell of the radiance H must be one.

    Mean of m(x) m(y) (ln H(x) − ln H(y))² / (g'(x)² + g'(y)²), g' = d ln H/dx: squared distances in pixel values from
    what the camera can give, noise being in both (P. D. Sampson, Computer Graphics and Image Processing 18, 1982).

    The photographs' rows are their places. With one exposure alone there is nothing to fit, and the camera is the
    default one, x^(1/2.2).
    """
    camera = CameraLayer(len(photographs))
    if len({photo.exposure for photo in photographs}) < 2:
        return camera
    generator = generator_for(seed, "calibrate")
    stack = torch.stack([photo.pixels.flatten(1) for photo in photographs])  # (J, 3, H·W)
    valid = torch.stack(
        [torch.ones(photo.size, dtype=torch.bool) if photo.valid is None else photo.valid for photo in photographs]
    ).flatten(1)
    radius = photographs[0].radius.flatten()
    known = ((stack > 2) & (stack < 253)).all(1) & valid
    places = (known.sum(0) > 1).nonzero()[:, 0]
    if not len(places):
        return camera
    exposures = torch.tensor([photo.exposure for photo in photographs])
    pairs = torch.tensor([(i, j) for i, j in combinations(range(len(exposures)), 2) if exposures[i] != exposures[j]])
    optimizer = torch.optim.Adam(camera.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            chosen = places[torch.randint(len(places), (PIXELS,), generator=generator)]
            first, second = pairs[torch.randint(len(pairs), (min(PAIRS, len(pairs)),), generator=generator)].T
            where = radius[chosen].expand(len(first), 1, 1, -1)
            pixels, shown = stack[..., chosen][:, :, None].float() / 255, valid[:, chosen]
            x, y = (_side_by_side(pixels[own]) for own in (first, second))
            shown = shown[first] & shown[second]
            weight = trusted(x) * trusted(y) * shown
            views = (camera.view(exposures[own], own, where) for own in (first, second))
            view, target = (View(own.response[:1], _side_by_side(own.log_gain)) for own in views)
            apart = camera.develop(x, view) - camera.develop(y, target)
            error = apart.square() / (_slope(x, view).square() + _slope(y, target).square())
            loss = (error * weight).sum() / weight.sum().clamp(min=1) + camera.regulariser()
            loss = loss + ONE_BALANCE * camera.values()["white_balance"].square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return camera.requires_grad_(False)


def _slope(pixels: Tensor, view: View) -> Tensor:
    """d ln H/dx, over some steps of eight bits each way."""
    low, high = (pixels - 4 / 255).clamp(min=0), (pixels + 4 / 255).clamp(max=1)
    return (response.develop(high, view.response) - response.develop(low, view.response)) / (high - low)


def _side_by_side(values: Tensor) -> Tensor:
    """Pairs (P, 3, 1, N) as one picture (1, 3, P, N): their camera's response is worked out once."""
    return values.squeeze(2).transpose(0, 1)[None]


def radiance(model: SelfCalibrating, photographs: Sequence[Photograph]) -> Tensor:
    """ln H (3, H, W) of an aligned bracket: the mean of what the photographs tell, weighted by m(x)/g'(x)².

    That is by how surely each tells it: a step in a pixel value is g' = d ln H/dx in ln H.

    What none of them has between the ends of the scale is the network's estimate: of bright pixels mostly from the
    least exposed photographs, of dark ones from the most exposed.
    """
    low, high = (pick(photo.exposure for photo in photographs) for pick in (min, max))
    total = weights = torch.zeros(photographs[0].pixels.shape)
    for photo in photographs:
        pixels = photo.pixels.float() / 255
        away = torch.where(pixels > 0.5, photo.exposure - low, high - photo.exposure)
        weight = _surely(model.camera, photo) + 1e-4 * 4.0**-away
        if photo.valid is not None:
            weight = weight * (photo.valid + 1e-9)
        total = total + weight * develop(model, photo)
        weights = weights + weight
    return total / weights + grey(model.camera)


def _surely(camera: CameraLayer, photo: Photograph) -> Tensor:
    """m(x)/g'(x)² (3, H, W)."""

    def weight(pixels: Tensor, radius: Tensor) -> Tensor:
        view = camera.view(torch.tensor([photo.exposure]), torch.tensor([photo.row]), radius)
        return trusted(pixels) / _slope(pixels, view).square()

    return in_tiles(weight, photo.pixels)


def grey(camera: CameraLayer) -> Tensor:
    """What to add to ln H (3, 1, 1) so that what the camera shows as mid grey is grey, as Debevec and Malik have it.

    The channels' own scales are not in the photographs: each response is 1 where its own channel is full.
    """
    middle = response.develop(torch.full((1, 3, 1, 1), 0.5), camera.values()["response"][None])[0]
    return middle.mean() - middle
