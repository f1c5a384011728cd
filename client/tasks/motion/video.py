"""Videos as streams of frames: files by way of PyAV, or folders of images. One frame at a time is held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fedpara.data.folder import image_files, read_image
from fedpara.errors import DataError

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
FOLDER_FPS = 30.0  # of frames in a folder, where nobody says otherwise
TIMED = 2000  # frames of a file whose times are looked at before it is read
UNEVEN = 0.25  # deviation of the time between frames, as a share of its mean, from which a rate says too little
QUALITY = "17"  # x264's crf: hardly to be told from the frames


class Reader:
    """The frames of a video file or of a folder of images, by name: uint8 (3, H, W), all of one size.

    `fps` is frames a second, `count` how many frames are to be expected (0: not known), `apart` the least and the most
    seconds between two frames where these differ much (variable frame rate). It can be gone through again.

    Raises:
        DataError: nothing is there, or not a video that can be read; PyAV is needed and missing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.fps, self.count = path, FOLDER_FPS, 0
        self.apart: tuple[float, float] | None = None
        self._files: list[Path] = []
        if path.is_dir():
            self._files = image_files(path)
            self.count = len(self._files)
        else:
            with self._opened() as container:
                stream = container.streams.video[0]
                self.fps = float(stream.average_rate or FOLDER_FPS)
                self.count = stream.frames
                self._look_at(_times(container))

    def _look_at(self, times: np.ndarray) -> None:
        """Believe the frames' own times where the file's rate is another, as it is where the rate is variable."""
        if len(times) < 2 or times[0] == times[-1]:
            return
        gaps = np.diff(times)
        measured = float(1 / gaps.mean())
        if not 0.9 < self.fps / measured < 1.1:
            self.fps = measured
        if gaps.std() > UNEVEN * gaps.mean():
            self.fps, self.apart = measured, (float(gaps.min()), float(gaps.max()))

    def __iter__(self) -> Iterator[Tensor]:
        size = None
        frames = (read_image(path, 3) for path in self._files) if self._files else self._decoded()
        for place, frame in enumerate(frames):
            if size is not None and frame.shape != size:
                (_, height, width), (_, *first) = frame.shape, size
                name = self._files[place].name if self._files else f"frame {place}"
                raise DataError(
                    f"{self.path}: {name} is {width}×{height}, the first frame {first[1]}×{first[0]}; "
                    "give frames of one size"
                )
            size = frame.shape
            yield frame

    def _opened(self) -> Any:
        if not self.path.is_file():
            raise DataError(f"nothing is at {self.path}: give a video file or a folder of frames")
        av = load_av(self.path)
        try:
            container = av.open(str(self.path))
        except (av.FFmpegError, ValueError) as error:
            raise self._unreadable(error) from None
        if not container.streams.video:
            container.close()
            raise DataError(f"{self.path} holds no video: give a file with moving pictures or a folder of frames")
        return container

    def _decoded(self) -> Iterator[Tensor]:
        av, place = load_av(self.path), 0
        with self._opened() as container:
            container.streams.video[0].thread_type = "AUTO"
            try:
                for frame in container.decode(video=0):
                    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # as phones say
                    yield torch.from_numpy(upright.copy()).permute(2, 0, 1)
                    place += 1
            except (av.FFmpegError, ValueError) as error:
                raise self._unreadable(error, f" after {place} frames") from None

    def _unreadable(self, error: Exception, where: str = "") -> DataError:
        reason = str(error).partition(": '")[0]
        return DataError(
            f"{self.path} cannot be read as a video{where} ({reason}). Replace it, or give a folder of its frames"
        )


def _times(container: Any) -> np.ndarray:
    """Of the first frames in an open file, seconds in order of time, without decoding; empty where it does not say."""
    stream = container.streams.video[0]
    packets = islice((packet for packet in container.demux(stream) if packet.pts is not None), TIMED)
    found = []
    with suppress(Exception):  # what cannot be read is said when the frames are
        for packet in packets:
            found.append(float(packet.pts * packet.time_base))
    return np.unique(found)


class Writer:
    """Writes frames, uint8 (3, H, W), into a video file, or as numbered PNG files into a folder.

    A file appears under its name when all of it is written; H.264 wants even sides, and repeats a last row or column.
    Use it in a `with`: what an error cuts short is removed. Raises DataError where nothing can be written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps, self._count = path, fps, 0
        self._container: Any = None
        self._stream: Any = None
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        if path.suffix and path.suffix.lower() not in VIDEOS:
            raise DataError(
                f"{path} is no video file: give one of {', '.join(sorted(VIDEOS))}, or a folder, which has no suffix"
            )
        if path.suffix:
            load_av(path)
        elif path.is_dir() and any(path.iterdir()):
            raise DataError(f"{path} holds files already: name a new folder, so that frames of two videos do not mix")
        folder = path.parent if path.suffix else path
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}): name another output") from None

    def __enter__(self) -> Self:
        return self

    def write(self, frame: Tensor) -> None:
        """The next frame."""
        pixels = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
        if self._path.suffix:
            self._encode(pixels)
        else:
            from PIL import Image

            Image.fromarray(pixels).save(self._path / f"{self._count:06d}.png", compress_level=1)
        self._count += 1

    def _encode(self, pixels: np.ndarray) -> None:
        av = load_av(self._path)
        height, width = pixels.shape[:2]
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            if self._container is None:
                self._open(av, *pixels.shape[:2])
            for packet in self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                self._container.mux(packet)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{self._path} cannot be written ({error}): name another output") from None

    def _open(self, av: ModuleType, height: int, width: int) -> None:
        self._container = av.open(str(self._part), "w")
        rate = Fraction(self._fps).limit_denominator(1001)
        if self._path.suffix == ".webm":
            self._stream = self._container.add_stream("libvpx-vp9", rate=rate, options={"crf": "20", "b": "0"})
        else:
            self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": QUALITY})
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        if error:
            with suppress(Exception):
                self._container.close()
            self._part.unlink(missing_ok=True)
            return
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        self._part.replace(self._path)


def load_av(path: Path) -> ModuleType:
    """PyAV. Raises DataError where it is not installed."""
    try:
        import av
    except ImportError:
        raise DataError(
            f"{path}: video files need PyAV: pip install 'fedpara[video]', or use a folder of frames"
        ) from None
    # What is wrong is said in one line, here. By FFmpeg's own means: PyAV's would have its decoding threads wait for
    # Python while Python waits for them, for ever, in a damaged file.
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.PANIC)
    return av
