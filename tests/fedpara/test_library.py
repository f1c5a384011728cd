"""The library stands alone: what it exports, what it imports, and how light it is to import."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedpara as fp
from fedpara import app

LIBRARY = Path(fp.__file__).parent
FORBIDDEN = {"flwr", "ray", "server", "client", "simulations"}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def test_no_module_of_the_library_imports_the_app_or_flower():
    files = list(LIBRARY.rglob("*.py"))
    assert len(files) > 20
    for file in files:
        found = {name.partition(".")[0] for name in imports(file)} & FORBIDDEN
        assert not found, f"{file} imports {found}"


def test_the_app_is_loaded_through_one_module_only():
    users = {file.name for file in LIBRARY.rglob("*.py") if 'load("' in file.read_text() and "app" in file.read_text()}
    assert users <= {
        "app.py",
        "running.py",
        "deploying.py",
        "__init__.py",
        "run.py",
        "start.py",
        "task.py",
        "worker_imports.py",
    }


def test_the_public_names_are_these():
    assert set(fp.__all__) == {
        "__version__",
        *("FedPara", "PFedPara", "LowRank", "parametrize_", "merge_", "rank_for", "size", "Size"),
        *("codec", "Codec", "Ledger", "Recipe", "Run", "simulate"),
        *("Task", "ClientData", "Metrics", "TensorExamples", "register_task", "load_task"),
        *("FedparaError", "ConfigError", "DataError", "DeviceError", "CodecError", "UpdateError"),
        *("CheckpointError", "FederationError"),
    }
    for name in fp.__all__:
        assert getattr(fp, name) is not None
    assert set(fp.__all__) <= set(dir(fp))
    with pytest.raises(AttributeError, match="no attribute 'parametrise_'"):
        fp.parametrise_  # noqa: B018


def test_the_version_is_the_projects():
    project = tomllib.loads((LIBRARY.parent / "pyproject.toml").read_text())["project"]
    assert fp.__version__ == project["version"]


def loaded_by(code):
    script = f"import sys; {code}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_and_asking_for_help_load_nothing_heavy():
    heavy = {"torch", "matplotlib", "sklearn", "flwr", "ray", "PIL", "numpy"}
    assert not loaded_by("import fedpara") & heavy
    assert not loaded_by("import fedpara.cli") & heavy
    assert not loaded_by("import fedpara.parametrize, fedpara.codec, fedpara.ledger") & (heavy - {"torch", "numpy"})


def test_the_app_is_found_in_a_checkout_and_nothing_else_is_taken_for_it(tmp_path, monkeypatch):
    assert (app.root() / "server" / "app.py").is_file()
    assert app.load("server.app").app is not None
    monkeypatch.setitem(sys.modules, "server.imposter", type(sys)("server.imposter"))
    sys.modules["server.imposter"].__file__ = str(tmp_path / "server.py")
    with pytest.raises(fp.ConfigError, match="rename that module"):
        app.load("server.imposter")


def test_the_code_hash_follows_the_code(tmp_path, monkeypatch):
    first = app.code_hash()
    assert len(first) == 8
    assert first == app.code_hash()
    for part in ("server", "client"):
        shutil.copytree(app.root() / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(app, "root", lambda: tmp_path)
    probe = tmp_path / "server" / "zz_probe.py"
    try:
        app.code_hash.cache_clear()
        assert app.code_hash() == first
        probe.write_text("x = 1\n")
        app.code_hash.cache_clear()
        assert app.code_hash() != first
        probe.unlink()
        app.code_hash.cache_clear()
        assert app.code_hash() == first
    finally:
        app.code_hash.cache_clear()
