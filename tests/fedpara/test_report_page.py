"""The pages in a real browser, headless: nothing runs over, nothing is missing, everything can be read.

One page of the browser's holds every page under test in frames of several widths, and measures what is in them. It is
loaded twice, by day and by night.
"""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpara.chart import Chart
from fedpara.compare import entries_of, rows, targets, write
from fedpara.data import Holdings
from fedpara.report import write as write_report
from fedpara.run import Run
from fedpara.task import Exhibit, load_task
from tests.fedpara.test_report import runs
from tests.fedpara.written import HOSTILE, write_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
WIDTHS = (375, 820, 1400)
DARK, LIGHT = 0, 1

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")

MEASURE = (Path(__file__).parent / "measure.js").read_text()


def browse(folder, *arguments):
    """Run the browser once; what it prints."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += [f"--user-data-dir={folder / 'profile'}", *arguments]
    environment = {**os.environ, "HOME": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240, env=environment).stdout


def measured(pages, folder, scheme):
    """What the browser found in each page at each width."""
    texts = json.dumps({name: page.read_text() for name, page in pages.items()}).replace("</", "<\\/")
    script = f"const PAGES = {texts}, WIDTHS = {json.dumps(WIDTHS)};\n{MEASURE}"
    probe = folder / "probe.html"
    probe.write_text(f"<!doctype html><meta charset='utf-8'><body><script>{script}</script>")
    options = [f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=60000", "--dump-dom"]
    dumped = browse(folder, *options, probe.as_uri())
    found = re.search(r'<pre id="found">([^<]+)</pre>', dumped)
    assert found, dumped[-2000:]
    return json.loads(base64.b64decode(found[1]))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of many kinds, by name."""
    folder = tmp_path_factory.mktemp("pages")

    def exhibits(self, model, folder):
        grey = torch.linspace(0, 1, 96 * 128).view(96, 128)
        lines = {HOSTILE: [(1, 2), (3, 1)], "b": [(1, 1e7), (2, 3e7)]}
        (folder / "own.svg").write_text(
            "<svg xmlns='http://www.w3.org/2000/svg' width='900' height='90'><circle r='40' cx='50' cy='45'/></svg>"
        )
        axes = "s " + HOSTILE, "m " + HOSTILE
        yield Exhibit("Curves " + HOSTILE, charts=[Chart(lines, *axes, "A"), Chart(lines, *axes, "B")])
        yield Exhibit("Pictures", pictures={"a row": [(f"frame {n}, {HOSTILE}", grey) for n in range(7)]})
        yield Exhibit("A file", picture=folder / "own.svg", table=" ".join(["wide"] * 200))
        yield Exhibit("A table", rows=[["a", *map(str, range(40))], [HOSTILE, *map(str, range(40))]])

    people = tuple(f"writer-{place:04d}" for place in range(539))
    held = Holdings(people, ("a", "long-tailed macaque", *map(str, range(8))), np.arange(5390).reshape(539, 10) % 37)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_task("classification"), "exhibits", exhibits)
        patch.setattr(Run, "model", lambda self, client="": torch.nn.Identity())
        written = {"hostile": write_report(write_run(folder / "hostile", rounds=5))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_task("classification"), "holdings", lambda self, clients: held)
        written["people"] = write_report(write_run(folder / "people", names=people, rounds=120, personal=True))
    written["one round"] = write_report(write_run(folder / "one", names=["only"], rounds=1))
    written["unfinished"] = write_report(write_run(folder / "unfinished", rounds=0, finished=False))
    entries = entries_of(runs(folder))
    written["comparison"] = write(folder / "out", entries, rows(entries, targets(entries, None, 0.6)), None)[-1]
    return written


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_pages_hold_at_every_width(pages, tmp_path, scheme):
    found = measured(pages, tmp_path, scheme)
    assert {(each["name"], each["width"]) for each in found} == {(name, width) for name in pages for width in WIDTHS}
    for each in found:
        where = f"{each['name']} at {each['width']} px"
        assert max(each["over"]) <= 0, f"{where} is wider than its window"
        assert each["trouble"] == [], where
        assert each["loaded"] == [], where
        assert (each["paper"] > 0.5) is (scheme == LIGHT), where
        assert each["smallest"] > 9.5 or not each["charts"], f"{where}: small text in a chart"
    charts = {each["name"]: each["charts"] for each in found}
    assert charts == {"hostile": 7, "people": 8, "one round": 5, "unfinished": 1, "comparison": 4}
    assert {each["pictures"] for each in found if each["name"] == "hostile"} == {8}


def test_a_page_is_printed(pages, tmp_path):
    paper = tmp_path / "paper.pdf"
    browse(tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer", Path(pages["hostile"]).as_uri())
    data = paper.read_bytes()
    assert data.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20
