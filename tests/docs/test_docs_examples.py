"""The examples are short, and work as a reader uses them: as files, and as packages that are installed."""

import runpy
import shutil

import pytest
import torch

import fedpara as fp
from fedpara import task
from fedpara.checkpoint import load
from fedpara.config import read_recipe
from tests.conftest import Silent
from tests.docs.pages import ROOT, blocks

EXAMPLES = ROOT / "docs" / "examples"
SMALL = {"rounds": 4, "clients": 3, "cohort": 3, "workers": 1}


@pytest.fixture
def stations(tmp_path, monkeypatch):
    """A folder with the examples' made-up data in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(task, "_TASKS", dict(task._TASKS))
    runpy.run_path(str(EXAMPLES / "stations.py"))
    return tmp_path


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a file under an entry point, as an installer does."""

    def put(file, text, group, name, target):
        site = tmp_path / f"site-{file}"
        facts = site / f"{file}-1.0.dist-info"
        facts.mkdir(parents=True)
        (site / f"{file}.py").write_text(text)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {file}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(site)

    return put


def test_a_task_takes_sixty_lines_at_most():
    assert len((EXAMPLES / "temperature.py").read_text().splitlines()) <= 60


def test_the_task_is_federated_and_learns(stations):
    recipe = read_recipe(EXAMPLES / "temperature.toml", {**SMALL, "data_dir": str(stations / "stations")})
    run = fp.simulate(recipe, folder=stations / "run", observer=Silent())
    errors = [row["client_error"] for row in run.rounds]
    assert all(row["dropped"] == [] for row in run.rounds)
    assert errors[-1] < errors[0] / 3
    assert run.model()(torch.zeros(1, 14)).shape == (1, 1)


def test_the_task_says_which_readings_are_missing(stations):
    own = task.build_task(read_recipe(EXAMPLES / "temperature.toml", {"data_dir": str(stations / "stations")}))
    with pytest.raises(fp.DataError, match=r"station-99\.csv: expected a temperature"):
        own.client_data("station-99", 8)


def test_the_task_is_found_as_an_installed_package(stations, install):
    text = (EXAMPLES / "temperature.py").read_text()
    install("weather_package", text, "fedpara.tasks", "temperature", "weather_package:Temperature")
    assert "temperature" in task.task_names()
    table = {"task": "temperature", "gamma": 0.1, "data_dir": str(stations / "stations"), "temperature": {"hidden": 32}}
    run = fp.simulate(read_recipe(table | SMALL | {"rounds": 1}), folder=stations / "run", observer=Silent())
    assert run.rounds[0]["dropped"] == []


def test_the_codec_is_found_as_an_installed_package(install):
    (block,) = [block for block in blocks("codecs.md") if block.file == "my_codec.py"]
    install("my_codec", block.text, "fedpara.codecs", "rounded", "my_codec:Rounded")
    state = {"weight": torch.linspace(1, 9, 3000).reshape(50, 60)}
    codec = fp.codec("rounded:1")
    back = codec.decode(codec.encode(state), state)
    assert back["weight"].tolist() == [[float(f"{value:.1g}") for value in row] for row in state["weight"].tolist()]


def test_the_strategy_bounds_a_rounds_step_and_has_a_clients_half(tmp_path):
    shutil.copy(EXAMPLES / "careful.py", tmp_path)
    strategy = f"{tmp_path / 'careful.py'}:Careful"
    small = {**SMALL, "rounds": 1, "epochs": 1, "server_lr": 1.0, "strategy": strategy, "gamma": 0.1, "model": "2nn"}
    recipe = read_recipe({}, small)
    run = fp.simulate(recipe, folder=tmp_path / "run", observer=Silent())
    assert run.rounds[0]["dropped"] == []
    own = task.build_task(recipe)
    before = task.build_model(recipe, own).state_dict()
    after = load(tmp_path / "run" / "checkpoint").model
    moved = {name: (after[name] - before[name]).norm() / before[name].norm() for name in after if before[name].any()}
    assert max(moved.values()) <= 0.0501
    with pytest.raises(fp.ConfigError, match=r"Pull' is not a subclass of server\.strategies\.Strategy"):
        fp.simulate(
            read_recipe({}, small | {"strategy": f"{tmp_path / 'careful.py'}:Pull"}),
            folder=tmp_path / "no",
            observer=Silent(),
        )
