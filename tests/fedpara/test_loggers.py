"""TensorBoard, MLflow and Weights & Biases, each read back by its own means."""

import json
import logging
import struct
from collections import Counter

import pytest

import fedpara as fp
from fedpara import loggers
from fedpara.config import read_recipe
from fedpara.loggers import hyper_parameters, observed, scalars
from tests.conftest import SMALL, Silent


def run(folder, rounds, resume=False, **changes):
    recipe = read_recipe(SMALL, {"rounds": rounds, **changes})
    return fp.simulate(recipe, folder=folder, resume=resume, observer=Silent())


def check_series(found, done):
    """Series of (step, value) by name against the run's own rows: every round once, nothing else."""
    for name, key in (("accuracy", "accuracy"), ("payload/up", "up"), ("message/down", "down_message")):
        assert [step for step, _ in found[name]] == [row["round"] for row in done.rounds]
        assert [value for _, value in found[name]] == pytest.approx([row[key] for row in done.rounds], rel=1e-6)
    assert found["payload/total"][-1][1] == pytest.approx(done.ledger.total(), rel=1e-6)
    ways = [found[f"payload/{way}_so_far"][-1][1] for way in ("up", "down")]
    assert ways == pytest.approx([done.ledger.total("up"), done.ledger.total("down")], rel=1e-6)
    assert {"loss", "train_loss", "seconds/round", "seconds/aggregate", "round/replies"} <= found.keys()


def test_the_figures_of_a_round_and_their_sums():
    row = {"round": 1, "up": 3, "down": 5, "up_message": 4, "down_message": 6, "total": 8, "dense_total": 80}
    row |= {"seconds": 0.5, "phases": {"send": 0.1}, "replies": 2, "dropped": [{}], "cohort": ["a"]}
    row |= {"accuracy": 0.5, "loss": float("nan"), "train_loss": None}
    sums = Counter()
    scalars(row, sums)
    found = scalars(row | {"round": 2, "total": 16}, sums)
    assert found["accuracy"] == 0.5
    assert "loss" not in found
    assert "train_loss" not in found
    assert (found["payload/up"], found["payload/up_so_far"], found["message/down_so_far"]) == (3, 6, 12)
    assert (found["payload/total"], found["round/dropped"], found["seconds/send"]) == (16, 1, 0.1)


def test_a_recipe_is_one_flat_table():
    found = hyper_parameters(read_recipe(SMALL, {"local": "head,norms"}))
    assert found["training.lr"] == 0.1
    assert found["classification.augment.shift"] == 1
    assert found["local"] == "head,norms"


def test_without_a_logger_nothing_is_put_between():
    table = Silent()
    assert observed(read_recipe(SMALL), None, table) is table


def test_a_logger_that_is_not_installed_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(loggers.SINKS, "wandb", (loggers.WandB, "no_such_package"))
    with pytest.raises(fp.ConfigError, match=r"pip install 'fedpara\[wandb\]'"):
        run(tmp_path / "run", 1, logger="wandb")
    assert not (tmp_path / "run").exists()


class Broken:
    def __init__(self, when):
        self.when = when

    def open(self, recipe, folder, state):
        if self.when == "open":
            raise OSError("no such server")

    def write(self, round, values):
        raise OSError("the line is dead")

    def close(self):
        raise OSError("the line is dead")


def test_a_logger_that_cannot_begin_ends_the_run_and_one_that_fails_later_does_not(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(loggers.SINKS, "mlflow", (lambda: Broken("open"), "json"))
    with pytest.raises(fp.FedparaError, match=r"'mlflow' cannot begin .*no such server"):
        run(tmp_path / "a", 1, logger="mlflow")
    monkeypatch.setitem(loggers.SINKS, "mlflow", (lambda: Broken("write"), "json"))
    with caplog.at_level(logging.ERROR, "fedpara"):
        assert run(tmp_path / "b", 2, logger="mlflow").summary["rounds"] == 2
    assert [record.getMessage() for record in caplog.records] == [
        "logger 'mlflow' failed and is left out from now on: the line is dead"
    ]


def test_tensorboard_is_read_back_and_a_resumed_run_goes_on_in_it(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, 2, logger="tensorboard")
    state = json.loads((tmp_path / "loggers.json").read_text())
    assert state["tensorboard"]["round"] == 2
    # A power cut between the logger's second round and its checkpoint: that round is done, and logged, anew.
    run(tmp_path, 3, resume=True, logger="tensorboard")
    (tmp_path / "loggers.json").write_text(json.dumps({"tensorboard": {"round": 2}}))
    done = run(tmp_path, 4, resume=True, logger="tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    series = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    check_series(series, done)
    assert "training.lr = 0.1" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_logger_named_on_resuming_gets_the_rounds_before(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, 2)
    run(tmp_path, 3, resume=True, logger="tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("accuracy")] == [1, 2, 3]


def test_mlflow_keeps_one_run_with_parameters(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs pip install 'fedpara[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    folder = tmp_path / "run"
    run(folder, 2, logger="mlflow")
    (folder / "loggers.json").write_text(  # a kill between the store and this file
        json.dumps({"mlflow": {**json.loads((folder / "loggers.json").read_text())["mlflow"], "round": 1}})
    )
    done = run(folder, 3, resume=True, logger="mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("fedpara")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["training.lr"] == "0.1"
    history = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    check_series(history, done)


def test_wandb_offline_keeps_one_run_and_every_step_once(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs pip install 'fedpara[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path, 2, logger="wandb")
    done = run(tmp_path, 3, resume=True, logger="wandb")
    stored = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in stored}) == 1, "one id"
    history = [row for file in stored for row in read_wandb(file)]
    names = {name for row in history for name in row}
    check_series({name: [(int(r["round"]), r[name]) for r in history if name in r] for name in names}, done)


def read_wandb(file):
    """Rows of the history in a file of wandb's offline mode: a LevelDB log of protocol buffers behind seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, message = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:  # no header fits into the rest of this block
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        message += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole message, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            message = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
