"""The command line as a user types it: real processes, exit codes, one line for a mistake."""

import json
import os
import shutil
import subprocess
import sys
import time

import click
import pytest
import tomli_w

import fedpara as fp
from fedpara.cli import cli, main
from fedpara.config import read_recipe
from tests.conftest import SMALL, Silent


def call(arguments, monkeypatch, capsys):
    """Exit code, standard output and error of one command, in this process."""
    monkeypatch.setattr(sys, "argv", ["fedpara", *arguments])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("simulate digit", ["'digit'", "did you mean 'digits'"]),
        ("simulate none.toml", ["none.toml", "built-in"]),
        ("simulate digits --gama 0.1", ["'gama'", "did you mean 'gamma'"]),
        ("simulate digits --gamma 1.5", ["gamma = 1.5", ">= 0 and <= 1"]),
        ("simulate digits --gamma much", ["gamma", "'much'", "a number"]),
        ("simulate digits --clients 0", ["clients = 0", ">= 1"]),
        ("simulate digits --device gpu", ["'gpu'", "cpu"]),
        ("simulate digits --uplink int9", ["int9", "int8"]),
        ("simulate digits --strategy fedavgg", ["fedavgg", "fedavg"]),
        ("simulate digits --task clasification", ["clasification", "classification"]),
        ("simulate digits --clients 99999", ["99,999"]),
        ("simulate digits --folder /proc/nowhere", ["/proc/nowhere", "--folder"]),
        ("simulate digits --rounds", ["--rounds", "requires an argument"]),
        ("simulate", ["RECIPE"]),
        ("simulate digits more", ["'more'"]),
        ("size digits --codec int9", ["int9", "int8"]),
        ("size nowhere:model", ["nowhere:model"]),
        ("size math:pi", ["math:pi", "torch.nn.Module"]),
        ("report nowhere", ["nowhere", "fedpara simulate"]),
        ("compare nowhere", ["nowhere"]),
        ("export nowhere model.onx", ["nowhere"]),
        ("simulatte digits", ["simulatte", "did you mean 'simulate'"]),
        ("deploy chek x", ["chek", "did you mean 'check'"]),
        ("simulate digits --rounds -1", ["rounds = -1", ">= 1"]),
        ("simulate digits --rounds nan", ["rounds = 'nan'", "a whole number"]),
        ("simulate digits --lr nan", ["lr = nan", "> 0"]),
        ("simulate digits --stop-at nan", ["stop_at = nan", "finite"]),
        ("simulate digits --lr inf", ["lr = inf", "finite"]),
        ("simulate digits --seed 99999999999999999999", ["seed = 99999999999999999999"]),
        ("simulate digits --threads 1000000", ["threads = 1000000", "<= 1024"]),
        ("simulate digits --logger tensorbord", ["'tensorbord'", "did you mean 'tensorboard'"]),
        ("compare x --target nan", ["--target", "finite"]),
        ("deploy run x --wait -1", ["--wait"]),
        ("size vgg16 --classes 0", ["--classes", "1<=x"]),
        ("tasks clasification", ["did you mean 'classification'"]),
        ("completion tcsh", ["tcsh", "bash"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(arguments.split(), monkeypatch, capsys)
    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err
    assert not list(tmp_path.rglob("recipe.toml")), "a mistake must not leave a run behind"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("simulate digits --device cuda:7", ["cuda:7", "cpu"]),
        ("simulate mnist-writers --data-dir /no/such/folder", ["/no/such/folder", "no folder"]),
        ("simulate digits --dataset folder --data-dir /no/such/folder", ["/no/such/folder"]),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(arguments.split(), monkeypatch, capsys)
    assert (code, out, len(err.strip().splitlines())) == (1, "", 1)
    for word in words:
        assert word in err


def test_a_real_process_shows_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "fedpara.cli",
        "simulate",
        "digits",
        "--data-dir",
        "/no/such",
        "--dataset",
        "mnist",
    ]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_simulate_report_compare_and_export_work_together(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = ["--rounds", "2", "--clients", "4", "--cohort", "2", "--epochs", "1", "--workers", "1", "--model", "2nn"]
    code, out, _ = call(["simulate", "digits", "--folder", "run", *options], monkeypatch, capsys)
    assert code == 0
    for word in ("accuracy", "vs dense", "dense twin, fp32", "run: run", "report: run/report.html"):
        assert word in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    code, out, _ = call(["compare", "run"], monkeypatch, capsys)
    assert code == 0
    assert "accuracy" in out
    code, out, _ = call(["export", "run", "model.safetensors"], monkeypatch, capsys)
    assert code == 0
    assert (tmp_path / "model.safetensors").is_file()


def test_a_run_is_resumed_from_the_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = ["--clients", "4", "--cohort", "2", "--epochs", "1", "--workers", "1", "--model", "2nn"]
    call(["simulate", "digits", "--folder", "run", "--rounds", "1", *options], monkeypatch, capsys)
    code, _, err = call(["simulate", "run", "--rounds", "2"], monkeypatch, capsys)
    assert code == 0, "a run's folder is a recipe too"
    code, _, err = call(["simulate", "digits", "--folder", "run", *options], monkeypatch, capsys)
    assert code == 2
    assert "--resume" in err
    code, _, _ = call(["simulate", "run", "--resume", "--rounds", "3"], monkeypatch, capsys)
    assert code == 0
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 3
    code, _, err = call(["simulate", "digits", "--folder", "empty", "--resume"], monkeypatch, capsys)
    assert code == 2
    assert "no run to resume" in err


def test_a_run_that_another_process_writes_is_left_to_it(monkeypatch, capsys, tmp_path):
    """The same command twice, in two terminals: rows of both would lie in one file."""
    monkeypatch.chdir(tmp_path)
    options = ["--clients", "4", "--cohort", "2", "--epochs", "1", "--workers", "1", "--model", "2nn"]
    command = [sys.executable, "-m", "fedpara.cli", "simulate", "digits", "--folder", "run", *options]
    first = subprocess.Popen([*command, "--rounds", "100000"], stdout=subprocess.DEVNULL)
    try:
        while not (rounds := tmp_path / "run" / "rounds.jsonl").is_file() or not rounds.stat().st_size:
            assert first.poll() is None
            time.sleep(0.05)
        for again in (["simulate", "run", "--resume"], ["simulate", "digits", "--folder", "run", *options]):
            code, _, err = call([*again, "--rounds", "1"], monkeypatch, capsys)
            assert code == 2
            assert "another process writes the run in run" in err
    finally:
        first.kill()
        first.wait()
    done = len(rounds.read_text().splitlines())
    code, _, _ = call(["simulate", "run", "--resume", "--rounds", str(done + 1)], monkeypatch, capsys)
    assert code == 0, "the lock ends with its process, also with one that is killed"
    assert [row["round"] for row in fp.Run("run").rounds] == list(range(1, done + 2))


def test_size_shows_the_papers_vgg16(monkeypatch, capsys):
    code, out, _ = call(["size", "vgg16", "--gamma", "0.1"], monkeypatch, capsys)
    assert code == 0
    assert "1,546,830" in out  # 1.55 M (Table 5)
    assert "15,253,578" in out  # 15.25 M


def test_size_takes_a_model_of_ones_own(monkeypatch, capsys, tmp_path):
    (tmp_path / "nets_of_mine.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(100, 200)\n")
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(["size", "nets_of_mine:net", "--gamma", "0"], monkeypatch, capsys)
    assert code == 0
    assert "20,200" in out


def test_files_that_are_something_else_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(bytes(range(256)))
    (tmp_path / "typo.toml").write_text("[training]\nepoch = 3\n")
    (tmp_path / "broken.py").write_text("import nothing_there\n")
    (tmp_path / "half.py").write_text(
        "import fedpara as fp\n@fp.register_task('half')\nclass Half(fp.Task):\n    pass\n"
    )
    for arguments, words in (
        ("simulate photo.png", ["photo.png", "TOML"]),
        ("simulate typo.toml", ["training.epoch", "did you mean 'epochs'"]),
        ("simulate digits --task broken.py", ["broken.py:1", "nothing_there"]),
        ("simulate digits --task half.py", ["Half", "client_data, evaluate"]),
        ("report photo.png", ["photo.png"]),
        ("deploy init photo.png", ["photo.png"]),
        ("size photo.png", ["photo.png"]),
    ):
        code, out, err = call(arguments.split(), monkeypatch, capsys)
        assert (code, out, len(err.strip().splitlines())) == (2, "", 1), err
        for word in words:
            assert word in err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fp.simulate(
        read_recipe(SMALL, {"rounds": 2}), folder=tmp_path_factory.mktemp("runs") / "run", observer=Silent()
    )


def test_a_damaged_run_is_named_and_nothing_else_happens(run, monkeypatch, capsys, tmp_path):
    damages = {
        "summary.json": ("report", "is damaged"),
        "model.safetensors": ("apply", "is not this run's model"),
        "rounds.jsonl": ("compare", "no rows of a run"),
        "ledger.jsonl": ("report", "not a ledger's row"),
    }
    for file, (command, words) in damages.items():
        folder = tmp_path / command / file
        shutil.copytree(run.folder, folder)
        (folder / file).write_text('{"what": [\n{}\n')
        code, _, err = call(
            [command, str(folder), *(["--top", "1"] if command == "apply" else [])], monkeypatch, capsys
        )
        assert (code, len(err.strip().splitlines())) == (1, 1), err
        assert words in err
        assert str(folder) in err


def test_json_stands_alone_on_standard_output(run, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    small = tmp_path / "small.toml"
    small.write_text(tomli_w.dumps(SMALL | {"rounds": 1}))
    folder = str(run.folder)
    expected = {
        f"simulate {small} --folder r": (
            "folder",
            "report",
            "measure",
            "value",
            "rounds",
            "payload_up",
            "payload_down",
        ),
        f"report {folder}": ("folder", "report", "value", "seconds", "dropped"),
        f"compare {folder}": ("baseline", "output", "runs"),
        f"export {folder} m.safetensors": ("output", "bytes", "difference"),
        f"apply {folder}": ("input", "output", "lines"),
        "size cnn": ("codec", "parameters", "dense_parameters", "payload_bytes", "dense_payload_bytes", "layers"),
        "recipes": ("recipes",),
        "recipes digits": ("name", "file", "recipe"),
        "tasks": ("tasks",),
        "tasks classification": ("name", "description", "options"),
    }
    found = {}
    for command, keys in expected.items():
        code, out, err = call([*command.split(), "--json"], monkeypatch, capsys)
        assert code == 0, err
        found[command] = json.loads(out, parse_constant=pytest.fail)  # NaN is no JSON
        assert set(keys) <= set(found[command]), command
    assert found[f"report {folder}"]["payload_up"] == run.ledger.total("up")
    rows = found[f"compare {folder}"]["runs"]
    assert rows[0]["bytes"] == run.ledger.total()
    layers = found["size cnn"]["layers"]
    assert sum(layer["payload_bytes"] for layer in layers) == found["size cnn"]["payload_bytes"]
    assert {"name": "digits"}.items() <= found["recipes"]["recipes"][3].items()
    keys = {row["key"]: row for row in found["tasks classification"]["options"]}
    assert keys["norm"]["choices"]
    assert keys["alpha"]["help"]
    assert keys["augment.shift"]["default"] == 0


def test_what_processes_print_does_not_get_between_the_figures(tmp_path):
    command = "import os, sys; sys.argv = ['fedpara', 'recipes', '--json']; import fedpara.cli.listing as listing;"
    command += "from fedpara.cli.options import figures\nwith figures(True) as show:\n"
    command += "    print('a library talks'); os.system('echo a process talks'); show({'x': float('nan')}, 'text')\n"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"x": None}
    assert "a library talks" in done.stderr
    assert "a process talks" in done.stderr


def test_a_run_that_came_to_nothing_is_no_success(run, monkeypatch, capsys, tmp_path):
    (tmp_path / "fails.py").write_text(FAILS)
    recipe = tmp_path / "fails.toml"
    recipe.write_text("task = 'fails.py'\nrounds = 2\nclients = 2\ncohort = 2\nparametrization = 'none'\nworkers = 1\n")
    code, out, err = call(["simulate", str(recipe), "--folder", str(tmp_path / "run"), "--json"], monkeypatch, capsys)
    assert code == 1
    assert json.loads(out)["rounds"] == 2, "the figures are there all the same"
    assert "no more than 0 usable replies" in err
    assert "the loss is lost" in err


FAILS = """
import fedpara as fp, torch
@fp.register_task("fails")
class Fails(fp.Task):
    def model(self): return torch.nn.Linear(2, 2)
    def population(self, clients): return ["a", "b"]
    def client_data(self, client, clients): return fp.ClientData(fp.TensorExamples((torch.zeros(4, 2),)))
    def loss(self, model, batch): raise ValueError("the loss is lost")
    def evaluate(self, model, examples, device): return fp.Metrics(1, {"accuracy": 0.0, "loss": 0.0})
"""


def test_an_unforeseen_error_is_a_line_with_its_place(monkeypatch, capsys):
    monkeypatch.setattr("fedpara.app.recipes", lambda: 1 / 0)
    code, _, err = call(["recipes"], monkeypatch, capsys)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "ZeroDivisionError" in err
    assert "test_cli.py" in err
    monkeypatch.setenv("FEDPARA_TRACEBACK", "1")
    _, _, err = call(["recipes"], monkeypatch, capsys)
    assert "Traceback" in err


def test_a_pipe_that_is_closed_is_no_traceback():
    command = f"{sys.executable} -m fedpara.cli simulate --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: fedpara simulate")
    assert done.stderr == ""


def test_every_command_shows_examples_and_every_key_its_default(monkeypatch, capsys):
    def groups(command, path):
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from groups(inner, [*path, name])

    for path, command in groups(cli, []):
        code, out, _ = call([*path, "--help"], monkeypatch, capsys)
        assert code == 0
        assert "Example" in out, path
        assert f"fedpara {' '.join(path[:1])}".strip() in out, path
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (path, option.name)
    _, out, _ = call(["simulate", "--help"], monkeypatch, capsys)
    assert "[default: 10, or the recipe's]" in out


def test_without_arguments_the_help_is_shown_and_it_is_a_mistake(monkeypatch, capsys):
    code, out, err = call([], monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert "Commands:" in err


def loaded_by(*arguments):
    """Packages that a command loads."""
    script = (
        f"import sys; sys.argv = ['fedpara', *{arguments!r}]\nfrom fedpara.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('|', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("|")[2].split())


HEAVY = {"torch", "numpy", "scipy", "matplotlib", "sklearn", "skimage", "flwr", "ray", "pandas", "PIL", "grpc", "rich"}


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version", "simulate --help", "deploy --help", "recipes", "recipes digits", "tasks", "completion zsh"],
)
def test_what_only_lists_and_helps_loads_nothing_heavy(arguments):
    assert not loaded_by(*arguments.split()) & HEAVY


def test_size_and_new_load_no_more_than_they_need(tmp_path):
    assert not loaded_by("size", "cnn") & {"matplotlib", "sklearn", "skimage", "flwr", "ray", "pandas", "grpc"}
    assert not loaded_by("new", str(tmp_path / "project")) & {"matplotlib", "sklearn", "flwr", "ray", "pandas", "grpc"}
