"""The notebook runs from its first cell to its last, but for the one that installs the package."""

import os

import pytest

from tests.docs.pages import ROOT

FILE = ROOT / "docs" / "notebooks" / "tour.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return pytest.importorskip("nbformat").read(FILE, as_version=4)


def test_it_is_kept_without_outputs_and_says_what_to_install(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert code[0].metadata["tags"] == ["install"]
    assert "%pip install" in code[0].source


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient").NotebookClient
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    client(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    assert "bytes" in text
