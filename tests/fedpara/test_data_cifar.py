"""CIFAR-10 and CIFAR-100: both layouts, damaged files, hostile pickles, the archive."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fedpara.data import cifar, load_dataset
from fedpara.data.download import Remote, fetch
from fedpara.errors import DataError

Parts = dict[str, tuple[np.ndarray, np.ndarray]]
FILES = {"cifar10": [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "cifar100": ["train", "test"]}
BINARY = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
PYTHON = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
KEYS = {"cifar10": b"labels", "cifar100": b"fine_labels"}


def parts_of(name: str, n: int = 4) -> Parts:
    rng = np.random.default_rng(0)
    classes = 10 if name == "cifar10" else 100
    return {
        file: (rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, classes, n).astype(np.uint8))
        for file in FILES[name]
    }


def write_binary(folder: Path, name: str, parts: Parts) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, (pixels, labels) in parts.items():
        coarse = [np.full(len(labels), 7, np.uint8)] if name == "cifar100" else []
        (folder / f"{file}.bin").write_bytes(np.column_stack([*coarse, labels, pixels]).tobytes())


def string(value: bytes) -> bytes:
    """A string as Python 2's protocol 2 writes it."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2_pickle(pixels: np.ndarray, labels: list[int], key: bytes) -> bytes:
    """A batch, opcode by opcode, as in the official files: protocol 2 of Python 2 with numpy 1."""
    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(" + number(0) + b"t" + string(b"b") + b"\x87R"
    shape = b"(" + b"".join(number(n) for n in pixels.shape) + b"t"
    array += b"(" + number(1) + shape + dtype + b"\x89" + string(pixels.tobytes()) + b"tb"
    items = string(b"batch_label") + string(b"a batch") + string(b"data") + array
    items += string(key) + b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + items + b"u."


def write_python(folder: Path, name: str, parts: Parts) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, (pixels, labels) in parts.items():
        (folder / file).write_bytes(python2_pickle(pixels, labels.tolist(), KEYS[name]))


def check(name: str, folder: Path, parts: Parts) -> None:
    data = load_dataset(name, folder=folder, download=False)
    *train, test = FILES[name]
    assert len(data.classes) == len(set(data.classes)) == (10 if name == "cifar10" else 100)
    assert data.train.images.shape == (4 * len(train), 3, 32, 32)
    np.testing.assert_array_equal(data.train.images.flatten(1), np.concatenate([parts[f][0] for f in train]))
    np.testing.assert_array_equal(data.train.labels, np.concatenate([parts[f][1] for f in train]))
    np.testing.assert_array_equal(data.test.images.flatten(1), parts[test][0])
    np.testing.assert_array_equal(data.test.labels, parts[test][1])


@pytest.fixture(autouse=True)
def _alone(request, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv("FEDPARA_DATA", raising=False)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_reads_binary(tmp_path, name, flat):
    parts = parts_of(name)
    write_binary(tmp_path if flat else tmp_path / BINARY[name], name, parts)
    check(name, tmp_path, parts)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_reads_python(tmp_path, name, flat):
    parts = parts_of(name)
    write_python(tmp_path if flat else tmp_path / PYTHON[name], name, parts)
    check(name, tmp_path, parts)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_reads_batches_saved_by_this_python(tmp_path, protocol):
    parts = parts_of("cifar100")
    for file, (pixels, labels) in parts.items():
        batch = {b"data": pixels, b"fine_labels": labels.tolist()}
        (tmp_path / file).write_bytes(pickle.dumps(batch, protocol=protocol))
    check("cifar100", tmp_path, parts)


def test_the_handwritten_pickle_is_what_python_would_read():
    pixels, labels = parts_of("cifar10")["test_batch"]
    batch = pickle.loads(python2_pickle(pixels, labels.tolist(), b"labels"), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], pixels)
    assert batch[b"labels"] == labels.tolist()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "0 bytes, expected a multiple of 3,073"),
        (lambda data: data[:-1], "12,291 bytes, expected a multiple of 3,073"),
        (lambda data: data[:-3073], "holds 3 images, expected 4 as data_batch_1.bin has"),
        (lambda data: b"\x0a" + data[1:], "label 10, expected 0 to 9"),
    ],
)
def test_damaged_binary(tmp_path, damage, message):
    write_binary(tmp_path, "cifar10", parts_of("cifar10"))
    path = tmp_path / "data_batch_4.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("cifar10", folder=tmp_path, download=False)
    assert str(path) in str(caught.value)


class Hostile:
    def __init__(self, call, *args):
        self.call = (call, args)

    def __reduce__(self):
        return self.call


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        python2_pickle(PIXELS, [1, 2], b"labels")[:-40],
        python2_pickle(PIXELS, [1, 2], b"labels")[:3000],
        python2_pickle(PIXELS, [1], b"labels"),
        python2_pickle(PIXELS, [1, 10], b"labels"),
        python2_pickle(PIXELS, [1, -1], b"labels"),
        python2_pickle(PIXELS, [1, 2], b"other"),
        python2_pickle(PIXELS[:, :-1], [1, 2], b"labels"),
        python2_pickle(PIXELS[:0], [], b"labels"),
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": b"x", b"labels": [1]}),
        pickle.dumps({b"data": PIXELS, b"labels": [1, 2.5]}),
        pickle.dumps({b"data": PIXELS, b"labels": [1, 1 << 70]}),
        pickle.dumps({b"data": PIXELS.astype(np.int16), b"labels": [1, 2]}, protocol=2),
        pickle.dumps({b"data": np.asfortranarray(PIXELS), b"labels": [1, 2]}, protocol=2),
        pickle.dumps({b"data": np.array([None, print]), b"labels": [1, 2]}, protocol=2),
        b"\x80\x02" + b"(" * 1000 + b"t" * 1000 + b".",
        b"\x80\x02cnumpy\nndarray\n}b.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x02c_codecs\nencode\n(U\x01aU\x03rottR.",
    ],
)
def test_damaged_pickles(tmp_path, content):
    write_python(tmp_path, "cifar10", parts_of("cifar10", 2))
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_2"):
        load_dataset("cifar10", folder=tmp_path, download=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda mark: pickle.dumps(Hostile(os.mkdir, str(mark)), protocol=2),
        lambda mark: pickle.dumps(Hostile(eval, f"__import__('os').mkdir({str(mark)!r})"), protocol=4),
        lambda mark: pickle.dumps({b"data": Hostile(np.fromfile, str(mark)), b"labels": [1]}),
        lambda mark: pickle.dumps(Hostile(getattr, str(mark), "join"), protocol=2),
        lambda mark: b"\x80\x02cnumpy\nload\n(U\x01xtR.",
        lambda mark: b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    ],
)
def test_hostile_pickles_run_nothing(tmp_path, make):
    mark = tmp_path / "ran"
    write_python(tmp_path, "cifar10", parts_of("cifar10"))
    (tmp_path / "test_batch").write_bytes(make(mark))
    with pytest.raises(DataError, match="which no CIFAR batch needs"):
        load_dataset("cifar10", folder=tmp_path, download=False)
    assert not mark.exists()


def make_archive(path: Path, members: dict[str, bytes]) -> Remote:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    checksum = hashlib.md5(path.read_bytes()).hexdigest()
    return Remote((path.as_uri(),), f"md5:{checksum}", "cifar-100-binary", path.name, ("train.bin", "test.bin"))


def test_downloads_and_unpacks_the_archive(tmp_path, monkeypatch):
    parts = parts_of("cifar100")
    write_binary(tmp_path / "made", "cifar100", parts)
    members = {f"cifar-100-binary/{p.name}": p.read_bytes() for p in (tmp_path / "made").iterdir()}
    remote = make_archive(tmp_path / "a.tar.gz", {**members, "../../outside": b"x", "cifar-100-binary/extra": b"x"})
    kind = cifar._Kind(**{**vars(cifar._CIFAR100), "remote": remote})
    monkeypatch.setattr(cifar, "_CIFAR100", kind)
    (tmp_path / "root").mkdir()
    load_dataset("cifar100", folder=tmp_path / "root")
    check("cifar100", tmp_path / "root", parts)
    assert sorted(os.listdir(tmp_path / "root/cifar-100-binary")) == ["test.bin", "train.bin"]
    assert not (tmp_path / "outside").exists()


def test_archives_that_are_not_whole(tmp_path):
    with pytest.raises(DataError, match=r"holds no test\.bin"):
        fetch(make_archive(tmp_path / "a.tar.gz", {"x/train.bin": b"1"}), tmp_path / "root")
    (tmp_path / "b.tar.gz").write_bytes(b"not an archive")
    checksum = hashlib.md5(b"not an archive").hexdigest()
    remote = Remote(((tmp_path / "b.tar.gz").as_uri(),), f"md5:{checksum}", "x", "b.tar.gz", ("train.bin",))
    with pytest.raises(DataError, match=r"b\.tar\.gz cannot be unpacked"):
        fetch(remote, tmp_path / "root")


def test_real_cifar10(real_data):
    if not any((real_data / folder).is_dir() for folder in (BINARY["cifar10"], PYTHON["cifar10"])):
        pytest.skip("CIFAR-10 is not in FEDPARA_DATA")
    data = load_dataset("cifar10", download=False)
    assert data.train.images.shape == (50000, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.train.labels[:5].tolist() == [6, 9, 9, 4, 1]
