"""What a camera trains on and is judged by: tiles of pairs of its photographs, and whole photographs held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpara.errors import DataError

from .image_formation import radius_squared
from .scenes import Camera, Photograph, Scene

TILE = 48


@dataclass(frozen=True, eq=False)
class Tiles:
    """Windows of 48 × 48 pixels that two photographs of one scene have in common.

    A batch is: x and y uint8 (B, 3, 48, 48), their validity (B, 1, 48, 48), nominal exposures (B, 2), rows (B, 2), and
    r² of both (B, 2, 48, 48).
    """

    pairs: Sequence[tuple[Photograph, Photograph, int, int]]  # and the window's corner in the scene

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        chosen = [self.pairs[int(index)] for index in indices]
        both = [[_window(photo, top, left) for photo in pair] for *pair, top, left in chosen]
        valid = [_valid(a, top, left) & _valid(b, top, left) for a, b, top, left in chosen]
        return (
            torch.stack([x for (x, _), _ in both]),
            torch.stack([y for _, (y, _) in both]),
            torch.stack(valid)[:, None],
            torch.tensor([[a.exposure, b.exposure] for a, b, _, _ in chosen]),
            torch.tensor([[a.row, b.row] for a, b, _, _ in chosen]),
            torch.stack([torch.stack([r, s]) for (_, r), (_, s) in both]),
        )


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Photographs given and those wanted of the same view, and the camera's true quantities where they are known."""

    pairs: Sequence[tuple[Photograph, Photograph]]
    truth: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("photographs held out may differ in size: they are looked at one by one")


def tiles(scenes: Sequence[Scene]) -> Tiles:
    """All pairs of a camera's trained photographs, cut into tiles that cover what they have in common.

    Raises:
        DataError: no scene has two photographs with so much in common.
    """
    found = [
        (a, b, top, left)
        for scene in scenes
        for a, b in scene.pairs()
        for top in _starts(max(a.top, b.top), min(a.top + a.size[0], b.top + b.size[0]))
        for left in _starts(max(a.left, b.left), min(a.left + a.size[1], b.left + b.size[1]))
    ]
    if not found:
        names = ", ".join(scene.name for scene in scenes)
        raise DataError(
            f"no two photographs of one scene share {TILE} x {TILE} pixels ({names}): "
            "give each scene two exposures or more, larger than that"
        )
    return Tiles(found)


def held_out(camera: Camera) -> HeldOut | None:
    """For each photograph held out, the trained one of the same framing that is nearest in exposure.

    Of a simulated camera that is the middle of the bracket for each, the harder thing: 2 and 3 EV away.
    """
    pairs = []
    for scene in (*camera.scenes, *camera.unseen):
        for wanted in scene.held_out:
            given = [photo for photo in scene.train if (photo.top, photo.left) == (wanted.top, wanted.left)]
            if camera.truth:
                nearest = min(given, key=lambda photo: abs(photo.exposure))
            else:
                nearest = min(given, key=lambda photo: abs(photo.exposure - wanted.exposure))
            pairs.append((nearest, wanted))
    return HeldOut(pairs, camera.truth) if pairs else None


def _starts(low: int, high: int) -> list[int]:
    """Where tiles begin, evenly, to cover low to high; none where there is no room for one."""
    room = high - low - TILE
    if room < 0:
        return []
    count = -(-room // TILE) + 1
    return [low + round(room * n / max(1, count - 1)) for n in range(count)]


def _window(photo: Photograph, top: int, left: int) -> tuple[Tensor, Tensor]:
    """Pixels and r² of a tile."""
    y, x = top - photo.top, left - photo.left
    return photo.pixels[:, y : y + TILE, x : x + TILE], radius_squared(TILE, TILE, y, x, photo.size)


def _valid(photo: Photograph, top: int, left: int) -> Tensor:
    if photo.valid is None:
        return torch.ones(TILE, TILE, dtype=torch.bool)
    y, x = top - photo.top, left - photo.left
    return photo.valid[y : y + TILE, x : x + TILE]
