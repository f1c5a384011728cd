"""fedpara apply: a run's model used on files of the user's own, and what a task shows in the report."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

import fedpara as fp
from fedpara.chart import Chart
from fedpara.cli import cli, main
from fedpara.data.digits import load_digits
from fedpara.report import write
from fedpara.task import Exhibit, load_task


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Digits, trained for long enough to be told apart."""
    return fp.simulate("digits", folder=tmp_path_factory.mktemp("runs") / "digits", rounds=8, workers=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Ten test images as files, named by their class."""
    folder, test = tmp_path_factory.mktemp("scans"), load_digits().test
    for digit in range(10):
        place = int((test.labels == digit).nonzero()[0])
        Image.fromarray(test.images[place, 0].numpy()).resize((24, 24), 0).save(folder / f"{digit}.png")
    return folder


def call(capsys, monkeypatch, *words):
    """Exit code and both outputs of the command line."""
    monkeypatch.setattr("sys.argv", ["fedpara", *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_folder_of_images_of_another_size_becomes_a_table_of_classes(run, digits, tmp_path, capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "apply", run.folder, digits, tmp_path / "out.csv", "--top", 2)
    assert code == 0
    assert "written" in out
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 20
    first = rows[::2]
    assert sum(row["file"][0] == row["class"] for row in first) >= 8
    assert all(float(a["probability"]) >= float(b["probability"]) for a, b in zip(rows[::2], rows[1::2], strict=True))


def test_one_image_is_enough(run, digits, capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "apply", run.folder, digits / "3.png")
    assert code == 0
    assert out.startswith("3.png  ")


def test_without_an_input_the_options_are_listed(run, capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "apply", run.folder)
    assert code == 0
    assert "--top" in out
    assert "INPUT is an image" in out


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["nowhere.png"], "nothing is at nowhere.png"),
        (["a", "b", "c"], "one input and one output"),
        (["a", "--tpo", "2"], "did you mean 'top'"),
        (["a", "--top", "0"], "outside its range"),
        (["a", "--top"], "needs a value"),
        (["--top", "2"], "no input"),
    ],
)
def test_nonsense_is_one_line(run, words, needle, capsys, monkeypatch):
    code, _, err = call(capsys, monkeypatch, "apply", run.folder, *words)
    assert code == (1 if needle in ("nothing is at nowhere.png", "no input") else 2)
    assert needle in err
    assert err.count("\n") == 1


def test_an_empty_folder_and_a_broken_image_are_named(run, tmp_path, capsys, monkeypatch):
    code, _, err = call(capsys, monkeypatch, "apply", run.folder, tmp_path)
    assert (code, "holds no images" in err) == (1, True)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    code, _, err = call(capsys, monkeypatch, "apply", run.folder, tmp_path)
    assert (code, "broken.png cannot be read" in err) == (1, True)


def test_a_task_that_has_nothing_to_apply_says_so(run, monkeypatch, capsys):
    monkeypatch.setattr(load_task("classification"), "apply", fp.Task.apply)
    code, _, err = call(capsys, monkeypatch, "apply", run.folder, "a.png")
    assert (code, "nothing to apply" in err) == (2, True)


def test_the_report_shows_what_a_task_shows(run, monkeypatch):
    def exhibits(self, model: torch.nn.Module, folder: Path):
        Image.new("L", (2, 2)).save(folder / "a.png")
        (folder / "b.svg").write_text("<?xml?><svg id='own'></svg>")
        yield Exhibit("pixels", folder / "a.png", table="a < b")
        yield Exhibit("lines", folder / "b.svg")
        yield Exhibit(
            "figures", rows=[["net", "parameters"], ["<ours>", str(sum(p.numel() for p in model.parameters()))]]
        )
        yield Exhibit("curves", charts=[Chart({"up": [(1, 2), (2, 3)], "down": [(1, 3)]}, "s", "m", "Way")])
        yield Exhibit("frames", pictures={"first": [("grey", torch.rand(4, 6)), ("colours", torch.rand(3, 400, 200))]})

    monkeypatch.setattr(load_task("classification"), "exhibits", exhibits)
    page = write(run).read_text()
    assert "alt='pixels' src='data:image/png;base64," in page
    assert "a &lt; b" in page
    assert "alt='lines' src='data:image/svg+xml;base64," in page
    assert "id='own'" not in page, "what an SVG file holds beside its drawing has no place in the page"
    assert "&lt;ours&gt;</th>" in page
    assert "<p class='title'>Way</p><svg" in page
    assert "alt='grey' width='6' height='4'" in page
    assert "alt='colours' width='144' height='288'" in page


def test_a_mistake_in_a_tasks_pictures_costs_no_report(run, monkeypatch):
    def exhibits(self, model: torch.nn.Module, folder: Path):
        raise RuntimeError("no <such> thing")

    monkeypatch.setattr(load_task("classification"), "exhibits", exhibits)
    page = write(run).read_text()
    assert "Not shown: RuntimeError: no &lt;such&gt; thing" in page
    assert "Every byte" in page


def test_help_names_the_command():
    assert "apply" in cli.commands
