"""Exports: what the file holds computes what the federated model computes, or there is no file."""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fedpara as fp
from fedpara import checkpoint, export
from fedpara.cli import main
from fedpara.config import read_recipe
from fedpara.errors import CheckpointError, ConfigError, FedparaError
from fedpara.export import export_model, export_run
from fedpara.models import CNN
from fedpara.parametrize import FedPara, PFedPara, factorised, merge_, parametrize_
from fedpara.run import Run
from fedpara.sharing import load_shared_
from fedpara.task import Task, build_model, build_task
from tests.conftest import SMALL, Silent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("export") / "run"
    fp.simulate(read_recipe(SMALL, {"rounds": 2}), folder=folder, observer=Silent())
    return Run(folder)


@pytest.fixture
def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return parametrize_(CNN(image_size=8, hidden=64, norm="group"), FedPara(gamma=0.2)), torch.randn(3, 1, 8, 8)


def federated(run: Run) -> nn.Module:
    """The run's model with its factors."""
    model = build_model(run.recipe, build_task(run.recipe))
    state = checkpoint.load(run.folder / "checkpoint")
    return load_shared_(model, dict(state.model)).eval()


def call(arguments: list[str], monkeypatch: Any, capsys: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fedpara", *arguments])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def run_onnx(file: Path, *inputs: Tensor) -> list[Tensor]:
    session = import_module("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return [torch.from_numpy(np.asarray(found)) for found in session.run(None, feeds)]


# ------------------------------------------------------------------------------------------------------- formats


def test_safetensors_hold_the_merged_state_dict(network: Any, tmp_path: Path) -> None:
    model, images = network
    expected = model.eval()(images)
    assert export_model(model, tmp_path / "model.safetensors", (images,)) < 1e-5
    assert export_model(model, tmp_path / "unchecked.safetensors") is None
    assert factorised(model.conv2), "the model itself is left as it is"
    plain = CNN(image_size=8, hidden=64, norm="group")
    assert list(load_file(tmp_path / "model.safetensors")) == sorted(plain.state_dict())
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(plain(images), expected, rtol=1e-4, atol=1e-5)


def test_pt2_is_a_program_for_any_batch(network: Any, tmp_path: Path) -> None:
    model, images = network
    model.train()
    assert export_model(model, tmp_path / "deep" / "model.pt2", (images,)) < 1e-5
    assert model.training
    program = torch.export.load(tmp_path / "deep" / "model.pt2").module()
    for batch in (3, 7):
        more = torch.randn(batch, 1, 8, 8)
        torch.testing.assert_close(program(more), model(more), rtol=1e-4, atol=1e-5)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.pt2"]


def test_onnx_runs_elsewhere_for_any_batch(network: Any, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model, images = network
    assert export_model(model, tmp_path / "model.onnx", (images,)) < 1e-5
    for batch in (3, 7):
        more = torch.randn(batch, 1, 8, 8)
        [found] = run_onnx(tmp_path / "model.onnx", more)
        torch.testing.assert_close(found, model.eval()(more), rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_exported_model_is_in_evaluation_mode(tmp_path: Path) -> None:
    model = parametrize_(nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5), nn.Linear(64, 8)), FedPara(gamma=0.1))
    inputs = torch.randn(3, 32)
    assert export_model(model.train(), tmp_path / "m.pt2", (inputs,)) < 1e-5
    program = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(program(inputs), model.eval()(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_several_inputs_and_nested_outputs(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = parametrize_(nn.GRU(32, 48, batch_first=True), PFedPara(gamma=0.2))
    inputs = (torch.randn(2, 5, 32), torch.randn(1, 2, 48))
    assert export_model(model, tmp_path / f"model{suffix}", inputs) < 1e-5
    if suffix == ".pt2":
        outputs, last = torch.export.load(tmp_path / "model.pt2").module()(*inputs)
        torch.testing.assert_close(outputs, model(*inputs)[0], rtol=1e-4, atol=1e-5)
        assert last.shape == (1, 2, 48)


# ----------------------------------------------------------------------------------------------------------- runs


def test_the_command_exports_a_run_by_suffix(finished: Run, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = federated(finished)(images)
    code, out, _ = call(["export", str(finished.folder), str(tmp_path / "m.pt2")], monkeypatch, capsys)
    assert code == 0
    assert "bytes, outputs within " in out
    program = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)
    code, out, _ = call(["export", str(finished.folder), str(tmp_path / "m.safetensors")], monkeypatch, capsys)
    assert code == 0
    merged = finished.model()
    assert load_file(tmp_path / "m.safetensors").keys() == merged.state_dict().keys()


def test_the_command_exports_onnx(finished: Run, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    code, out, _ = call(["export", str(finished.folder), str(tmp_path / "m.onnx")], monkeypatch, capsys)
    assert code == 0
    assert "outputs within " in out
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = federated(finished)(images)
    torch.testing.assert_close(run_onnx(tmp_path / "m.onnx", images)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_run_without_its_checkpoint_is_exported_from_its_merged_model(finished: Run, tmp_path: Path) -> None:
    for name in ("recipe.toml", "model.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    assert export_run(Run(tmp_path), tmp_path / "m.pt2") < 1e-5
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not finished a round"):
        export_run(Run(tmp_path), tmp_path / "n.pt2")
    assert not (tmp_path / "n.pt2").exists()


def test_a_task_without_an_example_is_told_so(finished: Run, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    task = type(build_task(finished.recipe))
    monkeypatch.setattr(task, "example_input", Task.example_input)
    for suffix in (".pt2", ".safetensors"):
        code, out, err = call(["export", str(finished.folder), str(tmp_path / f"m{suffix}")], monkeypatch, capsys)
        if suffix == ".pt2":
            assert (code, out) == (2, "")
            assert "example_input()" in err
        else:
            assert code == 0
            assert "not compared" in out
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["model", "model.onx", "model.pt", ".onnx"])
def test_an_unknown_suffix_is_refused_before_anything_is_read(name: str, finished: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.safetensors, \.pt2, \.onnx"):
        export_run(finished, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_remedy(network: Any, monkeypatch: Any, tmp_path: Path) -> None:
    model, images = network
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx and onnxscript; pip install 'fedpara\[export\]'"):
        export_model(model, tmp_path / "model.onnx", (images,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_a_file_that_computes_something_else_is_not_left_behind(
    suffix: str, network: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    model, images = network

    def spoiled(given: nn.Module) -> nn.Module:
        merged = merge_(given)
        with torch.no_grad():
            merged.fc2.bias[0] += 0.01 * float(merged(images).abs().max())
        return merged

    monkeypatch.setattr(export, "merge_", spoiled)
    (tmp_path / f"model{suffix}").write_bytes(b"an older export")
    with pytest.raises(FedparaError, match="its outputs differ from the model's by"):
        export_model(model, tmp_path / f"model{suffix}", (images,))
    assert [path.name for path in tmp_path.iterdir()] == [f"model{suffix}"]
    assert (tmp_path / f"model{suffix}").read_bytes() == b"an older export"


def test_outputs_that_are_not_numbers_do_not_pass_as_equal(network: Any, tmp_path: Path) -> None:
    model, images = network
    with torch.no_grad():
        model.fc2.bias[0] = float("nan")
    with pytest.raises(FedparaError, match="differ from the model's by nan"):
        export_model(model, tmp_path / "model.safetensors", (images,))


def test_a_model_that_cannot_be_traced_is_told_so(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs) if float(inputs.sum()) > 0 else inputs

    with pytest.raises(FedparaError, match=r"torch\.export cannot trace Branching: "):
        export_model(parametrize_(Branching(), FedPara(gamma=0.1)), tmp_path / "m.pt2", (torch.rand(2, 32),))
    assert not list(tmp_path.iterdir())


def test_the_exported_model_is_a_copy(network: Any, tmp_path: Path) -> None:
    model, images = network
    before = copy.deepcopy(model.state_dict())
    export_model(model, tmp_path / "m.pt2", (images,))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
