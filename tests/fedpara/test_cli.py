"""The command line as a user types it: real processes, exit codes, one line for a mistake."""

import os
import subprocess
import sys

import pytest

from fedpara.cli import main


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
        ("simulate digits --device cuda:7", ["cuda:7", "cpu"]),
        ("simulate digits --device gpu", ["'gpu'", "cpu"]),
        ("simulate digits --uplink int9", ["int9", "int8"]),
        ("simulate digits --strategy fedavgg", ["fedavgg", "fedavg"]),
        ("simulate digits --task clasification", ["clasification", "classification"]),
        ("simulate digits --clients 99999", ["99,999"]),
        ("simulate mnist-writers --data-dir /no/such/folder", ["/no/such/folder", "no folder"]),
        ("simulate digits --dataset folder --data-dir /no/such/folder", ["/no/such/folder"]),
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
        ("simulatte digits", ["simulatte"]),
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
    assert done.returncode == 2
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


def test_size_shows_the_papers_vgg16(monkeypatch, capsys):
    code, out, _ = call(["size", "vgg16", "--gamma", "0.1"], monkeypatch, capsys)
    assert code == 0
    assert "1,546,830" in out  # 1.55 M (Table 5)
    assert "15,253,578" in out  # 15.25 M


def test_size_takes_a_model_of_ones_own(monkeypatch, capsys, tmp_path):
    (tmp_path / "mine.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(100, 200)\n")
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(["size", "mine:net", "--gamma", "0"], monkeypatch, capsys)
    assert code == 0
    assert "20,200" in out
