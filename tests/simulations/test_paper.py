"""The paper's tables: what is published, what is computed, what is run, how it is shown."""

import dataclasses
import shutil

import pytest

import fedpara as fp
from fedpara.app import find_recipe
from fedpara.codec import codec
from fedpara.compare import read_grid
from fedpara.config import read_recipe
from fedpara.cost import MIB, paper_cost, paper_round_seconds
from fedpara.parametrize import parameter_count
from fedpara.task import build_model, build_task
from server.strategies import STRATEGIES
from simulations.paper import tables as paper
from simulations.paper.__main__ import main
from simulations.paper.computed import vgg16_parameters
from tests.conftest import Silent

TABLES = paper.tables()
SETTINGS = sorted({(scale, name) for table in TABLES.values() for scale, own in table.grids.items() for name in own})
PUBLISHED = {"original": None, **{f"γ = 0.{n}": n / 10 for n in range(1, 10)}}


# ---------------------------------------------------------------------------------------------------- published figures


def test_every_table_has_a_way_to_be_had_at_both_scales():
    assert {"table2", "table3", "table5", "table7", "table9", "table12"} < set(TABLES)
    assert {"fig3", "fig5", "resnet18", "shakespeare"} < set(TABLES)
    assert "2108.06098" in paper.source()
    for table in TABLES.values():
        assert bool(table.computed) != bool(table.grids)
        assert table.computed or set(table.grids) == set(paper.SCALES)


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if table.grids])
def test_what_is_published_belongs_to_what_is_run(name):
    table = TABLES[name]
    known = {setting: read_grid(paper.grid_file("full", setting)).methods for setting in table.grids["full"]}
    for quantity, settings in table.figures.items():
        assert quantity in table.shows
        for setting, row in settings.items():
            assert set(row) <= set(known[setting]) & set(table.methods)
    for scale, settings in table.grids.items():
        for setting in settings:
            assert paper.read(table, scale, setting).methods
    for pair in table.less:
        assert set(pair) <= set(table.methods)


@pytest.mark.parametrize(("scale", "setting"), SETTINGS)
def test_every_method_is_a_recipe_that_differs_in_what_it_is_named_for(scale, setting):
    grid = read_grid(paper.grid_file(scale, setting))
    assert grid.baseline in grid.methods
    recipes = {method: read_recipe(find_recipe(grid.recipe), grid.overrides(method, 0)) for method in grid.methods}
    first = next(iter(recipes.values()))
    for method, recipe in recipes.items():
        assert grid.methods[method]["source"]
        assert recipe.strategy in STRATEGIES
        # The paper's bytes: all of the model, as it is, both ways.
        assert (recipe.downlink, recipe.first_broadcast, recipe.differences) == ("fp32", "weights", False)
        assert recipe.uplink == ("fp16" if "FedPAQ" in method else "fp32")
        assert dataclasses.replace(recipe.training, lr=first.training.lr, factor_lr=1.0) == first.training
        assert scale == "laptop" or recipe.training.factor_lr == 1  # the paper has one rate
        assert (recipe.rounds, recipe.clients, recipe.cohort) == (first.rounds, first.clients, first.cohort)
        if method.startswith("γ = "):
            assert recipe.gamma == float(method.split(maxsplit=3)[2])


def test_the_full_scale_is_table_6():
    for setting, expected in {
        "cifar10-iid": (100, 16, 200, 10),
        "cifar10-dirichlet": (100, 16, 200, 5),
        "cifar100-iid": (50, 8, 400, 10),
        "cifar100-dirichlet": (50, 8, 400, 5),
        "shakespeare-role": (100, 16, 500, 1),
        "shakespeare-iid": (100, 16, 500, 1),
    }.items():
        grid = read_grid(paper.grid_file("full", setting))
        recipe = read_recipe(find_recipe(grid.recipe), grid.overrides("FedPara", 0))
        assert (recipe.clients, recipe.cohort, recipe.rounds, recipe.training.epochs) == expected
        assert (recipe.training.batch_size, recipe.training.lr_decay) == (64, 0.992)
        assert recipe.training.lr == (1.0 if "shakespeare" in setting else 0.1)
        assert recipe.activation == "tanh"


@pytest.mark.parametrize("setting", TABLES["table2"].grids["laptop"])
def test_low_rank_has_fedparas_parameters_at_most(setting, real_data):
    if "cifar10" in setting and not any(real_data.glob("cifar-10-batches-*")):
        pytest.skip("FEDPARA_DATA holds no CIFAR-10 in an official layout")
    if "shakespeare" in setting and not (real_data / "shakespeare").is_dir():
        pytest.skip("FEDPARA_DATA holds no shakespeare/")
    grid = paper.read(TABLES["table2"], "laptop", setting)
    recipe = read_recipe(find_recipe(grid.recipe), grid.overrides("original", 0))
    own = build_task(recipe)
    assert len(own.population(recipe.clients)) == recipe.clients
    counted = {}
    for method in grid.methods:
        recipe = read_recipe(find_recipe(grid.recipe), grid.overrides(method, 0))
        counted[method] = parameter_count(build_model(recipe, own))
    times = 2.1 if grid.overrides("FedPara", 0)["gamma"] == 0.5 else 2.5
    assert 0.97 * counted["FedPara"] < counted["low rank"] <= counted["FedPara"] < counted["original"] / times


# ------------------------------------------------------------------------------------------------- computed from inputs


@pytest.mark.parametrize("method", PUBLISHED)
def test_table_5_for_ten_classes(method):
    """Within 0.0101 M: the paper prints 0.01 M and no rounding of ranks; γ = 0.4 is 0.0099 M under its 4.45 M."""
    printed = TABLES["table5"].paper("million", "10 classes", method)
    assert vgg16_parameters(10, PUBLISHED[method]) / 1e6 == pytest.approx(printed, abs=0.0101)


def test_table_5_for_a_hundred_classes_adds_another_46_170_numbers():
    """The last layer alone differs, 512 · 90 + 90 numbers.

    γ = 0.4 is printed 0.013 M above ours here and 0.010 M for ten classes: how the paper rounds ranks is not printed.
    """
    for method in ("original", "γ = 0.1", "γ = 0.4"):
        gamma = PUBLISHED[method]
        assert vgg16_parameters(100, gamma) - vgg16_parameters(10, gamma) == 90 * 513
        printed = TABLES["table5"].paper("million", "100 classes", method)
        assert vgg16_parameters(100, gamma) / 1e6 == pytest.approx(printed, abs=0.0135)


def test_tables_7_and_8_from_the_papers_own_inputs():
    """Five of six figures, to the 0.3 % that printed parameters leave; a megabit has 2²⁰ bits.

    At 2 Mbps the original's is 4.8 s more than its own size takes: see tests/fedpara/test_cost.py too.
    """
    table = TABLES["table7"]
    million = TABLES["table5"].figures["million"]["10 classes"]
    sizes = {"original": 4e6 * million["original"], "FedPara": 4e6 * million["γ = 0.1"]}
    ratio = {}
    for speed, row in table.figures["seconds"].items():
        for method, printed in row.items():
            found = paper_round_seconds(
                sizes[method], float(speed.split(maxsplit=1)[0]), table.figures["compute"][method]
            )
            ratio[speed, method] = found / printed
    assert 471.84 * (1 - ratio.pop(("2 Mbps", "original"))) == pytest.approx(4.8, abs=0.1)
    assert len(ratio) == 5
    assert all(own == pytest.approx(1, abs=3e-3) for own in ratio.values())
    # A size that fits the 471.84 s makes the row at 10 Mbps 95.68 s, and not the printed 94.68 s.
    fits = (471.84 - 1.64) * 2 / 16 * MIB
    assert paper_round_seconds(round(fits), 10, 1.64) == pytest.approx(95.68, abs=0.005)


def test_figure_3_from_the_papers_own_inputs():
    """GiB = 2 × participants × parameter bytes × rounds, to the half per cent that printed parameters leave."""
    table, million = TABLES["fig3"], TABLES["table5"].figures["million"]
    for setting, row in table.figures["GiB"].items():
        hundred = setting.startswith("cifar100")
        own = million["100 classes" if hundred else "10 classes"]
        counts = {"original": own["original"], "FedPara": own["γ = 0.4" if hundred else "γ = 0.1"]}
        for method, printed in row.items():
            rounds = table.paper("rounds", setting, method)
            found = paper_cost(round(4e6 * counts[method]), 8 if hundred else 16, int(rounds))
            assert found == pytest.approx(printed, rel=0.005)
        fewer = row["original"] / row["FedPara"]
        assert table.paper("times fewer", setting, "FedPara") == pytest.approx(fewer, abs=0.051)


def test_table_12s_bytes():
    """4 bytes down and 4 or 2 up for each parameter, in decimal MB.

    Two of the four are printed a little off: FedPAQ's 15.25 M make 91.5, not 91.4; γ = 0.5's 5.79 M make 46.32, not
    46.4, though the 34.74 beside it fits to the last digit.
    """
    table, million = TABLES["table12"], TABLES["table5"].figures["million"]["10 classes"]
    found = {
        "original": 8 * million["original"],
        "FedPAQ": 6 * million["original"],
        "γ = 0.5": 8 * million["γ = 0.5"],
        "γ = 0.5 + FedPAQ": 6 * million["γ = 0.5"],
    }
    off = {name: value - table.paper("MB a round", "cifar10-iid", name) for name, value in found.items()}
    assert off == pytest.approx({"original": 0, "FedPAQ": 0.1, "γ = 0.5": -0.08, "γ = 0.5 + FedPAQ": 0}, abs=0.005)


# --------------------------------------------------------------------------------------------------- runs, shown


GRID = """
recipe = "digits"
seeds = [0, 1]
baseline = "original"

[common]
rounds = 3
clients = 4
cohort = 2
epochs = 1
model = "2nn"
norm = ""
hidden = 0
workers = 1
gamma = 0.1
uplink = "fp32"
downlink = "fp32"
first-broadcast = "weights"
differences = false

[methods."original"]
source = "dense"
parametrization = "none"

[methods."low rank"]
source = "low rank"
parametrization = "lowrank"

[methods."FedPara"]
source = "FedPara"
uplink = "fp16"
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A small table at a scale of its own, whose grid lies in a temporary folder."""
    for scale in paper.SCALES:
        folder = tmp_path / "grids" / scale
        folder.mkdir(parents=True)
        (folder / "small.toml").write_text(GRID.replace("rounds = 3", "rounds = 30") if scale == "full" else GRID)
    monkeypatch.setattr(paper, "grid_file", lambda scale, setting: tmp_path / "grids" / scale / f"{setting}.toml")
    return paper.Table(
        title="Small",
        methods=["original", "low rank", "FedPara"],
        shows=["accuracy", "rounds", "GiB", "times fewer", "MB a round", "parameters", "times fewer sent"],
        less=[("FedPara", "low rank")],
        grids={"full": ["small"], "laptop": ["small"]},
        figures={"accuracy": {"small": {"original": 90.0, "FedPara": 85.5, "low rank": 80.25}}},
    )


def curves(folder):
    run = fp.Run(folder)
    kept = ("round", "accuracy", "loss", "up", "down", "total", "cohort")
    return [{key: row[key] for key in kept} for row in run.rounds], [
        {key: row[key] for key in ("round", "client", "direction", "payload")} for row in run.ledger.to_rows()
    ]


def test_what_was_cut_off_goes_on_elsewhere_by_the_same_call_without_a_seam(table, tmp_path, monkeypatch):
    whole = paper.lines(table, "laptop", tmp_path / "a", run=True, seeds=[0])
    # A second output: one run finished, one cut off after its first round, one not begun; then moved.
    grid = paper.read(table, "laptop", "small", [0])
    cut = tmp_path / "b" / "laptop" / "small"
    shutil.copytree(tmp_path / "a" / "laptop" / "small" / "original-seed0", cut / "original-seed0")
    own = read_recipe(find_recipe(grid.recipe), grid.overrides("low rank", 0) | {"rounds": 1})
    fp.simulate(own, folder=cut / "low-rank-seed0", observer=Silent())
    (cut / "low-rank-seed0" / "summary.json").unlink()
    shown = paper.lines(table, "laptop", tmp_path / "b", run=False, seeds=[0])
    assert [bool(line.ours) for line in shown] == [line.method == "original" for line in shown]
    shutil.move(tmp_path / "b", tmp_path / "c")
    before = (tmp_path / "c/laptop/small/original-seed0/rounds.jsonl").stat().st_mtime_ns
    assert paper.lines(table, "laptop", tmp_path / "c", run=True, seeds=[0]) == whole
    assert (tmp_path / "c/laptop/small/original-seed0/rounds.jsonl").stat().st_mtime_ns == before  # not trained anew
    for name in ("original-seed0", "low-rank-seed0", "FedPara-seed0"):
        assert curves(tmp_path / "a/laptop/small" / name) == curves(tmp_path / "c/laptop/small" / name)
    monkeypatch.setattr("fedpara.compare.run_grid", None)  # and nothing is left to do
    assert paper.lines(table, "laptop", tmp_path / "c", run=False, seeds=[0]) == whole


def test_lines_say_paper_ours_difference_and_spread(table, tmp_path):
    found = paper.lines(table, "laptop", tmp_path / "a", run=True, seeds=[])
    by = {(line.method, line.quantity): line for line in found}
    assert set(by["FedPara", "accuracy"].ours) == {0, 1}
    sent = {method: set(by[method, "parameters"].ours.values()) for method in table.methods}
    assert sent["low rank"].pop() <= sent["FedPara"].copy().pop()
    parameters = sent["FedPara"].pop()
    run = fp.Run(tmp_path / "a/laptop/small/FedPara-seed0")
    sizes = [codec(spec).size({"a": run.model().state_dict()["layers.1.weight"]}) for spec in ("fp16", "fp32")]
    assert sizes[0] < sizes[1]
    assert by["FedPara", "MB a round"].ours[0] == pytest.approx(6e-6 * parameters, rel=0.01)
    assert by["original", "times fewer"].ours == {0: 1.0, 1: 1.0}
    assert by["FedPara", "times fewer sent"].ours[0] > 2
    rounds = by["original", "rounds"].ours[0]
    dense = by["original", "parameters"].ours[0]
    assert by["original", "GiB"].ours[0] == paper_cost(4 * dense, 2, rounds)
    text = paper.markdown(table, "laptop", found)
    assert "small: rounds 3 (full: 30)" in text
    assert "| small | FedPara – low rank | +5.25 | " in text
    line = next(row for row in text.splitlines() if row.startswith("| small | original | accuracy | 90 | "))
    assert "±" in line
    assert line.endswith(" | 0 1 |")


def test_figures_that_not_every_seed_reached_say_so():
    line = paper.Line("s", "m", "rounds", 110, {0: 10, 1: None, 2: 20})
    assert paper._cells(line)[4:6] == ["15.0 ± 7.1 (2 of 3 seeds)", "–"]
    assert paper._cells(paper.Line("s", "m", "rounds", 110, {0: None}))[4] == "not reached"
    assert paper._cells(paper.Line("s", "m", "rounds", 110, {}))[4] == "–"
    assert paper._cells(paper.Line("s", "m", "accuracy", 80.0, {0: 79.0, 1: 80.0}))[4:] == [
        "79.50 ± 0.71",
        "-0.50",
        "0 1",
    ]


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["paper", *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command(monkeypatch, capsys, tmp_path):
    code, out, _ = call(monkeypatch, capsys, "table5", "table8", "--output", tmp_path)
    assert code == 0
    assert "| 10 classes | γ = 0.1 | million | 1.55 | 1.547 | -0.003 | – |" in out
    assert "| 2 Mbps | FedPara | seconds | 49.54 | 49.55 |" in out
    assert (tmp_path / "laptop" / "table7.md").is_file()
    for scale in paper.SCALES:
        code, out, _ = call(monkeypatch, capsys, "all", "--show", "--scale", scale, "--output", tmp_path)
        assert (code, out.count("## ")) == (0, len(TABLES))
    code, _, err = call(monkeypatch, capsys, "table99")
    assert code == 2
    code, _, err = call(monkeypatch, capsys, "table2", "--data-dir", tmp_path / "none", "--output", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "is no folder" in err
