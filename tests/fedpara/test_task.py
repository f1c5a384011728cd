"""The Task protocol: a problem of one's own in one short file, found by its name or its path."""

import pytest
import torch

import fedpara as fp
from fedpara.config import read_recipe
from fedpara.task import Metrics, build_model, build_task
from tests.conftest import Silent

OWN = '''
"""Which side of a line."""
from dataclasses import dataclass

import torch
from torch import nn

import fedpara as fp
from fedpara.config import setting


@dataclass(frozen=True)
class Options:
    width: int = setting(64, "hidden units", low=1)


@fp.register_task("line")
class Line(fp.Task):
    """Which side of a line a point is on."""

    Options = Options
    measure = "accuracy"

    def model(self):
        return nn.Sequential(nn.Linear(32, self.options.width), nn.ReLU(), nn.Linear(self.options.width, 2))

    def population(self, clients):
        return [f"person {i}" for i in range(clients)]

    def _points(self, seed, count):
        x = torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))
        return fp.TensorExamples((x, (x.sum(1) > 0).long()))

    def client_data(self, client, clients):
        return fp.ClientData(self._points(int(client.split()[1]), 200))

    def server_data(self):
        return self._points(999, 200)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, examples, device):
        x, y = examples.tensors
        logits = model(x.to(device))
        accuracy = (logits.argmax(1) == y.to(device)).float().mean()
        loss = nn.functional.cross_entropy(logits, y.to(device))
        return fp.Metrics(len(y), {"accuracy": float(accuracy), "loss": float(loss)})
'''


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_in_one_file_is_trained(tmp_path, workers):
    file = tmp_path / "line.py"
    file.write_text(OWN)
    table = {"task": str(file), "rounds": 4, "clients": 4, "cohort": 4, "gamma": 0.5, "workers": workers}
    recipe = read_recipe(table, {"line.width": 64, "epochs": 10})
    run = fp.simulate(recipe, folder=tmp_path / "run", observer=Silent())
    assert run.rounds[-1]["accuracy"] > 0.8
    assert run.rounds[-1]["dropped"] == []


def test_a_tasks_own_keys_are_checked(tmp_path):
    file = tmp_path / "line.py"
    file.write_text(OWN)
    with pytest.raises(fp.ConfigError, match="did you mean 'width'"):
        read_recipe({"task": str(file)}, {"line.widht": 3})
    with pytest.raises(fp.ConfigError, match="width = 0"):
        read_recipe({"task": str(file)}, {"width": 0})


def test_a_file_without_a_task_and_a_file_that_is_not_there(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(fp.ConfigError, match="registers no task"):
        fp.load_task(str(tmp_path / "empty.py"))
    with pytest.raises(fp.ConfigError, match="no task file"):
        fp.load_task(str(tmp_path / "none.py"))


def test_a_task_file_is_found_beside_its_recipe_from_wherever_it_is_run(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "line.py").write_text(OWN)
    (tmp_path / "mine" / "recipe.toml").write_text('task = "line.py"\n[line]\nwidth = 7\n')
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("mine/recipe.toml")
    assert recipe.task == str(tmp_path / "mine" / "line.py")
    assert recipe.options == {"width": 7}
    (tmp_path / "other.toml").write_text('task = "mine/line.py"\n')
    assert read_recipe("other.toml").task == str(tmp_path / "mine" / "line.py")
    with pytest.raises(fp.ConfigError, match=r"no task file at line\.py"):
        read_recipe({"task": "line.py"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("import torch\n", "import torchh\n"), r"line\.py cannot be loaded: ModuleNotFoundError.*torchh.*line\.py:5"),
        (("def loss(self", "def loss(self,,"), r"line\.py cannot be loaded: SyntaxError.*line\.py, line"),
        (("def loss", "def lost"), r"unfinished: define loss in Line"),
    ],
)
def test_a_mistake_in_a_task_file_is_one_line_that_names_it(tmp_path, change, message):
    (tmp_path / "line.py").write_text(OWN.replace(*change))
    with pytest.raises(fp.ConfigError, match=message):
        build_task(read_recipe({"task": str(tmp_path / "line.py")}))


def test_a_task_that_finds_no_clients_says_where_it_looked(tmp_path):
    (tmp_path / "line.py").write_text(OWN.replace("for i in range(clients)]", "for i in range(0)]"))
    recipe = read_recipe({"task": str(tmp_path / "line.py"), "gamma": 0.5, "data_dir": "nowhere", "workers": 1})
    with pytest.raises(fp.ConfigError, match=r"finds no clients.*data_dir = 'nowhere'"):
        fp.simulate(recipe, folder=tmp_path / "run", observer=Silent())


def test_the_model_depends_on_the_seed_alone():
    recipe = read_recipe({"gamma": 0.1}, {"seed": 3})
    task = build_task(recipe)
    torch.manual_seed(1)
    first = build_model(recipe, task).state_dict()
    before = torch.rand(1)
    torch.manual_seed(1)
    torch.manual_seed(1)
    second = build_model(recipe, task).state_dict()
    assert torch.equal(before, torch.rand(1)), "building a model must leave the global generator as it was"
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    other = build_model(read_recipe({"gamma": 0.1}, {"seed": 4}), task).state_dict()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_metrics_are_weighted_by_their_examples():
    mean = Metrics.mean([Metrics(1, {"loss": 1.0}), Metrics(3, {"loss": 2.0}), Metrics(0, {"loss": 99.0})])
    assert mean == Metrics(4, {"loss": 1.75})
    assert Metrics.mean([]).examples == 0


def test_a_parametrization_without_a_rank_is_refused():
    recipe = read_recipe({"parametrization": "fedpara"})
    with pytest.raises(fp.ConfigError, match="gamma or ratio"):
        build_model(recipe, build_task(recipe))


def test_a_task_file_named_as_a_key_of_the_recipe_is_refused(tmp_path):
    file = tmp_path / "task.py"
    file.write_text(
        "import fedpara as fp\n@fp.register_task('so-called')\nclass Of(fp.Task):\n    model = loss = None\n"
    )
    with pytest.raises(fp.ConfigError, match=r"task\.py.*'task', a key of every recipe: rename it"):
        read_recipe({"task": str(file)})
