"""What is installed: one import name, its types, the app as data, nothing to compile."""

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import fedpara as fp
from fedpara.app import load

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_is_pure_python_with_one_import_name(wheel):
    assert wheel.name == f"fedpara-{PROJECT['version']}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"fedpara", f"fedpara-{PROJECT['version']}.dist-info"}
    assert not [name for name in names if name.endswith((".so", ".pyd", ".c", ".pyc"))]


def test_the_wheel_holds_all_of_the_library_and_the_app(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "fedpara/py.typed" in names
    for part, inside in {
        "fedpara": "fedpara",
        **{p: f"fedpara/_app/{p}" for p in ("server", "client", "simulations")},
    }.items():
        kept = [file for file in (ROOT / part).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        missing = {f"{inside}/{file.relative_to(ROOT / part).as_posix()}" for file in kept} - names
        assert not missing, f"the wheel lacks {sorted(missing)[:5]}"
    assert "fedpara/_app/pyproject.toml" in names


USES = """
from pathlib import Path
import fedpara as fp

run: fp.Run = fp.simulate("digits", rounds=2, folder=Path("runs/one"))
up: int = run.ledger.total("up")
rank: int = fp.rank_for((512, 512), gamma=0.1)
config = fp.FedPara(gamma=0.1)
payload: bytes = fp.codec("int8").encode({})
metrics = fp.Metrics(3, {"accuracy": 0.5})
recipe = fp.Recipe(rounds=3)
"""
WRONG = {
    'fp.FedPara(gamma="much")': "arg-type",
    "fp.simulate(3)": "arg-type",
    'fp.Metrics("three", {})': "arg-type",
    "fp.parametrise_": "attr-defined",
    "rank.bit": "attr-defined",
}


@pytest.mark.slow
def test_a_users_file_is_checked_against_the_installed_types(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    site = next((tmp_path / "env").rglob("site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (tmp_path / "uses.py").write_text(USES + "\n".join(WRONG) + "\n")
    python = next(
        path
        for path in (tmp_path / "env" / "bin" / "python", tmp_path / "env" / "Scripts" / "python.exe")
        if path.exists()
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "uses.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = dict(re.findall(r"uses\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE))
    first = USES.count("\n") + 1
    expected = {str(first + place): kind for place, kind in enumerate(WRONG.values())}
    assert {line: found.get(line) for line in expected} == expected, done.stdout
    assert found.keys() == expected.keys(), done.stdout


def test_simulates_types_are_those_of_the_function_itself():
    tree = ast.parse((ROOT / "fedpara" / "__init__.py").read_text())
    told = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "simulate")
    real = inspect.signature(load("simulations.local").simulate).parameters
    assert [argument.arg for argument in (*told.args.args, *told.args.kwonlyargs, told.args.kwarg)] == list(real)


def test_optional_packages_are_named_in_extras_that_errors_can_point_to():
    extras = PROJECT["optional-dependencies"]
    sources = "".join(
        file.read_text() for part in ("fedpara", "client", "simulations") for file in (ROOT / part).rglob("*.py")
    )
    for extra in {*re.findall(r"fedpara\[(\w+)\]", sources), "hf", "vision", "timm"}:
        assert extra in extras, f"an error names the extra '{extra}', which there is not"


def test_citation_changelog_and_version_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == fp.__version__
    assert citation["license"] == PROJECT["license"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_hooks_before_a_commit_are_tools_that_the_tests_bring():
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    for hook in hooks:
        assert importlib.metadata.distribution(hook["entry"].split()[0])


def test_tests_that_belong_together_run_in_one_process(request):
    """Programs on one machine's ports and cores one after the other, and what a file's tests share made once."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("asks for pytest -n 2 --dist loadgroup, as .ci/run has it")
    assert request.node.nodeid.endswith("@test_packaging")
