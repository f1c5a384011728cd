"""Names and arguments of load_dataset, the embedded digits, folders of images, the containers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedpara.data import DATASETS, Split, digits, load_dataset
from fedpara.data.digits import stratified_split
from fedpara.errors import ConfigError, DataError


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode in ("L", "I;16") else (size[1], size[0], len(mode))
    array = np.full(shape, value, np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(array).save(path)


def write_classes(root: Path, counts: dict[str, int], **options) -> None:
    for name, count in counts.items():
        for i in range(count):
            write_image(root / name / f"{i:03d}.png", value=10 * i, **options)


def test_importing_is_light():
    code = (
        "import sys, fedpara.data; "
        "sys.exit(bool({'matplotlib', 'sklearn', 'PIL', 'flwr', 'server', 'client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_name_and_wrong_arguments():
    with pytest.raises(ConfigError, match=r"no data set 'cifar-10'. Did you mean 'cifar10'\? Known: digits, "):
        load_dataset("cifar-10")
    with pytest.raises(ConfigError, match="needs folder="):
        load_dataset("folder")
    with pytest.raises(ConfigError, match="image_size is 8 for 'digits'"):
        load_dataset("digits", image_size=8)
    with pytest.raises(ConfigError, match="image_size is 0"):
        load_dataset("folder", folder=Path("."), image_size=0)
    assert DATASETS == ("digits", "mnist", "fashion-mnist", "qmnist-writers", "cifar10", "cifar100", "folder")


def test_digits_are_read_without_importing_scikit_learn():
    code = "import sys; from fedpara.data.digits import load_digits; load_digits(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_digits_of_a_scikit_learn_that_keeps_them_elsewhere(monkeypatch):
    found = digits.load_digits()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    imported = digits.load_digits()
    for part in ("train", "test"):
        assert torch.equal(getattr(found, part).images, getattr(imported, part).images)
        assert torch.equal(getattr(found, part).labels, getattr(imported, part).labels)


def test_digits():
    data = load_dataset("digits")
    assert data.train.images.shape == (1438, 1, 8, 8)
    assert data.test.images.shape == (359, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert int(data.train.images.max()) == 255
    everything = data.train.labels.bincount() + data.test.labels.bincount()
    assert everything.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (data.test.labels.bincount() / everything - 0.2).abs().max() < 0.01
    assert torch.equal(load_dataset("digits").test.images, data.test.images)
    # The split is a constant of the package: results on the digits stay comparable.
    assert stratified_split(np.arange(20) % 2)[1].tolist() == [1, 2, 6, 17]


def test_stratified_split_keeps_one_of_each_class_to_train():
    labels = np.array([0, 1, 1, 2, 2, 2, 4])
    train, test = stratified_split(labels)
    assert sorted([*train, *test]) == list(range(7))
    assert np.bincount(labels[train], minlength=5).tolist() == [1, 1, 2, 0, 1]
    assert np.bincount(labels[test], minlength=5).tolist() == [0, 1, 1, 0, 0]


def test_folder_with_train_and_test(tmp_path):
    write_classes(tmp_path / "train", {"cat": 3, "ant": 2})
    write_classes(tmp_path / "test", {"cat": 1, "ant": 1})
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/.hidden").mkdir()
    data = load_dataset("folder", folder=tmp_path)
    assert data.classes == ("ant", "cat")
    assert data.name == tmp_path.name
    assert data.train.images.shape == (5, 3, 5, 6)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 10, 0, 10, 20]
    assert len(data.test) == 2


def test_folder_without_a_split(tmp_path):
    write_classes(tmp_path, {"a": 10, "b": 5})
    data = load_dataset("folder", folder=tmp_path)
    assert data.train.labels.bincount().tolist() == [8, 4]
    assert data.test.labels.bincount().tolist() == [2, 1]
    values = torch.cat([data.train.images, data.test.images])[:, 0, 0, 0]
    assert sorted(values.tolist()) == sorted([*range(0, 100, 10), *range(0, 50, 10)])
    assert torch.equal(load_dataset("folder", folder=tmp_path).test.images, data.test.images)


def test_grey_images_have_one_channel_unless_one_is_coloured(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2}, mode="L")
    write_classes(tmp_path / "test", {"a": 1}, mode="L")
    write_image(tmp_path / "train/a/deep.png", "I;16", value=50_000)
    data = load_dataset("folder", folder=tmp_path)
    assert data.train.images.shape == (5, 1, 5, 6)
    assert int(data.train.images[2, 0, 0, 0]) == 50_000 >> 8
    write_image(tmp_path / "test/b/colour.jpg", "RGB")
    write_image(tmp_path / "test/b/clear.png", "RGBA")
    assert load_dataset("folder", folder=tmp_path).train.images.shape == (5, 3, 5, 6)


def test_sizes_that_differ(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3})
    write_image(tmp_path / "b/wide.png", size=(40, 8))
    with pytest.raises(DataError, match=r"wide\.png is 40x8 pixels, .* is 6x5\. Set image_size"):
        load_dataset("folder", folder=tmp_path)
    data = load_dataset("folder", folder=tmp_path, image_size=7)
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == (3, 7, 7)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"  # Pillow would run another program on it


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken", POSTSCRIPT])
def test_corrupt_image(tmp_path, content):
    write_classes(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "b/000.png").write_bytes(content)
    with pytest.raises(DataError, match=r"b/000\.png cannot be read as an image"):
        load_dataset("folder", folder=tmp_path)


def test_truncated_image(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "b/000.png")
    content = (tmp_path / "b/000.png").read_bytes()
    (tmp_path / "b/000.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"b/000\.png cannot be read as an image"):
        load_dataset("folder", folder=tmp_path)


def test_folders_that_are_not_a_data_set(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset("folder", folder=tmp_path / "absent")
    with pytest.raises(DataError, match="no class folders"):
        load_dataset("folder", folder=tmp_path)
    write_classes(tmp_path, {"a": 1})
    with pytest.raises(DataError, match="only the class a"):
        load_dataset("folder", folder=tmp_path)
    write_classes(tmp_path, {"b": 1})
    with pytest.raises(DataError, match="no image for testing"):
        load_dataset("folder", folder=tmp_path)
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"/c holds no images"):
        load_dataset("folder", folder=tmp_path)


def test_train_and_test_that_do_not_fit(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="has train/ but no test/"):
        load_dataset("folder", folder=tmp_path)
    write_classes(tmp_path / "val", {"a": 1, "z": 1})
    with pytest.raises(DataError, match="holds the class z"):
        load_dataset("folder", folder=tmp_path)


def test_split_checks_its_tensors():
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3)
    part = Split(images, labels, labels + 7).subset(torch.tensor([2, 0]))
    assert (part.labels.tolist(), part.owners.tolist(), len(part)) == ([2, 0], [9, 7], 2)
    assert Split(images, labels).subset(torch.tensor([1])).owners is None
    for wrong in ((images.float(), labels), (images[0], labels), (images, labels[:2]), (images, labels.int())):
        with pytest.raises(DataError, match="expected"):
            Split(*wrong)
    with pytest.raises(DataError, match="owners"):
        Split(images, labels, labels[:1])


def test_a_named_folder_that_is_not_there_is_refused_and_not_made(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"data-dir = .*slip is no folder"):
        load_dataset("mnist", folder=tmp_path / "slip")
    monkeypatch.setenv("FEDPARA_DATA", str(tmp_path / "slip"))
    with pytest.raises(DataError, match=r"\$FEDPARA_DATA = .*slip is no folder"):
        load_dataset("cifar10")
    assert not (tmp_path / "slip").exists()
