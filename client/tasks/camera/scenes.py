"""Scenes and the photographs taken of them; simulated cameras that photograph scenes made of built-in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpara.seeds import generator_for

from .image_formation import STOP, radius_squared
from .response import GAMMA
from .synthetic import RandomCameras, gain_maps, log_gain, photograph, random_cameras

# Pictures that scikit-image and scikit-learn carry: one for each camera, in turn, and two that no camera trains on.
OWN = ("astronaut", "chelsea", "rocket", "china", "flower", "hubble_deep_field", "retina", "immunohistochemistry")
UNSEEN = ("coffee", "stereo_motorcycle")
FRAME = (96, 128)
SCENE = (128, 192)
BRACKET = (-1.0, 0.0, 1.0)  # EV that are trained on
OUTSIDE = (-3.0, -2.0, 2.0, 3.0)  # EV that are predicted
SHUTTER = 0.03  # EV, deviation of a shutter from what it says


@dataclass(frozen=True, eq=False)
class Photograph:
    """One photograph of a scene: uint8 (3, H, W), its nominal exposure in EV, and where its corner lies in the scene.

    ``row`` is its place in the camera's own table, -1 for none. ``valid`` (H, W) leaves out what shows no scene.
    """

    pixels: Tensor
    exposure: float
    top: int = 0
    left: int = 0
    row: int = -1
    valid: Tensor | None = None
    name: str = ""

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def radius(self) -> Tensor:
        """r² (H, W)."""
        return radius_squared(*self.size)


@dataclass(frozen=True, eq=False)
class Scene:
    """Photographs of one thing by one camera: those trained on, and those held out."""

    name: str
    train: Sequence[Photograph]
    held_out: Sequence[Photograph] = ()

    def pairs(self) -> list[tuple[Photograph, Photograph]]:
        """Each trained photograph with each other one; one that is alone with itself, a scene to be lit anew."""
        return [(a, b) for a in self.train for b in self.train if a is not b or len(self.train) == 1]


@dataclass(frozen=True, eq=False)
class Camera:
    """A client: its scenes, one that it never trains on among them, and its true quantities where they are known."""

    name: str
    scenes: Sequence[Scene]
    unseen: Sequence[Scene] = ()
    truth: dict[str, Tensor] = field(default_factory=dict)


def built_in(place: int, name: str, seed: int, measured: Path | None = None) -> Camera:
    """The simulated camera at this place of the population, drawn from the seed and its name.

    It takes a scene made of a picture of its own, and of two pictures that no camera trains on one each: a bracket of
    -1, 0 and +1 EV, and one frame turned aside whose white balance went elsewhere. Its shutter is off by 0.03 EV.
    """
    generator = generator_for(seed, "camera", name)
    lens = random_cameras(1, generator, measured)
    rows: list[Photograph] = []
    own = _take(_scene(OWN[place % len(OWN)], generator), "own scene", lens, rows, generator)
    unseen = [_take(_scene(title, generator), f"unseen {title}", lens, None, generator) for title in UNSEEN]
    truth = {"response": lens.response[0], "vignetting": lens.falloff[0]}
    return Camera(name, [own], unseen, truth)


@lru_cache(maxsize=16)
def picture(name: str) -> Tensor:
    """A picture that is installed with scikit-image or scikit-learn, linear light, (3, H, W), its shorter side 256."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(f"{name}.jpg")
    else:
        from skimage import data

        pixels = getattr(data, name)()
        pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # a stereo pair and its disparity
    image = torch.from_numpy(np.array(pixels[..., :3])).permute(2, 0, 1).float() / 255
    scale = 256 / min(image.shape[1:])
    light = (image.clamp(min=0.5 / 255) ** GAMMA)[None]
    return F.interpolate(light, scale_factor=scale, mode="bilinear", antialias=True)[0]


def _scene(name: str, generator: torch.Generator) -> Tensor:
    """Radiance (3, 128, 192): a window of a picture under a smooth light, its median at 0.18."""
    whole = picture(name)
    top, left = (
        int(torch.randint(a - b + 1, (), generator=generator)) for a, b in zip(whole.shape[1:], SCENE, strict=True)
    )
    light = whole[:, top : top + SCENE[0], left : left + SCENE[1]].log()
    light = light + STOP * gain_maps(1, *SCENE, generator)[0]
    return (light - light.median()).exp() * 0.18


def _take(
    radiance: Tensor, name: str, lens: RandomCameras, rows: list[Photograph] | None, generator: torch.Generator
) -> Scene:
    """A bracket, a frame turned aside, and the exposures outside that are held out; rows grow by what is trained on."""
    middle = ((SCENE[0] - FRAME[0]) // 2, (SCENE[1] - FRAME[1]) // 2)
    # Corners of the scene: there what was the frame's middle comes to lie at its rim, which tells the vignetting.
    corner = [int(torch.randint(2, (), generator=generator)) * (a - b) for a, b in zip(SCENE, FRAME, strict=True)]
    drift = 0.15 * torch.randn(3, generator=generator)
    drift = drift - drift.mean()
    taken = []
    for stops, (top, left), balance in [*((e, middle, 0) for e in BRACKET), (0.0, (corner[0], corner[1]), drift)]:
        late = float(SHUTTER * torch.randn((), generator=generator))
        pixels = _frame(radiance, lens, stops + late, (top, left), generator, balance=balance)
        row = -1 if rows is None else len(rows)
        taken.append(Photograph(pixels, stops, top, left, row, name=f"{name} at {stops:+g} EV"))
        if rows is not None:
            rows.append(taken[-1])
    outside = [
        Photograph(_frame(radiance, lens, stops, middle, generator), stops, *middle, name=f"{name} at {stops:+g} EV")
        for stops in OUTSIDE
    ]
    return Scene(name, taken, outside)


def _frame(
    radiance: Tensor,
    lens: RandomCameras,
    stops: float,
    corner: tuple[int, int],
    generator: torch.Generator,
    *,
    balance: Tensor | float = 0.0,
) -> Tensor:
    """What the camera stores of the window of the scene that begins there, uint8; ``balance`` in EV by channel."""
    top, left = corner
    seen = radiance[None, :, top : top + FRAME[0], left : left + FRAME[1]]
    gain = log_gain(lens, torch.tensor([stops]), radius_squared(*FRAME)[None, None])
    gain = gain + STOP * torch.as_tensor(balance).expand(3)[:, None, None]
    pixels = photograph(seen * gain.exp(), lens.response, generator)
    return (pixels[0] * 255).round().to(torch.uint8)
