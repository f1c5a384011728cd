"""Data sets, partitioners and models of other libraries, and what is said where they are not installed."""

import gzip
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fedpara as fp
from fedpara.config import read_recipe
from fedpara.data import Split, flower_partition, load_dataset
from fedpara.extras import named, optional
from fedpara.models import build_model
from fedpara.task import build_task
from tests.conftest import Silent

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of the libraries themselves


def library(name):
    """A library, or a skip: some builds of torchvision do not go with some builds of torch."""
    try:
        return pytest.importorskip(name)
    except RuntimeError as error:
        pytest.skip(f"{name} does not go with this torch: {error}")


@pytest.fixture
def datasets():
    return library("datasets")


def pictures(count, channels=1, size=(8, 8), seed=0):
    draw = np.random.default_rng(seed)
    shape = (count, *size) if channels == 1 else (count, *size, channels)
    return [Image.fromarray(pixels) for pixels in draw.integers(0, 256, shape, dtype=np.uint8)]


def table(datasets, count, names=("cat", "dog"), channels=1, size=(8, 8), **more):
    """A data set of `count` pictures, labels in turn."""
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))}
    features |= {key: datasets.Value("string") for key in more}
    columns = {"picture": pictures(count, channels, size), "kind": [i % len(names) for i in range(count)], **more}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_a_saved_data_set_is_read_as_it_was_written(datasets, tmp_path):
    train, test = table(datasets, 20), table(datasets, 6)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "pets"))
    found = load_dataset("hf:pets", folder=tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.train.images.shape == (20, 1, 8, 8)
    assert len(found.test) == 6
    assert found.train.labels.tolist() == train["kind"]
    for place in (0, 19):
        assert np.array_equal(found.train.images[place, 0].numpy(), np.asarray(train[place]["picture"]))
    assert load_dataset(f"hf:{tmp_path / 'pets'}").train.labels.tolist() == train["kind"]


def test_one_split_is_parted_sizes_are_made_equal_and_colours_kept(datasets, tmp_path):
    whole = datasets.concatenate_datasets([table(datasets, 20, channels=3), table(datasets, 20, size=(12, 9))])
    whole.save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(fp.DataError, match=r"9x12 pixels.*image_size"):
        load_dataset("hf:pets", folder=tmp_path)
    found = load_dataset("hf:pets", folder=tmp_path, image_size=16)
    assert found.train.images.shape == (32, 3, 16, 16)
    assert found.test.labels.bincount().tolist() == [4, 4]


def test_columns_are_told_where_their_types_do_not_and_owners_are_read(datasets, tmp_path):
    owners = [f"person {i // 5}" for i in range(20)]
    table(datasets, 20, owner=owners).add_column("age", [i % 3 for i in range(20)]).save_to_disk(str(tmp_path / "pets"))
    found = load_dataset("hf:pets", folder=tmp_path, columns=("picture", "age", "owner"))
    assert found.classes == ("0", "1", "2")
    assert found.train.owners.unique().tolist() == [0, 1, 2, 3]
    with pytest.raises(fp.ConfigError, match=r"no column 'ages' \(did you mean 'age'\?\)"):
        load_dataset("hf:pets", folder=tmp_path, columns=("picture", "ages"))
    with pytest.raises(fp.ConfigError, match=r"columns = .* is for data sets 'hf:NAME'"):
        load_dataset("digits", columns=("picture", "age"))
    no_images = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    no_images.save_to_disk(str(tmp_path / "texts"))
    with pytest.raises(fp.ConfigError, match="text, label, of which 0 hold images"):
        load_dataset("hf:texts", folder=tmp_path)
    with pytest.raises(fp.DataError, match="example 0 is a str, expected an image"):
        load_dataset("hf:texts", folder=tmp_path, columns=("text", "label"))


def test_a_data_set_that_cannot_be_had_is_one_line(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(fp.DataError, match=r"'hf:nobody/nothing' cannot be loaded .*save_to_disk") as caught:
        load_dataset("hf:nobody/nothing", folder=tmp_path)
    assert "\n" not in str(caught.value)
    table(datasets, 4).save_to_disk(str(tmp_path / "pets"))
    (tmp_path / "pets" / "data-00000-of-00001.arrow").write_bytes(b"no such thing")
    with pytest.raises(fp.DataError, match="cannot be loaded"):
        load_dataset("hf:pets", folder=tmp_path)


def test_a_federation_trains_on_such_a_data_set_shared_out_by_a_flower_partitioner(datasets, tmp_path):
    library("flwr_datasets")
    table(datasets, 120).save_to_disk(str(tmp_path / "pets"))
    options = {"dataset": "hf:pets", "model": "2nn", "partition": "flwr:Dirichlet:alpha=0.5,min_partition_size=8"}
    recipe = {"rounds": 1, "clients": 4, "cohort": 4, "gamma": 0.1, "workers": 1, "data_dir": str(tmp_path)}
    run = fp.simulate(read_recipe(recipe | {"classification": options}), folder=tmp_path / "run", observer=Silent())
    assert len(run.rounds) == 1
    assert run.rounds[0]["dropped"] == []
    assert "accuracy" in run.rounds[0]


def images(count=200, owners=None):
    labels = torch.arange(count) % 10
    return Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), labels, owners)


@pytest.mark.parametrize(
    "spec",
    [
        "Iid",
        "IidPartitioner",
        "Dirichlet:alpha=0.5,min_partition_size=5",
        "Shard:num_shards_per_partition=2",
        "Linear",
    ],
)
def test_a_flower_partitioner_gives_every_example_to_one_client(spec):
    library("flwr_datasets")
    split = images()
    found = flower_partition(split, spec, clients=5, seed=3)
    assert found.clients == tuple(f"client-000{i}" for i in range(5))
    assert sorted(found.order.tolist()) == list(range(200))
    again = flower_partition(split, spec, clients=5, seed=3)
    assert found.order.tolist() == again.order.tolist()
    other = flower_partition(split, spec, clients=5, seed=4)
    assert found.order.tolist() != other.order.tolist()


def test_flower_partitioners_that_say_who_holds_which_labels_or_whose_they_are():
    library("flwr_datasets")
    split = images(200, owners=torch.arange(200) // 50)
    two = flower_partition(split, "Pathological:num_classes_per_partition=2", clients=5, seed=0)
    assert {len(set((two.indices(client) % 10).tolist())) for client in two.clients} == {2}
    natural = flower_partition(split, "NaturalId", clients=4, seed=0)
    assert all(len(set((natural.indices(client) // 50).tolist())) == 1 for client in natural.clients)
    sizes = flower_partition(split, "Size:partition_sizes=[10,20,30]", clients=3, seed=0).sizes
    assert sizes.tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("spec", "clients", "message"),
    [
        ("Dirichlt:alpha=1.0", 4, "no DirichltPartitioner.*DirichletPartitioner"),
        ("Dirichlet", 4, "flwr:Dirichlet'.*alpha"),
        ("Dirichlet:alpha=much", 4, r"flwr|arguments are written as"),
        ("NaturalId", 7, "owner"),
        ("Size:partition_sizes=[10,20]", 3, "makes 2 parts.*clients = 3"),
        ("Size:partition_sizes=[10,0]", 2, "flwr:Size"),
        ("Dirichlet:alpha=0.1,min_partition_size=500", 4, "flwr:Dirichlet"),
    ],
)
def test_what_a_flower_partitioner_cannot_do_is_one_line(spec, clients, message):
    library("flwr_datasets")
    with pytest.raises(fp.ConfigError, match=message) as caught:
        flower_partition(images(), spec, clients=clients, seed=0)
    assert "\n" not in str(caught.value)


def test_an_unknown_partition_names_the_nearest():
    with pytest.raises(fp.ConfigError, match=r"partition = 'dirichlt'.*did you mean 'dirichlet'"):
        read_recipe({"classification": {"partition": "dirichlt"}})


@pytest.mark.parametrize(
    ("key", "value", "package", "extra"),
    [
        ("dataset", "hf:mnist", "datasets", "hf"),
        ("dataset", "torchvision:KMNIST", "torchvision.datasets", "vision"),
        ("partition", "flwr:Iid", "flwr_datasets.partitioner", "hf"),
        ("model", "timm:resnet18", "timm", "timm"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(key, value, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    task = build_task(read_recipe({"classification": {key: value}}))
    with pytest.raises(fp.ConfigError, match=rf"'{value}' needs {package} .*pip install 'fedpara\[{extra}\]'"):
        _ = task.model(), task.split(4)


def test_a_package_that_does_not_go_with_torch_is_told_from_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "built_elsewhere.py").write_text("raise RuntimeError('operator built_elsewhere::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(fp.ConfigError, match=r"does not go with this torch .*nms does not exist"):
        optional("built_elsewhere", "vision", "built_elsewhere:x")


def test_arguments_behind_a_name_are_toml():
    assert named('Dirichlet:alpha=0.5,mode="strict",sizes=[1,2]') == (
        "Dirichlet",
        {"alpha": 0.5, "mode": "strict", "sizes": [1, 2]},
    )
    assert named("resnet18") == ("resnet18", {})
    with pytest.raises(fp.ConfigError, match="values as in TOML"):
        named("Dirichlet:alpha")


def test_torchvisions_data_sets_are_read(tmp_path):
    tv = library("torchvision.datasets")
    found = load_dataset("torchvision:FakeData:size=20,image_size=[3,8,8],num_classes=2", folder=tmp_path)
    assert found.train.images.shape == (16, 3, 8, 8)
    with pytest.raises(fp.ConfigError, match=r"no data set 'KMNST'.*KMNIST"):
        load_dataset("torchvision:KMNST", folder=tmp_path)
    with pytest.raises(fp.DataError, match="'torchvision:KMNIST' cannot be loaded"):
        load_dataset("torchvision:KMNIST:download=false", folder=tmp_path)
    assert hasattr(tv, "KMNIST")


def test_torchvisions_mnist_is_ours(real_data, tmp_path):
    library("torchvision.datasets")
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for file in (real_data / "MNIST" / "raw").glob("*.gz"):  # torchvision reads them unpacked
        (tmp_path / "MNIST" / "raw" / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    theirs, ours = load_dataset("torchvision:MNIST", folder=tmp_path), load_dataset("mnist", folder=real_data)
    assert torch.equal(theirs.test.images, ours.test.images)
    assert torch.equal(theirs.train.labels, ours.train.labels)


def test_timms_models_take_classes_channels_and_sizes():
    library("timm")
    sizes = {"num_classes": 7, "in_channels": 1, "image_size": 32}
    for name in ("timm:resnet18", "timm:vit_tiny_patch16_224:patch_size=8,embed_dim=48,num_heads=3,depth=1"):
        model = build_model(name, **sizes)
        fp.parametrize_(model, fp.FedPara(gamma=0.1))
        assert model(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(fp.ConfigError, match="timm has no model 'resnet1'"):
        build_model("timm:resnet1", **sizes)


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.last = nn.Linear(image_size[0] * image_size[1], num_classes)

    def forward(self, x):
        return self.last(x.flatten(1))

ready, seven = nn.Linear(4, 2), 7

def broken():
    return nn.Linear(nothing, 2)
"""


def test_a_model_of_ones_own_gets_the_sizes_that_it_takes(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    sizes = {"num_classes": 3, "in_channels": 1, "image_size": (4, 5)}
    assert build_model(f"{tmp_path / 'mine.py'}:Net", **sizes)(torch.rand(2, 1, 4, 5)).shape == (2, 3)
    assert isinstance(build_model(f"{tmp_path / 'mine.py'}:ready", **sizes), nn.Linear)
    monkeypatch.chdir(tmp_path)
    assert type(build_model("mine:Net", **sizes)).__name__ == "Net"
    for name, message in {
        "mine.py:Nett": r"no 'Nett' in mine\.py \(did you mean 'Net'",
        "mine.py:seven": "gives a int, expected a torch.nn.Module",
        "mine.py:broken": r"NameError.*nothing.*mine\.py:15",
        "none.py:Net": r"no Python file at none\.py",
        "nowhere_at_all:Net": "No module named 'nowhere_at_all'",
        "resnet19": "did you mean 'resnet18'",
    }.items():
        with pytest.raises(fp.ConfigError, match=message):
            build_model(name, **sizes)
    with pytest.raises(fp.ConfigError, match="has no option 'norm'"):
        build_model("mine.py:Net", **sizes, norm="batch")


def test_a_recipes_own_model_is_found_beside_it_and_trained(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "recipe.toml").write_text('gamma = 0.1\n[classification]\nmodel = "mine.py:Net"\n')
    recipe = read_recipe(tmp_path / "recipe.toml", {"rounds": 1, "clients": 2, "cohort": 2, "workers": 1})
    run = fp.simulate(recipe, folder=tmp_path / "run", observer=Silent())
    assert run.rounds[0]["dropped"] == []
