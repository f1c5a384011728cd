"""Methods beside each other: grids, bytes to a target, rows and plots."""

import json

import pytest
import tomli_w

import fedpara as fp
from fedpara.compare import entries_of, markdown, pareto, read_grid, rows, run_grid, targets, write
from fedpara.config import read_recipe
from fedpara.cost import LINKS
from fedpara.errors import ConfigError
from tests.conftest import SMALL, Silent
from tests.fedpara.test_cli import call

GRID = {
    "recipe": "small.toml",
    "seeds": [0, 1],
    "baseline": "dense",
    "within": 0.2,
    "common": {"rounds": 4, "lr": 0.2, "clip": 2.0},
    "methods": {
        "dense": {"source": "McMahan et al. 2017", "parametrization": "none", "uplink": "fp32", "downlink": "fp32"},
        "few: bits": {"uplink": "int4+entropy", "downlink": "int4+entropy"},
    },
}


@pytest.fixture
def grid_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(tomli_w.dumps(SMALL))
    (tmp_path / "grid.toml").write_text(tomli_w.dumps(GRID))
    return tmp_path / "grid.toml"


def test_a_grid_is_run_once_and_then_read(grid_file, tmp_path, monkeypatch, capsys):
    code, printed, _ = call(["compare", "grid.toml", "--output", "out"], monkeypatch, capsys)
    assert code == 0
    assert "few: bits" in printed
    logs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/rounds.jsonl")}
    assert len(logs) == 4
    found = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert {(row["method"], row["seed"]) for row in found} == {(m, s) for m in ("dense", "few: bits") for s in (0, 1)}
    curves = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert len(curves) == 16
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<svg") >= 2
    assert "<script src" not in page
    assert call(["compare", "grid.toml", "--output", "out"], monkeypatch, capsys)[0] == 0
    assert logs == {path: path.stat().st_mtime_ns for path in logs}


def test_bytes_to_the_target_are_those_of_the_rounds_until_it_is_reached(grid_file, tmp_path):
    grid = read_grid(grid_file)
    entries = run_grid(grid, tmp_path / "out", observer=Silent())
    aims = targets(entries, grid)
    for entry in entries:
        if entry.method == "dense":
            assert aims[entry.seed] == entry.run.rounds[-1]["accuracy"] - 0.2
    for row, entry in zip(rows(entries, aims), entries, strict=True):
        if row["bytes"] is None:
            assert all(line["accuracy"] < row["target"] for line in entry.run.rounds)
            continue
        first = next(line for line in entry.run.rounds if line["accuracy"] >= row["target"])
        assert row["rounds"] == first["round"]
        assert row["bytes"] == row["up"] + row["down"] == first["total"]
    never = rows(entries, dict.fromkeys(grid.seeds, 1.01))
    assert {row["bytes"] for row in never} == {None}
    whole = rows(entries, dict.fromkeys(grid.seeds))
    assert [row["bytes"] for row in whole] == [entry.run.ledger.total() for entry in entries]
    # Two clients a round, each sends its model and receives one: the paper's own sum on a symmetric link.
    dense = next(row for row in whole if row["method"] == "dense")
    one_model = entries[0].run.rounds[1]["up"] / 2
    assert dense["seconds_on_link"] == pytest.approx((2 * 4 - 1) * 8 * one_model / 10e6, rel=0.01)
    assert "| dense |" in markdown(whole, "dense")


def test_a_run_may_end_where_its_target_is_reached(grid_file, tmp_path):
    grid_file.write_text(tomli_w.dumps(GRID | {"seeds": [1], "within": 0.25, "until-target": True}))
    grid = read_grid(grid_file)
    dense, few = run_grid(grid, tmp_path / "out", observer=Silent())
    goal = targets([dense], grid)[1]
    assert len(dense.run.rounds) == 4
    assert few.run.recipe.stop_at == goal
    found = [row["accuracy"] for row in few.run.rounds]
    assert len(found) < 4
    assert found[-1] >= goal > max([0.0, *found[:-1]])
    again = run_grid(grid, tmp_path / "out", observer=Silent())
    assert [entry.run.rounds for entry in again] == [dense.run.rounds, few.run.rounds]


def test_runs_are_compared_as_they_are(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        fp.simulate(read_recipe(SMALL, {"seed": seed}), folder=tmp_path / f"small-seed{seed}", observer=Silent())
    folders = [str(tmp_path / f"small-seed{seed}") for seed in (0, 1)]
    entries = entries_of(map(fp.Run, folders))
    assert [(entry.method, entry.seed) for entry in entries] == [("small", 0), ("small", 1)]
    code, printed, _ = call(["compare", *folders, "--target", "0.1", "--link", "lte"], monkeypatch, capsys)
    assert code == 0
    assert "2/2" in printed
    write(tmp_path / "out", entries, rows(entries, targets(entries, None, 0.1), LINKS["lte"]), None)
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_the_pareto_front_holds_what_nothing_beats():
    points = {"cheap": (1.0, 0.5), "good": (10.0, 0.9), "worse": (10.0, 0.8), "dear": (20.0, 0.9), "twin": (1.0, 0.5)}
    assert pareto(points) == {"cheap", "good", "twin"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": {}}, ["no grid", "[methods.NAME]"]),
        ({"baseline": "dens"}, ["'dens'", "dense"]),
        ({"seeds": "all"}, ["seeds = 'all'"]),
        ({"until-target": "yes"}, ["until-target = 'yes'", "true or false"]),
        ({"methods": {"a b": {}, "a/b": {}}, "baseline": "a b"}, ["share a folder"]),
        ({"withing": 0.1}, ["withing", "within"]),
        ({"common": {"rouds": 3}}, ["rouds", "rounds"]),
    ],
)
def test_a_mistake_in_a_grid_is_one_line(change, words, grid_file, monkeypatch, capsys):
    grid_file.write_text(tomli_w.dumps(GRID | change))
    code, _, err = call(["compare", str(grid_file)], monkeypatch, capsys)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    for word in words:
        assert word in err


def test_an_unknown_link_names_the_nearest(monkeypatch, capsys, tmp_path):
    code, _, err = call(["compare", str(tmp_path), "--link", "10mbp"], monkeypatch, capsys)
    assert code == 2
    assert "10mbps" in err


def test_a_method_that_sends_nothing_is_a_line_in_the_plots(tmp_path):
    folders = {"alone": ["all"], "head": ["head"]}
    runs = [
        fp.simulate(
            read_recipe(SMALL, {"local": local, "rounds": 1, "name": name}), folder=tmp_path / name, observer=Silent()
        )
        for name, local in folders.items()
    ]
    entries = entries_of(runs)
    found = rows(entries, targets(entries, None, None), LINKS["10mbps"])
    assert [row["bytes_of_all_rounds"] > 0 for row in found] == [False, True]
    page = write(tmp_path / "out", entries, found, None)[-1].read_text()
    assert "nothing is sent" in page


def test_personal_and_common_models_are_compared_by_the_measure_that_both_have(tmp_path):
    held = {"rounds": 2, "holdout": 0.2, "epochs": 1}
    runs = [
        fp.simulate(read_recipe(SMALL, {**held, **changes}), folder=tmp_path / name, observer=Silent())
        for name, changes in {"common": {}, "personal": {"local": ["head"], "parametrization": "none"}}.items()
    ]
    assert [run.measure for run in runs] == ["accuracy", "client_accuracy"]
    found = rows(entries_of(runs), {0: None})
    assert [row["measure"] for row in found] == ["client_accuracy"] * 2
    assert [row["last"] for row in found] == [run.rounds[-1]["client_accuracy"] for run in runs]
    assert rows(entries_of(runs[:1]), {0: None})[0]["measure"] == "accuracy"


def test_runs_without_a_common_measure_are_not_compared(tmp_path):
    changes = {"common": {"holdout": 0.0}, "personal": {"holdout": 0.2, "local": ["head"], "parametrization": "none"}}
    runs = [
        fp.simulate(read_recipe(SMALL, {"rounds": 1, "epochs": 1, **own}), folder=tmp_path / name, observer=Silent())
        for name, own in changes.items()
    ]
    with pytest.raises(ConfigError, match="no measure in common: accuracy, client_accuracy"):
        rows(entries_of(runs), {0: None})
