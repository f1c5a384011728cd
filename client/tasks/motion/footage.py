"""fedpara apply for videos: reads, magnifies and writes a stream, with a bar, and a picture of a column over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpara.config import setting
from fedpara.device import find_device
from fedpara.errors import ConfigError, DataError

from .magnify import Band, Change, SinceFirst, SinceLast, magnified
from .network import Magnifier
from .video import FOLDER_FPS, Reader, Writer

LONGEST = 2000  # columns of a slice: of longer videos every second frame is shown, every fourth …


@dataclass(frozen=True)
class Apply:
    """What fedpara apply takes besides a video or a folder of frames, and the video or folder that it writes."""

    alpha: float = setting(20.0, "motion becomes (1 + alpha) times as large; 0 gives the video back", low=0, high=1000)
    mode: str = setting(
        "static",
        "which motion: static, since the first frame; dynamic, since the last; temporal, in a band of frequencies",
        choices=("static", "dynamic", "temporal"),
    )
    low: float = setting(0.0, "temporal: lower end of the band, Hz", low=0)
    high: float = setting(0.0, "temporal: upper end of the band, Hz", low=0)
    fps: float = setting(0.0, "frames a second; 0: as the video says, 30 for a folder", low=0, high=100000)
    compare: bool = setting(False, "write input and result side by side")
    slice_at: int = setting(-1, "also write a picture of this column of pixels over time; -1: none", low=-1)
    device: str = setting("auto", "where it is computed: auto, cpu, cuda")


class Slices:
    """A column of the input and of the result over time, beside each other: uint8 (3, H, time).

    Of a video of any length at most LONGEST columns are held: when there are more, every second one goes.
    """

    def __init__(self, column: int) -> None:
        self._column, self._every, self._seen = column, 1, 0
        self._pairs: list[Tensor] = []

    def add(self, before: Tensor, after: Tensor) -> None:
        """A frame (3, H, W) and what became of it."""
        if self._seen % self._every == 0:
            self._pairs.append(torch.stack([frame[:, :, self._column] for frame in (before, after)]))
        self._seen += 1
        if len(self._pairs) > LONGEST:
            self._pairs = self._pairs[::2]
            self._every *= 2

    def picture(self) -> Tensor:
        """The input above, the result below, a white line between them."""
        before, after = torch.stack(self._pairs, -1)  # (3, H, time) each
        return torch.cat([before, torch.full_like(before[:, :4], 255), after], 1)

    def save(self, path: Path) -> None:
        from PIL import Image

        Image.fromarray(self.picture().permute(1, 2, 0).contiguous().numpy()).save(path)


def magnify_file(model: nn.Module, source: Path | None, output: Path | None, options: Apply) -> list[str]:
    """Magnify the motion in a file or folder; lines that say what was written.

    Raises:
        DataError: there is no input or output, it cannot be read or written, or it has a single frame.
        ConfigError: an option does not go with the video.
    """
    if source is None or output is None:
        raise DataError("give a video file or a folder of frames, and where the result goes: in.mp4 out.mp4")
    if not isinstance(model, Magnifier):
        raise ConfigError(f"a {type(model).__name__} magnifies nothing: give a run of the task 'motion'")
    if output.resolve() == source.resolve():
        raise DataError(f"{output} is the input: name another output")
    reader = Reader(source)
    fps = options.fps or reader.fps or FOLDER_FPS
    if reader.apart and not options.fps and options.mode == "temporal":
        raise ConfigError(
            f"{source}: frames are {_apart(reader.apart)} s apart, and mode = 'temporal' needs them even: give the "
            "video at a constant rate (ffmpeg -i IN -vf fps=30 OUT), or take them as even with --fps"
        )
    change = _change(options, fps)
    frames = _at_least_two(reader)
    first = next(frames)
    height, width = first.shape[1:]
    if options.slice_at >= width:
        raise ConfigError(f"--slice-at {options.slice_at}: the frames have columns 0 to {width - 1}")
    slices = Slices(options.slice_at) if options.slice_at >= 0 else None
    device = find_device(options.device)
    with Writer(output, fps) as writer, _bar(reader.count) as advance:
        count = 0
        held: list[Tensor] = []
        own = _remembered(chain([first], frames), held)
        for after in magnified(model.to(device), own, options.alpha, change, device=device):
            before = held.pop()
            writer.write(torch.cat([before, after], 2) if options.compare else after)
            if slices:
                slices.add(before, after)
            count += 1
            advance()
    how = f"{options.mode} {options.low:g}–{options.high:g} Hz" if options.mode == "temporal" else options.mode
    lines = [f"written: {output}: {count} frames of {width}×{height} at {fps:g} a second, {how}, α = {options.alpha:g}"]
    if reader.apart:
        lines.append(f"its frames are {_apart(reader.apart)} s apart: they were taken as even")
    if slices:
        picture = output.with_name(f"{output.stem}-slice.png")
        slices.save(picture)
        lines.append(f"written: {picture}: column {options.slice_at} over time, the input above, the result below")
    return lines


def _apart(seconds: tuple[float, float]) -> str:
    least, most = seconds
    return f"{least:.3g} to {most:.3g}"


def _change(options: Apply, fps: float) -> Callable[[], Change]:
    """What makes the memory of each tile; checked once, before a frame is read."""
    if options.mode == "static":
        return SinceFirst
    if options.mode == "dynamic":
        return SinceLast
    Band(options.low, options.high, fps)
    return lambda: Band(options.low, options.high, fps)


def _at_least_two(reader: Reader) -> Iterator[Tensor]:
    """The frames. Raises DataError, before the first, where there are not two."""
    frames = iter(reader)
    first, second = next(frames, None), next(frames, None)
    if first is None or second is None:
        raise DataError(
            f"{reader.path} holds {'no frame' if first is None else 'one frame only'}: motion needs two or more"
        )
    return chain([first, second], frames)


def _remembered(frames: Iterator[Tensor], held: list[Tensor]) -> Iterator[Tensor]:
    """The frames, each also put where it can be taken from when its result comes."""
    for frame in frames:
        held.append(frame)
        yield frame


@contextmanager
def _bar(count: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal's standard error; yields what moves it on by a frame."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("frames", total=count or None)
        yield lambda: progress.advance(bar)
