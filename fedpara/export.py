"""Trained models for use elsewhere: merged to plain layers, in plain formats, each file read back and checked."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .checkpoint import save_tensors
from .errors import ConfigError, FedparaError
from .parametrize import merge_

if TYPE_CHECKING:
    from .run import Run

TOLERANCE = 1e-4  # largest difference of an output, as a share of the largest output
ONNX_PACKAGES = ("onnx", "onnxscript")

Inputs = tuple[Tensor, ...]
Outputs = list[Tensor]
Writer = Callable[[nn.Module, Path, Inputs | None], Outputs]  # writes, reads back, and computes the outputs


def export_run(run: Run, output: Path) -> float | None:
    """Write a run's model in the format of the output's suffix; see `export_model`, whose difference is returned.

    The yardstick is the model as it was federated: the factors of the last checkpoint, where there are any.

    Raises:
        ConfigError: an unknown suffix, a package that is missing, a task without an example input.
        CheckpointError: the run has not finished a round.
        FedparaError: what was written computes something else.
    """
    from . import checkpoint
    from .sharing import load_shared_
    from .task import build_model

    _check_format(output)
    task = run.task
    state = checkpoint.load(run.folder / "checkpoint")
    model = run.model() if state is None else load_shared_(build_model(run.recipe, task), dict(state.model))
    return export_model(model, output, task.example_input())


def export_model(model: nn.Module, output: Path, inputs: Inputs | None = None) -> float | None:
    """Write a model, merged, to a .safetensors, .pt2 (torch.export) or .onnx file; the model itself is left as it is.

    `inputs` are those of one call, model(*inputs), of two examples or more: .pt2 and .onnx need them, and keep their
    first dimension variable where the model does. The file is read back, and must give the model's outputs; an .onnx
    file by way of onnxruntime where that is installed, else by the program that it was written from. Returns the
    largest difference as a share of the largest output; None without inputs.

    Raises:
        ConfigError: an unknown suffix, a package that is missing, no inputs.
        FedparaError: a model that torch.export cannot trace; outputs that differ by more than 1e-4. No file is left.
    """
    write = _check_format(output)
    if inputs is None and output.suffix != ".safetensors":
        raise ConfigError(
            f"cannot export to {output}: {output.suffix} needs an example of the network's inputs, "
            "which the task gives as example_input(); name a .safetensors file, which needs none"
        )
    federated = copy.deepcopy(model).cpu().eval()
    merged = merge_(copy.deepcopy(federated))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.stem}.partial{output.suffix}")
    try:
        with torch.no_grad(), _quiet():
            outputs = write(merged, partial, inputs)
            difference = None if inputs is None else _difference(_tensors(federated(*inputs)), outputs)
        if difference is not None and not difference <= TOLERANCE:
            raise FedparaError(
                f"cannot export to {output}: its outputs differ from the model's by {difference:.1e} of the largest, "
                f"more than {TOLERANCE:.0e}; does the model compute the same twice in evaluation mode?"
            )
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return difference


def _check_format(output: Path) -> Writer:
    writers: dict[str, Writer] = {".safetensors": _safetensors, ".pt2": _pt2, ".onnx": _onnx}
    if output.suffix not in writers:
        raise ConfigError(f"cannot export to {output}: the name must end in {', '.join(writers)}")
    missing = [name for name in ONNX_PACKAGES if output.suffix == ".onnx" and find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"cannot export to {output}: ONNX needs {' and '.join(missing)}; pip install 'fedpara[export]'"
        )
    return writers[output.suffix]


def _safetensors(model: nn.Module, file: Path, inputs: Inputs | None) -> Outputs:
    save_tensors(file, {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()})
    model.load_state_dict(load_file(file))
    return [] if inputs is None else _tensors(model(*inputs))


def _pt2(model: nn.Module, file: Path, inputs: Inputs | None) -> Outputs:
    assert inputs is not None
    torch.export.save(_traced(model, inputs), file)
    return _tensors(torch.export.load(file).module()(*inputs))


def _onnx(model: nn.Module, file: Path, inputs: Inputs | None) -> Outputs:
    assert inputs is not None
    traced = _traced(model, inputs)
    program = torch.onnx.export(traced, dynamo=True, verbose=False)
    assert program is not None
    program.save(file)
    if find_spec("onnxruntime") is None:
        return _tensors(traced.module()(*inputs))
    session = import_module("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    return [torch.from_numpy(array) for array in found]


def _traced(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    # AUTO: variable if the model allows it, else as in the example.
    first = tuple({0: torch.export.Dim.AUTO} if tensor.ndim else None for tensor in inputs)
    try:
        return torch.export.export(model, inputs, dynamic_shapes=first, strict=False)
    except Exception as error:  # whatever the model's own code raises under tracing
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FedparaError(f"torch.export cannot trace {type(model).__name__}: {reason}") from error


def _tensors(outputs: Any) -> Outputs:
    """The tensors in a model's outputs, in order, whatever nests them."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return [tensor for part in outputs for tensor in _tensors(part)] if isinstance(outputs, list | tuple) else []


def _difference(expected: Outputs, found: Outputs) -> float:
    """The largest difference, as a share of the largest number of its tensor; infinite where shapes differ."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    shares = [
        float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp_min(1e-30))
        for one, other in zip(expected, found, strict=True)
        if one.numel()
    ]
    return float(torch.tensor(shares).max()) if shares else 0.0  # NaN stays NaN, which Python's max may lose


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' own notes, on packages that are not there and calls to be renamed, are not the user's concern."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
