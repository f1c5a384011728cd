"""MNIST, Fashion-MNIST and QMNIST's writers: layouts, damaged files, downloads."""

import gzip
import hashlib
import os
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpara.data import idx, load_dataset
from fedpara.data.download import Remote, fetch
from fedpara.errors import DataError


def write_idx(path: Path, array: np.ndarray, packed: bool) -> None:
    code = {"uint8": 0x08, "int32": 0x0C}[array.dtype.name]
    header = bytes((0, 0, code, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def write_mnist(folder: Path, packed: bool = True, train: int = 30, test: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(n) % 10).astype(np.uint8)
    for name, array in arrays.items():
        write_idx(folder / name, array, packed)
    return arrays


def write_writers(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    for part, name, extra in (("train", "train", 0), ("t10k", "test", 5)):
        labels = arrays[f"{part}-labels-idx1-ubyte"]
        rows = np.zeros((len(labels) + extra, 8), np.int32)
        rows[: len(labels), 0] = labels
        rows[:, 2] = 2000 + np.arange(len(rows)) // 4
        write_idx(folder / f"qmnist-{name}-labels-idx2-int", rows, packed=True)


@pytest.fixture(autouse=True)
def _alone(request, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv("FEDPARA_DATA", raising=False)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "raw"),
        ("mnist", ""),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", ""),
    ],
)
def test_reads_every_layout(tmp_path, name, layout, packed):
    arrays = write_mnist(tmp_path / layout, packed)
    data = load_dataset(name, folder=tmp_path, download=False)
    assert data.name == name
    assert len(data.classes) == 10
    assert data.train.images.shape == (30, 1, 28, 28)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    np.testing.assert_array_equal(data.train.images[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test.images[:, 0], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert data.train.owners is None


@pytest.mark.parametrize("name", ["qmnist-writers", "mnist-writers"])
def test_reads_writers(tmp_path, name):
    write_writers(tmp_path / "QMNIST", write_mnist(tmp_path / "MNIST/raw"))
    data = load_dataset(name, folder=tmp_path, download=False)
    assert data.name == "qmnist-writers"
    assert data.train.owners.dtype == torch.int64
    assert data.train.owners.tolist() == [2000 + i // 4 for i in range(30)]
    assert len(data.test.owners) == 12


def test_writers_of_another_order_are_rejected(tmp_path):
    arrays = write_mnist(tmp_path / "MNIST/raw")
    arrays["train-labels-idx1-ubyte"] = arrays["train-labels-idx1-ubyte"][::-1].copy()
    write_writers(tmp_path / "QMNIST", arrays)
    with pytest.raises(DataError, match=r"qmnist-train.*row 0 is of class 9, expected 0"):
        load_dataset("qmnist-writers", folder=tmp_path, download=False)


def test_too_few_writers_are_rejected(tmp_path):
    arrays = write_mnist(tmp_path / "MNIST/raw")
    arrays["train-labels-idx1-ubyte"] = arrays["train-labels-idx1-ubyte"][:7]
    write_writers(tmp_path / "QMNIST", arrays)
    with pytest.raises(DataError, match="7 rows, expected at least 30"):
        load_dataset("qmnist-writers", folder=tmp_path, download=False)


def test_folder_goes_before_the_environment_and_that_before_the_cache(tmp_path, monkeypatch):
    for i, place in enumerate(("folder", "environment", "cache/fedpara")):
        write_mnist(tmp_path / place / "MNIST/raw", train=10 + i)
    monkeypatch.setenv("FEDPARA_DATA", str(tmp_path / "environment"))
    sizes = [len(load_dataset("mnist", folder=tmp_path / "folder", download=False).train)]
    sizes.append(len(load_dataset("mnist", download=False).train))
    monkeypatch.delenv("FEDPARA_DATA")
    sizes.append(len(load_dataset("mnist", download=False).train))
    assert sizes == [10, 11, 12]


def test_missing_files_say_which_and_where(tmp_path):
    write_mnist(tmp_path / "MNIST/raw")
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", folder=tmp_path, download=False)
    text = str(caught.value)
    assert f"{tmp_path / 'MNIST/raw'} is incomplete: it lacks t10k-labels-idx1-ubyte." in text
    assert "train-images-idx3-ubyte.gz or train-images-idx3-ubyte" in text
    assert "FEDPARA_DATA" in text
    assert "data-dir" in text
    assert "sha256:" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "starts with nothing"),
        (lambda data: data[:2], "starts with 00 00, expected the idx magic 00 00 08 03"),
        (lambda data: data[:9], "expected a header of 16"),
        (lambda data: b"\x00\x00\x08\x01" + data[4:], "expected the idx magic"),
        (lambda data: data[:-5], "expected 23,536 by its header"),
        (lambda data: data + b"x", "expected 23,536 by its header"),
        (lambda data: data[:8] + struct.pack(">2I", 27, 28) + data[16:], "30 x 27 x 28 values, expected N x 28 x 28"),
        (lambda data: data[:4] + struct.pack(">I", 0) + data[8:], "0 x 28 x 28"),
        (lambda data: data[:4] + struct.pack(">I", 2**32 - 1) + data[8:], "by its header"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_images(tmp_path, damage, message, packed):
    write_mnist(tmp_path, packed)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    data = path.read_bytes()
    path.write_bytes(gzip.compress(damage(gzip.decompress(data))) if packed else damage(data))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("mnist", folder=tmp_path, download=False)
    assert str(path) in str(caught.value)
    assert "official" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 11, 200])
def test_damaged_gzip(tmp_path, cut):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        load_dataset("mnist", folder=tmp_path, download=False)


def test_flipped_gzip_bytes(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[5000:5100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset("mnist", folder=tmp_path, download=False)


def test_labels_that_do_not_fit(tmp_path):
    write_mnist(tmp_path, packed=False)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(29, np.uint8), packed=False)
    with pytest.raises(DataError, match="29 labels, expected 30"):
        load_dataset("mnist", folder=tmp_path, download=False)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(30, 10, np.uint8), packed=False)
    with pytest.raises(DataError, match="label 10, expected 0 to 9"):
        load_dataset("mnist", folder=tmp_path, download=False)


def test_one_set_is_not_taken_for_the_other(tmp_path):
    write_mnist(tmp_path, packed=False)
    digits = np.array((5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, *range(10), 0, 0, 0, 0), np.uint8)
    write_idx(tmp_path / "train-labels-idx1-ubyte", digits, packed=False)
    assert len(load_dataset("mnist", folder=tmp_path, download=False).train) == 30
    with pytest.raises(DataError, match="is mnist, not fashion-mnist"):
        load_dataset("fashion-mnist", folder=tmp_path, download=False)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}/"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def remotes_to(folder: Path, url: str) -> tuple[Remote, ...]:
    return tuple(
        Remote(
            (f"{url}absent/{path.name}", url + path.name),
            "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest(),
            "MNIST/raw",
            path.name,
        )
        for path in sorted(folder.iterdir())
    )


def test_downloads_what_is_missing(tmp_path, monkeypatch, server):
    folder, url = server
    write_mnist(folder)
    monkeypatch.setattr(idx, "_MNIST_REMOTES", remotes_to(folder, url))
    (tmp_path / "root").mkdir()
    data = load_dataset("mnist", folder=tmp_path / "root")
    assert len(data.train) == 30
    assert sorted(os.listdir(tmp_path / "root/MNIST/raw")) == sorted(os.listdir(folder))
    for path in folder.iterdir():
        path.unlink()
    assert len(load_dataset("mnist", folder=tmp_path / "root").train) == 30  # from the disk now


def test_failed_downloads_leave_nothing_and_say_why(tmp_path, monkeypatch, server):
    folder, url = server
    write_mnist(folder)
    monkeypatch.setattr(idx, "_MNIST_REMOTES", remotes_to(folder, url))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"changed")
    with pytest.raises(DataError, match=r"the download failed: .*404.*has sha256 .*, expected") as caught:
        load_dataset("mnist")
    assert "data-dir" in str(caught.value)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        fetch(Remote(("http://127.0.0.1:9/x",), "md5:0", "MNIST/raw", "x"), tmp_path / "file")


def test_real_mnist(real_data):
    if not (real_data / "QMNIST").is_dir():
        pytest.skip("QMNIST is not in FEDPARA_DATA")
    data = load_dataset("mnist-writers", download=False)
    assert data.train.images.shape == (60000, 1, 28, 28)
    assert data.test.images.shape == (10000, 1, 28, 28)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    writers, test_writers = set(data.train.owners.tolist()), set(data.test.owners.tolist())
    assert len(writers) == 539
    assert not writers & test_writers
