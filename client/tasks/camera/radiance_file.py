"""Radiance .hdr files (RGBE): one shared exponent a pixel, run-length coded lines; G. Ward, Graphics Gems II, 1991."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpara.checkpoint import replace_file
from fedpara.errors import DataError

_SIZE = re.compile(rb"-Y (\d+) \+X (\d+)\n")
MOST = 2**27  # pixels; a header that asks for more is a mistake or an attack
_Bytes = NDArray[np.uint8]


def write_radiance(path: Path, radiance: NDArray[np.floating]) -> None:
    """Write radiance (H, W, 3), not negative and finite, as RGBE with run-length coded lines.

    Raises:
        DataError: it is not of this shape, or not finite, or negative.
    """
    if radiance.ndim != 3 or radiance.shape[2] != 3 or not np.isfinite(radiance).all() or (radiance < 0).any():
        raise DataError(f"a radiance map of shape {radiance.shape}: expected (H, W, 3), finite, nowhere negative")
    height, width, _ = radiance.shape
    header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode()
    pixels = _to_rgbe(radiance)
    coded = 8 <= width < 32768  # other widths are stored flat, as the format has it
    body = b"".join(_coded(line) for line in pixels) if coded else pixels.tobytes()
    replace_file(path, header + body)


def read_radiance(path: Path) -> NDArray[np.float32]:
    """Radiance (H, W, 3) of a .hdr file, top line first.

    Raises:
        DataError: the file is missing, cut off, or is no RGBE file in that order of lines.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    head = data[:4096]
    size = _SIZE.search(head)
    if not head.startswith(b"#?") or b"32-bit_rle_rgbe" not in head or size is None:
        raise DataError(f"{path} is no Radiance file with RGBE pixels and lines from the top (-Y H +X W)")
    height, width = int(size[1]), int(size[2])
    if not 0 < height * width <= MOST:
        raise DataError(f"{path} says it is {width} x {height} pixels: expected 1 to {MOST}")
    pixels = _decoded(data, size.end(), height, width, path)
    scale = np.ldexp(1.0, pixels[..., 3].astype(np.int32) - 136)
    # The middle of what a mantissa stands for, and nothing where the exponent says so.
    light = (pixels[..., :3] + 0.5) * scale[..., None]
    return np.where(pixels[..., 3:] > 0, light, 0).astype(np.float32)


def _to_rgbe(radiance: NDArray[np.floating]) -> _Bytes:
    """(H, W, 4): mantissas of eight bits and the exponent of the largest channel, plus 128."""
    largest = radiance.max(-1).astype(np.float64)
    _, exponent = np.frexp(largest)
    exponent = exponent.clip(-127, 127)
    mantissa = (radiance * np.ldexp(1.0, 8 - exponent)[..., None]).clip(0, 255)
    found = np.concatenate([mantissa, (exponent + 128)[..., None]], -1).astype(np.uint8)
    found[largest < 1e-38] = 0
    return found


def _coded(line: _Bytes) -> bytes:
    """One line: its width, then each of the four channels in runs."""
    width = len(line)
    return bytes([2, 2, width >> 8, width & 255]) + b"".join(_runs(line[:, channel]) for channel in range(4))


def _runs(values: _Bytes) -> bytes:
    """128 + n and a value: n equal ones, at most 127; n and n values, at most 128: as they are."""
    edges = np.flatnonzero(np.diff(values)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(values)]])
    long = ends - starts >= 4  # a shorter run costs less among its neighbours
    found, at = bytearray(), 0
    for start, end in [*zip(starts[long].tolist(), ends[long].tolist(), strict=True), (len(values), len(values))]:
        for begin in range(at, start, 128):
            part = values[begin : min(begin + 128, start)].tobytes()
            found += bytes([len(part)]) + part
        for begin in range(start, end, 127):
            found += bytes([128 + min(127, end - begin), int(values[start])])
        at = end
    return bytes(found)


def _decoded(data: bytes, at: int, height: int, width: int, path: Path) -> _Bytes:
    """Pixels (H, W, 4) from byte ``at`` on."""
    flat = data[at : at + 4] != bytes([2, 2, width >> 8 & 255, width & 255]) or not 8 <= width < 32768
    if flat:
        if len(data) - at < height * width * 4:
            raise DataError(f"{path} is cut off: {len(data) - at} of {height * width * 4} bytes of pixels are there")
        return np.frombuffer(data, np.uint8, height * width * 4, at).reshape(height, width, 4)
    pixels = np.empty((height, 4, width), np.uint8)
    try:
        for line in pixels:
            if data[at : at + 4] != bytes([2, 2, width >> 8, width & 255]):
                raise IndexError
            at += 4
            for channel in line:
                at = _fill(channel, data, at)
    except (IndexError, ValueError):
        raise DataError(f"{path} is damaged or cut off in its run-length coded lines") from None
    return pixels.transpose(0, 2, 1)


def _fill(channel: _Bytes, data: bytes, at: int) -> int:
    """One channel of one line from its runs; where the next begins."""
    place, width = 0, len(channel)
    while place < width:
        count = data[at]
        run = count > 128
        length = count - 128 if run else count
        if length == 0 or place + length > width:
            raise ValueError
        values = data[at + 1] if run else np.frombuffer(data, np.uint8, length, at + 1)
        channel[place : place + length] = values
        at, place = at + (2 if run else 1 + length), place + length
    return at
