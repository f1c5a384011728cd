"""The architecture page's arrows are the imports, no more and no fewer."""

import re

import pytest

from tests.docs.imports import imported, modules
from tests.docs.pages import PAGES

KNOWN = modules()


def units():
    """The page's units: modules, or packages with all that is in them, of each."""
    rows = re.findall(r"^\| `([\w.]+)` \| (`.+`) \|", PAGES["architecture.md"].read_text(), re.MULTILINE)
    return {unit: re.findall(r"`([\w.]+)`", names) for unit, names in rows}


def arrows():
    """The page's arrows."""
    text = re.search(r"^```text\n(.*?)^```", PAGES["architecture.md"].read_text(), re.MULTILINE | re.DOTALL)[1]
    rows = [line.split("→") for line in text.splitlines() if line.strip()]
    return {(start.strip(), end.strip()) for start, ends in rows for end in ends.split(",") if end.strip()}


def unit_of(module):
    """The unit with the longest name that this module is, or is in."""
    found = [
        (len(name), unit)
        for unit, names in units().items()
        for name in names
        if module == name or (module.startswith(f"{name}.") and name != "fedpara")
    ]
    return max(found)[1] if found else None


@pytest.mark.parametrize("module", KNOWN)
def test_every_module_is_in_a_unit(module):
    assert unit_of(module), f"docs/architecture.md has no unit with {module}: add it to one"


def test_the_arrows_are_the_imports():
    home = {module: unit_of(module) for module in KNOWN}
    real = {(home[module], home[other]) for module in KNOWN for other in imported(module, KNOWN)}
    real = {(start, end) for start, end in real if start != end}
    missing, extra = sorted(real - arrows()), sorted(arrows() - real)
    assert not missing, f"docs/architecture.md lacks {', '.join(f'{a} → {b}' for a, b in missing)}"
    assert not extra, (
        f"docs/architecture.md has arrows that no import makes: {', '.join(f'{a} → {b}' for a, b in extra)}"
    )


def test_the_ground_imports_nothing_and_the_library_reaches_the_app_through_few_doors():
    into_app = {start for start, end in arrows() if end.split(".")[0] in ("server", "client", "simulations")}
    inside = {unit for unit, names in units().items() if names[0].split(".")[0] == "fedpara"}
    assert into_app & inside == {"api", "app", "cli", "runs"}
    assert not {end for start, end in arrows() if start == "ground"}


def test_an_import_is_seen_wherever_it_stands(tmp_path):
    (tmp_path / "one.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import two\n"
        'def f():\n    from . import three\n    load("four")\nimport five.six\n'
    )
    names = ("p.two", "two", "p.three", "four", "five.six")
    known = {"p.one": tmp_path / "one.py", **dict.fromkeys(names, tmp_path / "one.py")}
    assert imported("p.one", known) == {"p.three", "four", "five.six"}
