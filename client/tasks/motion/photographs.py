"""Whose images there are: photographs that come with scikit-image and scikit-learn, or folders of a client's own.

    data-dir/clips/<client>/     frames (000001.png …) and video files, in any depth of one
    data-dir/clips/<client>/masks/   optional: 000001.png or 000001-anything.png, an object in the frame of that name
    data-dir/test/               optional: images to judge on, else the built-in ones

On a client's own machine there need be no other client's folder than its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpara.data.files import data_roots
from fedpara.data.folder import image_files, read_image
from fedpara.errors import ConfigError, DataError

from .objects import Collection, cut_out
from .video import VIDEOS, Reader

TRAIN = (
    *("astronaut", "coffee", "chelsea", "rocket", "brick", "grass"),
    *("gravel", "flower", "moon", "immunohistochemistry", "retina", "hubble_deep_field"),
)
TEST = ("china", "camera", "coins", "motorcycle")
LARGEST = 1280  # longer side that a texture is reduced to
LEAST = 16  # shorter side under which an image is no texture
FRAMES = 32  # taken of one video, evenly: neighbours look alike
STRIP = 4  # with fewer images than this, a part of each is held out, and not some of them


@dataclass(frozen=True)
class Images:
    """One owner's images, uint8 (3, H, W), with masks of objects in them, by the image's place."""

    images: Sequence[Tensor]
    masks: Sequence[tuple[int, Tensor]] = ()

    def split(self, holdout: float) -> tuple[Images, Images | None]:
        """To train on, and to be judged on: the last images, or where there are few, the right-hand part of each."""
        if not holdout:
            return self, None
        if len(self.images) < STRIP:
            cuts = [round((1 - holdout) * image.shape[2]) for image in self.images]
            masks = [(place, mask[:, : cuts[place]]) for place, mask in self.masks]
            left = [image[:, :, :cut] for image, cut in zip(self.images, cuts, strict=True)]
            right = [image[:, :, cut:] for image, cut in zip(self.images, cuts, strict=True)]
            return Images(left, masks), Images(right)
        cut = len(self.images) - max(1, round(holdout * len(self.images)))
        kept = [(place, mask) for place, mask in self.masks if place < cut]
        return Images(self.images[:cut], kept), Images(self.images[cut:])

    def collection(self, noise: float, device: torch.device) -> Collection:
        """What scenes are made of."""
        cutouts = [cut_out(self.images[place], mask).to(device) for place, mask in self.masks if mask.any()]
        return Collection([image.to(device) for image in self.images], cutouts, noise)


@cache
def photograph(name: str) -> Tensor:
    """A photograph of scikit-image or scikit-learn by its name, uint8 (3, H, W)."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        pixels = load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        pixels = skimage.data.stereo_motorcycle()[0]
    else:
        pixels = getattr(skimage.data, name)()
    pixels = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def builtin_population(clients: int) -> list[str]:
    """The clients of the built-in federation, each called after the first photograph that it owns."""
    if clients > len(TRAIN):
        raise ConfigError(
            f"clients = {clients}, and the built-in photographs are enough for {len(TRAIN)}: lower clients, or set "
            "dataset = 'folder' and give your own"
        )
    return list(TRAIN[:clients])


def builtin_images(client: str, clients: int) -> Images:
    """The photographs of one of them: they are dealt out in turn."""
    owners = builtin_population(clients)
    if client not in owners:
        raise ConfigError(f"'{client}' is none of the built-in clients {', '.join(owners)}")
    return Images([photograph(name) for name in TRAIN[owners.index(client) :: clients]])


def test_images(data_dir: str) -> Images:
    """Images that no client owns."""
    folder = Path(data_dir).expanduser() / "test" if data_dir else None
    if folder and folder.is_dir():
        return Images([_reduced(_texture(path)) for path in image_files(folder)])
    return Images([photograph(name) for name in TEST])


def clips(data_dir: str) -> Path:
    """The folder of the clients' folders. Raises DataError where there is none."""
    roots = [Path(data_dir).expanduser()] if data_dir else data_roots(None)
    found = next((root / "clips" for root in roots if (root / "clips").is_dir()), None)
    if found is None:
        raise DataError(
            f"no clips/ in {', '.join(map(str, roots))}: expected clips/<client>/ with frames or video files; "
            "name the folder above it with --data-dir"
        )
    return found


def folder_population(data_dir: str, clients: int) -> list[str]:
    """Owners that have a folder, by name: the first `clients`."""
    root = clips(data_dir)
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < clients:
        raise DataError(f"{root} holds {len(names)} folders for clients = {clients}: lower clients or add folders")
    return names[:clients]


def folder_images(folder: Path) -> Images:
    """Every frame and mask in an owner's folder.

    Raises:
        DataError: there is nothing, something cannot be read, or a mask is not of its frame's size.
    """
    if not folder.is_dir():
        raise DataError(f"nothing is at {folder}: make it, with the client's frames or video files in it")
    inside = [folder, *sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "masks" and p.name[0] != ".")]
    stills = [path for own in inside for path in _images_in(own)]
    films = [path for own in inside for path in sorted(own.iterdir()) if path.suffix.lower() in VIDEOS]
    images = [_texture(path) for path in stills]
    masks = _masks(folder / "masks", stills, images)
    images += [frame for film in films for frame in _some_frames(film)]
    if not images:
        raise DataError(f"{folder} holds neither images nor video files: put the client's own frames there")
    return Images([_reduced(image) for image in images], [(place, _reduced(mask[None])[0]) for place, mask in masks])


def _images_in(folder: Path) -> list[Path]:
    try:
        return image_files(folder)
    except DataError:  # none
        return []


def _texture(path: Path) -> Tensor:
    image = read_image(path, 3)
    if min(image.shape[1:]) < LEAST:
        raise DataError(
            f"{path} is {image.shape[2]}×{image.shape[1]} pixels: a texture needs {LEAST} a side; remove it"
        )
    return image


def _some_frames(film: Path) -> list[Tensor]:
    reader = Reader(film)
    every = max(1, reader.count // FRAMES)
    found = [frame for place, frame in enumerate(reader) if place % every == 0][:FRAMES]
    if not found:
        raise DataError(f"{film} holds no frame: replace it or remove it")
    return found


def _masks(folder: Path, stills: Sequence[Path], images: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
    if not folder.is_dir():
        return []
    found = []
    for path in image_files(folder):
        owners = [place for place, still in enumerate(stills) if path.stem.startswith(still.stem)]
        if not owners:
            raise DataError(f"{path} belongs to no frame: call it after one, {folder.parent}/<name>.png → <name>.png")
        place = max(owners, key=lambda own: len(stills[own].stem))
        mask = read_image(path, 1)[0]
        if mask.shape != images[place].shape[1:]:
            have, want = (f"{shape[1]}×{shape[0]}" for shape in (mask.shape, images[place].shape[1:]))
            raise DataError(f"{path} is {have}, its frame {stills[place].name} is {want}: a mask has its frame's size")
        found.append((place, (mask > 127).to(torch.uint8)))
    return found


def _reduced(image: Tensor) -> Tensor:
    """At most LARGEST on the longer side: textures are looked at in small windows."""
    factor = LARGEST / max(image.shape[1:])
    if factor >= 1:
        return image
    size = [max(1, round(length * factor)) for length in image.shape[1:]]
    smaller = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True, align_corners=False)[0]
    return smaller.round().clamp(0, 255).to(torch.uint8)
