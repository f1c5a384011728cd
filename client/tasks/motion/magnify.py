"""A trained network on a video: frame by frame, tile by tile, with memory that does not grow with the length.

Three ways to say what moves (Oh et al., section 3.5): from the first frame to this one (static), from the frame before
(dynamic), or what a band of temporal frequencies passes of the shapes (temporal).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpara.errors import ConfigError

from .network import STRIDE, Magnifier

CORE = 512  # side of a tile without what is around it, in pixels
SMALLEST = 16  # sides under this are filled up: reflection needs room
TIDY = 8  # frames after which memory that lies free in pieces is given back
ORDER = 2  # of the Butterworth band-pass: two sections of second order

Change = Callable[[Tensor], Tensor]  # this frame's shape → what to magnify of it; remembers what it needs


class SinceFirst:
    """Static mode: M_t − M_0."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def __call__(self, shape: Tensor) -> Tensor:
        if self._first is None:
            self._first = shape
        return shape - self._first


class SinceLast:
    """Dynamic mode: M_t − M_{t−1}."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def __call__(self, shape: Tensor) -> Tensor:
        before, self._last = self._last, shape
        return shape - (shape if before is None else before)


class Band:
    """Temporal mode: a causal Butterworth band-pass of M_t − M_0, section by section in transposed direct form II.

    y = b₀x + z₁;  z₁ ← b₁x − a₁y + z₂;  z₂ ← b₂x − a₂y. What it holds, two tensors a section and M_0, does not grow.
    `low` and `high` are in Hz. Raises ConfigError for a band that frames at `fps` cannot hold.
    """

    def __init__(self, low: float, high: float, fps: float) -> None:
        from scipy.signal import butter

        if not 0 < low < high < fps / 2:
            raise ConfigError(
                f"--low {low:g} --high {high:g} at {fps:g} frames a second: "
                f"a band needs 0 < low < high < {fps / 2:g}, for example --low 0.4 --high 3"
            )
        self._sections = butter(ORDER, [low, high], btype="bandpass", fs=fps, output="sos").tolist()
        self._first: Tensor | None = None
        self._memory: list[tuple[Tensor, Tensor]] = []

    def __call__(self, shape: Tensor) -> Tensor:
        if self._first is None:  # taken off, so that a still scene passes nothing from the start
            self._first = shape
            self._memory = [(torch.zeros_like(shape), torch.zeros_like(shape)) for _ in self._sections]
        x = shape - self._first
        for place, (b0, b1, b2, _, a1, a2) in enumerate(self._sections):
            z1, z2 = self._memory[place]
            y = b0 * x + z1
            self._memory[place] = (b1 * x - a1 * y + z2, b2 * x - a2 * y)
            x = y
        return x


@dataclass(frozen=True)
class Tile:
    """A part of a frame: what is looked at, and what of the result is kept (rows and columns of the frame)."""

    top: int
    left: int
    bottom: int
    right: int
    around: tuple[int, int, int, int]  # top, left, bottom, right of what is looked at


def tiles(height: int, width: int, reach: int, core: int = CORE) -> list[Tile]:
    """Tiles that cover a frame, each looked at with `reach` pixels around it, so that no seam can be seen.

    The network's pixel looks no further: the result is that of the whole frame.
    """
    reach = -(-reach // STRIDE) * STRIDE
    found = []
    for top in range(0, height, core):
        for left in range(0, width, core):
            bottom, right = min(top + core, height), min(left + core, width)
            around = (max(0, top - reach), max(0, left - reach), min(height, bottom + reach), min(width, right + reach))
            found.append(Tile(top, left, bottom, right, around))
    return found


@torch.no_grad()
def magnified(
    model: Magnifier,
    frames: Iterable[Tensor],
    alpha: float,
    change: Callable[[], Change],
    *,
    device: torch.device | None = None,
    core: int = CORE,
) -> Iterator[Tensor]:
    """Frames, uint8 (3, H, W), with their motion magnified (1 + α) times; one is held at a time.

    `change` makes what says which motion: it is called once for each tile.
    """
    device = device or torch.device("cpu")
    factor = torch.full((1,), alpha, device=device)
    parts: list[Tile] = []
    changes: list[Change] = []
    for number, frame in enumerate(frames):
        if number % TIDY == 0:
            _give_back()
        height, width = frame.shape[1:]
        x = _filled(frame[None].to(device, torch.float32) / 127.5 - 1)
        if not parts:
            parts = tiles(*x.shape[2:], model.reach, core)
            changes = [change() for _ in parts]
        result = torch.empty_like(x)
        for tile, own in zip(parts, changes, strict=True):
            top, left, bottom, right = tile.around
            seen = x[:, :, top:bottom, left:right].contiguous(memory_format=torch.channels_last)
            texture, shape = model.encode(seen)
            drawn = model.decode(texture, shape, model.manipulate(shape, own(shape), factor), seen)
            result[:, :, tile.top : tile.bottom, tile.left : tile.right] = drawn[
                :, :, tile.top - top : tile.bottom - top, tile.left - left : tile.right - left
            ]
        if bool((frame == frame[:1]).all()):  # grey stays grey, whatever colours the network has learnt
            result = result.mean(1, keepdim=True).expand_as(result)
        yield ((result[0, :, :height, :width] + 1) * 127.5).round_().clamp_(0, 255).to("cpu", torch.uint8)


def _give_back() -> None:
    """Hand memory that is free back to the system, where its allocator (glibc's) knows how.

    A network's large tensors, freed frame by frame beside a video's small ones, leave gaps that no later tensor fits
    into: by itself the process grows with the video.
    """
    with suppress(AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _filled(x: Tensor) -> Tensor:
    """A frame (1, 3, H, W) with its last row and column repeated to multiples of STRIDE."""
    height, width = (max(SMALLEST, -(-side // STRIDE) * STRIDE) for side in x.shape[2:])
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate")
