"""report.html and comparison.html: what stands in them, of runs of every kind."""

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from fedpara.compare import entries_of, rows, targets, write
from fedpara.data import Holdings
from fedpara.report import parts, sections
from fedpara.report import write as write_report
from fedpara.run import Run
from fedpara.task import load_task
from tests.fedpara.written import HOSTILE, write_run

VOID = {"meta", "img", "path", "rect", "circle", "polyline", "image"}


class Outline(HTMLParser):
    """Elements by name, and whether each is closed in its place."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def check(text):
    """A page that stands alone and is whole; its outline."""
    outline = Outline(text)
    tags = {tag for tag, _ in outline.found}
    assert not tags & {"script", "link", "iframe", "object", "embed"}
    for _, attributes in outline.found:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/", "#")) or value.endswith("report.html")
    assert not re.search(r"https?://|url\(|@import", text)
    assert {link[1:] for link in links(outline) if link[0] == "#"} <= titles(outline)
    return outline


def links(outline):
    return [attributes["href"] for tag, attributes in outline.found if tag == "a"]


def titles(outline):
    return {attributes["id"] for tag, attributes in outline.found if tag == "section"}


ALWAYS = {"progress", "bytes", "holdings", "sizes", "dropped", "seconds", "recipe"}


def test_a_report_shows_everything_of_a_run(tmp_path):
    run = write_run(tmp_path / "run")
    text = write_report(run).read_text()
    outline = check(text)
    assert titles(outline) == ALWAYS
    assert len(text) < 150_000
    last = run.rounds[-1]
    for words in (
        f"{100 * last['accuracy']:.2f} %",
        "10.0× fewer than dense in float32",
        "up: weights",
        "down: weights",
        "scales of the quantised values",
        "0.0125 GiB",
        "no answer within 31.5 s",  # stands for the other reasons that differ in figures
        "layers.1.weight",
        'parametrization = "fedpara"',
        "torch",
        "Seed 0",
        "5 min 2 s",
        "server averages",
    ):
        assert words in outline.text, words
    assert outline.text.count("no answer within 31.5 s") == 2
    assert outline.text.count("no answer within 33.5 s") == 1  # in the list of each of them
    assert f"{run.ledger.total() / 1e3:.3g} kB" in outline.text
    assert HOSTILE in " ".join(outline.words)  # as text


def test_drops_are_counted_by_reason_and_by_client(tmp_path):
    outline = check(write_report(write_run(tmp_path / "run", rounds=5)).read_text())
    assert "4 replies of 2 clients were left out, 16 were averaged" in outline.text
    assert "no answer within 31.5 s 3 2 1, 3, 5" in outline.text
    assert "says: no 1 1 2" in outline.text


def test_a_run_without_a_finished_round(tmp_path):
    outline = check(write_report(write_run(tmp_path / "run", rounds=0, finished=False)).read_text())
    assert "Unfinished: 1 round to go" in outline.text
    assert "No round has been finished yet" in outline.text


def test_an_unfinished_run_shows_how_far_it_came(tmp_path):
    write_run(tmp_path / "run", rounds=3, finished=False)
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("rounds = 3", "rounds = 9"))
    outline = check(write_report(Run(tmp_path / "run")).read_text())
    assert "Unfinished: 6 rounds to go" in outline.text
    assert "best" in outline.text


def test_many_clients_are_folded(tmp_path):
    names = [f"writer-{place:04d}" for place in range(539)]
    text = write_report(write_run(tmp_path / "run", names=names, rounds=30, personal=True)).read_text()
    outline = check(text)
    assert titles(outline) == ALWAYS | {"clients"}
    assert len(text) < 400_000
    openly = re.sub(r"<details.*?</details>", "", text, flags=re.S)
    assert openly.count("<th scope=row>writer-") <= 4 * sections.SHOWN
    assert "The other 524" in outline.text
    assert "539 clients judged what they end up with" in outline.text
    assert "accuracy 0.00 %" not in outline.text
    assert "0.00 % for the worst" in outline.text


def test_a_personal_run_is_judged_by_its_clients(tmp_path):
    run = write_run(tmp_path / "run", personal=True)
    outline = check(write_report(run).read_text())
    assert f"{100 * run.rounds[-1]['client_accuracy']:.2f} % on clients' held-out data" in outline.text
    assert "server's test data" not in outline.text


def test_what_a_task_can_no_longer_tell_costs_a_section_only(tmp_path):
    run = write_run(tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(
        recipe.read_text().replace('"digits"', '"mnist"').replace('data_dir = ""', 'data_dir = "/no/such"')
    )
    outline = check(write_report(Run(tmp_path / "run")).read_text())
    assert titles(outline) == ALWAYS
    assert "Not shown: " in outline.text
    assert "/no/such" in outline.text
    assert run.rounds


@pytest.mark.parametrize("own", [None, type("Own", (), {"table": lambda self: "mine < yours"})()])
def test_a_task_may_tell_little_of_who_holds_what(own, tmp_path, monkeypatch):
    monkeypatch.setattr(load_task("classification"), "holdings", lambda self, clients: own)
    outline = check(write_report(write_run(tmp_path / "run")).read_text())
    assert ("mine < yours" in outline.text) is (own is not None)
    assert ("holdings" in titles(outline)) is (own is not None)


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (50, 20), (51, 2), (3, 21), (700, 62)])
def test_holdings_of_any_size_are_charted(clients, classes):
    counts = np.arange(clients * classes).reshape(clients, classes) % 7
    html = Holdings(tuple(map(str, range(clients))), tuple(f"class {c}" for c in range(classes)), counts).charts()
    outline = Outline(html)
    assert "svg" in {tag for tag, _ in outline.found} or not counts.sum()
    assert len(html) < 200_000
    pictures = [attributes["href"] for tag, attributes in outline.found if tag == "image"]
    assert len(pictures) == (clients > 50 or classes > 20)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0421, "0.0421 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (252, "4 min 12 s"),
        (11_100, "3 h 5 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_times_are_said_as_people_do(seconds, text):
    assert parts.seconds_text(seconds) == text


def test_writing_a_report_needs_no_plotting_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    names = [f"client-{place}" for place in range(60)]
    assert "Not shown" not in write_report(write_run(tmp_path / "run", names=names)).read_text()


def runs(folder):
    """Three methods, two seeds of the first, the last of which sends nothing."""
    made = [write_run(folder / f"<b>dense-seed{seed}", seed=seed, shift=0.01 * seed) for seed in (0, 1)]
    made.append(write_run(folder / "few bits", shift=0.1, rounds=3))
    made.append(write_run(folder / "alone", shift=0.3, sends=False))
    return made


def test_a_comparison_shows_methods_seeds_and_links(tmp_path):
    made = runs(tmp_path)
    write_report(made[2])
    entries = entries_of(made)
    found = rows(entries, targets(entries, None, 0.6))
    written = write(tmp_path / "out", entries, found, None)
    assert [file.name for file in written] == ["runs.jsonl", "rounds.jsonl", "comparison.html"]
    text = written[-1].read_text()
    outline = check(text)
    assert titles(outline) == {"methods", "curves", "front", "target", "runs"}
    assert "<b>dense" in outline.text
    assert "nothing is sent" in outline.text
    assert "Never reached by few bits, alone" in outline.text
    assert [link for link in links(outline) if link[0] != "#"] == ["../few%20bits/report.html"]
    best = [row["best"] for row in found]
    assert all(f"{100 * value:.2f} %" in outline.text for value in best)


def test_a_comparison_may_be_the_page_alone(tmp_path):
    entries = entries_of(runs(tmp_path))
    found = rows(entries, targets(entries, None, None))
    (tmp_path / "out").mkdir()
    assert write(tmp_path / "out" / "page.html", entries, found, None) == [tmp_path / "out" / "page.html"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["page.html"]
    assert titles(check((tmp_path / "out" / "page.html").read_text())) == {"methods", "curves", "front", "runs"}


def test_a_process_that_started_before_its_round_does_not_count(tmp_path):
    run = write_run(tmp_path / "run", rounds=1)
    row = run.rounds[0]
    row["phases"] = {"start": 500.0, **row["phases"], "wait": 0.0}
    assert row["seconds"] - sum(row["phases"].values()) == -490.0
    outline = Outline(sections.seconds(run))
    assert "client starts its process 10 s 13.2 %" in outline.text


def test_a_runs_summary_names_versions(tmp_path):
    run = write_run(tmp_path / "run")
    summary = json.loads((run.folder / "summary.json").read_text())
    summary |= {"versions": {"torch": "0.0.<1>"}, "finished": "2031-01-02 03:04:05 +0000"}
    (run.folder / "summary.json").write_text(json.dumps(summary))
    text = check(write_report(Run(run.folder)).read_text()).text
    assert "torch 0.0.<1>" in text
    assert "Finished 2031-01-02" in text
