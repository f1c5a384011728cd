"""The in-process runtime, end to end on real digits."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

import fedpara as fp
from fedpara.config import read_recipe
from fedpara.errors import ConfigError
from fedpara.task import load_task
from fedpara.wire import pack_seed
from tests.conftest import SMALL, Silent

# A client whose step never ends. Whoever trains it holds the lock of a file of its own.
ENDLESS = """
import fcntl, os, time
import torch
import fedpara as fp
from fedpara.task import TensorExamples

@fp.register_task("endless")
class Endless(fp.Task):
    def model(self):
        return torch.nn.Linear(2, 1)

    def population(self, clients):
        return [f"client-{{place}}" for place in range(clients)]

    def client_data(self, client, clients):
        return fp.ClientData(TensorExamples((torch.ones(1, 2),)))

    def loss(self, model, batch):
        own = open(f"{folder}/begun-{{os.getpid()}}", "w")
        fcntl.flock(own, fcntl.LOCK_EX)
        os.rename(own.name, own.name.replace("begun", "held"))
        while True:
            time.sleep(0.01)

    def evaluate(self, model, examples, device):
        return fp.Metrics(1, {{"loss": 0.0}})
"""


def run(folder, **changes):
    return fp.simulate(read_recipe(SMALL, changes), folder=folder, observer=Silent())


def bits(folder):
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_a_federation_learns_and_writes_its_folder(tmp_path):
    result = run(tmp_path / "run", rounds=6, cohort=4, epochs=4, lr=0.3, clip=2.0)
    assert result.rounds[-1]["accuracy"] > 0.85  # ten classes: chance is 0.10
    assert result.rounds[-1]["accuracy"] > result.rounds[0]["accuracy"]
    assert [row["round"] for row in result.rounds] == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "recipe.toml",
        "rounds.jsonl",
        "ledger.jsonl",
        "checkpoint",
        "model.safetensors",
        "summary.json",
    }
    images = torch.rand(2, 1, 8, 8)
    model = result.model()
    assert not any("parametrizations" in name for name in model.state_dict())
    assert model(images).shape == (2, 10)


@pytest.mark.parametrize(("measure", "goal"), [("accuracy", 0.5), ("loss", 1.2)])
def test_a_run_ends_where_its_goal_is_reached(measure, goal, tmp_path, monkeypatch):
    task = load_task("classification")
    monkeypatch.setattr(task, "measure", measure)
    monkeypatch.setattr(task, "higher_is_better", measure == "accuracy")
    result = run(tmp_path / "run", rounds=30, cohort=4, lr=0.3, clip=2.0, stop_at=goal)
    sign = 1 if measure == "accuracy" else -1
    found = [sign * row[measure] for row in result.rounds]
    assert 1 < len(found) < 30
    assert found[-1] >= sign * goal > max(found[:-1])
    assert fp.simulate(result.folder, resume=True, observer=Silent()).rounds == result.rounds


def test_the_ledger_holds_what_the_rows_say_and_the_first_broadcast_is_a_seed(tmp_path):
    result = run(tmp_path / "run")
    ledger, rows = result.ledger, result.rounds
    assert ledger.total() == rows[-1]["total"] == sum(row["up"] + row["down"] for row in rows)
    assert ledger.total("up") == sum(row["up"] for row in rows)
    assert ledger.total(unit="message") == sum(row["up_message"] + row["down_message"] for row in rows)
    seed = len(pack_seed(0, {}))
    assert rows[0]["down"] == seed * len(rows[0]["cohort"])
    assert rows[1]["down"] > 100 * seed
    assert ledger.by("purpose")["seed"] == rows[0]["down"]


def test_the_dense_column_is_what_the_dense_twin_really_sends(tmp_path):
    ours = run(tmp_path / "ours")
    twin = run(tmp_path / "twin", parametrization="none", uplink="fp32", downlink="fp32")
    assert ours.rounds[-1]["dense_total"] == twin.ledger.total()
    assert twin.rounds[-1]["dense_total"] == twin.ledger.total()


def test_the_number_of_workers_changes_no_bit(tmp_path):
    one = run(tmp_path / "one", workers=1, cohort=4)
    three = run(tmp_path / "three", workers=3, cohort=4)
    assert bits(one.folder) == bits(three.folder)
    assert [row["total"] for row in one.rounds] == [row["total"] for row in three.rounds]
    assert bits(one.folder) != bits(run(tmp_path / "other", cohort=4, seed=1).folder)


def test_a_plain_script_can_simulate_with_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('the script runs')\n"
        "import fedpara as fp\n"
        f"run = fp.simulate({str(tmp_path / 'small.toml')!r}, folder={str(tmp_path / 'run')!r}, workers=2)\n"
        "assert [row['dropped'] for row in run.rounds] == [[], [], []]\n"
    )
    (tmp_path / "small.toml").write_text(tomli_w.dumps(SMALL))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script runs") == 1


def test_a_run_cut_off_after_a_round_resumes_to_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", rounds=4)
    run(tmp_path / "cut", rounds=2)
    recipe = read_recipe(SMALL, {"rounds": 4})
    resumed = fp.simulate(recipe, folder=tmp_path / "cut", resume=True, observer=Silent())
    assert bits(whole.folder) == bits(resumed.folder)
    assert whole.ledger.to_rows() == resumed.ledger.to_rows()


def test_a_killed_server_resumes_to_the_same_bits(tmp_path):
    recipe, folder = tmp_path / "small.toml", tmp_path / "killed"
    recipe.write_text(tomli_w.dumps(SMALL | {"rounds": 100_000, "workers": 2}))
    command = [sys.executable, "-m", "fedpara.cli", "simulate", str(recipe), "--folder", str(folder)]
    log = folder / "rounds.jsonl"
    process = subprocess.Popen(command)
    while not (log.is_file() and len(log.read_bytes().splitlines()) >= 2):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rounds = len(fp.Run(folder).rounds) + 2
    subprocess.run([*command, "--resume", "--rounds", str(rounds)], check=True)
    whole = run(tmp_path / "whole", rounds=rounds, workers=2)
    assert bits(whole.folder) == bits(folder)
    assert whole.ledger.to_rows() == fp.Run(folder).ledger.to_rows()


@pytest.mark.skipif(os.name == "nt", reason="locks of files that end with their process are POSIX's")
def test_a_killed_server_leaves_nobody_computing(tmp_path):
    """Its workers notice in the middle of a client, which here never ends."""
    import fcntl

    task = tmp_path / "endless.py"
    task.write_text(ENDLESS.format(folder=tmp_path))
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        tomli_w.dumps({"task": "endless", "parametrization": "none", "cohort": 2, "clients": 2, "workers": 2})
    )
    folder = str(tmp_path / "run")
    command = [sys.executable, "-m", "fedpara.cli", "simulate", str(recipe), "--task", str(task), "--folder", folder]
    process = subprocess.Popen(command)
    try:
        while len(locks := list(tmp_path.glob("held-*"))) < 2:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    for file in locks:
        with file.open() as own:
            fcntl.flock(own, fcntl.LOCK_EX)  # when that process has ended; the test's own limit is what it may take


def test_what_a_pfedpara_client_keeps_stays_on_its_disk(tmp_path):
    result = run(tmp_path / "run", parametrization="pfedpara", gamma=0.5)
    kept = list((tmp_path / "run" / "clients").glob("*/*/*.safetensors"))
    assert kept
    names = set(load_file(kept[0]))
    assert names
    assert all(name.endswith(("original2", "original3", "original5")) for name in names)
    everything = run(tmp_path / "all", gamma=0.5)
    assert result.rounds[1]["down"] < 0.75 * everything.rounds[1]["down"]


def test_pfedpara_resumes_to_the_same_bits_too(tmp_path):
    changes = {"parametrization": "pfedpara", "cohort": 4}
    whole = run(tmp_path / "whole", rounds=4, **changes)
    run(tmp_path / "cut", rounds=2, **changes)
    recipe = read_recipe(SMALL, {"rounds": 4, **changes})
    resumed = fp.simulate(recipe, folder=tmp_path / "cut", resume=True, observer=Silent())
    assert whole.rounds[-1]["client_accuracy"] == resumed.rounds[-1]["client_accuracy"]
    assert bits(whole.folder) == bits(resumed.folder)


FEW_BITS = {"uplink": "sign+feedback+entropy", "downlink": "int4+entropy", "cohort": 4, "lr": 0.2, "clip": 2.0}


def test_few_bits_both_ways_with_feedback_learn_and_resume_to_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", rounds=6, epochs=3, **FEW_BITS)
    assert whole.rounds[-1]["accuracy"] > 0.7  # ten classes: chance is 0.10
    assert not whole.summary["dropped"]
    run(tmp_path / "cut", rounds=4, epochs=3, **FEW_BITS)
    recipe = read_recipe(SMALL, {"rounds": 6, "epochs": 3, **FEW_BITS})
    resumed = fp.simulate(recipe, folder=tmp_path / "cut", resume=True, observer=Silent())
    assert bits(whole.folder) == bits(resumed.folder)
    assert whole.ledger.to_rows() == resumed.ledger.to_rows()
    held = list((tmp_path / "whole" / "held").iterdir())
    assert len(held) == 3  # all took part in the last three rounds, and were sent one broadcast in each
    without = run(tmp_path / "without", rounds=6, epochs=3, **FEW_BITS, differences=False)
    assert not list((tmp_path / "without" / "held").glob("*"))
    assert without.rounds[-1]["down"] != whole.rounds[-1]["down"]


def test_clients_that_lost_what_they_held_are_sent_all_of_the_model_once_more(tmp_path):
    run(tmp_path / "run", rounds=2, **FEW_BITS)
    gone = [path for path in (tmp_path / "run" / "clients").glob("*/link/*") if path.is_dir()][:2]
    for folder in gone:
        shutil.rmtree(folder)
    recipe = read_recipe(SMALL, {"rounds": 3, **FEW_BITS})
    resumed = fp.simulate(recipe, folder=tmp_path / "run", resume=True, observer=Silent())
    assert [row["dropped"] for row in resumed.rounds] == [[], [], []]
    assert resumed.rounds[-1]["replies"] == 4
    retries = [row for row in resumed.ledger.to_rows() if row["purpose"] == "retry"]
    assert [(row["round"], row["direction"]) for row in retries] == [(3, "down")] * 2


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    run(tmp_path / "run", rounds=1)
    with pytest.raises(ConfigError, match="--resume"):
        run(tmp_path / "run", rounds=1)


def test_a_recipe_object_takes_no_overrides(tmp_path):
    with pytest.raises(ConfigError, match=r"dataclasses\.replace"):
        fp.simulate(read_recipe(SMALL), folder=tmp_path / "run", rounds=1)
    assert dataclasses.replace(read_recipe(SMALL), rounds=1).rounds == 1
