"""What the README and the docs tell a reader to type is run as it stands there, with federations cut short.

A federation of digits, of a folder or of a file of one's own is trained, for one round of one epoch on few clients.
That of another recipe, and one below `<!-- parsed: reason -->`, is read with all of its options and not begun. What
stands below `<!-- not run: reason -->` is for another machine, or needs what is not here. A block whose first line is a
comment with a file's name is that file.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import inspect
import re
import shlex
import shutil
import sys
import tomllib
import typing
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner
from PIL import Image

import fedpara as fp
from fedpara.app import builtin_tasks, find_recipe, load
from fedpara.cli import cli
from fedpara.config import Optimiser, Recipe, Training, read_recipe, to_table
from fedpara.run import Run
from fedpara.task import load_task
from tests.conftest import Silent
from tests.docs.pages import PAGES, REASON, ROOT, blocks, commands, inline

STAND_IN = re.compile(r"runs/(\w[\w-]*)-20260101-120000")  # a run that the reader is taken to have
DATE = "20260101-120000"


class Read(Exception):
    """A federation was read, and is not begun."""


def short(simulate, parsed):
    """`simulate` for one more round of one epoch, on four clients at most; reads only what would take longer."""

    def begin(recipe, *, folder=None, resume=False, observer=None, **overrides):
        if resume and folder is None:
            folder = recipe
        found = recipe if isinstance(recipe, Recipe) else read_recipe(find_recipe(recipe), overrides)
        local = found.task.endswith(".py") or found.options.get("dataset") in ("digits", "folder", "hf:shades")
        if parsed() or not local:
            if folder:
                stand_in(found, Path(folder))
            raise Read
        done = len(Run(folder).rounds) if resume else 0
        clients = min(found.clients, 4)
        small = dataclasses.replace(
            found,
            rounds=done + 1,
            clients=clients,
            cohort=min(found.cohort, 2),
            workers=1,
            training=dataclasses.replace(found.training, epochs=1),
        )
        return simulate(small, folder=folder, resume=resume, observer=observer)

    return begin


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A run of digits, and a folder of images."""
    folder = tmp_path_factory.mktemp("digits")
    small = {"rounds": 1, "clients": 4, "cohort": 2, "epochs": 1, "workers": 1}
    fp.simulate(read_recipe(find_recipe("digits"), small), folder=folder / "run", observer=Silent())
    draw = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / "pets" / kind).mkdir(parents=True)
        for number in range(40):
            image = Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            image.save(folder / "pets" / kind / f"{number:04d}.png")
    return folder


@pytest.fixture
def home(digits, tmp_path, monkeypatch):
    """A reader's folder: the examples that pages link to, images, and a run of digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    shutil.copytree(digits / "pets", tmp_path / "pets")
    shutil.copytree(digits / "pets" / "cat", tmp_path / "scans")
    shutil.copytree(digits / "run", tmp_path / "runs" / f"digits-{DATE}")
    for example in (ROOT / "docs" / "examples").iterdir():
        shutil.copy(example, tmp_path)
    for page in PAGES:
        for block in blocks(page):
            if block.file:
                Path(block.file).write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language in ("bash", "python") for b in blocks(page))]
)
def test_the_blocks_of_a_page_work_one_after_the_other(page, home, monkeypatch):
    current = {"how": "run"}
    local = load("simulations.local")
    begin = short(local.simulate, lambda: current["how"] == "parsed")
    monkeypatch.setattr(local, "simulate", begin)
    monkeypatch.setattr(fp, "simulate", begin, raising=False)
    monkeypatch.setattr("fedpara.forkserver.start", lambda: None)
    for block in blocks(page):
        current["how"] = block.how
        if block.how == "not run":
            continue
        if block.language == "python":
            run_python(block)
        elif block.language == "toml":
            table = tomllib.loads(block.text)
            if "gamma" in table or "task" in table:
                read_recipe(table if block.file is None else block.file)
        elif block.language == "bash":
            for line in commands(block):
                run_command(line, block, monkeypatch)
        else:
            assert block.language in ("text", ""), f"{page}:{block.line}: nothing runs {block.language}"


def run_python(block):
    if "datasets" in block.text:
        pytest.importorskip("datasets")
    with contextlib.redirect_stdout(None):
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {"__name__": "__main__"})


def run_command(line, block, monkeypatch):
    where = f"{block.page}:{block.line}: {line}"
    for part in re.split(r"\s&&\s", line):
        words = shlex.split(part, comments=True)
        words = [word for given in words for word in (sorted(glob.glob(given)) if "*" in given else [given])]
        if words[:2] == ["python", "-m"]:
            check_module(words[2], words[3:])
            continue
        assert words[0] == "fedpara", f"{where}: cannot be run; say why above the block, <!-- not run: why -->"
        with monkeypatch.context() as patches:
            if words[1] == "apply":
                only_read(Path(words[2]), patches)
            result = CliRunner().invoke(
                cli, [str(Path(word).expanduser()) if word[0] == "~" else word for word in words[1:]]
            )
        missing = isinstance(result.exception, fp.DataError) and "are not on this machine" in str(result.exception)
        if not isinstance(result.exception, Read) and not missing:
            assert result.exit_code == 0, f"{where}: {result.output} {result.exception!r}"


def stand_in(recipe, folder):
    """The folder of a run that is not begun: its recipe alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(tomli_w.dumps(to_table(recipe)))


def only_read(folder, patches):
    """Where a run was not begun, its task takes the options that it is applied with, and no more."""
    if (named := STAND_IN.fullmatch(str(folder))) and named[1] != "digits":
        stand_in(read_recipe(find_recipe(named[1])), folder)
    if not (folder / "rounds.jsonl").is_file():
        patches.setattr(Run, "model", lambda self, client="": None)
        patches.setattr(
            load_task(Run(folder).recipe.task), "apply", lambda self, model, source, output, options: ["read"]
        )


def check_module(name, options):
    """A module that takes long: it is there, and its source knows the options."""
    assert importlib.util.find_spec(name), f"there is no module {name}"
    file = Path(importlib.util.find_spec(name).origin)
    sources = "".join(path.read_text() for path in file.parent.glob("*.py"))
    for option in options:
        assert not option.startswith("--") or f'"{option}"' in sources, f"{name} has no {option}"


@pytest.mark.parametrize("page", [page for page in PAGES if inline(page)])
def test_commands_in_running_text_are_known_with_their_options(page):
    for text in inline(page):
        words = shlex.split(text.replace("…", ""))
        if words[:2] == ["python", "-m"]:
            check_module(words[2], words[3:])
            continue
        command, rest = cli, words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        assert command is not cli or not rest or rest[0].startswith("--"), f"{page}: {text}: no such command"
        known = {flag for parameter in command.params for flag in parameter.opts} | {"--help", "--version"}
        if command.context_settings.get("ignore_unknown_options"):
            known |= keys()
        for word in rest:
            flag = word.partition("=")[0]
            assert not flag.startswith("--") or flag in known, f"{page}: {text}: no option {flag}"


def keys():
    """Every option that a recipe's key, or what a task applies, makes."""
    tasks = [load_task(name) for name in builtin_tasks()]
    classes = [Recipe, Training, Optimiser, *(task.Options for task in tasks), *(task.Apply for task in tasks)]
    return {f"--{name.replace('_', '-')}" for cls in classes for name in leaves(cls)}


def leaves(cls):
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint)
        yield name


@pytest.mark.parametrize("page", PAGES)
def test_what_is_left_out_has_a_reason_and_a_block_below_it(page):
    text = PAGES[page].read_text(encoding="utf-8")
    marks = re.findall(r"<!-- (?:not run|parsed).*", text)
    for mark in marks:
        found = REASON.fullmatch(mark)
        assert found, f"{page}: '{mark}': write <!-- not run: why --> or <!-- parsed: why -->"
        assert len(found[2]) > 5, f"{page}: '{mark}' gives no reason"
    assert len(marks) == sum(block.how != "run" for block in blocks(page)), f"{page}: a reason stands above no block"


def test_the_readme_begins_with_its_two_commands():
    first, second = [block for block in blocks("README.md") if block.language == "bash"][:2]
    assert first.text == "pip install . && fedpara simulate digits\n"
    assert second.text == 'pip install ".[test]" && pytest\n'


def test_every_page_is_in_the_sites_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert {page for page in PAGES if page != "README.md"} == set(re.findall(r"- ([\w-]+\.md)$", text, re.MULTILINE))


def test_every_public_name_is_in_the_reference():
    text = PAGES["reference.md"].read_text()
    for name in set(fp.__all__) - {"__version__"}:
        value = getattr(fp, name)
        home = inspect.unwrap(value).__module__ if name != "codec" else "fedpara.codec.specs"
        assert f"::: {home}.{name}\n" in text, f"reference.md lacks {home}.{name}"
