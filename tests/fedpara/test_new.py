"""A project of one's own: written, run as it is, changed."""

import json

import fedpara as fp
from fedpara.cli.new import FILES
from fedpara.config import read_recipe
from tests.conftest import Silent
from tests.fedpara.test_cli import call


def project(monkeypatch, capsys, folder):
    code, out, err = call(["new", str(folder)], monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert f"fedpara simulate {folder}/recipe.toml" in out
    return folder


def test_a_new_project_runs_at_once_from_anywhere(monkeypatch, capsys, tmp_path):
    own = project(monkeypatch, capsys, tmp_path / "own")
    assert {path.name for path in own.iterdir()} == {*FILES, "data"}
    assert len((own / "my_task.py").read_text().splitlines()) <= 60
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = call(["simulate", "../own/recipe.toml", "--workers", "1", "--json"], monkeypatch, capsys)
    assert code == 0, err
    found = json.loads(out)
    assert found["recipe"] == "own"
    assert found["value"] > 0.9  # two classes, as many of each
    monkeypatch.chdir(tmp_path)  # the run knows its task wherever it is looked at from
    assert fp.Run(tmp_path / "elsewhere" / found["folder"]).task.population(9) == ["east", "north", "south", "west"]


def test_it_computes_in_worker_processes_too(monkeypatch, capsys, tmp_path):
    own = project(monkeypatch, capsys, tmp_path / "own")
    runs = [
        fp.simulate(own / "recipe.toml", folder=tmp_path / str(workers), observer=Silent(), rounds=1, workers=workers)
        for workers in (1, 2)
    ]
    assert runs[0].rounds[0]["accuracy"] == runs[1].rounds[0]["accuracy"]


def test_nothing_that_is_there_is_overwritten(monkeypatch, capsys, tmp_path):
    own = project(monkeypatch, capsys, tmp_path / "own")
    (own / "my_task.py").write_text("mine")
    code, _, err = call(["new", str(own)], monkeypatch, capsys)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "my_task.py" in err
    assert (own / "my_task.py").read_text() == "mine"


def test_a_tasks_file_is_found_beside_its_recipe_then_in_the_working_folder(tmp_path, monkeypatch):
    source = "import fedpara as fp\n@fp.register_task('{0}')\nclass T(fp.Task):\n    '''{0}'''\n"
    for place in ("beside", "here"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(source.format(place))
    (tmp_path / "here" / "other.py").write_text(source.format("other"))
    recipe = tmp_path / "beside" / "recipe.toml"
    monkeypatch.chdir(tmp_path / "here")
    recipe.write_text("task = 'mine.py'\n")
    assert read_recipe(recipe).task == str(tmp_path / "beside" / "mine.py")
    recipe.write_text("task = 'other.py'\n")
    assert read_recipe(recipe).task == str(tmp_path / "here" / "other.py")
    assert read_recipe(recipe, {"task": "mine.py"}).task == str(tmp_path / "here" / "mine.py")
