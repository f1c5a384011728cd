"""Videos and folders: read and written as streams, and what is said of those that cannot be."""

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from client.tasks.motion import photographs
from client.tasks.motion.footage import Apply, magnify_file
from client.tasks.motion.network import build
from client.tasks.motion.photographs import (
    TEST,
    TRAIN,
    Images,
    builtin_images,
    builtin_population,
    clips,
    folder_images,
    folder_population,
    photograph,
)
from client.tasks.motion.video import Reader, Writer
from fedpara.errors import ConfigError, DataError


def picture(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(1, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)


def film(path, count=6, height=48, width=64, fps=12.5):
    with Writer(path, fps) as writer:
        for place in range(count):
            writer.write(picture(height, width, place))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_video_comes_back_nearly_as_it_was(tmp_path, name):
    reader = Reader(film(tmp_path / name))
    assert reader.fps == pytest.approx(12.5)
    for _ in range(2):  # it can be gone through again
        frames = list(reader)
        assert len(frames) == 6
        for place, frame in enumerate(frames):
            assert (frame.float() - picture(48, 64, place).float()).abs().mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_odd_sides_are_filled_up_in_a_file_and_kept_in_a_folder(tmp_path):
    assert next(iter(Reader(film(tmp_path / "a.mp4", height=31, width=33)))).shape == (3, 32, 34)
    frames = list(Reader(film(tmp_path / "frames", height=31, width=33)))
    assert torch.equal(frames[5], picture(31, 33, 5))
    assert sorted(path.name for path in (tmp_path / "frames").iterdir())[0] == "000000.png"


def test_a_file_that_an_error_cuts_short_is_not_left_behind(tmp_path):
    def broken():
        with Writer(tmp_path / "a.mp4", 30) as writer:
            writer.write(picture(32, 32))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video at all" * 100)
    whole = film(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("broken", "cut", "empty"):
        with pytest.raises(DataError, match=rf"{name}\.mp4 cannot be read as a video"):
            list(Reader(tmp_path / f"{name}.mp4"))
    with pytest.raises(DataError, match=r"nothing is at .*give a video file or a folder"):
        Reader(tmp_path / "nowhere.mp4")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        Reader(tmp_path / "none")


def test_damaged_files_are_errors_and_not_a_wait_for_ever(tmp_path):
    """Read in a process of its own: what was wrong once was that it did not come back."""
    whole = film(tmp_path / "whole.mkv", count=12, height=96, width=128).read_bytes()
    for seed in range(6):
        generator, damaged = torch.Generator().manual_seed(seed), bytearray(whole)
        for place in range(len(whole) // 4, 3 * len(whole) // 4, 40):
            damaged[place] = int(torch.randint(256, (), generator=generator))
        (tmp_path / f"{seed}.mkv").write_bytes(damaged)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from client.tasks.motion.video import Reader\n"
        "from fedpara.errors import DataError\n"
        "for seed in range(6):\n"
        "    try:\n"
        "        print(len(list(Reader(Path(sys.argv[1]) / f'{seed}.mkv'))))\n"
        "    except DataError as error:\n"
        "        print(error)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("cannot be read as a video") == 6
    assert done.stderr == ""


def uneven(path, gaps=(33, 33, 100, 20, 250), count=12):
    """A film whose frames come so many milliseconds apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.codec_context.time_base = 64, 48, Fraction(1, 1000)
        time = 0
        for place in range(count):
            frame = av.VideoFrame.from_ndarray(picture(48, 64, place).permute(1, 2, 0).numpy().copy(), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            time += gaps[place % len(gaps)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_the_rate_of_a_variable_video_is_that_of_its_frames(tmp_path):
    reader = Reader(uneven(tmp_path / "a.mkv"))
    assert reader.fps == pytest.approx(11 / 0.905, rel=1e-3)
    assert reader.apart == pytest.approx((0.02, 0.25))
    assert Reader(uneven(tmp_path / "b.mkv", gaps=(33, 33, 34))).apart is None
    assert Reader(film(tmp_path / "c.mp4")).apart is None


def test_uneven_frames_are_refused_where_frequencies_matter_and_said_elsewhere(tmp_path):
    source, model = uneven(tmp_path / "a.mkv"), build("light").eval()
    band = {"mode": "temporal", "low": 0.4, "high": 3.0, "device": "cpu"}
    with pytest.raises(ConfigError, match=r"0\.02 to 0\.25 s apart, .*--fps"):
        magnify_file(model, source, tmp_path / "out.mp4", Apply(**band))
    assert not (tmp_path / "out.mp4").exists()
    for options in (Apply(device="cpu"), Apply(**band, fps=12.0)):
        *_, note = magnify_file(model, source, tmp_path / "out.mp4", options)
        assert note == "its frames are 0.02 to 0.25 s apart: they were taken as even"


def test_grey_ten_bit_and_sounding_videos_are_read(tmp_path):
    kinds = {"grey.mkv": ("libx264", "gray"), "ten.mkv": ("libx264", "yuv420p10le"), "sound.avi": ("mpeg4", "yuv420p")}
    for name, (codec, pixels) in kinds.items():
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            sound = container.add_stream("mp3", rate=44100) if name.startswith("sound") else None
            for place in range(3):
                grey = picture(48, 64, place)[:1].expand(3, -1, -1).permute(1, 2, 0).numpy().copy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
            if sound:
                silence = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
                silence.sample_rate = 44100
                container.mux(sound.encode(silence))
                container.mux(sound.encode())
        frames = list(Reader(tmp_path / name))
        assert [tuple(frame.shape) for frame in frames] == [(3, 48, 64)] * 3
        assert (frames[2].float() - picture(48, 64, 2)[:1].float()).abs().mean() < 6


def test_frames_of_two_sizes_are_refused(tmp_path):
    for place, width in enumerate((40, 40, 41)):
        save(picture(30, width), tmp_path / f"{place}.png")
    with pytest.raises(DataError, match=r"2\.png is 41×30, the first frame 40×30"):
        list(Reader(tmp_path))


def test_without_pyav_files_say_what_to_install_and_folders_work(tmp_path, monkeypatch):
    film(tmp_path / "a.mp4")
    film(tmp_path / "frames", count=2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"pip install 'fedpara\[video\]'"):
        Reader(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"pip install 'fedpara\[video\]'"):
        Writer(tmp_path / "b.mp4", 30)
    assert len(list(Reader(tmp_path / "frames"))) == 2


def test_an_output_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"out\.txt is no video file: give one of .*\.mp4"):
        Writer(tmp_path / "out.txt", 30)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        Writer(tmp_path / "file" / "out.mp4", 30)


def test_the_built_in_photographs_are_there_and_nobody_owns_those_to_judge_on():
    assert not set(TRAIN) & set(TEST)
    for name in (*TRAIN, *TEST):
        image = photograph(name)
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert min(image.shape[1:]) >= 300
    owners = builtin_population(6)
    owned = [len(builtin_images(owner, 6).images) for owner in owners]
    assert (len(set(owners)), owned) == (6, [2] * 6)
    with pytest.raises(ConfigError, match="enough for 12"):
        builtin_population(13)
    with pytest.raises(ConfigError, match="'nobody' is none of"):
        builtin_images("nobody", 6)


def test_what_is_held_out_is_not_trained_on():
    few = Images([picture(40, 100)], [(0, torch.ones(40, 100, dtype=torch.uint8))])
    train, held_out = few.split(0.2)
    assert torch.equal(torch.cat([train.images[0], held_out.images[0]], 2), few.images[0])
    assert train.masks[0][1].shape == (40, 80)
    many = Images([picture(20, 20, place) for place in range(10)], [(9, torch.ones(20, 20))])
    train, held_out = many.split(0.2)
    assert (len(train.images), len(held_out.images), len(train.masks)) == (8, 2, 0)
    assert many.split(0) == (many, None)


def test_an_owners_folder_holds_frames_films_and_masks(tmp_path):
    own = tmp_path / "clips" / "plant"
    save(picture(40, 50), own / "000001.png")
    save(picture(60, 30, 1), own / "more" / "b.jpg")
    film(own / "c.mp4", count=3)
    mask = torch.zeros(3, 40, 50, dtype=torch.uint8)
    mask[:, 10:20, 5:25] = 255
    save(mask, own / "masks" / "000001-pump.png")
    found = folder_images(clips(str(tmp_path)) / "plant")
    assert [tuple(image.shape) for image in found.images] == [(3, 40, 50), (3, 60, 30)] + 3 * [(3, 48, 64)]
    (place, read), *more = found.masks
    assert (place, int(read.sum()), more) == (0, 200, [])
    collection = found.collection(0.1, torch.device("cpu"))
    assert [tuple(cut.shape) for cut in collection.cutouts] == [(4, 10, 20)]
    assert folder_population(str(tmp_path), 1) == ["plant"]
    with pytest.raises(DataError, match="holds 1 folders for clients = 2"):
        folder_population(str(tmp_path), 2)


def test_large_frames_are_reduced(tmp_path):
    save(picture(90, photographs.LARGEST + 300), tmp_path / "a.png")
    (image,) = folder_images(tmp_path).images
    assert image.shape[2] == photographs.LARGEST


def test_what_is_wrong_with_an_owners_folder_is_said(tmp_path):
    with pytest.raises(DataError, match="no clips/ in"):
        clips(str(tmp_path))
    with pytest.raises(DataError, match="nothing is at"):
        folder_images(tmp_path / "nobody")
    own = tmp_path / "own"
    own.mkdir()
    with pytest.raises(DataError, match="neither images nor video files"):
        folder_images(own)
    save(picture(40, 50), own / "1.png")
    save(picture(20, 25), own / "masks" / "1.png")
    with pytest.raises(DataError, match=r"masks/1\.png is 25×20, its frame 1\.png is 50×40"):
        folder_images(own)
    (own / "masks" / "1.png").rename(own / "masks" / "other.png")
    with pytest.raises(DataError, match=r"other\.png belongs to no frame"):
        folder_images(own)
    save(picture(8, 50), own / "2.png")
    with pytest.raises(DataError, match=r"2\.png is 50×8 pixels: a texture needs 16"):
        folder_images(own)
