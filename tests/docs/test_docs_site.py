"""The site is built without a warning, whole, and asks nothing of any other machine."""

import os
import re
import subprocess
import sys

import pytest

from tests.docs.pages import PAGES, ROOT

# What a browser fetches by itself when it shows a page; links that a reader follows are none of it.
FETCHED = re.compile(r'<(?:script|img|iframe|source|video|audio)[^>]*\ssrc="((?:https?:)?//[^"]+)"')
LINKED = re.compile(r'<link[^>]*\shref="((?:https?:)?//[^"]+)"[^>]*>')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_there_and_made_whole(site):
    for name in set(PAGES) - {"README.md"}:
        file = site / ("index.html" if name == "index.md" else f"{name.removesuffix('.md')}/index.html")
        text = file.read_text(encoding="utf-8")
        assert "<h1" in text, name
        assert "<!-- here:" not in text, f"{name}: a mark was not replaced"
        assert "--8&lt;--" not in text, f"{name}: a file was not put in"


def test_pages_hold_what_the_code_says(site):
    commands = (site / "commands" / "index.html").read_text(encoding="utf-8")
    for words in ("fedpara simulate", "fedpara deploy init", "--over-selection"):
        assert words in commands
    assert "over-selection" in (site / "recipes" / "index.html").read_text(encoding="utf-8")
    reference = (site / "reference" / "index.html").read_text(encoding="utf-8")
    assert 'id="fedpara.parametrize.parametrize_"' in reference
    assert "higher_is_better" in reference


def test_no_page_fetches_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = FETCHED.findall(text) + [link for link in LINKED.findall(text) if 'rel="canonical"' not in text]
        assert not fetched, f"{page}: {fetched}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )['\"]?https?://", sheet.read_text(encoding="utf-8")), sheet
